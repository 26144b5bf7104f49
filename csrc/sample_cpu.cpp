// Reading maps at points, see sample.h. Maps with adjacent cells are transposed first, a block of channels at a time, so that the
// channels of a cell are adjacent. The gradient is collected in the same form and transposed back.
#include "sample.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "parallel.h"
#include "transpose.h"

namespace depthg {
namespace {

constexpr int64_t kChannels = 16;   // of a block: one cache line of a result row
constexpr int64_t kRow = 128;       // of a block when the channels of a cell are adjacent
constexpr int64_t kFewPoints = 16;  // cells per tap above which turning a map costs more than reading it at its strides
constexpr float kOnes[4] = {1, 1, 1, 1};

// Calls work(image, first channel, end channel, scratch) for every `step` channels of every image, with `floats` of scratch.
template <class Work>
void for_blocks(const MapSamples& s, int64_t step, int64_t floats, int threads, const Work& work) {
  const int64_t blocks = (s.channels + step - 1) / step;
  std::atomic<int64_t> next{0};
  threads = static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, s.images * blocks)));
  run_parallel(threads, [&](int) {
    std::unique_ptr<float[]> scratch(new float[floats]);
    for (int64_t b; (b = next.fetch_add(1)) < s.images * blocks;) {
      const int64_t from = b % blocks * step;
      work(b / blocks, from, std::min(from + step, s.channels), scratch.get());
    }
  });
}

// Calls work(row) for the rows that read an image, in order.
template <class Work>
void for_rows(const MapSamples& s, int64_t image, const Work& work) {
  if (!s.image) {  // also the address of an empty list
    if (image < s.rows) work(image);
    return;
  }
  for (int64_t m = 0; m < s.rows; ++m) {
    if (s.image[m] == image) work(m);
  }
}

// out[column][row] = in[row][column] for those of four rows and columns that exist.
inline void turn_square(const float* in, int64_t stride, int64_t first, int64_t rows, int64_t column, int64_t columns, float* out,
                        int64_t out_stride) {
  if (first + 4 <= rows && column + 4 <= columns) {
    return transpose4(in + first * stride + column, stride, kOnes, out + column * out_stride + first, out_stride);
  }
  for (int64_t r = first; r < std::min(first + 4, rows); ++r) {
    for (int64_t c = column; c < std::min(column + 4, columns); ++c) out[c * out_stride + r] = in[r * stride + c];
  }
}

// A block of channels [count, cells] as [cells, kChannels], and back. Both go through the cells once.
void turn(const float* maps, int64_t stride, int64_t count, int64_t cells, float* block) {
  for (int64_t cell = 0; cell < cells; cell += 4) {
    if (cell % 16 == 0) {  // more streams than the hardware follows
      for (int64_t c = 0; c < count; ++c) __builtin_prefetch(maps + c * stride + cell + 64);
    }
    for (int64_t c = 0; c < count; c += 4) turn_square(maps, stride, c, count, cell, cells, block, kChannels);
  }
}
void turn_back(const float* block, int64_t count, int64_t cells, float* maps) {
  for (int64_t cell = 0; cell < cells; cell += 4) {
    for (int64_t c = 0; c < count; c += 4) turn_square(block, kChannels, cell, cells, c, count, maps, cells);
  }
}

// Channels [0, count) of one result row per point; `maps` is at the first channel. COUNT 0: known at run time.
template <int TAPS, int COUNT>
void read_points(const MapSamples& s, int64_t row, const float* maps, int64_t stride_cell, int64_t stride_channel, int64_t count,
                 float* out) {
  const int64_t* cell = s.cells + row * s.points * TAPS;
  const float* weight = s.weights + row * s.points * TAPS;
  if (COUNT) count = COUNT, stride_channel = 1;
  for (int64_t p = 0; p < s.points; ++p, cell += TAPS, weight += TAPS, out += s.channels) {
    const float* tap[TAPS];
    for (int t = 0; t < TAPS; ++t) tap[t] = maps + cell[t] * stride_cell;
    for (int64_t c = 0; c < count; ++c) {
      const int64_t at = c * stride_channel;
      float sum = weight[0] * tap[0][at];
      for (int t = 1; t < TAPS; ++t) sum += weight[t] * tap[t][at];
      out[c] = sum;
    }
  }
}

template <int TAPS>
void read(const MapSamples& s, const float* maps, float* out, int threads) {
  const bool adjacent = s.stride_channel == 1;  // channels of a cell
  const bool turned = !adjacent && s.stride_cell == 1 && s.cells_of_map <= kFewPoints * s.points * TAPS;
  const int64_t step = adjacent ? kRow : kChannels, floats = turned ? s.cells_of_map * kChannels : 0;
  for_blocks(s, step, floats, threads, [&](int64_t n, int64_t from, int64_t to, float* scratch) {
    const float* at = maps + n * s.stride_image + from * s.stride_channel;
    const int64_t count = to - from;
    const int64_t stride_cell = turned ? kChannels : s.stride_cell, stride_channel = turned ? 1 : s.stride_channel;
    const auto points = stride_channel != 1  ? read_points<TAPS, 0>
                        : count == kChannels ? read_points<TAPS, kChannels>
                        : count == kRow      ? read_points<TAPS, kRow>
                                             : read_points<TAPS, 0>;
    bool waiting = turned;  // a map that no row reads is not turned
    for_rows(s, n, [&](int64_t m) {
      if (waiting) turn(at, s.stride_channel, count, s.cells_of_map, scratch);
      waiting = false;
      points(s, m, turned ? scratch : at, stride_cell, stride_channel, count, out + m * s.points * s.channels + from);
    });
  });
}

template <int TAPS, int COUNT>
void add_points(const MapSamples& s, int64_t row, const float* d_out, int64_t count, float* d_block) {
  const int64_t* cell = s.cells + row * s.points * TAPS;
  const float* weight = s.weights + row * s.points * TAPS;
  if (COUNT) count = COUNT;
  for (int64_t p = 0; p < s.points; ++p, cell += TAPS, weight += TAPS, d_out += s.channels) {
    for (int t = 0; t < TAPS; ++t) {
      float* tap = d_block + cell[t] * kChannels;
      for (int64_t c = 0; c < count; ++c) tap[c] += weight[t] * d_out[c];
    }
  }
}

template <int TAPS>
void write(const MapSamples& s, const float* d_out, float* d_maps, int threads) {
  for_blocks(s, kChannels, s.cells_of_map * kChannels, threads, [&](int64_t n, int64_t from, int64_t to, float* scratch) {
    std::fill_n(scratch, s.cells_of_map * kChannels, 0.0f);
    const auto points = to - from == kChannels ? add_points<TAPS, kChannels> : add_points<TAPS, 0>;
    for_rows(s, n, [&](int64_t m) { points(s, m, d_out + m * s.points * s.channels + from, to - from, scratch); });
    turn_back(scratch, to - from, s.cells_of_map, d_maps + (n * s.channels + from) * s.cells_of_map);
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
