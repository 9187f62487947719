#!/usr/bin/env python3
"""Measures what the figures of docs/KV_CACHE.md show; one JSON file each in bench/figures/data.

    bench/figures/measure.py NAME...|all      # then bench/figures/draw.py

cost           time of the n-th token with a KV cache and without one
fragmentation  idle room of a pool under the Azure traces, by how room is handed out
batching       one backlog of requests, continuous against static batches, on real processes
hits           prefix hits in the Mooncake traces, by size of the cache and by turn
turns          a chat of many turns through the three processes: TTFT and bytes moved, cache on and off
window         blocks that a request holds while it grows, with and without a sliding window
tiers          a chat that comes back: its prefix still there, in a tier, or computed again
preempt        a full pool: how the sequences that gave way come back
itl            ITL of running streams while the same process reads a long prompt, by --itl-stretch

Needs //router //prefill_node //decode_node //client:baton //bench/engine:engine_bench //bench/figures:all, and
for the traces BATON_SHARED_DATA or shared/data above this folder.
"""
import csv
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "peer")]
import baton_side as ours  # noqa: E402
import compare             # noqa: E402
import streams             # noqa: E402

DATA = os.path.join(HERE, "data")


def store(name, rows, command):
    """A file that says where its figures come from."""
    with open("/proc/cpuinfo") as file:
        cpu = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    git = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {"command": command, "machine": "%s, %d cores" % (cpu, os.cpu_count()), "date": datetime.date.today().isoformat(),
             "commit": git, "load": round(os.getloadavg()[0], 1)}
    with open(os.path.join(DATA, name + ".json"), "w") as file:
        file.write(json.dumps(about)[:-1] + ', "rows": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n")
    print("%s: %d rows" % (name, len(rows)), file=sys.stderr)


def traces():
    data = compare.find_data()
    if not data:
        sys.exit("the stored traces are not here: set BATON_SHARED_DATA")
    return os.path.join(data, "traces")


def json_lines(argv):
    got = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in got.stdout.splitlines()]


# ---- cost of a token

def cost(scratch):
    """Without a cache a token costs the whole text before it: the prompt of that length is what is timed."""
    model, rows = ours.shapes.make("qwen2.5-0.5b", scratch), []
    for length in (16, 64, 128, 256, 512, 1024, 2048):
        lines = ours.engine(model, 2, batches=(1,), prompts=(length,), context=length, rounds=3)
        rows.append({"length": length, "with_cache_ms": ours.case(lines, "decode", batch=1)["step_ms"],
                     "without_cache_ms": ours.case(lines, "prefill", prompt_tokens=length)["seconds"] * 1e3})
    store("cost", rows, "engine_bench, Qwen2.5-0.5B shape, 2 threads: decode at a context of n, prefill of n")


# ---- fragmentation

def fragmentation(scratch):
    program, rows = ours.binary("bench", "figures", "fragmentation"), []
    for trace in ("conv", "code"):
        path = os.path.join(traces(), "azure-llm-2023-%s.csv" % trace)
        for line in json_lines([program, "--trace=" + path, "--pool-tokens=65536", "--requests=3000"]):
            if line["bench"] == "fragmentation":
                rows.append(dict(line, trace=trace))
    store("fragmentation", rows, "fragmentation --pool-tokens=65536 --requests=3000, kv_pool, Azure traces")


# ---- batching

def running_sequences(address, samples, until):
    import urllib.request
    begin = time.monotonic()
    while not until.is_set():
        with urllib.request.urlopen("http://%s/metrics" % address, timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("vllm:num_requests_running"):
                    samples.append((time.monotonic() - begin, float(line.rsplit(" ", 1)[1])))
        time.sleep(0.1)


def batching(scratch):
    """The same backlog twice. Static: eight requests go in together and the next eight wait for the last of them."""
    batch, count = 8, 64
    with open(os.path.join(traces(), "azure-llm-2023-conv.csv")) as file:
        lengths = [(max(1, int(row["ContextTokens"]) // 16), max(2, int(row["GeneratedTokens"]) // 4))
                   for _, row in zip(range(count), csv.DictReader(file))]

    def trace(part):
        path = os.path.join(scratch, "backlog.jsonl")
        with open(path, "w") as file:
            for inputs, outputs in part:
                print(json.dumps({"timestamp": 0, "input_length": inputs, "output_length": outputs}), file=file)
        return path

    rows = []
    model = ours.shapes.make("qwen2.5-0.5b", scratch)
    for name, groups in (("continuous", [lengths]), ("static", [lengths[at:at + batch] for at in range(0, count, batch)])):
        with ours.split(model, prefill=0, threads=2, extra=("--batch-max=%d" % batch,)) as cluster:
            ours.load(cluster, "--requests=2", "--concurrency=2", "--input-tokens=32", "--output-tokens=4")
            samples, until = [], threading.Event()
            watcher = threading.Thread(target=running_sequences, args=(cluster.metrics_addresses["decode-0"], samples, until))
            watcher.start()
            begin = time.monotonic()
            for group in groups:
                answer = ours.load(cluster, "--trace=" + trace(group))
                if answer["ok"] != len(group):
                    raise RuntimeError("batching: %s" % answer)
            seconds = time.monotonic() - begin
            until.set()
            watcher.join()
        rows.append({"policy": name, "batch": batch, "requests": count, "seconds": seconds,
                     "output_tokens": sum(outputs for _, outputs in lengths),
                     "output_tokens_s": sum(outputs for _, outputs in lengths) / seconds,
                     "running_mean": statistics.mean(value for at, value in samples if at < seconds),
                     "running": [[round(at, 2), value] for at, value in samples if at <= seconds + 0.5]})
    store("batching", rows, "baton bench over router and one decode node, --batch-max=8, Qwen2.5-0.5B shape, 2 threads; the first "
          "64 requests of the Azure conversation trace as a backlog, prompts / 16, outputs / 4")


# ---- prefix hits

def hits(scratch):
    program, rows = ours.binary("bench", "figures", "prefix_hits"), []
    for trace in ("conversation", "synthetic"):
        path = os.path.join(traces(), "mooncake-%s.jsonl" % trace)
        for line in json_lines([program, "--trace=" + path]):
            rows.append(dict(line, trace=trace))
    store("hits", rows, "prefix_hits over kv_cache, the Mooncake traces, blocks of 512 tokens as the traces have them")


# ---- turns of a chat

def turns(scratch):
    """Each turn sends all of the text so far and 64 new tokens, and gets 32."""
    model, rows = ours.shapes.make("qwen2.5-0.5b", scratch), []
    for cache in ("on", "off"):
        with ours.split(model, threads=1, extra=("--prefix-cache=" + cache,)) as cluster:
            cluster.generate("--tokens=1,2,3", "--max-tokens=2", "--ignore-eos")
            for chat in range(3):
                text = []
                for turn in range(8):
                    text += streams.prompt(64, chat * 100 + turn)
                    answer = cluster.generate("--tokens=" + ",".join(map(str, text)), "--max-tokens=32", "--ignore-eos",
                                              "--temperature=0", timeout=300)
                    rows.append({"cache": cache, "chat": chat, "turn": turn + 1, "prompt_tokens": len(text),
                                 "ttft_ms": answer["timing"]["ttft_ms"], "kv_bytes": answer["route"].get("kv_bytes", 0),
                                 "cached_tokens": answer["usage"].get("cached_prompt_tokens", 0)})
                    text += answer["sequences"][0]["tokens"] if "sequences" in answer else answer["tokens"]
    store("turns", rows, "baton generate through router, prefill and decode node, one thread each, Qwen2.5-0.5B shape; 64 new "
          "tokens a turn, 32 of answer; --prefix-cache=on and off")


PARTS = {name: globals()[name] for name in ("cost", "fragmentation", "batching", "hits", "turns")}


def main():
    wanted = sys.argv[1:]
    if wanted == ["all"]:
        wanted = list(PARTS)
    if not wanted or any(name not in PARTS for name in wanted):
        sys.exit(__doc__)
    os.makedirs(DATA, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="baton-figures-") as scratch:
        for name in wanted:
            PARTS[name](scratch)


if __name__ == "__main__":
    main()
