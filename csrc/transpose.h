// Four by four numbers transposed.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace depthg {

// out[n][m] = x[m][n] * scale[m], rows `stride` and `out_stride` numbers apart.
template <class T> inline void transpose4(const T* x, int64_t stride, const T* scale, T* out, int64_t out_stride) {
  for (int m = 0; m < 4; ++m) {
    for (int n = 0; n < 4; ++n) out[n * out_stride + m] = x[m * stride + n] * scale[m];
  }
}

#if defined(__x86_64__)
template <>
inline void transpose4(const float* x, int64_t stride, const float* scale, float* out, int64_t out_stride) {
  __m128 row[4];
  for (int m = 0; m < 4; ++m) row[m] = _mm_mul_ps(_mm_loadu_ps(x + m * stride), _mm_set1_ps(scale[m]));
  _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
  for (int n = 0; n < 4; ++n) _mm_storeu_ps(out + n * out_stride, row[n]);
}
#endif

}  // namespace depthg
