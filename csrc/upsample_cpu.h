// What upsample_cpu.cpp (taps, threads, dispatch) and upsample_simd.cpp (one copy per instruction set) share.
#pragma once

#include "upsample.h"

namespace depthg {

constexpr int64_t kTile = 64;   // columns that are done together: both rows of all maps stay in the L1 cache
constexpr int64_t kSpare = 16;  // floats behind a tile and behind the shares that vectors may read and write

// The lower of the two cells that every pixel of an axis lies between, and the shares of both.
struct Taps {
  const int64_t* cell;
  const float *lower, *upper;
};

struct Part {  // of the result
  int64_t first_row, end_row, first_column, end_column;  // at most kTile columns
};

// Floats that one part needs, aligned to 64 bytes: two rows of all maps, and three lists of maps.
inline int64_t upsample_floats(const ScoreMaps& s) { return 2 * s.maps * (kTile + kSpare) + (3 * s.maps + 15) / 16 * 16; }

using UpsamplePart = void (*)(const ScoreMaps&, const Taps& rows, const Taps& columns, const Part&, float* scratch);
void upsample_part_baseline(const ScoreMaps&, const Taps&, const Taps&, const Part&, float*);
void upsample_part_avx2(const ScoreMaps&, const Taps&, const Taps&, const Part&, float*);
void upsample_part_avx512(const ScoreMaps&, const Taps&, const Taps&, const Part&, float*);

}  // namespace depthg
