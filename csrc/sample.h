// Weighted sums of map vectors at points on the CPU, and their gradient.
//
//   out[n, p, c] = sum_t weights[n, p, t] maps[n, c, cells[n, p, t]]       T = 1: a gather, T = 4: bilinear
//   d_maps[n, c, cells[n, p, t]] += weights[n, p, t] d_out[n, p, c]
//
// The sums run over t, then p, in order: results do not depend on the number of threads.
#pragma once

#include <stdint.h>

namespace depthg {

struct MapSamples {
  int64_t images = 0, channels = 0, points = 0, taps = 0;
  int64_t stride_image = 0, stride_channel = 0, stride_cell = 0;  // of the maps, in elements
  const int64_t* cells = nullptr;                                  // [images, points, taps], in range
  const float* weights = nullptr;                                  // [images, points, taps]
};

void sample_maps(const MapSamples& s, const float* maps, float* out, int threads);
void sample_maps_backward(const MapSamples& s, const float* d_out, float* d_maps, int threads);  // d_maps is added to

}  // namespace depthg
