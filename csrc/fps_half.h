// Conversions that the CPU and the CUDA code share, so that both see the same points.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FPS_BOTH __host__ __device__ inline
#else
#define FPS_BOTH inline
#endif

namespace depthg {
namespace {

FPS_BOTH float float_of(uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

FPS_BOTH float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, magnitude = h & 0x7fff;
  if (magnitude < 0x0400) {  // zero or subnormal: magnitude * 2^-24, exact
    const float f = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign ? -f : f;
  }
  const uint32_t exponent = magnitude >= 0x7c00 ? 0x7f800000 : 0x38000000;  // infinity and NaN, or the moved bias
  return float_of(sign | (magnitude >= 0x7c00 ? exponent | magnitude << 13 : exponent + (magnitude << 13)));
}

FPS_BOTH float bfloat_to_float(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

// x / z of the ray through the centre of cell `i` out of `size` (the same for y and rows), focal length in cells.
FPS_BOTH float ray(int64_t i, int64_t size, float focal) {
  return ((static_cast<float>(i) + 0.5f) - static_cast<float>(size) / 2) / focal;
}

}  // namespace
}  // namespace depthg
