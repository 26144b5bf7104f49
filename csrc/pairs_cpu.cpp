// Correlation losses of image pairs on the CPU: turns, memory and threads. The work itself is in pairs_simd.cpp.
#include "pairs_cpu.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "thread_pool.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace depthg {
namespace {

RunPairs pick() {
#if defined(FPS_X86)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return run_pairs_avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return run_pairs_avx2;
#endif
  return run_pairs_baseline;
}

// Four rows of x times their scales, as four columns of the panel.
void transpose(const float* x, int64_t stride, const float* scale, float* panel) {
#if defined(__x86_64__)
  __m128 row[4];
  for (int m = 0; m < 4; ++m) row[m] = _mm_mul_ps(_mm_loadu_ps(x + m * stride), _mm_set1_ps(scale[m]));
  _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
  for (int n = 0; n < 4; ++n) _mm_storeu_ps(panel + n * kPanel, row[n]);
#else
  for (int m = 0; m < 4; ++m) {
    for (int n = 0; n < 4; ++n) panel[n * kPanel + m] = x[m * stride + n] * scale[m];
  }
#endif
}

// Runs work(rank) on up to `threads` threads, on this one alone when the pool is busy.
template <class Function>
void run(int threads, const Function& work) {
  if (threads < 2 || !run_together(threads, work)) {
    for (int rank = 0; rank < std::max(threads, 1); ++rank) work(rank);
  }
}

}  // namespace

void pair_pass(const PairPass& s, int threads) {
  static const RunPairs run_pairs = pick();
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
  run(threads, [&](int rank) { run_pairs(s, &turns, scratch.get() + rank * floats); });
}

void pack_panels(const float* x, const float* inverse, int64_t images, int64_t points, int64_t channels, float* panels,
                 float* rows, int threads) {
  const int64_t per_image = (points + kPanel - 1) / kPanel, padded = pad_to(channels, kPad);
  constexpr int64_t step = 4;  // points and channels are transposed in squares of this size
  std::atomic<int64_t> next{0};
  run(static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(images * per_image, 1))), [&](int) {
    for (int64_t at; (at = next++) < images * per_image;) {
      const int64_t image = at / per_image, first = at % per_image * kPanel, count = std::min(kPanel, points - first);
      float* panel = panels + at * channels * kPanel;
      const float* from = x + (image * points + first) * channels;
      const float* scale = inverse + image * points + first;
      for (int64_t c = 0; c < channels; c += step) {
        for (int64_t p = 0; p < kPanel; p += step) {
          if (p + step <= count && c + step <= channels) {
            transpose(from + p * channels + c, channels, scale + p, panel + c * kPanel + p);
            continue;
          }
          for (int64_t n = c; n < std::min(c + step, channels); ++n) {
            for (int64_t m = p; m < p + step; ++m) {
              panel[n * kPanel + m] = m < count ? from[m * channels + n] * scale[m] : 0.0f;
            }
          }
        }
      }
      for (int64_t p = 0; rows && p < count; ++p) {
        const int64_t row = image * points + first + p;
        for (int64_t n = 0; n < padded; ++n) {
          rows[row * padded + n] = n < channels ? x[row * channels + n] * inverse[row] : 0.0f;
        }
      }
    }
  });
}

}  // namespace depthg
