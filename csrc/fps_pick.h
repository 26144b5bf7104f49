// Picking: one fused pass of distance, running minimum and maximum, then the search for the maximum. Included by
// fps_simd.cpp alone.
#pragma once

#include <stdint.h>
#include <string.h>

#include "fps_team.h"
#include "fps_vector.h"

namespace depthg {
namespace {

// The leaves that one worker searches, and the number of slots in them.
struct WorkerLeaves {
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
inline vfloat box_distance(const vfloat* at, const WorkerLeaves& s, int64_t i) {
  vfloat sum{};
  for (int a = 0; a < D; ++a) {
    const vfloat d = vmin(vmax(at[a], load(s.low[a] + i)), load(s.high[a] + i)) - at[a];
    sum = a ? sum + d * d : d * d;
  }
  return sum;
}

// Takes the pick `at` into the minima of one leaf; returns their maximum in every lane. LEAF: its slots, 0 for s.leaf of them.
template <int D, int LEAF>
inline vfloat update_leaf(const vfloat* at, const WorkerLeaves& s, int64_t leaf) {
  const int64_t begin = leaf * (LEAF ? LEAF : s.leaf);
  const int64_t end = LEAF ? begin + LEAF : begin + s.leaf < s.slots ? begin + s.leaf : s.slots;
  vfloat most = splat(-1);
  for (int64_t i = begin; i < end; i += kLanes) {
    const vfloat nearest = vmin(squared_distance<D>(at, s.slot, i), load(s.nearest + i));
    store(s.nearest + i, nearest);
    most = vmax(most, nearest);
  }
  return vhmax(most);
}

// Takes the pick `at` into all minima; returns their maximum in every lane.
template <int D>
inline vfloat update(const vfloat* at, const WorkerLeaves& s) {
  vfloat most = splat(-1);
  for (int64_t g = 0; g < s.leaves; g += kLanes) {
    vfloat limit = load(s.leaf_max + g);
    // Whole vectors are written back: a load of sixteen maxima right after a store of one of them would stall.
    uint32_t todo = lanes_less(box_distance<D>(at, s, g), limit);
    for (; todo; todo &= todo - 1) {
      const int lane = __builtin_ctz(todo);
      limit = set_lane(limit, lane, update_leaf<D, 0>(at, s, g + lane));
    }
    store(s.leaf_max + g, limit);
    most = vmax(most, limit);
  }
  return vhmax(most);
}

// Bit i is set where nearest[i] equals `wanted`, for i < count <= 64.
inline uint64_t equal_slots(const float* nearest, vfloat wanted, int64_t count) {
  uint64_t slots = 0;
  for (int64_t i = 0; i < count; i += kLanes) slots |= static_cast<uint64_t>(lanes_equal(load(nearest + i), wanted)) << i;
  return slots;
}

inline vfloat largest_minimum(const WorkerLeaves& s) {
  vfloat most = load(s.leaf_max);
  for (int64_t g = kLanes; g < s.leaves; g += kLanes) most = vmax(most, load(s.leaf_max + g));
  return vhmax(most);
}

struct Found {
  int32_t index;  // in the input, INT32_MAX for none
  int64_t slot;
};

// The point of the lowest input index among those whose minimum equals `wanted`.
template <int LEAF>
inline Found find(const WorkerLeaves& s, vfloat wanted) {
  Found best{INT32_MAX, 0};
  for (int64_t g = 0; g < s.leaves; g += kLanes) {
    for (uint32_t hit = lanes_equal(load(s.leaf_max + g), wanted); hit; hit &= hit - 1) {
      const int64_t begin = (g + __builtin_ctz(hit)) * (LEAF ? LEAF : s.leaf);
      const int64_t end = LEAF ? begin + LEAF : begin + s.leaf < s.slots ? begin + s.leaf : s.slots;
      for (int64_t i = begin; i < end; i += 64) {
        uint64_t lanes = equal_slots(s.nearest + i, wanted, LEAF ? (LEAF < 64 ? LEAF : 64) : end - i < 64 ? end - i : 64);
        if (lanes && !s.index) {
          const int64_t slot = i + __builtin_ctzll(lanes);
          return {static_cast<int32_t>(slot), slot};
        }
        for (; lanes; lanes &= lanes - 1) {
          const int64_t slot = i + __builtin_ctzll(lanes);
          if (s.index[slot] < best.index) best = {s.index[slot], slot};
        }
      }
    }
  }
  return best;
}

struct Best {
  float value;    // the largest minimum
  int32_t index;  // in the input
};

// Exchanges the workers' best points. Two sets of posts are enough: pick j + 2 starts after all workers have read pick j.
inline Best agree(Team* team, int rank, int64_t j, float value, int32_t index) {
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
  return {value, index};
}

// One worker's view of a cloud that is ready for picking.
struct Job {
  WorkerLeaves share;
  const float* source[kMaxDims];  // [points] in input order
  int32_t winner;                 // the last pick; at first the start
  int64_t points;
  int64_t* picks;                 // [k]
};

// A pick counts as -1 from then on (fps.h). That need not be written: its minimum is zero, so it cannot come back while any
// minimum is above zero. From pick `from` on, none is. No distance can then change anything, and the points that are not
// picked follow in the order of their indices.
__attribute__((noinline)) void pick_duplicates(const Job& job, int64_t from, int64_t k) {
  float* nearest = job.share.nearest;  // the first worker's share begins where the cloud's memory does
  memset(nearest, 0, job.points * sizeof *nearest);
  for (int64_t j = 0; j < from; ++j) nearest[job.picks[j]] = -1;
  for (int64_t i = 0; from < k; ++i) {
    if (nearest[i] == 0) job.picks[from++] = i;
  }
}

// Picks of a cloud from pick `j` on, by a team of workers, each with its share.
template <int D>
void pick(Job* job, int64_t j, int64_t k, Team* team, int rank) {
  const WorkerLeaves& share = job->share;
  vfloat at[D];
  for (int d = 0; d < D; ++d) at[d] = splat(job->source[d][job->winner]);
  for (;;) {
    if (rank == 0) job->picks[j] = job->winner;
    if (++j == k) return;
    const vfloat most = update<D>(at, share);
    const Found found = find<0>(share, most);
    Best best{first(most), found.index};
    if (team->size > 1) best = agree(team, rank, j, best.value, best.index);
    if (__builtin_expect(best.value == 0, 0)) {
      if (rank == 0) pick_duplicates(*job, j, k);
      return;
    }
    job->winner = best.index;
    if (team->size > 1) {
      for (int d = 0; d < D; ++d) at[d] = splat(job->source[d][job->winner]);
    } else {  // the slot is known earlier than the index
      for (int d = 0; d < D; ++d) at[d] = splat(share.slot[d][found.slot]);
    }
  }
}

// Picks of WAYS small clouds in step, each of at most 64 / WAYS leaves. A pick is a chain of dependent steps (boxes, leaves,
// maximum, where it lies, its coordinates); those of several clouds overlap. All their leaves to update are one list, so
// that its length, which the processor can't foresee, is a surprise only once. Returns how many picks are made: fewer than k
// when the minima of a cloud are all zero.
template <int D, int WAYS>
int64_t pick_in_step(Job* jobs, int64_t k) {
  constexpr int kBits = 64 / WAYS;
  vfloat at[WAYS][D];
  for (int w = 0; w < WAYS; ++w) {
    for (int d = 0; d < D; ++d) at[w][d] = splat(jobs[w].source[d][jobs[w].winner]);
  }
  for (int64_t j = 0;;) {
    for (int w = 0; w < WAYS; ++w) jobs[w].picks[j] = jobs[w].winner;
    if (++j == k) return k;
    uint64_t todo = 0;
    for (int w = 0; w < WAYS; ++w) {
      const WorkerLeaves& s = jobs[w].share;
      for (int64_t g = 0; g < s.leaves; g += kLanes) {
        const uint64_t near = lanes_less(box_distance<D>(at[w], s, g), load(s.leaf_max + g));
        todo |= near << (w * kBits + g);
      }
    }
    for (; todo; todo &= todo - 1) {
      const int bit = __builtin_ctzll(todo), w = bit / kBits, leaf = bit % kBits;
      jobs[w].share.leaf_max[leaf] = first(update_leaf<D, kLeaf>(at[w], jobs[w].share, leaf));
    }
    vfloat least = splat(__builtin_inff());
    for (int w = 0; w < WAYS; ++w) {
      const WorkerLeaves& s = jobs[w].share;
      const vfloat most = largest_minimum(s);
      least = vmin(least, most);
      const Found found = find<kLeaf>(s, most);
      jobs[w].winner = found.index;
      for (int d = 0; d < D; ++d) at[w][d] = splat(s.slot[d][found.slot]);
    }
    if (__builtin_expect(first(least) == 0, 0)) return j;
  }
}

}  // namespace
}  // namespace depthg
