// Reading: points of any type and layout, or a depth map, into structure of arrays. Included by fps_simd.cpp alone.
#pragma once

#include <string.h>

#include "fps_cpu.h"
#include "fps_half.h"

namespace depthg {
namespace {

struct Memory {
  float* source[kMaxDims];   // [points] in input order
  float* slot[kMaxDims];     // [slots] in leaf order; the same arrays when input order is kept
  float* nearest;            // [slots] running minima; -1 in padding
  int32_t* index;            // [slots] input index of a slot, or nullptr: the slot itself
  uint64_t* keys[2];         // [points] sort buffers
  uint32_t* counters;        // [team, kCounters] of the sort
  float* low[kMaxDims];      // [leaves] boxes
  float* high[kMaxDims];
  float* leaf_max;           // [leaves] largest minimum; -1 in padding
  float* ray;                // [width] of a depth map: x of the ray through each column
};

struct Half {
  uint16_t bits;
  operator float() const { return half_to_float(bits); }
};

struct BFloat {
  uint16_t bits;
  operator float() const { return bfloat_to_float(bits); }
};

template <class T>
void read_points(const Clouds& c, const T* data, const Memory& m, int64_t from, int64_t to) {
  if (c.dims == 3 && c.stride[2] == 1 && c.stride[1] == 3) {      // the usual layout, in a form that vectorises
    float *x = m.source[0], *y = m.source[1], *z = m.source[2];
    for (int64_t i = from; i < to; ++i) {
      x[i] = static_cast<float>(data[3 * i]);
      y[i] = static_cast<float>(data[3 * i + 1]);
      z[i] = static_cast<float>(data[3 * i + 2]);
    }
    return;
  }
  for (int64_t d = 0; d < c.dims; ++d) {
    const T* column = data + d * c.stride[2];
    for (int64_t i = from; i < to; ++i) m.source[d][i] = static_cast<float>(column[i * c.stride[1]]);
  }
}

template <class T>
void read_depth(const Clouds& c, const T* data, float focal, const Memory& m, int64_t from, int64_t to) {
  const int64_t height = c.points / c.width;
  for (int64_t row = from / c.width; row * c.width < to; ++row) {
    const int64_t base = row * c.width;
    const int64_t begin = from > base ? from - base : 0, end = to - base < c.width ? to - base : c.width;
    const float across = ray(row, height, focal);
    const T* depth = data + row * c.stride[1];
    float *x = m.source[0] + base, *y = m.source[1] + base, *z = m.source[2] + base;
    for (int64_t i = begin; i < end; ++i) z[i] = static_cast<float>(depth[i * c.stride[2]]);
    for (int64_t i = begin; i < end; ++i) x[i] = m.ray[i] * z[i];
    for (int64_t i = begin; i < end; ++i) y[i] = across * z[i];
  }
}

template <class T>
void read_as(const Clouds& c, int64_t b, const Memory& m, int64_t from, int64_t to) {
  const T* data = static_cast<const T*>(c.data) + b * c.stride[0];
  if (!c.width) return read_points(c, data, m, from, to);
  const float focal = c.focals ? c.focals[b] : c.focal;
  read_depth(c, data, focal, m, from, to);
}

void read(const Clouds& c, int64_t b, const Memory& m, int64_t from, int64_t to) {
  switch (c.dtype) {
    case kFloat32: return read_as<float>(c, b, m, from, to);
    case kFloat64: return read_as<double>(c, b, m, from, to);
    case kFloat16: return read_as<Half>(c, b, m, from, to);
    default: return read_as<BFloat>(c, b, m, from, to);
  }
}

// Index of the first point in [from, to) with a coordinate that is not finite, or -1.
int64_t first_bad(const Memory& m, int64_t dims, int64_t from, int64_t to) {
  uint32_t bad = 0;
  for (int64_t d = 0; d < dims; ++d) {
    const float* v = m.source[d];
    for (int64_t i = from; i < to; ++i) {
      uint32_t bits;
      memcpy(&bits, v + i, 4);
      bad |= (bits & 0x7f800000) == 0x7f800000;
    }
  }
  if (!bad) return -1;
  for (int64_t i = from; i < to; ++i) {
    for (int64_t d = 0; d < dims; ++d) {
      uint32_t bits;
      memcpy(&bits, m.source[d] + i, 4);
      if ((bits & 0x7f800000) == 0x7f800000) return i;
    }
  }
  return -1;
}

}  // namespace
}  // namespace depthg
