#!/usr/bin/env bash
# Builds the C++ code with AddressSanitizer and UndefinedBehaviorSanitizer in a scratch folder and runs tests on it:
#   bash tests/sanitize.sh                       the suites of what is written in C++, slow tests too
#   bash tests/sanitize.sh tests/features/test_knn.py ... other tests, or options of pytest
# PYTHON chooses the interpreter (default: python), CXX the compiler (g++). The first error of a sanitizer ends the run.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
cxx=${CXX:-g++}
flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for part in csrc kernels depthg tests setup.py pyproject.toml README.md LICENSE; do cp -r "$root/$part" "$scratch/"; done
find "$scratch" -name '_C*.so' -delete
ln -s ../kernels "$scratch/depthg/kernels"
cd "$scratch"
CXX="$cxx $flags" CXXFLAGS="${CXXFLAGS:--O1}" DEPTHG_BUILD=cpu "$python" setup.py -q build_ext --inplace
export LD_PRELOAD="$($cxx -print-file-name=libasan.so) $($cxx -print-file-name=libubsan.so) $($cxx -print-file-name=libstdc++.so.6)"
# Python leaks on purpose, and torch is not instrumented: only what is wrong in our code is to be told. Stacks that outlive
# their functions stay off: with them 64-byte vectors are misaligned and every test of the pair pass faults (GCC 12).
export ASAN_OPTIONS="detect_leaks=0:alloc_dealloc_mismatch=0:verify_asan_link_order=0:detect_stack_use_after_return=0"
export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1"
export PYTHONPATH="$scratch${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
built=$("$python" -c 'import depthg._C as c; print(c.__file__)' 2>&1 | tail -n 1)
case "$built" in "$scratch"/*) ;; *) echo "the tests would use $built, not the instrumented build" >&2; exit 1 ;; esac
export DEPTHG_SHIM_FLAGS="$flags"  # of the CUDA code that is compiled for the CPU
tests=("$@")
[ $# -gt 0 ] || tests=(-m "" tests/kernels/test_{fps,fps_cuda_on_cpu,sample_points,depthg_loss,upsampling,dense_crf}.py tests/features/test_knn.py)
grep -q __asan_ "$built" || { echo "$built is not instrumented" >&2; exit 1; }
"$python" -m pytest -p no:cacheprovider "${tests[@]}"
