"""The public API as a foreign client sees it: grpcio, with the messages that reflection describes.

Real processes: router, one prefill and one decode node, and beside them a router whose decode node
computes prompts itself, because most claims are that the split changes nothing.
Skips, and says so, where Python has no grpcio.
"""
import json
import os
import random
import sys
import threading
import time
import unittest

try:
    import grpc
    from google.protobuf import descriptor_pool, message_factory
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
except ImportError as missing:
    print("SKIPPED: %s; pip install -r tests/python/requirements.txt and set BATON_PYTHON to run this test" % missing)
    sys.exit(0)

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in (os.path.join(os.getcwd(), "tests", "e2e"), os.path.join(HERE, "..", "e2e")):
    sys.path.insert(0, folder)
from cluster import Cluster, find_model  # noqa: E402

SERVICE = "baton.v1.Inference"
LONG_WAIT = 60
PROMPT = "Once upon a time"
LONG = " ".join(["The old coach told them to run and to pass the baton with care."] * 20)


class Api:
    """Stubs made of what the server's reflection says."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        self.service = pool.FindServiceByName(SERVICE)
        self.pool = pool
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self.calls = {}
        for method in self.service.methods:
            request = message_factory.GetMessageClass(method.input_type)
            answer = message_factory.GetMessageClass(method.output_type)
            make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
            self.calls[method.name] = (request, make("/%s/%s" % (SERVICE, method.name),
                                                     request_serializer=request.SerializeToString,
                                                     response_deserializer=answer.FromString))

    def message(self, name):
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName("baton.v1." + name))

    def sampling(self, **fields):
        """temperature=0 becomes {value: 0}; lists, maps and plain fields are as they are."""
        params = self.message("SamplingParams")()
        for name, value in fields.items():
            field = params.DESCRIPTOR.fields_by_name[name]
            if name == "logit_bias":
                params.logit_bias.update(value)
            elif isinstance(value, (list, tuple)):
                getattr(params, name).extend(value)
            elif field.message_type:
                getattr(params, name).SetInParent()
                getattr(params, name).value = value
            else:
                setattr(params, name, value)
        return params

    def stream(self, prompt, timeout=LONG_WAIT, **sampling):
        """The running call. prompt: text, or a list of ids."""
        request, call = self.calls["Generate"]
        ask = request(sampling=self.sampling(**sampling))
        if isinstance(prompt, str):
            ask.text = prompt
        else:
            ask.tokens.SetInParent()
            ask.tokens.ids.extend(prompt)
        return call(ask, timeout=timeout)

    def generate(self, prompt, timeout=LONG_WAIT, **sampling):
        return Answer(self.stream(prompt, timeout, **sampling))

    def ask(self, method, timeout=LONG_WAIT, **fields):
        request, call = self.calls[method]
        return call(request(**fields), timeout=timeout)

    def refusal(self, prompt, **sampling):
        try:
            answer = self.generate(prompt, **sampling)
        except grpc.RpcError as error:
            return error
        raise AssertionError("was served: %r" % answer.text)


class Answer:
    """Reads a stream to its end and keeps every message's rules in view."""

    def __init__(self, stream):
        self.messages = list(stream)
        assert self.messages, "a stream without a message"
        first, last = self.messages[0], self.messages[-1]
        assert first.request_id and first.prompt_token_ids, "the first message lacks its head"
        assert all(not m.request_id and not m.prompt_token_ids for m in self.messages[1:]), "a second head"
        assert last.HasField("usage") and last.HasField("route"), "the last message lacks its tail"
        assert not any(m.HasField("usage") or m.HasField("route") for m in self.messages[:-1]), "a second tail"
        self.prompt_ids, self.seed = list(first.prompt_token_ids), first.seed
        self.usage, self.route = last.usage, last.route
        self.prompt_logprobs = [entry for m in self.messages for entry in m.prompt_logprobs]
        self.sequences = {}
        for m in self.messages:
            s = self.sequences.setdefault(m.index, Sequence())
            assert s.finish == 0, "news of a sequence that has ended"
            s.text += m.text
            s.ids += list(m.token_ids)
            s.logprobs += list(m.logprobs)
            s.finish = m.finish_reason
            s.stop_text = m.stop_text
            s.stop_token = m.stop_token.value if m.HasField("stop_token") else None
        assert all(s.finish for s in self.sequences.values()), "a sequence without an end"
        assert self.usage.completion_tokens == sum(len(s.ids) for s in self.sequences.values())
        assert self.usage.prompt_tokens == len(self.prompt_ids)
        for name in ("text", "ids", "logprobs", "finish", "stop_text", "stop_token"):
            setattr(self, name, getattr(self.sequences[0], name))


def strange_messages(chance, message):
    """One to four messages: noise, a valid one with random fields, such a one with a bit turned over."""
    for _ in range(1 + chance.randrange(4)):
        if chance.random() < 0.3:
            yield chance.randbytes(chance.choice((0, 1, 9, 200, 5000)))
            continue
        data = bytearray(fill(chance, message(), 3).SerializeToString())
        if data and chance.random() < 0.4:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield bytes(data)


def lies(chance, message, done):
    """A router's words: a true hello, then work with fields at and beyond their bounds."""
    hello = message()
    hello.hello.protocol_version = 2
    hello.hello.router_boot_id = chance.randrange(1, 2**60)
    yield hello
    for number in range(chance.randrange(1, 20)):
        ask = message()
        kind = chance.choice(("reserve", "reserve", "reserve", "prefill", "prefill_lost", "cancel"))
        leg = ask.prefill_lost if kind == "prefill_lost" else ask.cancel.leg if kind == "cancel" else getattr(ask, kind).work.leg
        leg.hi, leg.lo = hello.hello.router_boot_id, chance.randrange(1, 12) << 24
        if kind in ("reserve", "prefill"):
            work = getattr(ask, kind).work
            odd = lambda usual, *others: usual if chance.random() < 0.8 else chance.choice(others)  # noqa: E731
            n = odd(1, 0, 2, 64, 65, 2**32 - 1)
            work.sequence_count, work.sequence_first = n, odd(0, 1, 2**31)
            work.prompt.extend([odd(5, 0, 2047)] * odd(20, 0, 1, 2000, 2047, 2048, 60000))
            if chance.random() < 0.1:
                work.prompt.append(chance.choice((2048, 2**32 - 1)))
            work.output.extend([7] * odd(0, 1, 30, 5000))
            work.age_ns, work.resumed = odd(0, 2**63, 2**64 - 1), chance.random() < 0.2
            work.priority, work.cache_salt = odd(0, -2**31, 2**31 - 1), odd(0, 1, 2**64 - 1)
            work.params.temperature = odd(0.0, float("nan"), -1.0, 1e30)
            work.params.top_p, work.params.repetition_penalty = odd(1.0, 0.0, float("inf")), odd(1.0, 0.0, -1.0)
            work.params.n, work.params.max_tokens = odd(n, 0, 1, 2**32 - 1), odd(30, 0, 1, 2028, 2**32 - 1)
            work.params.logprobs, work.params.prompt_logprobs = odd(-1, 0, 20, 21, -2**31), odd(-1, 0, 20, 2**31 - 1)
            work.params.stop_tokens.extend([1] * odd(0, 1, 65, 3000))
            for _ in range(odd(0, 1, 1025)):
                work.params.logit_bias.add(token=odd(3, 2**32 - 1), bias=odd(1.0, float("nan"), 1e9))
        if kind == "reserve":
            ask.reserve.local_prefill, ask.reserve.wait_ms = chance.random() < 0.5, odd(0, 100, 2**32 - 1)
            ask.reserve.local_max_tokens = odd(0, 1, 20, 2**32 - 1)
        elif kind == "prefill":
            ask.prefill.ticket = chance.randbytes(odd(64, 0, 1, 500, 5000))
            ask.prefill.grant_first = odd(0, 1, 2, 2**32 - 1)
        elif kind == "cancel":
            ask.cancel.one_sequence, ask.cancel.sequence = chance.random() < 0.5, chance.choice((0, 1, 2**32 - 1))
        yield ask
    done.wait(0.2)


def fill(chance, message, depth):
    for field in message.DESCRIPTOR.fields:
        if chance.random() < 0.4:
            continue
        if field.message_type:
            if depth == 0 or field.message_type.GetOptions().map_entry:
                continue
            if field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
                for _ in range(chance.randrange(3)):
                    fill(chance, getattr(message, field.name).add(), depth - 1)
            else:
                getattr(message, field.name).SetInParent()
                fill(chance, getattr(message, field.name), depth - 1)
            continue
        value = {field.CPPTYPE_STRING: lambda: "x" * chance.choice((0, 1, 300)), field.CPPTYPE_BOOL: lambda: True,
                 field.CPPTYPE_FLOAT: chance.random, field.CPPTYPE_DOUBLE: chance.random,
                 field.CPPTYPE_ENUM: lambda: chance.choice(field.enum_type.values).number,
                 field.CPPTYPE_UINT64: lambda: chance.choice((0, 1, 2**63, 2**64 - 1)),
                 field.CPPTYPE_INT64: lambda: chance.choice((0, -1, 2**62)),
                 field.CPPTYPE_INT32: lambda: chance.choice((0, -1, 2**31 - 1)),
                 field.CPPTYPE_UINT32: lambda: chance.choice((0, 1, 77, 2**31, 2**32 - 1))}[field.cpp_type]
        if field.type == field.TYPE_BYTES:
            value = lambda: chance.randbytes(chance.choice((0, 16, 32, 400)))  # noqa: E731
        if field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
            getattr(message, field.name).extend(value() for _ in range(chance.randrange(5)))
        else:
            setattr(message, field.name, value())
    return message


class Sequence:
    def __init__(self):
        self.text, self.ids, self.logprobs, self.finish = "", [], [], 0


STOP, LENGTH = 1, 2


def flat(logprobs):
    return [(e.token, e.logprob, e.rank, [(a.token, a.logprob) for a in e.alternatives]) for e in logprobs]


class ApiTest(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.split = Cluster(1, 1, router_flags=["--local-prefill-tokens=0"]).__enter__()
        cls.addClassCleanup(cls.split.__exit__, None, None, None)
        cls.alone = Cluster(0, 1).__enter__()
        cls.addClassCleanup(cls.alone.__exit__, None, None, None)
        cls.api, cls.local = Api(cls.split.router_address), Api(cls.alone.router_address)
        cls.greedy = cls.api.generate(PROMPT, temperature=0, max_tokens=40, ignore_eos=True)
        with open(os.path.join(find_model(), "config.json")) as file:
            cls.config = json.load(file)

    def tearDown(self):
        """Whatever a test did, nothing of it is left."""
        self.split.wait_idle()
        self.alone.wait_idle()

    def pieces(self, answer=None):
        """Text of each output token, so that a test can name the border between two."""
        ids = (answer or self.greedy).ids
        texts = [self.api.ask("Detokenize", ids=ids[:i]).text for i in range(len(ids) + 1)]
        return [b[len(a):] for a, b in zip(texts, texts[1:])]

    # ---- the surface ----

    def test_reflection_describes_every_field(self):
        methods = {m.name: (m.client_streaming, m.server_streaming) for m in self.api.service.methods}
        self.assertEqual(methods, {"Generate": (False, True), "Chat": (False, True), "Tokenize": (False, False),
                                   "Detokenize": (False, False), "GetModel": (False, False), "GetStatus": (False, False)})
        fields = self.api.message("SamplingParams").DESCRIPTOR.fields_by_name
        for name in ("temperature top_k top_p min_p repetition_penalty presence_penalty frequency_penalty logit_bias seed "
                     "max_tokens min_tokens ignore_eos stop stop_token_ids logprobs prompt_logprobs n").split():
            self.assertIn(name, fields)
        database = ProtoReflectionDescriptorDatabase(self.api.channel)
        self.assertLessEqual({SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"},
                             set(database.get_services()))

    def test_health_of_every_service(self):
        ask, serving = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse.SERVING
        for service in ("", SERVICE):
            self.assertEqual(self.api.health.Check(ask(service=service), timeout=LONG_WAIT).status, serving, service)
            watch = self.api.health.Watch(ask(service=service), timeout=LONG_WAIT)
            self.assertEqual(next(watch).status, serving, service)
            watch.cancel()
        with self.assertRaises(grpc.RpcError) as raised:
            self.api.health.Check(ask(service="no.such"), timeout=LONG_WAIT)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_health_of_nodes(self):
        for name in self.split.nodes:
            address = next(f.split("=", 1)[1] for f in self.split.nodes[name].argv if f.startswith("--listen="))
            with grpc.insecure_channel(address) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=LONG_WAIT)
                self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING, name)

    def test_get_model(self):
        model = self.api.ask("GetModel")
        self.assertEqual(model.architecture, "LlamaForCausalLM")
        self.assertEqual(model.vocab_size, self.config["vocab_size"])
        self.assertEqual(model.context_tokens, self.config["max_position_embeddings"])
        self.assertEqual(list(model.eos_token_ids), self.config["eos_token_id"])
        self.assertEqual(model.chat_template, "model")
        self.assertRegex(model.model_hash, "^[0-9a-f]{8,}$")
        self.assertAlmostEqual(model.defaults.temperature.value, 0.7, places=5)
        self.assertAlmostEqual(model.defaults.top_p.value, 0.95, places=5)

    def test_get_status(self):
        status = self.api.ask("GetStatus")
        self.assertTrue(status.ready)
        self.assertEqual({n.role for n in status.nodes}, {"prefill", "decode"})
        for node in status.nodes:
            self.assertTrue(node.attached)
            self.assertGreater(node.blocks_total, 0)
            self.assertEqual(node.blocks_total,
                             node.blocks_free + node.blocks_held + node.blocks_cached + node.blocks_quarantined)

    def test_tokenize_and_back(self):
        for text in ("", "Hello", "größe 猫 🏃 \tx\n", "a\0b", " " * 50, "x" * 3000):
            ids = list(self.api.ask("Tokenize", text=text, no_special_tokens=True).ids)
            self.assertEqual(self.api.ask("Detokenize", ids=ids, show_special_tokens=True).text, text, repr(text))
            with_bos = self.api.ask("Tokenize", text=text)
            self.assertEqual(list(with_bos.ids), [self.config["bos_token_id"]] + ids)
            self.assertEqual(len(with_bos.texts), len(with_bos.ids))
        self.assertEqual(list(self.greedy.prompt_ids), list(self.api.ask("Tokenize", text=PROMPT).ids))
        with self.assertRaises(grpc.RpcError) as raised:
            self.api.ask("Detokenize", ids=[1, 4_000_000])
        self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("ids[1]", raised.exception.details())

    def test_chat(self):
        chat, message = self.api.calls["Chat"][0], self.api.message("ChatMessage")
        messages = [message(role="user", content="Who are you?")]
        answer = Answer(self.api.calls["Chat"][1](chat(messages=messages, sampling=self.api.sampling(temperature=0, max_tokens=60)),
                                                  timeout=LONG_WAIT))
        rendered = self.api.ask("Tokenize", chat=chat(messages=messages))
        self.assertEqual(answer.prompt_ids, list(rendered.ids))
        self.assertEqual(rendered.rendered, "<|begin_of_text|><|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
        again = self.api.generate(answer.prompt_ids, temperature=0, max_tokens=60)
        self.assertEqual(again.ids, answer.ids)
        self.assertEqual(answer.finish, STOP)
        with self.assertRaises(grpc.RpcError) as raised:
            list(self.api.calls["Chat"][1](chat(), timeout=LONG_WAIT))
        self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("messages", raised.exception.details())

    def test_a_cached_prompt_is_told_and_salts_keep_it_apart(self):
        """The second asker of a prompt is told how much was there; another salt is another cache."""
        words = "A prompt of this test alone, long enough for some blocks: " + " ".join(str(n * n) for n in range(40))

        def ask(text, **fields):
            request, call = self.api.calls["Generate"]
            return Answer(call(request(text=text, sampling=self.api.sampling(temperature=0, max_tokens=8), **fields),
                               timeout=LONG_WAIT))

        first, again = ask(words), ask(words)
        self.assertEqual(first.usage.cached_prompt_tokens, 0)
        self.assertGreater(again.usage.cached_prompt_tokens, len(first.prompt_ids) - 32)
        self.assertLess(again.usage.cached_prompt_tokens, len(first.prompt_ids))
        self.assertLess(again.route.kv_bytes, first.route.kv_bytes)
        self.assertGreater(again.route.prefill_cached_tokens, 0)
        salted, salted_again = ask(words, cache_salt="a\0b"), ask(words, cache_salt="a\0b")
        self.assertEqual(salted.usage.cached_prompt_tokens, 0)
        self.assertEqual(salted.route.prefill_cached_tokens, 0)
        self.assertEqual(salted_again.usage.cached_prompt_tokens, again.usage.cached_prompt_tokens)
        self.assertEqual(ask(words, cache_salt="a").usage.cached_prompt_tokens, 0)
        urgent = ask(words, priority=2**31 - 1)
        for answer in (again, salted, salted_again, urgent):
            self.assertEqual(answer.ids, first.ids)
        for node in self.api.ask("GetStatus").nodes:
            self.assertGreater(node.cache_tokens_found, 0, node.name)
            self.assertGreater(node.cache_tokens_asked, node.cache_tokens_found, node.name)
        with self.assertRaises(grpc.RpcError) as raised:
            ask(words, cache_salt="s" * 257)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("cache_salt", raised.exception.details())

    # ---- ranges ----

    def test_every_range_error_names_its_field(self):
        vocab = self.config["vocab_size"]
        cases = {
            "temperature": (-0.1, 100.5, float("nan"), float("inf")),
            "top_p": (0.0, -1.0, 1.001, float("nan")),
            "min_p": (-0.01, 1.0, float("nan")),
            "repetition_penalty": (0.0, -1.0, float("nan"), float("inf")),
            "presence_penalty": (-2.01, 2.01, float("nan")),
            "frequency_penalty": (-2.01, 2.01, float("nan")),
            "n": (0, 65, 2**32 - 1),
            "max_tokens": (0, 2**32 - 1, self.config["max_position_embeddings"]),
            "min_tokens": (41, 2**32 - 1),
            "logprobs": (21, 2**31, 2**32 - 1),
            "prompt_logprobs": (21, 2**31, 2**32 - 1),
            "stop": ([""], ["x" * 257], ["x"] * 17, ["a\0b"]),
            "stop_token_ids": ([vocab], [1] * 65, [2**32 - 1]),
            "logit_bias": ({vocab: 1.0}, {1: 100.5}, {1: float("nan")}, {i: 0.5 for i in range(1025)}),
        }
        for name, values in cases.items():
            for value in values:
                with self.subTest(field=name, value=str(value)[:40]):
                    fields = {"temperature": 0, "max_tokens": 40, name: value}
                    error = self.api.refusal(PROMPT, **fields)
                    self.assertEqual(error.code(), grpc.StatusCode.INVALID_ARGUMENT)
                    self.assertIn(name, error.details())

    def test_values_at_the_edges_are_taken(self):
        for fields in ({"temperature": 100}, {"top_p": 1e-6}, {"min_p": 0.999}, {"top_k": 1}, {"top_k": 2**32 - 1},
                       {"presence_penalty": -2}, {"frequency_penalty": 2}, {"repetition_penalty": 0.0001},
                       {"min_tokens": 4}, {"n": 64, "max_tokens": 1}, {"logprobs": 20}, {"logprobs": 0},
                       {"stop": ["x" * 256] * 16}, {"stop_token_ids": list(range(64)), "min_tokens": 4},
                       {"logit_bias": {i: -100.0 for i in range(1024)}}, {"seed": 2**64 - 1}):
            with self.subTest(**{name: str(value)[:40] for name, value in fields.items()}):
                fields = {"temperature": 1, "max_tokens": 4, "seed": 1, "ignore_eos": True, **fields}
                want, got = self.local.generate(PROMPT, **fields), self.api.generate(PROMPT, **fields)
                self.assertEqual([s.ids for _, s in sorted(want.sequences.items())],
                                 [s.ids for _, s in sorted(got.sequences.items())])
                self.assertGreaterEqual(len(got.ids), 1)

    def test_bad_prompts(self):
        invalid, vocab = grpc.StatusCode.INVALID_ARGUMENT, self.config["vocab_size"]
        context = self.config["max_position_embeddings"]
        request, call = self.api.calls["Generate"]
        for what, ask, names in (("no prompt", request(), "prompt"),
                                 ("no ids", request(tokens=self.api.message("TokenIds")()), "prompt"),
                                 ("id", request(tokens=self.api.message("TokenIds")(ids=[5, vocab])), "tokens.ids[1]"),
                                 ("huge id", request(tokens=self.api.message("TokenIds")(ids=[2**32 - 1])), "tokens.ids[0]"),
                                 ("empty", request(text="", no_special_tokens=True), "empty"),
                                 ("long", request(tokens=self.api.message("TokenIds")(ids=[5] * context)), str(context)),
                                 ("long text", request(text=LONG * 10), str(context)),
                                 ("one megabyte", request(text="word " * 210_000), str(context))):
            with self.subTest(what), self.assertRaises(grpc.RpcError) as raised:
                list(call(ask, timeout=LONG_WAIT))
            self.assertEqual(raised.exception.code(), invalid, what)
            self.assertIn(names, raised.exception.details(), what)

    def test_bytes_that_are_no_request(self):
        """Foreign bytes are an error of that call alone; invalid UTF-8 is text like any other or refused by name."""
        raw = self.api.channel.unary_stream("/%s/Generate" % SERVICE)
        for what, data in (("noise", bytes(range(256)) * 3), ("cut", b"\x0a\x7f" + b"a" * 5), ("group", b"\x0b\x0b\x0b"),
                           ("deep", b"\x1a\xff\xff\xff\xff\x0f")):
            with self.subTest(what), self.assertRaises(grpc.RpcError) as raised:
                list(raw(data, timeout=LONG_WAIT))
            self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT, what)
        sampling = self.api.sampling(temperature=0, max_tokens=2).SerializeToString()
        text = b"\xff\xfe bad \xc3( \xed\xa0\x80 \xf0\x9f"
        ask = b"\x0a" + bytes([len(text)]) + text + b"\x1a" + bytes([len(sampling)]) + sampling
        try:
            self.assertTrue(list(raw(ask, timeout=LONG_WAIT)))
        except grpc.RpcError as error:
            self.assertEqual(error.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIn("text", error.details())
        self.assertEqual(self.api.generate(PROMPT, temperature=0, max_tokens=40, ignore_eos=True).ids, self.greedy.ids)

    def test_empty_text_is_its_bos_token(self):
        """As in the references: what the tokenizer puts around a prompt is prompt enough."""
        answer = self.api.generate("", temperature=0, max_tokens=3)
        self.assertEqual(answer.prompt_ids, [self.config["bos_token_id"]])

    def test_prompt_that_fills_the_context(self):
        context = self.config["max_position_embeddings"]
        ids = (self.greedy.prompt_ids * context)[:context - 1]
        want = self.local.generate(ids, temperature=0, max_tokens=1, ignore_eos=True)
        got = self.api.generate(ids, temperature=0, ignore_eos=True)  # without max_tokens: what there is room for
        self.assertEqual(got.ids, want.ids)
        self.assertEqual((len(got.ids), got.finish), (1, LENGTH))
        error = self.api.refusal(ids, temperature=0, max_tokens=2)
        self.assertIn("max_tokens", error.details())

    def test_prompt_of_one_token(self):
        for token in (0, 5, 2047):
            want = self.local.generate([token], temperature=0, max_tokens=5, ignore_eos=True, prompt_logprobs=1)
            got = self.api.generate([token], temperature=0, max_tokens=5, ignore_eos=True, prompt_logprobs=1)
            self.assertEqual(got.ids, want.ids)
            self.assertEqual(got.prompt_logprobs, [])

    def test_one_token(self):
        got = self.api.generate(PROMPT, temperature=0, max_tokens=1)
        self.assertEqual((got.ids, got.finish), (self.greedy.ids[:1], LENGTH))

    # ---- stops ----

    def stopped(self, texts, **fields):
        return self.api.generate(PROMPT, temperature=0, max_tokens=40, ignore_eos=True, stop=texts, **fields)

    def test_stop_text_across_a_border_of_tokens(self):
        pieces = self.pieces()
        for i in range(1, 12):
            with self.subTest(border=i):
                stop = pieces[i - 1][-2:] + pieces[i][:2]
                at = self.greedy.text.index(stop)
                got = self.stopped([stop])
                self.assertEqual((got.text, got.finish, got.stop_text), (self.greedy.text[:at], STOP, stop))
                shown = self.stopped([stop], include_stop=True)
                self.assertEqual((shown.text, shown.finish), (self.greedy.text[:at + len(stop)], STOP))
                # The tokens end with the one that completed the stop text.
                self.assertEqual(got.ids, self.greedy.ids[:len(got.ids)])
                self.assertIn(stop, "".join(pieces[:len(got.ids)]))
                self.assertNotIn(stop, "".join(pieces[:len(got.ids) - 1]))

    def test_stop_text_over_many_tokens(self):
        stop = "".join(self.pieces()[2:9])
        got = self.stopped([stop])
        self.assertEqual(got.text, self.greedy.text[:self.greedy.text.index(stop)])

    def test_first_of_several_stops(self):
        pieces = self.pieces()
        early, late = pieces[4].strip() or pieces[4], pieces[9]
        cut = min(self.greedy.text.index(early), self.greedy.text.index(late))
        for order in ([early, late], [late, early], ["never there", late, early]):
            self.assertEqual(self.stopped(order).text, self.greedy.text[:cut])

    def test_stop_at_the_very_first_token(self):
        first = self.pieces()[0]
        got = self.stopped([first])
        self.assertEqual((got.text, got.ids, got.finish, got.stop_text), ("", self.greedy.ids[:1], STOP, first))
        self.assertEqual(self.stopped([first], include_stop=True).text, first)

    def test_text_that_only_begins_like_a_stop_is_kept(self):
        self.assertEqual(self.stopped([self.greedy.text[10:30] + "\x01", self.greedy.text[-6:] + "#"]).text, self.greedy.text)

    def test_characters_of_several_tokens(self):
        """Text comes in whole characters, and a stop text is found inside and behind them."""
        text = "x 猫🏃é y"
        ids = list(self.api.ask("Tokenize", text=text, no_special_tokens=True).ids)
        self.assertGreater(len(ids), len(text))  # characters of more than one token, that is
        # A bias as strong as may be forces one token; twice in a row needs min_p, so a chain of
        # tokens is forced one request at a time: what follows the prompt's first half character
        # must never be shown as half.
        for cut in range(1, len(ids)):
            answer = self.api.generate(ids[:cut], temperature=0, max_tokens=1, ignore_eos=True, logit_bias={ids[cut]: 100.0})
            answer.text.encode()
            self.assertEqual(answer.ids, [ids[cut]])
        runner = list(self.api.ask("Tokenize", text="🏃", no_special_tokens=True).ids)
        bias = {token: 100.0 for token in runner}
        answer = self.api.generate(PROMPT, temperature=1, seed=4, max_tokens=60, logit_bias=bias, ignore_eos=True)
        self.assertEqual(answer.text, self.api.ask("Detokenize", ids=answer.ids).text)
        if "\ufffd" in answer.text:
            got = self.api.generate(PROMPT, temperature=1, seed=4, max_tokens=60, logit_bias=bias, ignore_eos=True,
                                    stop=["\ufffd"])
            self.assertEqual(got.text, answer.text[:answer.text.index("\ufffd")])

    def test_stop_token(self):
        token = self.greedy.ids[6]
        at = self.greedy.ids.index(token)
        got = self.api.generate(PROMPT, temperature=0, max_tokens=40, stop_token_ids=[token])
        self.assertEqual((got.ids, got.finish, got.stop_token), (self.greedy.ids[:at + 1], STOP, token))
        pieces = self.pieces()
        self.assertEqual(got.text, "".join(pieces[:at]))
        shown = self.api.generate(PROMPT, temperature=0, max_tokens=40, stop_token_ids=[token], include_stop=True)
        self.assertEqual(shown.text, "".join(pieces[:at + 1]))

    def test_min_tokens_outlasts_stops(self):
        first = self.pieces()[0]
        got = self.stopped([first], min_tokens=20, stop_token_ids=[self.greedy.ids[1]])
        self.assertGreaterEqual(len(got.ids), 20)

    def test_end_tokens(self):
        eos = self.config["eos_token_id"][1]
        force = {eos: 100.0}
        got = self.api.generate(PROMPT, temperature=0, max_tokens=9, logit_bias=force)
        self.assertEqual((got.ids, got.text, got.finish, got.stop_token), ([eos], "", STOP, None))
        got = self.api.generate(PROMPT, temperature=0, max_tokens=9, logit_bias=force, ignore_eos=True)
        self.assertEqual((got.ids, got.finish), ([eos] * 9, LENGTH))
        got = self.api.generate(PROMPT, temperature=0, max_tokens=9, logit_bias=force, min_tokens=5)
        self.assertEqual(got.finish, STOP)
        self.assertGreaterEqual(len(got.ids), 5)

    def test_logit_bias_forces_and_bans(self):
        got = self.api.generate(PROMPT, temperature=0, max_tokens=5, logit_bias={77: 100.0}, ignore_eos=True)
        self.assertEqual(got.ids, [77] * 5)
        banned = set(self.greedy.ids)
        got = self.api.generate(PROMPT, temperature=0, max_tokens=40, ignore_eos=True, logit_bias={t: -100.0 for t in banned})
        self.assertFalse(banned & set(got.ids))

    # ---- logprobs ----

    def test_logprobs(self):
        fields = dict(temperature=0, max_tokens=24, ignore_eos=True, logprobs=20, prompt_logprobs=5)
        got, want = self.api.generate(LONG, **fields), self.local.generate(LONG, **fields)
        self.assertEqual(got.ids, want.ids)
        # Bit for bit: the split computes the same.
        self.assertEqual(flat(got.logprobs), flat(want.logprobs))
        self.assertEqual(flat(got.prompt_logprobs), flat(want.prompt_logprobs))
        self.assertEqual([entry.token for entry in got.prompt_logprobs], got.prompt_ids[1:])
        self.assertEqual([entry.token for entry in got.logprobs], got.ids)
        for entry, count in [(e, 20) for e in got.logprobs] + [(e, 5) for e in got.prompt_logprobs]:
            values = [a.logprob for a in entry.alternatives]
            self.assertEqual(len(values), count)
            self.assertEqual(values, sorted(values, reverse=True))
            self.assertLessEqual(sum(2.718281828 ** v for v in values), 1.0001)
            self.assertEqual([a.rank for a in entry.alternatives], list(range(1, count + 1)))
            if entry.rank <= count:
                self.assertEqual(entry.alternatives[entry.rank - 1].token, entry.token)
                self.assertEqual(entry.alternatives[entry.rank - 1].logprob, entry.logprob)
            else:
                self.assertLessEqual(entry.logprob, values[-1])
        self.assertTrue(all(entry.rank == 1 for entry in got.logprobs))
        # What a token of the prompt had is what it would have had as output.
        whole = self.api.generate(got.prompt_ids + got.ids, temperature=0, max_tokens=1, prompt_logprobs=20)
        self.assertEqual(flat(whole.prompt_logprobs[-len(got.ids):]), flat(got.logprobs))

    def test_logprobs_of_sampled_tokens(self):
        fields = dict(temperature=1.5, seed=9, max_tokens=24, ignore_eos=True, logprobs=3, n=3)
        got, want = self.api.generate(PROMPT, **fields), self.local.generate(PROMPT, **fields)
        for index in range(3):
            self.assertEqual(flat(got.sequences[index].logprobs), flat(want.sequences[index].logprobs))
            self.assertEqual([e.token for e in got.sequences[index].logprobs], got.sequences[index].ids)

    # ---- seeds and n ----

    def test_seeds(self):
        fields = dict(temperature=1, max_tokens=24, ignore_eos=True)
        one, two = (self.api.generate(PROMPT, seed=12345, **fields) for _ in range(2))
        self.assertEqual(one.ids, two.ids)
        self.assertEqual(one.seed, 12345)
        self.assertNotEqual(one.ids, self.api.generate(PROMPT, seed=12346, **fields).ids)
        drawn = [self.api.generate(PROMPT, **fields) for _ in range(4)]
        self.assertEqual(len({a.seed for a in drawn}), 4)
        self.assertEqual(len({tuple(a.ids) for a in drawn}), 4)
        self.assertEqual(self.api.generate(PROMPT, seed=drawn[0].seed, **fields).ids, drawn[0].ids)
        self.assertEqual(self.api.generate(PROMPT, seed=0, **fields).ids, self.api.generate(PROMPT, seed=0, **fields).ids)

    def test_n(self):
        """Sequences are independent draws, sequence 0 is what n = 1 gives, and n takes nothing from the others."""
        fields = dict(temperature=1, max_tokens=24, ignore_eos=True, seed=77)
        four = self.api.generate(PROMPT, n=4, **fields)
        self.assertEqual(sorted(four.sequences), [0, 1, 2, 3])
        self.assertEqual(len({tuple(s.ids) for s in four.sequences.values()}), 4)
        self.assertEqual(four.sequences[0].ids, self.api.generate(PROMPT, **fields).ids)
        two = self.api.generate(PROMPT, n=2, **fields)
        self.assertEqual([two.sequences[i].ids for i in (0, 1)], [four.sequences[i].ids for i in (0, 1)])
        greedy = self.api.generate(PROMPT, n=3, temperature=0, max_tokens=8)
        self.assertEqual(len({tuple(s.ids) for s in greedy.sequences.values()}), 1)

    def test_n_with_different_ends(self):
        """One sequence's stop ends that one alone."""
        fields = dict(temperature=1, seed=5, max_tokens=40, ignore_eos=True, n=6)
        free = self.api.generate(PROMPT, **fields)
        got = self.api.generate(PROMPT, stop=["."], **fields)
        for index, sequence in free.sequences.items():
            cut = sequence.text.find(".")
            self.assertEqual(got.sequences[index].text, sequence.text if cut < 0 else sequence.text[:cut])
            self.assertEqual(got.sequences[index].finish, LENGTH if cut < 0 else STOP)

    # ---- many, slow, late and gone ----

    def test_a_hundred_streams(self):
        fields = [dict(temperature=1, seed=i % 5, max_tokens=12, ignore_eos=True) for i in range(100)]
        want = [self.local.generate(PROMPT, **fields[i]).ids for i in range(5)]
        streams = [self.api.stream(PROMPT, **f) for f in fields]
        for i, stream in enumerate(streams):
            self.assertEqual(Answer(stream).ids, want[i % 5])

    def test_deadline(self):
        with self.assertRaises(grpc.RpcError) as raised:
            list(self.api.stream(PROMPT, timeout=0.25, temperature=0, max_tokens=1900, ignore_eos=True))
        self.assertEqual(raised.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.split.wait_idle(timeout=10)

    def test_a_client_that_leaves_frees_everything_at_once(self):
        """The promise is 100 ms; a shared machine stalls, so the median is held to it and the rest to 2 s."""
        waits = []
        for round_ in range(9):
            stream = self.api.stream(LONG, temperature=0, max_tokens=1000, ignore_eos=True, n=2)
            for _ in range(1 + round_ * 3):
                next(stream)
            self.assertGreater(self.held("decode-0"), 0)
            start = time.monotonic()
            stream.cancel()
            while self.held("decode-0") + self.held("prefill-0") + self.split.metrics("router")["baton_router_requests_live"] > 0:
                self.assertLess(time.monotonic() - start, 20)
            waits.append(time.monotonic() - start)
        waits.sort()
        print("free on all three after a cancel, ms:", [round(w * 1000, 1) for w in waits])
        self.assertLess(waits[len(waits) // 2], 0.1)
        self.assertLess(waits[-1], 2)

    def held(self, name):
        return sum(value for key, value in self.split.metrics(name).items()
                   if key.startswith("baton_kv_blocks") and ('"held"' in key or '"quarantined"' in key))

    def test_a_cancel_before_the_first_token(self):
        for _ in range(20):
            self.api.stream(LONG, temperature=0, max_tokens=500, ignore_eos=True).cancel()
        self.split.wait_idle(timeout=20)

    def test_a_client_that_does_not_read_blocks_nobody(self):
        slow = self.api.stream(PROMPT, temperature=0, max_tokens=1900, ignore_eos=True, n=4, logprobs=20)
        next(slow)
        for _ in range(8):
            got = self.api.generate(PROMPT, temperature=0, max_tokens=40, ignore_eos=True)
            self.assertEqual(got.ids, self.greedy.ids)
        time.sleep(1)
        slow.cancel()

    def test_noise_on_the_streams_between_processes(self):
        """Attach and KvLink of the nodes take whatever a stranger sends: the stranger's stream ends, no other."""
        seed = int(os.environ.get("BATON_TEST_SEED", random.randrange(1 << 30)))
        print("BATON_TEST_SEED=%d" % seed)
        chance = random.Random(seed)
        for name, process in self.split.nodes.items():
            address = next(f.split("=", 1)[1] for f in process.argv if f.startswith("--listen="))
            with grpc.insecure_channel(address) as channel:
                pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
                services = [s for s in ProtoReflectionDescriptorDatabase(channel).get_services() if s.startswith("baton.")]
                self.assertEqual(len(services), 2, services)
                for service in services:
                    for method in pool.FindServiceByName(service).methods:
                        path = "/%s/%s" % (service, method.name)
                        message = message_factory.GetMessageClass(method.input_type)
                        for _ in range(60):
                            call = channel.stream_stream(path)(iter(strange_messages(chance, message)), timeout=5)
                            try:
                                for _ in call:
                                    break
                            except grpc.RpcError:
                                pass
                            call.cancel()
            self.assertIsNone(process.popen.poll(), name)
        answer = self.api.generate(PROMPT, temperature=0, max_tokens=40, ignore_eos=True)
        self.assertEqual(answer.ids, self.greedy.ids)
        self.assertEqual(answer.route.transport, "shm")

    def test_a_router_that_lies(self):
        """A stranger attaches properly and then asks for nonsense: what it holds goes with its stream."""
        seed = int(os.environ.get("BATON_TEST_SEED", random.randrange(1 << 30)))
        print("BATON_TEST_SEED=%d" % seed)
        chance = random.Random(seed)
        for name, process in self.split.nodes.items():
            address = next(f.split("=", 1)[1] for f in process.argv if f.startswith("--listen="))
            with grpc.insecure_channel(address) as channel:
                pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
                kinds = {m: message_factory.GetMessageClass(pool.FindMessageTypeByName("baton.control.v1." + m))
                         for m in ("RouterMessage", "NodeMessage")}
                served = refused = 0
                for round_ in range(40):
                    call = channel.stream_stream("/baton.control.v1.NodeControl/Attach",
                                                 request_serializer=lambda m: m.SerializeToString(),
                                                 response_deserializer=kinds["NodeMessage"].FromString)
                    done = threading.Event()
                    stream = call(lies(chance, kinds["RouterMessage"], done), timeout=20)
                    try:
                        for count, answer in enumerate(stream):
                            served += answer.WhichOneof("kind") in ("reserved", "tokens")
                            refused += answer.WhichOneof("kind") == "refused"
                            if count > chance.randrange(40):
                                break
                    except grpc.RpcError:
                        pass
                    done.set()
                    stream.cancel()
                self.assertIsNone(process.popen.poll(), name)
                self.assertGreater(refused, 0)
                if name.startswith("decode"):
                    self.assertGreater(served, 0)
        answer = self.api.generate(PROMPT, temperature=0, max_tokens=40, ignore_eos=True)
        self.assertEqual(answer.ids, self.greedy.ids)

    def test_a_call_without_a_message(self):
        call = self.api.channel.stream_stream("/%s/Generate" % SERVICE)
        with self.assertRaises(grpc.RpcError) as raised:
            list(call(iter(()), timeout=LONG_WAIT))
        self.assertNotIn(raised.exception.code(), (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED))

    def test_an_unknown_method(self):
        with self.assertRaises(grpc.RpcError) as raised:
            self.api.channel.unary_unary("/%s/Generat" % SERVICE)(b"", timeout=LONG_WAIT)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.UNIMPLEMENTED)


if __name__ == "__main__":
    unittest.main(verbosity=2)
