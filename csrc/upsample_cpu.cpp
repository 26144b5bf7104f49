// Arg-max of score maps at another size on the CPU: taps, threads and dispatch. The work itself is in upsample_simd.cpp.
#include "upsample_cpu.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "isa.h"
#include "parallel.h"
#include "taps.h"

namespace depthg {
namespace {

constexpr int64_t kAlignment = 16;  // floats
constexpr int64_t kTasks = 4;       // per thread at least, where there are rows enough
constexpr int64_t kWork = 1 << 19;  // scores that are worth one more thread

}  // namespace

void upsample_argmax(const ScoreMaps& s, int threads) {
  static const UpsamplePart run_part = DEPTHG_BEST(UpsamplePart, upsample_part);
  const Axis rows(s.rows, s.height), columns(s.columns, s.width);
  const int64_t height = s.end_row - s.first_row;
  threads = static_cast<int>(std::clamp<int64_t>(threads, 1, 1 + s.maps * height * s.width / kWork));
  const int64_t tiles = (s.width + kTile - 1) / kTile;
  const int64_t bands = threads < 2 ? 1 : std::clamp<int64_t>((kTasks * threads + tiles - 1) / tiles, 1, height);
  threads = static_cast<int>(std::clamp<int64_t>(threads, 1, tiles * bands));
  const int64_t floats = upsample_floats(s);
  const std::unique_ptr<float[]> memory(new float[floats * threads + kAlignment]());  // lanes without a pixel are read too
  float* scratch = memory.get() + (kAlignment - reinterpret_cast<uintptr_t>(memory.get()) / sizeof(float) % kAlignment);
  std::atomic<int64_t> next{0};
  run_parallel(threads, [&](int rank) {
    for (int64_t task; (task = next++) < tiles * bands;) {
      const int64_t band = task / tiles, first = task % tiles * kTile;
      const Part part{s.first_row + band * height / bands, s.first_row + (band + 1) * height / bands, first,
                      std::min(first + kTile, s.width)};
      run_part(s, rows.taps(), columns.taps(), part, scratch + rank * floats);
    }
  });
}

}  // namespace depthg
