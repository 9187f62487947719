"""Our side of the comparison: bench/engine's binary, and the three processes as Bazel built them."""
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "..", "tests", "e2e"), os.path.join(HERE, "..", "shapes")]
import cluster as clusters  # noqa: E402
import make as shapes       # noqa: E402


def binary(*path):
    return os.path.join(clusters.find_root(), *path)


def shape(name, shapes_dir=None):
    """The model directory of a shape. It stays from run to run, as a model does: a node packs its weights once."""
    return shapes.make(name, os.path.join(tempfile.gettempdir(), "baton-bench-shapes"), shapes=shapes_dir)


@functools.lru_cache(maxsize=None)
def knows(program, flag):
    """Whether a program of ours has a flag: an older build is measured as what it is."""
    text = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    return re.search(r"^\s*--%s\b" % re.escape(flag), text, re.M) is not None


def weight_flags(program, weights):
    """The flag that asks for a weight format, [] where the files' own is meant; None: the program cannot."""
    if weights == "bf16":
        return []
    return ["--weights=" + weights] if knows(program, "weights") else None


def node_like(program):
    """Flags that make engine_bench compute as a node with a large bf16 model does by itself."""
    with open("/proc/cpuinfo") as file:
        has_bf16 = "_bf16" in file.read()
    flags = ["--compute=bf16"] if has_bf16 and knows(program, "compute") else []
    return flags + (["--pack-cache=auto"] if knows(program, "pack-cache") else [])


def engine(model, threads, weights="bf16", batches=(), prompts=(), context=128, rounds=1, extra=()):
    """engine_bench's JSON lines, or None where it cannot do the format."""
    program = binary("bench", "engine", "engine_bench")
    flags = weight_flags(program, weights)
    if flags is None:
        return None
    argv = [program, "--model=" + model, "--threads=%d" % threads, "--rounds=%d" % rounds, "--context=%d" % context,
            "--batches=" + ",".join(map(str, batches)), "--prompts=" + ",".join(map(str, prompts)), *flags, *node_like(program), *extra]
    got = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    if got.returncode != 0:
        raise RuntimeError("%s: exit %d: %s" % (" ".join(argv), got.returncode, got.stderr[-500:]))
    return [json.loads(line) for line in got.stdout.splitlines() if line.startswith("{")]


def case(lines, bench, **wanted):
    for line in lines:
        if line["bench"] == bench and all(line.get(key) == value for key, value in wanted.items()):
            return line
    raise RuntimeError("engine_bench printed no %s with %s" % (bench, wanted))


def probe(threads):
    """What the machine gives right now: engine_bench's probes, beside a model too small to matter."""
    lines = engine(clusters.find_model(), threads, batches=(1,), rounds=1, extra=("--load=auto",))
    return {key: value for key, value in case(lines, "probe").items() if key not in ("bench", "rounds")}


def split(model, prefill=1, threads=1, prefill_threads=None, kv_memory="1GiB", weights="bf16", extra=()):
    """A router and its nodes; prefill=0: one process does both."""
    flags = weight_flags(binary("decode_node", "decode_node"), weights)
    if flags is None:
        return None
    made = clusters.Cluster(prefill=prefill, decode=1, model=model, threads=threads,
                            common=["--load=dummy", *(["--kv-memory=" + kv_memory] if kv_memory else []), *flags, *extra])
    if prefill_threads and prefill:
        for name, process in made.nodes.items():
            if name.startswith("prefill"):
                process.argv = [flag if not flag.startswith("--threads=") else "--threads=%d" % prefill_threads
                                for flag in process.argv]
    return made


def load(cluster, *flags, timeout=600):
    got = cluster.run("bench", "--json", *flags, timeout=timeout)
    try:
        answer = json.loads(got.stdout)
    except ValueError:
        raise RuntimeError("baton bench %s: %s" % (" ".join(flags), got.stderr[-500:])) from None
    if answer["ok"] != answer["requests"]:
        raise RuntimeError("baton bench %s: %d of %d answered: %s" % (" ".join(flags), answer["ok"], answer["requests"],
                                                                      answer.get("first_failure")))
    return answer


def memory_mib(pid):
    with open("/proc/%d/status" % pid) as file:
        text = file.read()
    found = {key: int(value) / 1024 for key, value in re.findall(r"^(VmRSS|RssAnon|RssFile|RssShmem):\s+(\d+)", text, re.M)}
    return {key.lower(): round(value, 1) for key, value in found.items()}


def start(model, threads, kv_memory, folder, weights="bf16"):
    """(seconds from exec to event=ready, memory then) of a decode node."""
    program = binary("decode_node", "decode_node")
    flags = weight_flags(program, weights)
    if flags is None:
        return None
    begin = time.monotonic()
    process = subprocess.Popen([program, "--model=" + model, "--load=dummy", "--threads=%d" % threads, "--uds-dir=" + folder,
                                "--tcp-listen=127.0.0.1:0", "--kv-memory=" + kv_memory, "--listen=127.0.0.1:0", *flags],
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    seconds, lines = None, []
    for line in process.stderr:
        lines.append(line.decode(errors="replace"))
        if "event=ready" in lines[-1]:
            seconds = time.monotonic() - begin
            break
    memory = memory_mib(process.pid) if seconds else None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    if seconds is None:
        raise RuntimeError("decode_node did not start: " + "".join(lines)[-500:])
    return seconds, memory
