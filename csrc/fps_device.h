// Device functions of farthest point sampling: reading points, distances, and the maximum over a warp. Included by fps_cuda.cu
// alone.
#pragma once

#include <cuda_runtime.h>

#include "fps.h"
#include "fps_half.h"

namespace depthg {
namespace {

constexpr int kWarp = 32;

// ---- reading points -------------------------------------------------------------------------------------------------

// Not inlined: it is called once per coordinate, and its copies would make up most of the binary.
__device__ __noinline__ float element(const void* data, int dtype, int64_t offset) {
  switch (dtype) {
    case kFloat32: return static_cast<const float*>(data)[offset];
    case kFloat64: return static_cast<float>(static_cast<const double*>(data)[offset]);
    case kFloat16: return half_to_float(static_cast<const uint16_t*>(data)[offset]);
    default: return bfloat_to_float(static_cast<const uint16_t*>(data)[offset]);
  }
}

// Coordinates from c.dims on are zero: adding 0 * 0 leaves a squared distance as it is, so D = 3 and D = 8 serve all.
template <int D>
__device__ void read_point(const Clouds& c, int64_t b, int i, float (&point)[D]) {
  const int64_t cloud = b * c.stride[0];
  if (!c.width) {
#pragma unroll
    for (int d = 0; d < D; ++d) point[d] = d < c.dims ? element(c.data, c.dtype, cloud + i * c.stride[1] + d * c.stride[2]) : 0.0f;
    return;
  }
  const int width = static_cast<int>(c.width), row = i / width, column = i - row * width;
  const float focal = c.focals ? c.focals[b] : c.focal;
  const float z = element(c.data, c.dtype, cloud + row * c.stride[1] + column * c.stride[2]);
#pragma unroll
  for (int d = 3; d < D; ++d) point[d] = 0.0f;
  point[0] = ray(column, width, focal) * z;
  point[1] = ray(row, static_cast<int>(c.points / width), focal) * z;
  point[2] = z;
}

__device__ int length_of(const Clouds& c, int64_t b) {
  const int64_t n = c.lengths ? c.lengths[b] : c.points;
  return static_cast<int>(n < 1 ? 1 : n > c.points ? c.points : n);
}

__device__ int start_of(const Clouds& c, int64_t b, int length) {
  const int64_t start = c.starts ? c.starts[b] : c.start;
  return static_cast<int>(start < 0 ? 0 : start >= length ? length - 1 : start);
}

// ---- the farthest point -----------------------------------------------------------------------------------------------

// Ordered by value, then by lower index. As signed integers the bits of values that are not negative order like the values,
// after those of -1. A thread whose points are all picked or missing gives -1 with index 0; no_key() loses against that too.
struct Key {
  int value;
  unsigned rest;
};

constexpr int kNoValue = -0x7fffffff - 1;

__device__ Key no_key() { return {kNoValue, 0u}; }
__device__ Key make_key(float value, int index) { return {__float_as_int(value), ~static_cast<unsigned>(index)}; }
__device__ int index_of(Key key) { return static_cast<int>(~key.rest); }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <class T>
__device__ T warp_max(T x) {
  return __reduce_max_sync(0xffffffffu, x);
}
#else
template <class T>
__device__ T warp_max(T x) {
#pragma unroll
  for (int step = kWarp / 2; step; step /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
#endif

__device__ Key warp_max(Key key) {
  const int value = warp_max(key.value);
  return {value, warp_max(key.value == value ? key.rest : 0u)};
}

// Shared memory of a block; the launch gives its size. All shared memory is of this kind: the tests run several blocks of a grid
// side by side on a CPU (tests/cuda_on_cpu) and replace this function.
#if defined(__CUDACC__)
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}
#endif

template <int D>
__device__ float squared_distance(const float (&a)[D], const float (&b)[D]) {
  float sum = 0.0f;
#pragma unroll
  for (int d = 0; d < D; ++d) {
    const float offset = a[d] - b[d];
    sum = d ? sum + offset * offset : offset * offset;
  }
  return sum;
}

}  // namespace
}  // namespace depthg
