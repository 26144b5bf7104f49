// Places pixels on the permutohedral lattice.
//
// The lattice lies in the plane of vectors of d + 1 coordinates whose sum is 0; its vertices have integer coordinates that leave
// one remainder modulo d + 1. A feature vector f is turned into that plane by orthonormal rows
//
//   (1, .., 1, -(i + 1), 0, .., 0) / sqrt((i + 1)(i + 2))     with i + 1 ones
//
// and stretched by (d + 1) sqrt(2 / 3), so that splatting, blurring and slicing together have standard deviation 1 in f. The
// simplex around a point follows from the nearest vertex of remainder 0 and the order of what is left of the coordinates: the
// vertex of remainder k adds k to all of them and takes d + 1 from the k smallest.
#include "crf_lattice.h"

#include <math.h>
#include <string.h>

#include <algorithm>

namespace depthg {
namespace {

constexpr int kMargin = 4;          // multiples of d + 1 that vertices and their neighbours lie beyond the pixels
constexpr int kRemainderBits = 3;   // the lowest bits of a key
constexpr int64_t kTile = 64;       // pixels whose keys are computed before they are looked up
constexpr int kMostBits = 62;

struct Box {  // of the features of an image, stretched
  float step[5];    // of one feature, along its row
  float sigma[5];
  double least[6];  // multiple of d + 1 of each coordinate
  int shift[5], bits;
};

Box make_box(int64_t height, int64_t width, const CrfKernel& kernel) {
  const int d = kernel.srgb > 0 ? 5 : 2;
  const double largest[] = {width - 1.0, height - 1.0, 255.0, 255.0, 255.0};
  Box box;
  for (int i = 0; i < d; ++i) {
    box.step[i] = static_cast<float>(1 / sqrt((i + 1.0) * (i + 2.0)) * static_cast<float>((d + 1) * sqrt(2.0 / 3.0)));
    box.sigma[i] = static_cast<float>(i < 2 ? kernel.sxy : kernel.srgb);
  }
  box.bits = kRemainderBits;
  double above = 0;  // the largest value of coordinate i + 1
  for (int i = d; i >= 0; --i) {
    const double below = i ? i * largest[i - 1] / box.sigma[i - 1] * box.step[i - 1] : 0.0;
    box.least[i] = -floor(below / (d + 1)) - kMargin;
    const double most = floor(above / (d + 1)) + kMargin - box.least[i];
    if (i < d) {
      box.shift[i] = box.bits;
      if (!(most < 0x1p62)) {
        box.bits = kMostBits + 1;
        return box;
      }
      for (double room = 1; room <= most + 1; room *= 2) ++box.bits;
      box.bits = std::min(box.bits, kMostBits + 1);
    }
    if (i) above += largest[i - 1] / box.sigma[i - 1] * box.step[i - 1];
  }
  return box;
}

inline uint64_t unit(const Box& box, int i, int d) { return i < d ? uint64_t{1} << box.shift[i] : 0; }

// Keys and shares of the d + 1 corners of a pixel.
template <int D>
void place(const float* scaled, const Box& box, const uint64_t* units, uint64_t* key, float* share) {
  float rest[D + 1], sum = 0;
  int64_t multiple[D + 1];
  int rank[D + 1] = {}, excess = 0;
  for (int i = D; i >= 0; --i) {
    const float at = sum - (i ? i * scaled[i - 1] : 0.0f);
    if (i) sum += scaled[i - 1];
    multiple[i] = static_cast<int64_t>(at * (1.0f / (D + 1)) - box.least[i] + 0.5);  // positive
    const int64_t nearest = multiple[i] + static_cast<int64_t>(box.least[i]);
    rest[i] = at - static_cast<float>(nearest * (D + 1));
    excess += static_cast<int>(nearest);
  }
  for (int i = 0; i < D; ++i) {
    for (int j = i + 1; j <= D; ++j) {
      const bool less = rest[i] < rest[j];
      rank[i] += less;
      rank[j] += !less;
    }
  }
  float falling[D + 1];
  uint64_t unit_of[D + 1], first = 0;
  for (int i = 0; i <= D; ++i) {  // coordinates whose sum is not 0 yet
    int r = rank[i] + excess;
    const int move = (r < 0) - (r > D);
    r += move * (D + 1);
    falling[r] = (rest[i] - static_cast<float>(move * (D + 1))) * (1.0f / (D + 1));
    unit_of[r] = units[i];
    first += static_cast<uint64_t>(multiple[i] + move) * units[i];
  }
  key[0] = first;
  share[0] = 1 + falling[D] - falling[0];
  for (int k = 1; k <= D; ++k) {
    key[k] = key[k - 1] + 1 - unit_of[D + 1 - k];
    share[k] = falling[D - k] - falling[D + 1 - k];
  }
}

inline uint64_t hash(uint64_t key, int64_t slots) {
  key *= 0x9e3779b97f4a7c15u;
  return (key ^ key >> 29) * 0xbf58476d1ce4e5b9u >> 20 & static_cast<uint64_t>(slots - 1);
}

inline int32_t find(const Lattice& lattice, uint64_t key) {
  const Lattice::Slot* const slots = lattice.slots.data();
  for (uint64_t at = hash(key, lattice.slot_count);; at = (at + 1) & static_cast<uint64_t>(lattice.slot_count - 1)) {
    if (slots[at].vertex < 0 || slots[at].key == key) return slots[at].vertex;
  }
}

// Twice the slots, and room for as many keys.
void grow(Lattice& lattice, int64_t count) {
  if (lattice.keys.bytes() < count / 2 * static_cast<int64_t>(sizeof(uint64_t))) {
    Buffer<uint64_t> keys;
    keys.reserve(count / 2);
    if (lattice.vertices) memcpy(keys.data(), lattice.keys.data(), lattice.vertices * sizeof(uint64_t));
    lattice.keys.swap(keys);
  }
  Lattice::Slot* const slots = lattice.slots.reserve(count);
  for (int64_t i = 0; i < count; ++i) slots[i].vertex = -1;
  lattice.slot_count = count;
  for (int64_t vertex = 0; vertex < lattice.vertices; ++vertex) {
    const uint64_t key = lattice.keys.data()[vertex];
    uint64_t at = hash(key, count);
    while (slots[at].vertex >= 0) at = (at + 1) & static_cast<uint64_t>(count - 1);
    slots[at] = {key, static_cast<int32_t>(vertex)};
  }
}

inline int32_t find_or_add(Lattice& lattice, uint64_t key) {
  for (uint64_t at = hash(key, lattice.slot_count);; at = (at + 1) & static_cast<uint64_t>(lattice.slot_count - 1)) {
    Lattice::Slot& slot = lattice.slots.data()[at];
    if (slot.vertex < 0) {
      lattice.keys.data()[lattice.vertices] = key;
      slot = {key, static_cast<int32_t>(lattice.vertices++)};
      return slot.vertex;
    }
    if (slot.key == key) return slot.vertex;
  }
}

// Vertices are numbered in the order in which pixels meet them.
template <int D>
void place_all(const uint8_t* rgb, int64_t height, int64_t width, const Box& box, Lattice& lattice) {
  constexpr int kCorners = D + 1;
  uint64_t units[kCorners], keys[kTile * kCorners];
  for (int i = 0; i <= D; ++i) units[i] = unit(box, i, D);
  const int64_t pixels = height * width;
  float* const share = lattice.share.data();
  int32_t* const vertex = lattice.vertex.data();
  int64_t x = 0, y = 0;
  for (int64_t first = 0; first < pixels; first += kTile) {
    const int64_t count = std::min(kTile, pixels - first);
    for (int64_t n = 0; n < count; ++n) {
      float scaled[5] = {static_cast<float>(x) / box.sigma[0] * box.step[0], static_cast<float>(y) / box.sigma[1] * box.step[1]};
      for (int c = 2; c < D; ++c) scaled[c] = rgb[3 * (first + n) + 4 - c] / box.sigma[c] * box.step[c];
      place<D>(scaled, box, units, keys + n * kCorners, share + (first + n) * kCorners);
      if (++x == width) x = 0, ++y;
    }
    if (2 * (lattice.vertices + count * kCorners) > lattice.slot_count) grow(lattice, 2 * lattice.slot_count);
    for (int64_t n = 0; n < count * kCorners; ++n) {
      __builtin_prefetch(lattice.slots.data() + hash(keys[n], lattice.slot_count));
    }
    for (int64_t n = 0; n < count * kCorners; ++n) vertex[first * kCorners + n] = find_or_add(lattice, keys[n]);
  }
}

}  // namespace

int64_t Lattice::bytes() const {
  int64_t sum = vertex.bytes() + share.bytes() + start.bytes() + splats.bytes() + slots.bytes() + keys.bytes();
  for (const Direction& direction : directions) sum += direction.chain.bytes();
  return sum;
}

bool lattice_fits(int64_t height, int64_t width, const CrfKernel& kernel) {
  return make_box(height, width, kernel).bits <= kMostBits;
}

void place_pixels(const uint8_t* rgb, int64_t height, int64_t width, const CrfKernel& kernel, Lattice& lattice) {
  const Box box = make_box(height, width, kernel);
  lattice.ready = lattice.listed = false;
  lattice.pixels = height * width;
  lattice.corners = kernel.srgb > 0 ? 6 : 3;
  lattice.height = height, lattice.width = width, lattice.sxy = kernel.sxy, lattice.srgb = kernel.srgb;
  lattice.vertex.reserve(lattice.pixels * lattice.corners);
  lattice.share.reserve(lattice.pixels * lattice.corners);
  lattice.vertices = 0;
  int64_t slots = 1024;
  while (slots < 2 * lattice.pixels) slots *= 2;
  grow(lattice, slots);
  (lattice.corners == 6 ? place_all<5> : place_all<2>)(rgb, height, width, box, lattice);
}

void list_splats(Lattice& lattice) {
  const int64_t count = lattice.pixels * lattice.corners;
  const int32_t* const vertex = lattice.vertex.data();
  int32_t* const start = lattice.start.reserve(lattice.vertices + 2) + 1;  // one behind, and moved on while lists are filled
  memset(start - 1, 0, (lattice.vertices + 2) * sizeof(int32_t));
  for (int64_t n = 0; n < count; ++n) ++start[vertex[n] + 1];
  for (int64_t v = 0; v < lattice.vertices; ++v) start[v + 1] += start[v];
  Splat* const splats = lattice.splats.reserve(count);
  const float* share = lattice.share.data();
  for (int64_t pixel = 0, n = 0; pixel < lattice.pixels; ++pixel) {
    for (int corner = 0; corner < lattice.corners; ++corner, ++n) {
      splats[start[vertex[n]]++] = {static_cast<int32_t>(pixel), share[n]};
    }
  }
  for (int64_t v = 0; v < lattice.vertices; ++v) splats[start[v] - 1].pixel = ~splats[start[v] - 1].pixel;  // now the ends
  lattice.listed = true;
}

// The neighbour along direction j adds 1 to every coordinate and takes d + 1 from coordinate j.
void list_chains(Lattice& lattice, int j) {
  const Box box = make_box(lattice.height, lattice.width, {1, lattice.sxy, lattice.srgb});
  const int d = lattice.corners - 1;
  uint64_t all = 0;
  for (int i = 0; i < d; ++i) all += unit(box, i, d);
  const uint64_t next_remainder = 1 - unit(box, j, d), first_remainder = all - static_cast<uint64_t>(d) - unit(box, j, d);
  const auto neighbour = [&](uint64_t key) {
    return key + (static_cast<int>(key & ((1 << kRemainderBits) - 1)) < d ? next_remainder : first_remainder);
  };
  Buffer<int32_t> memory;
  int32_t* const next = memory.reserve(lattice.vertices);
  std::vector<char> follows(lattice.vertices);
  const uint64_t* const keys = lattice.keys.data();
  constexpr int64_t kAhead = 16;
  for (int64_t v = 0; v < lattice.vertices; ++v) {
    if (v + kAhead < lattice.vertices) {
      __builtin_prefetch(lattice.slots.data() + hash(neighbour(keys[v + kAhead]), lattice.slot_count));
    }
    next[v] = find(lattice, neighbour(keys[v]));
    if (next[v] >= 0) follows[next[v]] = 1;
  }
  Lattice::Direction& direction = lattice.directions[j];
  int32_t* const chain = direction.chain.reserve(lattice.vertices);
  direction.cut.assign(1, 0);
  int64_t count = 0;
  for (int64_t v = 0; v < lattice.vertices; ++v) {
    if (follows[v] || next[v] < 0) continue;  // within a run, or alone
    int32_t at = static_cast<int32_t>(v);
    for (; next[at] >= 0; at = next[at]) chain[count++] = at;
    chain[count++] = ~at;
    if (count - direction.cut.back() >= kCut) direction.cut.push_back(count);
  }
  if (direction.cut.back() != count) direction.cut.push_back(count);
}

}  // namespace depthg
