#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can say about Baton, in one go and under 8 minutes: it builds
# (gcc and nvcc, no Bazel), checks each kernel against its plain-C twin, runs golden models alone and through the split
# on the one GPU, measures, runs the kernels under compute-sanitizer in what is left of the time, and prints the table
# of docs/BENCHMARKS.md.
#   tests/gpu/run.sh [FOLDER]       results, logs and the table: default build/gpu
# PARTS: words of "build checks split bench peer sanitizer", default all. DEVICE: which GPU, default 0. BUDGET: seconds
# that it may take, default 480; what comes last (peer, which compiles for minutes, and sanitizer) gets what is left.
# BATON_SYSROOT, NVCC, CUDA_HOME: see tests/gpu/build.sh. BATON_PYTHON: for the split and for transformers.
# Ends with "N passed, N failed, N skipped"; what was skipped says why. Without a GPU it builds, and skips the rest.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
out=${1:-build/gpu}
mkdir -p "$out/log"
out=$(readlink -f "$out")
parts=${PARTS:-build checks split bench peer sanitizer}
device=${DEVICE:-0}
python=${BATON_PYTHON:-$(command -v python3 || true)}
budget=${BUDGET:-480}
passed=0 failed=0 skipped=0
: > "$out/results.jsonl"

# compute-sanitizer comes with the toolkit, and is often no more on PATH than nvcc.
for at in "${CUDA_HOME:-/nonexistent}/bin" /usr/local/cuda/bin /opt/cuda/bin; do [[ ! -d "$at" ]] || PATH="$PATH:$at"; done

wants() { [[ " $parts " == *" $1 "* ]]; }
left() { echo $((budget - SECONDS)); }
skip() { # NAME WHY
  echo "SKIPPED $1: $2"
  skipped=$((skipped + 1))
}
# One step, with its own log, and never past the end of the budget.
step() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  ((seconds <= $(left))) || seconds=$(left)
  if ((seconds < 5)); then skip "$name" "the $budget s are used up"; return 1; fi
  local rc=0
  timeout "$seconds" "$@" > "$out/log/$name.log" 2>&1 || rc=$?
  if ((rc == 0)); then
    echo "PASSED  $name ($((SECONDS - start)) s)"
    passed=$((passed + 1))
    return 0
  fi
  if ((rc == 124)) && [[ "$name" == sanitizer-* ]]; then skip "$name" "not done in $seconds s; run it alone: PARTS=sanitizer"; return 1; fi
  ((rc != 124)) || echo "stopped after $seconds s" >> "$out/log/$name.log"
  echo "FAILED  $name ($((SECONDS - start)) s, exit $rc), the first errors and the end of $out/log/$name.log:"
  # The end of a test's log is the list of what failed; why is said where it failed.
  grep -a -m 8 -E '^ERROR: |: error: |level=error|^[A-Za-z]*Error: ' "$out/log/$name.log" | cut -c1-400 | sed 's/^/    /'
  echo "    ..."
  tail -n 10 "$out/log/$name.log" | cut -c1-400 | sed 's/^/    /'
  failed=$((failed + 1))
  return 1
}
# A bench's lines go to the results.
bench() { # NAME SECONDS COMMAND...
  local name=$1
  step "$@" || true
  grep '^{' "$out/log/$name.log" >> "$out/results.jsonl" 2> /dev/null || true
}
finish() {
  echo "$passed passed, $failed failed, $skipped skipped; $SECONDS s"
  ((failed == 0))
  exit
}

if wants build; then
  step build 300 tests/gpu/build.sh "$out" || finish
fi

if ! command -v nvidia-smi > /dev/null || ! gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader -i "$device" 2>&1); then
  skip gpu "no NVIDIA GPU here (${gpu:-nvidia-smi is not installed}): nothing more can be said"
  finish
fi
echo "GPU     $gpu"
printf '{"bench":"machine","gpu":"%s","date":"%s","commit":"%s"}\n' "$gpu" "$(date -u +%F)" \
  "$(git rev-parse --short HEAD 2> /dev/null || echo unknown)" >> "$out/results.jsonl"

# cuBLASLt may be here as a package of Python alone, wherever that keeps them.
wheels=$("${python:-false}" -c 'import nvidia.cu13; print(list(nvidia.cu13.__path__)[0] + "/lib")' 2> /dev/null || true)
[[ -z "$wheels" ]] || export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$wheels"
export BATON_CUDA_DEVICE=$device BATON_BIN="$out/bin"
if wants checks; then
  for program in "$out"/bin/tests/*_test; do
    name=$(basename "$program")
    case $name in
      # The others of these files make the emulated device fail.
      gemm_plan_test) only=("products_are_the_oracles" "a_call_of_three_is_three_products" "deterministic_*") ;;
      graph_test) only=("a_graph_reads_what_the_exchange_holds_now") ;;
      *) only=("*") ;;
    esac
    for pattern in "${only[@]}"; do
      of=${pattern//\*/}
      BATON_CHECK=$pattern step "check-$name${of:+-${of%_}}" 120 "$program" || true
    done
  done
fi

if wants split; then
  if [[ -z "$python" ]]; then
    skip split "no python3"
  else
    of_a_chip=()
    for test in $(sed -n 's/^    def \(test_[a-z_]*\).*/\1/p' tests/e2e/cuda_test.py); do
      [[ "$test" == test_memory_is_planned* ]] || of_a_chip+=("Cuda.$test") # which speaks of the emulated device's memory
    done
    step split 180 "$python" tests/e2e/cuda_test.py "${of_a_chip[@]}" || true
  fi
fi

if wants bench; then
  bench bench-device 60 "$out/bin/bench/device_bench" --device="$device"
  bench bench-device-deterministic 60 "$out/bin/bench/device_bench" --device="$device" --deterministic
  bench bench-model 90 "$out/bin/bench/model_bench" --device="$device" --model=bench/shapes/llama-3.1-8b
  bench bench-model-deterministic 90 "$out/bin/bench/model_bench" --device="$device" --model=bench/shapes/llama-3.1-8b --deterministic
  if [[ -n "$python" ]]; then bench bench-split 90 "$python" bench/gpu/split_ttft.py --device="$device"; fi
fi
if wants peer; then
  if [[ -z "$python" ]] || ! "$python" -c 'import torch, transformers' 2> /dev/null; then
    skip peer "no torch and transformers for ${python:-python3}"
  else
    bench bench-transformers 300 "$python" bench/gpu/transformers_side.py bench/shapes/llama-3.1-8b --batches=1,8,64 --rounds=3
  fi
fi

# What the sanitizer finds in our kernels, in what is left of the time; its own trouble with a machine is no fault of
# theirs. These programs run no kernels but ours.
if wants sanitizer; then
  if ! command -v compute-sanitizer > /dev/null; then
    skip sanitizer "compute-sanitizer is not installed"
  elif ! timeout 60 compute-sanitizer --tool memcheck "$out/bin/tests/crc32c_test" > "$out/log/sanitizer-probe.log" 2>&1; then
    skip sanitizer "compute-sanitizer does not work here: $(grep -m 1 -iE 'error|not supported' "$out/log/sanitizer-probe.log")"
  else
    for tool in memcheck racecheck; do
      for program in attention_test sample_test rows_test gemv_test kv_write_test slots_test; do
        step "sanitizer-$tool-$program" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 "$out/bin/tests/$program" || true
      done
    done
  fi
fi

if [[ -n "$python" ]]; then "$python" bench/gpu/table.py "$out/results.jsonl" | tee "$out/table.md"; fi
finish
