// Farthest point sampling of one cloud, on the CPU. Compiled once per instruction set (FPS_ISA), chosen at run time.
//
// Points lie as structure of arrays, cut into leaves of a few vectors with a bounding box each. A pick is one fused pass of
// distance, running minimum and maximum over the leaves, then a search for the maximum among the leaves' maxima.
//
// Exact pruning. Rounding is monotone, so the distance from the pick to the box, computed with the same operations in the
// same order, is never above the *computed* distance to any point inside. A leaf whose box is no nearer than its largest
// minimum therefore cannot change in a single bit, and is skipped: the result equals the brute force, ties included.
//
// This file uses no standard library templates: copies compiled for AVX-512 must not be merged into code for other machines.
#include <limits.h>
#include <sched.h>
#include <string.h>

#include "fps_cpu.h"
#include "fps_read.h"
#include "fps_vector.h"

#define FPS_JOIN_(a, b) a##b
#define FPS_JOIN(a, b) FPS_JOIN_(a, b)

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
int64_t leaves_of(const Plan& plan) { return round_up(plan.points, plan.leaf) / plan.leaf; }
int64_t share_leaves(const Plan& plan) { return (leaves_of(plan) + plan.team - 1) / plan.team; }
int64_t share_groups(const Plan& plan) { return round_up(share_leaves(plan), kSlotAlign); }

Memory carve(const Plan& plan, char* scratch, int64_t* bytes) {
  Memory m{};
  Arena arena{scratch, 0};
  const int64_t padded = round_up(plan.points, kSlotAlign);
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
  }
  *bytes = arena.used;
  return m;
}

// ---- workers ------------------------------------------------------------------------------------------------------

// Spins, then gives the core away: with more workers than cores a pure spin would never end in reasonable time.
struct Patience {
  int spins = 0;
  void wait() {
    if (++spins < 256) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      sched_yield();
    }
  }
};

void barrier(Team* team) {
  if (team->size == 1) return;
  const uint32_t generation = __atomic_load_n(&team->generation, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == static_cast<uint32_t>(team->size)) {
    __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&team->generation, generation + 1, __ATOMIC_RELEASE);
    return;
  }
  for (Patience p; __atomic_load_n(&team->generation, __ATOMIC_ACQUIRE) == generation;) p.wait();
}

// ---- space order --------------------------------------------------------------------------------------------------

// 10 bits to every third bit.
inline uint32_t spread(uint32_t v) {
  v = (v | v << 16) & 0x030000ff;
  v = (v | v << 8) & 0x0300f00f;
  v = (v | v << 4) & 0x030c30c3;
  return (v | v << 2) & 0x09249249;
}

// Morton order over the first three coordinates: a sort by counting, `kDigit` bits at a time.
constexpr int kDigit = 10;

void morton_keys(const Memory& m, int64_t dims, int64_t n, int bits) {
  float low[3] = {0, 0, 0}, scale[3] = {0, 0, 0};
  const int used = dims < 3 ? static_cast<int>(dims) : 3;
  for (int d = 0; d < used; ++d) {
    vfloat lo = splat(m.source[d][0]), hi = lo;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const vfloat v = load(m.source[d] + i);
      lo = vmin(lo, v);
      hi = vmax(hi, v);
    }
    float least = hmin(lo), most = hmax(hi);
    for (; i < n; ++i) {
      least = m.source[d][i] < least ? m.source[d][i] : least;
      most = m.source[d][i] > most ? m.source[d][i] : most;
    }
    const float extent = most - least;
    if (extent > 1e-30f && extent < 1e30f) {  // else the axis says nothing, or its cells would overflow
      low[d] = least;
      scale[d] = static_cast<float>((1 << bits) - 1) / extent;
    }
  }
  const float* y = m.source[used > 1 ? 1 : 0];
  const float* z = m.source[used > 2 ? 2 : 0];
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t a = static_cast<int32_t>((m.source[0][i] - low[0]) * scale[0]);
    const uint32_t b = static_cast<int32_t>((y[i] - low[1]) * scale[1]);
    const uint32_t c = static_cast<int32_t>((z[i] - low[2]) * scale[2]);
    const uint64_t key = spread(a & 1023) | spread(b & 1023) << 1 | spread(c & 1023) << 2;
    m.keys[0][i] = key << 32 | static_cast<uint32_t>(i);
  }
}

const uint64_t* sort_keys(const Memory& m, int64_t n, int passes) {
  uint32_t count[1 << kDigit];
  uint64_t *from = m.keys[0], *to = m.keys[1];
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = 32 + pass * kDigit;
    memset(count, 0, sizeof count);
    for (int64_t i = 0; i < n; ++i) ++count[from[i] >> shift & ((1 << kDigit) - 1)];
    uint32_t total = 0;
    for (uint32_t& c : count) {
      const uint32_t here = c;
      c = total;
      total += here;
    }
    for (int64_t i = 0; i < n; ++i) to[count[from[i] >> shift & ((1 << kDigit) - 1)]++] = from[i];
    uint64_t* swap = from;
    from = to;
    to = swap;
  }
  return from;
}

// Deals the sorted slots to the leaves of worker `rank`, or takes them in input order, and bounds each leaf.
void build_leaves(const Plan& plan, const Memory& m, const uint64_t* order, int64_t n, int rank) {
  const int64_t leaves = (n + plan.leaf - 1) / plan.leaf;
  const int64_t share = share_leaves(plan), groups = share_groups(plan);
  for (int64_t l = 0; l < groups; ++l) m.leaf_max[rank * groups + l] = -1;
  for (int64_t leaf = rank, l = 0; leaf < leaves; leaf += plan.team, ++l) {
    const int64_t begin = leaf * plan.leaf, end = begin + plan.leaf < n ? begin + plan.leaf : n;
    const int64_t base = plan.sorted ? (rank * share + l) * plan.leaf : begin;
    const int64_t used = end - begin, padded = round_up(used, kSlotAlign);
    if (order) {
      for (int64_t i = 0; i < used; ++i) m.index[base + i] = static_cast<int32_t>(static_cast<uint32_t>(order[begin + i]));
      for (int64_t i = used; i < padded; ++i) m.index[base + i] = INT_MAX;
    }
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

// ---- picking ------------------------------------------------------------------------------------------------------

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

Share share_of(const Plan& plan, const Memory& m, int64_t n, int rank) {
  const int64_t first_slot = plan.sorted ? rank * share_leaves(plan) * plan.leaf : 0;
  const int64_t first_leaf = rank * share_groups(plan);
  const int64_t leaves = (n + plan.leaf - 1) / plan.leaf;
  Share s;
  for (int64_t d = 0; d < plan.dims; ++d) {
    s.slot[d] = m.slot[d] + first_slot;
    s.low[d] = m.low[d] + first_leaf;
    s.high[d] = m.high[d] + first_leaf;
  }
  s.nearest = m.nearest + first_slot;
  s.leaf_max = m.leaf_max + first_leaf;
  s.index = plan.sorted ? m.index + first_slot : nullptr;
  s.leaf = plan.leaf;
  s.leaves = leaves > rank ? (leaves - rank + plan.team - 1) / plan.team : 0;
  s.slots = s.leaves * plan.leaf;
  // The cloud's last leaf may be partly used; it is the last one of the worker that owns it.
  if (leaves > 0 && (leaves - 1) % plan.team == rank) s.slots += round_up(n - (leaves - 1) * plan.leaf, kSlotAlign) - plan.leaf;
  return s;
}

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
inline float update(const vfloat* at, const Share& s, bool pruned) {
  vfloat most = splat(-1);
  if (!pruned) {
    for (int64_t leaf = 0; leaf < s.leaves; ++leaf) most = vmax(most, update_leaf<D>(at, s, leaf));
    return hmax(most);
  }
  for (int64_t g = 0; g < s.leaves; g += kLanes) {
    const vfloat bound = box_distance<D>(at, s, g), limit = load(s.leaf_max + g);
    uint32_t todo = lanes_less(bound, limit);
    most = vmax(most, where_less(bound, limit, splat(-1), limit));
    for (; todo; todo &= todo - 1) most = vmax(most, update_leaf<D>(at, s, g + __builtin_ctz(todo)));
  }
  return hmax(most);
}

// Lowest input index whose minimum equals `value`, or INT_MAX.
inline int32_t find(const Share& s, float value) {
  const vfloat wanted = splat(value);
  int32_t best = INT_MAX;
  for (int64_t g = 0; g < s.leaves; g += kLanes) {
    for (uint32_t hit = lanes_equal(load(s.leaf_max + g), wanted); hit; hit &= hit - 1) {
      const int64_t begin = (g + __builtin_ctz(hit)) * s.leaf;
      const int64_t end = begin + s.leaf < s.slots ? begin + s.leaf : s.slots;
      for (int64_t i = begin; i < end; i += kLanes) {
        for (uint32_t lanes = lanes_equal(load(s.nearest + i), wanted); lanes; lanes &= lanes - 1) {
          const int64_t slot = i + __builtin_ctz(lanes);
          if (!s.index) return static_cast<int32_t>(slot);
          best = s.index[slot] < best ? s.index[slot] : best;
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

template <int D>
void pick(const Share& s, const Memory& m, const Plan& plan, int64_t start, int64_t k, int64_t* picks, Team* team, int rank) {
  int32_t winner = static_cast<int32_t>(start);
  for (int64_t j = 0;;) {
    if (rank == 0) picks[j] = winner;
    if (++j == k) return;
    vfloat at[D];
    for (int d = 0; d < D; ++d) at[d] = splat(m.source[d][winner]);
    const float value = update<D>(at, s, plan.pruned);
    winner = find(s, value);
    if (team->size > 1) winner = agree(team, rank, j, value, winner);
  }
}

using Pick = void (*)(const Share&, const Memory&, const Plan&, int64_t, int64_t, int64_t*, Team*, int);
constexpr Pick kPick[kMaxDims] = {pick<1>, pick<2>, pick<3>, pick<4>, pick<5>, pick<6>, pick<7>, pick<8>};

}  // namespace

int64_t FPS_JOIN(sample_cloud_, FPS_ISA)(const Clouds& c, int64_t b, const Plan& plan, char* scratch, Team* team, int rank) {
  int64_t bytes;
  const Memory m = carve(plan, scratch, &bytes);
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
    order = m.keys[1];
    if (rank == 0) {
      morton_keys(m, plan.dims, n, 10);
      sort_keys(m, n, 3);
    }
    barrier(team);
  }
  build_leaves(plan, m, order, n, rank);
  kPick[plan.dims - 1](share_of(plan, m, n, rank), m, plan, c.starts ? c.starts[b] : c.start, c.k, c.picks + b * c.k, team, rank);
  return -1;
}

#if !defined(__AVX2__)
std::size_t cloud_bytes(const Plan& plan) {
  int64_t bytes;
  carve(plan, nullptr, &bytes);
  return static_cast<std::size_t>(bytes);
}
#endif

}  // namespace depthg
