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
// b where a < limit, v elsewhere
inline vfloat where_less(vfloat a, vfloat limit, vfloat b, vfloat v) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, limit, _CMP_LT_OQ), v, b);
}
inline float hmin(vfloat v) { return _mm512_reduce_min_ps(v); }
inline float hmax(vfloat v) { return _mm512_reduce_max_ps(v); }

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
inline vfloat where_less(vfloat a, vfloat limit, vfloat b, vfloat v) {
  return _mm256_blendv_ps(v, b, _mm256_cmp_ps(a, limit, _CMP_LT_OQ));
}
inline float hmin(vfloat v) {
  __m128 h = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  h = _mm_min_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_min_ss(h, _mm_movehdup_ps(h)));
}
inline float hmax(vfloat v) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
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
inline vfloat where_less(vfloat a, vfloat limit, vfloat b, vfloat v) { return a < limit ? b : v; }
inline float hmin(vfloat v) {
  const float a = v[0] < v[1] ? v[0] : v[1], b = v[2] < v[3] ? v[2] : v[3];
  return a < b ? a : b;
}
inline float hmax(vfloat v) {
  const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}

#endif

}  // namespace
}  // namespace depthg
