// Names in *_simd.cpp files. setup.py compiles each of them once per instruction set, with DEPTHG_ISA_NAME=baseline, avx2 or
// avx512; isa.h chooses a copy at run time.
#pragma once

#define DEPTHG_JOIN_(a, b) a##_##b
#define DEPTHG_JOIN(a, b) DEPTHG_JOIN_(a, b)
#define DEPTHG_FOR_ISA(name) DEPTHG_JOIN(name, DEPTHG_ISA_NAME)
