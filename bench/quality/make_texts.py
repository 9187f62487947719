#!/usr/bin/env python3
"""Makes the texts that perplexity is measured on; documents are separated by lines of dashes.

  relay.txt    unseen text of the kind that models/baton-tiny was trained on: tools/train_tiny/textgen.py with a
               seed that training did not use
  stories.txt  what stories260k says itself, drawn at temperature 1 from its own probabilities with its f32
               weights: the perplexity of the model itself on it is the least that any change of it can have

  make_texts.py relay
  make_texts.py stories STORIES260K_DIR    needs the built binaries, see tests/e2e/cluster.py
"""
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
SEPARATOR = "-" * 80 + "\n"
PROMPTS = ["Once upon a time", "One day", "Lily", "Tom and his dog", "The little girl", "It was a sunny day"]


def relay():
    text = subprocess.run([sys.executable, os.path.join(ROOT, "tools", "train_tiny", "textgen.py"), "900001", "60"],
                          check=True, capture_output=True, text=True).stdout
    with open(os.path.join(HERE, "relay.txt"), "w") as file:
        file.write(text)


def stories(model):
    sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
    from cluster import Cluster
    with Cluster(0, 1, model=model) as cluster, open(os.path.join(HERE, "stories.txt"), "w") as file:
        for seed in range(36):
            prompt = PROMPTS[seed % len(PROMPTS)]
            answer = cluster.generate("--prompt=" + prompt, "--max-tokens=240", "--temperature=1", "--seed=%d" % (seed + 1))
            file.write(prompt + answer["sequences"][0]["text"].rstrip() + "\n" + SEPARATOR)


if __name__ == "__main__":
    if sys.argv[1:] == ["relay"]:
        relay()
    elif sys.argv[1:2] == ["stories"]:
        stories(sys.argv[2])
    else:
        sys.exit(__doc__)
