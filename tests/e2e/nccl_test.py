"""The whole split over the nccl cable, between two emulated GPUs of one host, with a fake of NCCL.

The nodes are those that ship, linked with an emulated device in place of the driver (tests/cuda) and with a library that
has NCCL's manners (tests/nccl/fake_nccl.h): it comes up late, its kernels spin until the peer's run, its failures are those
of a network and of a peer that dies. Claims: the tokens are the same over tcp, while a communicator comes up, and over
NCCL; a death, a hang, a communicator that never comes up or a peer that is stopped ends no stream and keeps no block; the
bound on communicators is held and everybody is served.
"""
import os
import re
import signal
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import find_root  # noqa: E402
from cuda_test import DEVICE, GREEDY, SPLIT, DeviceCluster, golden, prompt_of  # noqa: E402
from reference_test import by_tokens  # noqa: E402

PATIENCE = 150  # seconds, of a machine that does much else


class NcclCluster(DeviceCluster):
    """Prefill nodes share one device and decode nodes the other. No block is cached, so that each request moves its own.
    faults: node name -> the FAKE_NCCL of its environment."""

    def __init__(self, prefill=1, decode=1, model=None, common=(), faults=None, nccl=("--nccl=on",), **more):
        super().__init__(prefill, decode, model=model, common=["--prefix-cache=off", *nccl, *common], prefill_flags=["--device=0"],
                         decode_flags=["--device=1"], router_flags=SPLIT, **more)
        for name, text in (faults or {}).items():
            self.nodes[name].environment["FAKE_NCCL"] = text

    def pairs(self, name, state):
        return self.sum_metric(name, 'baton_nccl_pairs{') if state is None else sum(
            value for key, value in self.metrics(name).items() if key.startswith("baton_nccl_pairs{") and '"%s"' % state in key)

    def ended(self, name, what):
        return sum(value for key, value in self.metrics(name).items()
                   if key.startswith("baton_nccl_pairs_total{") and '"%s"' % what in key)

    def frames(self, name):
        return self.sum_metric(name, "baton_nccl_frames_total{")

    def has_lost_a_link(self):
        """On a starved machine a link may be given up by its silence, and a communicator goes with it."""
        return any(self.sum_metric(name, "baton_kv_links_lost_total{") > 0 for name in self.alive())

    def alive(self):
        return [name for name, process in self.nodes.items() if process.popen.poll() is None]

    def wait(self, what, test, step=None, timeout=PATIENCE):
        """Until test() holds; step() is done between two looks, and is what makes it come true."""
        deadline = time.monotonic() + timeout
        while not test():
            if time.monotonic() > deadline:
                raise AssertionError("%s: not within %d s" % (what, timeout))
            if step:
                step()
            else:
                time.sleep(0.02)

    def wait_quiet(self):
        """No request, no block held, no grant open or in quarantine, on any node that lives."""
        self.wait_idle(timeout=PATIENCE)
        for name in self.alive():
            self.wait("no grants on " + name, lambda name=name: self.sum_metric(name, "baton_kv_grants{") == 0)


class Nccl(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        """What one node alone answers."""
        cls.model, cls.expected = golden("llama_llama3_gqa_f32")
        base = ["--ignore-eos", "--max-tokens=8"]
        cls.cases = [[prompt_of(cls.expected, count), *base, *GREEDY] for count in (9, 20, 33, 40)]
        cls.cases += [[prompt_of(cls.expected, 25), *base, "--temperature=0.9", "--top-k=20", "--seed=%d" % seed] for seed in (3, 4)]
        with DeviceCluster(0, 1, model=cls.model) as cluster:
            cls.want = [cluster.generate(*case)["token_ids"] for case in cls.cases]

    def ask_all(self, cluster):
        """All cases at once; the cables that carried them."""
        answers = cluster.generate_many(self.cases, timeout=PATIENCE)
        self.assertEqual([answer["token_ids"] for answer in answers], self.want)
        return {answer["route"]["transport"] for answer in answers}

    def ask_until(self, cluster, what, test):
        """Requests, each answered right, until test() holds."""
        cables = set()
        cluster.wait(what, test, step=lambda: cables.update(self.ask_all(cluster)))
        return cables

    def warm(self, cluster):
        """Until every pair of nodes that has a request has moved it over NCCL."""
        cables = self.ask_until(cluster, "frames over NCCL at every node",
                                lambda: all(cluster.frames(name) > 0 for name in cluster.nodes))
        self.assertLessEqual(cables, {"tcp", "nccl"})
        return cables

    def test_golden_tokens_before_and_over_nccl(self):
        """The tokens are those of transformers, whichever cable was ready; from then on it is nccl, alone or at once."""
        flags = [by_tokens(self.expected["prompt"]), *GREEDY, "--ignore-eos", "--max-tokens=%d" % len(self.expected["greedy"])]
        with NcclCluster(model=self.model) as cluster:
            cables = []

            def ask():
                answer = cluster.generate(*flags)
                self.assertEqual(answer["token_ids"], self.expected["greedy"])
                cables.append(answer["route"]["transport"])

            cluster.wait("a request over NCCL", lambda: "nccl" in cables, step=ask)
            ask()
            self.assertEqual(cables[-1], "nccl")
            self.assertLessEqual(set(cables), {"tcp", "nccl"})
            self.assertIn("nccl", self.ask_all(cluster))
            cluster.wait_quiet()
            for name in cluster.nodes:
                self.assertGreater(cluster.sum_metric(name, "baton_nccl_bytes_total"), 0)
            if cluster.has_lost_a_link():
                return
            for name in cluster.nodes:
                self.assertEqual(cluster.pairs(name, "up"), 1)
                self.assertEqual(cluster.ended(name, "opened"), 1)
                self.assertEqual(cluster.ended(name, "broken"), 0)
                self.assertGreater(cluster.sum_metric(name, "baton_nccl_memory_bytes"), 0)
                self.assertGreater(cluster.sum_metric(name, "baton_nccl_init_seconds"), 0)
            sent, landed = (cluster.sum_metric(name, "baton_nccl_bytes_total") for name in ("prefill-0", "decode-0"))
            self.assertEqual(sent, landed)

    def test_alone_nccl_is_the_links_cable(self):
        """--cables=nccl: the first request waits for the communicator rather than for another cable."""
        with NcclCluster(model=self.model, common=["--cables=nccl"]) as cluster:
            self.assertEqual(self.ask_all(cluster), {"nccl"})
            cluster.wait_quiet()

    def test_one_side_alone_goes_over_tcp(self):
        """A peer without --nccl=on is served by the next cable, and nothing is opened."""
        for off in ("prefill-0", "decode-0"):
            with self.subTest(off=off):
                cluster = NcclCluster(model=self.model)
                cluster.nodes[off].argv.remove("--nccl=on")
                with cluster:
                    for _ in range(2):
                        self.assertEqual(self.ask_all(cluster), {"tcp"})
                    for name in cluster.nodes:
                        self.assertEqual(cluster.pairs(name, None) + cluster.frames(name), 0)
                    cluster.wait_quiet()

    def test_death_of_either_kind_of_node(self):
        """kill -9 while requests run over NCCL: each is answered with the right tokens, and the living keep no block and no
        communicator of the dead; started again it is served over NCCL again."""
        for victim in ("prefill-0", "decode-0"):
            with self.subTest(victim=victim), NcclCluster(2, 2, model=self.model) as cluster:
                self.warm(cluster)
                before = cluster.frames(victim)
                answers = []
                asking = threading.Thread(target=lambda: answers.append(self.ask_all(cluster)))
                asking.start()
                cluster.wait("it has work over NCCL", lambda: cluster.frames(victim) > before or not asking.is_alive())
                cluster.nodes[victim].kill()
                asking.join()
                self.assertEqual(len(answers), 1, "a stream ended or its tokens differ")
                cluster.wait_quiet()
                others = [name for name in cluster.alive() if name.split("-")[0] != victim.split("-")[0]]
                for name in others:
                    cluster.wait("the dead one's communicator is gone from " + name, lambda name=name: cluster.pairs(name, None) <= 1)
                cluster.nodes[victim].start()
                cluster.wait_attached(4)
                self.ask_until(cluster, "it is served over NCCL again", lambda: cluster.frames(victim) > 0)
                cluster.wait_quiet()

    def test_cancel_frees_all(self):
        with NcclCluster(model=self.model) as cluster:
            self.warm(cluster)
            for _ in range(3):
                before = cluster.frames("prefill-0")
                streams = [cluster.stream(*case[:1], *GREEDY, "--ignore-eos", "--max-tokens=60") for case in self.cases[:3]]
                cluster.wait("they are moved", lambda: cluster.frames("prefill-0") > before)
                for stream in streams:
                    stream.kill()
                for stream in streams:
                    stream.communicate()
                cluster.wait_quiet()
            before = cluster.frames("prefill-0")
            self.ask_until(cluster, "requests over NCCL", lambda: cluster.frames("prefill-0") > before)
            if not cluster.has_lost_a_link():  # a cancel is no fault of the communicator
                self.assertEqual(cluster.ended("prefill-0", "broken"), 0)

    def test_what_fails_goes_on_over_tcp(self):
        """Whatever becomes of a communicator, at either end: every request is answered right, the failure is counted, and
        nothing is kept of it but what an abort that never returns keeps."""
        def broken(cluster):
            return sum(cluster.ended(name, "broken") for name in cluster.nodes) > 0

        def stuck(cluster):
            return sum(cluster.pairs(name, "stuck") for name in cluster.nodes) > 0

        faults = (
            ("a kernel that spins", {"prefill-0": "hang_at=3"}, broken),
            ("one that spins at the receiver", {"decode-0": "hang_at=2"}, broken),
            ("an error in mid-stream", {"prefill-0": "error_at=4"}, broken),
            ("init fails", {"prefill-0": "init_fails=2"}, broken),
            ("init fails at the receiver", {"decode-0": "init_fails=2"}, broken),
            ("init hangs", {"decode-0": "init_hangs"}, broken),
            ("no unique id", {"prefill-0": "id_fails=2"}, None),
            ("an abort that never returns", {"prefill-0": "hang_at=2,abort_hangs"}, stuck),
        )
        for what, fault, happened in faults:
            with self.subTest(what=what), NcclCluster(model=self.model, faults=fault, common=["--nccl-init-timeout=1s"]) as cluster:
                if happened:
                    self.ask_until(cluster, what, lambda cluster=cluster, happened=happened: happened(cluster))
                for _ in range(2):
                    self.ask_all(cluster)
                cluster.wait_quiet()
                for process in cluster.nodes.values():
                    self.assertIsNone(process.popen.poll(), what)

    def test_one_communicator_for_two_peers(self):
        """--nccl-pairs-max=1: the one that idles makes room, never are there two, and all are served."""
        with NcclCluster(1, 2, model=self.model, common=["--nccl-pairs-max=1"]) as cluster:
            most = []

            def ask():
                """A stream keeps one decode node busy without a transfer, while the other gets several."""
                stream = cluster.stream(self.cases[0][0], *GREEDY, "--ignore-eos", "--max-tokens=100")
                try:
                    for case, want in zip(self.cases[:4], self.want):
                        self.assertEqual(cluster.generate(*case)["token_ids"], want)
                        most.append(cluster.pairs("prefill-0", None))
                finally:
                    stream.kill()
                    stream.communicate()
                self.ask_all(cluster)
                most.append(cluster.pairs("prefill-0", None))

            cluster.wait("the communicator has changed hands", step=ask, test=lambda: cluster.ended("prefill-0", "closed") > 0
                         and all(cluster.frames(name) > 0 for name in cluster.nodes))
            self.assertLessEqual(max(most), 1)
            cluster.wait_quiet()
            self.assertGreaterEqual(cluster.ended("prefill-0", "opened"), 2)
            if not cluster.has_lost_a_link():  # to make room is no fault
                self.assertEqual(cluster.ended("prefill-0", "broken"), 0)

    def test_a_stopped_peer(self):
        """SIGSTOP of either end while requests run: they are answered by the others, and when it wakes nothing is left."""
        for victim in ("prefill-0", "decode-0"):
            with self.subTest(victim=victim), NcclCluster(2, 2, model=self.model) as cluster:
                self.warm(cluster)
                before = cluster.frames(victim)
                answers = []
                asking = threading.Thread(target=lambda: answers.append(self.ask_all(cluster)))
                asking.start()
                cluster.wait("it has work over NCCL", lambda: cluster.frames(victim) > before or not asking.is_alive())
                cluster.nodes[victim].popen.send_signal(signal.SIGSTOP)
                try:
                    asking.join()
                finally:
                    cluster.nodes[victim].popen.send_signal(signal.SIGCONT)
                self.assertEqual(len(answers), 1, "a stream ended or its tokens differ")
                cluster.wait_attached(4)
                cluster.wait_quiet()
                before = cluster.frames(victim)
                self.ask_until(cluster, "it is served over NCCL again", lambda: cluster.frames(victim) > before)
                cluster.wait_quiet()

    def test_refusals(self):
        """A library that is too old is refused at the start, by its number; and so is a plan that NCCL's share makes too large."""
        for role in ("prefill", "decode"):
            binary = os.path.join(find_root(), "tests", "cuda", role + "_node_emulated")
            for environment, flags, names in (
                    ({"FAKE_NCCL": "version=21805"}, (), ("--nccl=on", "2.18.5", "2.19")),
                    ({"EMULATED_DEVICE_MIB": "512"}, (), ("NCCL (2048 MiB)", "--nccl-memory")),
                    ({"EMULATED_DEVICE_MIB": "512"}, ("--nccl-memory=256MiB", "--kv-memory=auto"), ())):
                got = subprocess.run([binary, "--model=" + self.model, *DEVICE, "--nccl=on", "--check", *flags], capture_output=True,
                                     text=True, timeout=PATIENCE, env={**os.environ, **environment})
                text = got.stdout + got.stderr
                self.assertEqual(got.returncode, 1 if names else 0, text)
                for name in names:
                    self.assertIn(name, text)
                if not names:
                    plan = re.search(r"event=device_plan (.*)", text).group(1)
                    self.assertIn("nccl=%d" % (256 << 20), plan)


if __name__ == "__main__":
    unittest.main(verbosity=2)
