// Picking: one fused pass of distance, running minimum and maximum, then the search for the maximum. Included by
// fps_simd.cpp alone.
#pragma once

#include <stdint.h>

#include "fps_team.h"
#include "fps_vector.h"

namespace depthg {
namespace {

// What one worker searches: its leaves, and the number of slots that its leaves use.
struct Share {
  const float* slot[kMaxDims];
  const float* low[kMaxDims];
  const float* high[kMaxDims];
  float* nearest;
  float* leaf_max;
  const int32_t* index;
  int64_t leaf, leaves, slots;
};

template <int D>
inline vfloat squared_distance(const vfloat* at, const float* const* coord, int64_t i) {
  vfloat d = load(coord[0] + i) - at[0];
  vfloat sum = d * d;
  for (int a = 1; a < D; ++a) {
    d = load(coord[a] + i) - at[a];
    sum = sum + d * d;
  }
  return sum;
}

// Distance to the box: the same operations on the box's point nearest to the pick.
template <int D>
inline vfloat box_distance(const vfloat* at, const Share& s, int64_t i) {
  vfloat sum{};
  for (int a = 0; a < D; ++a) {
    const vfloat d = vmin(vmax(at[a], load(s.low[a] + i)), load(s.high[a] + i)) - at[a];
    sum = a ? sum + d * d : d * d;
  }
  return sum;
}

// Takes the pick `at` into the minima of one leaf; returns the vector of their maxima.
template <int D>
inline vfloat update_leaf(const vfloat* at, const Share& s, int64_t leaf) {
  const int64_t begin = leaf * s.leaf, end = begin + s.leaf < s.slots ? begin + s.leaf : s.slots;
  vfloat most = splat(-1);
  for (int64_t i = begin; i < end; i += kLanes) {
    const vfloat nearest = vmin(squared_distance<D>(at, s.slot, i), load(s.nearest + i));
    store(s.nearest + i, nearest);
    most = vmax(most, nearest);
  }
  s.leaf_max[leaf] = hmax(most);
  return most;
}

// Takes the pick `at` into all minima; returns their maximum.
template <int D>
inline float update(const vfloat* at, const Share& s) {
  vfloat most = splat(-1);
  for (int64_t g = 0; g < s.leaves; g += kLanes) {
    const vfloat bound = box_distance<D>(at, s, g), limit = load(s.leaf_max + g);
    uint32_t todo = lanes_less(bound, limit);
    most = vmax(most, where_less(bound, limit, splat(-1), limit));
    for (; todo; todo &= todo - 1) most = vmax(most, update_leaf<D>(at, s, g + __builtin_ctz(todo)));
  }
  return hmax(most);
}

// Bit i is set where nearest[i] equals `wanted`, for i < count <= 64.
inline uint64_t equal_slots(const float* nearest, vfloat wanted, int64_t count) {
  uint64_t slots = 0;
  for (int64_t i = 0; i < count; i += kLanes) slots |= static_cast<uint64_t>(lanes_equal(load(nearest + i), wanted)) << i;
  return slots;
}

// Lowest input index whose minimum equals `value`, or INT32_MAX.
inline int32_t find(const Share& s, float value) {
  const vfloat wanted = splat(value);
  int32_t best = INT32_MAX;
  for (int64_t g = 0; g < s.leaves; g += kLanes) {
    for (uint32_t hit = lanes_equal(load(s.leaf_max + g), wanted); hit; hit &= hit - 1) {
      const int64_t begin = (g + __builtin_ctz(hit)) * s.leaf;
      const int64_t end = begin + s.leaf < s.slots ? begin + s.leaf : s.slots;
      for (int64_t i = begin; i < end; i += 64) {
        uint64_t lanes = equal_slots(s.nearest + i, wanted, end - i < 64 ? end - i : 64);
        if (lanes && !s.index) return static_cast<int32_t>(i + __builtin_ctzll(lanes));
        for (; lanes; lanes &= lanes - 1) {
          const int32_t index = s.index[i + __builtin_ctzll(lanes)];
          best = index < best ? index : best;
        }
      }
    }
  }
  return best;
}

// Exchanges the workers' best points. Two sets of posts are enough: nobody starts pick j + 2 before all have read pick j.
inline int32_t agree(Team* team, int rank, int64_t j, float value, int32_t index) {
  Post* posts = team->posts + (j & 1) * team->size;
  const uint32_t turn = static_cast<uint32_t>(j);
  posts[rank].value = value;
  posts[rank].index = index;
  __atomic_store_n(&posts[rank].turn, turn, __ATOMIC_RELEASE);
  for (int other = 0; other < team->size; ++other) {
    if (other == rank) continue;
    for (Patience p; __atomic_load_n(&posts[other].turn, __ATOMIC_ACQUIRE) != turn;) p.wait();
    const float theirs = posts[other].value;
    if (theirs > value || (theirs == value && posts[other].index < index)) {
      value = theirs;
      index = posts[other].index;
    }
  }
  return index;
}

// One worker's view of a cloud that is ready for picking.
struct Job {
  Share share;
  const float* source[kMaxDims];  // [points] in input order
  int32_t winner;                 // the last pick; at first the start
  int64_t* picks;                 // [k]
};

// Samples WAYS clouds side by side: a pick ends in a chain of dependent steps (maximum, where it lies, its coordinates),
// during which the processor can already work on the other cloud.
template <int D, int WAYS>
void pick(Job* jobs, int64_t k, Team* team, int rank) {
  for (int64_t j = 0;;) {
    for (int w = 0; w < WAYS && rank == 0; ++w) jobs[w].picks[j] = jobs[w].winner;
    if (++j == k) return;
    for (int w = 0; w < WAYS; ++w) {
      Job& job = jobs[w];
      vfloat at[D];
      for (int d = 0; d < D; ++d) at[d] = splat(job.source[d][job.winner]);
      const float value = update<D>(at, job.share);
      job.winner = find(job.share, value);
      if (WAYS == 1 && team->size > 1) job.winner = agree(team, rank, j, value, job.winner);
    }
  }
}

}  // namespace
}  // namespace depthg
