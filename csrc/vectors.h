// Vectors of floats or doubles for the instruction set that a *_simd.cpp file is compiled for. The unnamed namespace keeps each
// copy to itself.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace depthg {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;  // of floats

template <class T> struct Vectors;
template <> struct Vectors<float> {
  typedef float Full __attribute__((vector_size(kVectorBytes), aligned(4)));  // unaligned loads and stores
  typedef float Half __attribute__((vector_size(kVectorBytes / 2), aligned(4)));
  typedef int Mask __attribute__((vector_size(kVectorBytes)));  // what a comparison of vectors gives
  typedef unsigned Bits __attribute__((vector_size(kVectorBytes)));
};
template <> struct Vectors<double> {
  typedef double Full __attribute__((vector_size(kVectorBytes), aligned(8)));
  typedef double Half __attribute__((vector_size(kVectorBytes / 2), aligned(8)));
  typedef long long Mask __attribute__((vector_size(kVectorBytes)));
  typedef unsigned long long Bits __attribute__((vector_size(kVectorBytes)));
};
template <class T> using VecOf = typename Vectors<T>::Full;
typedef Vectors<float>::Full Vec;

template <class T> inline VecOf<T> splat(T x) { return x - VecOf<T>{}; }
template <class T> inline VecOf<T> load(const T* p) { return *reinterpret_cast<const VecOf<T>*>(p); }
template <class T> inline void store(T* p, VecOf<T> v) { *reinterpret_cast<VecOf<T>*>(p) = v; }

}  // namespace
}  // namespace depthg
