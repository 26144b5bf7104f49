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
template <class T> constexpr int kLanesOf = kVectorBytes / sizeof(T);
template <class T> using HalfOf = typename Vectors<T>::Half;

#if defined(__AVX512F__)
inline VecOf<float> multiply_add(VecOf<float> a, VecOf<float> b, VecOf<float> c) {
  return (VecOf<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
inline VecOf<double> multiply_add(VecOf<double> a, VecOf<double> b, VecOf<double> c) {
  return (VecOf<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
inline HalfOf<float> multiply_add(HalfOf<float> a, HalfOf<float> b, HalfOf<float> c) {
  return (HalfOf<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline HalfOf<double> multiply_add(HalfOf<double> a, HalfOf<double> b, HalfOf<double> c) {
  return (HalfOf<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#else
#if defined(__FMA__)
inline VecOf<float> multiply_add(VecOf<float> a, VecOf<float> b, VecOf<float> c) {
  return (VecOf<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline VecOf<double> multiply_add(VecOf<double> a, VecOf<double> b, VecOf<double> c) {
  return (VecOf<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#else
inline VecOf<float> multiply_add(VecOf<float> a, VecOf<float> b, VecOf<float> c) { return a * b + c; }
inline VecOf<double> multiply_add(VecOf<double> a, VecOf<double> b, VecOf<double> c) { return a * b + c; }
#endif
inline HalfOf<float> multiply_add(HalfOf<float> a, HalfOf<float> b, HalfOf<float> c) { return a * b + c; }
inline HalfOf<double> multiply_add(HalfOf<double> a, HalfOf<double> b, HalfOf<double> c) { return a * b + c; }
#endif
template <class T> inline HalfOf<T> first_half(const VecOf<T>& v) {
  HalfOf<T> h;
  memcpy(&h, &v, sizeof h);
  return h;
}
template <class T> inline HalfOf<T> load_half(const T* p) { return *reinterpret_cast<const HalfOf<T>*>(p); }
template <class T> inline void store_half(T* p, HalfOf<T> v) { *reinterpret_cast<HalfOf<T>*>(p) = v; }

constexpr int64_t kDepth = 128;  // of a gradient's contraction, so that B stays in the L1 cache

// C[m][n] += sum_k a[m, k] b[k, n] for MR rows and NV vectors; with HALF also for half a vector more, in `tail`.
template <bool HALF, class T, int MR, int NV>
inline __attribute__((always_inline)) void product(const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t b_k, int64_t depth,
                                                   VecOf<T> (&c)[MR][NV], HalfOf<T> (&tail)[MR]) {
  constexpr int kLanes = kLanesOf<T>;
  for (int64_t k = 0; k < depth; ++k, a += a_k, b += b_k) {
    __builtin_prefetch(a + 16 * a_k);
    __builtin_prefetch(b + 16 * b_k);
    __builtin_prefetch(b + 16 * b_k + 16);
    VecOf<T> row[NV];
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) row[n] = load(b + n * kLanes);
    HalfOf<T> last{};
    if (HALF) last = load_half(b + NV * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const VecOf<T> x = splat(a[m * a_row]);
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) c[m][n] = multiply_add(x, row[n], c[m][n]);
      if (HALF) tail[m] = multiply_add(first_half<T>(x), last, tail[m]);
    }
  }
}

// Adds a b to MR rows of NV vectors of `out`; with HALF the last vector has only its first half.
template <class T, bool HALF, int MR, int NV>
void gradient_tile(const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t b_k, int64_t depth, T* out) {
  constexpr int kFull = NV - HALF, kLanes = kLanesOf<T>;
  VecOf<T> c[MR][kFull];
  HalfOf<T> tail[MR];
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

template <class T> using GradientTile = void (*)(const T*, int64_t, int64_t, const T*, int64_t, int64_t, T*);
#define PAIRS_ROWS(HALF, NV)                                                                                                 \
  {nullptr,                       gradient_tile<T, HALF, 1, NV>, gradient_tile<T, HALF, 2, NV>,  gradient_tile<T, HALF, 3, NV>, \
   gradient_tile<T, HALF, 4, NV>, gradient_tile<T, HALF, 5, NV>, gradient_tile<T, HALF, 6, NV>,  gradient_tile<T, HALF, 7, NV>, \
   gradient_tile<T, HALF, 8, NV>, gradient_tile<T, HALF, 9, NV>, gradient_tile<T, HALF, 10, NV>, gradient_tile<T, HALF, 11, NV>}
template <class T>
constexpr GradientTile<T> kGradients[][12] = {{}, PAIRS_ROWS(false, 1), PAIRS_ROWS(false, 2), PAIRS_ROWS(false, 3)
#if defined(__AVX512F__)
                                                     , PAIRS_ROWS(false, 4), PAIRS_ROWS(false, 5)
#endif
};
#if defined(__AVX512F__)  // where half a vector takes half the time
constexpr bool kHalves = true;
template <class T>
constexpr GradientTile<T> kHalfGradients[][12] = {
    {}, {}, PAIRS_ROWS(true, 2), PAIRS_ROWS(true, 3), PAIRS_ROWS(true, 4), PAIRS_ROWS(true, 5)};
#else
constexpr bool kHalves = false;
template <class T> constexpr const GradientTile<T> (*kHalfGradients)[12] = kGradients<T>;
#endif

// out[m, :] += sum_k a[m, k] b[k, :], rows of b and out `width` floats long, of which the first `used` matter.
template <class T>
void add_product(const T* a, int64_t a_row, int64_t a_k, const T* b, int64_t width, int64_t used, int64_t rows, int64_t depth,
                 T* out) {
  constexpr int kLanes = kLanesOf<T>;
  const int vectors = static_cast<int>(width / kLanes);
  const int chunks = (vectors + kMaxVectors - 1) / kMaxVectors;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t deep = depth - k < kDepth ? depth - k : kDepth;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int first = vectors * chunk / chunks, count = vectors * (chunk + 1) / chunks - first;
      const bool half = kHalves && count > 1 && used <= (first + count) * kLanes - kLanes / 2;
      const GradientTile<T>* tiles = half ? kHalfGradients<T>[count] : kGradients<T>[count];
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
