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

template <class T> T dot(const T* a, const T* b, int64_t size) {
  constexpr int64_t lanes = 16;  // sums side by side, which the compiler turns into vectors
  T part[lanes] = {};
  int64_t n = 0;
  for (; n + lanes <= size; n += lanes) {
    for (int64_t m = 0; m < lanes; ++m) part[m] += a[n + m] * b[n + m];
  }
  for (; n < size; ++n) part[n % lanes] += a[n] * b[n];
  double total = 0;
  for (T x : part) total += x;
  return static_cast<T>(total);
}

template <class T> T inverse_length(const T* x, int64_t size) {
  const T square = dot(x, x, size);
  return square > 0 ? 1 / std::sqrt(square) : T(0);
}

template <class T> void add_scaled(const T* x, int64_t size, T scale, T* out) {
  for (int64_t n = 0; n < size; ++n) out[n] += scale * x[n];
}

// One panel of up to kPanel rows; missing points are zero.
template <class T> void pack_panel(const T* x, int64_t count, int64_t channels, const T* scale, T* panel) {
  constexpr int64_t step = 4;  // points and channels are transposed in squares of this size
  for (int64_t c = 0; c < channels; c += step) {
    for (int64_t p = 0; p < kPanel; p += step) {
      if (p + step <= count && c + step <= channels) {
        transpose4(x + p * channels + c, channels, scale + p, panel + c * kPanel + p, kPanel);
        continue;
      }
      for (int64_t n = c; n < std::min(c + step, channels); ++n) {
        for (int64_t m = p; m < p + step; ++m) panel[n * kPanel + m] = m < count ? x[m * channels + n] * scale[m] : T(0);
      }
    }
  }
}

}  // namespace

template <class T> void pair_pass(const PairPass<T>& s, int threads) {
  static const RunPairs<T> run_pairs = DEPTHG_BEST(RunPairs<T>, run_pairs);
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
  const int64_t size = pad_to(scratch_size(s), 64);
  std::unique_ptr<T[]> scratch(new T[size * threads]);
  run_parallel(threads, [&](int rank) { run_pairs(s, &turns, scratch.get() + rank * size); });
}

template <class T>
void pack_panels(const T* x, int64_t images, int64_t points, int64_t channels, bool normalize, T* panels, T* rows, T* mean,
                 int threads) {
  const int64_t per_image = (points + kPanel - 1) / kPanel, padded = pad_to(channels, kPad);
  std::atomic<int64_t> next{0};
  run_parallel(static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(images, 1))), [&](int) {
    for (int64_t image; (image = next++) < images;) {
      T* total = mean ? mean + image * channels : nullptr;
      if (total) std::fill_n(total, channels, T(0));
      for (int64_t at = 0; at < per_image; ++at) {
        const int64_t first = image * points + at * kPanel, count = std::min(kPanel, points - at * kPanel);
        const T* from = x + first * channels;
        T scale[kPanel];
        for (int64_t p = 0; p < count; ++p) scale[p] = normalize ? inverse_length(from + p * channels, channels) : T(1);
        pack_panel(from, count, channels, scale, panels + (image * per_image + at) * channels * kPanel);
        for (int64_t p = 0; p < count; ++p) {
          const T* row = from + p * channels;
          if (total) add_scaled(row, channels, scale[p] / static_cast<T>(points), total);
          if (!rows) continue;
          T* out = rows + (first + p) * padded;
          for (int64_t n = 0; n < padded; ++n) out[n] = n < channels ? row[n] * scale[p] : T(0);
        }
      }
    }
  });
}

template <class T>
void code_gradient(const T* codes, const T* d_terms, const T* upstream, int64_t terms, int64_t vectors, int64_t k, T* d_codes,
                   int threads) {
  constexpr int64_t chunk = 512;  // vectors that a thread takes at a time
  std::atomic<int64_t> next{0};
  const int64_t chunks = (vectors + chunk - 1) / chunk;
  run_parallel(static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(chunks, 1))), [&](int) {
    for (int64_t at; (at = next++) < chunks;) {
      for (int64_t v = at * chunk; v < std::min((at + 1) * chunk, vectors); ++v) {
        const T* x = codes + v * k;
        T* d = d_codes + v * k;
        std::fill_n(d, k, T(0));
        for (int64_t t = 0; t < terms; ++t) add_scaled(d_terms + (t * vectors + v) * k, k, upstream[t], d);
        const T inverse = inverse_length(x, k), along = dot(x, d, k) * inverse * inverse;
        for (int64_t n = 0; n < k; ++n) d[n] = (d[n] - x[n] * along) * inverse;
      }
    }
  });
}

#define PAIRS_OF(T)                                                                                                   \
  template void pair_pass(const PairPass<T>&, int);                                                                   \
  template void pack_panels(const T*, int64_t, int64_t, int64_t, bool, T*, T*, T*, int);                              \
  template void code_gradient(const T*, const T*, const T*, int64_t, int64_t, int64_t, T*, int);
PAIRS_OF(float)
PAIRS_OF(double)

}  // namespace depthg
