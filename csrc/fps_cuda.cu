// Farthest point sampling on CUDA. Compile with --fmad=false: the contract (fps.h) forbids contraction into FMA.
//
//   small    one block per cloud; points and minima in registers, a copy of the points in shared memory
//   medium   one block per cloud; minima in registers, points in scratch memory (mostly in L1)
//   large    several blocks per cloud and one launch per pick, which makes the barrier between picks
//
// In each of them a thread folds its points into one key (minimum, index), a warp reduces the keys, and after the only
// barrier of the pick every warp reduces the warps' keys for itself. Nothing is allocated, read back or waited for.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "fps_device.h"

namespace depthg {
namespace {

constexpr int kSmallBytes = 47 * 1024;  // of shared memory that every device grants without asking
constexpr int kMediumThreads = 1024, kMediumPoints = 16;
constexpr int kLargeThreads = 256, kLargePoints = 2048;  // points that a block should have at least
constexpr int kLargeBlocks = 1024;                       // blocks in one cloud at most

// ---- small ------------------------------------------------------------------------------------------------------------

template <int D, int THREADS, int POINTS>
__global__ void __launch_bounds__(THREADS) sample_small(const Clouds c) {
  extern __shared__ float shared_points[];  // [D, points]
  __shared__ Key posts[2][THREADS / kWarp];
  const int stride = static_cast<int>(c.points);
  const int64_t b = blockIdx.x;
  const int length = length_of(c, b);
  float point[POINTS][D], nearest[POINTS];
#pragma unroll
  for (int j = 0; j < POINTS; ++j) {
    const int i = j * THREADS + threadIdx.x;
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
    if (threadIdx.x == 0) c.picks[b * c.k + s] = pick;
    if (++s == c.k) return;
    float at[D];
#pragma unroll
    for (int d = 0; d < D; ++d) at[d] = shared_points[d * stride + pick];
    float value = -1.0f;
    int index = 0;
#pragma unroll
    for (int j = 0; j < POINTS; ++j) {
      nearest[j] = fminf(nearest[j], squared_distance<D>(point[j], at));
      if (nearest[j] > value) {
        value = nearest[j];
        index = j * THREADS + threadIdx.x;
      }
    }
    pick = index_of(block_max<THREADS>(make_key(value, index), posts[s & 1]));
  }
}

// ---- medium -----------------------------------------------------------------------------------------------------------

// `points` is [batch, dims, points] float32.
template <int D>
__device__ void load_point(const Clouds& c, const float* points, int i, float (&point)[D]) {
#pragma unroll
  for (int d = 0; d < D; ++d) point[d] = d < c.dims ? points[d * c.points + i] : 0.0f;
}

template <int D>
__device__ void store_point(const Clouds& c, float* points, int i, const float (&point)[D]) {
#pragma unroll
  for (int d = 0; d < D; ++d) {
    if (d < c.dims) points[d * c.points + i] = point[d];
  }
}

template <int D>
__global__ void __launch_bounds__(kMediumThreads) sample_medium(const Clouds c, float* all_points) {
  __shared__ Key posts[2][kMediumThreads / kWarp];
  const int64_t b = blockIdx.x;
  const int length = length_of(c, b);
  float* points = all_points + b * c.dims * c.points;
  float nearest[kMediumPoints];
#pragma unroll
  for (int j = 0; j < kMediumPoints; ++j) {
    const int i = j * kMediumThreads + threadIdx.x;
    nearest[j] = i < length ? __int_as_float(0x7f800000) : -1.0f;
    if (i < length) {
      float point[D];
      read_point<D>(c, b, i, point);
      store_point<D>(c, points, i, point);
    }
  }
  __syncthreads();
  int pick = start_of(c, b, length);
  for (int64_t s = 0;;) {
    if (threadIdx.x == 0) c.picks[b * c.k + s] = pick;
    if (++s == c.k) return;
    float at[D], value = -1.0f;
    int index = 0;
    load_point<D>(c, points, pick, at);
#pragma unroll
    for (int j = 0; j < kMediumPoints; ++j) {
      const int i = j * kMediumThreads + threadIdx.x;
      if (i < length) {
        float point[D];
        load_point<D>(c, points, i, point);
        nearest[j] = fminf(nearest[j], squared_distance<D>(point, at));
        if (nearest[j] > value) {
          value = nearest[j];
          index = i;
        }
      }
    }
    pick = index_of(block_max<kMediumThreads>(make_key(value, index), posts[s & 1]));
  }
}

// ---- large ------------------------------------------------------------------------------------------------------------

struct Large {
  float* points;   // [batch, dims, points]
  float* nearest;  // [batch, points]
  Key* keys;       // [2, batch, blocks] the blocks' farthest points, for even and odd picks
  int blocks;      // in one cloud
};

// Points of block `g` of a cloud: [from, to).
__device__ int2 part_of(int length, int blocks, int g) {
  const int part = (length - 1) / blocks + 1;
  const int64_t from = static_cast<int64_t>(g) * part;
  return make_int2(static_cast<int>(from < length ? from : length), static_cast<int>(from + part < length ? from + part : length));
}

template <int D>
__global__ void __launch_bounds__(kLargeThreads) begin_large(const Clouds c, const Large large) {
  const int64_t b = blockIdx.x / large.blocks;
  const int g = blockIdx.x % large.blocks, length = length_of(c, b);
  const int2 part = part_of(length, large.blocks, g);
  for (int i = part.x + threadIdx.x; i < part.y; i += kLargeThreads) {
    float point[D];
    read_point<D>(c, b, i, point);
    store_point<D>(c, large.points + b * c.dims * c.points, i, point);
    large.nearest[b * c.points + i] = __int_as_float(0x7f800000);
  }
  if (threadIdx.x == 0) large.keys[b * large.blocks + g] = make_key(0.0f, start_of(c, b, length));
}

template <int D>
__global__ void __launch_bounds__(kLargeThreads) step_large(const Clouds c, const Large large, int64_t s) {
  __shared__ Key posts[2][kLargeThreads / kWarp];
  const int64_t b = blockIdx.x / large.blocks;
  const int g = blockIdx.x % large.blocks, length = length_of(c, b);
  const Key* before = large.keys + ((s & 1) * c.batch + b) * large.blocks;
  Key* after = large.keys + (((s + 1) & 1) * c.batch + b) * large.blocks;
  Key key{0u, 0u};
  for (int other = threadIdx.x; other < large.blocks; other += kLargeThreads) {
    const Key theirs = before[other];
    if (theirs.value > key.value || (theirs.value == key.value && theirs.rest > key.rest)) key = theirs;
  }
  const int pick = index_of(block_max<kLargeThreads>(key, posts[0]));
  if (g == 0 && threadIdx.x == 0) c.picks[b * c.k + s] = pick;
  if (s + 1 == c.k) return;
  const float* points = large.points + b * c.dims * c.points;
  float* nearest = large.nearest + b * c.points;
  const int2 part = part_of(length, large.blocks, g);
  float at[D], value = -1.0f;
  int index = 0;
  load_point<D>(c, points, pick, at);
  for (int i = part.x + threadIdx.x; i < part.y; i += kLargeThreads) {
    float point[D];
    load_point<D>(c, points, i, point);
    const float now = fminf(nearest[i], squared_distance<D>(point, at));
    nearest[i] = now;
    if (now > value) {
      value = now;
      index = i;
    }
  }
  key = block_max<kLargeThreads>(make_key(value, index), posts[1]);
  if (threadIdx.x == 0) after[g] = key;
}

// ---- host -------------------------------------------------------------------------------------------------------------

void require(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("farthest point sampling on CUDA: ") + cudaGetErrorString(status));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t grid, int threads, std::size_t shared, cudaStream_t stream, Arguments... arguments) {
  if (grid > 0x7fffffff) throw std::runtime_error("farthest point sampling on CUDA: too many clouds in one call; split the batch");
  kernel<<<static_cast<unsigned>(grid), threads, shared, stream>>>(arguments...);
  require(cudaGetLastError());
}

std::size_t aligned(int64_t bytes) { return static_cast<std::size_t>((bytes + 255) / 256 * 256); }

std::size_t small_bytes(const Clouds& c) { return static_cast<std::size_t>(c.dims <= 3 ? 3 : kMaxDims) * c.points * sizeof(float); }

bool is_small(const Clouds& c) { return c.points <= 4096 && small_bytes(c) <= kSmallBytes; }

bool is_medium(const Clouds& c) { return !is_small(c) && c.points <= kMediumThreads * kMediumPoints; }

Large carve(const Clouds& c, char* scratch, std::size_t* bytes) {
  Large large{};
  large.blocks = static_cast<int>((c.points + kLargePoints - 1) / kLargePoints);
  if (large.blocks > kLargeBlocks) large.blocks = kLargeBlocks;
  const std::size_t points = aligned(c.batch * c.dims * c.points * 4), nearest = aligned(c.batch * c.points * 4);
  large.points = reinterpret_cast<float*>(scratch);
  large.nearest = reinterpret_cast<float*>(scratch + points);
  large.keys = reinterpret_cast<Key*>(scratch + points + nearest);
  *bytes = points + nearest + aligned(2 * c.batch * large.blocks * static_cast<int64_t>(sizeof(Key)));
  return large;
}

template <int D>
void enqueue(const Clouds& c, char* scratch, cudaStream_t stream) {
  if (is_small(c)) {
    if (c.points <= 1024) return launch(sample_small<D, 256, 4>, c.batch, 256, small_bytes(c), stream, c);
    return launch(sample_small<D, 512, 8>, c.batch, 512, small_bytes(c), stream, c);
  }
  if (is_medium(c)) return launch(sample_medium<D>, c.batch, kMediumThreads, 0, stream, c, reinterpret_cast<float*>(scratch));
  std::size_t bytes;
  const Large large = carve(c, scratch, &bytes);
  const int64_t grid = c.batch * large.blocks;
  launch(begin_large<D>, grid, kLargeThreads, 0, stream, c, large);
  for (int64_t s = 0; s < c.k; ++s) launch(step_large<D>, grid, kLargeThreads, 0, stream, c, large, s);
}

}  // namespace

std::size_t fps_cuda_scratch_bytes(const Clouds& c) {
  if (is_small(c)) return 0;
  if (is_medium(c)) return aligned(c.batch * c.dims * c.points * 4);
  std::size_t bytes;
  carve(c, nullptr, &bytes);
  return bytes;
}

void fps_cuda(const Clouds& c, void* scratch, int device, void* stream) {
  if (c.batch == 0) return;
  int before = device;
  require(cudaGetDevice(&before));
  if (before != device) require(cudaSetDevice(device));
  try {
    const auto run = c.dims <= 3 ? enqueue<3> : enqueue<kMaxDims>;
    run(c, static_cast<char*>(scratch), static_cast<cudaStream_t>(stream));
  } catch (...) {
    if (before != device) cudaSetDevice(before);
    throw;
  }
  if (before != device) require(cudaSetDevice(before));
}

}  // namespace depthg
