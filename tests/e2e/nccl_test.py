"""The whole split over the nccl cable, between two emulated GPUs of one host: the tokens are the same over tcp, while a
communicator comes up, and over NCCL; a cancel frees all; the bound on communicators is held and everybody is served; what
cannot work is refused at the start.
"""
import json
import os
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import find_root  # noqa: E402
from cuda_test import DEVICE, GREEDY, DeviceCluster, golden, prompt_of  # noqa: E402
from nccl_cluster import PATIENCE, NcclCluster, NcclTest  # noqa: E402
from reference_test import by_tokens  # noqa: E402


class Nccl(NcclTest):
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

    def test_two_nodes_on_one_gpu(self):
        """There blocks go by shm. NCCL takes two ranks on one GPU for a mistake unless they say that they are of two hosts, so
        without that the next cable is taken, and the reason is in the log."""
        with NcclCluster(model=self.model, devices=(0, 0)) as cluster:
            self.assertEqual(self.ask_all(cluster), {"shm"})
        with NcclCluster(model=self.model, devices=(0, 0), common=["--cables=nccl,tcp"], log_level="debug") as cluster:
            for _ in range(2):
                self.assertEqual(self.ask_all(cluster), {"tcp"})
            self.assertEqual(cluster.pairs("prefill-0", None), 0)
            self.assertIn('cable=tcp reason="nccl: both pools are on one device, which NCCL takes for one rank"', cluster.nodes["prefill-0"].log())
            cluster.wait_quiet()
        cluster = NcclCluster(model=self.model, devices=(0, 0), common=["--cables=nccl,tcp"])
        for name, process in cluster.nodes.items():
            process.environment["NCCL_HOSTID"] = name
        with cluster:
            self.warm(cluster)
            cluster.wait_quiet()

    def test_formats_over_nccl(self):
        """What a slot holds is the slice as it lies in the pool, whatever its format and size: one process equals the split."""
        model, expected = golden("llama_linear_bias_tied_bf16")
        cases = [[prompt_of(expected, count), "--ignore-eos", "--max-tokens=6", *GREEDY] for count in (7, 33, 50)]
        for common in (["--kv-dtype=fp8"], ["--kv-dtype=int8", "--kv-block-tokens=32"], ["--kv-dtype=bf16", "--nccl-channels=1"]):
            alone = [flag for flag in common if "nccl" not in flag]
            with self.subTest(common=common):
                with DeviceCluster(0, 1, model=model, common=alone) as cluster:
                    want = [cluster.generate(*case)["token_ids"] for case in cases]
                with NcclCluster(model=model, common=common) as cluster:
                    def ask(cluster=cluster, want=want):
                        answers = cluster.generate_many(cases, timeout=PATIENCE)
                        self.assertEqual([answer["token_ids"] for answer in answers], want)

                    cluster.wait("frames over NCCL", lambda cluster=cluster: cluster.frames("decode-0") > 0, step=ask)
                    ask()
                    cluster.wait_quiet()

    def test_two_formats_are_converted(self):
        """P and D of two formats that both say --kv-convert=on: every request goes over nccl, is whole and the same each time,
        and the bytes are those of the smaller format, either way round."""
        model, expected = golden("llama_linear_bias_tied_bf16")
        cases = [[prompt_of(expected, count), "--ignore-eos", "--max-tokens=6", *GREEDY] for count in (7, 33, 50)]
        sizes = []
        for ours, theirs in (("bf16", "fp8"), ("fp8", "bf16"), ("bf16", "bf16")):
            with self.subTest(prefill=ours, decode=theirs):
                cluster = NcclCluster(model=model, common=["--kv-convert=on", "--cables=nccl"] if ours == theirs else ["--kv-convert=on"])
                for name, process in cluster.nodes.items():
                    process.argv.append("--kv-dtype=" + (ours if name.startswith("prefill") else theirs))
                with cluster:
                    rounds = [[cluster.generate(*case) for case in cases] for _ in range(2)]
                    for answers in rounds:
                        self.assertEqual({answer["route"]["transport"] for answer in answers}, {"nccl"})
                        self.assertEqual([len(answer["token_ids"]) for answer in answers], [6] * len(cases))
                    self.assertEqual(*[[answer["token_ids"] for answer in answers] for answers in rounds])
                    cluster.wait_quiet()
                    sent, landed = (cluster.sum_metric(name, "baton_nccl_bytes_total") for name in ("prefill-0", "decode-0"))
                    self.assertEqual(sent, landed)
                    sizes.append(sent)
                    self.assertIn("converts=%d" % (ours != "fp8" and ours != theirs), cluster.nodes["prefill-0"].log())
                    self.assertIn("converts=%d" % (ours == "fp8"), cluster.nodes["decode-0"].log())
        fp8_there, fp8_back, bf16 = sizes
        self.assertEqual(fp8_there, fp8_back)
        self.assertGreater(fp8_there, 0)
        self.assertLess(fp8_there, 0.6 * bf16)

    def test_two_formats_are_refused_unless_both_convert(self):
        """Without the flag, or with it on one side alone, the router takes the first node and refuses the other by name."""
        model, _ = golden("llama_linear_bias_tied_bf16")
        for converts in ((), ("prefill-0",), ("decode-0",)):
            with self.subTest(converts=converts):
                cluster = NcclCluster(model=model)
                for name, process in cluster.nodes.items():
                    process.argv.append("--kv-dtype=" + ("bf16" if name.startswith("prefill") else "fp8"))
                    if name in converts:
                        process.argv.append("--kv-convert=on")
                cluster.all_attached = lambda status: sum(node["attached"] for node in status["nodes"]) == 1 and any(
                    "layout differs from node" in json.dumps(node) for node in status["nodes"])
                with cluster:
                    text = json.dumps(cluster.status())
                    for name in ("dtype: ours", "bf16", "fp8_e4m3", "start both with the same model and flags"):
                        self.assertIn(name, text)

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
            got = subprocess.run([binary, "--model=" + self.model, *DEVICE, "--nccl=on", "--kv-memory=1MiB", "--nccl-memory=64MiB",
                                  "--nccl-channels=32"], capture_output=True, text=True, timeout=PATIENCE)
            self.assertEqual(got.returncode, 2, got.stderr)
            for name in ("event=start_failed", "--nccl-memory", "--nccl-channels"):
                self.assertIn(name, got.stderr + got.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
