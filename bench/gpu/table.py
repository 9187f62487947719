#!/usr/bin/env python3
"""Prints the JSON lines of tests/gpu/run.sh as the tables of docs/BENCHMARKS.md, each figure beside its aim.

    bench/gpu/table.py RESULTS.jsonl
"""
import json
import sys


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


def main(path):
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.startswith("{")]
    named = lambda name: [line for line in lines if line["bench"] == name]  # noqa: E731

    table("The machine", ["GPU", "date", "commit"], ([line["gpu"], line["date"], line["commit"]] for line in named("machine")))
    table("Ceilings of the same run", ["what", "mode", "measured"],
          [["copy on the device, read and written", "", "%.2f TB/s" % line["tb_s"]] for line in named("gpu_copy")[:1]] +
          [["product 8192 x 8192 x 8192, bf16", line["mode"], "%.0f TFLOP/s" % line["tflop_s"]] for line in named("gpu_gemm")])
    table("Products of few rows, 28672 x 4096, bf16", ["rows", "mode", "us", "of the copy's rate"],
          ([line["rows"], line["mode"], line["us"], percent(line["of_copy"])] for line in named("gpu_gemm_rows")))

    def decode_aim(line):
        return "85 %" if (line["sequences"], line["context"]) == (64, 8192) else ""

    table("Decode attention alone", ["sequences", "context", "mode", "us", "of the copy's rate", "aim"],
          ([line["sequences"], line["context"], line["mode"], line["us"], percent(line["of_copy"]), decode_aim(line)]
           for line in named("gpu_attention_decode")))
    table("Prefill attention alone, causal", ["sequences", "tokens", "mode", "us", "TFLOP/s", "of the product's rate", "aim"],
          ([line["sequences"], line["tokens"], line["mode"], line["us"], line["tflop_s"], percent(line["of_gemm"]),
            "50 %" if line["sequences"] == 1 else ""] for line in named("gpu_attention_prefill")))
    theirs = {(line["prompts"], line["tokens"]): line for line in named("transformers_prefill") if "tokens_s" in line}

    def times_theirs(line):
        peer = theirs.get((line["prompts"], line["tokens"]))
        return "%.2f" % (line["tokens_s"] / peer["tokens_s"]) if peer else ""

    table("Prefill, the whole model", ["model", "prompts", "tokens", "mode", "ms", "tokens/s", "of the product's rate", "aim",
                                       "times transformers"],
          ([line["model"], line["prompts"], line["tokens"], line["mode"], line["ms"], line["tokens_s"], percent(line["of_gemm"]),
            "70 %", times_theirs(line)] for line in named("gpu_prefill")))

    peers = {line["batch"]: line for line in named("transformers_decode") if "tokens_s" in line}

    def beside(line):
        peer = peers.get(line["batch"])
        return "%.2f (%s)" % (line["tokens_s"] / peer["tokens_s"], peer["mode"]) if peer else ""

    aims = {1: "85 %", 64: "75 %"}
    table("Decode, the whole model", ["model", "batch", "context", "mode", "ms a step", "tokens/s", "of the copy's rate", "aim",
                                      "times transformers"],
          ([line["model"], line["batch"], line["context"], line["mode"], line["step_ms"], line["tokens_s"],
            percent(line["of_copy"]), aims.get(line["batch"], ""), beside(line)] for line in named("gpu_decode")))
    by_mode = {(line["bench"], line.get("batch"), line["mode"]): line["tokens_s"] for line in named("gpu_decode") + named("gpu_prefill")}
    table("What --deterministic costs", ["what", "batch", "deterministic / default"],
          ([bench[4:], batch or "", "%.3f" % (by_mode[bench, batch, "deterministic"] / rate)]
           for (bench, batch, mode), rate in by_mode.items() if mode == "fast" and (bench, batch, "deterministic") in by_mode))
    table("Time to first token on one GPU: the split and one process", ["prompt", "cable", "split ms", "one process ms", "ratio", "aim"],
          ([line["prompt_tokens"], line["transport"], line["split_ms"], line["one_ms"],
            "%.3f (%.3f to %.3f)" % (line["ratio"], line["ratio_min"], line["ratio_max"]), "1.05"] for line in named("split_ttft")))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
