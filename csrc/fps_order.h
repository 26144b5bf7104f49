// Space order of the points, so that leaves are compact: a counting sort of Morton codes. Included by fps_simd.cpp alone.
#pragma once

#include <string.h>

#include "fps_read.h"
#include "fps_team.h"
#include "fps_vector.h"

namespace depthg {
namespace {

// Large clouds: 2^7 cells an axis, 21 bits in two passes of 11. Small ones: so few cells that counting is cheap.
constexpr int kBits = 7, kDigit = 11, kPasses = 2;
constexpr int64_t kSmall = 4096, kTiny = 1200;  // points below which a cloud is small, and needs 2^3 or 2^2 cells an axis
constexpr int64_t kSortAnyway = 2048;           // points from which sorting pays for rasters too

constexpr int64_t kCounters = 1 << kDigit;

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

// Cells of the points: Morton codes over the first three coordinates.
struct Grid {
  const float* axis[3];
  float low[3], scale[3];

  uint32_t code(int64_t i) const {
    const uint32_t a = static_cast<int32_t>((axis[0][i] - low[0]) * scale[0]);
    const uint32_t b = static_cast<int32_t>((axis[1][i] - low[1]) * scale[1]);
    const uint32_t c = static_cast<int32_t>((axis[2][i] - low[2]) * scale[2]);
    return spread(a & 1023) | spread(b & 1023) << 1 | spread(c & 1023) << 2;
  }
};

Grid make_grid(const Memory& m, int64_t dims, int64_t n, int bits) {
  Grid grid{};
  for (int d = 0; d < 3; ++d) {
    grid.axis[d] = m.source[d < dims ? d : 0];
    if (d >= dims) continue;
    float least, most;
    bound_axis(m.source[d], n, &least, &most);
    const float extent = most - least;
    if (extent > 1e-30f && extent < 1e30f) {  // else the axis says nothing, or its cells would overflow
      grid.low[d] = least;
      grid.scale[d] = static_cast<float>((1 << bits) - 1) / extent;
    }
  }
  return grid;
}

// True when neighbours in the input are about as far from each other as any two points, so that leaves in input order would
// be as large as the cloud. Scan lines and rasters are not like that and need no sorting.
bool scattered(const Memory& m, int64_t dims, int64_t n) {
  const int64_t step = n / 64 + 1, half = n / 2;
  float near = 0, far = 0;
  for (int64_t d = 0; d < dims; ++d) {
    const float* v = m.source[d];
    for (int64_t i = 0; i + half < n && i + 1 < n; i += step) {
      near += __builtin_fabsf(v[i + 1] - v[i]);
      far += __builtin_fabsf(v[i + half] - v[i]);
    }
  }
  return near > 0.5f * far;
}

// Morton codes of the cells of a cube with 2^bits cells an axis, in the order of a Hilbert curve: neighbours in the order are
// neighbours in space, so a run of them is compact. From coordinates to position by Gray codes, level by level (Skilling 2004).
template <int BITS>
struct Curve {
  uint16_t cell[1 << 3 * BITS];

  constexpr Curve() : cell{} {
    for (uint32_t morton = 0; morton < 1u << 3 * BITS; ++morton) {
      uint32_t x[3] = {};
      for (int bit = 0; bit < 3 * BITS; ++bit) x[bit % 3] |= (morton >> bit & 1) << bit / 3;
      for (uint32_t q = 1u << (BITS - 1); q > 1; q >>= 1) {
        const uint32_t below = q - 1;
        for (int d = 0; d < 3; ++d) {
          const uint32_t swap = x[d] & q ? 0 : (x[0] ^ x[d]) & below;
          if (x[d] & q) x[0] ^= below;
          x[0] ^= swap;
          x[d] ^= swap;
        }
      }
      x[1] ^= x[0];
      x[2] ^= x[1];
      uint32_t flip = 0;
      for (uint32_t q = 1u << (BITS - 1); q > 1; q >>= 1) flip ^= x[2] & q ? q - 1 : 0;
      uint32_t position = 0;
      for (int bit = BITS - 1; bit >= 0; --bit) {
        for (int d = 0; d < 3; ++d) position = position << 1 | ((x[d] ^ flip) >> bit & 1);
      }
      cell[position] = static_cast<uint16_t>(morton);
    }
  }
};

// Puts the points of a small cloud into slots, sorted by cell along the curve. `keys` serves as memory for cells.
template <int BITS>
void sort_small(const Memory& m, int64_t dims, int64_t n) {
  static constexpr Curve<BITS> curve;
  const Grid grid = make_grid(m, dims, n, BITS);
  uint32_t* cell = reinterpret_cast<uint32_t*>(m.keys[0]);
  uint32_t place[2][1 << 3 * BITS] = {};  // two counters a cell, so that one increment need not wait for the last
  for (int64_t i = 0; i < n; ++i) cell[i] = grid.code(i);
  for (int64_t i = 0; i + 1 < n; i += 2) {
    ++place[0][cell[i]];
    ++place[1][cell[i + 1]];
  }
  if (n & 1) ++place[0][cell[n - 1]];
  uint32_t total = 0;
  for (const uint16_t at : curve.cell) {
    for (auto& counters : place) {
      const uint32_t here = counters[at];
      counters[at] = total;
      total += here;
    }
  }
  float *x = m.slot[0], *y = m.slot[dims > 1 ? 1 : 0], *z = m.slot[dims > 2 ? 2 : 0];
  const float *from_x = m.source[0], *from_y = m.source[dims > 1 ? 1 : 0], *from_z = m.source[dims > 2 ? 2 : 0];
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t slot = place[i & 1][cell[i]]++;
    m.index[slot] = static_cast<int32_t>(i);
    x[slot] = from_x[i];
    y[slot] = from_y[i];
    z[slot] = from_z[i];
  }
  for (int64_t d = 3; d < dims; ++d) {
    for (int64_t i = 0; i < n; ++i) m.slot[d][i] = m.source[d][m.index[i]];
  }
}

// Sort keys of points [from, to): code << 32 | index.
void make_keys(const Memory& m, int64_t dims, int64_t n, int64_t from, int64_t to) {
  const Grid grid = make_grid(m, dims, n, kBits);
  uint64_t* keys = m.keys[0];
  for (int64_t i = from; i < to; ++i) keys[i] = static_cast<uint64_t>(grid.code(i)) << 32 | static_cast<uint32_t>(i);
}

// Sorts the keys of all workers' parts [from, to) together; the result is complete when the call returns.
const uint64_t* sort_keys(const Memory& m, int64_t from, int64_t to, Team* team, int rank) {
  const int64_t cells = kCounters;
  const uint64_t mask = cells - 1;
  uint32_t* mine = m.counters + rank * kCounters;
  uint32_t place[kCounters];
  uint64_t *source = m.keys[0], *target = m.keys[1];
  for (int pass = 0; pass < kPasses; ++pass) {
    const int shift = 32 + pass * kDigit;
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
