// Running top-k of the rows and the columns of a tile of similarities.
#pragma once

#include <stdint.h>

namespace depthg {

// Lists [n, k] hold the best values so far and their indices: best first, equal values by index. An empty place holds -inf and
// INT32_MAX. Images of one photo are never paired. NaN is never taken.
struct KnnTile {
  int64_t rows = 0, columns = 0, k = 0;
  int32_t first_row = 0, first_column = 0;  // indices of the tile's first row and column among all images
  const float* similarity = nullptr;        // [rows, columns]
  const int32_t *photo_row = nullptr, *photo_column = nullptr;
  float *row_values = nullptr, *column_values = nullptr;  // [rows, k], [columns, k]; the columns' may be null
  int32_t *row_ids = nullptr, *column_ids = nullptr;
};

// The result does not depend on the number of threads: each list belongs to one thread.
void knn_tile(const KnnTile& tile, int threads);

}  // namespace depthg
