"""The container images, as far as they can be checked without a container engine.

What the Dockerfiles ship is made by deploy/images/rootfs.sh; here it is made too, and the
programs are started inside it. The Dockerfiles themselves are parsed (dockerfile-parse, from
tests/python/requirements.txt; that part skips without it).
"""
import glob
import os
import re
import subprocess
import tempfile
import unittest

try:
    import dockerfile_parse
except ImportError:
    dockerfile_parse = None

ROOT = os.getcwd()
IMAGES = os.path.join(ROOT, "deploy", "images")
PROGRAMS = {"router": "router/router", "prefill_node": "prefill_node/prefill_node", "decode_node": "decode_node/decode_node"}
CHROOT = "/usr/sbin/chroot"  # not on the path of a Bazel test
SIZE_MAX = 64 << 20  # with the small model; measured: 36 MB


def size_of(folder):
    return sum(os.lstat(os.path.join(at, name)).st_size for at, _, files in os.walk(folder) for name in files)


class Roots(unittest.TestCase):
    def make(self, folder, program):
        out = os.path.join(folder, "root")
        subprocess.run([os.path.join(IMAGES, "rootfs.sh"), out, os.path.join(ROOT, PROGRAMS[program]),
                        "--model=" + os.path.join(ROOT, "models", "baton-tiny")], check=True)
        return out

    def run_inside(self, root, *words):
        """In a chroot as the image's user; without the right to do that, with the root's own loader."""
        model = "/models/baton-tiny"
        inside = [CHROOT, "--userspec=65532:65532", root, *[word.replace("MODEL", model) for word in words]]
        if os.geteuid() == 0 and os.path.exists(CHROOT):
            probe = subprocess.run([CHROOT, "--userspec=65532:65532", root, words[0], "--help"], capture_output=True, text=True)
            if probe.returncode == 0:
                return subprocess.run(inside, capture_output=True, text=True)
        (loader,) = glob.glob(os.path.join(root, "usr/lib64/ld-linux*")) or glob.glob(os.path.join(root, "usr/lib/ld-linux*"))
        libraries = ":".join(glob.glob(os.path.join(root, "usr/lib")) + glob.glob(os.path.join(root, "usr/lib/*-linux-gnu")))
        return subprocess.run([loader, "--inhibit-cache", "--library-path", libraries, root + words[0],
                               *[word.replace("MODEL", root + model) for word in words[1:]]], capture_output=True, text=True)

    def test_programs_start_inside(self):
        """Each root is complete: its program loads the model with nothing but what is inside."""
        for program in PROGRAMS:
            with self.subTest(program=program), tempfile.TemporaryDirectory() as folder:
                root = self.make(folder, program)
                flags = ["--model=MODEL", "--check"] + (["--decode=10.0.0.1:7000"] if program == "router" else ["--kv-memory=8MiB"])
                run = self.run_inside(root, f"/usr/bin/{program}", *flags)
                self.assertEqual(run.returncode, 0, run.stderr)
                self.assertLess(size_of(root), SIZE_MAX)
                print(f"{program}: {size_of(root) / 1e6:.1f} MB")

    def test_roots_hold_no_tools(self):
        """No shell, no interpreter, nothing set-uid; Debian's licences are there."""
        with tempfile.TemporaryDirectory() as folder:
            root = self.make(folder, "router")
            self.assertEqual(os.listdir(os.path.join(root, "usr/bin")), ["router"])
            for at, _, files in os.walk(root):
                for name in files:
                    self.assertFalse(os.lstat(os.path.join(at, name)).st_mode & 0o6000, name)
            self.assertTrue(os.path.exists(os.path.join(root, "usr/share/doc/libc6/copyright")))

    def test_a_library_of_run_time(self):
        """--library brings a file under the name that programs load it by, and what it is linked with."""
        library = next(path for path in glob.glob("/usr/lib/*/libpcre2-8.so.0") + glob.glob("/lib/*/libpcre2-8.so.0"))
        with tempfile.TemporaryDirectory() as folder:
            root = folder + "/root"
            rootfs = [os.path.join(IMAGES, "rootfs.sh"), root, "/bin/true"]
            subprocess.run([*rootfs, "--library=" + library], check=True)
            self.assertTrue(os.path.isfile(root + "/usr/lib/libpcre2-8.so.0"))
            run = subprocess.run([rootfs[0], folder + "/other", "/bin/true", "--library=" + folder + "/libnone.so.1"],
                                 capture_output=True, text=True)
            self.assertNotEqual(run.returncode, 0)
            self.assertIn("libnone.so.1: no such file", run.stderr)

    def test_a_file_sought_by_its_path(self):
        """--file keeps a plug-in and its configuration where they are sought; a link stays a link, so that a library
        that is loaded under two names is one; what it is linked with comes along; a path that is none is named."""
        plugin = next(iter(glob.glob("/usr/lib/*/gconv/ISO8859-1.so")))
        with tempfile.TemporaryDirectory() as folder:
            os.symlink(plugin, folder + "/other-name.so")
            with open(folder + "/it.driver", "w", encoding="utf-8") as file:
                file.write("driver it\n")
            root = folder + "/root"
            subprocess.run([os.path.join(IMAGES, "rootfs.sh"), root, "/bin/true", "--file=" + plugin, f"--file={folder}/other-name.so",
                            f"--file={folder}/it.driver"], check=True)
            self.assertTrue(os.path.isfile(root + plugin))
            self.assertEqual(os.readlink(f"{root}{folder}/other-name.so"), os.path.realpath(plugin))
            self.assertTrue(glob.glob(root + "/usr/lib*/**/libc.so.6", recursive=True))
            self.assertEqual(os.stat(f"{root}{folder}/it.driver").st_mode & 0o777, 0o644)
            for wrong in (folder + "/none.so", "relative.so"):
                run = subprocess.run([os.path.join(IMAGES, "rootfs.sh"), folder + "/other", "/bin/true", "--file=" + wrong],
                                     capture_output=True, text=True)
                self.assertNotEqual(run.returncode, 0)
                self.assertIn(wrong + ": no such file", run.stderr)
                subprocess.run(["rm", "-rf", folder + "/other"], check=True)

    def test_a_missing_library_is_named(self):
        """rootfs.sh fails where a program cannot be made whole, and on a folder that is in use."""
        with tempfile.TemporaryDirectory() as folder:
            run = subprocess.run([os.path.join(IMAGES, "rootfs.sh"), folder + "/out", folder + "/none"], capture_output=True, text=True)
            self.assertNotEqual(run.returncode, 0)
            os.mkdir(folder + "/used")
            with open(folder + "/used/file", "w", encoding="utf-8"):
                pass
            run = subprocess.run([os.path.join(IMAGES, "rootfs.sh"), folder + "/used", "/bin/true"], capture_output=True, text=True)
            self.assertNotEqual(run.returncode, 0)
            self.assertIn("not empty", run.stderr)


@unittest.skipUnless(dockerfile_parse, "SKIPPED: no dockerfile-parse; pip install -r tests/python/requirements.txt")
class Dockerfiles(unittest.TestCase):
    FILES = {"Dockerfile.router": "router", "Dockerfile.prefill": "prefill_node", "Dockerfile.decode": "decode_node",
             "Dockerfile.prefill-cuda": "prefill_node", "Dockerfile.decode-cuda": "decode_node"}
    KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD", "COMMENT"}

    def test_all_are_here(self):
        self.assertEqual({os.path.basename(path) for path in glob.glob(IMAGES + "/Dockerfile.*")}, set(self.FILES))

    def test_structure(self):
        """Two stages or more, nothing but the root in the last, a numeric user, programs that exist."""
        for name, program in self.FILES.items():
            with self.subTest(file=name), tempfile.TemporaryDirectory() as folder:
                with open(os.path.join(IMAGES, name), encoding="utf-8") as file:
                    parser = dockerfile_parse.DockerfileParser(path=folder)
                    parser.content = file.read()
                steps = parser.structure
                self.assertLessEqual({step["instruction"] for step in steps}, self.KNOWN)
                last = max(i for i, step in enumerate(steps) if step["instruction"] == "FROM")
                self.assertEqual(steps[last]["value"], "scratch")
                final = {step["instruction"]: step["value"] for step in steps[last:]}
                self.assertEqual(final["COPY"], "--from=build /rootfs/ /")
                self.assertNotIn("RUN", final)
                self.assertRegex(final["USER"], r"^[1-9]\d+:[1-9]\d+$")
                self.assertEqual(final["ENTRYPOINT"], f'["/usr/bin/{program}"]')
                runs = " ".join(step["value"] for step in steps if step["instruction"] == "RUN")
                self.assertIn(f"//{program}", runs)
                self.assertEqual("--config=cuda" in runs, name.endswith("cuda"))
                for path in re.findall(r"(?:^| )(deploy/\S+\.sh)", runs):
                    self.assertTrue(os.access(os.path.join(ROOT, path), os.X_OK), path)
                flags = re.findall(r'"(--[^"]+)"', final["CMD"])
                run = subprocess.run([os.path.join(ROOT, PROGRAMS[program]), *flags, "--print-config"], capture_output=True, text=True)
                self.assertEqual(run.returncode, 0, run.stderr)
                ports = set(final["EXPOSE"].split())
                for port in re.findall(r"listen=[^ \"]*:(\d+)", final["CMD"]):
                    self.assertIn(port, ports)


if __name__ == "__main__":
    unittest.main()
