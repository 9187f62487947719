"""Holds our tokenizer beside Hugging Face tokenizers on random texts and random ids.

    python3 tokenizer_diff.py --pipe PROGRAM [--seconds N] [--seed N] DIR...

PROGRAM is //tests/fuzz/tokenizer:tokenizer_pipe; each DIR has a tokenizer.json. Ends with
status 1 and prints the shortest text or ids found when the two differ.
"""
import argparse
import json
import os
import random
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from token_process import TokenProcess  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

WORDS = ["the", "The", "THE", "don't", "I'LL", "we've", "naïve", "Straße", "ΑΒΓ", "привет", "你好", "世界", "こんにちは",
         "안녕", "שלום", "مرحبا", "नमस्ते", "สวัสดี", "x_y", "foo.bar", "1234567", "3.14159", "٣٤٥", "Ⅷ", "½", "²",
         "\u0130stanbul", "ǅ", "ﬁ", "한", "e\u0301", "a\u0323\u0307", "👩‍👩‍👧", "🏳️‍🌈", "😀", "\U0001f1e9\U0001f1ea",
         "'s", "'ſ", "'S", "\u2019s", "<|endoftext|>", "<s>", "</s>", "<unk>", "<0x41>", "▁", "##", "</w>", "Ġ", "Ċ"]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2003", "\u200b", "\u180e", "\u0085", "\v",
          "\f", "\u2028", "\x1c", " " * 9, " " * 40, "\t\t ", " \n "]
PUNCTUATION = list(".,;:!?'\"()[]{}<>|/\\@#$%^&*-_=+~`") + ["...", "¿", "—", "“", "”", "…", "§", "€", "\u3002", "\uff0c"]
BLOCKS = [(0x20, 0x7f), (0x20, 0x7f), (0xa0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x780), (0x900, 0xe00),
          (0xe00, 0x1100), (0x1100, 0x1200), (0x1e00, 0x2100), (0x2100, 0x2c00), (0x3000, 0x3400), (0x4e00, 0xa000),
          (0xa000, 0xabff), (0xac00, 0xd7a4), (0xf900, 0x10000), (0x10000, 0x12000), (0x16000, 0x17000),
          (0x1d000, 0x1e000), (0x1f000, 0x1fb00), (0x20000, 0x33000), (0xe0000, 0xe0200), (0, 0x110000), (0, 0x20)]


def random_character(rng):
    while True:
        low, high = rng.choice(BLOCKS)
        code = rng.randrange(low, high)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def random_text(rng, special):
    parts = []
    for _ in range(rng.choice([1, 2, 3, 5, 8, 20, 60])):
        kind = rng.random()
        if kind < 0.3:
            parts.append(rng.choice(WORDS))
        elif kind < 0.5:
            parts.append(rng.choice(SPACES))
        elif kind < 0.6:
            parts.append(rng.choice(PUNCTUATION))
        elif kind < 0.7 and special:
            parts.append(rng.choice(special))
        elif kind < 0.8:
            parts.append("".join(rng.choice("abcdeéAB 0123\n'") for _ in range(rng.randrange(1, 12))))
        elif kind < 0.82:
            parts.append(random_character(rng) * rng.randrange(1, 90))
        else:
            parts.append("".join(random_character(rng) for _ in range(rng.randrange(1, 6))))
    return "".join(parts)


def shorten(value, differs):
    """Takes parts away for as long as the difference stays."""
    size = max(1, len(value) // 2)
    while size:
        at, cut = 0, False
        while at < len(value):
            rest = value[:at] + value[at + size:]
            if differs(rest):
                value, cut = rest, True
            else:
                at += size
        size = size if cut and size > 1 else size // 2
    return value


def check_directory(pipe, directory, seconds, rng):
    reference = Tokenizer.from_file(os.path.join(directory, "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    with open(os.path.join(directory, "tokenizer.json"), encoding="utf-8") as file:
        added = json.load(file).get("added_tokens") or []
    special = [token["content"] for token in added]
    ours = TokenProcess(pipe, directory)
    size = max(reference.get_vocab().values()) + 1
    bytes_ids = [i for t, i in reference.get_vocab().items() if len(t) == 6 and t.startswith("<0x")] or [0]
    texts = lists = 0
    end = time.monotonic() + seconds

    def text_differs(text, parse=True):
        reference.encode_special_tokens = not parse
        return ours.encode(text, False, parse) != reference.encode(text, add_special_tokens=False).ids

    def ids_differ(ids, skip=False):
        text = reference.decode(ids, skip_special_tokens=skip)
        return ours.decode(ids, skip) != text or "".join(ours.pieces(ids, skip)) != text

    while time.monotonic() < end:
        text, parse = random_text(rng, special), rng.random() < 0.8
        texts += 1
        if text_differs(text, parse):
            text = shorten(text, lambda t: text_differs(t, parse))
            print(f"DIFFERS {directory} parse_special={parse} text={text!r} {[hex(ord(c)) for c in text]}\n"
                  f"  ours  {ours.encode(text, False, parse)}\n"
                  f"  theirs {reference.encode(text, add_special_tokens=False).ids}")
            return False
        skip = rng.random() < 0.5
        if rng.random() < 0.5:
            ids = reference.encode(text, add_special_tokens=True).ids
            ids = ids[rng.randrange(len(ids) + 1):] if rng.random() < 0.3 else ids
        else:
            ids = [rng.choice(bytes_ids) if rng.random() < 0.4 else rng.randrange(size + 3)
                   for _ in range(rng.randrange(0, 40))]
        lists += 1
        if ids_differ(ids, skip):
            ids = shorten(ids, lambda i: ids_differ(i, skip))
            print(f"DIFFERS {directory} skip_special={skip} ids={ids}\n  ours   {ours.decode(ids, skip)!r}\n"
                  f"  pieces {ours.pieces(ids, skip)!r}\n  theirs {reference.decode(ids, skip_special_tokens=skip)!r}")
            return False
    ours.close()
    print(f"same {directory}: {texts} texts, {lists} lists of ids")
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pipe", required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("dirs", nargs="+")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    rng = random.Random(options.seed)
    results = [check_directory(options.pipe, directory, options.seconds, rng) for directory in options.dirs]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
