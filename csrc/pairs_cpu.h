// What pairs_cpu.cpp (threads, turns, dispatch) and pairs_simd.cpp (one copy per instruction set) share.
#pragma once

#include "pairs.h"

namespace depthg {

constexpr int64_t kPad = 16;              // rows of codes and gradients are padded to whole AVX-512 vectors in every build
constexpr int64_t kBlockBytes = 1 << 18;  // of one block of W: two targets stay in the L2 cache

// Functions here are static: a copy compiled for AVX-512 must not be merged into code for other machines.
static inline int64_t pad_to(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Order of additions: pair e adds to image i after `turn_i[e]` others have, to image j after `turn_j[e]`.
struct Turns {
  const int64_t *turn_i, *turn_j;
  int64_t *done_a, *done_b;  // additions so far, per image; one array when both sides are one bank
  int64_t next = 0;          // the next pair that no thread has taken
};

// Scratch of one thread in numbers: blocks of W for both targets, local gradients of both sides for both targets, biases.
template <class T> static inline int64_t block_rows(const PairPass<T>& s) {
  const int64_t floats = kBlockBytes / static_cast<int64_t>(sizeof(T));
  const int64_t panels = s.symmetric ? 1 : floats / (kPanel * pad_to(s.q, kPanel));
  const int64_t rows = kPanel * (panels < 1 ? 1 : panels);
  return rows < pad_to(s.p, kPanel) ? rows : pad_to(s.p, kPanel);
}
template <class T> static inline int64_t scratch_size(const PairPass<T>& s) {
  const int64_t k = pad_to(s.k, kPad);
  return 2 * (block_rows(s) * pad_to(s.q, kPanel) + (s.p + s.q) * k) + pad_to(s.p, kPanel) + pad_to(s.q, kPanel) + 64;
}

template <class T> using RunPairs = void (*)(const PairPass<T>& pass, Turns* turns, T* scratch);
void run_pairs_baseline(const PairPass<float>&, Turns*, float*);
void run_pairs_avx2(const PairPass<float>&, Turns*, float*);
void run_pairs_avx512(const PairPass<float>&, Turns*, float*);
void run_pairs_baseline(const PairPass<double>&, Turns*, double*);
void run_pairs_avx2(const PairPass<double>&, Turns*, double*);
void run_pairs_avx512(const PairPass<double>&, Turns*, double*);

}  // namespace depthg
