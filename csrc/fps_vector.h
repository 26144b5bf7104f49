// The few vector operations that FPS needs, for the instruction set this file is compiled for.
// min and max follow the machine instruction for numbers; NaN never reaches them.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace depthg {
namespace {

#if defined(__AVX512F__)

constexpr int64_t kLanes = 16;
using vfloat = __m512;
inline vfloat load(const float* p) { return _mm512_load_ps(p); }
inline void store(float* p, vfloat v) { _mm512_store_ps(p, v); }
inline vfloat splat(float x) { return _mm512_set1_ps(x); }
inline vfloat vmin(vfloat a, vfloat b) { return _mm512_min_ps(a, b); }
inline vfloat vmax(vfloat a, vfloat b) { return _mm512_max_ps(a, b); }
inline uint32_t lanes_less(vfloat a, vfloat b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline uint32_t lanes_equal(vfloat a, vfloat b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline float hmin(vfloat v) { return _mm512_reduce_min_ps(v); }
// The largest lane, in every lane.
inline vfloat vhmax(vfloat v) {
  v = vmax(v, _mm512_shuffle_f32x4(v, v, 0x4e));
  v = vmax(v, _mm512_shuffle_f32x4(v, v, 0xb1));
  v = vmax(v, _mm512_permute_ps(v, 0x4e));
  return vmax(v, _mm512_permute_ps(v, 0xb1));
}
inline vfloat set_lane(vfloat v, int lane, vfloat x) { return _mm512_mask_mov_ps(v, static_cast<__mmask16>(1u << lane), x); }

#elif defined(__AVX2__)

constexpr int64_t kLanes = 8;
using vfloat = __m256;
inline vfloat load(const float* p) { return _mm256_load_ps(p); }
inline void store(float* p, vfloat v) { _mm256_store_ps(p, v); }
inline vfloat splat(float x) { return _mm256_set1_ps(x); }
inline vfloat vmin(vfloat a, vfloat b) { return _mm256_min_ps(a, b); }
inline vfloat vmax(vfloat a, vfloat b) { return _mm256_max_ps(a, b); }
inline uint32_t lanes_less(vfloat a, vfloat b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline uint32_t lanes_equal(vfloat a, vfloat b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
inline float hmin(vfloat v) {
  __m128 h = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  h = _mm_min_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_min_ss(h, _mm_movehdup_ps(h)));
}
inline vfloat vhmax(vfloat v) {
  v = vmax(v, _mm256_permute2f128_ps(v, v, 1));
  v = vmax(v, _mm256_permute_ps(v, 0x4e));
  return vmax(v, _mm256_permute_ps(v, 0xb1));
}
inline vfloat set_lane(vfloat v, int lane, vfloat x) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_blendv_ps(v, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(lanes, _mm256_set1_epi32(lane))));
}

#else  // four lanes in the compiler's own vectors: SSE2, NEON, or scalar code

constexpr int64_t kLanes = 4;
typedef float vfloat __attribute__((vector_size(16)));
inline vfloat load(const float* p) {
  vfloat v;
  memcpy(&v, __builtin_assume_aligned(p, 16), sizeof v);
  return v;
}
inline void store(float* p, vfloat v) { memcpy(__builtin_assume_aligned(p, 16), &v, sizeof v); }
inline vfloat splat(float x) { return vfloat{x, x, x, x}; }
inline vfloat vmin(vfloat a, vfloat b) { return a < b ? a : b; }
inline vfloat vmax(vfloat a, vfloat b) { return a > b ? a : b; }
inline uint32_t lanes_less(vfloat a, vfloat b) {
#if defined(__x86_64__)
  return _mm_movemask_ps(_mm_cmplt_ps(a, b));
#else
  return (a[0] < b[0]) | (a[1] < b[1]) << 1 | (a[2] < b[2]) << 2 | (a[3] < b[3]) << 3;
#endif
}
inline uint32_t lanes_equal(vfloat a, vfloat b) {
#if defined(__x86_64__)
  return _mm_movemask_ps(_mm_cmpeq_ps(a, b));
#else
  return (a[0] == b[0]) | (a[1] == b[1]) << 1 | (a[2] == b[2]) << 2 | (a[3] == b[3]) << 3;
#endif
}
inline float hmin(vfloat v) {
  const float a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
  return a < b ? a : b;
}
inline vfloat vhmax(vfloat v) {
  const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return splat(a > b ? a : b);
}
inline vfloat set_lane(vfloat v, int lane, vfloat x) {
  v[lane] = x[0];
  return v;
}

#endif

inline float first(vfloat v) {
  float x;
  memcpy(&x, &v, sizeof x);
  return x;
}
inline float hmax(vfloat v) { return first(vhmax(v)); }

}  // namespace
}  // namespace depthg
