#!/usr/bin/env python3
"""Draws docs/figures/*.svg from bench/figures/data/*.json.

    bench/figures/draw.py [NAME...]     # default: every figure whose data is there
"""
import json
import os
import sys

import svg

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "data")
OUT = os.path.join(HERE, "..", "..", "docs", "figures")


def read(name):
    with open(os.path.join(DATA, name + ".json")) as file:
        return json.load(file)


def note(about):
    """Command and machine below each figure, in lines that fit."""
    words, lines = ("%s. %s, %s, %s." % (about["command"].rstrip("."), about["machine"], about["date"], about["commit"])).split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 128:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines[:3]


def cost(about):
    rows = about["rows"]
    return {"cost": svg.lines(
        "Time of one more token, with and without a KV cache", note(about), "tokens before it", "ms, log scale",
        [("without: the whole text again", [(row["length"], row["without_cache_ms"]) for row in rows]),
         ("with a KV cache", [(row["length"], row["with_cache_ms"]) for row in rows])], x_kind="log2", y_kind="log"),
        "cost_total": svg.lines(
        "Time to write a whole text of n tokens (summed from the figure above)", note(about), "n, tokens", "s",
        [("without: grows with the square of n, and more", total(rows, "without_cache_ms")),
         ("with a KV cache: grows with n", total(rows, "with_cache_ms"))], y_kind="linear")}


def total(rows, key):
    """The sum over all tokens up to each measured length, straight lines between the measured ones."""
    points, seconds = [(0, 0)], 0
    for before, row in zip([dict(rows[0], length=0)] + rows, rows):
        seconds += (row["length"] - before["length"]) * (before[key] + row[key]) / 2 / 1e3
        points.append((row["length"], seconds))
    return points


def fragmentation(about):
    rows, groups, filled, held, free = about["rows"], [], [], [], []
    names = {"paged": "blocks of 16", "max": "slab of longest", "exact": "slab of exact"}
    for trace, title in (("conv", "conversation"), ("code", "code")):
        for row in rows:
            if row["trace"] == trace:
                groups.append("%s, %s" % (names[row["policy"]], title))
                filled.append(100 * row["filled"])
                held.append(100 * row["idle_held"])
                free.append(100 * row["idle_free"])
    return {"fragmentation": svg.bars(
        "What a full KV pool holds while requests wait", note(about), "how room is handed out, trace", "% of the pool", 
        [group.replace(", ", " / ") for group in groups], [("tokens", filled), ("held, empty", held), ("free, too small or kept back", free)],
        stacked=True, y_to=100)}


def hits(about):
    def size(trace):
        return [(row["cache_tokens"] / 1e6, 100 * row["hit_rate"]) for row in about["rows"]
                if row["trace"] == trace and row["bench"] == "prefix_hits"]

    def turn(trace, tokens):
        return {row["turn"]: 100 * row["hit_rate"] for row in about["rows"] if row["trace"] == trace and row["bench"] == "prefix_turn"
                and row["cache_tokens"] == tokens and row["requests"] >= 10}
    big, small = turn("conversation", 67108864), turn("conversation", 4194304)
    return {"hits_size": svg.lines(
        "Prompt tokens found again, by size of the cache", note(about), "cache, million tokens", "% of prompt tokens",
        [("conversation", size("conversation")), ("synthetic", size("synthetic"))], x_kind="log2"),
        "hits_turn": svg.bars(
        "Prompt tokens found again, by turn of the conversation", note(about), "turn (those with 10 requests or more)", "% of prompt tokens",
        [str(number) for number in big], [("cache as large as the trace", list(big.values())),
                                          ("cache of 4 million tokens", [small.get(number) for number in big])], y_to=100)}


def batching(about):
    rows = {row["policy"]: row for row in about["rows"]}
    ratio = rows["continuous"]["output_tokens_s"] / rows["static"]["output_tokens_s"]
    return {"batching": svg.lines(
        "Continuous against static batching: %.2f times the tokens/s" % ratio, note(about), "seconds", "sequences that run, of 8",
        [("continuous (mean %.1f)" % rows["continuous"]["running_mean"], rows["continuous"]["running"]),
         ("static (mean %.1f)" % rows["static"]["running_mean"], rows["static"]["running"])],
        marks=False, steps=True, y_to=9)}


def turns(about):
    def by_turn(cache, key, scale=1.0):
        found = {}
        for row in about["rows"]:
            if row["cache"] == cache:
                found.setdefault(row["turn"], []).append(row[key] / scale)
        return [(turn, sorted(values)[len(values) // 2]) for turn, values in sorted(found.items())]
    return {"turns": svg.lines(
        "A chat that grows: time to the first token", note(about), "turn (64 new tokens and 32 of answer each)", "ms",
        [("prefix cache off", by_turn("off", "ttft_ms")), ("prefix cache on", by_turn("on", "ttft_ms"))]),
        "turns_bytes": svg.lines(
        "A chat that grows: KV that crosses the wire", note(about), "turn (64 new tokens and 32 of answer each)", "MB",
        [("prefix cache off", by_turn("off", "kv_bytes", 1e6)), ("prefix cache on", by_turn("on", "kv_bytes", 1e6))])}


FIGURES = {"cost": cost, "fragmentation": fragmentation, "hits": hits, "batching": batching, "turns": turns}


def main():
    wanted = sys.argv[1:] or [name for name in FIGURES if os.path.exists(os.path.join(DATA, name + ".json"))]
    os.makedirs(OUT, exist_ok=True)
    for name in wanted:
        if name not in FIGURES:
            sys.exit("%s is none of %s" % (name, ", ".join(FIGURES)))
        for figure, text in FIGURES[name](read(name)).items():
            with open(os.path.join(OUT, figure + ".svg"), "w") as file:
                file.write(text)
            print("docs/figures/%s.svg" % figure)


if __name__ == "__main__":
    main()
