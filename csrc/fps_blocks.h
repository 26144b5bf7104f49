// A cloud shared by several blocks that run side by side: one launch for all picks. Included by fps_cuda.cu alone.
//
// A thread folds its points into one key (minimum, index), a warp reduces the keys, the first warp reduces the warps' keys and
// the blocks exchange theirs. Coordinates travel with the keys, so no thread waits for memory to learn where the pick lies.
//
// Predicted for an H100 at 1.98 GHz, from the SASS of nvcc 13.0 for sm_90 and published latencies; none of it is measured. A pick
// takes, in cycles, where a cluster of 16 shares a cloud:
//   13 instructions a point (3 FADD, 3 FMUL, 2 FADD; FMNMX, FSETP, FSEL, SEL; half of ISETP and BRA), points in pairs, 16 warps on
//   4 schedulers: 104 for 12,544 points (784 of a block: one pair), 650 for 100,000 (6,250: six pairs, seven in four warps)
//   keys of a warp (2 REDUX) 60, STS and BAR 60, LDS and keys of the block 90, coordinates 45, addresses and stores 50      305
//   to shared memory of other blocks 180, until a poll sees it 80, keys of the cluster 60, who it is and SHFL 70, rest 40   430
// So (B, N, k) = (8, 12544, 1024) takes 0.43 ms and (1, 100000, 2048) 1.43 ms. A grid exchanges through L2, two trips of some 270
// cycles beside the stores, instead of 180: about 1,200 cycles a pick beside the points.
#pragma once

#include "fps_exchange.h"

namespace depthg {
namespace {

constexpr int kGroup = 2;    // held points after which a warp looks whether it has more
constexpr int kStream = 2;   // points beyond that are loaded together

constexpr int kInfinity = 0x7f800000;  // its bits

// The points of a thread. Numbers of points count from the first one of the block: `j * kBlockThreads + thread` is held.
//
// A pick counts as -1 from then on, but for held points that is written only when it matters. The minimum of a pick becomes zero
// with its own distance, so it does not come back while other minima are above zero; `picked` remembers it until then. Only a
// pick whose minimum was infinite may have no distance to itself (it is not finite), and is written at once.
template <int D, int HELD>
struct Part {
  static_assert(HELD <= 32, "`picked` has 32 bits");
  float point[HELD][D], nearest[HELD];
  unsigned picked;   // bit j: held point j is picked
  int first, count;  // of the block: index in the cloud, number of points
  int held;          // of them in registers
  int warp_held;     // those from the first one of this warp on

  __device__ void place(const Dealt& dealt, int length) {
    const int part = (length - 1) / dealt.blocks + 1;
    const int64_t from = static_cast<int64_t>(blockIdx.x % dealt.blocks) * part;
    first = static_cast<int>(from < length ? from : length);
    count = length - first < part ? length - first : part;
    held = count < dealt.held ? count : dealt.held;
    warp_held = held - static_cast<int>(threadIdx.x) / kWarp * kWarp;
  }
};

template <int D>
__device__ float* held_points(BlockMemory<D>* shared) {  // [D, dealt.held]
  return reinterpret_cast<float*>(shared + 1);
}

__device__ float* points_beyond(const Clouds& c, const Dealt& dealt) {  // [dims + 1, dealt.beyond] of this block
  return dealt.memory + static_cast<int64_t>(blockIdx.x) * (c.dims + 1) * dealt.beyond;
}

// Every thread reads its own points: into memory first, so that no registers wait for the calls of `element`.
template <int D, int HELD>
__device__ void load_part(const Clouds& c, const Dealt& dealt, int64_t b, Part<D, HELD>& part, float* held_points) {
  float* beyond = points_beyond(c, dealt);
#pragma unroll 1
  for (int n = threadIdx.x; n < part.count; n += kBlockThreads) {
    float point[D];
    read_point<D>(c, b, part.first + n, point);
#pragma unroll
    for (int d = 0; d < D; ++d) {
      if (n < dealt.held) {
        held_points[d * dealt.held + n] = point[d];
      } else if (d < c.dims) {
        beyond[d * dealt.beyond + n - dealt.held] = point[d];
      }
    }
    if (n >= dealt.held) beyond[c.dims * dealt.beyond + n - dealt.held] = __int_as_float(kInfinity);
  }
  part.picked = 0;
#pragma unroll
  for (int j = 0; j < HELD; ++j) {
    const int n = j * kBlockThreads + threadIdx.x;
    part.nearest[j] = n < part.held ? __int_as_float(kInfinity) : -1.0f;
#pragma unroll
    for (int d = 0; d < D; ++d) part.point[j][d] = n < part.held ? held_points[d * dealt.held + n] : 0.0f;
  }
}

// Takes a pick into the minima of the points beyond; `value` and `number` are the thread's largest minimum and its point. All
// loads of a step come before its stores, which could alias them.
template <int D, int HELD>
__device__ void update_beyond(const Clouds& c, const Dealt& dealt, const Part<D, HELD>& part, const float (&at)[D], int picked,
                              float* value, int* number) {
  const float* points = points_beyond(c, dealt);
  float* minima = points_beyond(c, dealt) + c.dims * dealt.beyond;
  for (int from = dealt.held + threadIdx.x; from < part.count; from += kStream * kBlockThreads) {
    float point[kStream][D], nearest[kStream];
#pragma unroll
    for (int q = 0; q < kStream; ++q) {
      const int n = from + q * kBlockThreads, m = n < part.count ? n - dealt.held : 0;
      nearest[q] = n < part.count ? minima[m] : -1.0f;
#pragma unroll
      for (int d = 0; d < D; ++d) point[q][d] = d < c.dims ? points[d * dealt.beyond + m] : 0.0f;
    }
#pragma unroll
    for (int q = 0; q < kStream; ++q) {
      const int n = from + q * kBlockThreads;
      if (n == picked) nearest[q] = -1.0f;
      nearest[q] = fminf(nearest[q], squared_distance<D>(point[q], at));
      if (n < part.count) minima[n - dealt.held] = nearest[q];
      if (nearest[q] > *value) {
        *value = nearest[q];
        *number = n;
      }
    }
  }
}

// Takes the pick at `at` into the minima; returns the key of the thread's farthest point. `mark`: what is picked is written.
template <int D, bool BEYOND, int HELD>
__device__ Key update_part(const Clouds& c, const Dealt& dealt, Part<D, HELD>& part, const float (&at)[D], int pick, bool mark) {
  const int thread = threadIdx.x, picked = pick - part.first;
  if (static_cast<unsigned>(picked) < static_cast<unsigned>(dealt.held) && picked % kBlockThreads == thread) {
    part.picked |= 1u << picked / kBlockThreads;
  }
  if (mark) {
#pragma unroll
    for (int j = 0; j < HELD; ++j) part.nearest[j] = part.picked >> j & 1 ? -1.0f : part.nearest[j];
  }
  float value = -1.0f;
  int number = 0;
#pragma unroll
  for (int j = 0; j < HELD; ++j) {
    if (j % kGroup == 0 && j * kBlockThreads >= part.warp_held) break;
    part.nearest[j] = fminf(part.nearest[j], squared_distance<D>(part.point[j], at));
    if (part.nearest[j] > value) {
      value = part.nearest[j];
      number = j * kBlockThreads;
    }
  }
  number += thread;
  if (BEYOND && part.count > dealt.held) update_beyond(c, dealt, part, at, picked, &value, &number);
  return make_key(value, value < 0.0f ? 0 : part.first + number);
}

// In the first warp: the block's farthest point. Called after the barrier that makes `keys` known.
template <int D, bool BEYOND, int HELD>
__device__ Farthest<D> farthest_of_block(const Clouds& c, const Dealt& dealt, const Part<D, HELD>& part, const float* held_points,
                                         const Key* keys) {
  const int lane = threadIdx.x % kWarp;
  Farthest<D> mine;
  mine.key = warp_max(lane < kBlockThreads / kWarp ? keys[lane] : no_key());
  const int n = mine.key.value < 0 ? 0 : index_of(mine.key) - part.first;  // without a point left the coordinates do not matter
#pragma unroll
  for (int d = 0; d < D; ++d) {
    mine.at[d] = !BEYOND || n < dealt.held ? held_points[d * dealt.held + n]
                 : d < c.dims              ? points_beyond(c, dealt)[d * dealt.beyond + n - dealt.held]
                                           : 0.0f;
  }
  return mine;
}

// The farthest point of the cloud after the pick at `at`. Its index is `pick`, or -1 when that is known already.
template <int D, class Exchange>
__device__ Farthest<D> next_pick(const Clouds& c, const Dealt& dealt, Exchange& exchange, BlockMemory<D>* shared,
                                 Part<D, Exchange::kHeld>& part, const float (&at)[D], int pick, bool mark, unsigned turn) {
  const Key key = warp_max(update_part<D, Exchange::kBeyond>(c, dealt, part, at, pick, mark));
  if (threadIdx.x % kWarp == 0) shared->keys[threadIdx.x / kWarp] = key;
  __syncthreads();
  Farthest<D> mine{};
  if (threadIdx.x < kWarp) mine = farthest_of_block<D, Exchange::kBeyond>(c, dealt, part, held_points<D>(shared), shared->keys);
  return exchange.agree(turn, mine);
}

template <int D, class Exchange>
__device__ void sample_blocks(const Clouds& c, const Dealt& dealt) {
  BlockMemory<D>* shared = dynamic_shared<BlockMemory<D>>();
  Exchange exchange(dealt, shared);
  Part<D, Exchange::kHeld> part;
  unsigned turn = 0;
  for (int b = blockIdx.x / dealt.blocks; b < static_cast<int>(c.batch); b += gridDim.x / dealt.blocks) {
    const int length = length_of(c, b);
    part.place(dealt, length);
    load_part(c, dealt, b, part, held_points<D>(shared));
    Farthest<D> pick;
    pick.key = make_key(0.0f, start_of(c, b, length));
    read_point<D>(c, b, index_of(pick.key), pick.at);
    bool mark = true;
    for (int s = 0;;) {
      int index = index_of(pick.key);
      if (threadIdx.x == 0 && exchange.rank == 0) c.picks[b * c.k + s] = index;
      if (++s == static_cast<int>(c.k)) break;
      bool again = false;
      do {  // again when it is the first time that no minimum is above zero: what is picked may have come back
        mark = mark || again;
        pick = next_pick<D>(c, dealt, exchange, shared, part, pick.at, index, mark, ++turn);
        again = pick.key.value == 0 && !mark;
        index = -1;
      } while (again);
      mark = pick.key.value == 0 || pick.key.value >= kInfinity;
    }
  }
  exchange.end();
}

template <int D>
__global__ void __launch_bounds__(kBlockThreads, 1) sample_cluster(const Clouds c, const Dealt dealt) {
#if DEPTHG_CLUSTERS
  sample_blocks<D, ClusterExchange<D>>(c, dealt);
#endif
}

template <int D>
__global__ void __launch_bounds__(kBlockThreads, 1) sample_grid(const Clouds c, const Dealt dealt) {
  sample_blocks<D, GridExchange<D>>(c, dealt);
}

}  // namespace
}  // namespace depthg
