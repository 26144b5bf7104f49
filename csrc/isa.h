// Which copy of the code of a *_simd.cpp file runs.
#pragma once

#include <cstdlib>
#include <cstring>

namespace depthg {

// Whether this machine has an instruction set of setup.py ("avx2", "avx512"); the environment variable DEPTHG_ISA rules out all
// but the one that it names (for tests).
inline bool may_use(const char* isa) {
#if defined(FPS_X86)
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
