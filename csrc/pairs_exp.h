// e^x of every lane of a vector, for x <= 0. Included by pairs_simd.cpp alone, once per instruction set.
//
// x = n ln 2 + r with an integer n and |r| <= ln 2 / 2, so e^x = 2^n e^r. ln 2 is split in two: n times its first part is exact.
// e^r is its Taylor series, cut where the next term is below half a unit in the last place. Where e^x is below the smallest
// normal number the result is 0. NaN stays NaN.
#pragma once

#include "pairs_product.h"

namespace depthg {
namespace {

template <class T> struct Exponential;
template <> struct Exponential<float> {
  static constexpr int kTerms = 7, kFractionBits = 23;
  static constexpr unsigned kOne = 127u << kFractionBits;          // the bits of 1.0f
  static constexpr float kRound = 0x1.8p23f, kLowest = -87.33654f;  // adding kRound rounds to integers
  static constexpr float kLn2 = 0x1.62e4p-1f, kLn2Rest = 0x1.7f7d1cf7p-20f, kInverse = 0x1.71547652b82fep+0f;
};
template <> struct Exponential<double> {
  static constexpr int kTerms = 13, kFractionBits = 52;
  static constexpr unsigned long long kOne = 1023ull << kFractionBits;
  static constexpr double kRound = 0x1.8p52, kLowest = -708.3964185322641;
  static constexpr double kLn2 = 0x1.62e42fefap-1, kLn2Rest = 0x1.cf79abc9e3b3ap-40, kInverse = 0x1.71547652b82fep+0;
};

constexpr double kInverseFactorials[] = {1.0,           1.0,            1.0 / 2,         1.0 / 6,          1.0 / 24,
                                         1.0 / 120,     1.0 / 720,      1.0 / 5040,      1.0 / 40320,      1.0 / 362880,
                                         1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};

template <class T> inline VecOf<T> exponential(const VecOf<T>& x) {
  using E = Exponential<T>;
  using Vec = VecOf<T>;
  using Mask = typename Vectors<T>::Mask;
  using Bits = typename Vectors<T>::Bits;
  const Vec shifted = multiply_add(x, splat(E::kInverse), splat(E::kRound));  // n in its last bits
  const Vec n = shifted - splat(E::kRound);
  const Vec r = multiply_add(n, splat(-E::kLn2Rest), multiply_add(n, splat(-E::kLn2), x));
  Vec sum = splat(static_cast<T>(kInverseFactorials[E::kTerms]));
#pragma GCC unroll 16
  for (int term = E::kTerms - 1; term >= 0; --term) sum = multiply_add(sum, r, splat(static_cast<T>(kInverseFactorials[term])));
  const Bits power = ((Bits)shifted << E::kFractionBits) + E::kOne;  // 2^n
  const Mask below = x < E::kLowest;
  return (Vec)((Mask)(sum * (Vec)power) & ~below);
}

}  // namespace
}  // namespace depthg
