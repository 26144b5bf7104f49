// What fps_cpu.cpp (threads, memory, dispatch) and fps_simd.cpp (one copy per instruction set) share.
#pragma once

#include "fps.h"

namespace depthg {

constexpr int64_t kSlotAlign = 16;  // slots are padded to whole AVX-512 vectors in every build

// How a cloud is cut: slots (points in sorted or input order) in leaves of `leaf` slots, dealt round to `team` workers.
struct Plan {
  int64_t points;   // upper limit of the cloud's size
  int64_t dims;
  int64_t leaf;     // slots in a leaf, a multiple of kSlotAlign
  bool sorted;      // slots in space order; else in input order
  bool pruned;      // skip leaves whose box says that no minimum can change
  int team;         // workers in one cloud
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

std::size_t cloud_bytes(const Plan& plan);

// Samples cloud `b` as worker `rank` of `team`; returns the index of the first point that is not finite, or -1.
using SampleCloud = int64_t (*)(const Clouds& clouds, int64_t b, const Plan& plan, char* scratch, Team* team, int rank);
int64_t sample_cloud_baseline(const Clouds&, int64_t, const Plan&, char*, Team*, int);
int64_t sample_cloud_avx2(const Clouds&, int64_t, const Plan&, char*, Team*, int);
int64_t sample_cloud_avx512(const Clouds&, int64_t, const Plan&, char*, Team*, int);

}  // namespace depthg
