// What fps_cpu.cpp (threads, memory, dispatch) and fps_simd.cpp (one copy per instruction set) share.
#pragma once

#include "fps.h"

namespace depthg {

constexpr int64_t kLeaf = 64;       // slots in a leaf of all but large clouds
constexpr int64_t kSlotAlign = 16;  // slots are padded to whole AVX-512 vectors in every build

// How a cloud is cut: slots (points in sorted or input order) in leaves of `leaf` slots, dealt round to `team` workers.
struct CloudPlan {
  int64_t points;   // upper limit of the cloud's size
  int64_t dims;
  int64_t leaf;     // slots in a leaf, a multiple of kSlotAlign
  bool sorted;      // slots may be in space order; else they are in input order
  int team;         // workers in one cloud
  int ways;         // clouds that one worker samples side by side
};

// Result and turn of one worker for one pick, on its own cache line.
struct alignas(64) Post {
  uint32_t turn;
  float value;
  int32_t index;
};

// Workers on one cloud. `posts` is [2][team].
struct Team {
  int size;
  Post* posts;
  alignas(64) uint32_t arrived;
  alignas(64) uint32_t generation;
  int64_t bad;      // lowest index of a point that is not finite, or -1
};

std::size_t cloud_bytes(const CloudPlan& plan);

constexpr int kMaxWays = 4;   // clouds that one worker samples in step, when they are small
constexpr int kWaysDims = 3;  // maximum dimensions for this path

// Samples `count` <= plan.ways clouds from `b` on as worker `rank` of `team`. Returns cloud * points + index of a point that is
// not finite, or -1. `scratch` holds count * cloud_bytes(plan).
using SampleClouds = int64_t (*)(const Clouds& clouds, int64_t b, int count, const CloudPlan& plan, char* scratch, Team* team,
                                 int rank);
int64_t sample_clouds_baseline(const Clouds&, int64_t, int, const CloudPlan&, char*, Team*, int);
int64_t sample_clouds_avx2(const Clouds&, int64_t, int, const CloudPlan&, char*, Team*, int);
int64_t sample_clouds_avx512(const Clouds&, int64_t, int, const CloudPlan&, char*, Team*, int);

// Runs vector operations on registers; returns how many float operations they were. `sink` is 64-byte aligned,
// kSinkFloats long.
constexpr int64_t kSinkFloats = 14 * kSlotAlign;
int64_t vector_operations_baseline(int64_t rounds, float* sink);
int64_t vector_operations_avx2(int64_t rounds, float* sink);
int64_t vector_operations_avx512(int64_t rounds, float* sink);

}  // namespace depthg
