// Correlation losses of image pairs on the CPU: contract of one pass, see kernels/README.md for the formulas.
//
// For every pair e of images (i, j), with S = a b^T of the unit codes,
//
//   W = scale F - row f_p . mean_b[j] - column g_q . mean_a[i] + constant  (features, F = f g^T)   and / or
//   W = u v^T - shift, or exp(-decay |u_p - v_q|^2) - shift  (depth)
//   value[e] = sum_pq W V(S),   d_a[i] += alpha (W V') b,   d_b[j] += alpha (W V')^T a
//
// with V(S) = S, at least 0 if `clamp`, at most `limit`. Both targets share S. With `symmetric` (i = j, one set of codes,
// symmetric W) only half of the tiles are computed and d_a receives both gradients.
//
// T is float or double. Results do not depend on the number of threads: contributions to an image are added in the order of
// the pairs.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace depthg {

constexpr int64_t kPanel = 32;  // points in a panel: packed vectors are [image][panel][channel][kPanel], zero-padded

template <class T> struct PairPass {
  // sizes
  int64_t pairs = 0, images_a = 0, images_b = 0, p = 0, q = 0, c = 0, k = 0, d = 0;
  // images of each pair [pairs]
  const int64_t *i = nullptr, *j = nullptr;
  // unit codes: packed, and as rows [images, points, padded k] for the gradients
  const T *codes_a = nullptr, *codes_b = nullptr, *rows_a = nullptr, *rows_b = nullptr;
  // unit features, packed; their means over the points [images, c]; weights of every pair [pairs, 4]: scale, row, column,
  // constant
  const T *feats_a = nullptr, *feats_b = nullptr, *mean_a = nullptr, *mean_b = nullptr, *weights = nullptr;
  // depth vectors u and v, packed
  const T *depth_a = nullptr, *depth_b = nullptr;
  T shift = 0, decay = 0, limit = 0, alpha = 0, alpha_depth = 0;
  bool exponential = false, clamp = true, limited = false, symmetric = false, same_bank = false;
  // results: values [pairs, 2] (features, depth); gradients [images, points, k], added to; null: not wanted
  double* values = nullptr;
  T *d_a = nullptr, *d_b = nullptr, *d_a_depth = nullptr, *d_b_depth = nullptr;
};

template <class T> void pair_pass(const PairPass<T>& pass, int threads);

// Unit vectors of x [images, points, channels] (contiguous; unchanged without `normalize`; a zero vector stays zero) in panels;
// also as rows [images, points, padded channels] and their mean [images, channels], where these are not null.
template <class T>
void pack_panels(const T* x, int64_t images, int64_t points, int64_t channels, bool normalize, T* panels, T* rows, T* mean,
                 int threads);

// d_codes = sum_t upstream[t] d_terms[t] taken through the normalisation of `codes` [vectors, k]; d_terms [terms, vectors, k].
template <class T>
void code_gradient(const T* codes, const T* d_terms, const T* upstream, int64_t terms, int64_t vectors, int64_t k, T* d_codes,
                   int threads);

}  // namespace depthg
