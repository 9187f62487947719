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
        return dict(json.load(file), name=name)


def note(about):
    """Below each figure: the command that measures it anew, where and when it ran and beside how much else (the load
    at its end, its own processes among it); then what was run, in lines that fit."""
    lines = ["bench/figures/measure.py %s: %s, load %s, %s, commit %s" % (about["name"], about["machine"], about["load"], about["date"],
                                                                         about["commit"]), ""]
    for word in about["command"].rstrip(".").split():
        if len(lines[-1]) + len(word) > 128:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    if len(lines) > 3:
        sys.exit("%s: its command does not fit below the figure: %s" % (about["name"], about["command"]))
    return lines


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
                groups.append("%s\n%s" % (names[row["policy"]], title))
                filled.append(100 * row["filled"])
                held.append(100 * row["idle_held"])
                free.append(100 * row["idle_free"])
    return {"fragmentation": svg.bars(
        "What a full KV pool holds while requests wait", note(about), "how room is handed out, trace", "% of the pool",
        groups, [("tokens", filled), ("held, empty", held), ("free, too small or kept back", free)],
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


def trace_turns(about):
    def of(cache):
        return {row["turn"]: row["ttft_s_p50"] for row in about["rows"] if row["bench"] == "trace_turn" and row["prefix_cache"] == cache
                and row["requests"] >= 10}
    on, off = of("on"), of("off")
    return {"trace_turns": svg.bars(
        "A public trace of an hour, 24 + 8 nodes, simulated: TTFT by turn", note(about), "turn (those with 10 requests or more)", "s, median",
        [str(turn) for turn in on], [("prefix cache off", [off.get(turn) for turn in on]), ("prefix cache on", list(on.values()))])}


def window(about):
    return {"window": svg.lines(
        "KV blocks that one request holds while it grows", note(about), "tokens of the sequence", "blocks of 16 tokens",
        [("full attention", thin([(row["tokens"], row["blocks_held"]) for row in about["rows"] if row["window"] == "none"])),
         ("sliding window of 512 tokens", thin([(row["tokens"], row["blocks_held"]) for row in about["rows"] if row["window"] != "none"]))],
        marks=False)}


def thin(points, most=200):
    """At most so many points, the last one among them."""
    step = max(1, len(points) // most)
    return points[::step] + ([points[-1]] if points and (len(points) - 1) % step else [])


def long(about):
    rows = [row for row in about["rows"] if "seconds" in row]
    return {"long": svg.lines(
        "A prompt of 131,072 tokens: memory of the node while it is read", note(about), "tokens read, thousands", "MiB",
        [("resident in all", thin([(row["prompt_tokens"] / 1e3, row["resident_mib"]) for row in rows])),
         ("of it the KV pool", thin([(row["prompt_tokens"] / 1e3, row["pool_mib"]) for row in rows])),
         ("blocks held x size", thin([(row["prompt_tokens"] / 1e3, row["blocks_held"] * 16 / 1024) for row in rows]))],
        marks=False)}


def tiers(about):
    names = {"recompute": "computed again", "disk": "from disk", "host": "from host memory", "pool": "still in the pool"}

    def of(where):
        return [(row["prompt_tokens"], row["ttft_ms"]) for row in about["rows"] if row["where"] == where]
    return {"tiers": svg.lines(
        "A prompt comes back: time to its first token", note(about), "tokens of the prompt", "ms, log scale",
        [(names[where], of(where)) for where in names if of(where)], x_kind="log2", y_kind="log")}


def quality(about):
    formats = (("bf16", "100 % of the bytes"), ("int8", "51.6 %"), ("fp8_e4m3", "51.6 %"))
    models = list(dict.fromkeys(row["model"] for row in about["rows"]))
    found = {(row["model"], row["kv"]): row["divergence"] for row in about["rows"]}
    return {"quality": svg.bars(
        "How far a smaller KV cache bends the next token's probabilities", note(about), "number format of the cache, bytes of bf16's",
        "KL divergence from f32 KV, nats, log scale", ["%s\n%s" % one for one in formats],
        [(model, [found.get((model, kv)) for kv, _ in formats]) for model in models], y_kind="log")}


def preempt(about):
    rows = about["rows"]
    return {"preempt": svg.bars(
        "Twelve sequences, room for about six: text tokens computed", note(about), "how a sequence gives way", "prompt tokens computed",
        ["%s\n%d gave way, %.0f tokens/s out" % (row["policy"], row["preemptions"], row["output_tokens_s"]) for row in rows],
        [("prompt tokens, and outputs read again", [row["prompt_tokens"] for row in rows])], digits=0)}


def itl(about):
    rows = about["rows"]
    names = ["no limit\n(chunks of 256 rows)" if row["stretch"] == 0 else "--itl-stretch=%g" % row["stretch"] for row in rows]
    return {"itl": svg.bars(
        "Running streams while the same process reads 1,000 tokens", note(about), "limit of a step with prompt rows", "ms between two tokens",
        names, [("undisturbed p99", [row["calm_p99_ms"] for row in rows]), ("meanwhile p99", [row["hurt_p99_ms"] for row in rows])],
        digits=0)}


def interference(about):
    rows = about["rows"]
    return {"interference": svg.bars(
        "Eight running streams while a prompt of 2,000 tokens is read: ITL", note(about), "who reads it", "ms, log scale",
        [row["side"].replace(", ", "\n") for row in rows],
        [("undisturbed p99", [row["calm_p99_ms"] for row in rows]), ("meanwhile p99", [row["hurt_p99_ms"] for row in rows])],
        y_kind="log", digits=0)}


FIGURES = {"cost": cost, "fragmentation": fragmentation, "hits": hits, "batching": batching, "turns": turns, "trace_turns": trace_turns,
           "window": window, "long": long, "tiers": tiers, "quality": quality, "preempt": preempt, "itl": itl, "interference": interference}


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
