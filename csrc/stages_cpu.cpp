// Sum of up-sampled stages on the CPU: taps, threads and dispatch. The work itself is in stages_simd.cpp.
#include "stages_cpu.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "stages.h"
#include "taps.h"

namespace depthg {
namespace {

constexpr int64_t kWork = 1 << 17;  // values that are worth one more thread

AddStageRow pick() {
#if defined(FPS_X86)
  if (may_use("avx512")) return add_stage_row_avx512;
  if (may_use("avx2")) return add_stage_row_avx2;
#endif
  return add_stage_row_baseline;
}

}  // namespace

void sum_stages(const Stages& s, int threads) {
  static const AddStageRow add_row = pick();
  std::vector<Axis> rows, columns;
  int64_t floats = 0;
  for (const Stage& stage : s.stages) {
    rows.emplace_back(stage.rows, s.height);
    columns.emplace_back(stage.columns, s.width);
    floats = std::max(floats, stage_floats(stage.columns, stage.channels, s.dim));
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
      for (size_t i = 0; i < s.stages.size(); ++i) {
        const Stage& stage = s.stages[i];
        const Taps taps = rows[i].taps();
        const int64_t cells = image * stage.rows * stage.columns;
        add_row({stage.rows, stage.columns, stage.channels, s.dim, s.width,
                 stage.vectors ? stage.vectors + cells * stage.channels : nullptr, stage.values + cells * s.dim, taps.cell[y],
                 taps.lower[y], taps.upper[y], columns[i].taps(), out},
                scratch.data() + rank * floats);
      }
    }
  });
}

}  // namespace depthg
