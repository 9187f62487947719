"""The same tokens with int8 and int4 weights, however a request is served.

Weights quantized at load (--weights) and by others (GPTQ, AWQ): one decode node alone is the reference,
the split and a full batch must say the same. GPTQ and AWQ files of the same codes say the same too.
"""
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import quantized_model  # noqa: E402
from cluster import Cluster, find_model, find_root  # noqa: E402
from requests8 import ids, requests  # noqa: E402


def alone(model, flags):
    """One by one on one node that does both: every step has one row."""
    with Cluster(0, 1, model=model, common=flags) as cluster:
        return ids([cluster.generate(*case) for case in requests()])


class Weights(unittest.TestCase):
    maxDiff = None

    def check_split(self, model, flags):
        want = alone(model, flags)
        with Cluster(1, 1, model=model, common=flags, router_flags=["--local-prefill-tokens=0"]) as cluster:
            answers = [cluster.generate(*case) for case in requests()]
            self.assertEqual(ids(answers), want, "split, one at a time")
            self.assertTrue(all(answer["route"]["kv_bytes"] > 0 for answer in answers))
            self.assertEqual(ids(cluster.generate_many(requests())), want, "split, eight at once")
            cluster.wait_idle()
        return want

    def test_int8(self):
        self.check_split(None, ["--weights=int8"])

    def test_int4(self):
        self.check_split(None, ["--weights=int4"])

    def test_formats_are_different_models(self):
        answers = [alone(None, ["--weights=" + weights]) for weights in ("auto", "int4")]
        self.assertNotEqual(answers[0], answers[1])  # else the flag does nothing

    def test_gptq_and_awq(self):
        with tempfile.TemporaryDirectory(prefix="baton-quantized-") as folder:
            models = quantized_model.make(find_model(), folder)
            gptq = self.check_split(models["gptq"], [])
            self.assertEqual(alone(models["awq"], []), gptq)
            self.check_split(models["gptq_act_order"], [])
            got = subprocess.run([os.path.join(find_root(), "decode_node", "decode_node"), "--model=" + models["awq"],
                                  "--weights=int8", "--check"], capture_output=True, text=True, timeout=60)
            self.assertNotEqual(got.returncode, 0)
            self.assertIn("--weights takes auto or int4", got.stdout + got.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
