// Splatting, blurring and slicing of blocks of channels, and the softmax of their sums, see crf.h. Compiled once per instruction
// set, chosen at run time.
//
// A point has its channels side by side, so everything but the softmax is a sum of whole rows, and a row of 16 channels is one
// cache line. A vertex gathers from its pixels, in their order, and a run of neighbours is blurred in place. The softmax turns
// the rows of 16 pixels into columns and back.
//
// This file uses no standard library templates: copies compiled for AVX-512 must not be merged into code for other machines.
#include <float.h>
#include <math.h>
#include <string.h>

#include "crf_cpu.h"
#include "isa_name.h"
#include "vectors.h"

namespace depthg {
namespace {

constexpr int64_t kAhead = 24;  // rows between a prefetch and its use

template <int WIDTH> struct RowOf {
  static constexpr int kPart = WIDTH < kLanes ? WIDTH : kLanes, kParts = WIDTH / kPart;
  typedef float Part __attribute__((vector_size(kPart * 4), aligned(4)));
  Part part[kParts];

  static RowOf zero() {
    RowOf r;
    for (int i = 0; i < kParts; ++i) r.part[i] = Part{};
    return r;
  }
  static RowOf at(const float* p) {
    RowOf r;
    for (int i = 0; i < kParts; ++i) r.part[i] = *reinterpret_cast<const Part*>(p + i * kPart);
    return r;
  }
  void to(float* p) const {
    for (int i = 0; i < kParts; ++i) *reinterpret_cast<Part*>(p + i * kPart) = part[i];
  }
  void add(float share, const RowOf& x) {
    for (int i = 0; i < kParts; ++i) part[i] += share * x.part[i];
  }
  // The row where `mask` is -1, zeros where it is 0.
  RowOf where(int mask) const {
    typedef int Bits __attribute__((vector_size(kPart * 4)));
    RowOf r;
    for (int i = 0; i < kParts; ++i) r.part[i] = (Part)((Bits)part[i] & (mask - Bits{}));
    return r;
  }
};

// Lists mark what comes last by its sign. Lengths of lists and runs cannot be predicted, so there is no branch on them.
inline int64_t plain(int32_t x) { return x ^ (x >> 31); }

template <int WIDTH>
void splat(const SplatPart& s, int64_t first, int64_t end) {
  using Row = RowOf<WIDTH>;
  const int64_t begin = s.start[first], stop = s.start[end];
  float* to = s.vertices + first * WIDTH;
  Row sum = Row::zero();
  for (int64_t n = begin; n < stop; ++n) {
    __builtin_prefetch(s.pixels + plain(s.splats[n + kAhead < stop ? n + kAhead : n].pixel) * WIDTH);
    const int more = ~(s.splats[n].pixel >> 31);  // -1 or 0
    sum.add(s.splats[n].share, Row::at(s.pixels + plain(s.splats[n].pixel) * WIDTH));
    sum.to(to);
    sum = sum.where(more);
    to += (1 + more) * WIDTH;
  }
}

template <int WIDTH, int CORNERS>
void scatter(const SlicePart& s, const float* pixels, int64_t count, float* vertices) {
  using Row = RowOf<WIDTH>;
  for (int64_t pixel = 0; pixel < count; ++pixel) {
    const Row row = Row::at(pixels + pixel * WIDTH);
#pragma GCC unroll 6
    for (int k = 0; k < CORNERS; ++k) {
      float* const at = vertices + s.vertex[pixel * CORNERS + k] * static_cast<int64_t>(WIDTH);
      Row sum = Row::at(at);
      sum.add(s.share[pixel * CORNERS + k], row);
      sum.to(at);
    }
  }
}

template <int WIDTH>
void scatter_all(const SlicePart& s, const float* pixels, int64_t count, float* vertices) {
  (s.corners == 6 ? scatter<WIDTH, 6> : scatter<WIDTH, 3>)(s, pixels, count, vertices);
}

template <int WIDTH>
void blur(const int32_t* chain, int64_t count, float* vertices) {
  using Row = RowOf<WIDTH>;
  Row before = Row::zero(), now = Row::at(vertices + plain(chain[0]) * WIDTH);
  for (int64_t n = 0; n < count; ++n) {
    __builtin_prefetch(vertices + plain(chain[n + kAhead < count ? n + kAhead : n]) * WIDTH);
    const int more = ~(chain[n] >> 31);
    const Row next = Row::at(vertices + plain(chain[n + 1 < count ? n + 1 : n]) * WIDTH), after = next.where(more);
    Row sum;
    for (int i = 0; i < Row::kParts; ++i) sum.part[i] = now.part[i] + 0.5f * (before.part[i] + after.part[i]);
    sum.to(vertices + plain(chain[n]) * WIDTH);
    before = now.where(more);
    now = next;
  }
}

template <int WIDTH, int CORNERS>
inline RowOf<WIDTH> interpolate(const SlicePart& s, int64_t pixel) {
  RowOf<WIDTH> sum = RowOf<WIDTH>::zero();
#pragma GCC unroll 6
  for (int k = 0; k < CORNERS; ++k) {
    const int64_t vertex = s.vertex[pixel * CORNERS + k];
    sum.add(s.share[pixel * CORNERS + k], RowOf<WIDTH>::at(s.vertices + vertex * WIDTH));
  }
  return sum;
}

template <int WIDTH>
void slice(const SlicePart* parts, int count, float* pixels, int64_t first, int64_t end) {
  using Row = RowOf<WIDTH>;
  for (int64_t pixel = first; pixel < end; ++pixel) {
    Row sum = Row::zero();
    for (int i = 0; i < count; ++i) {
      sum.add(parts[i].weight, parts[i].corners == 6 ? interpolate<WIDTH, 6>(parts[i], pixel)
                                                     : interpolate<WIDTH, 3>(parts[i], pixel));
    }
    sum.to(pixels + pixel * WIDTH);
  }
}

// e^x for x <= 0, as in pairs_exp.h but without fused products, so that every instruction set rounds alike.
inline Vec exponential(Vec x) {
  typedef Vectors<float>::Bits Bits;
  typedef Vectors<float>::Mask Mask;
  constexpr float kRound = 0x1.8p23f, kLn2 = 0x1.62e4p-1f, kLn2Rest = 0x1.7f7d1cf7p-20f;
  const Vec shifted = x * splat(0x1.71547652b82fep+0f) + splat(kRound);  // n in its last bits
  const Vec n = shifted - splat(kRound);
  const Vec r = (x - n * splat(kLn2)) - n * splat(kLn2Rest);
  Vec sum = splat(1.0f / 5040);
  sum = sum * r + splat(1.0f / 720);
  sum = sum * r + splat(1.0f / 120);
  sum = sum * r + splat(1.0f / 24);
  sum = sum * r + splat(1.0f / 6);
  sum = sum * r + splat(0.5f);
  sum = sum * r + splat(1.0f);
  sum = sum * r + splat(1.0f);
  const Bits power = ((Bits)shifted << 23) + (127u << 23);  // 2^n
  const Mask below = x < -87.33654f;
  return (Vec)((Mask)(sum * (Vec)power) & ~below);
}

inline Vec larger_of(Vec a, Vec b) { return a > b ? a : b; }

// Four by four numbers: rows `from` apart become columns `to` apart.
inline void transpose(const float* in, int64_t from, float* out, int64_t to) {
#if defined(__x86_64__)
  __m128 a = _mm_loadu_ps(in), b = _mm_loadu_ps(in + from), c = _mm_loadu_ps(in + 2 * from), d = _mm_loadu_ps(in + 3 * from);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(out, a);
  _mm_storeu_ps(out + to, b);
  _mm_storeu_ps(out + 2 * to, c);
  _mm_storeu_ps(out + 3 * to, d);
#else
  for (int m = 0; m < 4; ++m) {
    for (int n = 0; n < 4; ++n) out[n * to + m] = in[m * from + n];
  }
#endif
}

void to_columns(const float* rows, int width, float* columns) {
  for (int c = 0; c < width; c += 4) {
    for (int n = 0; n < kCrfTile; n += 4) transpose(rows + n * width + c, width, columns + c * kCrfTile + n, kCrfTile);
  }
}

void to_rows(const float* columns, int width, float* rows) {
  for (int n = 0; n < kCrfTile; n += 4) {
    for (int c = 0; c < width; c += 4) transpose(columns + c * kCrfTile + n, kCrfTile, rows + n * width + c, width);
  }
}

// The softmax of messages - unary over the channels of one term, in place; `room` holds a column of the unary term.
inline void softmax(const CrfChannels& s, int begin, int end, int64_t pixel, int64_t count, float* columns) {
  for (int n = 0; n < kCrfTile; n += kLanes) {
    Vec most = splat(-FLT_MAX);
    for (int c = begin; c < end; ++c) {
      float part[kCrfTile] = {};
      const float* unary = s.unary[c] + pixel;
      if (count < kCrfTile) {
        memcpy(part, unary, count * sizeof(float));
        unary = part;
      }
      float* const at = columns + c * kCrfTile + n;
      const Vec energy = (s.messages ? load(at) : Vec{}) - load(unary + n);
      store(at, energy);
      most = larger_of(energy, most);
    }
    Vec sum = Vec{};
    for (int c = begin; c < end; ++c) {
      float* const at = columns + c * kCrfTile + n;
      const Vec e = exponential(load(at) - most);
      store(at, e);
      sum += e;
    }
    const Vec scale = 1.0f / sum;
    for (int c = begin; c < end; ++c) {
      float* const at = columns + c * kCrfTile + n;
      store(at, load(at) * scale);
    }
  }
}

void write(const CrfChannels& s, int term, int begin, int end, int64_t pixel, int64_t count, const float* columns) {
  if (s.marginals[term]) {
    for (int c = begin; c < end; ++c) {
      float* const out = s.marginals[term] + (c - begin) * s.pixels + pixel;
      if (count < kCrfTile) {
        memcpy(out, columns + c * kCrfTile, count * sizeof(float));
      } else {
        memcpy(out, columns + c * kCrfTile, kCrfTile * sizeof(float));
      }
    }
  }
  if (s.ids[term]) {
    for (int64_t n = 0; n < count; ++n) {
      int best = begin;
      for (int c = begin + 1; c < end; ++c) {
        if (columns[c * kCrfTile + n] > columns[best * kCrfTile + n]) best = c;
      }
      s.ids[term][pixel + n] = static_cast<int16_t>(best - begin);
    }
  }
}

}  // namespace

void DEPTHG_FOR_ISA(crf_splat)(const SplatPart& s, int width, int64_t first, int64_t end) {
  (width == 16 ? splat<16> : width == 8 ? splat<8> : splat<1>)(s, first, end);
}

void DEPTHG_FOR_ISA(crf_scatter)(const SlicePart& s, int width, const float* pixels, int64_t count, float* vertices) {
  (width == 16 ? scatter_all<16> : width == 8 ? scatter_all<8> : scatter_all<1>)(s, pixels, count, vertices);
}

void DEPTHG_FOR_ISA(crf_blur)(const int32_t* chain, int64_t count, int width, float* vertices) {
  (width == 16 ? blur<16> : width == 8 ? blur<8> : blur<1>)(chain, count, vertices);
}

void DEPTHG_FOR_ISA(crf_slice)(const SlicePart* parts, int count, int width, float* pixels, int64_t first, int64_t end) {
  (width == 16 ? slice<16> : width == 8 ? slice<8> : slice<1>)(parts, count, pixels, first, end);
}

void DEPTHG_FOR_ISA(crf_update)(const CrfChannels& s, int64_t first, int64_t stop, float* scratch) {
  float rows[kCrfTile * kCrfWidth];
  for (int64_t pixel = first; pixel < stop; pixel += kCrfTile) {
    const int64_t count = stop - pixel < kCrfTile ? stop - pixel : kCrfTile;
    float* columns = scratch;
    for (int b = 0; b < s.blocks; ++b) {
      const int width = s.widths[b];
      const float* from = s.blocks_of[b] + pixel * width;
      if (s.messages && count < kCrfTile) {
        memset(rows, 0, sizeof rows);
        memcpy(rows, from, count * width * sizeof(float));
        from = rows;
      }
      if (s.messages) to_columns(from, width, columns);
      columns += width * kCrfTile;
    }
    for (int term = 0, begin = 0; term < s.terms; begin = s.end[term++]) {
      softmax(s, begin, s.end[term], pixel, count, scratch);
      if (s.last) write(s, term, begin, s.end[term], pixel, count, scratch);
    }
    if (s.last) continue;
    memset(scratch + s.channels * kCrfTile, 0, (columns - scratch - s.channels * kCrfTile) * sizeof(float));
    columns = scratch;
    for (int b = 0; b < s.blocks; ++b) {
      const int width = s.widths[b];
      float* const to = s.blocks_of[b] + pixel * width;
      to_rows(columns, width, count < kCrfTile ? rows : to);
      if (count < kCrfTile) memcpy(to, rows, count * width * sizeof(float));
      columns += width * kCrfTile;
    }
  }
}

}  // namespace depthg
