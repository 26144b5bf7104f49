// Mean field of a dense CRF with Potts compatibility and Gaussian edge potentials (Krähenbühl and Koltun, NIPS 2011), whose
// messages are filtered on the permutohedral lattice (Adams, Baek and Davis, Eurographics 2010).
//
//   Q_0 = softmax(-unary);   Q_{t+1} = softmax(-unary + sum_k weight_k N_k K_k N_k Q_t),   N_k = diag(1 / sqrt(K_k 1 + 1e-20))
//
// K_k is the lattice's approximation of exp(-|f_i - f_j|^2 / 2), j = i included, with features x / sxy, y / sxy for the spatial
// kernel and x / sxy, y / sxy, b / srgb, g / srgb, r / srgb, in this order, for the bilateral one. Several unary terms share one
// image: their classes are filtered side by side, and each has its own softmax.
//
// Every sum has a fixed order, products are not fused with sums, and channels do not mix: results are the same bits for every
// number of threads, every split into terms and every instruction set.
#pragma once

#include <stdint.h>

#include <memory>
#include <vector>

namespace depthg {

struct CrfKernel {
  float weight = 0;        // at least 0; a kernel of weight 0 is left out
  double sxy = 1;          // standard deviation in pixels, positive
  double srgb = 0;         // in steps of 0..255; 0 for the spatial kernel
};

struct CrfTerm {
  int64_t classes = 0;           // at least 1
  const float* unary = nullptr;  // [images, classes, height, width], finite
  float* marginals = nullptr;    // of the same shape, or null
  int16_t* ids = nullptr;        // [images, height, width], or null: the arg-max of the marginals, ties to the lowest
};

struct CrfImages {
  int64_t images = 0, height = 0, width = 0;  // the sides at least 1, fewer than 2^28 pixels
  const uint8_t* rgb = nullptr;               // [images, height, width, 3]
  std::vector<CrfTerm> terms;                 // at least one
  std::vector<CrfKernel> kernels;
  int iterations = 0;
};

// Memory that one call leaves to the next one. Not for two calls at a time.
class CrfMemory {
 public:
  CrfMemory();
  ~CrfMemory();
  int64_t bytes() const;

  struct Parts;
  std::vector<std::unique_ptr<Parts>> parts;  // one per image that is worked on at a time
};

// Throws std::invalid_argument where a kernel is so narrow that the lattice cannot number its vertices.
void dense_crf(const CrfImages& s, CrfMemory& memory, int threads);

}  // namespace depthg
