// Correlation losses of image pairs on the CPU. Compiled once per instruction set, chosen at run time.
//
// All matrix products are one register tile (pairs_product.h). F and S come from packed panels. W V' is formed in registers when
// F is complete. Only this block is stored, since the two gradients need it along both axes.
//
// This file and that header use no standard library templates: copies compiled for AVX-512 must not be merged into code for
// other machines.
#include <sched.h>
#include <string.h>

#include "isa_name.h"
#include "pairs_exp.h"
#include "pairs_product.h"

namespace depthg {
namespace {

constexpr int kColumns = 2;                        // vectors of a tile of F and S, one at an image's end
template <class T> constexpr int64_t kTileWidth = kColumns * kLanesOf<T>;  // divides kPanel

// ---- tiles of W ---------------------------------------------------------------------------------------------------

template <class T> struct TileJob {
  const T *codes_a, *codes_b, *feats_a, *feats_b, *depth_a, *depth_b;  // at the tile's first row and column
  const T *row_bias, *column_bias;                                     // likewise
  T scale, times;      // `times`: how often the tile counts in the value
  int64_t columns;     // of the tile that exist, kTileWidth inside
  T *out, *out_depth;  // block of W V'
  int64_t out_row;
  double value[2];
};

template <class T> inline VecOf<T> first_columns(int64_t count) {  // 1 in the first `count` lanes, 0 after
  VecOf<T> v;
  for (int n = 0; n < kLanesOf<T>; ++n) v[n] = n < count ? T(1) : T(0);
  return v;
}

template <class T> inline T sum_lanes(VecOf<T> v) {
  T total = 0;
  for (int n = 0; n < kLanesOf<T>; ++n) total += v[n];
  return total;
}

// Value and stored W V' of one row of the tile.
template <int NV, class T>
inline __attribute__((always_inline)) void finish(const PairPass<T>& s, const TileJob<T>& t, VecOf<T> w, VecOf<T> similarity,
                                                  int n, T* out, VecOf<T>* total) {
  using Vec = VecOf<T>;
  using Mask = typename Vectors<T>::Mask;
  if (t.columns < NV * kLanesOf<T>) w *= first_columns<T>(t.columns - n * kLanesOf<T>);
  Vec value = similarity;
  Vec slope = w;
  if (s.clamp) {
    const Mask keep = ~(Mask)(similarity < T(0));  // a NaN stays
    slope = (Vec)((Mask)slope & keep);
    value = (Vec)((Mask)value & keep);
  }
  if (s.limited) {
    const Mask keep = ~(Mask)(similarity > s.limit);
    slope = (Vec)((Mask)slope & keep);
    value = (Vec)(((Mask)value & keep) | ((Mask)splat(s.limit) & ~keep));
  }
  *total = multiply_add(w, value, *total);
  store(out, slope);
}

// The depth target of a tile: products of vectors, or with EXPONENTIAL their squared distances.
template <bool EXPONENTIAL, class T, int MR, int NV>
inline __attribute__((always_inline)) void depth_tile(const PairPass<T>& s, TileJob<T>& t, const VecOf<T> (&similarity)[MR][NV]) {
  constexpr int kLanes = kLanesOf<T>;
  VecOf<T> total[NV] = {};
  for (int m = 0; m < MR; ++m) {
    for (int n = 0; n < NV; ++n) {
      VecOf<T> w = splat(EXPONENTIAL ? T(0) : -s.shift);
      for (int64_t d = 0; d < s.d; ++d) {
        const VecOf<T> u = splat(t.depth_a[d * kPanel + m]), v = load(t.depth_b + d * kPanel + n * kLanes);
        w = EXPONENTIAL ? multiply_add(u - v, u - v, w) : multiply_add(u, v, w);
      }
      if (EXPONENTIAL) w = exponential<T>(w * splat(-s.decay)) - splat(s.shift);
      finish<NV>(s, t, w, similarity[m][n], n, t.out_depth + m * t.out_row + n * kLanes, &total[n]);
    }
  }
  for (int n = 0; n < NV; ++n) t.value[1] += static_cast<double>(t.times) * sum_lanes<T>(total[n]);
}

template <class T, int MR, int NV> void tile(const PairPass<T>& s, TileJob<T>& t) {
  constexpr int kLanes = kLanesOf<T>;
  VecOf<T> similarity[MR][NV] = {};
  HalfOf<T> none[MR];
  product<false>(t.codes_a, 1, kPanel, t.codes_b, kPanel, s.k, similarity, none);
  if (t.feats_a) {
    VecOf<T> f[MR][NV] = {};
    product<false>(t.feats_a, 1, kPanel, t.feats_b, kPanel, s.c, f, none);
    VecOf<T> total[NV] = {};
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) {
        const VecOf<T> bias = t.row_bias[m] + load(t.column_bias + n * kLanes);
        const VecOf<T> w = multiply_add(splat(t.scale), f[m][n], bias);
        finish<NV>(s, t, w, similarity[m][n], n, t.out + m * t.out_row + n * kLanes, &total[n]);
      }
    }
    for (int n = 0; n < NV; ++n) t.value[0] += static_cast<double>(t.times) * sum_lanes<T>(total[n]);
  }
  if (t.depth_a && s.exponential) {
    depth_tile<true>(s, t, similarity);
  } else if (t.depth_a) {
    depth_tile<false>(s, t, similarity);
  }
}

template <class T> using TileFunction = void (*)(const PairPass<T>&, TileJob<T>&);
#define PAIRS_TILES(NV)                                                                                                  \
  {nullptr,        tile<T, 1, NV>, tile<T, 2, NV>, tile<T, 3, NV>, tile<T, 4, NV>,  tile<T, 5, NV>,                      \
   tile<T, 6, NV>, tile<T, 7, NV>, tile<T, 8, NV>, tile<T, 9, NV>, tile<T, 10, NV>, tile<T, 11, NV>}
template <class T> constexpr TileFunction<T> kTiles[][12] = {PAIRS_TILES(1), PAIRS_TILES(kColumns)};

// ---- pairs --------------------------------------------------------------------------------------------------------

template <class T> struct Work {
  T *block[2], *d_a[2], *d_b[2], *row_bias, *column_bias;
};

// bias[p] = constant - weight f_p . mean for all points of packed vectors.
template <class T>
void set_bias(const T* panels, const T* mean, int64_t points, int64_t channels, T weight, T constant, T* bias) {
  constexpr int kLanes = kLanesOf<T>, vectors = kPanel / kLanes;
  for (int64_t p = 0; p < points; p += kPanel, panels += channels * kPanel) {
    VecOf<T> total[vectors] = {};
    for (int64_t c = 0; weight != 0 && c < channels; ++c) {
      const VecOf<T> x = splat(mean[c]);
#pragma GCC unroll 8
      for (int n = 0; n < vectors; ++n) total[n] = multiply_add(x, load(panels + c * kPanel + n * kLanes), total[n]);
    }
    for (int n = 0; n < vectors; ++n) store(bias + p + n * kLanes, splat(constant) - weight * total[n]);
  }
}

// Fills rows [first, first + rows) of the block of W V' from column panel `from` on.
template <class T>
void fill_block(const PairPass<T>& s, int64_t e, int64_t first, int64_t rows, int64_t from, const Work<T>& work, double* value) {
  const int64_t i = s.i[e], j = s.j[e], panels_p = pad_to(s.p, kPanel) / kPanel, panels_q = pad_to(s.q, kPanel) / kPanel;
  TileJob<T> t{};
  t.out_row = panels_q * kPanel;
  t.scale = s.weights ? s.weights[4 * e] : T(1);
  for (int64_t panel = from; panel < panels_q; ++panel) {
    for (int64_t column = 0; column < kPanel && panel * kPanel + column < s.q; column += kTileWidth<T>) {
      const int64_t q = panel * kPanel + column;
      t.columns = s.q - q < kTileWidth<T> ? s.q - q : kTileWidth<T>;
      t.codes_b = s.codes_b + (j * panels_q + panel) * s.k * kPanel + column;
      if (s.feats_b) t.feats_b = s.feats_b + (j * panels_q + panel) * s.c * kPanel + column;
      if (s.depth_b) t.depth_b = s.depth_b + (j * panels_q + panel) * s.d * kPanel + column;
      t.column_bias = work.column_bias + q;
      const TileFunction<T>* tiles = kTiles<T>[t.columns > kLanesOf<T>];
      for (int64_t p = first; p < first + rows && p < s.p;) {
        const int64_t inside = p % kPanel, left = kPanel - inside < s.p - p ? kPanel - inside : s.p - p;
        const int64_t groups = (left + kRows[kColumns] - 1) / kRows[kColumns], high = (left + groups - 1) / groups;
        const int64_t at = i * panels_p + p / kPanel;
        t.codes_a = s.codes_a + at * s.k * kPanel + inside;
        if (s.feats_a) t.feats_a = s.feats_a + at * s.c * kPanel + inside;
        if (s.depth_a) t.depth_a = s.depth_a + at * s.d * kPanel + inside;
        t.row_bias = work.row_bias + p;
        t.times = s.symmetric && panel > p / kPanel ? T(2) : T(1);
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
// columns give the gradient of its rows, and the columns right of the diagonal give the gradient of those columns' points.
template <class T>
void add_gradients(const PairPass<T>& s, int64_t e, int64_t first, int64_t rows, int64_t from, const T* block, T* d_a, T* d_b) {
  const int64_t k = pad_to(s.k, kPad), width = pad_to(s.q, kPanel), start = from * kPanel;
  const T* a = s.rows_a + (s.i[e] * s.p + first) * k;
  const T* b = s.rows_b + s.j[e] * s.q * k;
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

template <class T> void add_local(const T* local, int64_t points, int64_t k, T alpha, T* out) {
  const int64_t padded = pad_to(k, kPad);
  for (int64_t p = 0; p < points; ++p) {
    for (int64_t n = 0; n < k; ++n) out[p * k + n] += alpha * local[p * padded + n];
  }
}

template <class T> void run_pair(const PairPass<T>& s, int64_t e, const Turns& turns, const Work<T>& work) {
  const int64_t k = pad_to(s.k, kPad), block = block_rows(s);
  const T alpha[2] = {s.alpha, s.alpha_depth};
  T* const out_a[2] = {s.d_a, s.d_a_depth};
  T* const out_b[2] = {s.d_b, s.d_b_depth};
  double value[2] = {0, 0};
  for (int n = 0; n < 2; ++n) {
    if (out_a[n]) memset(work.d_a[n], 0, s.p * k * sizeof(T));
    if (out_b[n]) memset(work.d_b[n], 0, s.q * k * sizeof(T));
  }
  if (s.feats_a) {
    const T* weight = s.weights + 4 * e;
    const int64_t size_a = pad_to(s.p, kPanel) * s.c, size_b = pad_to(s.q, kPanel) * s.c;
    set_bias(s.feats_a + s.i[e] * size_a, s.mean_b + s.j[e] * s.c, s.p, s.c, weight[1], weight[3], work.row_bias);
    set_bias(s.feats_b + s.j[e] * size_b, s.mean_a + s.i[e] * s.c, s.q, s.c, weight[2], T(0), work.column_bias);
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
  const T twice = s.symmetric ? T(2) : T(1);
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

template <class T> void run_pairs(const PairPass<T>& s, Turns* turns, T* scratch) {
  const int64_t k = pad_to(s.k, kPad), block = block_rows(s) * pad_to(s.q, kPanel);
  Work<T> work;
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

}  // namespace

void DEPTHG_FOR_ISA(run_pairs)(const PairPass<float>& s, Turns* turns, float* scratch) { run_pairs(s, turns, scratch); }
void DEPTHG_FOR_ISA(run_pairs)(const PairPass<double>& s, Turns* turns, double* scratch) { run_pairs(s, turns, scratch); }

}  // namespace depthg
