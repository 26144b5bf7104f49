// Farthest point sampling on CUDA. Compile with --fmad=false: the contract (fps.h) forbids contraction into FMA.
//
//   fps_small.h    one block for each small cloud
//   fps_blocks.h   one or several blocks for each larger cloud; fps_plan.h chooses how many, and how they meet
//
// All picks of a call are made by one launch. Nothing is allocated, read back or waited for, and a call can be captured in a graph
// (after one that is not: the first one on a device asks for its properties and loads the kernels).
#include <cuda_runtime.h>

#include "fps_plan.h"
#include "fps_small.h"

namespace depthg {
namespace {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& how, const Arguments&... arguments) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = how.config(&attribute);
  require(cudaLaunchKernelEx(&config, kernel, arguments...));
}

bool is_small(const Clouds& c) {
  const std::size_t bytes = c.dims <= 3 ? small_bytes<3, 512>(c) : small_bytes<kMaxDims, 512>(c);
  return c.points <= 4096 && bytes <= kSmallBytes;
}

template <int D>
void enqueue_small(const Clouds& c, cudaStream_t stream) {
  if (c.points <= 1024) return launch(sample_small<D, 256, 4>, {c.batch, 256, small_bytes<D, 256>(c), 1, false, stream}, c);
  launch(sample_small<D, 512, 8>, {c.batch, 512, small_bytes<D, 512>(c), 1, false, stream}, c);
}

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

template <int D>
int64_t bytes_of_posts(const LaunchPlan& p) {
  return p.cluster || p.blocks == 1 ? 0 : aligned(p.teams * 2 * kPairs<D> * p.blocks * static_cast<int64_t>(sizeof(Pair)));
}

// Posts, then coordinates and minima of the points that blocks do not hold.
template <int D>
std::size_t scratch_bytes(const Clouds& c, int device) {
  const LaunchPlan p = make_plan<D>(c, machine<D>(device));
  return bytes_of_posts<D>(p) + p.teams * p.blocks * (c.dims + 1) * p.beyond * sizeof(float);
}

template <int D>
void enqueue(const Clouds& c, char* scratch, int device, cudaStream_t stream) {
  if (is_small(c)) return enqueue_small<D>(c, stream);
  const LaunchPlan p = make_plan<D>(c, machine<D>(device));
  const int64_t posts = bytes_of_posts<D>(p);
  const Dealt dealt{p.blocks, p.held, p.beyond, reinterpret_cast<float*>(scratch + posts), reinterpret_cast<Pair*>(scratch)};
  Launch how{p.teams * p.blocks, kBlockThreads, sizeof(BlockMemory<D>) + static_cast<std::size_t>(D) * p.held * sizeof(float)};
  how.stream = stream;
  if (p.cluster) {
    how.cluster = p.blocks;
    return launch(sample_cluster<D>, how, c, dealt);
  }
  how.cooperative = p.blocks > 1;
  if (posts) require(cudaMemsetAsync(scratch, 0, posts, stream));  // no post of an earlier call may pass for one of this
  launch(sample_grid<D>, how, c, dealt);
}

}  // namespace

std::size_t fps_cuda_scratch_bytes(const Clouds& c, int device) {
  if (c.batch == 0 || is_small(c)) return 0;
  const OnDevice on(device);
  return c.dims <= 3 ? scratch_bytes<3>(c, device) : scratch_bytes<kMaxDims>(c, device);
}

void fps_cuda(const Clouds& c, void* scratch, int device, void* stream) {
  if (c.batch == 0) return;
  if (c.batch > 0x7fffffff / kMaxCluster) {
    throw std::runtime_error("farthest point sampling on CUDA: " + std::to_string(c.batch) + " clouds in one call; split the batch");
  }
  const OnDevice on(device);
  const auto run = c.dims <= 3 ? enqueue<3> : enqueue<kMaxDims>;
  run(c, static_cast<char*>(scratch), device, static_cast<cudaStream_t>(stream));
}

}  // namespace depthg
