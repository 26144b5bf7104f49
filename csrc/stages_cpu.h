// What stages_cpu.cpp (taps, threads, dispatch) and stages_simd.cpp (one copy per instruction set) share.
#pragma once

#include <stdint.h>

#include "upsample_cpu.h"

namespace depthg {

// One stage of one image, and one row of the result.
struct StageRow {
  int64_t rows, columns, channels, dim, width;
  const float* vectors;  // [rows, columns, channels], or null
  const float* values;   // [rows, columns, dim]
  int64_t cell;  // taps of the row
  float lower, upper;
  Taps taps;  // of the columns
  float* out;  // [width, dim], added to
};

// Floats that the longest row needs.
inline int64_t stage_floats(int64_t columns, int64_t channels, int64_t dim) { return columns * (channels + dim + 2); }

using AddStageRow = void (*)(const StageRow&, float* scratch);
void add_stage_row_baseline(const StageRow&, float*);
void add_stage_row_avx2(const StageRow&, float*);
void add_stage_row_avx512(const StageRow&, float*);

}  // namespace depthg
