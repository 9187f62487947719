#!/usr/bin/env python3
"""Hugging Face transformers on the same GPU, for bench/gpu: decode and prefill of random weights at a model's shape.

    bench/gpu/transformers_side.py SHAPE_DIR [--batches=1,8,32,64] [--context=2048] [--prefill=16x2048] [--rounds=5]

Prints JSON lines: {"bench": "transformers_decode", "batch": 8, "tokens_s": ..., "mode": "static cache, compiled"}.
Decode is tried with a static cache and torch.compile (mode reduce-overhead, which uses CUDA graphs); where that fails,
without compile; the mode that ran is in the line. Each figure is the median over rounds of a run of steps.
"""
import argparse
import json
import statistics
import sys
import time

STEPS = 32  # of one round


def tell(**values):
    print(json.dumps(values), flush=True)


def seconds_of(torch, work):
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def decode_seconds(torch, model, step, batch, context, rounds):
    """Seconds of one step: `batch` sequences with `context` tokens each in the cache."""
    from transformers import StaticCache

    config = model.config
    # Room for every step: two warm-up rounds, then those that count.
    length = context + STEPS * (rounds + 2)
    try:
        cache = StaticCache(config=config, max_cache_len=length)
    except TypeError:  # older releases want the batch as well
        cache = StaticCache(config=config, max_batch_size=batch, max_cache_len=length, device="cuda", dtype=torch.bfloat16)
    vocab = config.vocab_size
    generator = torch.Generator(device="cuda").manual_seed(1)
    with torch.inference_mode():
        for first in range(0, context, 512):  # in pieces, so that scores of a whole prompt need no room
            last = min(context, first + 512)
            ids = torch.randint(0, vocab, (batch, last - first), device="cuda", generator=generator)
            model(ids, past_key_values=cache, cache_position=torch.arange(first, last, device="cuda"),
                  use_cache=True, logits_to_keep=1)
        token = torch.randint(0, vocab, (batch, 1), device="cuda", generator=generator)
        at = torch.tensor([context], device="cuda")

        def steps():
            nonlocal token
            for _ in range(STEPS):
                logits = step(token, past_key_values=cache, cache_position=at, use_cache=True).logits
                token = logits[:, -1:].argmax(-1).clone()
                at.add_(1)

        steps()
        steps()  # compiled and recorded now
        return statistics.median(seconds_of(torch, steps) for _ in range(rounds)) / STEPS


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape")
    parser.add_argument("--batches", default="1,8,32,64")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--prefill", default="16x2048")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as error:
        sys.exit("transformers_side: %s; pip install torch transformers" % error)
    if not torch.cuda.is_available():
        sys.exit("transformers_side: torch finds no GPU")

    config = transformers.AutoConfig.from_pretrained(args.shape)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.eval()
    tell(bench="transformers", version=transformers.__version__, torch=torch.__version__, gpu=torch.cuda.get_device_name(0))

    prompts, length = (int(part) for part in args.prefill.split("x"))
    try:
        with torch.inference_mode():
            ids = torch.randint(0, config.vocab_size, (prompts, length), device="cuda")
            model(ids, use_cache=True, logits_to_keep=1)
            times = [seconds_of(torch, lambda: model(ids, use_cache=True, logits_to_keep=1)) for _ in range(args.rounds)]
        seconds = statistics.median(times)
        tell(bench="transformers_prefill", prompts=prompts, tokens=length, seconds=seconds, tokens_s=prompts * length / seconds)
    except Exception as error:  # as below
        tell(bench="transformers_prefill", failed=str(error).split("\n")[0][:200])

    for batch in (int(part) for part in args.batches.split(",")):
        for mode in ("static cache, compiled", "static cache"):
            try:
                torch._dynamo.reset()
                step = torch.compile(model, mode="reduce-overhead", fullgraph=True) if "compiled" in mode else model
                seconds = decode_seconds(torch, model, step, batch, args.context, args.rounds)
            except Exception as error:  # whatever a release of theirs does not do: say it and try the next
                tell(bench="transformers_decode", batch=batch, mode=mode, failed=str(error).split("\n")[0][:200])
                continue
            tell(bench="transformers_decode", batch=batch, context=args.context, mode=mode, step_ms=seconds * 1e3,
                 tokens_s=batch / seconds)
            break


if __name__ == "__main__":
    main()
