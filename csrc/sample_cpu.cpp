// Reading maps at points, see sample.h. Maps with adjacent channels are read in whole rows, others in blocks of channels.
#include "sample.h"

#include <algorithm>
#include <atomic>

#include "parallel.h"

namespace depthg {
namespace {

constexpr int64_t kChannels = 16;  // of a block: one cache line of a result row

// Calls work(item, first channel, end channel) for every block of channels of every item.
template <class Work>
void for_blocks(const MapSamples& s, int64_t items, int threads, const Work& work) {
  const int64_t step = s.stride_channel == 1 ? s.channels : kChannels;
  const int64_t blocks = (s.channels + step - 1) / step;
  std::atomic<int64_t> next{0};
  run_parallel(threads, [&](int) {
    for (int64_t b; (b = next.fetch_add(1)) < items * blocks;) {
      const int64_t from = b % blocks * step;
      work(b / blocks, from, std::min(from + step, s.channels));
    }
  });
}

template <int TAPS>
void read(const MapSamples& s, const float* maps, float* out, int threads) {
  for_blocks(s, s.rows, threads, [&](int64_t m, int64_t from, int64_t to) {
    const float* image = maps + (s.image ? s.image[m] : m) * s.stride_image;
    const int64_t* cell = s.cells + m * s.points * TAPS;
    const float* weight = s.weights + m * s.points * TAPS;
    float* rows = out + m * s.points * s.channels;
    for (int64_t p = 0; p < s.points; ++p, cell += TAPS, weight += TAPS) {
      const float* tap[TAPS];
      for (int t = 0; t < TAPS; ++t) tap[t] = image + cell[t] * s.stride_cell;
      float* row = rows + p * s.channels;
      if (s.stride_channel == 1) {
        for (int64_t c = from; c < to; ++c) {
          float sum = weight[0] * tap[0][c];
          for (int t = 1; t < TAPS; ++t) sum += weight[t] * tap[t][c];
          row[c] = sum;
        }
      } else {
        for (int64_t c = from; c < to; ++c) {
          const int64_t at = c * s.stride_channel;
          float sum = weight[0] * tap[0][at];
          for (int t = 1; t < TAPS; ++t) sum += weight[t] * tap[t][at];
          row[c] = sum;
        }
      }
    }
  });
}

// One thread adds up all that an image gets.
template <int TAPS>
void write(const MapSamples& s, const float* d_out, float* d_maps, int threads) {
  for_blocks(s, s.images, threads, [&](int64_t n, int64_t from, int64_t to) {
    float* image = d_maps + n * s.stride_image;
    for (int64_t m = s.image ? 0 : n; m < (s.image ? s.rows : n + 1); ++m) {
      if (s.image && s.image[m] != n) continue;
      const int64_t* cell = s.cells + m * s.points * TAPS;
      const float* weight = s.weights + m * s.points * TAPS;
      for (int64_t p = 0; p < s.points; ++p, cell += TAPS, weight += TAPS) {
        const float* row = d_out + (m * s.points + p) * s.channels;
        for (int t = 0; t < TAPS; ++t) {
          float* tap = image + cell[t] * s.stride_cell;
          for (int64_t c = from; c < to; ++c) tap[c * s.stride_channel] += weight[t] * row[c];
        }
      }
    }
  });
}

}  // namespace

void sample_maps(const MapSamples& s, const float* maps, float* out, int threads) {
  s.taps == 1 ? read<1>(s, maps, out, threads) : read<4>(s, maps, out, threads);
}

void sample_maps_backward(const MapSamples& s, const float* d_out, float* d_maps, int threads) {
  s.taps == 1 ? write<1>(s, d_out, d_maps, threads) : write<4>(s, d_out, d_maps, threads);
}

}  // namespace depthg
