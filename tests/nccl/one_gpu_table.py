#!/usr/bin/env python3
"""The lines of one_gpu.sh as the tables of docs/BENCHMARKS.md, "NCCL on one GPU".

    tests/nccl/one_gpu_table.py results.jsonl
"""
import json
import sys


def size(count):
    return "%d MiB" % (count >> 20) if count >= 1 << 20 else "%d KiB" % (count >> 10)


def table(head, rows):
    if rows:
        print("| " + " | ".join(head) + " |")
        print("|" + "---|" * len(head))
        for row in rows:
            print("| " + " | ".join(str(cell) for cell in row) + " |")
        print()


def main():
    with open(sys.argv[1]) as file:
        lines = [json.loads(line) for line in file if line.startswith("{")]
    of = {}
    for line in lines:
        of.setdefault(line["bench"], []).append(line)
    for line in of.get("machine", [])[-1:]:
        print("%s; NCCL %s; %s, commit %s.\n" % (line["gpu"], line["nccl"], line["date"], line["commit"]))
    table(["slice", "a frame", "gather, send to self, scatter, GB/s", "gather alone", "scatter alone", "the driver's copy of the same slices", "its copy of all in one", "of that"],
          [[size(x["slice"]), "%d slices" % x["pieces"], x["gb_s"], x["gather_gb_s"], x["scatter_gb_s"], x["copy_slices_gb_s"], x["copy_gb_s"],
            "%.2f" % (x["gb_s"] / x["copy_gb_s"])] for x in of.get("nccl_loop", [])])
    table(["channels", "MiB a communicator", "init, ms", "abort when idle, ms", "GB/s, by sockets, two processes on one GPU"],
          [[x["channels"], x["mib"], "%s and %s" % (x["init_ms"], x["init_ms_other"]), "%s and %s" % (x["abort_ms"], x["abort_ms_other"]), x["gb_s"]]
           for x in of.get("nccl_pair", [])])
    table(["what befell the peer", "who is left", "broken after, ms", "abort, ms", "all freed after, ms", "why"],
          [["`%s`" % x["how"], x["survivor"], x["broken_ms"], x["abort_ms"], x["ended_ms"], x["why"]] for x in of.get("nccl_death", [])])
    table(["the split, both nodes on one GPU", ""],
          [row for x in of.get("nccl_split", []) for row in (
              ["requests over nccl, all with the tokens of one process", x["requests_nccl"]], ["of the first that went by tcp", x["requests_tcp_before"]],
              ["all over nccl after, s", x["up_s"]], ["time to first token, median, ms", x["ttft_ms"]],
              ["MiB taken, prefill and decode", "%s and %s" % (x["prefill_mib"], x["decode_mib"])])])


if __name__ == "__main__":
    main()
