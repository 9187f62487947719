#!/usr/bin/env python3
"""Prints the JSON lines of bench/run.sh as the tables of docs/BENCHMARKS.md.

    bench/table.py FOLDER
"""
import glob
import json
import os
import sys


def read(folder):
    lines = []
    for path in sorted(glob.glob(os.path.join(folder, "*.jsonl"))):
        with open(path) as file:
            lines += [dict(json.loads(line), file=os.path.basename(path)) for line in file if line.startswith("{")]
    return lines


def table(title, columns, rows):
    rows = list(rows)
    if not rows:
        return
    print("### %s\n\n| %s |\n|%s" % (title, " | ".join(columns), "---|" * len(columns)))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print()


def percent(value):
    return "%.0f %%" % (100 * value)


def spread(line, name):
    return "%s (%.0f to %.0f)" % (percent(line[name]), 100 * line[name + "_p10"], 100 * line[name + "_p90"])


def main(folder):
    lines = read(folder)

    def of(bench):
        return [line for line in lines if line["bench"] == bench]

    table("Machine", ("", ""), [(key, value) for line in of("machine") for key, value in line.items()
                                if key not in ("bench", "file")])
    table("Limits, measured between all cases", ("threads", "run", "read GB/s (p10 to p90)", "FMA GFLOP/s"),
          [(p["threads"], p["file"][:-6], "%.1f (%.1f to %.1f)" % (p["read_gb_s"], p["read_p10"], p["read_p90"]),
            "%.0f" % p["fma_gflop_s"]) for p in of("probe")])
    table("Decode", ("shape", "threads", "batch", "of read probe (p10 to p90)", "of FMA probe", "tokens/s", "step ms"),
          [(d["model"], d["threads"], d["batch"], spread(d, "of_read"), percent(d["of_fma"]), "%.1f" % d["tokens_s"],
            "%.1f" % d["step_ms"]) for d in of("decode")])
    table("Prefill", ("shape", "threads", "prompt", "of FMA probe (p10 to p90)", "tokens/s"),
          [(d["model"], d["threads"], d["prompt_tokens"], spread(d, "of_fma"), "%.0f" % d["tokens_s"]) for d in of("prefill")])
    peers = [("one iperf3 stream, loopback", "", "", "%.2f" % p["gbps"]) for p in of("iperf3_loopback")]
    peers += [("memcpy, scattered %d KiB" % (p["slice_bytes"] // 1024), "", "", "%.2f" % p["gbps"])
              for p in of("memcpy_scattered")]
    table("Transfer", ("cable, slices", "of memcpy", "of iperf3", "GB/s"),
          [("%s, %d KiB" % (t["cable"], t["slice_bytes"] // 1024), percent(t["of_memcpy"]), percent(t["of_iperf3"]),
            "%.2f" % t["gbps"]) for t in of("kv_transfer")] + peers)
    table("Layer push", ("shape", "prompt", "hidden", "tail ms (min to max)", "transfer alone ms", "compute ms", "KV MB", "cable"),
          [(p["model"], p["prompt_tokens"], percent(p["hidden"]), "%.2f (%.2f to %.2f)" % (p["tail_ms"], p["tail_ms_min"],
            p["tail_ms_max"]), p["transfer_alone_ms"], p["compute_ms"], p["kv_mb"], p["transport"]) for p in of("push")])
    table("What the split adds", ("model", "TPOT over the engine's own step", "step ms", "TPOT ms", "TTFT ms", "prompt alone ms"),
          [(a["model"], "%+.0f %%" % (100 * a["tpot_added_ms"] / a["step_ms"]), a["step_ms"], a["tpot_ms"], a["ttft_ms"],
            a["prompt_ms"]) for a in of("added_latency")])
    table("Router", ("load", "router CPU", "CPU us a request", "TTFT ms p50, p99", "memory MiB: own, files"),
          [("idle", percent(r["cpu_share"]), "", "", "%s, %s" % (r["rssanon"], r["rssfile"])) for r in of("router_idle")] +
          [("%d requests/s" % r["rate"], percent(r["router_cpu_share"]), r["router_cpu_us_per_request"],
            "%.1f, %.1f" % (r["ttft_p50"], r["ttft_p99"]), "%s, %s" % (r["rssanon"], r["rssfile"])) for r in of("router_load")] +
          [("%d open streams" % r["streams"], "", "", "%.0f, %.0f" % (r["ttft_p50"], r["ttft_p99"]),
            "%s, %s" % (r["rssanon"], r["rssfile"])) for r in of("router_streams")])
    loads = [("%s, %d at once" % (d["model"], d["concurrency"]), d) for d in of("split_decode")]
    loads += [("%s x%s lengths, x%s speed, tiny model" % (t["trace"], t["length_scale"], t["time_scale"]), t) for t in of("trace")
              if not t["file"].startswith("trace_sim")]
    table("Under load, `baton bench`", ("load", "requests ok", "output tokens/s", "TTFT ms p50, p90, p99", "TPOT ms p50, p90, p99"),
          [(name, "%d of %d" % (b["ok"], b["requests"]), b["output_tokens_per_s"],
            ", ".join("%.1f" % b["ttft_" + q] for q in ("p50", "p90", "p99")),
            ", ".join("%.2f" % b["tpot_" + q] for q in ("p50", "p90", "p99"))) for name, b in loads])
    table("Ready", ("process", "model", "weights", "ms from exec (min to max)", "memory MiB: own, files, KV pool"),
          [(r["service"], r["model"], "files" if r["load"] == "auto" else "made up", "%.0f (%.0f to %.0f)" %
            (r["ready_ms"], r["ready_ms_min"], r["ready_ms_max"]), "%s, %s, %s" % (r["rssanon"], r["rssfile"], r["rssshmem"]))
           for r in of("ready")])
    table("Size", ("binary", "stripped KiB", "shared libraries", "their MiB"),
          [(s["binary"], s["stripped_kib"], s["libraries"], s["libraries_mib"]) for s in of("size")])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
