// Arg-max of one tile of pixels, see upsample.h. Compiled once per instruction set, chosen at run time.
//
// A row of cells is interpolated along x once, for all maps; then every row of pixels between two rows of cells is a
// weighted sum of both, compared map by map in registers. Most maps are nowhere the largest. In a band of rows a sum lies
// between those of the first and of the last row. So a map is left out of a group of pixels where the larger of its two sums
// is below the smaller one of another map, at every pixel.
//
// This file uses no standard library templates: copies compiled for AVX-512 must not be merged into code for other machines.
#include <float.h>
#include <math.h>
#include <string.h>

#include "isa_name.h"
#include "upsample_cpu.h"
#include "vectors.h"

namespace depthg {
namespace {

constexpr int kGroup = kLanes < 16 ? 4 : 2;  // vectors whose arg-max is found together
constexpr int kPixels = kGroup * kLanes;     // pixels of such a group
constexpr int64_t kRow = kTile + kSpare;  // floats from map to map
constexpr int64_t kBand = 8;              // rows of pixels among which maps are left out together
constexpr int64_t kWorth = 4;             // fewer rows are compared as they are
constexpr float kRounding = 2e-6f;        // more than two sums of two products are rounded by, over the largest score
constexpr int kShort = kLanes < 8 ? kLanes : 8;  // lanes along a row, where runs of pixels are short
typedef float ShortVec __attribute__((vector_size(kShort * 4), aligned(4)));
typedef int Ids __attribute__((vector_size(kLanes * 4), aligned(4)));

inline ShortVec load_short(const float* p) { return *reinterpret_cast<const ShortVec*>(p); }
inline void store_short(float* p, ShortVec v) { *reinterpret_cast<ShortVec*>(p) = v; }

inline float larger_of(float a, float b) { return a > b ? a : b; }
inline Vec larger_of(Vec a, Vec b) { return a > b ? a : b; }
inline Vec smaller_of(Vec a, Vec b) { return a < b ? a : b; }

// Whether v reaches the bound in any lane.
inline bool any_reaches(Vec v, Vec bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, (__m512)bound, _CMP_GE_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)bound, _CMP_GE_OQ)) != 0;
#else
  const Ids reaches = v >= bound;
  int any = 0;
  for (int n = 0; n < kLanes; ++n) any |= reaches[n];
  return any != 0;
#endif
}

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

// A row of cells, interpolated along x, all maps.
struct Row {
  float* values;
  int64_t cell;
  float largest;  // of all magnitudes
  bool odd;       // a score is infinite or NaN
};

// A row of cells along x. A vector may write beyond its run: what it writes there is overwritten by the next one.
void interpolate_row(const ScoreMaps& s, const Run* runs, int64_t count, const float* lower, const float* upper, Row& row) {
  float odd = 0, largest = 0, *out = row.values;
  for (int64_t m = 0; m < s.maps; ++m, out += kRow) {
    const float* scores = s.scores + m * s.stride_map + row.cell * s.stride_row;
    for (const Run* run = runs; run != runs + count; ++run) {
      const float a = scores[run->cell * s.stride_column], b = scores[run->next * s.stride_column];
      odd += (a - a) + (b - b);
      largest = larger_of(larger_of(fabsf(a), fabsf(b)), largest);
      const ShortVec first = a - ShortVec{}, second = b - ShortVec{};
      for (int64_t x = run->begin; x < run->end; x += kShort) {
        store_short(out + x, first * load_short(lower + x) + second * load_short(upper + x));
      }
    }
  }
  row.largest = largest;
  row.odd = odd != 0;  // or NaN
}

// Weights of both rows of cells in a row of pixels.
struct Weights {
  float top, bottom;
};

// A group of pixels between two rows of cells.
struct Group {
  const float *top, *bottom;
  Vec sum(int64_t map, int n, Weights w) const {
    return load(top + map * kRow + n * kLanes) * splat(w.top) + load(bottom + map * kRow + n * kLanes) * splat(w.bottom);
  }
};

// Of some maps those that can be the largest in rows of pixels from one to another, in order; returns their number.
int find_candidates(const Group& group, Weights first, Weights last, float margin, const int* maps, int count, int* found) {
  Vec bound[kGroup];
  for (int n = 0; n < kGroup; ++n) bound[n] = splat(-FLT_MAX);
  for (int i = 0; i < count; ++i) {
#pragma GCC unroll 4
    for (int n = 0; n < kGroup; ++n) {
      bound[n] = larger_of(smaller_of(group.sum(maps[i], n, first), group.sum(maps[i], n, last)), bound[n]);
    }
  }
  for (int n = 0; n < kGroup; ++n) bound[n] -= splat(margin);
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    bool possible = false;
#pragma GCC unroll 4
    for (int n = 0; n < kGroup; ++n) {
      possible |= any_reaches(larger_of(group.sum(maps[i], n, first), group.sum(maps[i], n, last)), bound[n]);
    }
    found[kept] = maps[i];
    kept += possible;
  }
  return kept;
}

// Arg-max of a group in one row of pixels among some maps, in order.
template <bool ODD>
inline void arg_max(const Group& group, Weights w, const int* maps, int count, int* ids) {
  Vec best[kGroup];
  Ids id[kGroup];
#pragma GCC unroll 4
  for (int n = 0; n < kGroup; ++n) {
    best[n] = group.sum(maps[0], n, w);
    id[n] = maps[0] - Ids{};
  }
  for (int i = 1; i < count; ++i) {
    const Ids now = maps[i] - Ids{};
#pragma GCC unroll 4
    for (int n = 0; n < kGroup; ++n) keep_larger<ODD>(group.sum(maps[i], n, w), now, best[n], id[n]);
  }
#pragma GCC unroll 4
  for (int n = 0; n < kGroup; ++n) memcpy(ids + n * kLanes, &id[n], sizeof id[n]);
}

template <class Id>
inline void write(const int* ids, int64_t count, void* out, int64_t at) {
  Id narrow[kPixels];
  for (int64_t x = 0; x < kPixels; ++x) narrow[x] = static_cast<Id>(ids[x]);
  Id* to = static_cast<Id*>(out) + at;
  if (count >= kPixels) {
    memcpy(to, narrow, sizeof narrow);
  } else {
    memcpy(to, narrow, count * sizeof(Id));
  }
}

}  // namespace

void DEPTHG_FOR_ISA(upsample_part)(const ScoreMaps& s, const Taps& rows, const Taps& columns, const Part& part, float* scratch) {
  Run runs[kTile];
  const int64_t runs_count = find_runs(s, columns, part, runs), width = part.end_column - part.first_column;
  const float *lower = columns.lower + part.first_column, *upper = columns.upper + part.first_column;
  Row top{scratch, -1, 0, false}, bottom{scratch + s.maps * kRow, -1, 0, false};
  const auto fill = [&](Row& row, int64_t cell) {
    if (row.cell == cell) return;
    row.cell = cell;
    interpolate_row(s, runs, runs_count, lower, upper, row);
  };
  int* const all = reinterpret_cast<int*>(scratch + 2 * s.maps * kRow);
  for (int64_t m = 0; m < s.maps; ++m) all[m] = static_cast<int>(m);
  int *const between = all + s.maps, *const in_band = between + s.maps;  // maps that can win there
  const int count = static_cast<int>(s.maps);
  int ids[kPixels];
  for (int64_t first = part.first_row, end; first < part.end_row; first = end) {  // rows between the same cells
    const int64_t cell = rows.cell[first], next = cell + 1 < s.rows ? cell + 1 : cell;
    for (end = first + 1; end < part.end_row && rows.cell[end] == cell;) ++end;
    if (top.cell != cell && bottom.cell == cell) {
      const Row old = top;
      top = bottom;
      bottom = old;
    }
    fill(top, cell);
    if (next != cell) fill(bottom, next);
    const Row& under = next != cell ? bottom : top;
    const bool odd = top.odd || under.odd;
    const float largest = larger_of(top.largest, under.largest), margin = largest * kRounding + FLT_MIN;
    const bool choose = end - first >= kWorth && !odd && largest < FLT_MAX / 4;  // no sum overflows
    for (int64_t x = 0; x < width; x += kPixels) {
      const Group group{top.values + x, under.values + x};
      const auto weights = [&](int64_t y) { return Weights{rows.lower[y], rows.upper[y]}; };
      const bool twice = choose && end - first >= 2 * kBand;
      const int most = twice ? find_candidates(group, weights(first), weights(end - 1), margin, all, count, between) : count;
      for (int64_t begin = first, stop; begin < end; begin = stop) {
        stop = end - begin < 2 * kBand ? end : begin + kBand;
        const int* maps = twice ? between : all;
        int left = most;
        if (choose && left > 1) {
          left = find_candidates(group, weights(begin), weights(stop - 1), margin, maps, left, in_band);
          maps = in_band;
        }
        for (int64_t y = begin; y < stop; ++y) {
          (odd ? arg_max<true> : arg_max<false>)(group, weights(y), maps, left, ids);
          const int64_t at = y * s.width + part.first_column + x;
          (s.maps < 256 ? write<uint8_t> : write<uint16_t>)(ids, width - x, s.ids, at);
        }
      }
    }
  }
}

}  // namespace depthg
