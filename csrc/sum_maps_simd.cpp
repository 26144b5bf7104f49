// One row of one up-sampled map, see sum_maps.h. Compiled once per instruction set, chosen at run time.
//
// This file uses no standard library templates: copies compiled for AVX-512 must not be merged into code for other machines.
#include <math.h>
#include <string.h>

#include "isa_name.h"
#include "sum_maps_cpu.h"
#include "vectors.h"

namespace depthg {
namespace {

constexpr float kCancelled = 1e-2f;  // share of the squares below which the products leave too few digits

// out = a u + b v, or out += a u + b v
template <bool ADD>
inline void mix(float a, const float* u, float b, const float* v, int64_t count, float* out) {
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) {
    const Vec mixed = a * load(u + n) + b * load(v + n);
    store(out + n, ADD ? load(out + n) + mixed : mixed);
  }
  for (; n < count; ++n) out[n] = (ADD ? out[n] : 0.0f) + (a * u[n] + b * v[n]);
}

inline void add_scaled(float a, const float* u, int64_t count, float* out) {
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) store(out + n, load(out + n) + a * load(u + n));
  for (; n < count; ++n) out[n] += a * u[n];
}

inline float dot(const float* u, const float* v, int64_t count) {
  Vec one{}, two{};
  int64_t n = 0;
  for (; n + 2 * kLanes <= count; n += 2 * kLanes) {
    one += load(u + n) * load(v + n);
    two += load(u + n + kLanes) * load(v + n + kLanes);
  }
  one += two;
  float lanes[kLanes], sum = 0;
  memcpy(lanes, &one, sizeof lanes);
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  for (; n < count; ++n) sum += u[n] * v[n];
  return sum;
}

// |a u + b v|^2, term by term
inline float squared_length(float a, const float* u, float b, const float* v, int64_t count) {
  Vec lanes{};
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) {
    const Vec mixed = a * load(u + n) + b * load(v + n);
    lanes += mixed * mixed;
  }
  float each[kLanes], sum = 0;
  memcpy(each, &lanes, sizeof each);
  for (int i = 0; i < kLanes; ++i) sum += each[i];
  for (; n < count; ++n) sum += (a * u[n] + b * v[n]) * (a * u[n] + b * v[n]);
  return sum;
}

// A row of cells between two others; in place where it is one of them.
const float* row_between(const MapRow& r, const float* cells, int64_t channels, float* scratch) {
  const int64_t row = r.columns * channels, next = r.cell + 1 < r.rows ? r.cell + 1 : r.cell;
  if (r.upper == 0 || next == r.cell) return cells + r.cell * row;
  mix<false>(r.lower, cells + r.cell * row, r.upper, cells + next * row, row, scratch);
  return scratch;
}

}  // namespace

void DEPTHG_FOR_ISA(add_map_row)(const MapRow& r, float* scratch) {
  float *squares = scratch, *products = squares + r.columns;  // <u, u> of each cell of the row, <u, v> with the next one
  float* rest = products + r.columns;
  const float* values = row_between(r, r.values, r.dim, rest);
  const float* vectors = nullptr;
  if (r.vectors) {
    vectors = row_between(r, r.vectors, r.channels, rest + r.columns * r.dim);
    for (int64_t c = 0; c < r.columns; ++c) {
      const float* u = vectors + c * r.channels;
      squares[c] = dot(u, u, r.channels);
      if (r.columns != r.width && c + 1 < r.columns) products[c] = dot(u, u + r.channels, r.channels);
    }
  }
  for (int64_t x = 0; x < r.width; ++x) {
    const int64_t cell = r.taps.cell[x], next = cell + 1 < r.columns ? cell + 1 : cell;
    const bool one = r.taps.upper[x] == 0 || next == cell;
    const float a = one ? 1.0f : r.taps.lower[x], b = one ? 0.0f : r.taps.upper[x];
    float scale = 1;
    if (r.vectors) {
      float square = a * a * squares[cell];
      if (!one) {
        const float apart = square + b * b * squares[next];
        square = apart + 2 * a * b * products[cell];
        if (square < kCancelled * apart) {
          square = squared_length(a, vectors + cell * r.channels, b, vectors + next * r.channels, r.channels);
        }
      }
      scale = square > 0 ? 1 / sqrtf(square) : 0.0f;
    }
    float* out = r.out + x * r.dim;
    if (one) {
      add_scaled(scale * a, values + cell * r.dim, r.dim, out);
    } else {
      mix<true>(scale * a, values + cell * r.dim, scale * b, values + next * r.dim, r.dim, out);
    }
  }
}

}  // namespace depthg
