"""Encoding of a 100,000-character prompt: ours and Hugging Face tokenizers side by side, one
thread each, in one run.

    python3 encode_bench.py --pipe PROGRAM [--text FILE] [--rounds N] [--json] DIR...

Expected: the reference spends some 250 ns a byte, most of it on offsets and small strings that
ids alone do not need (encode_batch_fast, which leaves out the offsets, is timed); ours should be bound by the regular expression, some 10 ns a byte, and a
look-up per word. Texts alternate between the two within a round, so that a noisy machine hits
both; the median of the rounds' ratios is printed. The reference keeps a cache of words from
one call to the next, and ours starts each call with an empty one.
"""
import argparse
import json
import os
import statistics
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/fuzz/tokenizer"))
from token_process import TokenProcess  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

CHARACTERS = 100_000


def english(length):
    """Prose, lists, code and numbers of the repository's own making."""
    import random
    rng = random.Random(7)
    nouns = "router node block token prompt sequence cache layer batch stream ticket epoch transfer client".split()
    verbs = "sends takes frees reserves computes pushes resumes streams refuses counts".split()
    out = []
    size = 0
    while size < length:
        n, v, o = rng.choice(nouns), rng.choice(verbs), rng.choice(nouns)
        line = rng.choice([
            f"The {n} {v} {rng.randrange(2, 4096)} {o}s, and doesn't wait for the {rng.choice(nouns)}'s answer. ",
            f"- {n.capitalize()}: {v} the {o} (see section {rng.randrange(1, 20)}.{rng.randrange(1, 9)})\n",
            f"    if ({n}->{o}_count > {rng.randrange(1 << 16):#x}) {{ return {v}_{o}({n}); }}\n",
            f"{rng.random():.6f}, {rng.random() * 1e6:.1f}, {rng.randrange(1 << 40)}\n",
            f"Unbelievably, {n}{o} re{v} over-{rng.choice(nouns)}ization; \"{v}!\" said the {n}.\n\n",
        ])
        out.append(line)
        size += len(line)
    return "".join(out)[:length]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipe", required=True)
    parser.add_argument("--text", help="a file to encode; its first 100,000 characters")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each tokenizer instead of a table")
    parser.add_argument("dirs", nargs="+")
    options = parser.parse_args()
    if options.text:
        with open(options.text, encoding="utf-8") as file:
            text = file.read()[:CHARACTERS]
    else:
        text = english(CHARACTERS)
    size = len(text.encode())
    if not options.json:
        print(f"{len(text)} characters, {size} bytes, {options.rounds} rounds")
        print(f"{'tokenizer':28} {'tokens':>7} {'ours ms':>9} {'theirs ms':>10} {'ours MB/s':>10} {'ratio':>7}")
    for directory in options.dirs:
        reference = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
        reference.no_truncation()
        reference.no_padding()
        ours = TokenProcess(options.pipe, directory)
        ids = reference.encode(text, add_special_tokens=False).ids
        if ours.encode(text) != ids:
            sys.exit(f"{directory}: the ids differ; nothing to time")
        ours.encode_ns(text, 2)
        mine, theirs = [], []
        for _ in range(options.rounds):
            mine.append(ours.encode_ns(text, 1)[0] / 1e6)
            start = time.perf_counter_ns()
            reference.encode_batch_fast([text], add_special_tokens=False)
            theirs.append((time.perf_counter_ns() - start) / 1e6)
        ratio = statistics.median(t / m for m, t in zip(mine, theirs))
        middle, name = statistics.median(mine), os.path.basename(os.path.normpath(directory))
        if options.json:
            print(json.dumps({"bench": "encode", "tokenizer": name, "characters": len(text), "bytes": size, "tokens": len(ids),
                              "ours_ms": round(middle, 3), "theirs_ms": round(statistics.median(theirs), 3),
                              "ours_mb_s": round(size / middle / 1e3, 1), "ratio": round(ratio, 2), "rounds": options.rounds}), flush=True)
        else:
            print(f"{name:28} {len(ids):7} {middle:9.2f} {statistics.median(theirs):10.2f} {size / middle / 1e3:10.1f} {ratio:6.1f}x",
                  flush=True)
        ours.close()


if __name__ == "__main__":
    main()
