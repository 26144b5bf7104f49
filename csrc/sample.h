// Weighted sums of map vectors at points on the CPU, and their gradient.
//
//   out[m, p, c] = sum_t weights[m, p, t] maps[image[m], c, cells[m, p, t]]       T = 1: a gather, T = 4: bilinear
//   d_maps[image[m], c, cells[m, p, t]] += weights[m, p, t] d_out[m, p, c]       from 0
//
// The sums run over t, then p, then m, in order: results do not depend on the number of threads.
#pragma once

#include <stdint.h>

namespace depthg {

struct MapSamples {
  int64_t rows = 0, channels = 0, points = 0, taps = 0, images = 0, cells_of_map = 0;  // rows M read from images N
  int64_t stride_image = 0, stride_channel = 0, stride_cell = 0;   // of the maps, in elements
  const int64_t* cells = nullptr;                                  // [rows, points, taps], in range
  const float* weights = nullptr;                                  // [rows, points, taps]
  const int64_t* image = nullptr;                                  // [rows], in range; null: row m reads image m
};

void sample_maps(const MapSamples& s, const float* maps, float* out, int threads);
// d_maps is contiguous and overwritten.
void sample_maps_backward(const MapSamples& s, const float* d_out, float* d_maps, int threads);

}  // namespace depthg
