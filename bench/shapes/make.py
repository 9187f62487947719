#!/usr/bin/env python3
"""Completes a shape of this folder to a model directory that nodes (--load=dummy) and the router take.

    bench/shapes/make.py qwen2.5-0.5b OUT     # writes OUT/qwen2.5-0.5b

A shape is the config.json of a public model and nothing else. The router reads a tokenizer too, so
this makes one of the same vocabulary size: byte-level BPE without merges, the 256 bytes first, then
fillers, so that every id of a random model has a text. It stands for the time and memory that a
tokenizer of that size takes, not for the model's own.
"""
import json
import os
import shutil
import sys


def byte_names():
    """GPT-2's printable stand-ins of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            names[byte] = chr(byte)
        else:
            names[byte] = chr(256 + extra)
            extra += 1
    return names


def make(shape, out, shapes=None):
    """shapes: where the shape's folder lies; None: here."""
    here = shapes or os.path.dirname(os.path.abspath(__file__))
    directory = os.path.join(out, shape)
    os.makedirs(directory, exist_ok=True)
    shutil.copy(os.path.join(here, shape, "config.json"), directory)
    with open(os.path.join(directory, "config.json")) as file:
        vocab_size = json.load(file)["vocab_size"]
    vocab = {name: byte for byte, name in byte_names().items()}
    for token in range(256, vocab_size):
        vocab["\u0120w%d" % token] = token
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": level, "post_processor": None, "decoder": level,
                 "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                           "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                           "vocab": vocab, "merges": []}}
    with open(os.path.join(directory, "tokenizer.json"), "w") as file:
        json.dump(tokenizer, file)
    with open(os.path.join(directory, "tokenizer_config.json"), "w") as file:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast"}, file)
    return directory


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(make(sys.argv[1], sys.argv[2]))
