// What pairs_cpu.cpp (threads, turns, dispatch) and pairs_simd.cpp (one copy per instruction set) share.
#pragma once

#include "pairs.h"

namespace depthg {

constexpr int64_t kPad = 16;           // rows of codes and gradients are padded to whole AVX-512 vectors in every build
constexpr int64_t kBlockFloats = 1 << 16;  // of one block of W: 256 KiB, so that two targets stay in the L2 cache

inline int64_t pad_to(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Order of additions: pair e adds to image i after `turn_i[e]` others have, to image j after `turn_j[e]`.
struct Turns {
  const int64_t *turn_i, *turn_j;
  int64_t *done_a, *done_b;  // additions so far, per image; one array when both sides are one bank
  int64_t next = 0;          // the next pair that nobody works on
};

// Scratch of one thread in floats: blocks of W for both targets, local gradients of both sides for both targets, biases.
inline int64_t block_rows(const PairPass& s) {
  const int64_t panels = s.symmetric ? 1 : kBlockFloats / (kPanel * pad_to(s.q, kPanel));
  const int64_t rows = kPanel * (panels < 1 ? 1 : panels);
  return rows < pad_to(s.p, kPanel) ? rows : pad_to(s.p, kPanel);
}
inline int64_t scratch_floats(const PairPass& s) {
  const int64_t k = pad_to(s.k, kPad);
  return 2 * (block_rows(s) * pad_to(s.q, kPanel) + (s.p + s.q) * k) + pad_to(s.p, kPanel) + pad_to(s.q, kPanel) + 64;
}

using RunPairs = void (*)(const PairPass& pass, Turns* turns, float* scratch);
void run_pairs_baseline(const PairPass&, Turns*, float*);
void run_pairs_avx2(const PairPass&, Turns*, float*);
void run_pairs_avx512(const PairPass&, Turns*, float*);

}  // namespace depthg
