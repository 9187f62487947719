"""A cluster over the nccl cable, and the claim that all its tests make: the tokens are those of one node alone.

The nodes are those that ship, linked with an emulated device in place of the driver (tests/cuda) and with a library that
has NCCL's manners (tests/nccl/fake_nccl.h): it comes up late, its kernels spin until the peer's run, its failures are those
of a network and of a peer that dies. Prefill nodes have one emulated GPU of the host, decode nodes the other.
"""
import os
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cuda_test import GREEDY, SPLIT, DeviceCluster, golden, prompt_of  # noqa: E402

PATIENCE = 150  # seconds, of a machine that does much else


class NcclCluster(DeviceCluster):
    """Prefill nodes share one device and decode nodes the other. No block is cached, so that each request moves its own.
    faults: node name -> the FAKE_NCCL of its environment."""

    def __init__(self, prefill=1, decode=1, model=None, common=(), faults=None, devices=(0, 1), **more):
        super().__init__(prefill, decode, model=model, common=["--prefix-cache=off", "--nccl=on", *common],
                         prefill_flags=["--device=%d" % devices[0]], decode_flags=["--device=%d" % devices[1]], router_flags=SPLIT, **more)
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


class NcclTest(unittest.TestCase):
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
