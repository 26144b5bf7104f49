// Farthest point sampling on the CPU: arguments, memory and threads. The work itself is in fps_simd.cpp.
#include "fps_cpu.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "thread_pool.h"

namespace depthg {
namespace {

struct Isa {
  const char* name;
  SampleCloud sample;
};

Isa pick_isa() {
#if defined(FPS_X86)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return {"avx512", sample_cloud_avx512};
  }
  if (__builtin_cpu_supports("avx2")) return {"avx2", sample_cloud_avx2};
#endif
  return {"baseline", sample_cloud_baseline};
}

const Isa& isa() {
  static const Isa chosen = pick_isa();
  return chosen;
}

// Sizes below are measured: see bench/fps.py.
constexpr int64_t kSortFrom = 4096;         // points from which sorting pays
constexpr int64_t kPointsPerWorker = 8192;  // points that a further worker in one cloud must have

Plan make_plan(const Clouds& c, int threads) {
  Plan plan{c.points, c.dims, 64, c.points >= kSortFrom, c.points >= kSortFrom, 1};
  if (c.batch > 0 && c.batch < threads) plan.team = static_cast<int>(std::clamp<int64_t>(c.points / kPointsPerWorker, 1, threads / c.batch));
  return plan;
}

// Clouds at work at the same time.
int teams(const Clouds& c, const Plan& plan, int threads) {
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

std::size_t fps_cpu_scratch_bytes(const Clouds& c, int threads) {
  const Plan plan = make_plan(c, threads);
  return 64 + teams(c, plan, threads) * cloud_bytes(plan);
}

void fps_cpu(const Clouds& c, void* scratch, int threads) {
  check(c);
  if (c.batch == 0) return;
  const Plan plan = make_plan(c, threads);
  const int count = teams(c, plan, threads);
  const std::size_t bytes = cloud_bytes(plan);
  char* memory = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch) + 63) / 64 * 64);

  std::vector<Post> posts(static_cast<std::size_t>(count) * 2 * plan.team);
  std::vector<Team> members(count);
  for (int t = 0; t < count; ++t) members[t] = {plan.team, posts.data() + t * 2 * plan.team, 0, 0, -1};

  // Workers on their own take the next cloud when they are free; a team stays together, so its clouds are fixed.
  std::atomic<int64_t> next{0}, bad{-1};
  const auto work = [&](int rank) {
    const int t = rank / plan.team;
    int64_t b = plan.team == 1 ? next.fetch_add(1) : t;
    while (b < c.batch && members[t].bad < 0) {
      const int64_t i = isa().sample(c, b, plan, memory + t * bytes, &members[t], rank % plan.team);
      if (i >= 0) bad.store(b * c.points + i);
      b = plan.team == 1 ? next.fetch_add(1) : b + count;
    }
  };
  if (!run_together(count * plan.team, work)) return fps_cpu(c, scratch, 1);
  if (bad.load() >= 0) refuse(c, bad.load() / c.points, bad.load() % c.points);
}

}  // namespace depthg
