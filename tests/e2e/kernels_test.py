"""The same tokens alone and split, one by one and four at once: with each set of kernels that this machine has,
with activations rounded to bf16, and with weights that come from a pack file.

Two sets may round otherwise; within one, neither the split nor the batch shows.
"""
import os
import re
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, find_model, find_root  # noqa: E402
from exactness_test import requests, serve  # noqa: E402

CASES = requests(max_tokens=24)[:8]  # four prompts, greedy and seeded
WITH_BF16 = ("amx", "avx512bf16")


def isas():
    """Those of --help that a node takes here; each other one must be refused as what this machine lacks."""
    node = os.path.join(find_root(), "decode_node", "decode_node")
    text = subprocess.run([node, "--help"], capture_output=True, text=True, timeout=60).stdout
    found = []
    for isa in re.search(r"--isa=(\S+)", text).group(1).split("|"):
        got = subprocess.run([node, "--model=" + find_model(), "--check", "--isa=" + isa], capture_output=True, text=True, timeout=60)
        if got.returncode == 0:
            found.append(isa)
        else:
            assert "this machine does not have the instruction set \"%s\"" % isa in got.stdout + got.stderr, got.stdout + got.stderr
    return found


def isas_in_use(cluster):
    return {re.search(r" event=ready .* isa=(\S+) ", node.log()).group(1) for node in cluster.nodes.values()}


def four_at_once(cluster):
    tokens = {}
    for first in range(0, len(CASES), 4):
        tokens.update(serve(cluster, CASES[first:first + 4], concurrently=True)[0])
    return tokens


class Kernels(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.isas = isas()
        assert {"auto", "scalar", "ref"} <= set(cls.isas), cls.isas

    def check(self, flags):
        """Returns the set of kernels that was used."""
        with Cluster(0, 1, common=flags) as alone:
            want, _ = serve(alone, CASES, concurrently=False)
            self.assertEqual(four_at_once(alone), want, "alone, four at once")
            used = isas_in_use(alone)
        with Cluster(1, 1, common=flags, router_flags=["--local-prefill-tokens=0"]) as split:
            got, answers = serve(split, CASES, concurrently=False)
            self.assertEqual(got, want, "split, one by one")
            self.assertTrue(all(answer["route"]["kv_bytes"] > 0 for answer in answers))
            self.assertEqual(four_at_once(split), want, "split, four at once")
            self.assertEqual(isas_in_use(split), used)
            split.wait_idle()
        self.assertEqual(len(used), 1)
        return used.pop()

    def test_each_isa(self):
        for isa in self.isas:
            with self.subTest(isa=isa):
                used = self.check(["--isa=" + isa])
                if isa == "auto":
                    self.assertNotIn(used, WITH_BF16)  # a small model is not rounded unasked
                else:
                    self.assertEqual(used, isa)

    def test_compute_bf16(self):
        used = self.check(["--compute=bf16"])
        best = [isa for isa in WITH_BF16 if isa in self.isas]
        print("--compute=bf16 used %s" % used)
        if best:
            self.assertEqual(used, best[0])

    def test_pack_file(self):
        for weights in ("auto", "int4"):
            with self.subTest(weights=weights), tempfile.TemporaryDirectory(prefix="baton-pack-") as folder:
                flags = ["--weights=" + weights, "--pack-cache=" + folder]
                with Cluster(0, 1, common=flags) as first:
                    log = first.nodes["decode-0"].log()
                    file = re.search(r' event=weights "packed; writing (%s/[^"]+)"' % re.escape(folder), log)
                    self.assertTrue(file, log)
                    want, _ = serve(first, CASES, concurrently=False)
                    deadline = time.monotonic() + 60  # it is written in the background, and stopped at the end
                    while not os.path.exists(file.group(1)) and time.monotonic() < deadline:
                        time.sleep(0.05)
                    self.assertTrue(os.path.exists(file.group(1)))
                with Cluster(1, 1, common=flags, router_flags=["--local-prefill-tokens=0"]) as again:
                    for node in again.nodes.values():
                        self.assertIn(' event=weights "loaded %s"' % file.group(1), node.log())
                    self.assertEqual(serve(again, CASES, concurrently=False)[0], want)
                self.assertEqual([os.path.join(folder, name) for name in os.listdir(folder)], [file.group(1)])


if __name__ == "__main__":
    unittest.main(verbosity=2)
