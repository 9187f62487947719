"""Long sequences in bounded memory: sliding windows, prompts in chunks, KV in 8 bits.

The models are shapes with random weights (--load=dummy: the same weights in every process), since
nothing is asked of them but that the same numbers come out however they are computed.
"""
import json
import os
import shutil
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, find_model  # noqa: E402

DUMMY = ["--load=dummy"]
REMOTE = ["--local-prefill-tokens=0"]
SAMPLED = ["--temperature=1", "--seed=9"]  # random weights say the same word again and again when greedy
WINDOW = 64
HELD = 'state="held"'


def make_model(folder, **changes):
    """The bundled model's tokenizer on another config."""
    source = find_model()
    for name in os.listdir(source):
        if name.endswith(".json") and name != "config.json":
            shutil.copy(os.path.join(source, name), folder)
    with open(os.path.join(source, "config.json")) as file:
        config = json.load(file)
    config.update(changes)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    return folder


def words(count, which):
    return [300 + (which * 131 + i * 17 + i * i) % 1700 for i in range(count)]


def flags(prompt, tokens):
    return ["--tokens=" + ",".join(map(str, prompt)), "--max-tokens=%d" % tokens, "--ignore-eos", *SAMPLED]


class Watch:
    """The most blocks that a node held at any look."""

    def __init__(self, cluster, name):
        self.cluster, self.name, self.most, self.is_over = cluster, name, 0, False
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.is_over:
            held = [value for key, value in self.cluster.metrics(self.name).items() if key.startswith("baton_kv_blocks{") and HELD in key]
            self.most = max(self.most, held[0])
            time.sleep(0.01)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, value, trace):
        self.is_over = True
        self.thread.join()


class Window(unittest.TestCase):
    maxDiff = 2000

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = make_model(cls.folder.name, architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=WINDOW)
        cls.cases = [flags(words(20, 1), 20 * WINDOW), flags(words(20 * WINDOW, 2), 60), flags(words(300, 3), 300)]
        # A chunk as long as the context: nothing is given back before the prompt is whole.
        with Cluster(0, 1, model=cls.model, common=[*DUMMY, "--prefix-cache=off", "--chunk-tokens=2048", "--step-tokens=2048"]) as cluster:
            cls.want = [cluster.generate(*case)["token_ids"] for case in cls.cases]
        for tokens in cls.want:  # numbers that differ, or nothing would be shown by their being equal
            assert len(set(tokens)) > len(tokens) // 8, tokens

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_an_output_of_twenty_windows_holds_one(self):
        with Cluster(0, 1, model=self.model, common=[*DUMMY, "--chunk-tokens=32"]) as cluster:
            with Watch(cluster, "decode-0") as watch:
                self.assertEqual(cluster.generate(*self.cases[0])["token_ids"], self.want[0])
            self.assertGreater(watch.most, 0)
            self.assertLessEqual(watch.most, (WINDOW + 32) // 16 + 2)
            cluster.wait_idle()

    def test_split_and_together(self):
        for chunk in (32, 256):
            common = [*DUMMY, "--chunk-tokens=%d" % chunk]
            for prefill, router in ((0, []), (1, REMOTE)):
                with self.subTest(chunk=chunk, prefill=prefill), Cluster(prefill, 1, model=self.model, common=common, router_flags=router) as cluster:
                    got = cluster.generate_many(self.cases)
                    self.assertEqual([answer["token_ids"] for answer in got], self.want)
                    again = cluster.generate_many(self.cases)
                    self.assertEqual([answer["token_ids"] for answer in again], self.want)
                    cluster.wait_idle()

    def test_only_the_window_crosses_the_wire(self):
        with Cluster(1, 1, model=self.model, common=[*DUMMY, "--prefix-cache=off", "--chunk-tokens=32"], router_flags=REMOTE) as cluster:
            short, long = (cluster.generate(*flags(words(count, count), 2)) for count in (WINDOW, 20 * WINDOW))
            self.assertLessEqual(long["route"]["kv_bytes"], 2 * short["route"]["kv_bytes"])

    def test_a_pool_smaller_than_the_sequence(self):
        """1,340 tokens take 84 blocks of 16; there are 40."""
        with Cluster(0, 1, model=self.model, common=[*DUMMY, "--kv-memory=1600KiB", "--chunk-tokens=32"]) as cluster:
            for case, want in zip(self.cases, self.want):
                self.assertEqual(cluster.generate(*case)["token_ids"], want)
            cluster.wait_idle()


class Formats(unittest.TestCase):
    def test_8_bits_say_the_same_split_and_alone(self):
        cases = [flags([300 + i % 1000 for i in range(n)], 60) for n in (5, 100, 400)]
        for kind in ("int8", "fp8"):
            sizes = {}
            with Cluster(0, 1, common=["--kv-dtype=" + kind, "--prefix-cache=off"]) as alone:
                want = [alone.generate(*case)["token_ids"] for case in cases]
            for common in (["--kv-dtype=" + kind], ["--kv-dtype=bf16"]):
                with self.subTest(kind=kind), Cluster(1, 1, common=common, router_flags=REMOTE) as split:
                    got = [split.generate(*case) for case in cases]
                    sizes[common[0]] = got[-1]["route"]["kv_bytes"]
                    if kind in common[0]:
                        self.assertEqual([answer["token_ids"] for answer in got], want)
                        self.assertEqual([answer["token_ids"] for answer in split.generate_many(cases * 3)], want * 3)
                    split.wait_idle()
            self.assertLess(sizes["--kv-dtype=" + kind], 0.55 * sizes["--kv-dtype=bf16"])


class Long(unittest.TestCase):
    def test_a_prompt_of_16k_in_chunks(self):
        """One layer of the bundled shape with room for it; chunks of 8k, of 512, and through the split."""
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(folder, num_hidden_layers=1, max_position_embeddings=20000)
            case = flags(words(16384, 5), 8)
            got = []
            for prefill, chunk, router in ((0, 8192, []), (0, 512, []), (1, 8192, REMOTE)):
                common = [*DUMMY, "--chunk-tokens=%d" % chunk, "--step-tokens=%d" % chunk, "--kv-memory=64MiB"]
                with Cluster(prefill, 1, model=model, common=common, router_flags=router) as cluster:
                    got.append(cluster.generate(*case, timeout=300)["token_ids"])
                    cluster.wait_idle()
            self.assertEqual(got, got[:1] * 3)

    def test_streams_beside_a_long_local_prompt(self):
        """A decode node reads a long prompt while eight streams run: nobody's tokens change, whatever a step may take."""
        cases = [flags([300 + i for i in range(20 + n)], 200) for n in range(8)] + [flags([301 + i % 900 for i in range(1500)], 40)]
        with Cluster(0, 1, common=["--prefix-cache=off"]) as cluster:
            want = [cluster.generate(*case)["token_ids"] for case in cases]
        for stretch in ("0", "1", "1.5"):
            with self.subTest(stretch=stretch), Cluster(0, 1, common=["--itl-stretch=" + stretch]) as cluster:
                self.assertEqual([answer["token_ids"] for answer in cluster.generate_many(cases)], want)
                cluster.wait_idle()


if __name__ == "__main__":
    unittest.main(verbosity=2)
