// How the clouds of a call are dealt to the blocks of a device. Included by fps_cuda.cu alone.
#pragma once

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "fps_blocks.h"

namespace depthg {
namespace {

void require(cudaError_t status) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("farthest point sampling on CUDA: ") + cudaGetErrorString(status));
}

// ---- the device -------------------------------------------------------------------------------------------------------

// Functions of the driver, found at run time: the module also loads without a driver.
struct Driver {
  using Context = struct CUctx_st*;
  int (*current)(Context*);    // cuCtxGetCurrent
  int (*make_current)(Context);  // cuCtxSetCurrent

  template <class F>
  static void find(const char* name, F* function) {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    require(cudaGetDriverEntryPointByVersion(name, &address, 4000, cudaEnableDefault, &found));
#else
    require(cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &found));
#endif
    if (found != cudaDriverEntryPointSuccess) throw std::runtime_error(std::string("the CUDA driver has no ") + name);
    *function = reinterpret_cast<F>(address);
  }
  Driver() {
    find("cuCtxGetCurrent", &current);
    find("cuCtxSetCurrent", &make_current);
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

// Launches go to `device` while an object of this class lives. torch uses another copy of the CUDA runtime and relies on the
// thread's current context. So the destructor restores the context that the driver reported before.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    if (driver().current(&before_)) throw std::runtime_error("the CUDA driver does not tell the current context");
    require(cudaSetDevice(device));
  }
  ~OnDevice() { driver().make_current(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  Driver::Context before_ = nullptr;
};

constexpr int kSizes = 4;  // of clusters: 2, 4, 8 and 16 blocks

// What kernels may use on a device.
struct Machine {
  int processors;        // multiprocessors
  int shared;            // bytes of shared memory that a block may have
  int clusters[kSizes];  // of 2 << n blocks that run at the same time, or 0
};

// One launch: blocks that form clusters, or that all run at the same time, or neither.
struct Launch {
  int64_t grid;
  int threads;
  std::size_t shared;
  int cluster = 1;
  bool cooperative = false;
  cudaStream_t stream = nullptr;

  cudaLaunchConfig_t config(cudaLaunchAttribute* attribute) const {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(grid));
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attribute;
    config.numAttrs = cluster > 1 || cooperative;
    if (cluster > 1) {
      attribute->id = cudaLaunchAttributeClusterDimension;
      attribute->val.clusterDim.x = cluster;
      attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
    } else if (cooperative) {
      attribute->id = cudaLaunchAttributeCooperative;
      attribute->val.cooperative = 1;
    }
    return config;
  }
};

// The kernels' permission to use what the device has, and how many clusters fit.
template <int D>
Machine ask(int device) {
  Machine m{};
  require(cudaDeviceGetAttribute(&m.processors, cudaDevAttrMultiProcessorCount, device));
  require(cudaDeviceGetAttribute(&m.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  require(cudaFuncSetAttribute(sample_grid<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, m.shared));
  require(cudaFuncSetAttribute(sample_cluster<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, m.shared));
  int major = 0;
  require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  cudaFuncAttributes code{};
  require(cudaFuncGetAttributes(&code, sample_cluster<D>));
  if (major < 9 || code.ptxVersion < 90) return m;  // PTX of compute_80 may run on a newer device, without clusters
  require(cudaFuncSetAttribute(sample_cluster<D>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  for (int n = 0; n < kSizes; ++n) {
    cudaLaunchAttribute attribute;
    const int blocks = 2 << n;
    const Launch one{blocks, kBlockThreads, static_cast<std::size_t>(m.shared), blocks};
    const cudaLaunchConfig_t config = one.config(&attribute);
    if (cudaOccupancyMaxActiveClusters(&m.clusters[n], sample_cluster<D>, &config) != cudaSuccess) {
      m.clusters[n] = 0;  // a size that this device does not have
      cudaGetLastError();
    }
  }
  return m;
}

template <int D>
const Machine& machine(int device) {
  static std::mutex mutex;
  static std::map<int, Machine> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto at = known.find(device);
  return at != known.end() ? at->second : known.emplace(device, ask<D>(device)).first->second;
}

// ---- the choice -------------------------------------------------------------------------------------------------------

struct LaunchPlan {
  bool cluster;
  int blocks;       // that share a cloud
  int64_t teams;    // clouds at the same time, of a grid; all of them, of clusters
  int held, beyond;
  double cycles;    // predicted, of one pick of all clouds
};

// Cycles of a pick by counts of instructions and published latencies (fps_blocks.h), not measured.
double cycles_of(const LaunchPlan& p, int64_t dims) {
  const double meeting = p.blocks == 1 ? 350 : p.cluster ? 735 : 1200;
  const double point = static_cast<double>(dims <= 3 ? 13 : 28) / 128;  // instructions of four schedulers for 32 points each
  return meeting + point * p.held + 0.5 * p.beyond;
}

template <int D>
LaunchPlan plan_for(const Clouds& c, const Machine& m, bool cluster, int blocks, int64_t at_once) {
  const int64_t part = (c.points - 1) / blocks + 1;
  const int64_t fit = (m.shared - static_cast<int64_t>(sizeof(BlockMemory<D>))) / (D * static_cast<int>(sizeof(float)));
  int64_t held = (part + kBlockThreads - 1) / kBlockThreads;
  const int most = cluster ? kHeldInCluster<D> : kHeldInGrid<D>;
  if (held > most) held = most;
  if (held > fit / kBlockThreads) held = fit / kBlockThreads;
  held *= kBlockThreads;
  const int64_t teams = at_once < c.batch ? at_once : c.batch, beyond = part > held ? part - held : 0;
  LaunchPlan p{cluster, blocks, teams, static_cast<int>(held), static_cast<int>(beyond), 0};
  const int64_t turns = (c.batch - 1) / at_once + 1;
  p.cycles = static_cast<double>(turns) * cycles_of(p, c.dims);
  if (cluster) p.teams = c.batch;
  return p;
}

// The fastest of one block, a cluster and a grid, with each number of blocks, by the prediction.
template <int D>
LaunchPlan make_plan(const Clouds& c, const Machine& m) {
  LaunchPlan best = plan_for<D>(c, m, false, 1, m.processors);
  const auto consider = [&](const LaunchPlan& other) {
    if (other.cycles < best.cycles) best = other;
  };
  for (int n = 0; n < kSizes; ++n) {
    if (m.clusters[n] == 0) continue;
    const LaunchPlan p = plan_for<D>(c, m, true, 2 << n, m.clusters[n]);
    if (p.beyond == 0) consider(p);
  }
  for (int blocks = 2; blocks <= m.processors && blocks <= kMaxGrid; blocks *= 2) {
    consider(plan_for<D>(c, m, false, blocks, m.processors / blocks));
  }
  return best;
}

}  // namespace
}  // namespace depthg
