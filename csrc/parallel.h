// Work shared among threads: the OpenMP threads that the process already has, else those of thread_pool.h.
#pragma once

#include <dlfcn.h>

#include <atomic>

#include "thread_pool.h"

namespace depthg {

// The OpenMP runtime that the process already has (torch loads one), or null. Its idle workers spin for milliseconds after
// every parallel region, so further threads would share the cores with them.
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
inline Parallel openmp() {
  static const auto found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

// Runs work(rank) on up to `threads` threads with distinct ranks below `threads`; fewer may come, so work is taken from a
// common counter.
template <class Function>
void run_parallel(int threads, const Function& work) {
  if (threads < 2) return work(0);
  if (openmp()) {
    struct Shared {
      const Function* work;
      std::atomic<int> rank{0};
    } shared;
    shared.work = &work;
    const auto enter = [](void* data) {
      auto* s = static_cast<Shared*>(data);
      (*s->work)(s->rank++);
    };
    openmp()(enter, &shared, static_cast<unsigned>(threads), 0);
  } else if (!run_together(threads, work)) {
    work(0);  // the pool is busy
  }
}

}  // namespace depthg
