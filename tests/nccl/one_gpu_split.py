#!/usr/bin/env python3
"""The whole split over the nccl cable, both nodes on one GPU: the tokens are those of one process. JSON lines.

    BATON_BIN=build/gpu/bin tests/nccl/one_gpu_split.py [--device=0] [--nccl-library=FILE]

NCCL takes the two nodes for two hosts (NCCL_HOSTID) and moves bytes by its sockets: that it works is shown, not how fast it is
between two GPUs. Blocks go by tcp until the communicator is up.
"""
import argparse
import json
import os
import statistics
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))
from cuda_test import GREEDY, SPLIT, DeviceCluster, golden, prompt_of  # noqa: E402

MODEL = "llama_llama3_gqa_f32"
SECONDS = 60  # for the communicator to come up and carry all
ENVIRONMENT = {"NCCL_MNNVL_ENABLE": "0", "NCCL_IB_DISABLE": "1", "NCCL_SOCKET_IFNAME": "lo", "NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"}


def cases_of(expected):
    base = ["--ignore-eos", "--max-tokens=8"]
    cases = [[prompt_of(expected, count), *base, *GREEDY] for count in (9, 20, 33, 40)]
    return cases + [[prompt_of(expected, 25), *base, "--temperature=0.9", "--top-k=20", "--seed=%d" % seed] for seed in (3, 4)]


def ask(cluster, cases, want):
    """All at once: their cables and times to first token. Ends the program where the tokens differ."""
    answers = cluster.generate_many(cases)
    if [answer["token_ids"] for answer in answers] != want:
        sys.exit("one_gpu_split: the tokens are not those of one process, over %s" % [answer["route"].get("transport") for answer in answers])
    return [answer["route"]["transport"] for answer in answers], [answer["timing"]["ttft_ms"] for answer in answers]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--nccl-library", default="")
    args = parser.parse_args()
    model, expected = golden(MODEL)
    cases = cases_of(expected)
    common = ["--device=%d" % args.device]
    with DeviceCluster(0, 1, model=model, common=common) as cluster:
        want = [cluster.generate(*case)["token_ids"] for case in cases]
    # No shm, which one GPU would have; no block is cached, so that each request moves its own.
    common += ["--nccl=on", "--cables=nccl,tcp", "--prefix-cache=off", "--nccl-memory=512MiB", "--nccl-init-timeout=30s"]
    if args.nccl_library:
        common.append("--nccl-library=" + args.nccl_library)
    split = DeviceCluster(1, 1, model=model, common=common, router_flags=SPLIT)
    for name, process in split.nodes.items():
        process.environment = {**ENVIRONMENT, "NCCL_HOSTID": "baton-one-gpu-" + name}
    with split as cluster:
        start, first, before, over = time.monotonic(), None, 0, []
        while len(over) < 10 * len(cases):
            if time.monotonic() - start > SECONDS:
                sys.exit("one_gpu_split: not over nccl in %d s:\n%s" % (SECONDS, "\n".join(
                    line for process in cluster.nodes.values() for line in process.log().splitlines() if "nccl" in line)[-4000:]))
            cables, times = ask(cluster, cases, want)
            if set(cables) == {"nccl"}:
                first = first or time.monotonic() - start
                over += times
            else:
                before += cables.count("tcp")
        figures = {"bench": "nccl_split", "model": MODEL, "requests_nccl": len(over), "requests_tcp_before": before, "up_s": round(first, 2),
                   "ttft_ms": round(statistics.median(over), 2), "tokens_equal": True}
        for name in cluster.nodes:
            role = name.split("-")[0]
            figures[role + "_bytes"] = int(cluster.sum_metric(name, "baton_nccl_bytes_total"))
            figures[role + "_mib"] = round(cluster.sum_metric(name, "baton_nccl_memory_bytes") / 2**20, 1)
        print(json.dumps(figures), flush=True)
        cluster.wait_idle()


if __name__ == "__main__":
    main()
