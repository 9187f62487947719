#!/usr/bin/env python3
"""Figures of the whole split, real processes on loopback, as JSON lines.

    bench/split_bench.py ready|decode|push|router|trace|sizes [--quick]

ready    time from exec to ready, and memory: the tiny model and both shapes
decode   `baton bench` at concurrency 1, 8 and 32 on the shape of Qwen2.5-0.5B, one compute thread a node
push     how much of the transfer hides behind the prompt's computation, over tcp
router   latency that the split adds to a step, requests/s, CPU and memory of the router
trace    a slice of the Mooncake conversation trace, scaled down to the tiny model
sizes    binaries, stripped, and the shared libraries that they need

Needs the binaries: bazel build //router //prefill_node //decode_node //client:baton //bench/engine:engine_bench
"""
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "tests", "e2e"), os.path.join(HERE, "shapes")]
import cluster as clusters  # noqa: E402
import make as shapes       # noqa: E402

QUICK = "--quick" in sys.argv
SHAPES = ("qwen2.5-0.5b", "llama-3.2-1b")
TICKS = os.sysconf("SC_CLK_TCK")


def emit(**figures):
    print(json.dumps(figures), flush=True)


def median(values):
    return statistics.median(values)


def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid) as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(pid):
    """RSS: anonymous, mapped files, shared memory (the KV pool)."""
    with open("/proc/%d/status" % pid) as file:
        text = file.read()
    return {key.lower(): round(int(re.search(r"^%s:\s+(\d+)" % key, text, re.M).group(1)) / 1024, 1)
            for key in ("RssAnon", "RssFile", "RssShmem")}


def bench(cluster, *flags, timeout=600):
    got = cluster.run("bench", "--json", *flags, timeout=timeout)
    if got.returncode != 0:
        sys.exit("baton bench %s: %s" % (" ".join(flags), got.stderr or got.stdout))
    return json.loads(got.stdout)


def make_shape(name, folder):
    return shapes.make(name, folder)


# ---- ready

def ready_once(argv, listen):
    """Milliseconds from exec until the process says it is ready, and its memory then."""
    begin = time.monotonic()
    process = subprocess.Popen([*argv, "--listen=" + listen], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    own_ms, lines = None, []
    for line in process.stderr:
        lines.append(line.decode(errors="replace"))
        if "event=ready" in lines[-1]:
            own_ms = (time.monotonic() - begin) * 1e3
            break
    if own_ms is None:
        sys.exit("%s did not start: %s" % (argv[0], "".join(lines)))
    memory = memory_mib(process.pid)
    process.kill()
    process.wait()
    process.stderr.close()
    return own_ms, memory


def ready(folder):
    root = clusters.find_root()
    rounds = 3 if QUICK else 7
    for model, load in ((clusters.find_model(), "auto"), *((make_shape(name, folder), "dummy") for name in SHAPES)):
        for service, flags in (("router", []), ("decode_node", ["--threads=1", "--load=" + load, "--uds-dir=" + folder])):
            argv = [os.path.join(root, service, service), "--model=" + model, *flags]
            if service == "router":
                argv.append("--decode=127.0.0.1:9")
            runs = [ready_once(argv, "127.0.0.1:%d" % clusters.free_port()) for _ in range(rounds if load == "auto" else 3)]
            times = sorted(ms for ms, _ in runs)
            emit(bench="ready", service=service, model=os.path.basename(model), load=load, ready_ms=round(median(times), 1),
                 ready_ms_min=round(times[0], 1), ready_ms_max=round(times[-1], 1), rounds=len(times), **runs[-1][1])


# ---- decode through the split

def decode(folder):
    model = make_shape("qwen2.5-0.5b", folder)
    with clusters.Cluster(model=model, common=["--load=dummy", "--kv-memory=512MiB"], threads=1) as cluster:
        for concurrency in (1, 8, 32):
            outputs = 16 if QUICK else 32
            answer = bench(cluster, "--requests=%d" % (concurrency if concurrency > 1 else 2), "--concurrency=%d" % concurrency,
                           "--input-tokens=32", "--output-tokens=%d" % outputs)
            emit(bench="split_decode", model="qwen2.5-0.5b", concurrency=concurrency, **pick(answer))


def pick(answer):
    """The figures of `baton bench --json` that tables show, whatever else it holds."""
    picked = {}
    for name in ("ttft_ms", "tpot_ms", "itl_ms"):
        for quantile in ("p50", "p90", "p99"):
            picked["%s_%s" % (name[:-3], quantile)] = round(answer[name][quantile], 3)
    for name in ("requests", "ok", "requests_per_s", "output_tokens_per_s", "input_tokens_per_s", "goodput_per_s"):
        if name in answer:
            picked[name] = round(answer[name], 2) if isinstance(answer[name], float) else answer[name]
    return picked


# ---- the layer push

def push(folder):
    """hidden = 1 - tail / alone. tail: from the first token, which P sends when the prompt's last step is
    done, until D says that everything has landed and was checked; both as they reach the router. alone: the same bytes over the same cable
    in one go while nothing computes, measured by bench/transfer in the same run."""
    for name, lengths in ((SHAPES[0], (512, 1024, 2048)), (SHAPES[1], (256, 512))):
        if QUICK and name != SHAPES[0]:
            continue
        model = make_shape(name, folder)
        with clusters.Cluster(model=model, common=["--load=dummy", "--kv-memory=256MiB", "--cables=tcp"], threads=1) as cluster:
            for length in lengths[:2] if QUICK else lengths:
                tails, computes, moved = [], [], 0
                for turn in range(3 if QUICK else 5):
                    tokens = ",".join(str((i * 7919 + turn * 31) % 100000) for i in range(length))
                    answer = cluster.generate("--tokens", tokens, "--max-tokens=2", "--ignore-eos", timeout=300)
                    timing, moved = answer["timing"], answer["route"]["kv_bytes"]
                    tails.append(timing["handover_ms"])
                    computes.append(timing["prefill_ms"])
                    transport = answer["route"]["transport"]
                tail, alone = median(tails), tcp_alone_ms(moved, 8192 if name == SHAPES[0] else 32768)
                emit(bench="push", model=name, prompt_tokens=length, transport=transport, kv_mb=round(moved / 1e6, 2),
                     compute_ms=round(median(computes), 1), transfer_alone_ms=round(alone, 2), tail_ms=round(tail, 3),
                     tail_ms_min=round(min(tails), 3), tail_ms_max=round(max(tails), 3), hidden=round(1 - tail / alone, 3),
                     rounds=len(tails))


def tcp_alone_ms(size, slice_bytes):
    """Milliseconds that the tcp cable needs for so many bytes in slices of one (block, layer) of the shape."""
    binary = os.path.join(clusters.find_root(), "bench", "transfer", "transfer_bench")
    mib = max(1, round(size / 2**20))
    got = subprocess.run([binary, "--rounds=7", "--cables=tcp", "--slices=%d" % slice_bytes, "--mib=%d" % mib, "--iperf3=no"],
                         capture_output=True, text=True, check=True)
    for line in got.stdout.splitlines():
        figures = json.loads(line)
        if figures["bench"] == "kv_transfer":
            return size / figures["gbps"] / 1e6
    sys.exit("transfer_bench printed no figure of tcp")


# ---- the router

def router(folder):
    engine = os.path.join(clusters.find_root(), "bench", "engine", "engine_bench")
    with clusters.Cluster(prefill=1, decode=1, common=["--kv-memory=64MiB"], threads=1) as cluster:
        pid = cluster.router.popen.pid
        time.sleep(1)
        begin = cpu_seconds(pid)
        time.sleep(2 if QUICK else 10)
        idle = (cpu_seconds(pid) - begin) / (2 if QUICK else 10)
        emit(bench="router_idle", cpu_share=round(idle, 4), **memory_mib(pid))
        steps = []
        tpots, ttfts = [], []
        for _ in range(3 if QUICK else 7):  # side by side, as neighbours come and go
            got = subprocess.run([engine, "--model=" + cluster.model, "--load=auto", "--threads=1", "--rounds=3", "--batches=1",
                                  "--prompts=64", "--context=64"], capture_output=True, text=True, check=True)
            figures = [json.loads(line) for line in got.stdout.splitlines()]
            steps.append((next(f["step_ms"] for f in figures if f["bench"] == "decode"),
                          next(f["seconds"] * 1e3 for f in figures if f["bench"] == "prefill")))
            answer = bench(cluster, "--requests=20", "--concurrency=1", "--input-tokens=64", "--output-tokens=64")
            tpots.append(answer["tpot_ms"]["p50"])
            ttfts.append(answer["ttft_ms"]["p50"])
        step, prompt = median([s for s, _ in steps]), median([p for _, p in steps])
        emit(bench="added_latency", model="baton-tiny", step_ms=round(step, 3), tpot_ms=round(median(tpots), 3),
             tpot_added_ms=round(median(tpots) - step, 3), prompt_ms=round(prompt, 2), ttft_ms=round(median(ttfts), 2),
             ttft_added_ms=round(median(ttfts) - prompt, 2), tpot_min=round(min(tpots), 3), tpot_max=round(max(tpots), 3),
             rounds=len(tpots))
    with clusters.Cluster(prefill=1, decode=2, common=["--kv-memory=128MiB", "--batch-max=256", "--waiting-max=4096"], threads=1) as cluster:
        pid = cluster.router.popen.pid
        for rate in (100, 500):
            begin, wall = cpu_seconds(pid), time.monotonic()
            answer = bench(cluster, "--rate=%d" % rate, "--requests=%d" % (rate * (2 if QUICK else 5)), "--input-tokens=8",
                           "--output-tokens=4")
            wall = time.monotonic() - wall
            cpu = cpu_seconds(pid) - begin
            emit(bench="router_load", rate=rate, router_cpu_share=round(cpu / wall, 3),
                 router_cpu_us_per_request=round(cpu / max(1, answer["ok"]) * 1e6, 1), **pick(answer), **memory_mib(pid))
        process = subprocess.Popen([cluster.baton, "bench", "--router=" + cluster.router_address, "--requests=1000",
                                    "--concurrency=1000", "--input-tokens=16", "--output-tokens=64", "--json"],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        peak = {}
        while process.poll() is None:
            now = memory_mib(pid)
            peak = now if sum(now.values()) > sum(peak.values() or [0]) else peak
            time.sleep(0.02)
        emit(bench="router_streams", streams=1000, **pick(json.loads(process.stdout.read())), **peak)


# ---- a trace

def find_data():
    at = os.path.realpath(HERE)
    while not clusters.shared_data() and at != os.path.dirname(at):
        at = os.path.dirname(at)
        if os.path.exists(os.path.join(at, "shared", "data", "MANIFEST.md")):
            return os.path.join(at, "shared", "data")
    return clusters.shared_data()


def trace(folder):
    data = find_data()
    if not data:
        print("trace: shared/data is not beside or above the project, and BATON_SHARED_DATA does not name it; skipped",
              file=sys.stderr)
        return
    path = os.path.join(data, "traces", "mooncake-conversation.jsonl")
    with clusters.Cluster(prefill=1, decode=1, common=["--kv-memory=64MiB"], threads=1) as cluster:
        answer = bench(cluster, "--trace=" + path, "--requests=%d" % (100 if QUICK else 300), "--length-scale=0.02",
                       "--time-scale=10", "--slo-ttft=1s", "--slo-tpot=50ms")
        emit(bench="trace", trace="mooncake-conversation", length_scale=0.02, time_scale=10, **pick(answer))


# ---- sizes

def sizes(folder):
    root = clusters.find_root()
    for path in ("router/router", "prefill_node/prefill_node", "decode_node/decode_node", "client/baton"):
        stripped = os.path.join(folder, os.path.basename(path))
        subprocess.run(["strip", "-o", stripped, os.path.join(root, path)], check=True)
        needed = subprocess.run(["ldd", stripped], capture_output=True, text=True, check=True).stdout
        libraries = {os.path.realpath(match) for match in re.findall(r"=> (/\S+)", needed)}
        emit(bench="size", binary=os.path.basename(path), stripped_kib=os.path.getsize(stripped) // 1024,
             libraries=len(libraries), libraries_mib=round(sum(os.path.getsize(p) for p in libraries) / 2**20, 1))


if __name__ == "__main__":
    parts = {"ready": ready, "decode": decode, "push": push, "router": router, "trace": trace, "sizes": sizes}
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")]
    if not wanted or any(word not in parts for word in wanted):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as scratch:
        for word in wanted:
            parts[word](scratch)
