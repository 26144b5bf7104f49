// Correlation losses of image pairs on the CPU. Compiled once per instruction set, chosen at run time.
//
// All matrix products are one register tile (pairs_product.h). F and S come from packed panels; W V' is formed in registers when
// F is complete and only this block is stored, since the two gradients need it along both axes.
//
// This file and that header use no standard library templates: copies compiled for AVX-512 must not be merged into code for
// other machines.
#include <sched.h>
#include <string.h>

#include "isa_name.h"
#include "pairs_product.h"


namespace depthg {
namespace {

constexpr int kColumns = 2;                        // vectors of a tile of F and S, one at an image's end
constexpr int64_t kTileWidth = kColumns * kLanes;  // divides kPanel

// ---- tiles of W ---------------------------------------------------------------------------------------------------

struct TileJob {
  const float *codes_a, *codes_b, *feats_a, *feats_b, *depth_a, *depth_b;  // at the tile's first row and column
  const float *row_bias, *column_bias;                                     // likewise
  float scale, times;     // `times`: how often the tile counts in the value
  int64_t columns;        // of the tile that exist, kTileWidth inside
  float *out, *out_depth; // block of W V'
  int64_t out_row;
  double value[2];
};

inline Vec first_columns(int64_t count) {  // 1 in the first `count` lanes, 0 after
  Vec v;
  for (int n = 0; n < kLanes; ++n) v[n] = n < count ? 1.0f : 0.0f;
  return v;
}

inline float sum_lanes(Vec v) {
  float total = 0;
  for (int n = 0; n < kLanes; ++n) total += v[n];
  return total;
}

// Value and stored W V' of one row of the tile.
template <int NV>
inline __attribute__((always_inline)) void finish(const PairPass& s, const TileJob& t, Vec w, Vec similarity, int n, float* out,
                                                  Vec* total) {
  if (t.columns < NV * kLanes) w *= first_columns(t.columns - n * kLanes);
  Vec value = similarity;
  Vec slope = w;
  if (s.clamp) {
    const Mask keep = similarity >= 0.0f;
    slope = (Vec)((Mask)slope & keep);
    value = (Vec)((Mask)value & keep);
  }
  if (s.limited) {
    const Mask keep = similarity <= s.limit;
    slope = (Vec)((Mask)slope & keep);
    value = (Vec)(((Mask)value & keep) | ((Mask)splat(s.limit) & ~keep));
  }
  *total = multiply_add(w, value, *total);
  store(out, slope);
}

template <int MR, int NV>
void tile(const PairPass& s, TileJob& t) {
  Vec similarity[MR][NV] = {};
  HalfVec none[MR];
  product<false>(t.codes_a, 1, kPanel, t.codes_b, kPanel, s.k, similarity, none);
  if (t.feats_a) {
    Vec f[MR][NV] = {};
    product<false>(t.feats_a, 1, kPanel, t.feats_b, kPanel, s.c, f, none);
    Vec total[NV] = {};
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) {
        const Vec bias = t.row_bias[m] + load(t.column_bias + n * kLanes);
        const Vec w = multiply_add(splat(t.scale), f[m][n], bias);
        finish<NV>(s, t, w, similarity[m][n], n, t.out + m * t.out_row + n * kLanes, &total[n]);
      }
    }
    for (int n = 0; n < NV; ++n) t.value[0] += static_cast<double>(t.times) * sum_lanes(total[n]);
  }
  if (t.depth_a) {
    Vec total[NV] = {};
    for (int m = 0; m < MR; ++m) {
      for (int n = 0; n < NV; ++n) {
        Vec w = splat(-s.shift);
        for (int64_t d = 0; d < s.d; ++d) {
          w = multiply_add(splat(t.depth_a[d * kPanel + m]), load(t.depth_b + d * kPanel + n * kLanes), w);
        }
        finish<NV>(s, t, w, similarity[m][n], n, t.out_depth + m * t.out_row + n * kLanes, &total[n]);
      }
    }
    for (int n = 0; n < NV; ++n) t.value[1] += static_cast<double>(t.times) * sum_lanes(total[n]);
  }
}

using TileFunction = void (*)(const PairPass&, TileJob&);
#define PAIRS_TILES(NV)                                                                                         \
  {nullptr,     tile<1, NV>, tile<2, NV>, tile<3, NV>, tile<4, NV>,  tile<5, NV>,                               \
   tile<6, NV>, tile<7, NV>, tile<8, NV>, tile<9, NV>, tile<10, NV>, tile<11, NV>}
constexpr TileFunction kTiles[][12] = {PAIRS_TILES(1), PAIRS_TILES(kColumns)};

// ---- pairs --------------------------------------------------------------------------------------------------------

struct Work {
  float *block[2], *d_a[2], *d_b[2], *row_bias, *column_bias;
};

// bias[p] = constant - weight f_p . mean for all points of packed vectors.
void set_bias(const float* panels, const float* mean, int64_t points, int64_t channels, float weight, float constant, float* bias) {
  constexpr int vectors = kPanel / kLanes;
  for (int64_t p = 0; p < points; p += kPanel, panels += channels * kPanel) {
    Vec total[vectors] = {};
    for (int64_t c = 0; weight != 0 && c < channels; ++c) {
      const Vec x = splat(mean[c]);
#pragma GCC unroll 8
      for (int n = 0; n < vectors; ++n) total[n] = multiply_add(x, load(panels + c * kPanel + n * kLanes), total[n]);
    }
    for (int n = 0; n < vectors; ++n) store(bias + p + n * kLanes, splat(constant) - weight * total[n]);
  }
}

// Fills rows [first, first + rows) of the block of W V' from column panel `from` on.
void fill_block(const PairPass& s, int64_t e, int64_t first, int64_t rows, int64_t from, const Work& work, double* value) {
  const int64_t i = s.i[e], j = s.j[e], panels_p = pad_to(s.p, kPanel) / kPanel, panels_q = pad_to(s.q, kPanel) / kPanel;
  TileJob t{};
  t.out_row = panels_q * kPanel;
  t.scale = s.weights ? s.weights[4 * e] : 1.0f;
  for (int64_t panel = from; panel < panels_q; ++panel) {
    for (int64_t column = 0; column < kPanel && panel * kPanel + column < s.q; column += kTileWidth) {
      const int64_t q = panel * kPanel + column;
      t.columns = s.q - q < kTileWidth ? s.q - q : kTileWidth;
      t.codes_b = s.codes_b + (j * panels_q + panel) * s.k * kPanel + column;
      if (s.feats_b) t.feats_b = s.feats_b + (j * panels_q + panel) * s.c * kPanel + column;
      if (s.depth_b) t.depth_b = s.depth_b + (j * panels_q + panel) * s.d * kPanel + column;
      t.column_bias = work.column_bias + q;
      const TileFunction* tiles = kTiles[t.columns > kLanes];
      for (int64_t p = first; p < first + rows && p < s.p;) {
        const int64_t inside = p % kPanel, left = kPanel - inside < s.p - p ? kPanel - inside : s.p - p;
        const int64_t groups = (left + kRows[kColumns] - 1) / kRows[kColumns], high = (left + groups - 1) / groups;
        const int64_t at = i * panels_p + p / kPanel;
        t.codes_a = s.codes_a + at * s.k * kPanel + inside;
        if (s.feats_a) t.feats_a = s.feats_a + at * s.c * kPanel + inside;
        if (s.depth_a) t.depth_a = s.depth_a + at * s.d * kPanel + inside;
        t.row_bias = work.row_bias + p;
        t.times = s.symmetric && panel > p / kPanel ? 2.0f : 1.0f;
        t.out = work.block[0] + (p - first) * t.out_row + q;
        t.out_depth = work.block[1] + (p - first) * t.out_row + q;
        tiles[high](s, t);
        p += high;
      }
    }
  }
  value[0] += t.value[0];
  value[1] += t.value[1];
}

// Adds the block's part of both gradients to the local ones. In the symmetric case the block is one panel of rows: all its
// columns give the gradient of its rows, and the columns right of the diagonal that of their own points.
void add_gradients(const PairPass& s, int64_t e, int64_t first, int64_t rows, int64_t from, const float* block, float* d_a,
                   float* d_b) {
  const int64_t k = pad_to(s.k, kPad), width = pad_to(s.q, kPanel), start = from * kPanel;
  const float* a = s.rows_a + (s.i[e] * s.p + first) * k;
  const float* b = s.rows_b + s.j[e] * s.q * k;
  if (d_a) add_product(block + start, width, 1, b + start * k, k, s.k, rows, s.q - start, d_a + first * k);
  if (s.symmetric) {
    const int64_t after = start + kPanel;
    if (after < s.q) add_product(block + after, 1, width, a, k, s.k, s.q - after, rows, d_a + after * k);
  } else if (d_b) {
    add_product(block, 1, width, a, k, s.k, s.q, rows, d_b);
  }
}

void wait_turn(const int64_t* done, int64_t turn) {
  for (int round = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) != turn; ++round) {
#if defined(__x86_64__)
    _mm_pause();
#endif
    if (round > 1000) sched_yield();  // the other thread may be waiting for this core
  }
}

void add_local(const float* local, int64_t points, int64_t k, float alpha, float* out) {
  const int64_t padded = pad_to(k, kPad);
  for (int64_t p = 0; p < points; ++p) {
    for (int64_t n = 0; n < k; ++n) out[p * k + n] += alpha * local[p * padded + n];
  }
}

void run_pair(const PairPass& s, int64_t e, const Turns& turns, const Work& work) {
  const int64_t k = pad_to(s.k, kPad), block = block_rows(s);
  const float alpha[2] = {s.alpha, s.alpha_depth};
  float* const out_a[2] = {s.d_a, s.d_a_depth};
  float* const out_b[2] = {s.d_b, s.d_b_depth};
  double value[2] = {0, 0};
  for (int n = 0; n < 2; ++n) {
    if (out_a[n]) memset(work.d_a[n], 0, s.p * k * sizeof(float));
    if (out_b[n]) memset(work.d_b[n], 0, s.q * k * sizeof(float));
  }
  if (s.feats_a) {
    const float* weight = s.weights + 4 * e;
    const int64_t size_a = pad_to(s.p, kPanel) * s.c, size_b = pad_to(s.q, kPanel) * s.c;
    set_bias(s.feats_a + s.i[e] * size_a, s.mean_b + s.j[e] * s.c, s.p, s.c, weight[1], weight[3], work.row_bias);
    set_bias(s.feats_b + s.j[e] * size_b, s.mean_a + s.i[e] * s.c, s.q, s.c, weight[2], 0.0f, work.column_bias);
  }
  for (int64_t first = 0; first < s.p; first += block) {
    const int64_t rows = s.p - first < block ? s.p - first : block, from = s.symmetric ? first / kPanel : 0;
    fill_block(s, e, first, rows, from, work, value);
    for (int n = 0; n < 2; ++n) {
      if (!out_a[n] && !out_b[n]) continue;
      add_gradients(s, e, first, rows, from, work.block[n], out_a[n] ? work.d_a[n] : nullptr, out_b[n] ? work.d_b[n] : nullptr);
    }
  }
  s.values[2 * e] = value[0];
  s.values[2 * e + 1] = value[1];
  const float twice = s.symmetric ? 2.0f : 1.0f;
  int64_t* done = turns.done_a + s.i[e];
  wait_turn(done, turns.turn_i[e]);
  for (int n = 0; n < 2; ++n) {
    if (out_a[n]) add_local(work.d_a[n], s.p, s.k, twice * alpha[n], out_a[n] + s.i[e] * s.p * s.k);
  }
  __atomic_store_n(done, turns.turn_i[e] + 1, __ATOMIC_RELEASE);
  done = turns.done_b + s.j[e];
  wait_turn(done, turns.turn_j[e]);
  for (int n = 0; n < 2; ++n) {
    if (out_b[n] && !s.symmetric) add_local(work.d_b[n], s.q, s.k, alpha[n], out_b[n] + s.j[e] * s.q * s.k);
  }
  __atomic_store_n(done, turns.turn_j[e] + 1, __ATOMIC_RELEASE);
}

}  // namespace

void DEPTHG_FOR_ISA(run_pairs)(const PairPass& s, Turns* turns, float* scratch) {
  const int64_t k = pad_to(s.k, kPad), block = block_rows(s) * pad_to(s.q, kPanel);
  Work work;
  for (int n = 0; n < 2; ++n) {
    work.block[n] = scratch + n * block;
    work.d_a[n] = scratch + 2 * block + n * (s.p + s.q) * k;
    work.d_b[n] = work.d_a[n] + s.p * k;
  }
  work.row_bias = scratch + 2 * block + 2 * (s.p + s.q) * k;
  work.column_bias = work.row_bias + pad_to(s.p, kPanel);
  for (;;) {
    const int64_t e = __atomic_fetch_add(&turns->next, 1, __ATOMIC_RELAXED);
    if (e >= s.pairs) return;
    run_pair(s, e, *turns, work);
  }
}

}  // namespace depthg
