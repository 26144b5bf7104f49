// What sum_maps_cpu.cpp (taps, threads, dispatch) and sum_maps_simd.cpp (one copy per instruction set) share.
#pragma once

#include <stdint.h>

#include "upsample_cpu.h"

namespace depthg {

// One map of one image, and one row of the result.
struct MapRow {
  int64_t rows, columns, channels, dim, width;
  const float* vectors;  // [rows, columns, channels], or null
  const float* values;   // [rows, columns, dim]
  int64_t cell;  // taps of the row
  float lower, upper;
  Taps taps;  // of the columns
  float* out;  // [width, dim], added to
};

// Floats that the longest row needs.
inline int64_t map_row_floats(int64_t columns, int64_t channels, int64_t dim) { return columns * (channels + dim + 2); }

using AddMapRow = void (*)(const MapRow&, float* scratch);
void add_map_row_baseline(const MapRow&, float*);
void add_map_row_avx2(const MapRow&, float*);
void add_map_row_avx512(const MapRow&, float*);

}  // namespace depthg
