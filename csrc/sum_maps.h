// Sum of maps of several sizes, each up-sampled and divided by the length of other vectors, up-sampled alike (the levels of
// a hypercolumn):
//
//   out[n, y, x] = sum_s  up(values_s)[n, y, x] / |up(vectors_s)[n, y, x]|
//
// with bilinear interpolation without aligned corners. A vector of length 0 counts as 0. Neither up(values_s) nor
// up(vectors_s) is held: the length along a row follows from the inner products of neighbours,
// |a u + b v|^2 = a^2 |u|^2 + 2 a b <u, v> + b^2 |v|^2, or where these nearly cancel from a u + b v itself.
#pragma once

#include <stdint.h>

#include <vector>

namespace depthg {

struct SummedMap {  // contiguous, channels last
  int64_t rows = 0, columns = 0, channels = 0;
  const float* vectors = nullptr;  // [images, rows, columns, channels], or null: nothing is divided
  const float* values = nullptr;   // [images, rows, columns, dim]
};

struct SumOfMaps {
  std::vector<SummedMap> maps;
  int64_t images = 0, height = 0, width = 0, dim = 0;
  float* out = nullptr;  // [images, height, width, dim]
};

void sum_maps(const SumOfMaps& s, int threads);

}  // namespace depthg
