#!/usr/bin/env python3
"""Writes a GGUF file of random weights at the shape of a Hugging Face config.json, for the peer of bench/peer/compare.py.

    bench/peer/make_gguf.py bench/shapes/llama-3.2-1b OUT.gguf     # Llama and Qwen2 shapes, bf16

Needs `gguf` from PyPI. The values are random bytes made into small bf16 numbers: speed does not depend on
them, as long as none is a denormal or a NaN. The vocabulary is made up too, three special tokens, 256 bytes
and fillers; the comparison sends token ids.
"""
import json
import os
import sys

import gguf
import numpy

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
BLOCK_WORDS = 1 << 22


class Weights:
    """Random bf16 matrices, cut at moving offsets from one block: a generator would take minutes a model."""

    def __init__(self, seed):
        random = numpy.random.default_rng(seed)
        floats = random.normal(0, 0.02, BLOCK_WORDS).astype(numpy.float32)
        self.block = (floats.view(numpy.uint32) >> 16).astype(numpy.uint16)
        self.at = 0

    def matrix(self, rows, columns):
        self.at = (self.at + 7919) % BLOCK_WORDS
        words = numpy.resize(numpy.roll(self.block, -self.at), rows * columns)
        return words.reshape(rows, columns).view(numpy.uint8)


def rope_factors(config):
    """Llama 3's stretch of the slow rotations, as divisors of each pair's frequency; None where it has none."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return None
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    wavelengths = 2 * numpy.pi * config["rope_theta"] ** (numpy.arange(0, dim, 2) / dim)
    old, low, high = scaling["original_max_position_embeddings"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = numpy.clip((old / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / scaling["factor"] + smooth)).astype(numpy.float32)


def write(shape, path):
    with open(os.path.join(shape, "config.json")) as file:
        config = json.load(file)
    name = config["architectures"][0]
    if name not in ARCHITECTURES:
        sys.exit("%s: this writes %s, not %s" % (shape, " and ".join(ARCHITECTURES), name))
    arch = ARCHITECTURES[name]
    hidden, heads, layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    kv_heads, ffn, vocab = config["num_key_value_heads"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim") or hidden // heads

    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(os.path.basename(os.path.normpath(shape)) + " (random)")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)

    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % byte for byte in range(256)]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256
    tokens += ["\u2581w%d" % token for token in range(len(tokens), vocab)]
    types += [kinds.NORMAL] * (vocab - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    weights = Weights(seed=1)

    def matrix(tensor, rows, columns):
        writer.add_tensor(tensor, weights.matrix(rows, columns), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def vector(tensor, count, value):
        writer.add_tensor(tensor, numpy.full(count, value, numpy.float32))

    matrix("token_embd.weight", vocab, hidden)
    if not config.get("tie_word_embeddings"):
        matrix("output.weight", vocab, hidden)
    vector("output_norm.weight", hidden, 1)
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    for layer in range(layers):
        at = "blk.%d." % layer
        vector(at + "attn_norm.weight", hidden, 1)
        vector(at + "ffn_norm.weight", hidden, 1)
        for part, rows in (("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
            matrix(at + "attn_%s.weight" % part, rows, hidden)
            if arch == "qwen2":
                vector(at + "attn_%s.bias" % part, rows, 0.01)
        matrix(at + "attn_output.weight", hidden, heads * head_dim)
        matrix(at + "ffn_gate.weight", ffn, hidden)
        matrix(at + "ffn_up.weight", ffn, hidden)
        matrix(at + "ffn_down.weight", hidden, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(sys.argv[1], sys.argv[2])
