"""KV in host memory and on disk: what comes back is bit by bit what would be computed.

A pool too small for the chats that go on at the same time, tiers below it, and every way to lose
what they hold. The reference computes everything: one node alone, no cache.
"""
import os
import random
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster  # noqa: E402

CHATS, TURNS, FIRST, MORE, ANSWER = 8, 3, 150, 21, 40
POOL = "--kv-memory=1600KiB"  # 40 blocks of 16 tokens; a chat's last turn takes 20
GREEDY = ["--temperature=0"]


def words(count, which):
    return [300 + (which * 131 + i * 17 + i * i) % 1700 for i in range(count)]


def flags(prompt, *more, tokens=ANSWER):
    return ["--tokens=" + ",".join(map(str, prompt)), "--max-tokens=%d" % tokens, "--ignore-eos", *GREEDY, *more]


def start():
    return [{"prompt": words(FIRST, 60 + i), "answers": [], "cached": []} for i in range(CHATS)]


def play_turn(cluster, chats, turn):
    """One turn of every chat, one after the other: each pushes the others out of the pool."""
    for i, chat in enumerate(chats):
        answer = cluster.generate(*flags(chat["prompt"]))
        chat["answers"].append(answer["token_ids"])
        chat["cached"].append(answer["usage"]["cached_prompt_tokens"])
        chat["prompt"] = chat["prompt"] + answer["token_ids"] + words(MORE, 200 + turn + 10 * i)


def play(cluster, between=None):
    chats = start()
    for turn in range(TURNS):
        play_turn(cluster, chats, turn)
        if between:
            between(turn)
    return chats


def answers(chats):
    return [chat["answers"] for chat in chats]


class Tiers(unittest.TestCase):
    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        with Cluster(0, 1, common=["--prefix-cache=off"]) as cluster:
            cls.want = answers(play(cluster))

    def loaded(self, cluster, tier, name="decode-0"):
        return cluster.metrics(name)[next(key for key in cluster.metrics(name)
                                          if key.startswith("baton_kv_tier_loaded_total{") and '"%s"' % tier in key)]

    def found(self, chats):
        """Share of what the turns after the first could have found."""
        could = sum(len(chat["prompt"]) for chat in chats)
        return sum(sum(chat["cached"][1:]) for chat in chats) / could

    def test_without_tiers_a_small_pool_forgets(self):
        with Cluster(0, 1, common=[POOL]) as cluster:
            chats = play(cluster)
            self.assertEqual(answers(chats), self.want)
            self.assertLess(self.found(chats), 0.2)
            cluster.wait_idle()

    def test_host_memory_remembers(self):
        for prefill in (0, 1):
            with self.subTest(prefill=prefill), Cluster(prefill, 1, common=[POOL, "--kv-host-memory=32MiB"]) as cluster:
                chats = play(cluster)
                self.assertEqual(answers(chats), self.want)
                self.assertGreater(self.loaded(cluster, "host"), 0)
                self.assertGreater(self.found(chats), 0.5)
                cluster.wait_idle()

    def test_disk_remembers(self):
        with tempfile.TemporaryDirectory() as folder:
            disk = [POOL, "--kv-disk=64MiB", "--kv-disk-path=" + os.path.join(folder, "kv")]
            with Cluster(0, 1, common=disk) as cluster:
                chats = play(cluster)
                self.assertEqual(answers(chats), self.want)
                self.assertGreater(self.loaded(cluster, "disk"), 0)
                cluster.wait_idle()

    def test_both_and_a_host_too_small(self):
        """What the host gives up goes on to disk, and comes back from there."""
        with tempfile.TemporaryDirectory() as folder:
            both = [POOL, "--kv-host-memory=800KiB", "--kv-disk=64MiB", "--kv-disk-path=" + os.path.join(folder, "kv")]
            with Cluster(0, 1, common=both) as cluster:
                self.assertEqual(answers(play(cluster)), self.want)
                self.assertGreater(self.loaded(cluster, "disk"), 0)
                cluster.wait_idle()

    def test_kill_and_restart_finds_the_disk_again(self):
        with tempfile.TemporaryDirectory() as folder:
            disk = [POOL, "--kv-disk=64MiB", "--kv-disk-path=" + os.path.join(folder, "kv")]
            with Cluster(0, 1, common=disk) as cluster:
                loads = []

                def kill(turn):
                    loads.append(self.loaded(cluster, "disk"))
                    node = cluster.nodes["decode-0"]
                    node.kill()
                    node.start()
                    cluster.wait_attached(1)
                chats = play(cluster, between=kill)
                self.assertEqual(answers(chats), self.want)
                self.assertGreater(sum(sum(chat["cached"][1:]) for chat in chats), 0)
                # Each life counts its own. A turn is one life and asks each chat once: what a life
                # after the first one loaded, the file had from before it.
                self.assertGreater(sum(loads[1:]), 0, loads)
                cluster.wait_idle()

    def test_a_broken_file_is_found_out_and_computed_again(self):
        chance = random.Random(int(os.environ.get("BATON_TEST_SEED", "7")))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "kv")
            disk = [POOL, "--kv-disk=64MiB", "--kv-disk-path=" + path]
            with Cluster(0, 1, common=disk) as cluster:
                def spoil(turn):
                    node = cluster.nodes["decode-0"]
                    node.kill()
                    if turn == 0:  # a bit here and there, everywhere
                        with open(path, "r+b") as file:
                            size = os.path.getsize(path)
                            for at in range(0, size, 16384):
                                file.seek(at + chance.randrange(min(16384, size - at)))
                                byte = file.read(1)
                                file.seek(-1, os.SEEK_CUR)
                                file.write(bytes([byte[0] ^ (1 << chance.randrange(8))]))
                    else:  # cut short
                        os.truncate(path, os.path.getsize(path) // 3)
                    node.start()
                    cluster.wait_attached(1)
                self.assertEqual(answers(play(cluster, between=spoil)), self.want)
                cluster.wait_idle()

    def test_a_flipped_bit_while_it_runs(self):
        """The node has the file open; its bytes change below it. A checksum says so, and the rest is computed."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "kv")
            with Cluster(0, 1, common=[POOL, "--kv-disk=64MiB", "--kv-disk-path=" + path]) as cluster:
                def spoil(turn):
                    with open(path, "r+b") as file:
                        size = os.path.getsize(path)
                        for at in range(8192, size - 64, 4096):
                            file.seek(at + 2048)
                            file.write(b"\x5a\xa5" * 16)
                self.assertEqual(answers(play(cluster, between=spoil)), self.want)
                self.assertGreater(cluster.sum_metric("decode-0", "baton_kv_tier_failures_total{"), 0)
                cluster.wait_idle()

    def test_pressure_swaps_by_priority(self):
        """More sequences than the pool holds, of three priorities: those that give way come back from
        host memory or by computing, and nobody's tokens change."""
        cases = [flags(words(200, i), "--priority=%d" % (i % 3), tokens=220) for i in range(10)]

        def run(cluster):
            return [answer["token_ids"] for answer in cluster.generate_many(cases)]
        with Cluster(0, 1, common=["--prefix-cache=off"]) as cluster:
            want = run(cluster)
        for way in ("swap", "recompute", "auto"):
            common = ["--kv-memory=2400KiB", "--kv-host-memory=32MiB", "--preempt=" + way]
            with self.subTest(way=way), Cluster(0, 1, common=common) as cluster:
                self.assertEqual(run(cluster), want)
                self.assertGreater(cluster.sum_metric("decode-0", "vllm:num_preemptions_total"), 0)
                cluster.wait_idle()


if __name__ == "__main__":
    unittest.main(verbosity=2)
