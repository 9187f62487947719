#!/usr/bin/env python3
"""Baton beside llama.cpp on this machine: every figure as a ratio taken in one run, the two sides in turn.

    bench/peer/compare.py [--llama-bin=DIR --llama-models=DIR] [--rows=LIST] [--rounds=N] [--out=FILE] [--quick]

    --llama-bin     where llama-bench, llama-batched-bench and llama-server are; without it our side runs alone
    --llama-models  <shape>-<format>.gguf, format one of bf16, q8_0, q4_0, q4_0-pure: see make_gguf.py
    --shapes        shapes of bench/shapes [llama-3.2-1b,qwen2.5-0.5b]; the servers run the first
    --rows          of engine, batch, ttft, interference, neighbour, ready, goodput [all]
    --rounds        A/B pairs of each row [3]
    --threads       compute threads of either side [2]
    --out           JSON lines are appended here too, the table is printed [none]
    --table=FILE    prints the table of stored JSON lines, runs nothing
    --quick         small sizes: shows that everything runs, its figures mean nothing

engine        one sequence: prefill of 512 and 2,048 tokens, decode; bf16, int8 beside Q8_0, int4 beside Q4_0
batch         decode of 8 and 32 sequences, beside llama-batched-bench
ttft          8 clients with 128 tokens each at once: our three processes, beside llama-server
interference  a 2,000-token prompt arrives while 8 streams run: split; one process; llama-server
neighbour     decode with a busy niced process on one core, over decode without
ready         time from exec to ready, and resident memory
goodput       requests/s within limits: split 1+1 beside one process of two threads, on two traces
"""
import argparse
import csv
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import baton_side as ours
import llama_cpp
import streams

HERE = os.path.dirname(os.path.abspath(__file__))
PAIRS = (("bf16", "bf16"), ("int8", "q8_0"), ("int4", "q4_0"), ("int4", "q4_0-pure"))
# (aim, floor) on a machine without AMX, then with it, as ratios; None: no bar.
AIMS = {
    "prefill-512-bf16": ((2, 2), (8, 4)), "prefill-2048-bf16": ((2, 2), (8, 4)),
    "prefill-512-int8": (None, (8, 4)), "prefill-2048-int8": (None, (8, 4)),
    "decode-1-bf16": ((1.3, 1.3), (1.3, 1.3)), "decode-1-int8": ((1, 1), (1, 1)),
    "decode-1-int4": ((1, 1), (1, 1)), "decode-8-bf16": ((3.5, 2.5), (3.5, 2.5)),
    "decode-32-bf16": ((8, 4), (8, 4)), "ttft-8x128": ((10, 5), (10, 5)),
}


class Run:
    """What every row needs, and where its lines go."""

    def __init__(self, args, scratch):
        self.args, self.scratch = args, scratch
        self.peer = llama_cpp.Peer(args.llama_bin, args.llama_models)
        self.alone = self.peer.missing()
        self.out = open(args.out, "a") if args.out else None
        self.models, self.lines, self.failed = {}, [], []

    def emit(self, **line):
        self.lines.append(line)
        text = json.dumps(line)
        print(text, flush=True)
        if self.out:
            print(text, file=self.out, flush=True)

    def model(self, shape):
        if shape not in self.models:
            self.models[shape] = ours.shape(shape)
        return self.models[shape]

    def peer_model(self, shape, weights):
        return None if self.alone else self.peer.model(shape, weights)

    def ratios(self, row, shape, unit, mine, theirs, higher_is_better=True, **more):
        """One compared figure: lists of equal length, pairs taken in turn."""
        line = {"bench": "peer", "row": row, "shape": shape, "unit": unit, "ours": rounded(mine), "ours_median": median(mine)}
        if theirs:
            pairs = [(a / b if higher_is_better else b / a) for a, b in zip(mine, theirs)]
            line.update(theirs=rounded(theirs), theirs_median=median(theirs), ratio=median(pairs),
                        ratio_min=round(min(pairs), 3), ratio_max=round(max(pairs), 3))
            bars = AIMS.get(row, (None, None))[has_amx()]
            if bars:
                line.update(aim=bars[0], floor=bars[1], holds_floor=median(pairs) >= bars[1])
        line.update(more)
        self.emit(**line)


def rounded(values):
    return [round(value, 4) for value in values]


def median(values):
    return round(statistics.median(values), 4)


def has_amx():
    with open("/proc/cpuinfo") as file:
        return " amx_tile" in file.read()


def free_of(lines, key):
    return median([line[key] for line in lines]) if all(key in line for line in lines) else None


# ---- rows

def engine(run):
    prompts, outputs = ((64, 128), 16) if run.args.quick else ((512, 2048), 64)
    for shape in run.args.shapes:
        model = run.model(shape)
        for weights, theirs_name in PAIRS:
            path = run.peer_model(shape, theirs_name)
            if theirs_name.endswith("-pure") and not path:
                continue
            # Prefill with int4 weights is not a row of its own: what it costs is seen in the 512 tokens.
            lengths = prompts if weights != "int4" else prompts[:1]
            mine, theirs = [], []
            for _ in range(run.args.rounds):
                lines = ours.engine(model, run.args.threads, weights, batches=(1,), prompts=lengths)
                if lines is None:
                    print("engine: engine_bench has no --weights=%s here; skipped" % weights, file=sys.stderr)
                    break
                mine.append(lines)
                if path:
                    theirs.append(run.peer.bench(path, run.args.threads, lengths, (outputs,)))
            if not mine:
                continue
            probes = [ours.case(lines, "probe") for lines in mine]
            read, fma = free_of(probes, "read_gb_s"), free_of(probes, "fma_gflop_s")
            name = weights if not theirs_name.endswith("-pure") else weights + "-pure"
            decodes = [ours.case(lines, "decode", batch=1) for lines in mine]
            run.ratios("decode-1-" + name, shape, "tokens/s", [line["tokens_s"] for line in decodes],
                       [rates["decode", outputs] for rates in theirs], isa=decodes[0].get("isa"), peer=theirs_name,
                       threads=run.args.threads, gb_s=free_of(decodes, "gb_s"), of_read=free_of(decodes, "of_read"),
                       read_gb_s=read, fma_gflop_s=fma)
            for length in lengths:
                cases = [ours.case(lines, "prefill", prompt_tokens=length) for lines in mine]
                run.ratios("prefill-%d-%s" % (length, name), shape, "tokens/s", [line["tokens_s"] for line in cases],
                           [rates["prefill", length] for rates in theirs], isa=cases[0].get("isa"), peer=theirs_name,
                           threads=run.args.threads, gflop_s=free_of(cases, "gflop_s"), of_fma=free_of(cases, "of_fma"),
                           of_dot=free_of(cases, "of_dot"), read_gb_s=read, fma_gflop_s=fma,
                           probe={key: value for key, value in probes[-1].items() if key != "bench"})


def batch(run):
    batches, context, outputs = ((2, 4), 32, 4) if run.args.quick else ((8, 32), 128, 24)
    shape = run.args.shapes[0]
    for weights, theirs_name in PAIRS[:2]:
        path = run.peer_model(shape, theirs_name)
        mine, theirs = [], []
        for _ in range(run.args.rounds):
            lines = ours.engine(run.model(shape), run.args.threads, weights, batches=batches, context=context)
            if lines is None:
                break
            mine.append(lines)
            if path:
                theirs.append(run.peer.batched(path, run.args.threads, batches, context, outputs))
        for size in batches if mine else ():
            cases = [ours.case(lines, "decode", batch=size) for lines in mine]
            run.ratios("decode-%d-%s" % (size, weights), shape, "tokens/s", [line["tokens_s"] for line in cases],
                       [rates[size] for rates in theirs], isa=cases[0].get("isa"), peer=theirs_name, threads=run.args.threads,
                       gb_s=free_of(cases, "gb_s"), of_read=free_of(cases, "of_read"), of_fma=free_of(cases, "of_fma"), of_dot=free_of(cases, "of_dot"),
                       step_ms=free_of(cases, "step_ms"), read_gb_s=free_of([ours.case(l, "probe") for l in mine], "read_gb_s"))


class Servers:
    """Ours and theirs, both up; the one that is not measured is stopped by a signal, so that it takes nothing."""

    def __init__(self, run, shape, **split):
        self.run, self.shape, self.split = run, shape, split
        self.theirs = None

    def __enter__(self):
        self.ours = ours.split(self.run.model(self.shape), **self.split).__enter__()
        path = self.run.peer_model(self.shape, "bf16")
        if path:
            try:
                self.theirs = llama_cpp.Server(self.run.peer, path, self.run.args.threads, ours.clusters.free_port()).__enter__()
                self.pause(True)
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def pause(self, is_paused):
        os.kill(self.theirs.pid, signal.SIGSTOP if is_paused else signal.SIGCONT)

    def __exit__(self, kind, value, trace):
        if self.theirs:
            self.theirs.__exit__(None, None, None)
        self.ours.__exit__(None, None, None)

    def open_ours(self, tokens, count):
        return streams.BatonStream(self.ours, tokens, count)

    def open_theirs(self, tokens, count):
        return streams.LlamaStream(self.theirs.port, tokens, count)

    def of_theirs(self, measure):
        if not self.theirs:
            return None
        self.pause(False)
        try:
            return measure(self.open_theirs)
        finally:
            time.sleep(0.3)  # it notices that its clients left
            self.pause(True)


def ttft(run):
    length = 32 if run.args.quick else 128
    shape, threads = run.args.shapes[0], run.args.threads
    for name, counts in (("%d threads each" % threads, (threads, threads)), ("one thread each", (1, 1))):
        with Servers(run, shape, threads=counts[1], prefill_threads=counts[0]) as servers:
            mine, theirs, tpot = [], [], []
            for turn in range(run.args.rounds):
                answer = ours.load(servers.ours, "--requests=8", "--concurrency=8", "--input-tokens=%d" % length,
                                   "--output-tokens=16", "--seed=%d" % (turn + 1))
                mine.append(answer["ttft_ms"]["p50"])
                tpot.append(answer["tpot_ms"]["p50"])
                firsts = servers.of_theirs(lambda open_stream: streams.first_tokens(open_stream, 8, length, 16, turn + 1))
                if firsts:
                    theirs.append(statistics.median(firsts) * 1e3)
        run.ratios("ttft-8x128", shape, "ms", mine, theirs, higher_is_better=False, nodes="prefill and decode, " + name,
                   ours_tpot_ms=median(tpot), probe=ours.probe(threads))


def interference(run):
    length, idle_s = (200, 1.0) if run.args.quick else (2000, 4.0)
    shape, threads = run.args.shapes[0], run.args.threads

    def summed(side, found):
        keys = found[0].keys()
        run.emit(bench="interference", side=side, shape=shape, prompt_tokens=length, streams=8, rounds=len(found),
                 **{key: round(statistics.median([one[key] for one in found]), 3) for key in keys},
                 stretch_min=round(min(one["stretch_p99"] for one in found), 3),
                 stretch_max=round(max(one["stretch_p99"] for one in found), 3))

    mine, theirs, one_process = [], [], []
    with Servers(run, shape, threads=1) as servers:
        for turn in range(run.args.rounds):
            mine.append(streams.interference(servers.open_ours, 8, length, idle_s, turn + 1))
            found = servers.of_theirs(lambda open_stream: streams.interference(open_stream, 8, length, idle_s, turn + 1))
            if found:
                theirs.append(found)
    summed("split, one thread each", mine)
    if theirs:
        summed("llama-server", theirs)
    with ours.split(run.model(shape), prefill=0, threads=threads) as cluster:
        for turn in range(run.args.rounds):
            one_process.append(streams.interference(lambda tokens, count: streams.BatonStream(cluster, tokens, count), 8,
                                                    length, idle_s, turn + 1))
    summed("one process, %d threads" % threads, one_process)
    run.emit(bench="peer_probe", row="interference", **ours.probe(threads))


def neighbour(run):
    shape, threads = run.args.shapes[0], run.args.threads
    core = max(os.sched_getaffinity(0))
    for weights, theirs_name in PAIRS[:2]:
        path = run.peer_model(shape, theirs_name)
        mine, theirs = [], []
        for _ in range(run.args.rounds):
            def both():
                lines = ours.engine(run.model(shape), threads, weights, batches=(1,))
                rate = run.peer.bench(path, threads, (), (8 if run.args.quick else 16,)) if path else {}
                return lines and ours.case(lines, "decode", batch=1)["tokens_s"], next(iter(rate.values()), None)
            calm = both()
            spinner = streams.spin_on(core)
            try:
                busy = both()
            finally:
                spinner.kill()
                spinner.wait()
            if calm[0]:
                mine.append(calm[0] / busy[0])
            if calm[1]:
                theirs.append(calm[1] / busy[1])
        if mine:
            run.emit(bench="neighbour", shape=shape, weights=weights, peer=theirs_name, threads=threads, core=core,
                     ours_loss=median(mine), ours_losses=rounded(mine), theirs_loss=median(theirs) if theirs else None,
                     theirs_losses=rounded(theirs), limit=2, holds=median(mine) <= 2)


def ready(run):
    shape, threads = run.args.shapes[0], run.args.threads
    kv_mib = 256
    model = run.model(shape)
    path = run.peer_model(shape, "bf16")
    weights_mib = weight_bytes(model) / 2**20
    ours.start(model, threads, "%dMiB" % kv_mib, run.scratch)  # the first start packs
    mine, theirs = [], []
    for _ in range(run.args.rounds):
        mine.append(ours.start(model, threads, "%dMiB" % kv_mib, run.scratch))
        if path:
            with llama_cpp.Server(run.peer, path, threads, ours.clusters.free_port(), parallel=1, context=8192) as server:
                theirs.append((server.ready_s, ours.memory_mib(server.pid)))
    rss = median([memory["vmrss"] for _, memory in mine])
    run.ratios("ready", shape, "s", [seconds for seconds, _ in mine], [seconds for seconds, _ in theirs],
               higher_is_better=False, limit_s=1, holds=median([seconds for seconds, _ in mine]) < 1, rss_mib=rss,
               memory=mine[-1][1], weights_mib=round(weights_mib), kv_mib=kv_mib,
               rss_of_weights_and_kv=round(rss / (weights_mib + kv_mib), 3), rss_limit="1.05 x weights + KV pool",
               holds_rss=rss <= 1.05 * weights_mib + kv_mib, theirs_memory=theirs[-1][1] if theirs else None)


def weight_bytes(model):
    """Bytes of a tied-embedding model's bf16 weights, from its shape."""
    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    rows = (config["num_attention_heads"] * 2 + config["num_key_value_heads"] * 2) * head_dim
    layer = hidden * rows + 3 * hidden * ffn + 2 * hidden
    heads = 1 if config.get("tie_word_embeddings") else 2
    return 2 * (config["num_hidden_layers"] * layer + heads * config["vocab_size"] * hidden)


# ---- goodput

def trace_rows(name, data):
    """(seconds, prompt tokens, output tokens) of a stored trace."""
    path = os.path.join(data, "traces", "azure-llm-2023-%s.csv" % name)
    rows, first = [], None
    with open(path) as file:
        for row in csv.DictReader(file):
            at = datetime.datetime.fromisoformat(row["TIMESTAMP"][:26])
            first = first or at
            rows.append(((at - first).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    return rows


def write_trace(rows, path, count, rate, scale):
    """The first `count` rows, lengths scaled, their own gaps stretched to a mean of `rate` requests a second."""
    rows = rows[:count]
    stretch = (count / rate) / max(rows[-1][0] - rows[0][0], 1e-9)
    with open(path, "w") as file:
        for at, inputs, outputs in rows:
            print(json.dumps({"timestamp": round((at - rows[0][0]) * stretch * 1e3), "input_length": max(1, round(inputs * scale)),
                              "output_length": max(2, round(outputs * scale))}), file=file)
    return [max(1, round(row[1] * scale)) for row in rows], [max(2, round(row[2] * scale)) for row in rows]


def goodput(run):
    data = find_data()
    if not data:
        print("goodput: the stored traces are not here (BATON_SHARED_DATA); skipped", file=sys.stderr)
        return
    shape = run.args.shapes[-1]
    conversation = trace_rows("conv", data)
    cases = (("prompts dominate", "azure code", trace_rows("code", data), 0.25, (0.3, 0.6)),
             ("outputs dominate", "azure conversation, those with output longer than prompt",
              [row for row in conversation if row[2] > row[1]], 0.25, (1.0, 2.0)))
    count = 10 if run.args.quick else 20
    for kind, source, rows, scale, rates in cases:
        for rate in rates[:1] if run.args.quick else rates:
            path = os.path.join(run.scratch, "trace.jsonl")
            inputs, outputs = write_trace(rows, path, count, rate, scale)
            for name, shape_of in (("split 1+1", {"prefill": 1, "threads": 1}), ("one process, 2 threads", {"prefill": 0, "threads": 2})):
                with ours.split(run.model(shape), **shape_of) as cluster:
                    answer = ours.load(cluster, "--trace=" + path, "--requests=%d" % count, "--slo-ttft=" + run.args.slo_ttft,
                                       "--slo-tpot=" + run.args.slo_tpot)
                run.emit(bench="goodput", shape=shape, trace=source, kind=kind, nodes=name, length_scale=scale, rate=rate,
                         requests=answer["requests"], ok=answer["ok"], input_mean=round(statistics.mean(inputs), 1),
                         output_mean=round(statistics.mean(outputs), 1), slo_ttft=run.args.slo_ttft, slo_tpot=run.args.slo_tpot,
                         goodput_per_s=round(answer["goodput_requests_per_s"], 3), ttft_p50_ms=round(answer["ttft_ms"]["p50"], 1),
                         ttft_p90_ms=round(answer["ttft_ms"]["p90"], 1), tpot_p50_ms=round(answer["tpot_ms"]["p50"], 1),
                         tpot_p90_ms=round(answer["tpot_ms"]["p90"], 1), itl_p99_ms=round(answer["itl_ms"]["p99"], 1))


def find_data():
    at = HERE
    while not ours.clusters.shared_data():
        candidate = os.path.join(at, "shared", "data")
        if os.path.exists(os.path.join(candidate, "MANIFEST.md")):
            return candidate
        if at == os.path.dirname(at):
            return None
        at = os.path.dirname(at)
    return ours.clusters.shared_data()


# ---- the table

def show(value):
    return "" if value is None else ("%.3g" % value if abs(value) < 1000 else "%.0f" % value) if isinstance(value, float) else str(value)


def table(lines):
    def rows(title, columns, found):
        found = list(found)
        if found:
            print("\n### %s\n\n| %s |\n|%s" % (title, " | ".join(columns), "---|" * len(columns)))
            for row in found:
                print("| " + " | ".join(show(cell) for cell in row) + " |")

    def of(bench):
        return [line for line in lines if line["bench"] == bench]

    rows("Machine", ("", ""), [(key, value) for line in of("peer_machine") for key, value in line.items() if key != "bench"])
    rows("Beside llama.cpp, pairs taken in turn",
         ("row", "shape", "ratio (min to max)", "floor", "ours", "theirs", "unit", "of the limit", "probe: read GB/s", "set"),
         [(line["row"] + (", " + line["nodes"] if "nodes" in line else ""), line["shape"],
           "**%.2f** (%.2f to %.2f)" % (line["ratio"], line["ratio_min"], line["ratio_max"]) if "ratio" in line else "",
           line.get("floor"), line["ours_median"], line.get("theirs_median"), line["unit"],
           of_limit(line),
           line.get("read_gb_s") or line.get("probe", {}).get("read_gb_s"), line.get("isa")) for line in of("peer")])
    rows("A long prompt arrives while 8 streams run",
         ("side", "ITL p99 over undisturbed (min to max)", "undisturbed ITL p50, p99 ms", "ITL p50, p99 ms during", "longest gap ms", "TTFT of the prompt s"),
         [(line["side"], "**%.2f** (%.2f to %.2f)" % (line["stretch_p99"], line["stretch_min"], line["stretch_max"]),
           "%.0f, %.0f" % (line["calm_p50_ms"], line["calm_p99_ms"]), "%.0f, %.0f" % (line["hurt_p50_ms"], line["hurt_p99_ms"]),
           line["hurt_max_ms"], line["prompt_ttft_s"]) for line in of("interference")])
    rows("A busy niced neighbour on one core", ("weights", "we lose", "llama.cpp loses", "limit"),
         [(line["weights"], "%.2f times (%s)" % (line["ours_loss"], ", ".join("%.2f" % v for v in line["ours_losses"])),
           "%.2f times (%s)" % (line["theirs_loss"], ", ".join("%.2f" % v for v in line["theirs_losses"])) if line.get("theirs_loss") else "",
           line["limit"]) for line in of("neighbour")])
    rows("Memory when ready", ("shape", "resident MiB", "weights MiB", "KV pool MiB", "within 1.05 x weights + pool", "llama-server MiB"),
         [(line["shape"], line["rss_mib"], line["weights_mib"], line["kv_mib"], "yes" if line["holds_rss"] else "no",
           (line.get("theirs_memory") or {}).get("vmrss")) for line in of("peer") if line["row"] == "ready"])
    rows("Goodput", ("trace", "offered/s", "nodes", "good requests/s", "TTFT p50, p90 ms", "TPOT p50, p90 ms", "mean tokens in, out"),
         [("%s (%s)" % (line["kind"], line["trace"]), line["rate"], line["nodes"], line["goodput_per_s"],
           "%.0f, %.0f" % (line["ttft_p50_ms"], line["ttft_p90_ms"]), "%.0f, %.0f" % (line["tpot_p50_ms"], line["tpot_p90_ms"]),
           "%.0f, %.0f" % (line["input_mean"], line["output_mean"])) for line in of("goodput")])


def of_limit(line):
    """Share of the probe that bounds the row: reading for few rows, bf16 products (or f32 where there are none) for many. Theirs is
    told where both sides move the same bytes or do the same sums, which is in bf16."""
    if line["unit"] != "tokens/s":
        return None
    found = {"read": line.get("of_read"), "bf16 products": line.get("of_dot") or None}
    if not found["bf16 products"]:
        found = {"read": line.get("of_read"), "f32 products": line.get("of_fma")}
    name, share = max(((key, value) for key, value in found.items() if value), key=lambda pair: pair[1], default=(None, None))
    if not name:
        return None
    theirs = ", theirs %s" % percent(share * line["theirs_median"] / line["ours_median"]) if line.get("peer") == "bf16" and "ratio" in line else ""
    return "%s of %s%s" % (percent(share), name, theirs)


def percent(value):
    return None if value is None else "%.0f %%" % (100 * value)


ROWS = {"engine": engine, "batch": batch, "ttft": ttft, "interference": interference, "neighbour": neighbour, "ready": ready,
        "goodput": goodput}


def machine(run):
    with open("/proc/cpuinfo") as file:
        cpu = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    git = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    run.emit(bench="peer_machine", cpu=cpu, cores=os.cpu_count(), amx=has_amx(), kernel=os.uname().release, commit=git,
             load_before=" ".join(map(str, os.getloadavg())), date=datetime.date.today().isoformat(),
             peer=run.alone or run.peer.version(), mode="quick" if run.args.quick else "full")


def main():
    parser = argparse.ArgumentParser(usage=__doc__, add_help=False)
    parser.add_argument("--help", action="store_true")
    parser.add_argument("--llama-bin")
    parser.add_argument("--llama-models")
    parser.add_argument("--shapes", default="llama-3.2-1b,qwen2.5-0.5b")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out")
    parser.add_argument("--table")
    parser.add_argument("--slo-ttft", default="2s")
    parser.add_argument("--slo-tpot", default="100ms")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.help:
        print(__doc__)
        return
    if args.table:
        with open(args.table) as file:
            table([json.loads(line) for line in file if line.startswith("{")])
        return
    args.shapes = args.shapes.split(",")
    wanted = args.rows.split(",")
    for row in wanted:
        if row not in ROWS:
            sys.exit("--rows: %s is none of %s" % (row, ", ".join(ROWS)))
    with tempfile.TemporaryDirectory(prefix="baton-peer-") as scratch:
        run = Run(args, scratch)
        if run.alone:
            print("llama.cpp is not here (%s): our side alone" % run.alone, file=sys.stderr)
        machine(run)
        for row in wanted:
            begin = time.monotonic()
            try:
                ROWS[row](run)
            except (RuntimeError, AssertionError, OSError, subprocess.TimeoutExpired) as error:
                run.failed.append(row)
                print("%s: %s" % (row, error), file=sys.stderr)
            print("%s: %.0f s" % (row, time.monotonic() - begin), file=sys.stderr)
        table(run.lines)
        if run.failed:
            sys.exit("failed: " + ", ".join(run.failed))


if __name__ == "__main__":
    main()
