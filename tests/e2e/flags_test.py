"""Every flag of every binary, with values that make no sense; and model directories that are broken.

An error names the flag, or the file, and what is wrong with it. Nobody crashes, nobody starts.
"""
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import find_model, find_root  # noqa: E402

SERVERS = {"router": ["--decode=127.0.0.1:1"], "prefill_node": [], "decode_node": []}
NUMBERS = ("", "x", "-1", "1e", "99999999999999999999999", "1.5x", " 1", "0x10", "nan")


def run(binary, *flags, timeout=60, **environment):
    argv = [os.path.join(find_root(), *binary.split("/")), *flags]
    got = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                         env={**{k: v for k, v in os.environ.items() if not k.startswith("BATON_")}, **environment})
    return got.returncode, got.stdout + got.stderr


def flags_of(binary, *command):
    """[(name, value name or "")] of what --help lists."""
    code, text = run(binary, *command, "--help")
    assert code == 0, text
    found = re.findall(r"^  --([a-z0-9-]+)(?:=(\S+))?  ", text, re.M)
    assert len(found) > 3, text
    return found


class Flags(unittest.TestCase):
    maxDiff = None

    def refused(self, binary, flag, *words, names=None):
        code, text = run(binary, *words)
        self.assertEqual(code, 2, "%s: %s" % (" ".join(words), text))
        self.assertIn(names or "--" + flag, text, " ".join(words))
        return text

    def test_servers(self):
        for server, needed in SERVERS.items():
            binary = server + "/" + server
            base = ["--model=" + find_model(), *needed]
            for name, value in flags_of(binary):
                bad = ()
                if value in ("N", "tokens", "SIZE", "auto|SIZE", "TIME"):
                    bad = NUMBERS
                elif not value and name not in ("help",):
                    bad = ("maybe", "2")
                elif value in ("auto|dummy", "auto|f32|bf16", "auto|bf16|int8|int4", "auto|f32|bf16|f16|int8|fp8", "auto|shm|nccl|ucx|tcp",
                               "off|rdma|trust-network", "off|on", "on|off",
                               "auto|swap|recompute", "LEVEL"):
                    bad = ("", "bogus")
                elif value and value.startswith("H:P"):
                    bad = ("nonsense", "127.0.0.1:99999999", ":", "127.0.0.1:x")
                elif name in ("isa",):
                    bad = ("", "quantum")
                for text in bad:
                    with self.subTest(binary=server, flag=name, value=text):
                        rest = [flag for flag in base if not flag.startswith("--%s=" % name)]
                        self.refused(binary, name, "--%s=%s" % (name, text), "--check", *rest)
            with self.subTest(binary=server, what="unknown, repeated, missing"):
                self.refused(binary, "no-such-flag", "--no-such-flag=1", *base)
                self.refused(binary, "listen", "--listen=127.0.0.1:0", "--listen=127.0.0.1:0", *base)
                self.refused(binary, "model", "--check", *needed)
                code, text = run(binary, "--check", "--model=/no/such/model", *needed)
                self.assertNotEqual(code, 0)
                self.assertIn("/no/such/model/config.json", text)
                self.refused(binary, "", "word", *base, names="word")

    def test_ranges_are_named(self):
        for node in ("prefill_node/prefill_node", "decode_node/decode_node"):
            for flag, value in (("batch-max", "0"), ("batch-max", "5000"), ("kv-block-tokens", "17"), ("kv-block-tokens", "8"),
                                ("step-tokens", "0"), ("chunk-tokens", "0"), ("routers-max", "0"), ("routers-max", "9999"),
                                ("waiting-max", "70000"), ("nccl-channels", "0"), ("nccl-channels", "33"),
                                ("nccl-pairs-max", "5000"), ("nccl-memory", "1MiB"), ("nccl-init-timeout", "1ms"), ("nccl-init-timeout", "1h"), ("lease", "0s"), ("lease", "9h"), ("threads", "100000")):
                with self.subTest(node=node, flag=flag, value=value):
                    text = self.refused(node, flag, "--model=" + find_model(), "--check", "--%s=%s" % (flag, value))
                    self.assertRegex(text, r"\d")

    def test_what_does_not_go_together(self):
        """Refused with the names of all flags that take part, before a model is read or a file made."""
        folder = tempfile.TemporaryDirectory(prefix="baton-flags-")
        self.addCleanup(folder.cleanup)
        file = os.path.join(folder.name, "kv")
        cases = [(["--itl-stretch=" + value], ["--itl-stretch"]) for value in ("", "x", "0.5", "-1", "nan", "inf", "1001")]
        cases += [
            (["--kv-disk=1MiB"], ["--kv-disk needs --kv-disk-path"]),
            (["--kv-disk=1MiB", "--kv-disk-path="], ["--kv-disk needs --kv-disk-path"]),
            (["--kv-disk-path=" + file], ["--kv-disk-path needs --kv-disk:"]),
            (["--kv-host-memory=1MiB", "--prefix-cache=off"], ["--kv-host-memory", "--prefix-cache=on"]),
            (["--kv-disk=1MiB", "--kv-disk-path=" + file, "--prefix-cache=off"], ["--kv-disk", "--prefix-cache=on"]),
            (["--preempt=swap"], ["--preempt=swap", "--kv-host-memory", "--kv-disk"]),
        ]
        cases += [
            (["--kv-memory=auto"], ["--kv-memory=auto needs --backend=cuda"]),
            (["--nccl=on"], ["--nccl=on needs --backend=cuda"]),
            (["--kv-convert=on"], ["--kv-convert=on needs --nccl=on"]),
            (["--kv-convert=on", "--backend=cuda", "--cables=shm,tcp"], ["--kv-convert=on needs --nccl=on"]),
            (["--nccl=on", "--backend=cuda", "--cables=shm,tcp"], ["--nccl", "--cables"]),
            (["--cables=nccl,tcp", "--backend=cuda"], ["--cables names nccl", "--nccl=off", "--nccl=on"]),
            (["--cables=ucx,tcp"], ["--cables names ucx", "--ucx=off", "--ucx=rdma"]),
            (["--ucx=rdma", "--cables=tcp"], ["--ucx", "--cables"]),
        ]
        cases += [(["--compute=bf16", "--isa=" + isa], ["--compute=bf16", "--isa=" + isa])
                  for isa in ("avx512", "avx2", "scalar", "ref")]
        for node in ("prefill_node/prefill_node", "decode_node/decode_node"):
            for flags, names in cases:
                with self.subTest(node=node, flags=flags):
                    code, text = run(node, "--model=/no/such/model", "--check", *flags)
                    self.assertEqual(code, 2, text)
                    self.assertNotIn("/no/such/model", text)
                    for name in names:
                        self.assertIn(name, text)
        self.assertEqual(os.listdir(folder.name), [])

    def test_a_library_that_is_not_there(self):
        """What a flag turns on and cannot be had is told at the start, with the file's name, not when it would be used."""
        for node in ("prefill_node/prefill_node", "decode_node/decode_node"):
            for flags in (["--nccl=on", "--backend=cuda", "--nccl-library=/no/such/libnccl.so.2"],
                          ["--ucx=rdma", "--ucx-library=/no/such/libucp.so.0"]):
                with self.subTest(node=node, flags=flags):
                    code, text = run(node, "--model=/no/such/model", "--check", *flags)
                    self.assertEqual(code, 1, text)
                    self.assertIn(flags[-1].split("=")[1], text)
                    self.assertNotIn("/no/such/model", text)

    def test_memory_that_is_not_there(self):
        for node in ("prefill_node/prefill_node", "decode_node/decode_node"):
            for size in ("1", "0", "1KiB", "1000TiB"):
                with self.subTest(node=node, size=size):
                    code, text = run(node, "--model=" + find_model(), "--check", "--kv-memory=" + size)
                    self.assertNotEqual(code, 0)
                    self.assertIn("--kv-memory", text)

    def test_words_are_refused_before_the_model_is_opened(self):
        """A model takes minutes to read: a misspelt word is told before that."""
        for node in ("prefill_node/prefill_node", "decode_node/decode_node"):
            for flag, value in (("kv-dtype", "fp4"), ("compute", "int8"), ("isa", "nonsense"), ("weights", "f16"), ("preempt", "swap")):
                with self.subTest(node=node, flag=flag, value=value):
                    text = self.refused(node, flag, "--model=/no/such/model", "--check", "--%s=%s" % (flag, value))
                    self.assertNotIn("/no/such/model", text)

    def test_a_tier_that_holds_no_block(self):
        """--check refuses what the start would refuse, and makes no file."""
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "kv")
            for node in ("prefill_node/prefill_node", "decode_node/decode_node"):
                for flag, more in (("kv-host-memory", ()), ("kv-disk", ("--kv-disk-path=" + file,)),
                                   ("kv-disk", ("--kv-disk-path=" + file, "--kv-host-memory=64MiB"))):
                    for way in ((), ("--check",)):
                        with self.subTest(node=node, flag=flag, way=way):
                            text = self.refused(node, flag, "--model=" + find_model(), "--%s=1" % flag, *more, *way)
                            self.assertIn("does not hold one block", text)
            self.assertEqual(os.listdir(folder), [])

    def test_a_window_in_all_layers_makes_no_tiers(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(find_model(), folder, dirs_exist_ok=True)
            path = os.path.join(folder, "config.json")
            os.chmod(path, 0o644)
            with open(path) as file:
                config = json.load(file)
            tiers = r"event=memory_plan .*\btiers=(\d+)"
            for window, is_warned in ((64, True), (None, False)):
                config.update(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=window)
                with open(path, "w") as file:
                    json.dump(config, file)
                code, text = run("decode_node/decode_node", "--check", "--load=dummy", "--kv-host-memory=64MiB", "--model=" + folder)
                self.assertEqual(code, 0, text)
                self.assertEqual(text.count("event=kv_tiers_not_used"), 1 if is_warned else 0, text)
                self.assertEqual(int(re.search(tiers, text).group(1)) == 0, is_warned, text)

    def test_a_pack_folder_that_cannot_be_made(self):
        code, text = run("decode_node/decode_node", "--check", "--model=" + find_model(), "--pack-cache=/proc/no/such")
        self.assertEqual(code, 0, text)
        self.assertEqual(text.count("event=pack_not_saved"), 1, text)
        self.assertIn("/proc/no/such", text)

    def test_client(self):
        needs = {"up": ["--model=" + find_model(), "--listen=127.0.0.1:0"], "generate": ["--prompt=x"], "chat": ["--message=x"],
                 "status": [], "kv": [], "tokenize": ["--text=x"], "bench": []}
        for command in needs:
            for name, value in flags_of("client/baton", command):
                bad = ()
                if value in ("N", "K", "X", "TIME", "SIZE", "RATE"):
                    bad = ("", "x", "1e", "1.5x", " 1", "--2")
                elif not value:
                    bad = ("maybe",)
                elif value == "1,2,3":
                    bad = ("1,,2", "a", "1,-2", "99999999999")
                elif value == "TOKEN:X":
                    bad = ("5", "5:", ":5", "a:1", "5:x")
                for text in bad:
                    with self.subTest(command=command, flag=name, value=text):
                        rest = [flag for flag in needs[command] if not flag.startswith("--%s=" % name)]
                        self.refused("client/baton", name, command, "--%s=%s" % (name, text), *rest)
            with self.subTest(command=command, what="unknown"):
                self.refused("client/baton", "no-such-flag", command, "--no-such-flag")
        self.refused("client/baton", "", "no-such-command", names="no-such-command")

    def test_client_without_a_router(self):
        for command, flags in (("generate", ["--prompt=x"]), ("chat", ["--message=x"]), ("status", []),
                               ("tokenize", ["--text=x"])):
            with self.subTest(command=command):
                code, text = run("client/baton", command, "--router=127.0.0.1:1", *flags)
                self.assertNotEqual(code, 0)
                self.assertIn("127.0.0.1:1", text)

    def test_environment(self):
        code, text = run("decode_node/decode_node", "--check", "--model=" + find_model(), BATON_BATCH_MAX="many")
        self.assertEqual(code, 2)
        self.assertIn("BATON_BATCH_MAX", text)


class BrokenModels(unittest.TestCase):
    """Each case spoils one thing of a copy; both the node and, where it reads the file, the router name it."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="baton-broken-")
        self.addCleanup(self.folder.cleanup)
        self.model = os.path.join(self.folder.name, "model")
        shutil.copytree(find_model(), self.model)
        for file in os.listdir(self.model):
            os.chmod(os.path.join(self.model, file), 0o644)

    def path(self, name):
        return os.path.join(self.model, name)

    def node(self, *names, server="decode_node"):
        code, text = run(server + "/" + server, "--model=" + self.model, "--check", *SERVERS[server])
        self.assertIn(code, (1, 2), text)
        for name in names:
            self.assertIn(name, text)

    def edit(self, file="config.json", **changes):
        with open(self.path(file)) as text:
            config = json.load(text)
        for key, value in changes.items():
            if value is None:
                config.pop(key, None)
            else:
                config[key] = value
        with open(self.path(file), "w") as text:
            json.dump(config, text)

    def header(self, change):
        with open(self.path("model.safetensors"), "rb") as file:
            data = file.read()
        size = struct.unpack_from("<Q", data)[0]
        head = json.loads(data[8:8 + size])
        change(head)
        text = json.dumps(head).encode()
        with open(self.path("model.safetensors"), "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text + data[8 + size:])

    def test_config(self):
        for changes, names in (({"architectures": ["FalconForCausalLM"]}, ("FalconForCausalLM",)),
                               ({"architectures": [], "model_type": "falcon"}, ("falcon",)),
                               ({"hidden_size": 255}, ("config.json", "255")),
                               ({"hidden_size": "x"}, ("config.json", "hidden_size")),
                               ({"num_hidden_layers": 0}, ("config.json", "num_hidden_layers")),
                               ({"num_hidden_layers": 10**9}, ("config.json", "num_hidden_layers")),
                               ({"num_key_value_heads": 3}, ("config.json", "num_key_value_heads")),
                               ({"vocab_size": -1}, ("config.json", "vocab_size")),
                               ({"vocab_size": 2049}, ("embed_tokens", "2049")),
                               ({"num_hidden_layers": 6}, ("layers.5",)),
                               ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, ("yarn",)),
                               ({"hidden_act": "swish7"}, ("swish7",))):
            with self.subTest(**{k: str(v) for k, v in changes.items()}):
                shutil.copy(os.path.join(find_model(), "config.json"), self.path("config.json"))
                os.chmod(self.path("config.json"), 0o644)
                self.edit(**changes)
                self.node(*names)
        with open(self.path("config.json"), "w") as file:
            file.write('{"architectures": ["LlamaForCausalLM"')
        self.node("config.json")
        os.remove(self.path("config.json"))
        self.node("config.json")
        self.node("config.json", server="router")

    def test_weights(self):
        size = os.path.getsize(self.path("model.safetensors"))
        for cut in (size - 1, size // 2, 1000, 8, 7, 0):
            with self.subTest(bytes=cut):
                os.truncate(self.path("model.safetensors"), cut)
                self.node("model.safetensors")
        shutil.copy(os.path.join(find_model(), "model.safetensors"), self.path("model.safetensors"))
        os.chmod(self.path("model.safetensors"), 0o644)
        self.header(lambda head: head.pop("model.layers.2.mlp.up_proj.weight"))
        self.node("model.layers.2.mlp.up_proj.weight")
        shutil.copy(os.path.join(find_model(), "model.safetensors"), self.path("model.safetensors"))
        self.header(lambda head: head["model.norm.weight"].update(shape=[255]))
        self.node("model.norm.weight")
        shutil.copy(os.path.join(find_model(), "model.safetensors"), self.path("model.safetensors"))
        self.header(lambda head: head["model.norm.weight"].update(dtype="I64"))
        self.node("model.norm.weight")
        shutil.copy(os.path.join(find_model(), "model.safetensors"), self.path("model.safetensors"))
        self.header(lambda head: head["model.norm.weight"].update(data_offsets=[2**62, 2**62 + 512]))
        self.node("model.safetensors")
        with open(self.path("model.safetensors"), "wb") as file:
            file.write(struct.pack("<Q", 2**63) + b"{}")
        self.node("model.safetensors")
        os.remove(self.path("model.safetensors"))
        self.node("model.safetensors")
        with open(self.path("model.safetensors.index.json"), "w") as file:
            json.dump({"weight_map": {"model.norm.weight": "../../etc/passwd"}}, file)
        self.node("model.safetensors.index.json")
        with open(self.path("model.safetensors.index.json"), "w") as file:
            json.dump({"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}, file)
        self.node("model-00001-of-00001.safetensors")

    def test_tokenizer(self):
        with open(self.path("tokenizer.json")) as file:
            good = json.load(file)
        for what, spoil in (("cut", lambda t: json.dumps(t)[:5000]), ("empty", lambda t: ""),
                            ("kind", lambda t: json.dumps({**t, "model": {**t["model"], "type": "Unigram"}})),
                            ("pre", lambda t: json.dumps({**t, "pre_tokenizer": {"type": "Telepathy"}})),
                            ("vocab", lambda t: json.dumps({**t, "model": {**t["model"], "vocab": {}}})),
                            ("merges", lambda t: json.dumps({**t, "model": {**t["model"], "merges": ["zz qq"]}}))):
            with self.subTest(what):
                with open(self.path("tokenizer.json"), "w") as file:
                    file.write(spoil(good))
                self.node("tokenizer.json", *{"kind": ("Unigram",), "pre": ("Telepathy",)}.get(what, ()), server="router")

    def test_chat_template_flag(self):
        code, text = run("router/router", "--model=" + self.model, "--decode=127.0.0.1:1", "--check", "--chat-template=no-such-family")
        self.assertNotEqual(code, 0)
        self.assertIn("--chat-template=no-such-family", text)


if __name__ == "__main__":
    unittest.main(verbosity=2)
