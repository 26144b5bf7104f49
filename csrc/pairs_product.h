// One register tile of the pair pass, C[MR][NV vectors] = sum_k A[m, k] B[k, n] with A read by broadcast at any strides, and the
// products of the gradients that are made of it. Included once per instruction set by pairs_simd.cpp, and by nothing else: the
// unnamed namespace keeps each copy to itself.
#pragma once

#include <string.h>

#include "pairs_cpu.h"
#include "vectors.h"

namespace depthg {
namespace {

#if defined(__AVX512F__)
constexpr int kMaxVectors = 5;
constexpr int kRows[kMaxVectors + 1] = {0, 11, 11, 8, 6, 5};  // rows of a tile of n vectors: 32 registers
#elif defined(__AVX2__)
constexpr int kMaxVectors = 3;
constexpr int kRows[kMaxVectors + 1] = {0, 8, 6, 4};
#else
constexpr int kMaxVectors = 3;
constexpr int kRows[kMaxVectors + 1] = {0, 8, 6, 4};
#endif
typedef float HalfVec __attribute__((vector_size(kLanes * 2), aligned(4)));
typedef int Mask __attribute__((vector_size(kLanes * 4)));

inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
inline HalfVec multiply_add(HalfVec a, HalfVec b, HalfVec c) {
#if defined(__AVX512F__)
  return (HalfVec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
inline HalfVec first_half(Vec v) {
  HalfVec h;
  memcpy(&h, &v, sizeof h);
  return h;
}
inline HalfVec load_half(const float* p) { return *reinterpret_cast<const HalfVec*>(p); }
inline void store_half(float* p, HalfVec v) { *reinterpret_cast<HalfVec*>(p) = v; }

constexpr int64_t kDepth = 128;  // of a gradient's contraction, so that B stays in the L1 cache

// C[m][n] += sum_k a[m, k] b[k, n] for MR rows and NV vectors; with HALF also for half a vector more, in `tail`.
template <bool HALF, int MR, int NV>
inline __attribute__((always_inline)) void product(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k,
                                                   int64_t depth, Vec (&c)[MR][NV], HalfVec (&tail)[MR]) {
  for (int64_t k = 0; k < depth; ++k, a += a_k, b += b_k) {
    __builtin_prefetch(a + 16 * a_k);
    __builtin_prefetch(b + 16 * b_k);
    __builtin_prefetch(b + 16 * b_k + 16);
    Vec row[NV];
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) row[n] = load(b + n * kLanes);
    HalfVec last{};
    if (HALF) last = load_half(b + NV * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const Vec x = splat(a[m * a_row]);
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) c[m][n] = multiply_add(x, row[n], c[m][n]);
      if (HALF) tail[m] = multiply_add(first_half(x), last, tail[m]);
    }
  }
}

// Adds a b to MR rows of NV vectors of `out`; with HALF the last vector has only its first half.
template <bool HALF, int MR, int NV>
void gradient_tile(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_k, int64_t depth, float* out) {
  constexpr int kFull = NV - HALF;
  Vec c[MR][kFull];
  HalfVec tail[MR];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kFull; ++n) c[m][n] = load(out + m * b_k + n * kLanes);
    if (HALF) tail[m] = load_half(out + m * b_k + kFull * kLanes);
  }
  product<HALF>(a, a_row, a_k, b, b_k, depth, c, tail);
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < kFull; ++n) store(out + m * b_k + n * kLanes, c[m][n]);
    if (HALF) store_half(out + m * b_k + kFull * kLanes, tail[m]);
  }
}

using GradientTile = void (*)(const float*, int64_t, int64_t, const float*, int64_t, int64_t, float*);
#define PAIRS_ROWS(HALF, NV)                                                                                        \
  {nullptr,                     gradient_tile<HALF, 1, NV>, gradient_tile<HALF, 2, NV>,  gradient_tile<HALF, 3, NV>, \
   gradient_tile<HALF, 4, NV>, gradient_tile<HALF, 5, NV>, gradient_tile<HALF, 6, NV>,  gradient_tile<HALF, 7, NV>, \
   gradient_tile<HALF, 8, NV>, gradient_tile<HALF, 9, NV>, gradient_tile<HALF, 10, NV>, gradient_tile<HALF, 11, NV>}
constexpr GradientTile kGradients[][12] = {{}, PAIRS_ROWS(false, 1), PAIRS_ROWS(false, 2), PAIRS_ROWS(false, 3)
#if defined(__AVX512F__)
                                               , PAIRS_ROWS(false, 4), PAIRS_ROWS(false, 5)
#endif
};
#if defined(__AVX512F__)  // where half a vector takes half the time
constexpr bool kHalves = true;
constexpr GradientTile kHalfGradients[][12] = {
    {}, {}, PAIRS_ROWS(true, 2), PAIRS_ROWS(true, 3), PAIRS_ROWS(true, 4), PAIRS_ROWS(true, 5)};
#else
constexpr bool kHalves = false;
constexpr const GradientTile (*kHalfGradients)[12] = kGradients;
#endif

// out[m, :] += sum_k a[m, k] b[k, :], rows of b and out `width` floats long, of which the first `used` matter.
void add_product(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t width, int64_t used, int64_t rows,
                 int64_t depth, float* out) {
  const int vectors = static_cast<int>(width / kLanes);
  const int chunks = (vectors + kMaxVectors - 1) / kMaxVectors;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t deep = depth - k < kDepth ? depth - k : kDepth;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int first = vectors * chunk / chunks, count = vectors * (chunk + 1) / chunks - first;
      const bool half = kHalves && count > 1 && used <= (first + count) * kLanes - kLanes / 2;
      const GradientTile* tiles = half ? kHalfGradients[count] : kGradients[count];
      const int64_t groups = (rows + kRows[count] - 1) / kRows[count];
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t m = rows * group / groups, high = rows * (group + 1) / groups - m;
        tiles[high](a + m * a_row + k * a_k, a_row, a_k, b + k * width + first * kLanes, width, deep,
                    out + m * width + first * kLanes);
      }
    }
  }
}

}  // namespace
}  // namespace depthg
