#!/usr/bin/env python3
"""Expected greedy tokens and logits of the bundled model, from Hugging Face transformers.

    /path/to/venv/bin/python tests/golden/bundled/make.py

Reads models/baton-tiny and writes expected.json beside this file. The stored bf16 weights are
widened to float32 and everything is computed in float32, one token at a time from the whole
prefix (no cache), on one thread.

For every case: prompt or messages, prompt_ids (with the begin token), output_ids (with the end
token, if that is what stopped it), text, stop ("eos" or "length"), and for every output step
the five largest logits [id, logit] and margins[i], the distance of the two largest. A step
whose margin is below the error of another implementation may go either way; the smallest
margin of a case is smallest_margin.
"""
import json
import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "..", "..", "..", "models", "baton-tiny")
CASES = [
    {"prompt": "Once upon a time", "max_tokens": 120},
    {"prompt": "The baton", "max_tokens": 120},
    {"prompt": "It was a cold morning, and", "max_tokens": 80},
    {"prompt": "Dear Mia,\n\nHow are you?", "max_tokens": 100},
    {"prompt": "Monday.", "max_tokens": 80},
    {"prompt": "News from the track in Ashford.", "max_tokens": 80},
    {"prompt": "", "max_tokens": 40},
    {"prompt": "größe 猫 🏃 \u0000\u0007 x", "max_tokens": 24},
    {"messages": [{"role": "user", "content": "What is a relay race?"}], "max_tokens": 80},
    {"messages": [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Tell me a story about a relay race."}], "max_tokens": 200},
    {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am the small language model that comes with Baton."},
                  {"role": "user", "content": "What does the router do?"}], "max_tokens": 80},
]


def run(model, tokenizer, case):
    if "messages" in case:
        text = tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False).input_ids
        case["prompt_text"] = text
    else:
        ids = tokenizer(case["prompt"]).input_ids
    stop_ids, out, top5, margins = set(model.generation_config.eos_token_id), [], [], []
    while len(out) < case["max_tokens"]:
        logits = model(input_ids=torch.tensor([ids + out])).logits[0, -1]
        values, best = logits.topk(5)
        out.append(best[0].item())
        top5.append([[i.item(), round(v.item(), 5)] for i, v in zip(best, values)])
        margins.append(round((values[0] - values[1]).item(), 6))
        if out[-1] in stop_ids:
            break
    case.update(prompt_ids=ids, output_ids=out, text=tokenizer.decode(out, skip_special_tokens=True), stop="eos" if out[-1] in stop_ids else "length",
                smallest_margin=min(margins), margins=margins, top5=top5)
    return case


def main():
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    with torch.no_grad():
        cases = [run(model, tokenizer, dict(c)) for c in CASES]
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    with open(os.path.join(HERE, "expected.json"), "w", encoding="utf-8") as f:
        f.write('{"model": "models/baton-tiny", "decoding": "greedy, float32 over the stored bf16 weights", "cases": [\n%s\n]}\n' % lines)
    for c in cases:
        print(len(c["output_ids"]), c["stop"], c["smallest_margin"], repr(c["text"][:70]))


if __name__ == "__main__":
    main()
