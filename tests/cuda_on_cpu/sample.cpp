// The CUDA code of farthest point sampling as a library for a CPU: what tests/kernels/test_fps_cuda_on_cpu.py loads.
#include <cuda_runtime.h>

#include "fps_cuda.cu"

namespace {

constexpr int kBarriers = __COUNTER__;  // numbered from 0
std::string message;

}  // namespace

extern "C" {

int barriers() { return kBarriers; }

// Barrier `site` of the source does nothing from now on (-1: all work); random choices start from `seed`.
void plant(int site, unsigned seed) {
  shim::skipped = site;
  shim::draw.seed(seed);
}

void set_context(int context) { shim::context = context; }
int context() { return shim::context; }

// Launches, of clusters, cooperative ones, and memsets since the last call.
void counts(long* out) {
  long* all[] = {&shim::launches, &shim::clusters, &shim::cooperative, &shim::memsets};
  for (int n = 0; n < 4; ++n) {
    out[n] = *all[n];
    *all[n] = 0;
  }
}

long scratch_bytes(const depthg::Clouds* c, int device) { return static_cast<long>(depthg::fps_cuda_scratch_bytes(*c, device)); }

// The error, or nullptr. The stream is one of `stream_device`.
const char* sample(const depthg::Clouds* c, void* scratch, int device, int stream_device) {
  shim::failure.clear();
  shim::posts.clear();
  try {
    depthg::fps_cuda(*c, scratch, device, reinterpret_cast<void*>(static_cast<std::uintptr_t>(stream_device + 1)));
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
}
