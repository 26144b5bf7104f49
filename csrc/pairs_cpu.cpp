// Correlation losses of image pairs on the CPU: turns, memory and threads. The work itself is in pairs_simd.cpp.
#include "pairs_cpu.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "transpose.h"

namespace depthg {
namespace {

float dot(const float* a, const float* b, int64_t size) {
  constexpr int64_t lanes = 16;  // sums side by side, which the compiler turns into vectors
  float part[lanes] = {};
  int64_t n = 0;
  for (; n + lanes <= size; n += lanes) {
    for (int64_t m = 0; m < lanes; ++m) part[m] += a[n + m] * b[n + m];
  }
  for (; n < size; ++n) part[n % lanes] += a[n] * b[n];
  double total = 0;
  for (float x : part) total += x;
  return static_cast<float>(total);
}

float inverse_length(const float* x, int64_t size) {
  const float square = dot(x, x, size);
  return square > 0 ? 1.0f / std::sqrt(square) : 0.0f;
}

void add_scaled(const float* x, int64_t size, float scale, float* out) {
  for (int64_t n = 0; n < size; ++n) out[n] += scale * x[n];
}

// One panel of up to kPanel rows; the points that are missing are zero.
void pack_panel(const float* x, int64_t count, int64_t channels, const float* scale, float* panel) {
  constexpr int64_t step = 4;  // points and channels are transposed in squares of this size
  for (int64_t c = 0; c < channels; c += step) {
    for (int64_t p = 0; p < kPanel; p += step) {
      if (p + step <= count && c + step <= channels) {
        transpose4(x + p * channels + c, channels, scale + p, panel + c * kPanel + p, kPanel);
        continue;
      }
      for (int64_t n = c; n < std::min(c + step, channels); ++n) {
        for (int64_t m = p; m < p + step; ++m) panel[n * kPanel + m] = m < count ? x[m * channels + n] * scale[m] : 0.0f;
      }
    }
  }
}

}  // namespace

void pair_pass(const PairPass& s, int threads) {
  static const RunPairs run_pairs = DEPTHG_BEST(RunPairs, run_pairs);
  if (s.pairs == 0) return;
  std::vector<int64_t> turn_i(s.pairs), turn_j(s.pairs);
  std::vector<int64_t> count_a(s.images_a, 0), count_b(s.images_b, 0);
  auto& of_b = s.same_bank ? count_a : count_b;
  for (int64_t e = 0; e < s.pairs; ++e) {
    turn_i[e] = count_a[s.i[e]]++;
    turn_j[e] = of_b[s.j[e]]++;
  }
  std::vector<int64_t> done_a(s.images_a, 0), done_b(s.images_b, 0);
  Turns turns{turn_i.data(), turn_j.data(), done_a.data(), s.same_bank ? done_a.data() : done_b.data()};
  threads = static_cast<int>(std::clamp<int64_t>(threads, 1, s.pairs));
  const int64_t floats = pad_to(scratch_floats(s), 64);
  std::unique_ptr<float[]> scratch(new float[floats * threads]);
  run_parallel(threads, [&](int rank) { run_pairs(s, &turns, scratch.get() + rank * floats); });
}

void pack_panels(const float* x, int64_t images, int64_t points, int64_t channels, bool normalize, float* panels, float* rows,
                 float* mean, int threads) {
  const int64_t per_image = (points + kPanel - 1) / kPanel, padded = pad_to(channels, kPad);
  std::atomic<int64_t> next{0};
  run_parallel(static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(images, 1))), [&](int) {
    for (int64_t image; (image = next++) < images;) {
      float* total = mean ? mean + image * channels : nullptr;
      if (total) std::fill_n(total, channels, 0.0f);
      for (int64_t at = 0; at < per_image; ++at) {
        const int64_t first = image * points + at * kPanel, count = std::min(kPanel, points - at * kPanel);
        const float* from = x + first * channels;
        float scale[kPanel];
        for (int64_t p = 0; p < count; ++p) scale[p] = normalize ? inverse_length(from + p * channels, channels) : 1.0f;
        pack_panel(from, count, channels, scale, panels + (image * per_image + at) * channels * kPanel);
        for (int64_t p = 0; p < count; ++p) {
          const float* row = from + p * channels;
          if (total) add_scaled(row, channels, scale[p] / static_cast<float>(points), total);
          if (!rows) continue;
          float* out = rows + (first + p) * padded;
          for (int64_t n = 0; n < padded; ++n) out[n] = n < channels ? row[n] * scale[p] : 0.0f;
        }
      }
    }
  });
}

void code_gradient(const float* codes, const float* d_terms, const float* upstream, int64_t terms, int64_t vectors, int64_t k,
                   float* d_codes, int threads) {
  constexpr int64_t chunk = 512;  // vectors that a thread takes at a time
  std::atomic<int64_t> next{0};
  const int64_t chunks = (vectors + chunk - 1) / chunk;
  run_parallel(static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(chunks, 1))), [&](int) {
    for (int64_t at; (at = next++) < chunks;) {
      for (int64_t v = at * chunk; v < std::min((at + 1) * chunk, vectors); ++v) {
        const float* x = codes + v * k;
        float* d = d_codes + v * k;
        std::fill_n(d, k, 0.0f);
        for (int64_t t = 0; t < terms; ++t) add_scaled(d_terms + (t * vectors + v) * k, k, upstream[t], d);
        const float inverse = inverse_length(x, k), along = dot(x, d, k) * inverse * inverse;
        for (int64_t n = 0; n < k; ++n) d[n] = (d[n] - x[n] * along) * inverse;
      }
    }
  });
}

}  // namespace depthg
