"""kill -9 of any node, at any moment, ends no client's stream and changes no token."""
import os
import random
import signal
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster  # noqa: E402

PROMPT = "Once upon a time the team of four runners"
LONG = " ".join(["The old coach told them to run and to pass the baton with care."] * 40)
TOKENS = 1800


def flags(seed=None, prompt=PROMPT, tokens=TOKENS):
    sampling = ["--temperature=0"] if seed is None else ["--temperature=0.9", "--seed=%d" % seed]
    return ["--prompt=" + prompt, "--max-tokens=%d" % tokens, "--ignore-eos", *sampling]


class Death(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with Cluster(prefill=0, decode=1) as cluster:
            cls.greedy = cluster.generate(*flags())
            cls.seeded = cluster.generate(*flags(seed=11))
            cls.long = cluster.generate(*flags(prompt=LONG, tokens=64))

    @staticmethod
    def signal_decode_nodes(cluster, number):
        for name, node in cluster.nodes.items():
            if name.startswith("decode") and node.popen.poll() is None:
                node.popen.send_signal(number)

    def running_decode_node(self, cluster, stop):
        """The one that generates. All decode nodes stand still while we look, since the model is so
        small that it could be done before we know; they go on in between until one says so."""
        for _ in range(500):
            self.signal_decode_nodes(cluster, signal.SIGSTOP)
            running = [n["name"] for n in cluster.status()["nodes"]
                       if n["role"] == "decode" and n["sequences_running"] > 0]
            if running and stop:
                return running[0]
            self.signal_decode_nodes(cluster, signal.SIGCONT)
            if running:
                return running[0]
            time.sleep(0.002)
        self.fail("no decode node ever ran the request: %s" % cluster.status())

    def test_decode_node_dies_at_several_positions(self):
        for at_characters, want, seed in ((1, self.greedy, None), (150, self.greedy, None), (500, self.seeded, 11)):
            with self.subTest(at=at_characters), Cluster(1, 2) as cluster:
                stream = cluster.stream("--quiet", *flags(seed))
                text = b""
                while len(text) < at_characters:
                    piece = stream.stdout.read(64)
                    self.assertTrue(piece, stream.stderr.read().decode() if stream.poll() is not None else "ended early")
                    text += piece
                running = self.running_decode_node(cluster, stop=True)
                cluster.nodes[running].kill()
                self.signal_decode_nodes(cluster, signal.SIGCONT)
                rest, errors = stream.communicate(timeout=60)
                self.assertEqual(stream.returncode, 0, errors.decode())
                self.assertEqual((text + rest).decode().rstrip("\n"), want["text"].rstrip("\n"))
                cluster.wait_status("the death is seen", lambda s: sum(n["attached"] for n in s["nodes"]) == 2)
                self.assertGreaterEqual(cluster.status()["legs_resumed"], 1)
                cluster.wait_idle()

    def test_only_decode_node_dies_and_comes_back(self):
        with Cluster(1, 1) as cluster:
            stream = cluster.stream("--quiet", *flags())
            first = stream.stdout.read(40)
            cluster.nodes["decode-0"].kill()
            time.sleep(0.3)
            cluster.nodes["decode-0"].start()
            rest, errors = stream.communicate(timeout=60)
            self.assertEqual(stream.returncode, 0, errors.decode())
            self.assertEqual((first + rest).decode().rstrip("\n"), self.greedy["text"].rstrip("\n"))

    def test_prefill_node_dies_under_load(self):
        with Cluster(2, 1, common=["--chunk-tokens=16", "--step-tokens=64"]) as cluster:
            answers = []
            thread = threading.Thread(target=lambda: answers.extend(cluster.generate_many(
                [flags(prompt=LONG, tokens=64) for _ in range(12)])))
            thread.start()
            time.sleep(0.25)
            cluster.nodes["prefill-0"].kill()
            thread.join(120)
            self.assertEqual(len(answers), 12)
            for answer in answers:
                self.assertEqual(answer["token_ids"], self.long["token_ids"])
            cluster.wait_idle()

    def test_all_prefill_nodes_die(self):
        with Cluster(1, 1) as cluster:
            cluster.nodes["prefill-0"].kill()
            cluster.wait_attached(1)
            answer = cluster.generate(*flags(prompt=LONG, tokens=64))
            self.assertEqual(answer["token_ids"], self.long["token_ids"])
            self.assertEqual(answer["route"]["transport"], "local")

    def test_random_deaths_of_everyone(self):
        """Twelve streams, a death every 300 ms, both kinds of node; all come back."""
        seed = int(os.environ.get("BATON_TEST_SEED", random.randrange(1 << 30)))
        print("BATON_TEST_SEED=%d" % seed)
        chance = random.Random(seed)
        with Cluster(2, 2) as cluster:
            answers = []
            cases = [flags(None if i % 2 else 11) for i in range(12)]
            thread = threading.Thread(target=lambda: answers.extend(cluster.generate_many(cases)))
            thread.start()
            for _ in range(6):
                time.sleep(0.3)
                victim = cluster.nodes[chance.choice(sorted(cluster.nodes))]
                victim.kill()
                time.sleep(chance.random() * 0.3)
                victim.start()
            thread.join(180)
            self.assertEqual(len(answers), 12)
            for index, answer in enumerate(answers):
                want = self.greedy if index % 2 else self.seeded
                self.assertEqual(answer["token_ids"], want["token_ids"], "request %d" % index)
            cluster.wait_attached(4)
            cluster.wait_idle()


class Cancel(unittest.TestCase):
    def test_a_client_that_leaves_frees_everything(self):
        with Cluster(1, 1) as cluster:
            for _ in range(5):
                stream = cluster.stream("--quiet", *flags(prompt=LONG, tokens=1400))
                stream.stdout.read(16)
                # The decode node stands still, so that the model is not done before the client leaves.
                decode = cluster.nodes["decode-0"].popen
                decode.send_signal(signal.SIGSTOP)
                stream.kill()
                stream.wait()
                time.sleep(0.05)
                decode.send_signal(signal.SIGCONT)
                cluster.wait_idle(timeout=5)
                stream.stdout.close()
                stream.stderr.close()
            self.assertEqual(cluster.status()["requests_cancelled"], 5)


class Drain(unittest.TestCase):
    def test_sigterm_finishes_what_runs(self):
        with Cluster(1, 2) as cluster:
            stream = cluster.stream("--quiet", *flags())
            stream.stdout.read(16)
            def running(status):
                return [n["name"] for n in status["nodes"] if n["sequences_running"] > 0 and n["role"] == "decode"]
            name = running(cluster.wait_status("a decode node runs it", running))[0]
            self.assertEqual(cluster.nodes[name].stop(timeout=60), 0)
            _, errors = stream.communicate(timeout=60)
            self.assertEqual(stream.returncode, 0, errors.decode())
            self.assertEqual(cluster.status()["legs_resumed"], 0)
            # The other one serves what comes.
            self.assertEqual(cluster.generate("--prompt=A", "--max-tokens=2", "--ignore-eos")["usage"]["completion_tokens"], 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
