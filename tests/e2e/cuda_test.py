"""The whole split with --backend=cuda, on an emulated GPU.

The nodes are those that ship, linked with an emulated device in place of the driver (tests/cuda): every
kernel runs thread by thread, copies and events are late and out of order, and blocks go from pool to
pool by its IPC. What a GPU computes is not claimed here: that the tokens are the golden ones, however
the request is served, that what is held is freed, and that a death loses nothing, is.
"""
import os
import re
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, find_root  # noqa: E402
from reference_test import by_tokens, read_safetensors, repository_folder  # noqa: E402

DEVICE = ["--backend=cuda", "--deterministic", "--step-tokens=64", "--chunk-tokens=32", "--batch-max=8"]
SPLIT = ["--local-prefill-tokens=0"]
GREEDY = ["--temperature=0", "--repetition-penalty=1"]


class DeviceCluster(Cluster):
    """A cluster whose nodes have the emulated device. An emulated step may take long: no node is given up for it."""

    def __init__(self, *args, common=(), kv_memory="1MiB", **more):
        super().__init__(*args, common=[*DEVICE, "--kv-memory=" + kv_memory, *common], **more)
        for name, process in self.nodes.items():
            role = name.split("-")[0]
            process.argv[0] = os.path.join(find_root(), "tests", "cuda", role + "_node_emulated")


def golden(name):
    model = repository_folder("tests", "golden", "models", name)
    return model, read_safetensors(os.path.join(model, "expected.safetensors"))


def prompt_of(expected, count):
    """A prompt of `count` tokens made of the golden one's."""
    prompt = expected["prompt"]
    return by_tokens((prompt * (count // len(prompt) + 1))[:count])


class Cuda(unittest.TestCase):
    maxDiff = None

    def test_golden_tokens_through_the_split(self):
        """f32 weights are computed in f32: the tokens are those of transformers, over either cable and on one node."""
        model, expected = golden("llama_llama3_gqa_f32")
        flags = [by_tokens(expected["prompt"]), *GREEDY, "--ignore-eos", "--max-tokens=%d" % len(expected["greedy"])]
        for prefill, cable in ((1, "shm"), (1, "tcp"), (0, "local")):
            common = ["--cables=" + cable] if prefill else []
            with self.subTest(cable=cable), DeviceCluster(prefill, 1, model=model, common=common, router_flags=SPLIT) as cluster:
                answer = cluster.generate(*flags)
                self.assertEqual(answer["token_ids"], expected["greedy"])
                self.assertEqual(answer["route"]["transport"], cable)
                cluster.wait_idle()
                for process in cluster.nodes.values():
                    self.assertIn("backend=cuda device=0", process.log())

    def test_one_process_equals_the_split(self):
        """bf16, prompts over several blocks and chunks, greedy and sampled, alone and at once: the same tokens."""
        model, expected = golden("llama_linear_bias_tied_bf16")
        cases = []
        for index, count in enumerate((5, 17, 40)):
            base = [prompt_of(expected, count), "--ignore-eos", "--max-tokens=6"]
            cases.append([*base, *GREEDY])
            cases.append([*base, "--temperature=0.9", "--top-p=0.9", "--top-k=20", "--seed=%d" % (3 + index)])
        with DeviceCluster(0, 1, model=model) as cluster:
            want = [cluster.generate(*case)["token_ids"] for case in cases]
            cluster.wait_idle()
        with DeviceCluster(1, 1, model=model, router_flags=SPLIT) as cluster:
            got = cluster.generate_many(cases)
            self.assertEqual([answer["token_ids"] for answer in got], want)
            self.assertEqual({answer["route"]["transport"] for answer in got}, {"shm"})
            cluster.wait_idle()

    def test_cancel_frees_the_blocks(self):
        model, expected = golden("llama_llama3_gqa_f32")
        with DeviceCluster(1, 1, model=model, router_flags=SPLIT) as cluster:
            stream = cluster.stream(prompt_of(expected, 20), *GREEDY, "--ignore-eos", "--max-tokens=60")
            cluster.wait_status("a request is running", lambda s: s["requests_live"] == 1)
            stream.kill()
            stream.communicate()
            cluster.wait_idle()
            answer = cluster.generate(by_tokens(expected["prompt"]), *GREEDY, "--ignore-eos", "--max-tokens=4")
            self.assertEqual(answer["token_ids"], expected["greedy"][:4])

    def test_death_of_either_kind_of_node(self):
        """kill -9 while requests run: each is answered, with the tokens that a quiet cluster gives."""
        model, expected = golden("llama_llama3_gqa_f32")
        cases = [[prompt_of(expected, count), *GREEDY, "--ignore-eos", "--max-tokens=12"] for count in (9, 20, 33)]
        with DeviceCluster(0, 1, model=model) as cluster:
            want = [cluster.generate(*case)["token_ids"] for case in cases]
        for victim in ("prefill-0", "decode-0"):
            with self.subTest(victim=victim), DeviceCluster(2, 2, model=model, router_flags=SPLIT) as cluster:
                answers = []
                asking = threading.Thread(target=lambda: answers.extend(cluster.generate_many(cases)))
                asking.start()
                cluster.wait_status("requests run", lambda s: s["requests_live"] > 0)
                cluster.nodes[victim].kill()
                asking.join()
                self.assertEqual([answer["token_ids"] for answer in answers], want)
                cluster.wait_idle()

    def test_tiers_keep_blocks_of_a_device(self):
        """What a small pool gives up goes to host memory or disk, and the tokens are the same."""
        model, expected = golden("llama_llama3_gqa_f32")
        cases = [[by_tokens((expected["prompt"][index:] * 20)[:40]), *GREEDY, "--ignore-eos", "--max-tokens=4"] for index in range(4)]
        with DeviceCluster(0, 1, model=model, common=["--prefix-cache=off"]) as cluster:
            want = [cluster.generate(*case)["token_ids"] for case in cases]
        for tier in ("host", "disk"):
            with self.subTest(tier=tier), tempfile.TemporaryDirectory() as folder:
                flags = {"host": ["--kv-host-memory=4MiB"], "disk": ["--kv-disk=4MiB", "--kv-disk-path=%s/kv" % folder]}[tier]
                with DeviceCluster(0, 1, model=model, common=flags, kv_memory="64KiB") as cluster:
                    for _ in range(3):
                        self.assertEqual([cluster.generate(*case)["token_ids"] for case in cases], want)
                    # Whether a disk's block is loaded or computed again goes by rates; from memory it always is.
                    for what in ("stored", "loaded") if tier == "host" else ("stored",):
                        count = [value for key, value in cluster.metrics("decode-0").items()
                                 if key.startswith("baton_kv_tier_%s_total{" % what) and '"%s"' % tier in key]
                        self.assertGreater(sum(count), 0, what)
                    cluster.wait_idle()

    def check(self, *flags, role="decode", mib=128):
        """--check of a node with the golden model on a device of so much memory: exit code and log."""
        model, _ = golden("llama_llama3_gqa_f32")
        binary = os.path.join(find_root(), "tests", "cuda", role + "_node_emulated")
        got = subprocess.run([binary, "--model=" + model, "--backend=cuda", "--batch-max=8", "--check", *flags], capture_output=True, text=True, timeout=300,
                             env={**os.environ, "EMULATED_DEVICE_MIB": str(mib)})
        return got.returncode, got.stdout + got.stderr

    def test_memory_is_planned_before_weights_are_loaded(self):
        """auto is nine tenths of what the plan leaves free; what does not fit is refused with the numbers, and nothing
        was loaded for it."""
        for role in ("prefill", "decode"):
            code, text = self.check("--kv-memory=auto", role=role)
            self.assertEqual(code, 0, text)
            plan = {key: int(value) for key, value in re.findall(r"\b(total|free|weights|engine|nccl|kv)=(\d+)",
                                                                re.search(r"event=device_plan (.*)", text).group(1))}
            self.assertIn("kv_is=auto", text)
            self.assertEqual(plan["total"], 128 << 20)
            left = plan["free"] - plan["weights"] - plan["engine"]
            self.assertLessEqual(plan["kv"], left * 9 // 10 + 1)
            self.assertGreater(plan["kv"], left * 9 // 10 - (1 << 20))  # whole blocks
            self.assertIn("event=weights", text)
            for flags, names in ((["--kv-memory=125MiB"], ("KV pool (", "take ", "MiB are free", "--kv-memory=auto", "--device=0")),
                                 (["--kv-memory=1000TiB"], ("--kv-memory", "MiB are free")),
                                 (["--kv-memory=auto", "--step-tokens=65536", "--chunk-tokens=64"], ("the engine (", "MiB are free", "--step-tokens"))):
                code, text = self.check(*flags, role=role)
                self.assertEqual(code, 1, text)
                for name in names:
                    self.assertIn(name, text)
                self.assertNotIn("event=weights", text)
        model, expected = golden("llama_llama3_gqa_f32")
        cluster = DeviceCluster(0, 1, model=model, kv_memory="auto")
        cluster.nodes["decode-0"].environment["EMULATED_DEVICE_MIB"] = "64"
        with cluster:
            answer = cluster.generate(by_tokens(expected["prompt"]), *GREEDY, "--ignore-eos", "--max-tokens=4")
            self.assertEqual(answer["token_ids"], expected["greedy"][:4])
            self.assertGreater(cluster.wait_idle()["nodes"][0]["blocks_total"], 1000)

    def test_refusals_name_the_flag(self):
        model, _ = golden("llama_llama3_gqa_f32")
        binary = os.path.join(find_root(), "tests", "cuda", "decode_node_emulated")
        for flags, text in ((["--device=99"], "--device=99"), (["--isa=avx2"], "--isa needs --backend=cpu"),
                            (["--kv-memory=1000GiB"], "--kv-memory")):
            got = subprocess.run([binary, "--model=" + model, "--backend=cuda", "--check", *flags], capture_output=True, text=True,
                                 timeout=120)
            self.assertNotEqual(got.returncode, 0, flags)
            self.assertIn(text, got.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
