"""`baton generate` gives the tokens that implementations which are not ours gave.

Three sources: the bundled model's stored answers and the golden models (both from Hugging Face
transformers), and the trained models of the shared test data (from karpathy/llama2.c). Each is
asked of one decode node alone, with the KV cache in f32 as the references compute, and of the
split with its defaults; by token ids and, where there is a tokenizer, by text.
"""
import json
import math
import os
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, find_model, shared_data  # noqa: E402

F32 = ["--kv-dtype=f32"]
SPLIT = ["--local-prefill-tokens=0"]
GREEDY = ["--temperature=0", "--repetition-penalty=1"]


def repository_folder(*parts):
    for root in (os.getcwd(), os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")):
        path = os.path.join(root, *parts)
        if os.path.exists(path):
            return os.path.abspath(path)
    sys.exit("%s is missing" % os.path.join(*parts))


def read_safetensors(path):
    """{name: list of numbers} of the I32 and F32 tensors of a file."""
    with open(path, "rb") as file:
        data = file.read()
    head_len = struct.unpack_from("<Q", data)[0]
    tensors = {}
    for name, spec in json.loads(data[8:8 + head_len]).items():
        kind = {"I32": "i", "F32": "f"}.get(spec.get("dtype")) if name != "__metadata__" else None
        if kind:
            begin, end = spec["data_offsets"]
            tensors[name] = list(struct.unpack_from("<%d%s" % ((end - begin) // 4, kind), data, 8 + head_len + begin))
    return tensors


def by_tokens(ids):
    return "--tokens=" + ",".join(map(str, ids))


class Reference(unittest.TestCase):
    maxDiff = None

    def both_ways(self, model, ask):
        """Runs `ask(cluster)` on one decode node alone, then on one and one."""
        with Cluster(0, 1, model=model, common=F32) as cluster:
            ask(cluster, "local")
            cluster.wait_idle()
        # As a user starts it: of models this small the default is to keep the KV in f32, too.
        with Cluster(1, 1, model=model, router_flags=SPLIT) as cluster:
            ask(cluster, "shm")
            cluster.wait_idle()

    def test_bundled_model(self):
        with open(repository_folder("tests", "golden", "bundled", "expected.json")) as file:
            cases = json.load(file)["cases"]
        self.assertGreater(len(cases), 5)

        def ask(cluster, transport):
            for case in cases:
                ways = {"ids": [by_tokens(case["prompt_ids"])]}
                if case.get("prompt") and "\0" not in case["prompt"]:  # no file of text has one
                    path = os.path.join(cluster.dir.name, "prompt")
                    with open(path, "w") as file:
                        file.write(case["prompt"])
                    ways["text"] = ["--prompt-file=" + path]
                for way, prompt in ways.items():
                    with self.subTest(prompt=case["prompt_ids"][:8], way=way, transport=transport):
                        answer = cluster.generate(*prompt, *GREEDY, "--max-tokens=%d" % case["max_tokens"])
                        self.assertEqual(answer["prompt_token_ids"], case["prompt_ids"])
                        self.assertEqual(answer["token_ids"], case["output_ids"])
                        self.assertEqual(answer["text"], case["text"])
                        self.assertEqual(answer["finish_reason"], {"eos": "stop", "length": "length"}[case["stop"]])
                        self.assertEqual(answer["route"]["transport"], transport)
                        self.assertEqual(answer["usage"]["prompt_tokens"], len(case["prompt_ids"]))
                        self.assertEqual(answer["usage"]["completion_tokens"], len(case["output_ids"]))
        self.both_ways(find_model(), ask)

    def check_shared(self, model, expected):
        root = shared_data()
        if not root:
            self.skipTest("BATON_SHARED_DATA names no folder with MANIFEST.md")
        with open(os.path.join(root, "expected", expected)) as file:
            cases = json.load(file)["cases"]

        def ask(cluster, transport):
            for case in cases:
                # run.c takes one token more than the context has positions: the last is never fed
                # back. Ours ends where the context is full.
                want = case["output_ids"]
                room = 512 - len(case["prompt_ids"])
                ways = {"ids": by_tokens(case["prompt_ids"]), "text": "--prompt=" + case["prompt"]}
                for way, prompt in ways.items():
                    with self.subTest(prompt=case["prompt"], way=way, transport=transport):
                        ends = case["stop"] == "bos"
                        length = min(len(want) + ends, room)
                        answer = cluster.generate(prompt, *GREEDY, "--max-tokens=%d" % length)
                        self.assertEqual(answer["prompt_token_ids"], case["prompt_ids"])
                        self.assertEqual(answer["token_ids"], (want + [1] * ends)[:length])
                        self.assertEqual(answer["finish_reason"], "stop" if ends else "length")
                        if length >= len(want) and not ends:
                            self.assertEqual(answer["text"].strip(), case["text"].strip())
                        self.assertEqual(answer["route"]["transport"], transport)
        self.both_ways(os.path.join(root, "models", model), ask)

    def test_stories260k(self):
        self.check_shared("stories260k", "greedy-stories260k.json")

    def test_stories260k_bf16_sharded(self):
        self.check_shared("stories260k-bf16-sharded", "greedy-stories260k-bf16.json")

    def check_logprobs(self, expected, entries):
        """Prompt token i + 1 has what the reference's logits at i give it.

        Both sum in f32, in other orders: some 100 products of a magnitude below 50 differ by
        50 * 100 * 2**-24 = 3e-4 in the head, and by no more in the layers before it.
        """
        prompt, logits = expected["prompt"], expected["logits"]
        vocab = len(logits) // len(prompt)
        self.assertEqual(len(entries), len(prompt) - 1)
        for i, entry in enumerate(entries):
            row = logits[i * vocab:(i + 1) * vocab]
            top = max(row)
            want = row[prompt[i + 1]] - top - math.log(sum(math.exp(x - top) for x in row))
            self.assertEqual(entry["token"], prompt[i + 1])
            self.assertAlmostEqual(entry["logprob"], want, delta=1e-3)
            close = sum(abs(x - row[prompt[i + 1]]) < 1e-3 for x in row) - 1
            rank = 1 + sum(x > row[prompt[i + 1]] for x in row)
            self.assertLessEqual(abs(entry["rank"] - rank), close)

    def test_golden_models(self):
        """Random models of all five architectures: no tokenizer there, so ids are asked for."""
        root = repository_folder("tests", "golden", "models")
        names = sorted(name for name in os.listdir(root) if os.path.exists(os.path.join(root, name, "config.json")))
        self.assertGreaterEqual(len(names), 10)
        for name in names:
            model = os.path.join(root, name)
            expected = read_safetensors(os.path.join(model, "expected.safetensors"))
            flags = [by_tokens(expected["prompt"]), *GREEDY, "--ignore-eos", "--max-tokens=%d" % len(expected["greedy"])]
            with self.subTest(model=name), Cluster(1, 1, model=model, router_flags=SPLIT) as cluster:
                answer = cluster.generate(*flags, "--prompt-logprobs=0")
                self.assertEqual(answer["token_ids"], expected["greedy"])
                self.check_logprobs(expected, answer["prompt_logprobs"])
                self.assertEqual(answer["prompt_token_ids"], expected["prompt"])
                self.assertEqual(answer["route"]["transport"], "shm")
                self.assertEqual(answer["text"], "")
                refused = cluster.run("generate", "--prompt=hello")
                self.assertNotEqual(refused.returncode, 0)
                self.assertIn("tokenizer.json", refused.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
