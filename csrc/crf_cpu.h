// What crf_cpu.cpp (order of the work, threads) and crf_simd.cpp (one copy per instruction set) share.
#pragma once

#include <stdint.h>

#include "crf_lattice.h"

namespace depthg {

constexpr int kCrfWidth = 16;  // channels that are filtered together: a cache line; the last ones of a call may be 8
constexpr int kCrfTile = 32;   // pixels whose softmax is computed together

// A block of `width` channels (1, 8 or 16), point after point: `pixels` [pixels, width] and `vertices` [vertices, width].
struct SplatPart {
  const int32_t* start;
  const Splat* splats;
  const float* pixels;
  float* vertices;
};
using CrfSplat = void (*)(const SplatPart&, int width, int64_t first_vertex, int64_t end_vertex);

// In place; `chain` begins and ends with a run.
using CrfBlur = void (*)(const int32_t* chain, int64_t count, int width, float* vertices);

struct SlicePart {  // one kernel
  const int32_t* vertex;
  const float* share;
  const float* vertices;
  int corners;
  float weight;
};
using CrfSlice = void (*)(const SlicePart* parts, int count, int width, float* pixels, int64_t first_pixel, int64_t end_pixel);

// Splats all pixels in their order, by one thread: the same sums as CrfSplat, faster, into vertices that are 0 before.
using CrfScatter = void (*)(const SlicePart& s, int width, const float* pixels, int64_t count, float* vertices);

struct CrfChannels {  // of one image
  int64_t pixels;
  int blocks;
  const int* widths;             // [blocks]
  float* const* blocks_of;       // [blocks] of [pixels, width]: messages in, marginals out
  int channels;                  // of all terms; those beyond are 0
  int terms;
  const int* end;                // [terms], where the channels of a term end
  const float* const* unary;     // [channels] of [pixels]
  float* const* marginals;       // [terms] of [classes, pixels] or null; read in the last iteration only
  int16_t* const* ids;           // [terms] of [pixels] or null
  bool messages, last;           // whether there are messages yet, and whether results are written instead of blocks
};
// `scratch` holds kCrfTile floats per channel, rounded up to whole blocks.
using CrfUpdate = void (*)(const CrfChannels&, int64_t first_pixel, int64_t end_pixel, float* scratch);

#define DEPTHG_CRF(isa)                                                              \
  void crf_splat_##isa(const SplatPart&, int, int64_t, int64_t);                     \
  void crf_scatter_##isa(const SlicePart&, int, const float*, int64_t, float*);      \
  void crf_blur_##isa(const int32_t*, int64_t, int, float*);                         \
  void crf_slice_##isa(const SlicePart*, int, int, float*, int64_t, int64_t);        \
  void crf_update_##isa(const CrfChannels&, int64_t, int64_t, float*);
DEPTHG_CRF(baseline)
DEPTHG_CRF(avx2)
DEPTHG_CRF(avx512)
#undef DEPTHG_CRF

}  // namespace depthg
