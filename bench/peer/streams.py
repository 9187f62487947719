"""Running text streams of either side, as times at which pieces arrived.

Both sides are heard the same way: a thread reads what a stream writes and notes the time of each piece,
which is one token of a vocabulary where every id has a text of its own.
"""
import http.client
import json
import statistics
import subprocess
import threading
import time


def prompt(length, seed):
    """Token ids that no tokenizer gives a meaning, none of them special."""
    return [300 + (index * 7919 + seed * 104729) % 100000 for index in range(length)]


class Stream:
    """One open request; `times` grows while it runs."""

    def __init__(self):
        self.start, self.times, self.error = time.monotonic(), [], None
        self.thread = threading.Thread(target=self.listen, daemon=True)

    def begin(self):
        self.thread.start()
        return self

    def listen(self):
        try:
            self.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.error = error

    def first_s(self):
        return self.times[0] - self.start if self.times else None

    def wait_first(self, timeout=300):
        deadline = time.monotonic() + timeout
        while not self.times and self.thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        if not self.times:
            raise RuntimeError("a stream gave no token within %d s: %s" % (timeout, self.error or "ended early"))


class BatonStream(Stream):
    def __init__(self, cluster, tokens, count):
        super().__init__()
        self.process = cluster.stream("--tokens=" + ",".join(map(str, tokens)), "--max-tokens=%d" % count,
                                      "--temperature=0", "--ignore-eos", "--quiet")

    def read(self):
        while True:
            piece = self.process.stdout.read(4096)
            if not piece:
                return
            if piece.strip():  # the line feed at the end is no token
                self.times.append(time.monotonic())

    def close(self):
        self.process.kill()
        self.process.communicate()
        self.thread.join()


class LlamaStream(Stream):
    def __init__(self, port, tokens, count):
        super().__init__()
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        self.body = json.dumps({"prompt": tokens, "n_predict": count, "stream": True, "temperature": 0, "ignore_eos": True,
                                "cache_prompt": False})

    def read(self):
        self.connection.request("POST", "/completion", self.body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        if answer.status != 200:
            raise ValueError("llama-server: %d %s" % (answer.status, answer.read()[:300]))
        for line in answer:
            if line.startswith(b"data: ") and json.loads(line[6:]).get("content"):
                self.times.append(time.monotonic())

    def close(self):
        if self.connection.sock:
            try:
                self.connection.sock.shutdown(2)
            except OSError:
                pass
        self.thread.join(5)
        self.connection.close()


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * (len(values) - 1) + 0.5))] if values else None


def gaps(streams, begin, end):
    """Seconds between neighbouring pieces of each stream, of the gaps that overlap begin..end."""
    found = []
    for stream in streams:
        for before, after in zip(stream.times, stream.times[1:]):
            if after > begin and before < end:
                found.append(after - before)
    return found


def first_tokens(open_stream, count, prompt_tokens, output_tokens, seed):
    """`count` prompts at once; seconds to the first token of each."""
    streams = [open_stream(prompt(prompt_tokens, seed * 100 + index), output_tokens).begin() for index in range(count)]
    for stream in streams:
        stream.wait_first()
    for stream in streams:
        stream.thread.join(300)
    firsts = [stream.first_s() for stream in streams]
    for stream in streams:
        stream.close()
    return firsts


def interference(open_stream, count, intruder_tokens, idle_s, seed):
    """`count` streams run for a while, then one long prompt arrives; all are closed when it has its first token."""
    streams = [open_stream(prompt(32, seed * 100 + index), 1500).begin() for index in range(count)]
    try:
        for stream in streams:
            stream.wait_first()
        time.sleep(0.5)
        calm_from = time.monotonic()
        time.sleep(idle_s)
        arrival = time.monotonic()
        intruder = open_stream(prompt(intruder_tokens, seed * 100 + 99), 2).begin()
        try:
            intruder.wait_first()
            time.sleep(0.2)
        finally:
            intruder.close()
        answered = intruder.times[0]
        time.sleep(0.5)
    finally:
        for stream in streams:
            stream.close()
    calm, hurt = gaps(streams, calm_from, arrival), gaps(streams, arrival, answered)
    if not calm or not hurt:
        raise RuntimeError("the streams ended before the long prompt was answered")
    worst = [max(gaps([stream], arrival, answered), default=0) for stream in streams]
    return {"calm_p50_ms": quantile(calm, 0.5) * 1e3, "calm_p99_ms": quantile(calm, 0.99) * 1e3,
            "hurt_p50_ms": quantile(hurt, 0.5) * 1e3, "hurt_p99_ms": quantile(hurt, 0.99) * 1e3,
            "hurt_max_ms": max(hurt) * 1e3, "worst_gap_median_ms": statistics.median(worst) * 1e3,
            "stretch_p99": quantile(hurt, 0.99) / quantile(calm, 0.99), "prompt_ttft_s": answered - intruder.start}


def spin_on(core):
    """A busy niced process bound to one core: the neighbour."""
    return subprocess.Popen(["taskset", "-c", str(core), "nice", "-n", "19", "sh", "-c", "while :; do :; done"])
