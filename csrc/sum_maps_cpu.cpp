// Sum of up-sampled maps on the CPU: taps, threads and dispatch. The work itself is in sum_maps_simd.cpp.
#include "sum_maps_cpu.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "sum_maps.h"
#include "taps.h"

namespace depthg {
namespace {

constexpr int64_t kWork = 1 << 17;  // values that are worth one more thread

}  // namespace

void sum_maps(const SumOfMaps& s, int threads) {
  static const AddMapRow add_row = DEPTHG_BEST(AddMapRow, add_map_row);
  std::vector<Axis> rows, columns;
  int64_t floats = 0;
  for (const SummedMap& map : s.maps) {
    rows.emplace_back(map.rows, s.height);
    columns.emplace_back(map.columns, s.width);
    floats = std::max(floats, map_row_floats(map.columns, map.channels, s.dim));
  }
  const int64_t total = s.images * s.height;
  if (!total) return;
  threads = static_cast<int>(std::clamp<int64_t>(threads, 1, std::min(total, 1 + total * s.width * s.dim / kWork)));
  std::vector<float> scratch(floats * threads);
  std::atomic<int64_t> next{0};
  run_parallel(threads, [&](int rank) {
    for (int64_t row; (row = next++) < total;) {
      const int64_t image = row / s.height, y = row % s.height;
      float* out = s.out + row * s.width * s.dim;
      memset(out, 0, s.width * s.dim * sizeof(float));
      for (size_t i = 0; i < s.maps.size(); ++i) {
        const SummedMap& map = s.maps[i];
        const Taps taps = rows[i].taps();
        const int64_t cells = image * map.rows * map.columns;
        add_row({map.rows, map.columns, map.channels, s.dim, s.width,
                 map.vectors ? map.vectors + cells * map.channels : nullptr, map.values + cells * s.dim, taps.cell[y],
                 taps.lower[y], taps.upper[y], columns[i].taps(), out},
                scratch.data() + rank * floats);
      }
    }
  });
}

}  // namespace depthg
