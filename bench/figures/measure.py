#!/usr/bin/env python3
"""Measures what the figures of docs/KV_CACHE.md show; one JSON file each in bench/figures/data.

    bench/figures/measure.py NAME...|all      # then bench/figures/draw.py

cost           time of the n-th token with a KV cache and without one
fragmentation  idle room of a pool under the Azure traces, by how room is handed out
batching       one backlog of requests, continuous against static batches, on real processes
hits           prefix hits in the Mooncake traces, by size of the cache and by turn
turns          a chat of many turns through the three processes: TTFT and bytes moved, cache on and off
trace_turns    Mooncake's conversation trace at its own rate, on the simulator: TTFT by turn
window         blocks that a request holds while it grows, with and without a sliding window
long           a prompt of 128k tokens on a small model: time and memory
tiers          a chat that comes back: its prefix still there, in a tier, or computed again
preempt        a full pool: how the sequences that gave way come back
quality        perplexity by number format of the cache
itl            ITL of running streams while the same process reads a long prompt, by --itl-stretch
interference   the same in a split, and beside llama-server: from bench/figures/data/peer.jsonl, the --out of bench/peer/compare.py

Needs //router //prefill_node //decode_node //client:baton //bench/engine:engine_bench //bench/figures:all
//bench/traces:all //bench/quality:all, and for the traces BATON_SHARED_DATA or shared/data above this folder.
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
    if len(rows) > 600:  # a file for a figure of 600 pixels
        rows = rows[::len(rows) // 300]
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
    model, rows = ours.shape("qwen2.5-0.5b"), []
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

class Watch:
    """with Watch(cluster, "decode-0", seconds) as watch: watch.samples is [(seconds, metrics), ...]"""

    def __init__(self, cluster, node, every_s):
        self.cluster, self.node, self.every_s = cluster, node, every_s
        self.samples, self.until = [], threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        begin = time.monotonic()
        while not self.until.is_set():
            found = {}
            for name, value in self.cluster.metrics(self.node).items():
                state = name.split('state="')[1].split('"')[0] if 'state="' in name else ""
                found[name.split("{")[0] + ("/" + state if state else "")] = value
            self.samples.append((time.monotonic() - begin, found))
            time.sleep(self.every_s)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, value, trace):
        self.until.set()
        self.thread.join()


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
    model = ours.shape("qwen2.5-0.5b")
    for name, groups in (("continuous", [lengths]), ("static", [lengths[at:at + batch] for at in range(0, count, batch)])):
        with ours.split(model, prefill=0, threads=2, extra=("--batch-max=%d" % batch,)) as cluster:
            ours.load(cluster, "--requests=2", "--concurrency=2", "--input-tokens=32", "--output-tokens=4")
            with Watch(cluster, "decode-0", 0.1) as watch:
                begin = time.monotonic()
                for group in groups:
                    ours.load(cluster, "--trace=" + trace(group))
                seconds = time.monotonic() - begin
            samples = [(at, found["vllm:num_requests_running"]) for at, found in watch.samples]
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
    model, rows = ours.shape("qwen2.5-0.5b"), []
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
                    text += answer["token_ids"]
    store("turns", rows, "baton generate through router, prefill and decode node, one thread each, Qwen2.5-0.5B shape; 64 new "
          "tokens a turn, 32 of answer; --prefix-cache=on and off")


def trace_turns(scratch):
    """The whole trace at its own rate needs more nodes than a desk has: the real cores in virtual time."""
    program, rows = ours.binary("bench", "traces", "trace_sim"), []
    flags = ["--prefill=24", "--decode=8", "--prefill-blocks=131072", "--decode-blocks=262144"]
    for cache in ("on", "off"):
        path = os.path.join(traces(), "mooncake-conversation.jsonl")
        rows += [line for line in json_lines([program, "--trace=" + path, "--prefix-cache=" + cache, *flags])
                 if line["bench"] in ("trace", "trace_turn")]
    store("trace_turns", rows, "trace_sim (the real cores in virtual time, modelled steps and links), Mooncake's conversation trace, "
          + " ".join(flags))


# ---- sliding window, long context

def small_model(scratch, name, **changes):
    """A Llama of 2 layers with a context of 256k tokens, random weights; changes: fields of its config.json."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 2048, "hidden_size": 256,
              "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
              "max_position_embeddings": 262144, "rope_theta": 500000.0, "rms_norm_eps": 1e-05, "hidden_act": "silu",
              "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16", **changes}
    os.makedirs(os.path.join(scratch, "shapes", name), exist_ok=True)
    with open(os.path.join(scratch, "shapes", name, "config.json"), "w") as file:
        json.dump(config, file)
    return ours.shape(name, os.path.join(scratch, "shapes"))


def window(scratch):
    rows, size = [], 512
    for name, changes in (("none", {}), ("512 tokens", {"architectures": ["MistralForCausalLM"], "model_type": "mistral",
                                                        "sliding_window": size})):
        model = small_model(scratch, "window-" + name.split()[0], **changes)
        with ours.split(model, prefill=0, threads=2, kv_memory="32MiB") as cluster:
            with Watch(cluster, "decode-0", 0.05) as watch:
                ours.load(cluster, "--requests=1", "--concurrency=1", "--input-tokens=64", "--output-tokens=12000")
            for _, found in watch.samples:
                tokens = found["baton_node_prompt_tokens_total"] + found["baton_node_generation_tokens_total"]
                if found["baton_kv_blocks/held"]:
                    rows.append({"window": name, "tokens": tokens, "blocks_held": found["baton_kv_blocks/held"]})
    store("window", rows, "one request of 64 + 12,000 tokens on a decode node alone, a Llama of 2 layers with and without a sliding "
          "window of 512, blocks of 16 tokens, /metrics every 50 ms")


def long(scratch):
    model, rows, length = small_model(scratch, "long"), [], 131072
    with ours.split(model, prefill=0, threads=2, kv_memory="160MiB") as cluster:
        pid = cluster.nodes["decode-0"].popen.pid
        memory = []
        with Watch(cluster, "decode-0", 0.5) as watch:
            until = threading.Event()

            def sample():
                begin = time.monotonic()
                while not until.is_set():
                    memory.append((time.monotonic() - begin, ours.memory_mib(pid)))
                    time.sleep(0.5)
            thread = threading.Thread(target=sample)
            thread.start()
            answer = ours.load(cluster, "--requests=1", "--concurrency=1", "--input-tokens=%d" % length, "--output-tokens=32")
            until.set()
            thread.join()
        for (at, found), (_, resident) in zip(watch.samples, memory):
            rows.append({"seconds": round(at, 2), "blocks_held": found["baton_kv_blocks/held"],
                         "prompt_tokens": found["baton_node_prompt_tokens_total"],
                         "own_mib": resident["rssanon"], "pool_mib": resident["rssshmem"], "resident_mib": resident["vmrss"]})
        rows.append({"ttft_ms": answer["ttft_ms"]["p50"], "tpot_ms": answer["tpot_ms"]["p50"], "ok": answer["ok"]})
    store("long", rows, "one request of 131,072 + 32 tokens on a decode node alone, a Llama of 2 layers, --kv-memory=160MiB, 2 threads, "
          "prefill in chunks of 256")


# ---- tiers

def tiers(scratch):
    """A chat comes back after others have filled the pool. What is asked twice is the same prompt; between the
    two, other prompts of more than the pool's size pass through."""
    model, rows = ours.shape("qwen2.5-0.5b"), []
    flags = {"pool": ["--kv-memory=256MiB"], "host": ["--kv-memory=32MiB", "--kv-host-memory=512MiB"],
             "disk": ["--kv-memory=32MiB", "--kv-disk=512MiB", "--kv-disk-path=" + os.path.join(scratch, "tier")],
             "recompute": ["--kv-memory=32MiB"]}
    for name, extra in flags.items():
        with ours.split(model, prefill=0, threads=2, kv_memory=None, extra=extra) as cluster:
            for length in (256, 512, 1024, 2048):
                text = streams.prompt(length, length)
                ask = ["--tokens=" + ",".join(map(str, text)), "--max-tokens=2", "--ignore-eos", "--temperature=0"]
                cluster.generate(*ask)
                if name != "pool":
                    for other in range(2):
                        ours.load(cluster, "--requests=1", "--concurrency=1", "--input-tokens=1500", "--output-tokens=2",
                                  "--seed=%d" % (length + other))
                time.sleep(1)
                answer = cluster.generate(*ask)
                rows.append({"where": name, "prompt_tokens": length, "ttft_ms": answer["timing"]["ttft_ms"],
                             "cached_tokens": answer["usage"].get("cached_prompt_tokens", 0)})
    store("tiers", rows, "a prompt asked again after others passed through, decode node alone, 2 threads, Qwen2.5-0.5B shape; pool of "
          "256 MiB, else 32 MiB with --kv-host-memory, --kv-disk or neither")


# ---- formats of the cache

def quality(scratch):
    program, root = ours.binary("bench", "quality", "quality_bench"), os.path.join(HERE, "..", "..")
    cases = [(ours.clusters.find_model(), "relay.txt")]
    if compare.find_data():
        cases.append((os.path.join(compare.find_data(), "models", "stories260k"), "stories.txt"))
    rows = []
    for model, text in cases:
        rows += json_lines([program, "--model=" + model, "--text=" + os.path.join(root, "bench", "quality", text), "--weights=auto", "--kv=f32,bf16,f16,int8,fp8_e4m3"])
    rows = list({(row["model"], row["kv"]): dict(row, model=os.path.basename(row["model"]), text=os.path.basename(row["text"]))
                 for row in rows}.values())
    store("quality", rows, "quality_bench --weights=auto, baton-tiny on relay.txt and stories260k on stories.txt; bytes at head size 64, "
          "with their scales")


# ---- preemption

def preempt(scratch):
    """Twelve sequences in a pool that holds about six at their full length."""
    model, rows = ours.shape("qwen2.5-0.5b"), []
    for name, extra in (("room for all", ["--kv-memory=128MiB"]), ("recompute", ["--kv-memory=20MiB", "--preempt=recompute"]),
                        ("swap", ["--kv-memory=20MiB", "--preempt=swap", "--kv-host-memory=512MiB"])):
        with ours.split(model, prefill=0, threads=2, kv_memory=None, extra=extra) as cluster:
            answer = ours.load(cluster, "--requests=12", "--concurrency=12", "--input-tokens=64", "--output-tokens=192")
            found = cluster.metrics("decode-0")
            value = lambda start: sum(v for key, v in found.items() if key.startswith(start))
            rows.append({"policy": name, "ok": answer["ok"], "seconds": answer["seconds"], "output_tokens_s": answer["output_tokens_per_s"],
                         "preemptions": value("vllm:num_preemptions_total"), "prompt_tokens": value("baton_node_prompt_tokens_total"),
                         "itl_max_ms": answer["itl_ms"]["max"]})
    store("preempt", rows, "baton bench, 12 sequences of 64 + 192 tokens at once on a decode node alone, Qwen2.5-0.5B shape, 2 threads")


# ---- mixed steps

def itl(scratch):
    model, rows = ours.shape("qwen2.5-0.5b"), []
    for stretch in ("0", "3", "1.5"):
        with ours.split(model, prefill=0, threads=2, extra=("--itl-stretch=" + stretch,)) as cluster:
            def opened(tokens, count):
                return streams.BatonStream(cluster, tokens, count)
            found = [streams.interference(opened, 8, 1000, 2.0, turn + 1) for turn in range(3)]
        found.sort(key=lambda one: one["stretch_p99"])
        rows.append(dict(found[1], stretch=float(stretch)))
    store("itl", rows, "8 streams and one prompt of 1,000 tokens on a decode node alone, 2 threads, Qwen2.5-0.5B shape, by --itl-stretch")


def interference(scratch):
    """Not measured here: the lines that compare.py stored."""
    with open(os.path.join(DATA, "peer.jsonl")) as file:
        rows = [line for line in map(json.loads, file) if line["bench"] == "interference"]
    if not rows:
        sys.exit("interference: bench/figures/data/peer.jsonl has no such lines: bench/peer/compare.py --rows=interference --out=FILE")
    store("interference", rows, "bench/peer/compare.py --rows=interference, %s shape, medians of %d" % (rows[0]["shape"], rows[0]["rounds"]))


PARTS = {name: globals()[name] for name in ("cost", "fragmentation", "batching", "hits", "turns", "trace_turns", "window", "long", "tiers", "preempt", "itl", "quality", "interference")}


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
