#!/usr/bin/env python3
"""Public traces at full size through the real cores in virtual time, with costs measured here.

    bench/traces/measure.py [prefix] [batching] [--quick]     # writes bench/figures/data/trace_*.json

prefix    the Mooncake conversation and synthetic traces on a cluster, prefix cache on and off: hit rates and TTFT by turn
batching  the conversation trace as a backlog on one decode node, continuous against static batches: tokens/s, use over time

What one step costs is measured first, by bench/engine on the Qwen2.5-0.5B shape; trace_sim.c says how it is used. The
prompts of the traces are long (13,000 tokens in the mean), so the cluster is given as many nodes as the rate takes.

Needs //bench/traces:trace_sim and //bench/engine:engine_bench (BATON_BIN names their folder), and BATON_SHARED_DATA or
shared/data above the project.
"""
import datetime
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "..", "tests", "e2e"), os.path.join(HERE, "..")]
import cluster as clusters      # noqa: E402
import split_bench              # noqa: E402

OUT = os.path.join(HERE, "..", "figures", "data")
QUICK = "--quick" in sys.argv


def lines(*argv):
    got = subprocess.run(argv, capture_output=True, text=True)
    if got.returncode != 0:
        sys.exit("%s: %s" % (" ".join(argv), got.stderr))
    return [json.loads(line) for line in got.stdout.splitlines()]


def costs():
    """Flags of trace_sim, from one thread of this machine: a step of one row, rows of a long prompt, and attention
    from the difference between a short and a long context."""
    engine = os.path.join(clusters.find_root(), "bench", "engine", "engine_bench")
    figures = lines(engine, "--model=" + os.path.join(HERE, "..", "shapes", "qwen2.5-0.5b"), "--threads=1", "--rounds=3",
                    "--batches=1", "--prompts=512", "--context=64")
    far = lines(engine, "--model=" + os.path.join(HERE, "..", "shapes", "qwen2.5-0.5b"), "--threads=1", "--rounds=3",
                "--batches=1", "--prompts=64", "--context=2048")
    near_ms = next(f["step_ms"] for f in figures if f["bench"] == "decode")
    far_ms = next(f["step_ms"] for f in far if f["bench"] == "decode")
    prompt_s = next(f["seconds"] for f in figures if f["bench"] == "prefill")
    attend_ns = max(1.0, (far_ms - near_ms) * 1e6 / (2048 - 64))
    row_us = (prompt_s * 1e9 - attend_ns * 512 * 256) / 512 / 1e3
    return {"weights-ms": round(near_ms, 3), "row-us": round(row_us, 2), "attend-ns": round(attend_ns, 2), "overhead-us": 100,
            "token-bytes": 24 * 2 * 2 * 64 * 2}


def run(trace, measured, **flags):
    data = split_bench.find_data()
    if not data:
        sys.exit("the stored traces are not here: set BATON_SHARED_DATA")
    program = os.path.join(clusters.find_root(), "bench", "traces", "trace_sim")
    both = dict(measured, **flags)
    return lines(program, "--trace=" + os.path.join(data, "traces", "mooncake-%s.jsonl" % trace),
                 *("--%s=%s" % (name.replace("_", "-"), value) for name, value in both.items()))


def store(name, rows, command, measured):
    with open("/proc/cpuinfo") as file:
        cpu = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    git = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {"command": command, "machine": "%s, %d cores; in virtual time" % (cpu, os.cpu_count()),
             "date": datetime.date.today().isoformat(), "commit": git, "load": round(os.getloadavg()[0], 1), "costs": measured}
    with open(os.path.join(OUT, name + ".json"), "w") as file:
        file.write(json.dumps(about)[:-1] + ', "rows": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n")
    print("%s: %d rows" % (name, len(rows)), file=sys.stderr)


def prefix(measured):
    rows = []
    requests = 500 if QUICK else 0
    for trace in ("conversation", "synthetic"):
        for cache in ("on", "off"):
            for row in run(trace, measured, prefix_cache=cache, requests=requests, prefill=32, decode=8, decode_blocks=1 << 18,
                           prefill_blocks=1 << 18, batch_max=64):
                if row["bench"] != "trace_rows":
                    rows.append(dict(row, trace=trace))
    store("trace_prefix", rows, "trace_sim: router, prefill and decode cores of 32 + 8 nodes, one thread of this machine each, "
          "the whole Mooncake traces; pools of 8 million tokens", measured)


def batching(measured):
    """All at once: what is compared is how a batch is kept full, not how requests come."""
    rows = []
    requests = 200 if QUICK else 1500
    for policy in ("continuous", "static"):
        for batch in (8, 32):
            rows += [dict(row, trace="conversation") for row in run(
                "conversation", measured, policy=policy, requests=requests, length_scale=0.05, time_scale=10000, prefill=32, decode=1,
                batch_max=batch, prefix_cache="off", decode_blocks=1 << 17, prefill_blocks=1 << 17)
                if row["bench"] != "trace_turn"]
    store("trace_batching", rows, "trace_sim: 32 prefill nodes and one decode node, the first %d requests of the Mooncake conversation "
          "trace as a backlog, lengths x 0.05" % requests, measured)


if __name__ == "__main__":
    parts = {"prefix": prefix, "batching": batching}
    wanted = [word for word in sys.argv[1:] if not word.startswith("-")] or list(parts)
    if any(word not in parts for word in wanted):
        sys.exit(__doc__)
    known = costs()
    print("costs: %s" % json.dumps(known), file=sys.stderr)
    for word in wanted:
        parts[word](known)
