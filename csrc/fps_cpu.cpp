// Farthest point sampling on the CPU: arguments, memory and threads. The work itself is in fps_simd.cpp.
#include "fps_cpu.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "thread_pool.h"

namespace depthg {
namespace {

struct Isa {
  const char* name;
  SampleClouds sample;
  int64_t (*vector_operations)(int64_t, float*);
};

Isa pick_isa() {
#if defined(DEPTHG_X86)
  if (may_use("avx512")) return {"avx512", sample_clouds_avx512, vector_operations_avx512};
  if (may_use("avx2")) return {"avx2", sample_clouds_avx2, vector_operations_avx2};
#endif
  return {"baseline", sample_clouds_baseline, vector_operations_baseline};
}

const Isa& isa() {
  static const Isa chosen = pick_isa();
  return chosen;
}

// Measured on a Xeon with AVX-512. Sorting costs as much as some tens of picks and makes most leaves skippable; a depth map
// in raster order needs no sorting until it is larger.
constexpr int64_t kSortPoints = 600, kSortCells = 2048, kSortPicks = 64;
constexpr int64_t kLargeLeaf = 128, kLargeLeafFrom = 50000;
constexpr int64_t kPointsPerWorker = 32768;  // Minimum points per extra worker on one cloud; workers synchronise after every pick.

CloudPlan make_plan(const Clouds& c, int threads) {
  CloudPlan plan;
  plan.points = c.points;
  plan.dims = c.dims;
  plan.leaf = c.points < kLargeLeafFrom ? kLeaf : kLargeLeaf;
  plan.sorted = c.points >= (c.width ? kSortCells : kSortPoints) && c.k >= kSortPicks;
  const int64_t leaves = (c.points + kLeaf - 1) / kLeaf;
  plan.ways = leaves > 32 || c.dims > kWaysDims || c.batch <= threads ? 1 : leaves > 64 / kMaxWays ? 2 : kMaxWays;
  plan.team = 1;
  if (plan.sorted && c.batch > 0 && c.batch < threads) {
    plan.team = static_cast<int>(std::clamp<int64_t>(c.points / kPointsPerWorker, 1, threads / c.batch));
  }
  return plan;
}

// Clouds at work at the same time.
int teams(const Clouds& c, const CloudPlan& plan, int threads) {
  return static_cast<int>(std::clamp<int64_t>(threads / plan.team, 1, std::max<int64_t>(c.batch, 1)));
}

void check(const Clouds& c) {
  for (int64_t b = 0; b < c.batch; ++b) {
    const std::string at = "[" + std::to_string(b) + "]";
    const int64_t length = c.lengths ? c.lengths[b] : c.points;
    if (length < 1 || length > c.points) {
      throw std::invalid_argument("lengths" + at + " = " + std::to_string(length) + ", expected 1 to N = " + std::to_string(c.points));
    }
    if (c.k > length) {
      throw std::invalid_argument("k = " + std::to_string(c.k) + " is more than the " + std::to_string(length) + " points of cloud " +
                                  std::to_string(b) + "; pass a smaller k or drop that cloud");
    }
    const int64_t start = c.starts ? c.starts[b] : c.start;
    if (start < 0 || start >= length) {
      throw std::invalid_argument("start" + (c.starts ? at : std::string()) + " = " + std::to_string(start) + " is outside cloud " +
                                  std::to_string(b) + ", which has " + std::to_string(length) + " points");
    }
  }
}

[[noreturn]] void refuse(const Clouds& c, int64_t b, int64_t i) {
  const std::string cloud = std::to_string(b);
  if (c.width) {
    throw std::invalid_argument("depth[" + cloud + ", " + std::to_string(i / c.width) + ", " + std::to_string(i % c.width) +
                                "] is NaN or infinite, or becomes so when unprojected; fill holes and clip the sky before sampling");
  }
  throw std::invalid_argument("points[" + cloud + ", " + std::to_string(i) +
                              "] is NaN or infinite in float32; remove such points or leave them out with `lengths`");
}

}  // namespace

const char* fps_cpu_isa() { return isa().name; }

int64_t cpu_vector_operations(int64_t rounds) {
  alignas(64) float sink[kSinkFloats];
  for (float& x : sink) x = 0.5f;
  return isa().vector_operations(rounds, sink);
}

std::size_t fps_cpu_scratch_bytes(const Clouds& c, int threads) {
  const CloudPlan plan = make_plan(c, threads);
  return 64 + teams(c, plan, threads) * plan.ways * cloud_bytes(plan);
}

void fps_cpu(const Clouds& c, void* scratch, int threads) {
  check(c);
  if (c.batch == 0) return;
  const CloudPlan plan = make_plan(c, threads);
  const int count = teams(c, plan, threads);
  const std::size_t bytes = plan.ways * cloud_bytes(plan);
  char* memory = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);

  std::vector<Post> posts(static_cast<std::size_t>(count) * 2 * plan.team);
  std::vector<Team> members(count);
  for (int t = 0; t < count; ++t) members[t] = {plan.team, posts.data() + t * 2 * plan.team, 0, 0, -1};

  // Single workers take the next clouds when they are free, fewer at a time towards the end so that they end together. The
  // clouds of a team are fixed.
  std::atomic<int64_t> next{0}, bad{-1};
  const auto take = [&](int64_t* b) {
    int64_t taken;
    *b = next.load();
    do {
      const int64_t left = std::max<int64_t>(c.batch - *b, 0);
      taken = std::min<int64_t>(left, left > 2 * count * plan.ways ? plan.ways : std::min(plan.ways, 2));
    } while (!next.compare_exchange_weak(*b, *b + taken));
    return static_cast<int>(taken);
  };
  const auto work = [&](int rank) {
    const int t = rank / plan.team;
    for (int64_t b = t;; b += count) {
      const int clouds = plan.team == 1 ? take(&b) : b < c.batch;
      if (clouds == 0 || members[t].bad >= 0) return;
      const int64_t at = isa().sample(c, b, clouds, plan, memory + t * bytes, &members[t], rank % plan.team);
      if (at >= 0) bad.store(at);
    }
  };
  const Join join = plan.team == 1 ? Join::kIfAwake : Join::kAll;
  if (!run_together(count * plan.team, work, join)) return fps_cpu(c, scratch, 1);
  if (bad.load() >= 0) refuse(c, bad.load() / c.points, bad.load() % c.points);
}

}  // namespace depthg
