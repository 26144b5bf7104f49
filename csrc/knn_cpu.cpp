// Running top-k of a tile. Lists soon take few new values, so most of the work is one comparison per similarity.
#include "knn.h"

#include <algorithm>
#include <atomic>

#include "parallel.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace depthg {
namespace {

constexpr int64_t kGroup = 16;         // similarities compared at a time
constexpr int64_t kRowTask = 32;       // rows that a thread takes at a time
constexpr int64_t kColumnTask = 128;   // columns that a thread takes at a time

// Bit n of the result: s[n] >= least[n]. With `same`, all are compared with least[0].
template <bool same>
inline unsigned reach(const float* s, const float* least) {
#if defined(__SSE2__)
  __m128i hit[4];
  for (int n = 0; n < 4; ++n) {
    const __m128 bound = same ? _mm_set1_ps(least[0]) : _mm_loadu_ps(least + 4 * n);
    hit[n] = _mm_castps_si128(_mm_cmpge_ps(_mm_loadu_ps(s + 4 * n), bound));
  }
  return _mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(hit[0], hit[1]), _mm_packs_epi32(hit[2], hit[3])));
#else
  unsigned hits = 0;
  for (int n = 0; n < kGroup; ++n) hits |= static_cast<unsigned>(s[n] >= least[same ? 0 : n]) << n;
  return hits;
#endif
}

// A list of the k best, the best first.
struct List {
  float* values;
  int32_t* ids;
  int64_t k;

  float least() const { return values[k - 1]; }

  void insert(float value, int32_t id) {
    const auto before = [&](int64_t n) { return values[n] > value || (values[n] == value && ids[n] < id); };
    int64_t n = k - 1;
    if (before(n)) return;
    for (; n > 0 && !before(n - 1); --n) {
      values[n] = values[n - 1];
      ids[n] = ids[n - 1];
    }
    values[n] = value;
    ids[n] = id;
  }
};

// One row of the tile against the list of the row.
void update_row(const KnnTile& t, int64_t r) {
  const float* s = t.similarity + r * t.columns;
  List list{t.row_values + r * t.k, t.row_ids + r * t.k, t.k};
  float least = list.least();
  const auto offer = [&](int64_t c) {
    if (!(s[c] >= least) || t.photo_row[r] == t.photo_column[c]) return;
    list.insert(s[c], t.first_column + static_cast<int32_t>(c));
    least = list.least();
  };
  int64_t c = 0;
  for (; c + kGroup <= t.columns; c += kGroup) {
    for (unsigned hits = reach<true>(s + c, &least); hits; hits &= hits - 1) offer(c + __builtin_ctz(hits));
  }
  for (; c < t.columns; ++c) offer(c);
}

// Some columns of the tile against the lists of the columns.
void update_columns(const KnnTile& t, int64_t begin, int64_t end) {
  float least[kColumnTask];
  for (int64_t c = begin; c < end; ++c) least[c - begin] = t.column_values[c * t.k + t.k - 1];
  for (int64_t r = 0; r < t.rows; ++r) {
    const float* s = t.similarity + r * t.columns;
    const auto offer = [&](int64_t c) {
      if (!(s[c] >= least[c - begin]) || t.photo_row[r] == t.photo_column[c]) return;
      List list{t.column_values + c * t.k, t.column_ids + c * t.k, t.k};
      list.insert(s[c], t.first_row + static_cast<int32_t>(r));
      least[c - begin] = list.least();
    };
    int64_t c = begin;
    for (; c + kGroup <= end; c += kGroup) {
      for (unsigned hits = reach<false>(s + c, least + c - begin); hits; hits &= hits - 1) offer(c + __builtin_ctz(hits));
    }
    for (; c < end; ++c) offer(c);
  }
}

}  // namespace

void knn_tile(const KnnTile& t, int threads) {
  if (t.rows == 0 || t.columns == 0 || t.k == 0) return;
  const int64_t row_tasks = (t.rows + kRowTask - 1) / kRowTask;
  const int64_t column_tasks = t.column_values ? (t.columns + kColumnTask - 1) / kColumnTask : 0;
  std::atomic<int64_t> next{0};
  run_parallel(static_cast<int>(std::clamp<int64_t>(threads, 1, row_tasks + column_tasks)), [&](int) {
    for (int64_t task; (task = next++) < row_tasks + column_tasks;) {
      if (task < column_tasks) {
        update_columns(t, task * kColumnTask, std::min((task + 1) * kColumnTask, t.columns));
      } else {
        const int64_t first = (task - column_tasks) * kRowTask;
        for (int64_t r = first; r < std::min(first + kRowTask, t.rows); ++r) update_row(t, r);
      }
    }
  });
}

}  // namespace depthg
