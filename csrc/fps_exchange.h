// How blocks that share a cloud tell each other their farthest points, without a launch or a barrier between picks. Included by
// fps_blocks.h alone.
//
// A post is a few words of 64 bits: 32 of content and 32 of the turn that it belongs to. Such a word is written and read as one.
// A block that reads the expected turn has the content too, and no fence is needed. There are two sets of posts, for even and
// odd turns. Turn t + 2 is written after all blocks have posted turn t + 1, and a block posts that after it has read turn t.
#pragma once

#include "fps_device.h"

// Clusters of blocks exist from sm_90 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define DEPTHG_CLUSTERS 1
#else
#define DEPTHG_CLUSTERS 0
#endif

namespace depthg {
namespace {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kBlockThreads = 512;
constexpr int kMaxCluster = 16;

// Points of a thread in registers, 4 or 9 each: as many as fit into 128 beside the rest.
template <int D>
constexpr int kHeldInCluster = D <= 3 ? 20 : 8;
template <int D>
constexpr int kHeldInGrid = D <= 3 ? 16 : 6;

struct alignas(16) Pair {
  unsigned long long first, second;
};

template <int D>
constexpr int kPairs = (2 + D + 1) / 2;  // words of a post are value, rest of the key, coordinates

template <int D>
struct Farthest {
  Key key;
  float at[D];
};

// What a block keeps in shared memory; its points follow.
template <int D>
struct BlockMemory {
  Pair posts[2][kPairs<D>][kMaxCluster];  // of a cluster's blocks
  Key keys[kBlockThreads / kWarp];        // of the block's warps
  Farthest<D> farthest;                   // of all blocks, from the first warp to the others
};

// How clouds are dealt to blocks. Block g of the `blocks` of a cloud has its points [g * part, (g + 1) * part): the first `held` of
// them in registers, what is beyond in `memory`.
struct Dealt {
  int blocks;     // that share a cloud
  int held;       // a multiple of kBlockThreads
  int beyond;     // points of a block beyond `held`, at most
  float* memory;  // [grid, dims + 1, beyond] coordinates and minima
  Pair* posts;    // [teams, 2, kPairs, blocks] of a grid
};

__device__ unsigned long long make_word(unsigned turn, unsigned content) {
  return static_cast<unsigned long long>(turn) << 32 | content;
}

__device__ bool has_turn(Pair pair, unsigned turn) { return pair.first >> 32 == turn && pair.second >> 32 == turn; }

template <int D>
__device__ Pair pair_of(const Farthest<D>& f, int p, unsigned turn) {
  if (p == 0) return {make_word(turn, static_cast<unsigned>(f.key.value)), make_word(turn, f.key.rest)};
  const int d = 2 * p - 2;
  return {make_word(turn, __float_as_uint(f.at[d])), make_word(turn, d + 1 < D ? __float_as_uint(f.at[d + 1]) : 0u)};
}

__device__ Key key_of(Pair pair) {
  return {static_cast<int>(static_cast<unsigned>(pair.first)), static_cast<unsigned>(pair.second)};
}

template <int D>
__device__ void coordinates_of(Pair pair, int p, float (&at)[D]) {
  const int d = 2 * p - 2;
  at[d] = __uint_as_float(static_cast<unsigned>(pair.first));
  if (d + 1 < D) at[d + 1] = __uint_as_float(static_cast<unsigned>(pair.second));
}

// Relaxed accesses that other blocks see, each word whole: of a cluster in shared memory, of a grid in global memory. The tests
// have their own (tests/cuda_on_cpu), where words arrive late and in any order.
#if defined(__CUDACC__)
__device__ Pair load_posted(const Pair* p) {
  Pair x;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(x.first), "=l"(x.second) : "l"(p) : "memory");
  return x;
}
__device__ void post(Pair* p, Pair x) {
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(p), "l"(x.first), "l"(x.second) : "memory");
}
#if DEPTHG_CLUSTERS
__device__ Pair load_posted_in_cluster(const Pair* p) {
  Pair x;
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(p));
  asm volatile("ld.relaxed.cluster.shared::cta.v2.u64 {%0, %1}, [%2];" : "=l"(x.first), "=l"(x.second) : "r"(address) : "memory");
  return x;
}
__device__ void post_in_cluster(Pair* p, Pair x) {
  asm volatile("st.relaxed.cluster.v2.u64 [%0], {%1, %2};" ::"l"(p), "l"(x.first), "l"(x.second) : "memory");
}
#endif
#endif

// ---- a cluster ----------------------------------------------------------------------------------------------------------

#if DEPTHG_CLUSTERS
// Every block has the posts of all in its own shared memory, where each of its warps waits for them. Only what a block sends
// crosses the machine: about 200 cycles.
template <int D>
struct ClusterExchange {
  static constexpr int kHeld = kHeldInCluster<D>;
  static constexpr bool kBeyond = false;  // clouds that a cluster does not hold are left to a grid
  using Posts = Pair[2][kPairs<D>][kMaxCluster];
  Posts* posts;
  int blocks, rank;

  __device__ ClusterExchange(const Dealt& dealt, BlockMemory<D>* shared)
      : posts(&shared->posts), blocks(dealt.blocks), rank(blockIdx.x % dealt.blocks) {
    Pair* all = &(*posts)[0][0][0];
    for (int i = threadIdx.x; i < 2 * kPairs<D> * kMaxCluster; i += kBlockThreads) all[i] = {0, 0};
    meet();
  }

  __device__ static void meet() {
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
  }

  // The farthest point of all blocks; `mine` is this block's, in its first warp.
  __device__ Farthest<D> agree(unsigned turn, const Farthest<D>& mine) {
    Pair(*board)[kMaxCluster] = (*posts)[turn & 1];
    const int lane = threadIdx.x % kWarp;
    if (static_cast<int>(threadIdx.x) < blocks) {
#pragma unroll
      for (int p = 0; p < kPairs<D>; ++p) {
        post_in_cluster(static_cast<Pair*>(__cluster_map_shared_rank(&board[p][rank], lane)), pair_of(mine, p, turn));
      }
    }
    __syncwarp();
    Pair pair[kPairs<D>] = {};
    do {
      if (lane < blocks) pair[0] = load_posted_in_cluster(&board[0][lane]);
    } while (!__all_sync(kFullMask, lane >= blocks || has_turn(pair[0], turn)));
    bool here;
    int winner;
    Farthest<D> best;
    do {  // the coordinates are on their way while the keys are compared
#pragma unroll
      for (int p = 1; p < kPairs<D>; ++p) {
        if (lane < blocks) pair[p] = load_posted_in_cluster(&board[p][lane]);
      }
      const Key key = lane < blocks ? key_of(pair[0]) : no_key();
      best.key = warp_max(key);
      winner = __ffs(__ballot_sync(kFullMask, key.value == best.key.value && key.rest == best.key.rest)) - 1;
      here = true;
#pragma unroll
      for (int p = 1; p < kPairs<D>; ++p) here = here && has_turn(pair[p], turn);
    } while (!__all_sync(kFullMask, lane != winner || here));
#pragma unroll
    for (int p = 1; p < kPairs<D>; ++p) coordinates_of(pair[p], p, best.at);
#pragma unroll
    for (int d = 0; d < D; ++d) best.at[d] = __shfl_sync(kFullMask, best.at[d], winner);
    return best;
  }

  __device__ void end() { meet(); }  // what others send may still be on its way to this block's memory
};
#endif

// ---- a grid -------------------------------------------------------------------------------------------------------------

constexpr int kMaxGrid = 128;  // blocks that share a cloud

// The posts lie in global memory, zero before the launch. The first warp reads them and tells the others. All blocks must be
// resident, which a cooperative launch promises.
template <int D>
struct GridExchange {
  static constexpr int kHeld = kHeldInGrid<D>;
  static constexpr bool kBeyond = true;
  Pair* posts;  // [2, kPairs, blocks]
  BlockMemory<D>* shared;
  int blocks, rank;

  __device__ GridExchange(const Dealt& dealt, BlockMemory<D>* memory)
      : posts(dealt.posts + static_cast<int64_t>(blockIdx.x / dealt.blocks) * 2 * kPairs<D> * dealt.blocks),
        shared(memory),
        blocks(dealt.blocks),
        rank(blockIdx.x % dealt.blocks) {}

  __device__ Farthest<D> read(unsigned turn) const {
    constexpr int kRounds = kMaxGrid / kWarp;
    const Pair* board = posts + static_cast<int64_t>(turn & 1) * kPairs<D> * blocks;
    const int lane = threadIdx.x % kWarp;
    Pair pair[kRounds];
    bool here;
    do {
      here = true;
#pragma unroll
      for (int r = 0; r < kRounds; ++r) {
        if (r * kWarp + lane < blocks) pair[r] = load_posted(board + r * kWarp + lane);
      }
#pragma unroll
      for (int r = 0; r < kRounds; ++r) here = here && (r * kWarp + lane >= blocks || has_turn(pair[r], turn));
    } while (!__all_sync(kFullMask, here));
    Key key = no_key();
    int from = 0;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (r * kWarp + lane >= blocks) continue;
      const Key theirs = key_of(pair[r]);
      if (theirs.value < key.value || (theirs.value == key.value && theirs.rest <= key.rest)) continue;
      key = theirs;
      from = r * kWarp + lane;
    }
    Farthest<D> best;
    best.key = warp_max(key);
    const int lane_of_best = __ffs(__ballot_sync(kFullMask, key.value == best.key.value && key.rest == best.key.rest)) - 1;
    const int winner = __shfl_sync(kFullMask, from, lane_of_best);
#pragma unroll
    for (int p = 1; p < kPairs<D>; ++p) {
      do {
        pair[0] = load_posted(board + p * blocks + winner);
      } while (!__all_sync(kFullMask, has_turn(pair[0], turn)));
      coordinates_of(pair[0], p, best.at);
    }
    return best;
  }

  __device__ Farthest<D> agree(unsigned turn, const Farthest<D>& mine) {
    if (threadIdx.x < kWarp) {
      if (threadIdx.x == 0 && blocks > 1) {
        Pair* board = posts + static_cast<int64_t>(turn & 1) * kPairs<D> * blocks;
#pragma unroll
        for (int p = 0; p < kPairs<D>; ++p) post(board + p * blocks + rank, pair_of(mine, p, turn));
      }
      __syncwarp();
      const Farthest<D> best = blocks > 1 ? read(turn) : mine;
      if (threadIdx.x == 0) shared->farthest = best;
    }
    __syncthreads();
    return shared->farthest;
  }

  __device__ void end() {}
};

}  // namespace
}  // namespace depthg
