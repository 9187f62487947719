#!/usr/bin/env python3
"""Time to first token through the split on one GPU, beside one process that does both; JSON lines.

    BATON_BIN=build/gpu/bin bench/gpu/split_ttft.py [--device=0] [--shape=llama-3.1-8b] [--lengths=512,2048,8192]

Both clusters are up at once, each idle while the other answers, and take turns prompt by prompt, so that clocks and
temperature are theirs alike. Needs memory for three copies of the weights. Aim: within 5 %.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "..", "tests", "e2e"), os.path.join(HERE, "..", "shapes")]
import cluster as clusters  # noqa: E402
import make as shapes       # noqa: E402


def ttft_ms(cluster, length, turn):
    """A prompt that no cache has seen."""
    tokens = ",".join(str((i * 7919 + turn * 104729 + length) % 100000) for i in range(length))
    answer = cluster.generate("--tokens", tokens, "--max-tokens=2", "--ignore-eos", timeout=120)
    return answer["timing"]["ttft_ms"], answer["route"].get("transport", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--lengths", default="512,2048,8192")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--kv-memory", default="8GiB")
    parser.add_argument("--backend", default="cuda", help="cpu: to try the script without a GPU")
    args = parser.parse_args()
    common = ["--backend=" + args.backend, "--load=dummy", "--kv-memory=" + args.kv_memory]
    if args.backend == "cuda":
        common += ["--device=%d" % args.device, "--step-tokens=8192", "--chunk-tokens=8192", "--batch-max=32"]
    with tempfile.TemporaryDirectory() as folder:
        model = shapes.make(args.shape, folder)
        with clusters.Cluster(model=model, common=common, threads=8) as split, \
                clusters.Cluster(model=model, common=common, prefill=0, threads=8) as one:
            for length in (int(part) for part in args.lengths.split(",")):
                split_ms, one_ms, transport = [], [], ""
                for turn in range(args.rounds + 2):
                    (a, transport), (b, _) = ttft_ms(split, length, turn), ttft_ms(one, length, turn)
                    if turn >= 2:  # the first are warm-up
                        split_ms.append(a)
                        one_ms.append(b)
                ratios = sorted(a / b for a, b in zip(split_ms, one_ms))
                print(json.dumps({"bench": "split_ttft", "prompt_tokens": length, "transport": transport,
                                  "split_ms": round(statistics.median(split_ms), 3), "one_ms": round(statistics.median(one_ms), 3),
                                  "ratio": round(statistics.median(ratios), 4), "ratio_min": round(ratios[0], 4),
                                  "ratio_max": round(ratios[-1], 4), "rounds": args.rounds}), flush=True)


if __name__ == "__main__":
    main()
