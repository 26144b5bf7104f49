// The vertices of a permutohedral lattice that the pixels of one image touch.
#pragma once

#include <stdint.h>

#include <vector>

#include "buffer.h"
#include "crf.h"

namespace depthg {

struct Splat {  // the share of a pixel in a vertex
  int32_t pixel;  // ~pixel for the last one of a vertex
  float share;
};

// A lattice over d features has d + 1 vertices around every pixel ("corners") and is blurred along d + 1 directions. Shares are
// barycentric coordinates at first; crf_cpu.cpp multiplies them by the pixel's normalisation.
struct Lattice {
  int64_t pixels = 0, vertices = 0;
  int corners = 0;
  Buffer<int32_t> vertex;  // [pixels, corners]
  Buffer<float> share;     // [pixels, corners]
  Buffer<int32_t> start;   // [vertices + 1], where the pixels of a vertex begin in splats
  Buffer<Splat> splats;    // [pixels * corners], in the order of pixels
  struct Direction {
    Buffer<int32_t> chain;            // vertices that are neighbours one after another; the last of a run is ~vertex
    std::vector<int64_t> cut;         // where runs begin, at least kCut vertices apart, and the end
  } directions[6];

  // What the lattice was made for, and whether it is finished; a spatial lattice serves all images of one size.
  bool ready = false, listed = false;
  int64_t height = 0, width = 0;
  double sxy = 0, srgb = 0;

  struct Slot {
    uint64_t key;
    int32_t vertex;
  };
  Buffer<Slot> slots;  // a hash table with open addressing
  int64_t slot_count = 0;
  Buffer<uint64_t> keys;  // [vertices]

  int64_t bytes() const;
  void forget_keys() {  // they are not needed once chains are listed
    slots.release();
    keys.release();
  }
};

constexpr int64_t kCut = 1024;  // vertices of a task

// Whether 64 bits can number the vertices.
bool lattice_fits(int64_t height, int64_t width, const CrfKernel& kernel);

// Vertices, and the shares of pixels in them.
void place_pixels(const uint8_t* rgb, int64_t height, int64_t width, const CrfKernel& kernel, Lattice& lattice);

// Runs of neighbours along direction j: from one vertex to the next, 1 is added to every coordinate and d + 1 taken from
// coordinate j. A vertex without neighbours is in none. Directions may be listed at the same time.
void list_chains(Lattice& lattice, int j);

// The pixels of every vertex, in their order, with the shares as they are now. Only splatting by many threads needs them.
void list_splats(Lattice& lattice);

}  // namespace depthg
