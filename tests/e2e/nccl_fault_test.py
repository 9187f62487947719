"""A communicator that fails in every way that NCCL's do: the split goes on over tcp, and tries again."""
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nccl_cluster import NcclCluster, NcclTest  # noqa: E402


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


if __name__ == "__main__":
    unittest.main(verbosity=2)
