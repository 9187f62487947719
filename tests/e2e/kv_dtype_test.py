"""The same tokens with a K and V of int8 and fp8, however a request is served, at half the bytes.

One decode node alone is the reference; the split and a full batch must say the same. What is pushed is one
byte a value and one scale of two bytes per head: (head_dim + 2) / (2 * head_dim) of bf16.
"""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, find_model  # noqa: E402
from requests8 import ids, requests  # noqa: E402


class KvDtype(unittest.TestCase):
    maxDiff = None

    def check_split(self, dtype):
        """Returns the bytes that one push of the long prompt took, and all tokens."""
        flags = ["--kv-dtype=" + dtype]
        with Cluster(0, 1, common=flags) as cluster:
            want = ids([cluster.generate(*case) for case in requests()])
        with Cluster(1, 1, common=flags, router_flags=["--local-prefill-tokens=0"]) as cluster:
            answers = [cluster.generate(*case) for case in requests()]
            self.assertEqual(ids(answers), want, "split, one at a time")
            self.assertEqual(ids(cluster.generate_many(requests())), want, "split, eight at once")
            cluster.wait_idle()
        return max(answer["route"]["kv_bytes"] for answer in answers), want

    def test_half_the_bytes_and_the_same_tokens(self):
        with open(os.path.join(find_model(), "config.json")) as file:
            config = json.load(file)
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        full, _ = self.check_split("bf16")
        texts = []
        for dtype in ("int8", "fp8"):
            half, want = self.check_split(dtype)
            self.assertEqual(half * 2 * head_dim, full * (head_dim + 2), dtype)
            texts.append(want)
        self.assertNotEqual(texts[0], texts[1])  # else the flag does nothing


if __name__ == "__main__":
    unittest.main(verbosity=2)
