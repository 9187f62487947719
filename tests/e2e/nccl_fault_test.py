"""A communicator that fails in every way that NCCL's do: the split goes on over tcp, and tries again."""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nccl_cluster import PATIENCE, NcclCluster, NcclTest  # noqa: E402


class NcclFault(NcclTest):
    def test_what_fails_goes_on_over_tcp(self):
        """Whatever becomes of a communicator, at either end: every request is answered right, the failure is counted, and
        nothing is kept of it but what an abort that never returns keeps."""
        def broken(cluster):
            return sum(cluster.ended(name, "broken") for name in cluster.nodes) > 0

        def stuck(cluster):
            return sum(cluster.pairs(name, "stuck") for name in cluster.nodes) > 0

        faults = (
            ("a kernel that spins", {"prefill-0": "hang_at=3"}, broken),
            ("one that spins at the receiver", {"decode-0": "hang_at=2"}, broken),
            ("an error in mid-stream", {"prefill-0": "error_at=4"}, broken),
            ("init fails", {"prefill-0": "init_fails=2"}, broken),
            ("init fails at the receiver", {"decode-0": "init_fails=2"}, broken),
            ("init hangs", {"decode-0": "init_hangs"}, broken),
            ("no unique id", {"prefill-0": "id_fails=2"}, None),
            ("an abort that never returns", {"prefill-0": "hang_at=2,abort_hangs"}, stuck),
        )
        for what, fault, happened in faults:
            with self.subTest(what=what), NcclCluster(model=self.model, faults=fault, common=["--nccl-init-timeout=1s"]) as cluster:
                if happened:
                    self.ask_until(cluster, what, lambda cluster=cluster, happened=happened: happened(cluster))
                for _ in range(2):
                    self.ask_all(cluster)
                cluster.wait_quiet()
                for process in cluster.nodes.values():
                    self.assertIsNone(process.popen.poll(), what)

    def test_a_signal_ends_a_node_that_its_library_holds(self):
        """Communicators whose kernels never end, nor their aborts: to free memory of such a device is to wait for ever.
        SIGTERM ends the node all the same, with the status of any other, and says what it left."""
        faults = {"prefill-0": "hang_at=2,abort_hangs", "decode-0": "abort_hangs"}
        with NcclCluster(model=self.model, faults=faults, common=["--nccl-init-timeout=1s"]) as cluster:
            for name in cluster.nodes:
                self.ask_until(cluster, "a communicator of %s is stuck" % name, lambda name=name: cluster.pairs(name, "stuck") > 0)
            cluster.wait_quiet()
            for name, process in cluster.nodes.items():
                self.assertEqual(process.stop(timeout=PATIENCE), 0, name)
                self.assertIn("the device is left to the process's end", process.log())


if __name__ == "__main__":
    unittest.main(verbosity=2)
