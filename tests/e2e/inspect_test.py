"""`baton kv`: what it shows of running nodes adds up, and one node that is away hides no other."""
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, free_port  # noqa: E402


def look(cluster, *flags):
    got = cluster.run("kv", "--json", *flags)
    if got.returncode != 0:
        raise AssertionError(got.stderr)
    return {node["name"]: node for node in json.loads(got.stdout)["nodes"]}


def prompt(which, count=100):
    return "--tokens=" + ",".join(str(300 + (which * 131 + i * 17 + i * i) % 1700) for i in range(count))


class Inspect(unittest.TestCase):
    def adds_up(self, node):
        states = ("free", "held", "cached", "quarantined")
        self.assertEqual(sum(node["blocks_" + state] for state in states), node["blocks_total"])
        named = set()
        for holder in node["holders"]:
            self.assertEqual(len(holder.get("blocks", [])), holder["block_count"])
            self.assertEqual(len(set(holder.get("blocks", []))), holder["block_count"], "a block twice in one table")
            self.assertLessEqual(holder["tokens_computed"], holder["tokens"])
            self.assertLessEqual(holder["tokens_cached"], holder["tokens"])
            self.assertTrue(all(block < node["blocks_total"] for block in holder.get("blocks", [])))
            named.update(holder.get("blocks", []))
        # What nobody in the list holds: spare blocks of forks, copies and stores under way.
        self.assertLessEqual(len(named), node["blocks_held"] + node["blocks_quarantined"])

    def test_running_sequences_are_seen_with_their_blocks(self):
        with tempfile.TemporaryDirectory() as folder, Cluster(1, 1, common=["--kv-host-memory=8MiB"], decode_flags=[
                "--kv-disk=8MiB", "--kv-disk-path=" + os.path.join(folder, "tier")]) as cluster:
            seen, views = None, 0
            deadline = time.monotonic() + 90
            while seen is None and time.monotonic() < deadline:
                flags = [[prompt(i), "--max-tokens=400", "--ignore-eos", "--priority=%d" % i] for i in range(4)]
                load = threading.Thread(target=cluster.generate_many, args=(flags,))
                load.start()
                while load.is_alive():
                    nodes = look(cluster, "--blocks")
                    views += 1
                    for node in nodes.values():
                        self.adds_up(node)
                    running = [h for h in nodes["decode-0"]["holders"] if h["state"] == "running"]
                    if len(running) > 1:
                        seen = nodes["decode-0"]
                load.join()
            self.assertIsNotNone(seen, "never two running sequences in %d looks" % views)
            running = [h for h in seen["holders"] if h["state"] == "running"]
            self.assertTrue({h["priority"] for h in running} <= {0, 1, 2, 3})
            self.assertTrue(all(h["age_s"] > 0 and h["block_count"] > 0 for h in running))
            self.assertEqual(len({(h["leg"], h["sequence"]) for h in running}), len(running))
            self.assertLess(seen["slots_unused"], seen["block_tokens"] * len(seen["holders"]))
            self.assertEqual([tier["name"] for tier in seen["tiers"]], ["host", "disk"])
            cluster.wait_idle()
            for name, node in look(cluster).items():
                self.assertEqual((name, node["holders"], node["slots_unused"]), (name, [], 0))
                self.assertEqual(node["blocks_held"], 0)
            again = cluster.generate(prompt(0), "--max-tokens=2", "--ignore-eos")
            self.assertGreater(again["usage"]["cached_prompt_tokens"], 0)
            self.assertGreater(look(cluster)["decode-0"]["blocks_taken"], 0)

    def test_nodes_can_be_asked_without_the_router(self):
        with Cluster(0, 1) as cluster:
            address = [node["address"] for node in cluster.status()["nodes"]][0]
            away = "127.0.0.1:%d" % free_port()
            cluster.router.kill()
            got = subprocess.run([cluster.baton, "kv", "--node=" + away, "--node=" + address], capture_output=True, text=True, timeout=60)
            self.assertEqual(got.returncode, 1)
            self.assertIn(away, got.stderr)
            self.assertIn("decode node decode-0 at " + address, got.stdout)
            self.assertIn("nobody holds a block", got.stdout)
            got = subprocess.run([cluster.baton, "kv", "--node=" + address, "--json"], capture_output=True, text=True, timeout=60)
            self.assertEqual((got.returncode, got.stderr), (0, ""))
            self.assertEqual(json.loads(got.stdout)["nodes"][0]["role"], "decode")
            got = cluster.run("kv")
            self.assertEqual(got.returncode, 1)
            self.assertIn("kv", got.stderr)


if __name__ == "__main__":
    unittest.main()
