// Clouds that one block holds: points and minima in registers, a copy of the points in shared memory. Included by fps_cuda.cu
// alone.
#pragma once

#include "fps_device.h"

namespace depthg {
namespace {

constexpr int kSmallBytes = 48 * 1024;  // of shared memory that every device grants without asking

template <int THREADS>
struct SmallShared {
  Key keys[2][THREADS / kWarp];
};

template <int D, int THREADS>
std::size_t small_bytes(const Clouds& c) {
  return sizeof(SmallShared<THREADS>) + static_cast<std::size_t>(D) * c.points * sizeof(float);
}

// Maximum over the block, known to every thread. `keys` must alternate between two buffers from call to call: then one
// barrier is enough: a buffer is written again only after all threads have passed the barrier behind their reads.
template <int THREADS>
__device__ Key block_max(Key key, Key* keys) {
  key = warp_max(key);
  if (threadIdx.x % kWarp == 0) keys[threadIdx.x / kWarp] = key;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  return warp_max(lane < THREADS / kWarp ? keys[lane] : no_key());
}

template <int D, int THREADS, int POINTS>
__global__ void __launch_bounds__(THREADS) sample_small(const Clouds c) {
  SmallShared<THREADS>* shared = dynamic_shared<SmallShared<THREADS>>();
  float* shared_points = reinterpret_cast<float*>(shared + 1);  // [D, points]
  const int stride = static_cast<int>(c.points), thread = threadIdx.x;
  const int64_t b = blockIdx.x;
  const int length = length_of(c, b);
  float point[POINTS][D], nearest[POINTS];
#pragma unroll
  for (int j = 0; j < POINTS; ++j) {
    const int i = j * THREADS + thread;
    nearest[j] = i < length ? __int_as_float(0x7f800000) : -1.0f;
    if (i < length) {
      read_point<D>(c, b, i, point[j]);
    } else {
#pragma unroll
      for (int d = 0; d < D; ++d) point[j][d] = 0.0f;
    }
#pragma unroll
    for (int d = 0; d < D; ++d) {
      if (i < length) shared_points[d * stride + i] = point[j][d];
    }
  }
  __syncthreads();
  int pick = start_of(c, b, length);
  for (int64_t s = 0;;) {
    if (thread == 0) c.picks[b * c.k + s] = pick;
    if (++s == c.k) return;
    float at[D];
#pragma unroll
    for (int d = 0; d < D; ++d) at[d] = shared_points[d * stride + pick];
    // While the coordinates are on their way: a picked point is never picked again.
#pragma unroll
    for (int j = 0; j < POINTS; ++j) nearest[j] = pick - thread == j * THREADS ? -1.0f : nearest[j];
    float value = -1.0f;
    int index = 0;
#pragma unroll
    for (int j = 0; j < POINTS; ++j) {
      nearest[j] = fminf(nearest[j], squared_distance<D>(point[j], at));
      if (nearest[j] > value) {
        value = nearest[j];
        index = j * THREADS + thread;
      }
    }
    pick = index_of(block_max<THREADS>(make_key(value, index), shared->keys[s & 1]));
  }
}

}  // namespace
}  // namespace depthg
