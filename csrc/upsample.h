// Arg-max over score maps at the size of a photo, without the up-sampled scores.
//
//   ids[y, x] = argmax_m  sum_{i,j in {0,1}} wy_i wx_j scores[m, y0 + i, x0 + j]
//
// with the taps of bilinear interpolation without aligned corners, at any size, up or down. Ties go to the lowest m. NaN
// exceeds every number, and the first NaN wins, as in torch.argmax.
//
// Results do not depend on the number of threads, nor on the instruction set: products and sums are rounded one by one.
#pragma once

#include <stdint.h>

namespace depthg {

struct ScoreMaps {
  int64_t maps = 0, rows = 0, columns = 0;                          // each at least 1
  int64_t stride_map = 0, stride_row = 0, stride_column = 0;        // in elements
  const float* scores = nullptr;
  int64_t height = 0, width = 0;
  int64_t first_row = 0, end_row = 0;  // of the result that are computed; no other rows of scores and ids are touched
  void* ids = nullptr;  // [height, width], contiguous: uint8, or uint16 for more than 255 maps
};

void upsample_argmax(const ScoreMaps& s, int threads);

}  // namespace depthg
