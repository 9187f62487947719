#!/usr/bin/env bash
# Runs every bench and prints the tables of docs/BENCHMARKS.md.
#   bench/run.sh [quick|full] [FOLDER]     JSON lines go to FOLDER, default build/bench; full takes some 40 minutes
# LLAMA_BIN and LLAMA_MODELS: where llama.cpp's programs and the files of bench/peer/make_gguf.py are; without
# them the comparison shows our side alone. The figures of docs/KV_CACHE.md are bench/figures/measure.py's.
# Parts that failed are named at the end; their rows are missing from the tables.
set -u
cd "$(dirname "$0")/.."
mode=${1:-quick}
out=${2:-build/bench}
case $mode in quick | full) ;; *) sed -n 2,6p "$0"; exit 2 ;; esac
mkdir -p "$out"

if [ -z "${BATON_BIN:-}" ]; then
    bazel build //router //prefill_node //decode_node //client:baton //bench/engine:engine_bench \
        //bench/kernels:kernels_bench //bench/transfer:transfer_bench //bench/rpc:rpc_bench //bench/router:router_bench || exit 1
    export BATON_BIN=$PWD/bazel-bin
fi

failed=
part() { # NAME COMMAND...: its JSON lines to NAME.jsonl
    local name=$1
    shift
    echo "$(date +%T) $name: $*" >&2
    if ! "$@" >"$out/$name.jsonl" 2>"$out/$name.err"; then
        failed="$failed $name"
        tail -n 3 "$out/$name.err" >&2
    fi
}

rounds=5 flag=
if [ "$mode" = quick ]; then rounds=3 flag=--quick; fi
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
printf '{"bench":"machine","cpu":"%s","cores":%s,"kernel":"%s","compiler":"%s","commit":"%s","load_before":"%s","mode":"%s"}\n' \
    "$cpu" "$(nproc)" "$(uname -r)" "$(gcc --version | head -n 1)" "$(git rev-parse --short HEAD 2>/dev/null)" \
    "$(cut -d' ' -f1-3 /proc/loadavg)" "$mode" >"$out/machine.jsonl"

for threads in 1 2; do
    [ "$threads" -le "$(nproc)" ] || continue
    for shape in qwen2.5-0.5b llama-3.2-1b; do
        list=512
        if [ "$mode $shape $threads" = "full qwen2.5-0.5b 1" ]; then list=512,2048; fi
        part "engine-$shape-$threads" "$BATON_BIN/bench/engine/engine_bench" "--model=bench/shapes/$shape" \
            --threads=$threads --rounds=$rounds --prompts=$list
    done
done
part transfer "$BATON_BIN/bench/transfer/transfer_bench" --rounds=$rounds --slices=65536,4096
part rpc "$BATON_BIN/bench/rpc/rpc_bench"
part router "$BATON_BIN/bench/router/router_bench"
for name in push router decode trace ready sizes; do
    part "split-$name" python3 bench/split_bench.py $name $flag
done
peer=()
if [ "$mode" = quick ]; then peer+=(--quick --rounds=1); fi
if [ -n "${LLAMA_BIN:-}" ]; then peer+=("--llama-bin=$LLAMA_BIN" "--llama-models=${LLAMA_MODELS:-.}"); fi
part peer python3 bench/peer/compare.py "${peer[@]}"

python3 bench/table.py "$out"
python3 bench/peer/compare.py --table="$out/peer.jsonl"
if [ -n "$failed" ]; then
    echo "failed:$failed; see $out/*.err" >&2
    exit 1
fi
