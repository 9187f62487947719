#!/usr/bin/env bash
# The nccl cable on a machine with one GPU, in one go and under 5 minutes: gathers, slots, streams and scatters through a
# communicator that sends to itself; two processes that NCCL takes for two hosts (NCCL_HOSTID) over its sockets: bytes, memory,
# time to init and to abort, kill -9 and SIGSTOP; and the whole split over it. Prints the tables of docs/BENCHMARKS.md, "NCCL on one GPU".
#   tests/nccl/one_gpu.sh [FOLDER]     results, logs and the tables: default build/gpu, where tests/gpu/build.sh builds
# PARTS: words of "build loop pairs deaths split", default all. DEVICE: which GPU, default 0. BATON_NCCL_LIBRARY: which
# libnccl.so.2; else the loader's, the toolkit's or the wheel's of BATON_PYTHON (default python3). For the rest of the
# environment see tests/gpu/build.sh. Needs gcc and nvcc, no Bazel.
# Ends with "N passed, N failed, N skipped"; what was skipped says why. Without a GPU it builds, and skips the rest.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
out=${1:-build/gpu}
mkdir -p "$out/log"
out=$(readlink -f "$out")
parts=${PARTS:-build loop pairs deaths split}
device=${DEVICE:-0}
python=${BATON_PYTHON:-$(command -v python3 || true)}
budget=290
passed=0 failed=0 skipped=0
results="$out/nccl.jsonl"
: > "$results"

wants() { [[ " $parts " == *" $1 "* ]]; }
skip() { # NAME WHY
  echo "SKIPPED $1: $2"
  skipped=$((skipped + 1))
}
# One step, with its own log, and never past the end of the budget; its lines go to the results.
step() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 start=$SECONDS rc=0
  shift 2
  ((seconds <= budget - SECONDS)) || seconds=$((budget - SECONDS))
  if ((seconds < 5)); then skip "$name" "the $budget s are used up"; return 1; fi
  timeout --kill-after=5 "$seconds" "$@" > "$out/log/nccl-$name.log" 2>&1 || rc=$?
  grep '^{' "$out/log/nccl-$name.log" >> "$results" 2> /dev/null || true
  if ((rc == 0)); then
    echo "PASSED  $name ($((SECONDS - start)) s)"
    passed=$((passed + 1))
    return 0
  fi
  ((rc != 124 && rc != 137)) || echo "stopped after $seconds s" >> "$out/log/nccl-$name.log"
  echo "FAILED  $name ($((SECONDS - start)) s), the end of $out/log/nccl-$name.log:"
  tail -n 15 "$out/log/nccl-$name.log" | sed 's/^/    /'
  failed=$((failed + 1))
  return 1
}
finish() {
  echo "$passed passed, $failed failed, $skipped skipped; $SECONDS s"
  ((failed == 0))
  exit
}

# What compiles takes is no part of the five minutes: a second run finds it built.
if wants build; then
  started=$SECONDS budget=100000
  step build 900 tests/gpu/build.sh "$out" || finish
  budget=$((290 + SECONDS - started))
fi

if ! command -v nvidia-smi > /dev/null || ! gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader -i "$device" 2>&1); then
  skip gpu "no NVIDIA GPU here (${gpu:-nvidia-smi is not installed}): nothing more can be said"
  finish
fi
echo "GPU     $gpu"

wheels=$("${python:-false}" -c 'import nvidia.cu13; print(list(nvidia.cu13.__path__)[0] + "/lib")' 2> /dev/null || true)
[[ -z "$wheels" ]] || export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$wheels"
library=${BATON_NCCL_LIBRARY:-}
if [[ -z "$library" ]] && ! ldconfig -p 2> /dev/null | grep -q 'libnccl\.so\.2 '; then
  wheel=$("${python:-false}" -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0] + "/lib")' 2> /dev/null || true)
  for at in "${CUDA_HOME:-/nonexistent}/lib64" /usr/local/cuda/lib64 /opt/cuda/lib64 "${wheel:-/nonexistent}"; do
    [[ -n "$library" || ! -e "$at/libnccl.so.2" ]] || library="$at/libnccl.so.2"
  done
  if [[ -z "$library" ]]; then
    skip nccl "no libnccl.so.2: install libnccl2 or pip install nvidia-nccl-cu13, or set BATON_NCCL_LIBRARY"
    finish
  fi
fi
named=()
[[ -z "$library" ]] || named=("--nccl-library=$library")

# 22809 is 2.28.9; loop and pairs say it.
machine() {
  printf '{"bench":"machine","gpu":"%s","nccl":"%s","date":"%s","commit":"%s"}\n' "$gpu" \
    "$(grep -oE '"nccl":[0-9]+' "$results" | head -n 1 | grep -oE '[0-9]+' || echo unknown)" "$(date -u +%F)" \
    "$(git rev-parse --short HEAD 2> /dev/null || echo unknown)" >> "$results"
}
for part in loop pairs deaths; do
  ! wants "$part" || step "$part" 90 "$out/bin/tests/nccl/one_gpu" --what="$part" --device="$device" "${named[@]}" || true
done
if wants split; then
  if [[ -z "$python" ]]; then
    skip split "no python3"
  else
    BATON_BIN="$out/bin" BATON_CUDA_DEVICE=$device step split 110 "$python" tests/nccl/one_gpu_split.py --device="$device" "${named[@]}" || true
  fi
fi
machine
if [[ -n "$python" ]]; then "$python" tests/nccl/one_gpu_table.py "$results" | tee "$out/nccl.md"; fi
finish
