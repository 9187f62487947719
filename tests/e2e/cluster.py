"""A real Baton cluster of real processes on loopback, for tests and benches.

Needs nothing but Python's standard library: requests go through the `baton` command line tool.
"""
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request


def find_root():
    """The folder that holds router/, prefill_node/, ... : Bazel's runfiles, or bazel-bin."""
    for root in (os.environ.get("BATON_BIN"), os.getcwd(),
                 os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "bazel-bin")):
        if root and os.path.exists(os.path.join(root, "client", "baton")):
            return os.path.abspath(root)
    sys.exit("the binaries are not built: bazel build //router //prefill_node //decode_node //client:baton")


def find_model():
    for root in (os.getcwd(), os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")):
        path = os.path.join(root, "models", "baton-tiny")
        if os.path.exists(os.path.join(path, "config.json")):
            return os.path.abspath(path)
    sys.exit("models/baton-tiny is missing")


def shared_data():
    """The folder of large test data, or None."""
    path = os.environ.get("BATON_SHARED_DATA", "")
    if path and os.path.exists(os.path.join(path, "MANIFEST.md")):
        return path
    return None


_ports_given = set()


def free_port():
    """A port that nobody has. A server listens on it only a moment later, and again after a kill: one that
    the kernel would hand out could be an outgoing connection's by then, so it lies below those (32768 on)."""
    for _ in range(1000):
        port = random.SystemRandom().randrange(10240, 32000)
        if port in _ports_given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _ports_given.add(port)
        return port
    raise AssertionError("no free port between 10240 and 32000")


class Process:
    def __init__(self, name, argv, log_dir):
        self.name, self.argv, self.log_path = name, argv, os.path.join(log_dir, name + ".log")
        self.environment = {}  # beside this process's own; for the next start
        self.popen = None

    def start(self):
        with open(self.log_path, "ab") as log:
            self.popen = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                          env={**os.environ, **self.environment})

    def kill(self):
        """kill -9, and waits until it is gone."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    def stop(self, timeout=20):
        if self.popen and self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(timeout)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        return self.popen.returncode if self.popen else None

    def log(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()


class Cluster:
    """with Cluster(prefill=1, decode=2) as cluster: cluster.generate(prompt="...")"""

    def __init__(self, prefill=1, decode=1, model=None, common=(), prefill_flags=(), decode_flags=(), router_flags=(),
                 threads=1, log_level="info", client_flags=()):
        self.root, self.model = find_root(), model or find_model()
        self.client_flags = list(client_flags)
        self.dir = tempfile.TemporaryDirectory(prefix="baton-e2e-")
        self.baton = os.path.join(self.root, "client", "baton")
        self.nodes, self.metrics_addresses = {}, {}
        base = ["--model=" + self.model, "--log-level=" + log_level]
        addresses = {"prefill": [], "decode": []}
        for role, count, flags in (("prefill", prefill, prefill_flags), ("decode", decode, decode_flags)):
            for index in range(count):
                address = "127.0.0.1:%d" % free_port()
                name = "%s-%d" % (role, index)
                argv = [os.path.join(self.root, role + "_node", role + "_node"), "--listen=" + address, "--name=" + name,
                        "--threads=%d" % threads, "--tcp-listen=127.0.0.1:0", "--uds-dir=" + self.dir.name]
                if not any(flag.startswith("--kv-memory") for flag in (*common, *flags)):
                    argv.append("--kv-memory=32MiB")
                self.metrics_addresses[name] = "127.0.0.1:%d" % free_port()
                argv.append("--metrics-listen=" + self.metrics_addresses[name])
                self.nodes[name] = Process(name, argv + base + list(common) + list(flags), self.dir.name)
                addresses[role].append(address)
        self.router_address = "127.0.0.1:%d" % free_port()
        self.router_metrics = self.metrics_addresses["router"] = "127.0.0.1:%d" % free_port()
        argv = [os.path.join(self.root, "router", "router"), "--listen=" + self.router_address,
                "--metrics-listen=" + self.router_metrics]
        for role in addresses:
            if addresses[role]:
                argv.append("--%s=%s" % (role, ",".join(addresses[role])))
        self.router = Process("router", argv + base + list(router_flags), self.dir.name)

    def __enter__(self):
        for process in self.processes():
            process.start()
        try:
            self.wait_status("%d nodes attached" % len(self.nodes), self.all_attached)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            for process in self.processes():
                with contextlib.suppress(OSError):
                    print("--- %s\n%s" % (process.name, process.log()[-4000:]), file=sys.stderr)
        for process in reversed(self.processes()):
            process.stop(timeout=5)
        self.dir.cleanup()

    def all_attached(self, status):
        """For the start alone, where a node that has ended will not attach however long one waits."""
        for node in self.nodes.values():
            if node.popen.poll() is not None:
                raise AssertionError("%s ended with %d" % (node.name, node.popen.returncode))
        return sum(node["attached"] for node in status["nodes"]) == len(self.nodes)

    def processes(self):
        return [*self.nodes.values(), self.router]

    def run(self, command, *flags, timeout=120):
        return subprocess.run([self.baton, command, "--router=" + self.router_address, *self.client_flags, *flags],
                              capture_output=True, text=True, timeout=timeout)

    def status(self):
        got = self.run("status", "--json")
        return json.loads(got.stdout) if got.returncode == 0 else None

    def wait_status(self, what, test, timeout=60):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = self.status()
            if status and test(status):
                return status
            if not status and self.router.popen.poll() is not None:
                raise AssertionError("%s: the router ended with %d: %s" % (what, self.router.popen.returncode,
                                                                           self.router.log()[-2000:]))
            time.sleep(0.02)
        raise AssertionError("%s: not within %d s; status %s" % (what, timeout, json.dumps(self.status())))

    def wait_attached(self, count, timeout=60):
        return self.wait_status("%d nodes attached" % count,
                                lambda s: sum(node["attached"] for node in s["nodes"]) == count, timeout)

    def wait_idle(self, timeout=30):
        """Every request answered and every block of every attached node free, or kept for who may come again."""
        return self.wait_status(
            "all blocks free or cached",
            lambda s: s["requests_live"] == 0 and all(
                node["blocks_free"] + node["blocks_cached"] == node["blocks_total"] and node["blocks_total"] > 0
                for node in s["nodes"] if node["attached"]), timeout)

    def metrics(self, name):
        """{"name{labels}": value} of one process: a node's name, or "router"."""
        with urllib.request.urlopen("http://%s/metrics" % self.metrics_addresses[name], timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and line[0] != "#"}

    def sum_metric(self, name, start):
        """Sum over labels of the node's metric whose line starts so, as 'baton_kv_bytes_total{'."""
        return sum(value for key, value in self.metrics(name).items() if key.startswith(start))

    def generate(self, *flags, timeout=120):
        """The parsed --json answer; an AssertionError with the message when it failed."""
        got = self.run("generate", "--json", *flags, timeout=timeout)
        if got.returncode != 0:
            raise AssertionError("generate %s: exit %d: %s" % (" ".join(flags)[-200:], got.returncode, got.stderr.strip()))
        return json.loads(got.stdout)

    def generate_many(self, flag_lists, timeout=180):
        """All at once; answers in the order of the lists."""
        answers = [None] * len(flag_lists)

        def one(index):
            try:
                answers[index] = self.generate(*flag_lists[index], timeout=timeout)
            except BaseException as error:  # handed to the caller's thread
                answers[index] = error
        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(flag_lists))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def stream(self, *flags):
        """The running `baton generate`, text on its stdout as it comes."""
        return subprocess.Popen([self.baton, "generate", "--router=" + self.router_address, *self.client_flags, *flags],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
