#!/usr/bin/env bash
# Runs every bench and prints the tables of docs/BENCHMARKS.md.
#   bench/run.sh [quick|full] [FOLDER]     JSON lines go to FOLDER, default build/bench; full takes some 50 minutes
# LLAMA_BIN and LLAMA_MODELS: where llama.cpp's programs and the files of bench/peer/make_gguf.py are; without
# them the comparison shows our side alone. BATON_SHARED_DATA, or shared/data above the project: traces, tokenizers
# and stories260k. BENCH_DISK: a folder on the disk that the tiers are measured on, default FOLDER.
# Not here, because they make the figures of docs/KV_CACHE.md and write bench/figures/data: bench/figures/measure.py
# (fragmentation, prefix_hits and what it asks of engine_bench and the nodes) and bench/traces/measure.py.
# Parts that failed, and parts that were left out, are named at the end; their rows are missing from the tables.
set -u
cd "$(dirname "$0")/.."
mode=${1:-quick}
out=${2:-build/bench}
case $mode in quick | full) ;; *) sed -n 2,10p "$0"; exit 2 ;; esac
mkdir -p "$out"

if [ -z "${BATON_BIN:-}" ]; then
    bazel build //router //prefill_node //decode_node //client:baton //bench/engine:engine_bench //bench/kernels:all \
        //bench/kv:tier_bench //bench/quality:quality_bench //bench/router:router_bench //bench/rpc:rpc_bench \
        //bench/sampler:sampler_bench //bench/traces:trace_sim //bench/transfer:transfer_bench \
        //tests/fuzz/tokenizer:tokenizer_pipe || exit 1
    export BATON_BIN=$PWD/bazel-bin
fi

failed= left=
part() { # NAME COMMAND...: its JSON lines to NAME.jsonl
    local name=$1
    shift
    echo "$(date +%T) $name: $*" >&2
    if ! "$@" >"$out/$name.jsonl" 2>"$out/$name.err"; then
        failed="$failed $name"
        tail -n 3 "$out/$name.err" >&2
    fi
}
leave_out() { # NAME WHY
    echo "$(date +%T) $1: left out: $2" >&2
    left="$left $1"
}

data=${BATON_SHARED_DATA:-}
at=$PWD
while [ -z "$data" ] && [ "$at" != / ]; do
    at=$(dirname "$at")
    if [ -e "$at/shared/data/MANIFEST.md" ]; then data=$at/shared/data; fi
done

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
    part "kernels-$threads" "$BATON_BIN/bench/kernels/kernels_bench" --threads=$threads --rounds=$rounds
    part "weights-$threads" "$BATON_BIN/bench/kernels/weights_bench" --threads=$threads --rounds=$rounds
    for kv in bf16 int8; do
        part "attention-$kv-$threads" "$BATON_BIN/bench/kernels/attention_bench" --kv=$kv --threads=$threads --rounds=$rounds
    done
done
part sampler "$BATON_BIN/bench/sampler/sampler_bench"
part transfer "$BATON_BIN/bench/transfer/transfer_bench" --rounds=$rounds --slices=65536,4096
part tier "$BATON_BIN/bench/kv/tier_bench" "--path=${BENCH_DISK:-$out}/tier_bench.blocks" --rounds=$rounds
part rpc "$BATON_BIN/bench/rpc/rpc_bench"
part router "$BATON_BIN/bench/router/router_bench"

formats=()
if [ "$mode" = quick ]; then formats=(--weights=auto,int8 --kv=f32,bf16,int8); fi
part quality-tiny "$BATON_BIN/bench/quality/quality_bench" --model=models/baton-tiny --text=bench/quality/relay.txt "${formats[@]}"
if [ -d "$data/models/stories260k" ]; then
    part quality-stories "$BATON_BIN/bench/quality/quality_bench" "--model=$data/models/stories260k" \
        --text=bench/quality/stories.txt "${formats[@]}"
else
    leave_out quality-stories "shared/data is not here"
fi
if [ -z "$data" ]; then
    leave_out encode "shared/data is not here"
elif ! python3 -c 'import tokenizers' 2>/dev/null; then
    leave_out encode "python3 has no package tokenizers to compare with (on PyPI)"
else
    part encode python3 bench/tokenizer/encode_bench.py --json "--pipe=$BATON_BIN/tests/fuzz/tokenizer/tokenizer_pipe" \
        --rounds=$rounds "$data"/tokenizers/{gpt2,llama-3.2-3b-instruct,qwen3}
fi
if [ -f "$data/traces/mooncake-conversation.jsonl" ]; then
    requests=0 # all
    if [ "$mode" = quick ]; then requests=300; fi
    for cache in on off; do
        part "trace_sim-$cache" "$BATON_BIN/bench/traces/trace_sim" "--trace=$data/traces/mooncake-conversation.jsonl" \
            --requests=$requests --prefix-cache=$cache --prefill=24 --decode=8 --prefill-blocks=131072 --decode-blocks=262144
    done
else
    leave_out trace_sim "shared/data is not here"
fi

for name in push router decode trace ready sizes; do
    part "split-$name" python3 bench/split_bench.py $name $flag
done
peer=()
if [ "$mode" = quick ]; then peer+=(--quick --rounds=1); fi
if [ -n "${LLAMA_BIN:-}" ]; then
    peer+=("--llama-bin=$LLAMA_BIN" "--llama-models=${LLAMA_MODELS:-.}")
else
    leave_out llama.cpp "LLAMA_BIN is not set"
fi
part peer python3 bench/peer/compare.py "${peer[@]}"

python3 bench/table.py "$out"
python3 bench/peer/compare.py --table="$out/peer.jsonl"
echo "As JSON lines alone: $out/{kernels,weights,attention,sampler,tier,router,rpc,quality,encode,trace_sim}*.jsonl" >&2
if [ -n "$left" ]; then echo "left out:$left" >&2; fi
if [ -n "$failed" ]; then
    echo "failed:$failed; see $out/*.err" >&2
    exit 1
fi
