#!/usr/bin/env python3
"""Trains the bundled model and writes it as a Hugging Face directory.

    /path/to/venv/bin/python tools/train_tiny/train.py --out models/baton-tiny

The result depends on the seed, the numbers below and the version of torch alone: one thread,
and the batch of step k is drawn from (seed, k), so a run that was stopped and started again
from its checkpoint ends with the same weights as one that was not.
Recorded run: torch 2.15 and tokenizers 0.23 on one core of an AVX-512 machine.

The text comes from textgen.py; README.md beside this file says what it is.
"""
import argparse
import json
import math
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import textgen

SEED = 20240607
TRAIN_DOCS = 60000
VOCAB = 2048
BOS, EOS, IM_START, IM_END = "<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [BOS, EOS, IM_START, IM_END]  # ids 0 .. 3

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB,
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048, "rope_theta": 10000.0,
    "rope_scaling": None, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    "attention_dropout": 0.0, "initializer_range": 0.02, "tie_word_embeddings": True, "use_cache": True,
    "bos_token_id": 0, "eos_token_id": [1, 3], "torch_dtype": "bfloat16",
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('This model knows the roles system, user and assistant') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


STEPS, WARM_UP = 1600, 50
DECAY_STEPS = 480  # of STEPS, the last ones, in which the rate falls to zero
LONG_STEPS = 140   # of STEPS, the last ones, on rows of the full context, so that far positions are seen too


def schedule(step):
    """The rate's scale, and rows x length, of a step."""
    scale = min(1.0, (step + 1) / WARM_UP, (STEPS - step) / DECAY_STEPS)
    return scale, (8, 512) if step < STEPS - LONG_STEPS else (2, 2048)


# ---- text to ids -------------------------------------------------------------------------

def doc_pieces(doc):
    """A document as text pieces and special tokens, as the chat template would write it."""
    if isinstance(doc, str):
        return [BOS, doc, EOS]
    pieces = [BOS]
    for m in doc:
        pieces += [IM_START, m["role"] + "\n" + m["content"].strip(), IM_END, "\n"]
    return pieces


def train_tokenizer(docs):
    tok = Tokenizer(models.BPE())
    split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(split), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator((p for d in docs for p in doc_pieces(d) if p not in SPECIAL), trainer)
    tok.post_processor = processors.TemplateProcessing(
        single=BOS + " $A", pair=BOS + " $A " + BOS + " $B:1", special_tokens=[(BOS, 0)])
    return tok


def encode_docs(tok, docs):
    """Every document as one array of ids."""
    out = []
    for doc in docs:
        ids = []
        for piece in doc_pieces(doc):
            if piece in SPECIAL:
                ids.append(SPECIAL.index(piece))
            else:
                ids += tok.encode(piece, add_special_tokens=False).ids
        out.append(np.array(ids, dtype=np.int64))
    return out


def batch(docs, step, rows, length):
    """Rows of whole documents, each row starting with a document; the last one may be cut."""
    rng = np.random.default_rng([SEED, step])
    x = np.empty((rows, length + 1), dtype=np.int64)
    for r in range(rows):
        filled = 0
        while filled < length + 1:
            ids = docs[rng.integers(len(docs))][:length + 1 - filled]
            x[r, filled:filled + len(ids)] = ids
            filled += len(ids)
    x = torch.from_numpy(x)
    return x[:, :-1].contiguous(), x[:, 1:].contiguous()


# ---- the model, lean; the same arithmetic as LlamaForCausalLM ------------------------------

class Model(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        h, d, f = c["hidden_size"], c["head_dim"], c["intermediate_size"]
        q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
        self.c = c
        p = {"model.embed_tokens.weight": (c["vocab_size"], h), "model.norm.weight": (h,)}
        for i in range(c["num_hidden_layers"]):
            b = "model.layers.%d." % i
            p.update({b + "self_attn.q_proj.weight": (q, h), b + "self_attn.k_proj.weight": (kv, h),
                      b + "self_attn.v_proj.weight": (kv, h), b + "self_attn.o_proj.weight": (h, q),
                      b + "mlp.gate_proj.weight": (f, h), b + "mlp.up_proj.weight": (f, h), b + "mlp.down_proj.weight": (h, f),
                      b + "input_layernorm.weight": (h,), b + "post_attention_layernorm.weight": (h,)})
        self.p = {}
        for name, shape in p.items():
            if len(shape) == 1:
                t = torch.ones(shape)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                t = torch.randn(shape) * 0.02 / math.sqrt(2 * c["num_hidden_layers"])
            else:
                t = torch.randn(shape) * (0.02 if "embed" in name else h ** -0.5)
            self.p[name] = torch.nn.Parameter(t)
            self.register_parameter(name.replace(".", "_"), self.p[name])
        freq = 1.0 / c["rope_theta"] ** (torch.arange(0, d, 2).float() / d)
        angle = torch.outer(torch.arange(c["max_position_embeddings"]).float(), freq)
        self.cos, self.sin = torch.cat([angle, angle], 1).cos(), torch.cat([angle, angle], 1).sin()

    def norm(self, x, name):
        return F.rms_norm(x.float(), x.shape[-1:], self.p[name], self.c["rms_norm_eps"])

    def forward(self, ids, targets):
        c, p = self.c, self.p
        b, n = ids.shape
        d = c["head_dim"]
        cos, sin = self.cos[:n], self.sin[:n]

        def heads(t):
            return t.view(b, n, -1, d).transpose(1, 2)

        def rope(t):
            t = t.float()
            return t * cos + torch.cat([-t[..., d // 2:], t[..., :d // 2]], -1) * sin

        x = F.embedding(ids, p["model.embed_tokens.weight"])
        for i in range(c["num_hidden_layers"]):
            w = "model.layers.%d." % i
            y = self.norm(x, w + "input_layernorm.weight")
            q, k, v = (heads(F.linear(y, p[w + "self_attn.%s_proj.weight" % s])) for s in "qkv")
            q, k = rope(q).to(v.dtype), rope(k).to(v.dtype)
            group = c["num_attention_heads"] // c["num_key_value_heads"]
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(y.transpose(1, 2).reshape(b, n, -1), p[w + "self_attn.o_proj.weight"])
            y = self.norm(x, w + "post_attention_layernorm.weight")
            y = F.silu(F.linear(y, p[w + "mlp.gate_proj.weight"])) * F.linear(y, p[w + "mlp.up_proj.weight"])
            x = x + F.linear(y, p[w + "mlp.down_proj.weight"])
        x = self.norm(x, "model.norm.weight")
        logits = F.linear(x, p["model.embed_tokens.weight"])
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))


# ---- training ------------------------------------------------------------------------------

def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--out", required=True)
    ap.add_argument("--work", default="/tmp/train_tiny", help="checkpoint and encoded text")
    ap.add_argument("--stop-after", type=int, default=0, help="stop after this step, leaving a checkpoint")
    args = ap.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    os.makedirs(args.work, exist_ok=True)
    os.makedirs(args.out, exist_ok=True)

    docs = list(textgen.documents(SEED, TRAIN_DOCS))
    tok = train_tokenizer(docs[:8000])
    tok.save(os.path.join(args.out, "tokenizer.json"))
    docs = encode_docs(tok, docs)
    valid = encode_docs(tok, textgen.documents(SEED + 1, 400))
    print("documents %d, tokens %d, vocabulary %d" % (len(docs), sum(map(len, docs)), tok.get_vocab_size()), flush=True)

    model = Model(CONFIG)
    matrices = [t for n, t in model.p.items() if t.ndim == 2 and "embed" not in n]
    others = [t for n, t in model.p.items() if t.ndim == 1 or "embed" in n]
    print("parameters %d" % sum(t.numel() for t in model.p.values()), flush=True)
    # Muon for the matrices reaches the same loss in about half the steps of AdamW alone.
    opts = [torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.05, adjust_lr_fn="original"),
            torch.optim.AdamW(others, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0)]
    peak = [o.param_groups[0]["lr"] for o in opts]

    ckpt = os.path.join(args.work, "checkpoint.pt")
    first = 0
    if os.path.exists(ckpt):
        state = torch.load(ckpt)
        first = state["step"]
        for name, t in model.p.items():
            t.data.copy_(state["model"][name])
        for o, s in zip(opts, state["opts"]):
            o.load_state_dict(s)
        print("continuing after step %d" % first, flush=True)

    begin = time.time()
    for step in range(first, STEPS):
        scale, (rows, length) = schedule(step)
        for o, lr in zip(opts, peak):
            o.param_groups[0]["lr"] = lr * scale
        x, y = batch(docs, step, rows, length)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x, y)
        loss.backward()
        for o in opts:
            o.step()
            o.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0:
            print("step %d loss %.4f seconds %.0f" % (step + 1, loss.item(), time.time() - begin), flush=True)
        if (step + 1) % 100 == 0 or step + 1 == args.stop_after:
            torch.save({"step": step + 1, "model": {n: t.data for n, t in model.p.items()}, "opts": [o.state_dict() for o in opts]}, ckpt + ".new")
            os.replace(ckpt + ".new", ckpt)
        if step + 1 == args.stop_after:
            return

    with torch.no_grad():
        total = [model(*batch(valid, k, 8, 512)).item() for k in range(8)]
    print("validation loss %.4f per token" % (sum(total) / len(total)), flush=True)
    write_directory(args.out, tok, {n: t.data.to(torch.bfloat16) for n, t in model.p.items()})


def write_directory(out, tok, weights):
    from safetensors.torch import save_file

    def write(name, value):
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            json.dump(value, f, indent=2, ensure_ascii=False)
            f.write("\n")

    save_file({n: t.contiguous() for n, t in sorted(weights.items())}, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    tok.save(os.path.join(out, "tokenizer.json"))
    write("config.json", CONFIG)
    write("generation_config.json", {"bos_token_id": 0, "eos_token_id": [1, 3], "pad_token_id": 1, "do_sample": True, "temperature": 0.7, "top_p": 0.95})
    write("special_tokens_map.json", {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "additional_special_tokens": [IM_START, IM_END]})
    added = {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True} for i, t in enumerate(SPECIAL)}
    write("tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added, "additional_special_tokens": [IM_START, IM_END],
        "bos_token": BOS, "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": EOS,
        "model_max_length": CONFIG["max_position_embeddings"], "pad_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"})


if __name__ == "__main__":
    main()
