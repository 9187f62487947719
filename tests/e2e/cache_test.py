"""What was computed once is not computed again, crosses the wire once, and changes no token.

A chat is played by token ids: each turn's prompt is the one before, its whole answer, and some new
words. The reference is one decode node alone that never saw a turn before.
"""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster  # noqa: E402

BLOCK = 16
REMOTE = ["--local-prefill-tokens=0"]
COMPUTED = "baton_node_prompt_tokens_total{"


def words(count, which):
    """Token ids that no other `which` begins with; above the special ones of the bundled model."""
    return [300 + (which * 131 + i * 17 + i * i) % 1700 for i in range(count)]


def ask(cluster, tokens, *more, max_tokens=40):
    return cluster.generate("--tokens=" + ",".join(map(str, tokens)), "--max-tokens=%d" % max_tokens, "--ignore-eos", *more)


def blocks(tokens):
    return -(-tokens // BLOCK)


GREEDY, SEEDED = ["--temperature=0"], ["--temperature=0.9", "--seed=5"]


def play(cluster, turns, which=1, flags=GREEDY, first=100, more=21, each=None):
    """Plays a chat; the answers, each with its prompt's length as `asked`."""
    prompt, answers = words(first, which), []
    for turn in range(turns):
        answer = ask(cluster, prompt, *flags)
        answer["asked"] = len(prompt)
        answers.append(answer)
        if each:
            each(turn, answer)
        prompt = prompt + answer["token_ids"] + words(more, which + 40 + turn)
    return answers


def ids(answers):
    return [answer["token_ids"] for answer in answers]


class Cache(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        with Cluster(0, 1, common=["--prefix-cache=off"]) as cluster:
            cls.greedy = ids(play(cluster, 5))
            cls.seeded = ids(play(cluster, 5, which=2, flags=SEEDED))

    def test_a_chat_computes_and_sends_only_what_is_new(self):
        with Cluster(1, 1, router_flags=REMOTE) as cluster:
            seen = {"computed": 0, "known_d": 0, "known_p": 0, "block_bytes": 0}

            def check(turn, answer):
                asked = answer["asked"]
                cached = answer["usage"]["cached_prompt_tokens"]
                self.assertEqual(cached, seen["known_d"] // BLOCK * BLOCK, "turn %d" % turn)
                self.assertEqual(answer["route"]["prefill_cached_tokens"], seen["known_p"] // BLOCK * BLOCK, "turn %d" % turn)
                sent = blocks(asked) - cached // BLOCK
                if turn == 0:
                    seen["block_bytes"] = answer["route"]["kv_bytes"] // sent
                self.assertEqual(answer["route"]["kv_bytes"], sent * seen["block_bytes"], "turn %d" % turn)
                computed = cluster.sum_metric("prefill-0", COMPUTED)
                self.assertEqual(computed - seen["computed"], asked - answer["route"]["prefill_cached_tokens"], "turn %d" % turn)
                seen["computed"] = computed
                # D has prompt and output but for the last token, which nobody computed; P has its prompts.
                seen["known_d"] = asked + len(answer["token_ids"]) - 1
                seen["known_p"] = asked
            self.assertEqual(ids(play(cluster, 5, each=check)), self.greedy)
            self.assertEqual(cluster.sum_metric("decode-0", COMPUTED), 0)
            cluster.wait_idle()

    def test_seeded_sampling_and_both_cables(self):
        for cable in ("shm", "tcp"):
            with self.subTest(cable=cable), Cluster(1, 1, common=["--cables=" + cable], router_flags=REMOTE) as cluster:
                answers = play(cluster, 5, which=2, flags=SEEDED)
                self.assertEqual(ids(answers), self.seeded)
                self.assertTrue(all(answer["usage"]["cached_prompt_tokens"] > 0 for answer in answers[1:]))
                self.assertEqual({answer["route"]["transport"] for answer in answers}, {cable})

    def test_alone_and_with_defaults(self):
        for prefill in (0, 1):
            with self.subTest(prefill=prefill), Cluster(prefill, 1) as cluster:
                self.assertEqual(ids(play(cluster, 5)), self.greedy)
                answers = play(cluster, 5, which=2, flags=SEEDED)
                self.assertEqual(ids(answers), self.seeded)
                for answer in answers[1:]:
                    self.assertGreaterEqual(answer["usage"]["cached_prompt_tokens"], answer["asked"] - 21 - BLOCK)
                cluster.wait_idle()

    def test_off_means_off(self):
        with Cluster(1, 1, common=["--prefix-cache=off"], router_flags=REMOTE) as cluster:
            answers = play(cluster, 3)
            self.assertEqual(ids(answers), self.greedy[:3])
            for answer in answers:
                self.assertEqual(answer["usage"]["cached_prompt_tokens"], 0)
                self.assertEqual(answer["route"]["prefill_cached_tokens"], 0)
            self.assertEqual(cluster.sum_metric("prefill-0", COMPUTED), sum(answer["asked"] for answer in answers))
            self.assertEqual([node["blocks_cached"] for node in cluster.status()["nodes"]], [0, 0])

    def test_the_same_prompt_again(self):
        """All of it is known; one token is computed all the same, for somebody must sample."""
        with Cluster(1, 1, router_flags=REMOTE) as cluster:
            for length in (BLOCK - 1, BLOCK, BLOCK + 1, 6 * BLOCK, 6 * BLOCK + 5):
                with self.subTest(length=length):
                    first = ask(cluster, words(length, length), *GREEDY)
                    again = [ask(cluster, words(length, length), *GREEDY) for _ in range(3)]
                    self.assertEqual(ids(again), [first["token_ids"]] * 3)
                    for answer in again:
                        self.assertEqual(answer["usage"]["cached_prompt_tokens"], (length - 1) // BLOCK * BLOCK)
                        self.assertEqual(answer["route"]["prefill_cached_tokens"], (length - 1) // BLOCK * BLOCK)
            cluster.wait_idle()

    def test_many_at_once_share_a_prefix(self):
        system = words(8 * BLOCK + 3, 7)
        cases = [["--tokens=" + ",".join(map(str, system + words(1 + i % 5, 20 + i))), "--max-tokens=24", "--ignore-eos",
                  "--temperature=%s" % (0.8 if i % 2 else 0), "--seed=%d" % i, "--n=%d" % (1 + i % 3)] for i in range(24)]

        def run(cluster):
            return [[sequence["token_ids"] for sequence in answer["sequences"]] for answer in cluster.generate_many(cases)]
        with Cluster(0, 1, common=["--prefix-cache=off"]) as cluster:
            want = run(cluster)
        for prefill, decode, flags in ((0, 1, []), (1, 1, REMOTE), (2, 2, [])):
            with self.subTest(prefill=prefill, decode=decode), Cluster(prefill, decode, router_flags=flags) as cluster:
                self.assertEqual(run(cluster), want)
                self.assertEqual(run(cluster), want)
                cluster.wait_idle()

    def test_tenants_share_nothing(self):
        prompt = words(120, 3)
        with Cluster(1, 1, router_flags=REMOTE) as cluster:
            def cached(*flags):
                answer = ask(cluster, prompt, *GREEDY, *flags)
                tokens.append(answer["token_ids"])
                return answer["usage"]["cached_prompt_tokens"], answer["route"]["prefill_cached_tokens"]
            tokens = []
            known = 119 // BLOCK * BLOCK
            self.assertEqual(cached("--cache-salt=red"), (0, 0))
            self.assertEqual(cached("--cache-salt=blue"), (0, 0))
            self.assertEqual(cached(), (0, 0))
            for flags in (["--cache-salt=red"], ["--cache-salt=blue"], []):
                self.assertEqual(cached(*flags), (known, known))
            self.assertEqual(tokens, tokens[:1] * 6)

    def test_prompt_logprobs_are_computed_not_found(self):
        prompt = words(100, 4)
        with Cluster(1, 1, router_flags=REMOTE) as cluster:
            first = ask(cluster, prompt, "--prompt-logprobs=2", *GREEDY)
            again = ask(cluster, prompt, "--prompt-logprobs=2", *GREEDY)
            self.assertEqual(len(first["prompt_logprobs"]), 99)
            self.assertEqual(again["prompt_logprobs"], first["prompt_logprobs"])
            self.assertEqual(again["token_ids"], first["token_ids"])
            plain = ask(cluster, prompt, *GREEDY)
            self.assertEqual(plain["token_ids"], first["token_ids"])
            self.assertEqual(plain["usage"]["cached_prompt_tokens"], 99 // BLOCK * BLOCK)

    def test_a_node_that_dies_between_turns_forgets_and_is_right(self):
        for victim in ("prefill-0", "decode-0"):
            with self.subTest(victim=victim), Cluster(1, 1, router_flags=REMOTE) as cluster:
                def kill(turn, answer):
                    if turn in (1, 2):
                        cluster.nodes[victim].kill()
                        cluster.nodes[victim].start()
                        cluster.wait_attached(2)
                answers = play(cluster, 5, each=kill)
                self.assertEqual(ids(answers), self.greedy)
                after = answers[2]
                who = after["route"]["prefill_cached_tokens"] if victim == "prefill-0" else after["usage"]["cached_prompt_tokens"]
                self.assertEqual(who, 0)
                self.assertGreater(answers[1]["usage"]["cached_prompt_tokens"], 0)
                cluster.wait_idle()

    def test_a_death_in_the_middle_of_a_turn(self):
        """The leg that resumes finds what other nodes still have, and the client sees nothing of it."""
        with Cluster(2, 2) as cluster:
            prompt = words(200, 9)
            want = ask(cluster, prompt, *GREEDY, max_tokens=1500)["text"].encode()
            for victim in ("decode-0", "decode-1", "prefill-0"):
                stream = cluster.stream("--quiet", "--tokens=" + ",".join(map(str, prompt)), "--max-tokens=1500", "--ignore-eos", *GREEDY)
                text = b""
                while len(text) < 100:
                    piece = stream.stdout.read(64)
                    self.assertTrue(piece, "it ended early")
                    text += piece
                cluster.nodes[victim].kill()
                out, err = stream.communicate(timeout=120)
                self.assertEqual(stream.returncode, 0, err)
                self.assertEqual((text + out).rstrip(b"\n"), want.rstrip(b"\n"))
                cluster.nodes[victim].start()
                cluster.wait_attached(4)
            self.assertGreaterEqual(cluster.status()["legs_resumed"], 1)
            cluster.wait_idle()

    def test_a_pool_too_small_for_what_it_remembers(self):
        """40 blocks, eight chats of up to 16 blocks: old ones are evicted, live ones never."""
        with Cluster(1, 1, common=["--kv-memory=1600KiB"], router_flags=REMOTE) as cluster:
            chats = [dict(prompt=words(60, 60 + i), got=[]) for i in range(8)]
            for turn in range(3):
                answers = cluster.generate_many(
                    [["--tokens=" + ",".join(map(str, chat["prompt"])), "--max-tokens=40", "--ignore-eos", *GREEDY] for chat in chats])
                for chat, answer in zip(chats, answers):
                    chat["got"].append(answer["token_ids"])
                    chat["prompt"] = chat["prompt"] + answer["token_ids"] + words(9, 200 + turn)
            cluster.wait_idle()
        with Cluster(0, 1, common=["--prefix-cache=off"]) as alone:
            for i, chat in enumerate(chats):
                prompt = words(60, 60 + i)
                for turn in range(3):
                    self.assertEqual(ask(alone, prompt, *GREEDY)["token_ids"], chat["got"][turn], "chat %d turn %d" % (i, turn))
                    prompt = prompt + chat["got"][turn] + words(9, 200 + turn)


class Inspection(unittest.TestCase):
    def kv(self, cluster, *flags):
        got = cluster.run("kv", "--json", *flags)
        self.assertEqual(got.returncode, 0, got.stderr)
        return {node["name"]: node for node in json.loads(got.stdout)["nodes"]}

    def test_baton_kv_says_who_holds_what(self):
        with Cluster(1, 1, router_flags=REMOTE) as cluster:
            ask(cluster, words(100, 1), *GREEDY)
            cluster.wait_idle()
            for node in self.kv(cluster).values():
                self.assertEqual(node["holders"], [])
                self.assertEqual(node["blocks_cached"] + node["blocks_free"], node["blocks_total"])
            for _ in range(10):  # the model is so small that a stream may be over before we look
                streams = [cluster.stream("--quiet", "--prompt=A", "--max-tokens=1900", "--ignore-eos", "--priority=%d" % p) for p in (-1, 3)]
                for stream in streams:
                    self.assertTrue(stream.stdout.read(20))
                node = self.kv(cluster, "--blocks")["decode-0"]
                for stream in streams:
                    stream.communicate(timeout=60)
                if len(node["holders"]) == 2:
                    break
            self.assertEqual(node["blocks_free"] + node["blocks_held"] + node["blocks_cached"] + node["blocks_quarantined"], node["blocks_total"])
            self.assertEqual(sorted(holder["priority"] for holder in node["holders"]), [-1, 3])
            held = [block for holder in node["holders"] for block in holder["blocks"]]
            self.assertEqual(len(held), len(set(held)))
            self.assertEqual(len(held), node["blocks_held"])
            for holder in node["holders"]:
                self.assertEqual(len(holder["blocks"]), holder["block_count"])
                self.assertGreaterEqual(holder["block_count"], blocks(holder["tokens"]))
            got = cluster.run("kv", "--node=127.0.0.1:1")
            self.assertNotEqual(got.returncode, 0)
            self.assertIn("127.0.0.1:1", got.stderr + got.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
