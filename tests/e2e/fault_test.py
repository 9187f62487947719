"""Faults that nobody announced: stopped nodes, foreign bytes, wrong peers, overload, tiny pools.

Every claim ends with the same audit: each request answered once with the tokens of an undisturbed
run, and every block of every node free.
"""
import os
import random
import resource
import signal
import socket
import struct
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster  # noqa: E402

PROMPT = "Once upon a time"
LONG = " ".join(["The old coach told them to run and to pass the baton with care."] * 25)


def seed_of_run():
    seed = int(os.environ.get("BATON_TEST_SEED", random.randrange(1 << 30)))
    print("BATON_TEST_SEED=%d" % seed, flush=True)
    return random.Random(seed)


def case(index, tokens):
    """n = 2 with logprobs, greedy and seeded, short prompts and long ones."""
    sampling = ["--temperature=0"] if index % 4 == 0 else ["--temperature=0.8", "--seed=%d" % (index % 4)]
    return ["--prompt=" + (LONG if index % 3 == 0 else PROMPT), "--max-tokens=%d" % tokens, "--ignore-eos", "--n=2",
            "--logprobs=2", *sampling]


def outcome(answer):
    return [(s["token_ids"], [(e["token"], e["logprob"], e["rank"]) for e in s["logprobs"]], s["text"])
            for s in answer["sequences"]]


class Crowd:
    """Many requests at once, in threads; errors are kept, not raised."""

    def __init__(self, cluster, flag_lists):
        self.cluster, self.flag_lists = cluster, flag_lists
        self.answers = [None] * len(flag_lists)
        self.threads = [threading.Thread(target=self.one, args=(i,)) for i in range(len(flag_lists))]
        for thread in self.threads:
            thread.start()

    def one(self, index):
        try:
            self.answers[index] = self.cluster.generate(*self.flag_lists[index], timeout=150)
        except BaseException as error:
            self.answers[index] = error

    def alive(self):
        return any(thread.is_alive() for thread in self.threads)

    def join(self):
        for thread in self.threads:
            thread.join(180)
        return self.answers


class Faults(unittest.TestCase):
    maxDiff = 2000

    @classmethod
    def setUpClass(cls):
        cls.cases = [case(index, 300) for index in range(12)]
        with Cluster(0, 1) as cluster:
            cls.want = [outcome(answer) for answer in cluster.generate_many(cls.cases)]

    def check(self, answers, want=None):
        for index, answer in enumerate(answers):
            if isinstance(answer, BaseException):
                raise AssertionError("request %d: %s" % (index, answer))
            self.assertEqual(outcome(answer), (want or self.want)[index % len(self.cases)], "request %d" % index)

    def test_kill_of_every_kind_of_node_under_twenty_streams(self):
        chance = seed_of_run()
        with Cluster(2, 2) as cluster:
            crowd = Crowd(cluster, [self.cases[i % 12] for i in range(20)])
            deaths = 0
            while crowd.alive() and deaths < 8:
                time.sleep(0.1 + chance.random() * 0.3)
                victim = cluster.nodes[chance.choice(sorted(cluster.nodes))]
                victim.kill()
                deaths += 1
                time.sleep(chance.random() * 0.2)
                victim.start()
            self.check(crowd.join())
            self.assertGreaterEqual(deaths, 2)
            cluster.wait_attached(4)
            cluster.wait_idle()

    def test_a_stopped_node_is_replaced_and_comes_back_clean(self):
        """SIGSTOP says nothing to anyone: silence must be noticed, and what it held when it wakes is void."""
        for role in ("decode", "prefill"):
            with self.subTest(role=role), Cluster(2, 2) as cluster:
                crowd = Crowd(cluster, self.cases)
                victim = cluster.nodes[role + "-0"]
                field = "sequences_running" if role == "decode" else "blocks_held"
                cluster.wait_status("%s-0 has work" % role, lambda s: any(
                    n["name"] == role + "-0" and (n[field] > 0 or s["requests_finished"] > 0) for n in s["nodes"]))
                victim.popen.send_signal(signal.SIGSTOP)
                try:
                    self.check(crowd.join())
                    if role == "decode":
                        self.assertGreaterEqual(cluster.status()["legs_resumed"], 1)
                finally:
                    victim.popen.send_signal(signal.SIGCONT)
                cluster.wait_attached(4)
                cluster.wait_idle()
                self.check(cluster.generate_many(self.cases))
                cluster.wait_idle()

    def test_a_router_that_dies_leaves_nothing_on_the_nodes(self):
        with Cluster(1, 1) as cluster:
            for _ in range(3):
                crowd = Crowd(cluster, [case(i, 900) for i in range(6)])
                cluster.wait_status("they run", lambda s: sum(n["sequences_running"] for n in s["nodes"]) > 0)
                cluster.router.kill()
                crowd.join()
                self.assertTrue(all(isinstance(answer, AssertionError) for answer in crowd.answers))
                deadline = time.monotonic() + 20
                while True:
                    used = [value for name in cluster.nodes for key, value in cluster.metrics(name).items()
                            if key.startswith("baton_legs{") or
                            key.startswith("baton_kv_blocks") and ('"held"' in key or '"quarantined"' in key)]
                    if sum(used) == 0:
                        break
                    self.assertLess(time.monotonic(), deadline, used)
                    time.sleep(0.02)
                cluster.router.start()
                cluster.wait_attached(2)
            self.check([cluster.generate(*self.cases[0])])
            cluster.wait_idle()

    def test_a_decode_node_that_restarts_again_and_again(self):
        with Cluster(1, 2) as cluster:
            crowd = Crowd(cluster, [self.cases[i % 12] for i in range(12)])
            victim, chance = cluster.nodes["decode-0"], seed_of_run()
            for _ in range(8):
                victim.kill()
                victim.start()
                time.sleep(chance.random() * 0.25)
            self.check(crowd.join())
            cluster.wait_attached(3)
            cluster.wait_idle()

    def test_preemption_happens_and_changes_nothing(self):
        # 40 KiB a block of 16 tokens (2 * 5 layers * 2 heads * 64 * 2 bytes * 16): 80 blocks, and
        # 16 sequences of up to 16 + 300 tokens would want 320.
        cases = [["--prompt=" + PROMPT, "--max-tokens=300", "--ignore-eos", "--temperature=0.8", "--seed=%d" % (i % 4)]
                 for i in range(16)]
        with Cluster(0, 1) as cluster:
            want = [cluster.generate(*flags)["token_ids"] for flags in cases[:4]]
        for prefill in (0, 1):
            with self.subTest(prefill=prefill), Cluster(prefill, 1, decode_flags=["--kv-memory=3200KiB"]) as cluster:
                answers = cluster.generate_many(cases)
                for index, answer in enumerate(answers):
                    self.assertEqual(answer["token_ids"], want[index % 4], index)
                count = sum(v for k, v in cluster.metrics("decode-0").items() if k.startswith("vllm:num_preemptions_total"))
                self.assertGreater(count, 0)
                cluster.wait_idle()

    def test_a_backlog_shows_where_the_autoscaler_looks(self):
        """baton_prefill_backlog_seconds, the prefill pool's scaling signal, rises while prompts queue."""
        flags = ["--prompt=" + LONG, "--max-tokens=2", "--ignore-eos", "--temperature=0"]
        with Cluster(1, 1, prefill_flags=["--chunk-tokens=8", "--step-tokens=64"]) as cluster:
            done = []
            thread = threading.Thread(target=lambda: done.extend(cluster.generate_many([flags] * 24)))
            thread.start()
            highest = 0.0
            while thread.is_alive():
                highest = max(highest, *(v for k, v in cluster.metrics("prefill-0").items()
                                         if k.startswith("baton_prefill_backlog_seconds")))
            thread.join()
            self.assertEqual(len(done), 24)
            self.assertGreater(highest, 0)
            cluster.wait_idle()

    def metrics_when_prefilled(self, cluster, sequences):
        """prefill-0's metrics when so many sequences decode, so that none of their prompts is still to come."""
        deadline = time.monotonic() + 30
        while True:
            decode, prefill = cluster.metrics("decode-0"), cluster.metrics("prefill-0")
            running = sum(v for k, v in decode.items() if k.startswith("vllm:num_requests_running"))
            legs = sum(v for k, v in prefill.items() if k.startswith("baton_legs{"))
            if running == sequences and legs == 0:
                return prefill
            self.assertLess(time.monotonic(), deadline, (running, legs))

    def test_overload_is_refused_before_any_prefill(self):
        flags = ["--prompt=" + LONG, "--max-tokens=600", "--ignore-eos", "--temperature=0", "--quiet", "--n=4"]
        with Cluster(1, 1, router_flags=["--requests-max=3"]) as cluster:
            streams = [cluster.stream(*flags) for _ in range(3)]
            try:
                for stream in streams:
                    self.assertTrue(stream.stdout.read(8))
                before = self.metrics_when_prefilled(cluster, 12)
                refusals = 0
                for _ in range(5):
                    got = cluster.run("generate", "--prompt=A", "--max-tokens=1", "--quiet")
                    if got.returncode == 0:  # only a machine so fast that one of the three is done
                        self.assertGreaterEqual(cluster.status()["requests_finished"], 2)
                        break
                    self.assertIn("RESOURCE_EXHAUSTED", got.stderr)
                    self.assertRegex(got.stderr, r"retry in \d+ ms")
                    refusals += 1
                self.assertGreater(refusals, 0)
                after = cluster.metrics("prefill-0")
                key = next(k for k in before if k.startswith("baton_node_prompt_tokens_total"))
                if refusals == 5:
                    self.assertEqual(before[key], after[key])
                texts = [stream.communicate(timeout=100)[0] for stream in streams]
                self.assertEqual([stream.returncode for stream in streams], [0, 0, 0])
                self.assertEqual(len({text[-200:] for text in texts}), 1)
            finally:
                for stream in streams:
                    stream.kill()
                    stream.wait()
                    stream.stdout.close()
                    stream.stderr.close()
            cluster.wait_idle()

    def test_waiting_is_bounded_on_the_node(self):
        with Cluster(1, 1, decode_flags=["--kv-memory=1MiB", "--waiting-max=2", "--batch-max=4"],
                     router_flags=["--reserve-wait=300ms"]) as cluster:
            flags = ["--prompt=" + LONG[:1000], "--max-tokens=100", "--ignore-eos", "--temperature=0"]
            crowd = Crowd(cluster, [flags] * 16)
            answers = crowd.join()
            served = [a for a in answers if not isinstance(a, BaseException)]
            refused = [str(a) for a in answers if isinstance(a, BaseException)]
            self.assertTrue(served)
            self.assertTrue(refused)
            self.assertEqual(len({tuple(a["token_ids"]) for a in served}), 1)
            for text in refused:
                self.assertRegex(text, r"RESOURCE_EXHAUSTED.*\(retry in \d+ ms\)")
            cluster.wait_idle()


class WrongPeers(unittest.TestCase):
    """A node that cannot take the other's blocks is refused at attach, and `baton status` says why."""

    def problem_of(self, **kwargs):
        cluster = Cluster(1, 1, **kwargs)
        for process in cluster.processes():
            process.start()
        try:
            # Until both are up a node may also be "UNAVAILABLE: connection refused".
            status = cluster.wait_status("one node is refused", lambda s: any(n["attached"] for n in s["nodes"]) and any(
                n["problem"] and "UNAVAILABLE" not in n["problem"] for n in s["nodes"]))
            problem = " ".join(n["problem"] for n in status["nodes"])
            print(problem)
            return problem, cluster.run("status").stdout
        finally:
            cluster.__exit__(None, None, None)

    def test_kv_dtype(self):
        problem, shown = self.problem_of(prefill_flags=["--kv-dtype=f32"])
        self.assertRegex(problem, "(?s)dtype.*(f32|bf16).*(f32|bf16)")
        self.assertIn(problem[:40], shown)

    def test_block_tokens(self):
        problem, _ = self.problem_of(prefill_flags=["--kv-block-tokens=32"])
        self.assertRegex(problem, "(?s)block.*(16|32).*(16|32)")

    def test_kernel_set(self):
        problem, _ = self.problem_of(decode_flags=["--isa=scalar"])
        self.assertRegex(problem, "kernel")

    def test_other_model(self):
        problem, _ = self.problem_of(prefill_flags=["--load=dummy"])
        self.assertRegex(problem, "model")


class ForeignBytes(unittest.TestCase):
    """Whatever arrives at a port: nobody ends, nobody grows, and requests go on."""

    def ports(self, cluster):
        wanted = set()
        for process in cluster.processes():
            wanted |= {(process.name, port) for port in listening_ports(process.popen.pid)}
        return sorted(wanted)

    def test_noise_at_every_port(self):
        chance = seed_of_run()
        with Cluster(1, 1, common=["--cables=tcp"], router_flags=["--local-prefill-tokens=0"]) as cluster:
            want = cluster.generate("--prompt=" + LONG, "--max-tokens=20", "--temperature=0", "--ignore-eos")["token_ids"]
            before = {p.name: resident_bytes(p.popen.pid) for p in cluster.processes()}
            ports = self.ports(cluster)
            self.assertGreaterEqual(len(ports), 7)  # three gRPC, three metrics, one tcp cable
            half_open = []
            for name, port in ports:
                for data in noises(chance):
                    with self.subTest(process=name, port=port, data=data[:16]):
                        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
                        try:
                            connection.sendall(data)
                            if len(half_open) < 200 and chance.random() < 0.5:
                                half_open.append(connection)
                                continue
                            connection.shutdown(socket.SHUT_WR)
                            connection.settimeout(0.02)
                            while connection.recv(65536):
                                pass
                        except OSError:
                            pass  # it hung up or kept silent: both are right
                        if connection not in half_open:
                            connection.close()
                answer = cluster.generate("--prompt=" + LONG, "--max-tokens=20", "--temperature=0", "--ignore-eos")
                self.assertEqual(answer["token_ids"], want)
            for connection in half_open:
                connection.close()
            for process in cluster.processes():
                self.assertIsNone(process.popen.poll(), process.name)
                self.assertLess(resident_bytes(process.popen.pid) - before[process.name], 128 << 20, process.name)
            cluster.wait_idle()

    def test_noise_at_the_unix_socket(self):
        chance = seed_of_run()
        with Cluster(1, 1, common=["--cables=shm"]) as cluster:
            sockets = unix_sockets(cluster)
            self.assertTrue(sockets, os.listdir(cluster.dir.name))
            kept = []
            for path in sockets:
                for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
                    for data in noises(chance):
                        connection = socket.socket(socket.AF_UNIX, kind)
                        connection.settimeout(1)
                        try:
                            connection.connect(path)
                            connection.sendall(data[:60000])
                            kept.append(connection)
                        except OSError:
                            connection.close()
            self.assertTrue(kept)
            answer = cluster.generate("--prompt=" + LONG, "--max-tokens=5", "--temperature=0", "--ignore-eos")
            self.assertEqual(len(answer["token_ids"]), 5)
            for connection in kept:
                connection.close()
            for process in cluster.processes():
                self.assertIsNone(process.popen.poll(), process.name)
            cluster.wait_idle()


def noises(chance):
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    huge = struct.pack(">I", 0xFFFFFF)[1:] + b"\x00\x00\x00\x00\x00\x01"
    return [b"", b"\0", chance.randbytes(7), chance.randbytes(70_000), b"\xff" * 5000, b"\0" * 100_000,
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /metrics HTTP/1.0\r\n\r\n", b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            b"GET /" + b"a" * 100_000, preface, preface + settings, preface + settings + huge + chance.randbytes(30_000),
            preface + chance.randbytes(500), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(300)]


def listening_ports(pid):
    """TCP ports that a process listens on, from /proc."""
    inodes = set()
    for entry in os.listdir("/proc/%d/fd" % pid):
        try:
            link = os.readlink("/proc/%d/fd/%s" % (pid, entry))
        except OSError:
            continue
        if link.startswith("socket:["):
            inodes.add(link[8:-1])
    ports = set()
    for table in ("tcp", "tcp6"):
        with open("/proc/net/" + table) as file:
            for line in list(file)[1:]:
                words = line.split()
                if words[3] == "0A" and words[9] in inodes:
                    ports.add(int(words[1].rsplit(":", 1)[1], 16))
    return ports


def unix_sockets(cluster):
    with open("/proc/net/unix") as file:
        return sorted({words[7] for words in (line.split() for line in file) if len(words) > 7 and words[7].startswith(cluster.dir.name)})


def resident_bytes(pid):
    with open("/proc/%d/statm" % pid) as file:
        return int(file.read().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    unittest.main(verbosity=2)
