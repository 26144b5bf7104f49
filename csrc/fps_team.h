// Workers that share one cloud: they wait for each other. Included by fps_simd.cpp alone.
#pragma once

#include <sched.h>

#include "fps_cpu.h"

namespace depthg {
namespace {

// Spins, then gives the core away: with more workers than cores a pure spin would never end in reasonable time.
struct Patience {
  int spins = 0;
  void wait() {
    if (++spins < 256) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      sched_yield();
    }
  }
};

void barrier(Team* team) {
  if (team->size == 1) return;
  const uint32_t generation = __atomic_load_n(&team->generation, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == static_cast<uint32_t>(team->size)) {
    __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&team->generation, generation + 1, __ATOMIC_RELEASE);
    return;
  }
  for (Patience p; __atomic_load_n(&team->generation, __ATOMIC_ACQUIRE) == generation;) p.wait();
}

}  // namespace
}  // namespace depthg
