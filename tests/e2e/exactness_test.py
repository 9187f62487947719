"""The same tokens, however a request is served.

One prompt set, greedy and seeded sampling; the reference is one decode node alone. Every other
way of serving must give the same token ids, bit for bit: split, more nodes, other chunk sizes,
a full batch, either cable, preemption, and deaths of either kind of node at several moments.
"""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster  # noqa: E402

LONG = " ".join("The runner number %d waited for the baton near the %s line." % (i, word)
                for i, word in enumerate("start red blue long old wet green last".split()))
PROMPTS = ["Once upon a time", "The relay team", "A", LONG, LONG + " " + LONG, "In the morning Anna and"]


def requests(max_tokens=48):
    """(name, flags) of the prompt set: greedy, seeded, penalties, n > 1."""
    cases = []
    for index, prompt in enumerate(PROMPTS):
        base = ["--prompt=" + prompt, "--max-tokens=%d" % max_tokens, "--ignore-eos"]
        cases.append(("greedy %d" % index, base + ["--temperature=0"]))
        cases.append(("seeded %d" % index, base + ["--temperature=0.9", "--top-p=0.95", "--seed=%d" % (7 + index)]))
    cases.append(("penalties", ["--prompt=" + PROMPTS[0], "--max-tokens=48", "--temperature=0.8", "--seed=3", "--top-k=40",
                                "--repetition-penalty=1.2", "--presence-penalty=0.5", "--frequency-penalty=0.3",
                                "--ignore-eos"]))
    cases.append(("n=3", ["--prompt=" + LONG, "--max-tokens=32", "--temperature=1", "--seed=5", "--n=3", "--ignore-eos"]))
    return cases


def ids(answer):
    return [sequence["token_ids"] for sequence in answer["sequences"]]


def serve(cluster, cases, concurrently):
    if concurrently:
        answers = cluster.generate_many([flags for _, flags in cases])
    else:
        answers = [cluster.generate(*flags) for _, flags in cases]
    return {name: ids(answer) for (name, _), answer in zip(cases, answers)}, answers


class Exactness(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.cases = requests()
        with Cluster(prefill=0, decode=1) as cluster:
            cls.reference, answers = serve(cluster, cls.cases, concurrently=False)
            for answer in answers:
                assert answer["route"]["transport"] == "local", answer["route"]
        for sequences in cls.reference.values():
            for tokens in sequences:
                assert len(tokens) in (32, 48), len(tokens)

    def check(self, cluster, concurrently=False, transport=None, cases=None):
        got, answers = serve(cluster, cases or self.cases, concurrently)
        for name in got:
            self.assertEqual(got[name], self.reference[name], name)
        for answer in answers:
            if transport:
                self.assertEqual(answer["route"]["transport"], transport)
        cluster.wait_idle()
        return answers

    def test_split_over_shm(self):
        with Cluster(1, 1, common=["--cables=shm"], router_flags=["--local-prefill-tokens=0"]) as cluster:
            answers = self.check(cluster, transport="shm")
            self.assertTrue(all(answer["route"]["kv_bytes"] > 0 for answer in answers))

    def test_split_over_tcp(self):
        with Cluster(1, 1, common=["--cables=tcp"], router_flags=["--local-prefill-tokens=0"]) as cluster:
            self.check(cluster, transport="tcp")

    def test_two_and_two_at_once(self):
        with Cluster(2, 2) as cluster:
            answers = self.check(cluster, concurrently=True)
            self.assertEqual({answer["route"]["decode_node"] for answer in answers}, {"decode-0", "decode-1"})

    def test_chunk_sizes(self):
        for chunk in (16, 64, 2048):
            flags = ["--chunk-tokens=%d" % chunk, "--step-tokens=%d" % max(chunk, 64)]
            with self.subTest(chunk=chunk), Cluster(1, 1, common=flags) as cluster:
                self.check(cluster, concurrently=True)

    def test_block_tokens_32(self):
        with Cluster(1, 1, common=["--kv-block-tokens=32"]) as cluster:
            self.check(cluster)

    def test_batch_of_32(self):
        with Cluster(1, 1) as cluster:
            cases = [("%s" % name, flags) for name, flags in self.cases]
            many = (cases * 3)[:32]
            answers = cluster.generate_many([flags for _, flags in many])
            for (name, _), answer in zip(many, answers):
                self.assertEqual(ids(answer), self.reference[name], name)
            cluster.wait_idle()

    def test_threads(self):
        with Cluster(1, 1, threads=2) as cluster:
            self.check(cluster)

    def test_preemption(self):
        # 2 * 5 layers * 2 heads * 64 * 2 bytes = 2,560 a token, 40 KiB a block of 16: a pool of
        # 40 blocks holds two of the longest sequences, and 14 requests come at once.
        with Cluster(1, 1, decode_flags=["--kv-memory=1600KiB"]) as cluster:
            self.check(cluster, concurrently=True)

    def test_isas_agree_with_themselves(self):
        # Another kernel set may round otherwise; within one, the split changes nothing.
        flags = ["--isa=scalar"]
        with Cluster(0, 1, common=flags) as alone:
            want, _ = serve(alone, self.cases[:4], False)
        with Cluster(1, 1, common=flags) as split:
            got, _ = serve(split, self.cases[:4], False)
        self.assertEqual(want, got)


if __name__ == "__main__":
    unittest.main(verbosity=2)
