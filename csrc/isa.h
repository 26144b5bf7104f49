// Which copy of the code of a *_simd.cpp file runs.
#pragma once

#include <cstdlib>
#include <cstring>

namespace depthg {

// True if this machine has an instruction set of setup.py ("avx2", "avx512"). The environment variable DEPTHG_ISA (baseline,
// avx2 or avx512) rules out every set but the one that it names; tests use it.
inline bool may_use(const char* isa) {
#if defined(DEPTHG_X86)
  const char* wanted = std::getenv("DEPTHG_ISA");
  if (wanted && std::strcmp(wanted, isa)) return false;
  if (!__builtin_cpu_supports("fma")) return false;
  if (!std::strcmp(isa, "avx2")) return __builtin_cpu_supports("avx2");
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
#else
  static_cast<void>(isa);
  return false;
#endif
}

}  // namespace depthg

// The best copy for this machine of a function that a *_simd.cpp file defines with DEPTHG_FOR_ISA(name).
#if defined(DEPTHG_X86)
#define DEPTHG_BEST(Type, name)                               \
  (may_use("avx512") ? static_cast<Type>(name##_avx512)       \
                     : may_use("avx2") ? static_cast<Type>(name##_avx2) : static_cast<Type>(name##_baseline))
#else
#define DEPTHG_BEST(Type, name) static_cast<Type>(name##_baseline)
#endif
