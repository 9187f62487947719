"""Nodes that die, stop and come again while KV goes over NCCL: no stream ends, and the living keep nothing of the dead."""
import os
import signal
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nccl_cluster import PATIENCE, NcclCluster, NcclTest  # noqa: E402


class NcclDeath(NcclTest):
    def asking_over(self, cluster, victim):
        """A thread that asks for all answers, with work of its over NCCL at the victim and not done, and the list that its
        result will be in. A round that was over before we saw it at work is followed by another."""
        for _ in range(20):
            before, answers = cluster.frames(victim), []
            asking = threading.Thread(target=lambda answers=answers: answers.append(self.ask_all(cluster)))
            asking.start()
            while asking.is_alive():
                if cluster.frames(victim) > before and asking.is_alive():
                    return asking, answers
            self.assertEqual(len(answers), 1)
        self.fail("%s was never seen at work" % victim)

    def test_death_of_either_kind_of_node(self):
        """kill -9 while requests run over NCCL: each is answered with the right tokens, and the living keep no block and no
        communicator of the dead; started again it is served over NCCL again."""
        for victim in ("prefill-0", "decode-0"):
            with self.subTest(victim=victim), NcclCluster(2, 2, model=self.model) as cluster:
                self.warm(cluster)
                asking, answers = self.asking_over(cluster, victim)
                cluster.nodes[victim].kill()
                asking.join()
                self.assertEqual(len(answers), 1, "a stream ended or its tokens differ")
                cluster.wait_quiet()
                others = [name for name in cluster.alive() if name.split("-")[0] != victim.split("-")[0]]
                for name in others:
                    cluster.wait("the dead one's communicator is gone from " + name, lambda name=name: cluster.pairs(name, None) <= 1)
                cluster.nodes[victim].start()
                cluster.wait_attached(4)
                self.ask_until(cluster, "it is served over NCCL again", lambda: cluster.frames(victim) > 0)
                cluster.wait_quiet()

    def test_peers_that_come_and_go_leave_nothing(self):
        """A prefill node that ends, by a signal that it hears or one that it does not, and comes again: the decode node has
        one communicator each time, of the same memory, and none when the peer has gone for good."""
        with NcclCluster(model=self.model) as cluster:
            self.warm(cluster)
            memory = cluster.sum_metric("decode-0", "baton_nccl_memory_bytes")
            prefill = cluster.nodes["prefill-0"]
            for hears in (False, True, False):
                if hears:
                    self.assertEqual(prefill.stop(timeout=PATIENCE), 0)
                else:
                    prefill.kill()
                prefill.start()
                cluster.wait_attached(2)
                before = cluster.frames("decode-0")
                self.ask_until(cluster, "frames over NCCL again", lambda before=before: cluster.frames("decode-0") > before)
                cluster.wait("one communicator is left", lambda: cluster.pairs("decode-0", None) == 1)
            cluster.wait_quiet()
            self.assertEqual(cluster.sum_metric("decode-0", "baton_nccl_memory_bytes"), memory)
            self.assertEqual(prefill.stop(timeout=PATIENCE), 0)
            cluster.wait("no memory is taken", lambda: cluster.sum_metric("decode-0", "baton_nccl_memory_bytes") == 0)
            self.assertEqual(cluster.pairs("decode-0", None), 0)

    def test_a_stopped_peer(self):
        """SIGSTOP of either end while requests run: they are answered by the others, and when it wakes nothing is left."""
        for victim in ("prefill-0", "decode-0"):
            with self.subTest(victim=victim), NcclCluster(2, 2, model=self.model) as cluster:
                self.warm(cluster)
                asking, answers = self.asking_over(cluster, victim)
                cluster.nodes[victim].popen.send_signal(signal.SIGSTOP)
                try:
                    asking.join()
                finally:
                    cluster.nodes[victim].popen.send_signal(signal.SIGCONT)
                self.assertEqual(len(answers), 1, "a stream ended or its tokens differ")
                cluster.wait_attached(4)
                cluster.wait_quiet()
                before = cluster.frames(victim)
                self.ask_until(cluster, "it is served over NCCL again", lambda: cluster.frames(victim) > before)
                cluster.wait_quiet()


if __name__ == "__main__":
    unittest.main(verbosity=2)
