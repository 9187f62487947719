"""The peer: llama.cpp's own programs, wherever they were built."""
import json
import os
import subprocess
import time
import urllib.request

PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-server")


class Peer:
    """folder: where the programs are; models: <shape>-<format>.gguf, of make_gguf.py and llama-quantize."""

    def __init__(self, folder, models):
        self.folder, self.models = folder, models

    def missing(self):
        """Why there is nothing to compare to, or None."""
        if not self.folder:
            return "no --llama-bin"
        for program in PROGRAMS:
            if not os.access(os.path.join(self.folder, program), os.X_OK):
                return "%s is not in %s" % (program, self.folder)
        return None

    def model(self, shape, weights):
        path = os.path.join(self.models or ".", "%s-%s.gguf" % (shape, weights))
        return path if os.path.exists(path) else None

    def run(self, program, *flags, nice=None):
        got = subprocess.run([os.path.join(self.folder, program), *flags], capture_output=True, text=True, timeout=600)
        if got.returncode != 0:
            raise RuntimeError("%s %s: exit %d: %s" % (program, " ".join(flags), got.returncode, got.stderr[-500:]))
        return got.stdout

    def version(self):
        got = subprocess.run([os.path.join(self.folder, "llama-server"), "--version"], capture_output=True, text=True)
        return " ".join((got.stderr + got.stdout).split()[:8])

    def bench(self, model, threads, prompts=(), outputs=(), warm=True):
        """llama-bench with the weights in memory of its own (-lm none, once -mmp 0): {("prefill", n) or ("decode", n): tokens/s}."""
        flags = ["-m", model, "-t", str(threads), "-lm", "none", "-r", "1", "-o", "json",
                 "-p", ",".join(map(str, prompts)) or "0", "-n", ",".join(map(str, outputs)) or "0"]
        rates = {}
        for test in json.loads(self.run("llama-bench", *flags, *([] if warm else ["--no-warmup"]))):
            key = ("prefill", test["n_prompt"]) if test["n_prompt"] else ("decode", test["n_gen"])
            rates[key] = test["avg_ts"]
        return rates

    def batched(self, model, threads, batches, context, outputs):
        """llama-batched-bench: {batch: decoded tokens/s, all sequences together}."""
        size = max(batches) * (context + outputs)
        out = self.run("llama-batched-bench", "-m", model, "-t", str(threads), "-tb", str(threads), "-c", str(size),
                       "-npp", str(context), "-ntg", str(outputs), "-npl", ",".join(map(str, batches)), "-lm", "none",
                       "--output-format", "jsonl")
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        return {line["pl"]: line["speed_tg"] for line in lines}


class Server:
    """with Server(peer, model, threads, port) as server: server.ready_s, server.pid"""

    def __init__(self, peer, model, threads, port, parallel=9, context=25344, log=os.devnull):
        self.argv = [os.path.join(peer.folder, "llama-server"), "-m", model, "-t", str(threads), "-tb", str(threads),
                     "--parallel", str(parallel), "-c", str(context), "-lm", "none", "--host", "127.0.0.1", "--port", str(port)]
        self.port, self.log_path = port, log
        self.ready_s, self.process = None, None

    def __enter__(self):
        begin = time.monotonic()
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log)
        while True:
            if self.process.poll() is not None:
                raise RuntimeError("llama-server ended with %d" % self.process.returncode)
            try:
                with urllib.request.urlopen("http://127.0.0.1:%d/health" % self.port, timeout=5) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                pass
            if time.monotonic() - begin > 120:
                self.__exit__(None, None, None)
                raise RuntimeError("llama-server was not ready within 120 s")
            time.sleep(0.005)
        self.ready_s = time.monotonic() - begin
        return self

    @property
    def pid(self):
        return self.process.pid

    def __exit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
