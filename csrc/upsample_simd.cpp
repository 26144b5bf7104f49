// Arg-max of one tile of pixels, see upsample.h. Compiled once per instruction set (UPSAMPLE_ISA), chosen at run time.
//
// A row of cells is interpolated along x once, for all maps; then every row of pixels between two rows of cells is a
// weighted sum of both, compared map by map in registers.
//
// This file uses no standard library templates: copies compiled for AVX-512 must not be merged into code for other machines.
#include <string.h>

#include "upsample_cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define UPSAMPLE_JOIN_(a, b) a##b
#define UPSAMPLE_JOIN(a, b) UPSAMPLE_JOIN_(a, b)

namespace depthg {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kGroup = 4;                // vectors whose arg-max is found together
constexpr int64_t kRow = kTile + kSpare;  // floats from map to map
typedef float Vec __attribute__((vector_size(kLanes * 4), aligned(4)));  // unaligned loads and stores
constexpr int kShort = kLanes < 8 ? kLanes : 8;  // lanes along a row, where runs of pixels are short
typedef float ShortVec __attribute__((vector_size(kShort * 4), aligned(4)));
typedef int Ids __attribute__((vector_size(kLanes * 4), aligned(4)));

inline Vec splat(float x) { return x - Vec{}; }
inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline ShortVec load_short(const float* p) { return *reinterpret_cast<const ShortVec*>(p); }
inline void store_short(float* p, ShortVec v) { *reinterpret_cast<ShortVec*>(p) = v; }

// Takes v and its map m where v is larger, or with ODD the first NaN.
template <bool ODD>
inline void keep_larger(Vec v, Ids m, Vec& best, Ids& id) {
#if defined(__AVX512F__)
  __mmask16 take = _mm512_cmp_ps_mask((__m512)v, (__m512)best, ODD ? _CMP_NLE_UQ : _CMP_GT_OQ);
  if (ODD) take &= _mm512_cmp_ps_mask((__m512)best, (__m512)best, _CMP_ORD_Q);
  best = (Vec)_mm512_mask_mov_ps((__m512)best, take, (__m512)v);
  id = (Ids)_mm512_mask_mov_epi32((__m512i)id, take, (__m512i)m);
#else
  Ids take = v > best;
  if (ODD) take |= (v != v) & (best == best);
  best = take ? v : best;
  id = take ? m : id;
#endif
}

// A run of pixels between the same two cells.
struct Run {
  int64_t begin, end, cell, next;
};

int64_t find_runs(const ScoreMaps& s, const Taps& columns, const Part& part, Run* runs) {
  int64_t count = 0;
  for (int64_t x = part.first_column; x < part.end_column; ++x) {
    const int64_t cell = columns.cell[x], at = x - part.first_column;
    if (!count || runs[count - 1].cell != cell) runs[count++] = {at, at, cell, cell + 1 < s.columns ? cell + 1 : cell};
    runs[count - 1].end = at + 1;
  }
  return count;
}

// One row of cells along x, for all maps; true when a score is infinite or NaN. A vector may write beyond its run: what it
// writes there is overwritten by the next one.
bool interpolate_row(const ScoreMaps& s, int64_t row, const Run* runs, int64_t count, const float* lower, const float* upper,
                     float* out) {
  float odd = 0;
  for (int64_t m = 0; m < s.maps; ++m, out += kRow) {
    const float* scores = s.scores + m * s.stride_map + row * s.stride_row;
    for (const Run* run = runs; run != runs + count; ++run) {
      const float a = scores[run->cell * s.stride_column], b = scores[run->next * s.stride_column];
      odd += (a - a) + (b - b);
      const ShortVec first = a - ShortVec{}, second = b - ShortVec{};
      for (int64_t x = run->begin; x < run->end; x += kShort) {
        store_short(out + x, first * load_short(lower + x) + second * load_short(upper + x));
      }
    }
  }
  return odd != 0;  // or NaN
}

template <bool ODD>
void arg_max(const float* top, const float* bottom, int64_t maps, float lower, float upper, int64_t count, int* ids) {
  const Vec above = splat(lower), below = splat(upper);
  for (int64_t x = 0; x < count; x += kGroup * kLanes) {
    const float *t = top + x, *b = bottom + x;
    Vec best[kGroup];
    Ids id[kGroup];
#pragma GCC unroll 4
    for (int n = 0; n < kGroup; ++n) {
      best[n] = load(t + n * kLanes) * above + load(b + n * kLanes) * below;
      id[n] = Ids{};
    }
    Ids now{};
    for (int64_t m = 1; m < maps; ++m) {
      t += kRow;
      b += kRow;
      now += 1;
#pragma GCC unroll 4
      for (int n = 0; n < kGroup; ++n) {
        keep_larger<ODD>(load(t + n * kLanes) * above + load(b + n * kLanes) * below, now, best[n], id[n]);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < kGroup; ++n) memcpy(ids + x + n * kLanes, &id[n], sizeof id[n]);
  }
}

template <class Id>
void write(const int* ids, int64_t count, Id* out) {
  Id narrow[kTile];
  for (int64_t x = 0; x < kTile; ++x) narrow[x] = static_cast<Id>(ids[x]);
  if (count == kTile) {
    memcpy(out, narrow, sizeof narrow);
  } else {
    memcpy(out, narrow, count * sizeof(Id));
  }
}

}  // namespace

void UPSAMPLE_JOIN(upsample_part_, UPSAMPLE_ISA)(const ScoreMaps& s, const Taps& rows, const Taps& columns, const Part& part,
                                                 float* scratch) {
  Run runs[kTile];
  const int64_t runs_count = find_runs(s, columns, part, runs), count = part.end_column - part.first_column;
  const float *lower = columns.lower + part.first_column, *upper = columns.upper + part.first_column;
  struct Row {
    float* values;
    int64_t cell;
    bool odd;
  } top{scratch, -1, false}, bottom{scratch + s.maps * kRow, -1, false};
  const auto fill = [&](Row& row, int64_t cell) {
    if (row.cell == cell) return;
    row.cell = cell;
    row.odd = interpolate_row(s, cell, runs, runs_count, lower, upper, row.values);
  };
  int ids[kTile] = {};
  for (int64_t y = part.first_row; y < part.end_row; ++y) {
    const int64_t cell = rows.cell[y], next = cell + 1 < s.rows ? cell + 1 : cell;
    if (top.cell != cell && bottom.cell == cell) {
      const Row old = top;
      top = bottom;
      bottom = old;
    }
    fill(top, cell);
    if (next != cell) fill(bottom, next);
    const Row& under = next != cell ? bottom : top;
    (top.odd || under.odd ? arg_max<true> : arg_max<false>)(top.values, under.values, s.maps, rows.lower[y], rows.upper[y], count,
                                                            ids);
    const int64_t at = y * s.width + part.first_column;
    if (s.maps < 256) {
      write(ids, count, static_cast<uint8_t*>(s.ids) + at);
    } else {
      write(ids, count, static_cast<uint16_t*>(s.ids) + at);
    }
  }
}

}  // namespace depthg
