#!/usr/bin/env python3
"""Every cable that this machine can run, in two tables for docs/BENCHMARKS.md: GB/s by slice size beside the limit
measured in the same rounds, and how long deaths take to be known and blocks to be free. Some two minutes.

    bench/transfer/cables.py [--rounds=7] [--runs=7] [--cables=auto] [--emulated] [--out=FOLDER]

Programs come from BATON_BIN, where it is set, else they are built with Bazel. The ucx cable runs where a UCX of 1.19 or
newer is found: BATON_UCX_LIBRARY, or the wheel libucx-cu12 beside this Python; over its TCP lanes, which are
for trying it out. Pools on a GPU, where there is one; BENCH_DEVICES=0,1 puts D and P on two. A link is cut by root alone.
BATON_NCCL_LIBRARY names an NCCL, if the loader does not find one. --emulated: also how nccl's host side sees deaths, on an
emulated GPU and over a fake of the library; nothing there says how fast it is. --out keeps the JSON lines.
"""
import argparse
import datetime
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.dirname(HERE))
from table import percent, table  # noqa: E402

LIMITS = (("memcpy_scattered", "limit: memcpy of scattered slices, one core"),
          ("stream_loopback", "limit: one plain TCP stream"),
          ("iperf3_loopback", "the same by iperf3"),
          ("gpu_copy_scattered", "limit: the GPU's copies of scattered slices"))
NAMES = {"shm": "`shm`", "tcp": "`tcp`", "ucx": "`ucx`, TCP lanes", "shm@gpu": "`shm`, pools on a GPU",
         "tcp@gpu": "`tcp`, pools on a GPU", "ucx@gpu": "`ucx`, TCP lanes, pools on a GPU", "nccl@gpu": "`nccl`", "shm@fake": "`shm`, emulated device",
         "tcp@fake": "`tcp`, emulated device", "nccl@emulated": "`nccl`, emulated GPU, fake of NCCL"}
# What a form is held against: pools in one memory against a copy there, all else against a plain stream.
LIMIT_OF = {"shm": ("of_memcpy", "memcpy"), "shm@gpu": ("of_gpu_copy", "GPU copy"), "shm@fake": ("of_memcpy", "memcpy")}
OF_STREAM = ("of_stream", "a stream")
DEATHS = ("kill -9", "SIGSTOP", "cut link")


def size(count):
    return "%d MiB" % (count >> 20) if count >= 1 << 20 else "%d KiB" % (count >> 10)


def run(program, arguments, env, out):
    bins = os.environ.get("BATON_BIN")
    if not bins:
        subprocess.run(["bazel", "build", "//%s:%s" % os.path.split(program)], cwd=ROOT, check=True, stdout=sys.stderr)
        bins = os.path.join(ROOT, "bazel-bin")
    done = subprocess.run([os.path.join(bins, program), *arguments], env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("%s ended with %d" % (program, done.returncode))
    if out:
        with open(os.path.join(out, os.path.basename(program) + ".jsonl"), "w") as file:
            file.write(done.stdout)
    return [json.loads(line) for line in done.stdout.splitlines()]


def machine():
    with open("/proc/cpuinfo") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "?")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return "%s, %d cores, Linux %s; commit %s, %s" % (cpu, os.cpu_count(), os.uname().release, commit or "?",
                                                    datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"))


def share_by_cpu(line, limits):
    """The same by CPU time, which other work on the machine does not take: of a memcpy what the busier side can do with a core
    of its own; of a stream, whose figure is of both ends together, both sides together."""
    d, p = line["receiver_cpu_gbps"], line["sender_cpu_gbps"]
    limit, of = {"of_memcpy": ("memcpy_scattered", min(d, p)), "of_stream": ("stream_loopback", d * p / (d + p))}.get(
        LIMIT_OF.get(line["form"], OF_STREAM)[0], (None, 0))
    at = limits.get((limit, line["slice_bytes"]))
    return "; by CPU time " + percent(of / at) if at else ""


def speeds(lines):
    sizes = sorted({line["slice_bytes"] for line in lines if "slice_bytes" in line})
    cpu_limits = {(line["bench"], line["slice_bytes"]): line["cpu_gbps"] for line in lines if "cpu_gbps" in line}

    def row(name, cell, of):
        by_size = {line["slice_bytes"]: cell(line) for line in lines if of(line)}
        return (name, *(by_size.get(at, "") for at in sizes)) if by_size else None

    rows = [row(name, lambda line: "%.2f" % line["gbps"], lambda line: line["bench"] == bench) for bench, name in LIMITS]
    for form in dict.fromkeys(line["form"] for line in lines if line["bench"] == "kv_transfer"):
        share, limit = LIMIT_OF.get(form, OF_STREAM)
        rows.append(row("%s, share of %s" % (NAMES[form], limit),
                        lambda line: "**%.2f** (%.2f to %.2f), %s%s" % (line["gbps"], line["gbps_min"], line["gbps_max"], percent(line[share]),
                                                                                  share_by_cpu(line, cpu_limits)),
                        lambda line: line.get("form") == form and line["bench"] == "kv_transfer"))
    table("GB/s by slice: median (least to greatest)", ("", *map(size, sizes)), [found for found in rows if found])


def deaths(lines):
    found = {(line["form"], line["what"], line["survivor"]): line for line in lines if line["bench"] == "death"}

    def cell(form, what, survivor, name):
        line = found.get((form, what, survivor))
        return "%.4g (%.4g)" % (line[name], line[name + "_max"]) if line else ""

    rows = []
    for form in dict.fromkeys(form for form, _, _ in found):
        for what in DEATHS:
            cells = [cell(form, what, survivor, name) for survivor in "DP" for name in ("known_ms", "free_ms")]
            if any(cells):
                rows.append((NAMES[form], what if what == "cut link" else what + " of the other", *cells))
    table("Milliseconds until the survivor knows, and until its blocks are free: median (worst)",
          ("cable", "what happens", "D knows", "D's blocks free", "P knows", "P's blocks free"), rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", default="7")
    parser.add_argument("--runs", default="7")
    parser.add_argument("--cables", default="auto")
    parser.add_argument("--emulated", action="store_true")
    parser.add_argument("--out")
    options = parser.parse_args()
    env = dict(os.environ)
    env.setdefault("BATON_PYTHON", sys.executable)
    if options.out:
        os.makedirs(options.out, exist_ok=True)
    load = [os.getloadavg()[0]]
    lines = run("bench/transfer/transfer_bench", ["--rounds=" + options.rounds, "--cables=" + options.cables], env, options.out)
    load.append(os.getloadavg()[0])
    lines += run("bench/transfer/death_bench", ["--runs=" + options.runs, "--cables=" + options.cables], env, options.out)
    load.append(os.getloadavg()[0])
    if options.emulated:
        found = run("tests/bench/death_bench_emulated", ["--runs=" + options.runs, "--cables=nccl@gpu", "--what=kill,stop"], env, options.out)
        lines += [dict(line, form=line["form"].replace("@gpu", "@emulated")) for line in found]
    print("%s; load %s before, between and after; %s rounds, %s runs\n" % (machine(), ", ".join("%.1f" % at for at in load),
                                                                           options.rounds, options.runs))
    speeds(lines)
    deaths(lines)
    for form, why in dict.fromkeys((line["form"], line["why"]) for line in lines if line["bench"] == "absent"):
        print("- not measured: %s: %s" % (NAMES.get(form, form), why))


if __name__ == "__main__":
    main()
