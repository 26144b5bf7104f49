#!/usr/bin/env bash
# Everything that needs a GPU, in one go, on a bare machine with torch: builds in place, checks every path, looks for
# faults of memory with compute-sanitizer, and times losses, sampling and a step against eager, torch.compile and
# packages. Goes on after a failure; ends with a line per part and status 1 when one failed.
#
#     [OUT=DIR] [BUDGET_S=520] [PYTHON=python] bash bench/gpu.sh [--interpret]
#
# Writes a JSON file and a log per part to $OUT (default bench/results). Without a GPU it says so and ends with status 2;
# --interpret then runs small checks in Triton's interpreter, which tries the script and not a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
out=$(realpath -m "${OUT:-bench/results}")
budget=${BUDGET_S:-520}
mkdir -p "$out"
export PYTHONUNBUFFERED=1
summary=() failed=0

# part NAME LIMIT COMMAND...: runs it for at most LIMIT seconds, or for what is left of the budget.
part() {
  local name=$1 limit=$2 left=$((budget - SECONDS)) began=$SECONDS status
  shift 2
  if [ "$left" -lt 5 ]; then
    summary+=("$name: skipped, $budget s are over")
    return 1
  fi
  echo "== $name: $*"
  timeout --kill-after=5 "$((limit < left ? limit : left))" "$@" > >(tee "$out/$name.log") 2>&1
  status=$?
  if [ "$status" -eq 0 ]; then
    summary+=("$name: ok, $((SECONDS - began)) s")
  else
    [ "$status" -eq 124 ] && status="$limit s are over"
    summary+=("$name: FAILED ($status), $((SECONDS - began)) s; see $out/$name.log")
    failed=1
  fi
  [ "$status" = 0 ]
}

finish() {
  printf '%s\n' "== summary" "${summary[@]}" | tee "$out/gpu-summary.txt"
  exit "$failed"
}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  if [ "${1:-}" != --interpret ]; then
    echo "torch sees no CUDA device here: nothing was built, checked or timed (--interpret tries the script without one)"
    exit 2
  fi
  part check 300 "$python" bench/check_gpu.py --interpret --json "$out/check-interpreted.json"
  finish
fi

# Pure packages that the project needs and the machine lacks; torch and what comes with it stay as they are.
missing=$("$python" - <<'PYTHON'
from importlib.util import find_spec
names = {"pybind11": "pybind11", "ninja": "ninja", "numpy": "numpy", "scipy": "scipy", "PIL": "pillow", "safetensors": "safetensors"}
names |= {"hydra": "hydra-core", "omegaconf": "omegaconf", "antlr4": "antlr4-python3-runtime==4.9.3", "rich": "rich"}
names |= {"yaml": "pyyaml", "markdown_it": "markdown-it-py", "mdurl": "mdurl", "pygments": "pygments"}
names |= {"packaging": "packaging", "matplotlib": "matplotlib", "setuptools": "setuptools"}
print(" ".join(package for module, package in names.items() if find_spec(module) is None))
PYTHON
)
# shellcheck disable=SC2086
[ -z "$missing" ] || part packages 60 "$python" -m pip install -q --no-deps --disable-pip-version-check $missing

install="$python -m pip install -q --no-deps --no-build-isolation --disable-pip-version-check -e ."
# shellcheck disable=SC2086
part build 200 env DEPTHG_BUILD=cuda $install || part build-cpu 100 env DEPTHG_BUILD=cpu $install

part check 200 "$python" bench/check_gpu.py --seconds 180 --json "$out/check.json"
part loss-paper 100 "$python" bench/loss.py --device cuda --case "paper step (ViT-S)" --json "$out/loss-paper.json"
part fps 60 "$python" bench/fps.py --device cuda --quick --json "$out/fps.json"
part step 50 "$python" bench/step.py --device cuda --json "$out/step.json"
part loss-dense 60 "$python" bench/loss.py --device cuda --case "dense, N=32" --no-compile --json "$out/loss-dense.json"

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -z "$sanitizer" ]; then
  summary+=("memcheck, racecheck: not run, compute-sanitizer is not installed")
else
  for tool in memcheck racecheck; do
    for kernels in fps loss; do
      part "$tool-$kernels" 60 "$sanitizer" --tool "$tool" --error-exitcode 3 \
        "$python" bench/check_gpu.py --small --only "$kernels" --seconds 40 --json "$out/$tool-$kernels.json"
    done
  done
fi
finish
