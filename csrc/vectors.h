// Vectors of floats for the instruction set that a *_simd.cpp file is compiled for. The unnamed namespace keeps each copy to
// itself.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace depthg {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(kLanes * 4), aligned(4)));  // unaligned loads and stores

inline Vec splat(float x) { return x - Vec{}; }
inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

}  // namespace
}  // namespace depthg
