// Farthest point sampling (FPS): the contract that every back end keeps.
//
//   nearest[i] = +inf for every point i;  pick[0] = start
//   for j = 1 .. k-1:
//     nearest[pick[j-1]] = -1
//     nearest[i] = min(nearest[i], |point[i] - point[pick[j-1]]|^2)   for every i
//     pick[j]    = the lowest i with nearest[i] = max(nearest)
//
// Arithmetic. Points are rounded to float32 once. The squared distance is ((d0*d0 + d1*d1) + d2*d2) + ..., d = point - pick,
// coordinate by coordinate; every operation is rounded to float32 (no FMA, no fast-math). So all back ends return
// equal indices, ties included. A picked point counts as -1 and other minima are not negative, so the picks of a cloud are
// different indices, also where points coincide: its duplicates follow in the order of their indices.
//
// Shapes. points [batch, points, dims] with any strides, 1 <= dims <= 8, 1 <= points < 2^31; picks int64 [batch, k], contiguous.
// lengths [batch] (optional): only the first lengths[b] points of cloud b exist. 1 <= k <= the shortest length.
// A depth map [batch, height, width] stands for the cloud of its cells in raster order, made while it is read:
//   ray(i, size) = ((i + 0.5) - size / 2) / focal;  point = (ray(column, width) * z, ray(row, height) * z, z),  z = depth
// with `focal` in cells, each operation rounded to float32.
//
// Errors. The CPU back end throws std::invalid_argument for a start or a length out of range, for k above a length, and for a
// NaN or an infinity among the points. The CUDA back end reads no value back. It moves lengths into 1 to points and starts into
// 0 to length - 1, and returns index 0 for picks beyond the length. A NaN distance does not change the minimum. So its
// indices always lie in [0, points), and the first min(k, length) of a cloud are different.
//
// Memory. The functions allocate nothing. The caller passes scratch memory of the size that *_scratch_bytes returns; it is
// linear in batch * points.
#pragma once

#include <cstddef>
#include <cstdint>

namespace depthg {

enum DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

constexpr int64_t kMaxDims = 8;

struct Clouds {
  const void* data = nullptr;         // [batch, points, dims], or a depth map [batch, points / width, width]
  int dtype = kFloat32;               // of data
  int64_t batch = 0, points = 0;
  int64_t dims = 3;
  int64_t stride[3] = {0, 0, 0};      // in elements: cloud, point, coordinate; of a depth map: image, row, column
  int64_t width = 0;                  // of the depth map; 0: data holds points
  const float* focals = nullptr;      // [batch] focal lengths in cells, or nullptr: `focal` for all
  float focal = 0;
  const int64_t* lengths = nullptr;   // [batch], or nullptr: every cloud has `points` points
  const int64_t* starts = nullptr;    // [batch], or nullptr: `start` for all
  int64_t start = 0;
  int64_t k = 0;
  int64_t* picks = nullptr;           // [batch, k]
};

// CPU. `threads` is an upper limit; the result does not depend on it.
std::size_t fps_cpu_scratch_bytes(const Clouds& clouds, int threads);
void fps_cpu(const Clouds& clouds, void* scratch, int threads);
const char* fps_cpu_isa();            // the instruction set that this machine runs: "avx512", "avx2" or "baseline"

// Runs the arithmetic of FPS in registers alone and returns the number of float operations, to measure the machine's rate.
int64_t cpu_vector_operations(int64_t rounds);

// CUDA. Everything is enqueued on `stream` (a cudaStream_t) of `device`; no allocation, no synchronisation. The calling thread's
// current context is the same before and after.
std::size_t fps_cuda_scratch_bytes(const Clouds& clouds, int device);
void fps_cuda(const Clouds& clouds, void* scratch, int device, void* stream);

}  // namespace depthg
