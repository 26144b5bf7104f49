// Farthest point sampling of one cloud, on the CPU. Compiled once per instruction set, chosen at run time.
//
// Points lie as structure of arrays, cut into leaves of a few vectors with a bounding box each. A pick is one fused pass of
// distance, running minimum and maximum over the leaves, then a search for the maximum among the leaves' maxima.
//
// Exact pruning. Rounding is monotone, so the distance from the pick to the box, computed with the same operations in the
// same order, is never above the *computed* distance to any point inside. If the box is no nearer than the largest minimum of
// its leaf, no minimum in the leaf can change. Such a leaf is skipped: the result equals the brute force, ties included.
//
// This file uses no standard library templates: copies compiled for AVX-512 must not be merged into code for other machines.
#include <string.h>

#include "fps_cpu.h"
#include "fps_order.h"
#include "fps_pick.h"
#include "fps_read.h"
#include "fps_team.h"
#include "fps_vector.h"
#include "isa_name.h"

namespace depthg {
namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// ---- memory -------------------------------------------------------------------------------------------------------

// Without a base it only counts.
struct Arena {
  char* base;
  int64_t used;
  template <class T> T* take(int64_t n) {
    T* p = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += round_up(n * static_cast<int64_t>(sizeof(T)), 64);
    return p;
  }
};

// Leaves are dealt round: worker r owns leaves r, r + team, ... and stores them one after another in its own range.
int64_t leaves_of(const CloudPlan& plan) { return round_up(plan.points, plan.leaf) / plan.leaf; }
int64_t share_leaves(const CloudPlan& plan) { return (leaves_of(plan) + plan.team - 1) / plan.team; }
int64_t share_groups(const CloudPlan& plan) { return round_up(share_leaves(plan), kSlotAlign); }

Memory carve(const CloudPlan& plan, char* scratch, int64_t* bytes) {
  Memory m{};
  Arena arena{scratch, 0};
  const int64_t padded = round_up(plan.points, plan.leaf);
  const int64_t slots = plan.sorted ? share_leaves(plan) * plan.team * plan.leaf : padded;
  const int64_t leaves = share_groups(plan) * plan.team;
  for (int64_t d = 0; d < plan.dims; ++d) {
    m.source[d] = arena.take<float>(padded);
    m.slot[d] = plan.sorted ? arena.take<float>(slots) : m.source[d];
    m.low[d] = arena.take<float>(leaves);
    m.high[d] = arena.take<float>(leaves);
  }
  m.nearest = arena.take<float>(slots);
  m.leaf_max = arena.take<float>(leaves);
  m.ray = arena.take<float>(padded);
  if (plan.sorted) {
    m.index = arena.take<int32_t>(slots);
    m.keys[0] = arena.take<uint64_t>(plan.points);
    m.keys[1] = arena.take<uint64_t>(plan.points);
    m.counters = arena.take<uint32_t>(plan.team * kCounters);
  }
  *bytes = arena.used;
  return m;
}

// Deals the sorted slots to the leaves of worker `rank`, or takes them in input order, and bounds each leaf.
void build_leaves(const CloudPlan& plan, const Memory& m, const uint64_t* order, int64_t n, int rank) {
  const int64_t leaves = (n + plan.leaf - 1) / plan.leaf;
  const int64_t share = share_leaves(plan), groups = share_groups(plan);
  for (int64_t l = 0; l < groups; ++l) m.leaf_max[rank * groups + l] = -1;
  for (int64_t leaf = rank, l = 0; leaf < leaves; leaf += plan.team, ++l) {
    const int64_t begin = leaf * plan.leaf, end = begin + plan.leaf < n ? begin + plan.leaf : n;
    const int64_t base = plan.sorted ? (rank * share + l) * plan.leaf : begin;
    const int64_t used = end - begin, padded = plan.ways > 1 ? plan.leaf : round_up(used, kSlotAlign);
    if (order) {
      for (int64_t i = 0; i < used; ++i) m.index[base + i] = static_cast<int32_t>(static_cast<uint32_t>(order[begin + i]));
    }
    for (int64_t i = used; i < padded && m.index; ++i) m.index[base + i] = INT32_MAX;
    for (int64_t i = 0; i < used; ++i) m.nearest[base + i] = __builtin_inff();
    for (int64_t i = used; i < padded; ++i) m.nearest[base + i] = -1;
    for (int64_t d = 0; d < plan.dims; ++d) {
      float* slot = m.slot[d] + base;
      if (order) {
        for (int64_t i = 0; i < used; ++i) slot[i] = m.source[d][m.index[base + i]];
      }
      for (int64_t i = used; i < padded; ++i) slot[i] = slot[0];
      vfloat low = load(slot), high = low;
      for (int64_t i = kLanes; i < padded; i += kLanes) {
        low = vmin(low, load(slot + i));
        high = vmax(high, load(slot + i));
      }
      m.low[d][rank * groups + l] = hmin(low);
      m.high[d][rank * groups + l] = hmax(high);
    }
    m.leaf_max[rank * groups + l] = __builtin_inff();
  }
}

WorkerLeaves share_of(const CloudPlan& plan, const Memory& m, int64_t n, int rank) {
  const int64_t first_slot = plan.sorted ? rank * share_leaves(plan) * plan.leaf : 0;
  const int64_t first_leaf = rank * share_groups(plan);
  const int64_t leaves = (n + plan.leaf - 1) / plan.leaf;
  WorkerLeaves s;
  for (int64_t d = 0; d < plan.dims; ++d) {
    s.slot[d] = m.slot[d] + first_slot;
    s.low[d] = m.low[d] + first_leaf;
    s.high[d] = m.high[d] + first_leaf;
  }
  s.nearest = m.nearest + first_slot;
  s.leaf_max = m.leaf_max + first_leaf;
  s.index = m.index ? m.index + first_slot : nullptr;
  s.leaf = plan.leaf;
  s.leaves = leaves > rank ? (leaves - rank + plan.team - 1) / plan.team : 0;
  s.slots = s.leaves * plan.leaf;
  // The cloud's last leaf may be partly used; it is the last one of the worker that owns it.
  if (leaves > 0 && (leaves - 1) % plan.team == rank) s.slots += round_up(n - (leaves - 1) * plan.leaf, kSlotAlign) - plan.leaf;
  return s;
}

// Reads cloud `b`, orders it and makes the leaves of worker `rank`. Returns the index of a point that is not finite, or -1.
int64_t prepare(const Clouds& c, int64_t b, const CloudPlan& plan, char* scratch, Team* team, int rank, Job* job) {
  int64_t bytes;
  Memory m = carve(plan, scratch, &bytes);
  const int64_t n = c.lengths ? c.lengths[b] : c.points;
  const int64_t part = round_up((n + plan.team - 1) / plan.team, kSlotAlign);
  const int64_t from = rank * part < n ? rank * part : n, to = from + part < n ? from + part : n;
  if (c.width) {
    if (rank == 0) {
      for (int64_t i = 0; i < c.width; ++i) m.ray[i] = ray(i, c.width, c.focals ? c.focals[b] : c.focal);
    }
    barrier(team);
  }
  read(c, b, m, from, to);
  const int64_t bad = first_bad(m, plan.dims, from, to);
  if (bad >= 0) __atomic_store_n(&team->bad, bad, __ATOMIC_RELAXED);  // any one of them will do for the message
  barrier(team);
  const int64_t any_bad = __atomic_load_n(&team->bad, __ATOMIC_RELAXED);
  if (any_bad >= 0) return any_bad;

  const uint64_t* order = nullptr;
  if (plan.sorted) {
    if (n < kSortAnyway && team->size == 1 && !scattered(m, plan.dims, n)) {
      m.index = nullptr;
      for (int64_t d = 0; d < plan.dims; ++d) m.slot[d] = m.source[d];
    } else if (n < kSmall && team->size == 1) {
      n < kTiny ? sort_small<2>(m, plan.dims, n) : sort_small<3>(m, plan.dims, n);
    } else {
      make_keys(m, plan.dims, n, from, to);
      order = sort_keys(m, from, to, team, rank);
    }
  }
  build_leaves(plan, m, order, n, rank);
  job->share = share_of(plan, m, n, rank);
  for (int64_t d = 0; d < plan.dims; ++d) job->source[d] = m.source[d];
  job->points = n;
  job->winner = static_cast<int32_t>(c.starts ? c.starts[b] : c.start);
  job->picks = c.picks + b * c.k;
  return -1;
}

using Pick = void (*)(Job*, int64_t, int64_t, Team*, int);
constexpr Pick kPick[kMaxDims] = {pick<1>, pick<2>, pick<3>, pick<4>, pick<5>, pick<6>, pick<7>, pick<8>};
using PickInStep = int64_t (*)(Job*, int64_t);
constexpr PickInStep kPickInStep[kWaysDims] = {pick_in_step<1, kMaxWays>, pick_in_step<2, kMaxWays>, pick_in_step<3, kMaxWays>};
constexpr PickInStep kPickInPairs[kWaysDims] = {pick_in_step<1, 2>, pick_in_step<2, 2>, pick_in_step<3, 2>};

// Picks of `ways` clouds in step, for as long as all of them have distances; then each goes on by itself.
void pick_together(Job* jobs, int ways, int dims, int64_t k, Team* team) {
  const int64_t made = (ways == kMaxWays ? kPickInStep : kPickInPairs)[dims - 1](jobs, k);
  if (made == k) return;
  for (int w = 0; w < ways; ++w) {
    if (first(largest_minimum(jobs[w].share)) == 0) {
      pick_duplicates(jobs[w], made, k);
    } else {
      kPick[dims - 1](jobs + w, made, k, team, 0);
    }
  }
}

}  // namespace

int64_t DEPTHG_FOR_ISA(sample_clouds)(const Clouds& c, int64_t b, int count, const CloudPlan& plan, char* scratch, Team* team,
                                      int rank) {
  Job jobs[kMaxWays];
  const std::size_t bytes = cloud_bytes(plan);
  for (int w = 0; w < count; ++w) {
    const int64_t bad = prepare(c, b + w, plan, scratch + w * bytes, team, rank, jobs + w);
    if (bad >= 0) return (b + w) * c.points + bad;
  }
  const int dims = static_cast<int>(plan.dims);
  int w = 0;
  if (count == kMaxWays) {
    pick_together(jobs, kMaxWays, dims, c.k, team);
    w = count;
  } else if (plan.ways > 1) {
    for (; w + 2 <= count; w += 2) pick_together(jobs + w, 2, dims, c.k, team);
  }
  for (; w < count; ++w) kPick[dims - 1](jobs + w, 0, c.k, team, rank);
  return -1;
}

// Twelve chains keep every vector unit busy: four cycles of latency on up to three units.
int64_t DEPTHG_FOR_ISA(vector_operations)(int64_t rounds, float* sink) {
  constexpr int kChains = 12;
  const vfloat a = load(sink), b = load(sink + kSlotAlign);
  vfloat x[kChains];
  for (int i = 0; i < kChains; ++i) x[i] = load(sink + (2 + i) * kSlotAlign);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kChains; ++i) x[i] = vmax(vmin(x[i] * a + b, b) - a, x[i]);
  }
  for (int i = 0; i < kChains; ++i) store(sink + (2 + i) * kSlotAlign, x[i]);
  return rounds * kChains * 5 * kLanes;
}

#if !defined(__AVX2__)
std::size_t cloud_bytes(const CloudPlan& plan) {
  int64_t bytes;
  carve(plan, nullptr, &bytes);
  return static_cast<std::size_t>(bytes);
}
#endif

}  // namespace depthg
