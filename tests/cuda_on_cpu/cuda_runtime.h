// The part of CUDA that csrc/fps_cuda.cu uses, on a CPU. SHIM_ARCH (700, 800, 900) is the architecture that the code is compiled
// for. The machine has several devices, which differ in what they offer; a stream belongs to one of them.
#pragma once

#include <cmath>

#include "fibers.h"

#ifndef SHIM_ARCH
#define SHIM_ARCH 800
#endif
#define __CUDA_ARCH__ SHIM_ARCH
#define __global__
#define __device__
#define __host__
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

// ---- in kernels -----------------------------------------------------------------------------------------------------------

namespace shim {

inline uint3 thread_index() { return {current->thread, 0, 0}; }
inline uint3 block_index() { return {current->block->index, 0, 0}; }

template <class To, class From>
To bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

template <class T>
uint64_t pack(T x) {
  uint64_t word = 0;
  std::memcpy(&word, &x, sizeof x);
  return word;
}

template <class T>
T unpack(uint64_t word) {
  T x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

}  // namespace shim

#define threadIdx (shim::thread_index())
#define blockIdx (shim::block_index())
inline dim3 gridDim;
// Every barrier in the source has a number, so that a test can leave one out.
#define __syncthreads() shim::barrier(SHIM_SITE)
#define __cluster_barrier_arrive() shim::cluster_arrive()
#define __cluster_barrier_wait() shim::cluster_wait()
#define SHIM_SITE (__COUNTER__)

using std::max;
using std::min;

inline void __syncwarp(unsigned mask = ~0u) { shim::meet(mask, 0); }

template <class T>
T __shfl_xor_sync(unsigned mask, T x, int step) {
  const unsigned lane = shim::current->thread % shim::kLanes;
  return shim::unpack<T>(shim::meet(mask, shim::pack(x))[lane ^ step]);
}

template <class T>
T __shfl_sync(unsigned mask, T x, int from) {
  return shim::unpack<T>(shim::meet(mask, shim::pack(x))[from % shim::kLanes]);
}

template <class T>
T __reduce_max_sync(unsigned mask, T x) {
  const uint64_t* all = shim::meet(mask, shim::pack(x));
  for (unsigned lane = 0; lane < shim::kLanes; ++lane) x = std::max(x, shim::unpack<T>(all[lane]));
  return x;
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* all = shim::meet(mask, predicate != 0);
  unsigned set = 0;
  for (unsigned lane = 0; lane < shim::kLanes; ++lane) set |= static_cast<unsigned>(all[lane]) << lane;
  return set;
}

inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == ~0u; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __int_as_float(int x) { return shim::bits<float>(x); }
inline int __float_as_int(float x) { return shim::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return shim::bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return shim::bits<float>(x); }
inline void* __cluster_map_shared_rank(const void* here, unsigned rank) { return shim::of_block(here, rank); }

template <class T>
T* dynamic_shared() {
  void* start = shim::current->block->shared.data();
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(start) + 15) / 16 * 16);
}

// What fps_exchange.h writes in assembly.
template <class T>
T load_posted(const T* p) {
  return *p;
}
template <class T>
T load_posted_in_cluster(const T* p) {
  return *p;
}
template <class T>
void post(T* p, const T& x) {
  shim::post(p, x);
}
template <class T>
void post_in_cluster(T* p, const T& x) {
  shim::post(p, x);
}

// ---- on the host ------------------------------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess, cudaDriverEntryPointSymbolNotFound };
enum { cudaEnableDefault = 0 };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension, cudaLaunchAttributeCooperative };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
    int cooperative;
  } val;
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

struct cudaFuncAttributes {
  int ptxVersion;
};

namespace shim {

struct Device {
  int processors, shared, largest_cluster, ptx;
};

// 0: all that the architecture has; 1: no clusters; 2: little of everything; 3: PTX of an older architecture; 4: like 0, small.
inline const Device devices[] = {
    {20, 227 * 1024, 16, SHIM_ARCH / 10}, {6, 163 * 1024, 0, SHIM_ARCH / 10}, {3, 64 * 1024, 2, SHIM_ARCH / 10},
    {4, 99 * 1024, 16, 80},               {4, 99 * 1024, 4, SHIM_ARCH / 10},
};
inline int context = 0;  // device + 1, or 0 for none
inline long launches = 0, clusters = 0, cooperative = 0, memsets = 0;

inline int current_context(struct CUctx_st** c) {
  *c = reinterpret_cast<struct CUctx_st*>(static_cast<uintptr_t>(context));
  return 0;
}

inline int make_current(struct CUctx_st* c) {
  context = static_cast<int>(reinterpret_cast<uintptr_t>(c));
  return 0;
}

inline bool is_of_context(cudaStream_t stream) { return reinterpret_cast<uintptr_t>(stream) == static_cast<uintptr_t>(context); }

inline cudaError_t run_checked(const cudaLaunchConfig_t& config) {
  const Device& device = devices[context - 1];
  unsigned cluster = 1;
  bool together = false;
  for (unsigned n = 0; n < config.numAttrs; ++n) {
    if (config.attrs[n].id == cudaLaunchAttributeClusterDimension) cluster = config.attrs[n].val.clusterDim.x;
    if (config.attrs[n].id == cudaLaunchAttributeCooperative) together = config.attrs[n].val.cooperative;
  }
  const unsigned grid = config.gridDim.x, threads = config.blockDim.x;
  const std::size_t shared = config.dynamicSmemBytes;
  const bool fits = grid && threads && threads <= 1024 && threads % kLanes == 0 && shared <= std::size_t(device.shared);
  const bool gangs = cluster == 1 || (int(cluster) <= device.largest_cluster && grid % cluster == 0 && SHIM_ARCH >= 900);
  if (!fits || !gangs || (together && grid > unsigned(device.processors))) return cudaErrorInvalidConfiguration;
  ++launches;
  clusters += cluster > 1;
  cooperative += together;
  ::gridDim = dim3(grid);
  run(grid, together ? grid : cluster, threads, shared);
  return failure.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace shim

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), const A&... arguments) {
  if (!shim::is_of_context(config->stream)) return cudaErrorInvalidValue;
  shim::body = [=] { kernel(arguments...); };
  return shim::run_checked(*config);
}

inline cudaError_t cudaMemsetAsync(void* p, int value, std::size_t bytes, cudaStream_t stream) {
  if (!shim::is_of_context(stream)) return cudaErrorInvalidValue;
  ++shim::memsets;
  std::memset(p, value, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= int(std::size(shim::devices))) return cudaErrorInvalidValue;
  shim::context = device + 1;
  return cudaSuccess;
}

inline cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                                           cudaDriverEntryPointQueryResult* found) {
  const std::string wanted = name;
  *function = wanted == "cuCtxGetCurrent"   ? reinterpret_cast<void*>(&shim::current_context)
              : wanted == "cuCtxSetCurrent" ? reinterpret_cast<void*>(&shim::make_current)
                                            : nullptr;
  *found = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const shim::Device& d = shim::devices[device];
  *value = attribute == cudaDevAttrMultiProcessorCount            ? d.processors
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? d.shared
                                                                  : SHIM_ARCH / 100;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->ptxVersion = shim::devices[shim::context - 1].ptx;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t* config) {
  const shim::Device& d = shim::devices[shim::context - 1];
  const int size = config->attrs[0].val.clusterDim.x;
  if (size > d.largest_cluster) return cudaErrorInvalidConfiguration;
  *clusters = d.processors / size;
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorInvalidConfiguration ? "invalid configuration"
         : e == cudaErrorLaunchFailure      ? shim::failure.c_str()
         : e                                ? "invalid value: a stream of another device"
                                            : "no error";
}
