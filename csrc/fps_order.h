// Space order of the points, so that leaves are compact: a counting sort of Morton codes. Included by fps_simd.cpp alone.
#pragma once

#include <string.h>

#include "fps_read.h"
#include "fps_team.h"
#include "fps_vector.h"

namespace depthg {
namespace {

// Cells per axis are 2^bits; the sort takes `digit` of the 3 * bits bits in each pass.
struct Radix {
  int bits, digit, passes;
};

// Few points need few cells: then the counters are cheaper than the points.
Radix radix_for(int64_t points) {
  if (points < 4096) return {3, 9, 1};
  return {7, 11, 2};
}

constexpr int64_t kCounters = 1 << 11;

// Every third bit of 30, from 10 bits.
inline uint32_t spread(uint32_t v) {
  v = (v | v << 16) & 0x030000ff;
  v = (v | v << 8) & 0x0300f00f;
  v = (v | v << 4) & 0x030c30c3;
  return (v | v << 2) & 0x09249249;
}

void bound_axis(const float* v, int64_t n, float* least, float* most) {
  vfloat low = splat(v[0]), high = low;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    low = vmin(low, load(v + i));
    high = vmax(high, load(v + i));
  }
  *least = hmin(low);
  *most = hmax(high);
  for (; i < n; ++i) {
    *least = v[i] < *least ? v[i] : *least;
    *most = v[i] > *most ? v[i] : *most;
  }
}

// Morton codes over the first three coordinates, for points [from, to): code << 32 | index.
void make_keys(const Memory& m, int64_t dims, int64_t n, int bits, int64_t from, int64_t to) {
  float low[3] = {0, 0, 0}, scale[3] = {0, 0, 0};
  const int used = dims < 3 ? static_cast<int>(dims) : 3;
  for (int d = 0; d < used; ++d) {
    float least, most;
    bound_axis(m.source[d], n, &least, &most);
    const float extent = most - least;
    if (extent > 1e-30f && extent < 1e30f) {  // else the axis says nothing, or its cells would overflow
      low[d] = least;
      scale[d] = static_cast<float>((1 << bits) - 1) / extent;
    }
  }
  const float *x = m.source[0], *y = m.source[used > 1 ? 1 : 0], *z = m.source[used > 2 ? 2 : 0];
  uint64_t* keys = m.keys[0];
  for (int64_t i = from; i < to; ++i) {
    const uint32_t a = static_cast<int32_t>((x[i] - low[0]) * scale[0]);
    const uint32_t b = static_cast<int32_t>((y[i] - low[1]) * scale[1]);
    const uint32_t c = static_cast<int32_t>((z[i] - low[2]) * scale[2]);
    const uint32_t code = spread(a & 1023) | spread(b & 1023) << 1 | spread(c & 1023) << 2;
    keys[i] = static_cast<uint64_t>(code) << 32 | static_cast<uint32_t>(i);
  }
}

// Sorts the keys of all workers' parts [from, to) together; the result, in m.keys[result], is complete after the last
// barrier. `m.counters` is [team, kCounters].
const uint64_t* sort_keys(const Memory& m, const Radix& radix, int64_t from, int64_t to, Team* team, int rank) {
  const int64_t cells = int64_t{1} << radix.digit;
  const uint64_t mask = cells - 1;
  uint32_t* mine = m.counters + rank * kCounters;
  uint32_t place[kCounters];
  uint64_t *source = m.keys[0], *target = m.keys[1];
  for (int pass = 0; pass < radix.passes; ++pass) {
    const int shift = 32 + pass * radix.digit;
    memset(mine, 0, cells * sizeof *mine);
    for (int64_t i = from; i < to; ++i) ++mine[source[i] >> shift & mask];
    barrier(team);
    uint32_t total = 0;
    for (int64_t cell = 0; cell < cells; ++cell) {
      for (int r = 0; r < rank; ++r) total += m.counters[r * kCounters + cell];
      place[cell] = total;
      total += mine[cell];
      for (int r = rank + 1; r < team->size; ++r) total += m.counters[r * kCounters + cell];
    }
    for (int64_t i = from; i < to; ++i) target[place[source[i] >> shift & mask]++] = source[i];
    barrier(team);
    uint64_t* swap = source;
    source = target;
    target = swap;
  }
  return source;
}

}  // namespace
}  // namespace depthg
