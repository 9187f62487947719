#!/usr/bin/env python3
"""Makes the small models of this folder and what Hugging Face transformers computes with them.

    python3 tests/golden/models/make.py [name ...]

Needs torch and transformers (made with torch 2.15, transformers 5.23). Each model is a Hugging Face
directory with random weights from a fixed seed, plus expected.safetensors:

    prompt      I32 [P]      token ids
    logits      F32 [P, V]   float32 arithmetic over the stored weights, eager attention, every position
    magnitude   F32 [P]      max over the vocabulary of sum_j |h_j * w_vj| of the head's product: what
                             rounding errors of a logit are measured against
    greedy      I32 [G]      the tokens that argmax decoding appends to the prompt (end tokens ignored)
    margin      F32 [G]      top1 - top2 of each
    greedy_magnitude F32 [G] as magnitude, of the rows that chose them

A seed is taken only if every margin is at least MARGIN_MIN, so that a comparison of tokens is meaningful;
and the switch that a model is there for (its window, its scaling, its bias) must move the logits by more
than SWITCH_MIN when it is turned off, so that a reader who ignores it fails.
"""
import json
import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT_TOKENS, GREEDY_TOKENS = 21, 36
MARGIN_MIN, SWITCH_MIN = 0.04, 0.2
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def common(**changes):
    sizes = dict(vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
                 num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2)
    return {**sizes, **changes}


def gpt2(**changes):
    sizes = dict(vocab_size=101, n_embd=40, n_layer=3, n_head=5, n_positions=96, bos_token_id=0, eos_token_id=0)
    return {**sizes, **changes}


LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
FULL, SLIDING = "full_attention", "sliding_attention"

# name: class, config class, config, stored dtype, how it is saved, and what "off" changes in config.json
MODELS = {
    "llama_llama3_gqa_f32": dict(
        model=LlamaForCausalLM, config=LlamaConfig(**common(head_dim=16, num_hidden_layers=2, rope_parameters=LLAMA3)), dtype=F32,
        off=dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
    "llama_linear_bias_tied_bf16": dict(
        model=LlamaForCausalLM, dtype=BF16,
        config=LlamaConfig(**common(num_key_value_heads=6, head_dim=20, attention_bias=True, mlp_bias=True,
                                    tie_word_embeddings=True,
                                    rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=500000.0))),
        off=dict(rope_parameters=dict(rope_type="default", rope_theta=500000.0))),
    "llama_gelu_sharded_f16": dict(
        model=LlamaForCausalLM, dtype=F16, shard="24KB",
        config=LlamaConfig(**common(hidden_act="gelu", num_key_value_heads=1, rms_norm_eps=1e-3, vocab_size=131)),
        off=dict(hidden_act="silu")),
    "mistral_window_bf16": dict(
        model=MistralForCausalLM, dtype=BF16,
        config=MistralConfig(**common(sliding_window=7, num_key_value_heads=3)), off=dict(sliding_window=None)),
    "mistral_no_window_tied_f32": dict(
        model=MistralForCausalLM, dtype=F32,
        config=MistralConfig(**common(sliding_window=None, head_dim=12, tie_word_embeddings=True, num_attention_heads=4,
                                      num_hidden_layers=2,
                                      rope_parameters=dict(rope_type="default", rope_theta=1e6))),
        off=dict(sliding_window=4)),
    "qwen2_tied_bf16": dict(
        model=Qwen2ForCausalLM, dtype=BF16,
        config=Qwen2Config(**common(tie_word_embeddings=True, num_key_value_heads=2,
                                    rope_parameters=dict(rope_type="default", rope_theta=1e6))),
        off=dict(rope_parameters=dict(rope_type="default", rope_theta=100.0))),
    "qwen2_window_sharded_f32": dict(
        model=Qwen2ForCausalLM, dtype=F32, shard="48KB",
        config=Qwen2Config(**common(use_sliding_window=True, sliding_window=6, max_window_layers=1,
                                    num_hidden_layers=2,
                                    hidden_act="gelu_pytorch_tanh")),
        off=dict(layer_types=[FULL] * 2, use_sliding_window=False)),
    "qwen3_f16": dict(
        model=Qwen3ForCausalLM, dtype=F16,
        config=Qwen3Config(**common(head_dim=24, num_attention_heads=4, num_key_value_heads=2,
                                    tie_word_embeddings=True)),
        off=dict(rope_parameters=dict(rope_type="default", rope_theta=100.0))),
    "qwen3_layers_bias_bf16": dict(
        model=Qwen3ForCausalLM, dtype=BF16,
        config=Qwen3Config(**common(head_dim=8, attention_bias=True, num_key_value_heads=3, use_sliding_window=True,
                                    sliding_window=5, layer_types=[SLIDING, FULL, SLIDING])),
        off=dict(layer_types=[FULL, FULL, FULL])),
    "gpt2_f32": dict(model=GPT2LMHeadModel, dtype=F32, config=GPT2Config(**gpt2(n_layer=2)),
                     off=dict(activation_function="silu")),
    "gpt2_by_layer_no_prefix_bf16": dict(
        model=GPT2LMHeadModel, dtype=BF16, prefix=False,
        config=GPT2Config(**gpt2(n_inner=72, scale_attn_by_inverse_layer_idx=True, activation_function="gelu")),
        off=dict(scale_attn_by_inverse_layer_idx=False)),
    "gpt2_unscaled_untied_f16": dict(
        model=GPT2LMHeadModel, dtype=F16,
        config=GPT2Config(**gpt2(scale_attn_weights=False, tie_word_embeddings=False, layer_norm_epsilon=1e-3)),
        off=dict(scale_attn_weights=True)),
}


def randomize(model, seed):
    """Weights at which everything matters: products keep their size, attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    is_gpt2 = isinstance(model, GPT2LMHeadModel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                is_factor = "norm" in name or ".ln_" in name
                noise = 1 + 0.2 * noise if is_factor and name.endswith("weight") else 0.2 * noise
            elif "embed_tokens" in name or "wte" in name or "wpe" in name or "lm_head" in name:
                noise = noise * 0.5
            else:
                n_in = parameter.shape[0] if is_gpt2 else parameter.shape[1]
                gain = 2.0 if "q_proj" in name or "k_proj" in name or "c_attn" in name else 1.2
                noise = noise * gain / n_in ** 0.5
            parameter.copy_(noise)


def save(spec, seed, directory):
    shutil.rmtree(directory, ignore_errors=True)
    model = spec["model"](spec["config"])
    randomize(model, seed)
    model.to(spec["dtype"]).save_pretrained(directory, max_shard_size=spec.get("shard", "1GB"))
    if spec.get("prefix") is False:  # as the first published GPT-2 checkpoints are
        path = os.path.join(directory, "model.safetensors")
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})


def load(spec, directory, **changes):
    config = type(spec["config"]).from_pretrained(directory, **changes)
    model = spec["model"].from_pretrained(directory, config=config, dtype=F32, attn_implementation="eager")
    return model.eval()


def run(model, ids):
    """Logits of every position, and the magnitude of each row's head product."""
    with torch.no_grad():
        out = model(input_ids=ids[None], output_hidden_states=True, use_cache=False)
        hidden = out.hidden_states[-1][0]  # after the final norm
        head = model.get_output_embeddings().weight
        assert torch.allclose(hidden @ head.T, out.logits[0], atol=1e-4)
        return out.logits[0], (hidden.abs() @ head.abs().T).max(dim=1).values


def expect(model, vocab):
    generator = torch.Generator().manual_seed(7)
    prompt = torch.randint(3, vocab, (PROMPT_TOKENS,), generator=generator)
    logits, magnitude = run(model, prompt)
    ids, tokens, margins, magnitudes = prompt, [], [], []
    for _ in range(GREEDY_TOKENS):
        step, step_magnitude = run(model, ids)
        top = step[-1].topk(2)
        tokens.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
        magnitudes.append(float(step_magnitude[-1]))
        ids = torch.cat([ids, top.indices[:1]])
    return dict(prompt=prompt.to(torch.int32), logits=logits.contiguous(), magnitude=magnitude.contiguous(),
                greedy=torch.tensor(tokens, dtype=torch.int32), margin=torch.tensor(margins),
                greedy_magnitude=torch.tensor(magnitudes))


def make(name, spec):
    directory = os.path.join(HERE, name)
    for seed in range(1000):
        save(spec, seed, directory)
        expected = expect(load(spec, directory), spec["config"].vocab_size)
        if float(expected["margin"].min()) < MARGIN_MIN or len(set(expected["greedy"].tolist())) < 8:
            continue
        other, _ = run(load(spec, directory, **spec["off"]), expected["prompt"].long())
        moved = float((other - expected["logits"]).abs().max())
        assert moved > SWITCH_MIN, f"{name}: turning {spec['off']} moves the logits by {moved} only"
        save_file(expected, os.path.join(directory, "expected.safetensors"), metadata={"seed": str(seed)})
        for file in os.listdir(directory):
            os.chmod(os.path.join(directory, file), 0o644)
        size = sum(os.path.getsize(os.path.join(directory, f)) for f in os.listdir(directory))
        print(json.dumps(dict(model=name, seed=seed, bytes=size, margin_min=round(float(expected["margin"].min()), 4),
                              logit_max=round(float(expected["logits"].abs().max()), 2),
                              magnitude_max=round(float(expected["magnitude"].max()), 2), switch=round(moved, 3))),
              flush=True)
        return
    raise SystemExit(f"{name}: no seed below 1000 has margins of {MARGIN_MIN}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or MODELS:
        make(wanted, MODELS[wanted])
