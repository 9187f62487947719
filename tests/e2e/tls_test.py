"""Mutual TLS on every leg, with a CA that the test makes: router and clients, router and nodes, link and cable."""
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, find_model, find_root  # noqa: E402
from fault_test import listening_ports  # noqa: E402

ASK = ["--prompt=Once upon a time", "--max-tokens=12", "--temperature=0", "--ignore-eos"]


def openssl(*words):
    subprocess.run(["openssl", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def make_ca(folder, name):
    """name.ca.pem, name.pem and name.key: a CA, and a certificate of it for 127.0.0.1 and localhost."""
    path = lambda suffix: os.path.join(folder, name + suffix)  # noqa: E731
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=%s CA" % name, "-keyout", path(".ca.key"), "-out", path(".ca.pem"))
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=" + name,
            "-keyout", path(".key"), "-out", path(".csr"))
    with open(path(".ext"), "w") as file:
        file.write("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl("x509", "-req", "-in", path(".csr"), "-CA", path(".ca.pem"), "-CAkey", path(".ca.key"), "-CAcreateserial",
            "-days", "2", "-extfile", path(".ext"), "-out", path(".pem"))


class Tls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="baton-tls-")
        cls.addClassCleanup(cls.folder.cleanup)
        make_ca(cls.folder.name, "ours")
        make_ca(cls.folder.name, "stranger")
        with Cluster(0, 1) as cluster:
            cls.want = cluster.generate(*ASK)["token_ids"]

    def file(self, name):
        return os.path.join(self.folder.name, name)

    def flags(self, name="ours", ca=None):
        return ["--tls-cert=" + self.file(name + ".pem"), "--tls-key=" + self.file(name + ".key"),
                "--tls-ca=" + self.file((ca or name) + ".ca.pem")]

    def cluster(self, *common):
        own = self.flags()
        return Cluster(1, 1, common=own + list(common), router_flags=own + ["--local-prefill-tokens=0"], client_flags=own)

    def test_every_leg_is_encrypted_and_asks_for_a_certificate(self):
        with self.cluster("--cables=tcp") as cluster:
            answer = cluster.generate(*ASK)
            self.assertEqual(answer["token_ids"], self.want)
            self.assertEqual(answer["route"]["transport"], "tcp")
            metrics = {int(address.rsplit(":", 1)[1]) for address in cluster.metrics_addresses.values()}
            checked = 0
            for process in cluster.processes():
                for port in listening_ports(process.popen.pid) - metrics:
                    with self.subTest(process=process.name, port=port):
                        self.assertTrue(self.handshake(port, "ours"), "our certificate is refused")
                        self.assertFalse(self.handshake(port, None), "no certificate is taken")
                        self.assertFalse(self.handshake(port, "stranger"), "a stranger's certificate is taken")
                        checked += 1
            self.assertGreaterEqual(checked, 4)  # three gRPC servers and the cable
            self.assertEqual(cluster.generate(*ASK)["token_ids"], self.want)
            cluster.wait_idle()

    def handshake(self, port, who):
        """True when the peer speaks TLS with its own certificate and lets us in."""
        context = ssl.create_default_context(cafile=self.file("ours.ca.pem"))
        context.set_alpn_protocols(["h2"])
        if who:
            context.load_cert_chain(self.file(who + ".pem"), self.file(who + ".key"))
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as plain, \
                    context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                # TLS 1.3 refuses a client after its handshake, with the first read. One who is let in
                # hears HTTP/2 settings, or nothing while the cable waits for a first frame.
                secure.settimeout(1)
                try:
                    return secure.recv(1) != b""
                except socket.timeout:
                    return True
        except (ssl.SSLError, ConnectionError):
            return False

    def test_clients_that_are_refused(self):
        with self.cluster() as cluster:
            self.assertEqual(cluster.generate(*ASK)["token_ids"], self.want)
            for what, flags in (("plaintext", []), ("wrong CA", self.flags("ours", ca="stranger")),
                                ("stranger", self.flags("stranger", ca="ours")),
                                ("no certificate", ["--tls-ca=" + self.file("ours.ca.pem")])):
                with self.subTest(what):
                    cluster.client_flags = flags
                    got = cluster.run("generate", *ASK, "--timeout=20s", timeout=60)
                    self.assertNotEqual(got.returncode, 0)
                    self.assertIn("UNAVAILABLE", got.stderr)
                    if what != "wrong CA":  # there the handshake itself says what it is
                        self.assertIn("--tls-ca", got.stderr)
                    else:
                        self.assertIn("certificate", got.stderr)
            cluster.client_flags = self.flags()
            self.assertEqual(cluster.generate(*ASK)["token_ids"], self.want)

    def test_a_node_of_another_ca_is_refused(self):
        cluster = Cluster(1, 1, prefill_flags=self.flags("stranger"), decode_flags=self.flags(),
                          router_flags=self.flags(), client_flags=self.flags())
        try:
            for process in cluster.processes():
                process.start()
            status = cluster.wait_status("decode attached", lambda s: any(
                n["attached"] for n in s["nodes"]) and any("TLS" in n["problem"] or "ertificate" in n["problem"] or
                                                           "andshake" in n["problem"] for n in s["nodes"]))
            self.assertEqual([n["role"] for n in status["nodes"] if n["attached"]], ["decode"])
            print([n["problem"] for n in status["nodes"]])
            self.assertEqual(cluster.generate(*ASK)["token_ids"], self.want)
        finally:
            cluster.__exit__(None, None, None)

    def test_bad_files_are_named(self):
        with open(self.file("junk.pem"), "w") as file:
            file.write("not a certificate")
        for role in ("router", "prefill_node", "decode_node"):
            for flag, path in (("tls-cert", self.file("junk.pem")), ("tls-key", self.file("none.key")), ("tls-ca", self.file("junk.pem"))):
                with self.subTest(role=role, flag=flag):
                    flags = {"tls-cert": self.file("ours.pem"), "tls-key": self.file("ours.key"), "tls-ca": self.file("ours.ca.pem"), flag: path}
                    argv = [os.path.join(find_root(), role, role), "--model=" + find_model(), *["--%s=%s" % kv for kv in flags.items()]]
                    if role == "router":
                        argv.append("--decode=127.0.0.1:1")
                    got = subprocess.run(argv, capture_output=True, text=True, timeout=60)
                    self.assertNotEqual(got.returncode, 0)
                    self.assertIn(path, got.stderr + got.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
