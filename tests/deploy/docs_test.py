"""The documents are true: what they name exists, and the flags are those of the programs.

Reads the source tree that the Bazel workspace was built from, so it always runs anew.
"""
import glob
import importlib.util
import os
import re
import unittest

HERE = os.getcwd()
ROOT = os.path.dirname(os.path.realpath(os.path.join(HERE, "README.md")))
DOCS = ["README.md"] + sorted(os.path.relpath(path, ROOT) for path in glob.glob(os.path.join(ROOT, "docs", "*.md")))
# Paths of a user's machine or of the build, and texts with a slash that are no paths.
NOT_PATHS = re.compile(r"^(/|bazel-bin|\./|baton\.|grpc\.)")


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def sources():
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith((".", "bazel-"))]
        found += [os.path.relpath(os.path.join(folder, name), ROOT) for name in files if name.endswith((".c", ".h"))]
    return found


class Documents(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.texts = {path: read(path) for path in DOCS}
        cls.code = {path: read(path) for path in sources() if not path.startswith("tests/")}

    def defines(self, path, name):
        """A definition begins at the left margin; a call does not."""
        return re.search(rf"^[a-z].*\b{name}\(", self.code[path], re.M) is not None

    def test_there_are_documents(self):
        for name in ("README.md", "docs/REQUEST.md", "docs/ARCHITECTURE.md", "docs/OPERATIONS.md", "docs/BENCHMARKS.md", "docs/FLAGS.md"):
            self.assertIn(name, self.texts)
        self.assertGreater(len(self.code), 100)

    def test_paths_exist(self):
        """Every `folder/file` in backticks, and every link, leads somewhere."""
        count = 0
        for doc, text in self.texts.items():
            named = set(re.findall(r"`([\w.-]+/[\w./-]*)`", text))
            named = {path for path in named if not NOT_PATHS.match(path) and not re.search(r"[A-Z]+$", path)}
            for path in named:
                self.assertTrue(os.path.exists(os.path.join(ROOT, path)), f"{doc} names {path}")
                count += 1
            for link in re.findall(r"\]\(([^)#]+)\)", text):
                if "://" not in link:
                    at = os.path.normpath(os.path.join(ROOT, os.path.dirname(doc), link))
                    self.assertTrue(os.path.exists(at), f"{doc} links to {link}")
                    count += 1
        self.assertGreater(count, 80)

    def test_tables_are_whole(self):
        """All rows of a table have as many cells as its head: a torn row is shown as another one's end."""
        rows = 0
        for doc, text in self.texts.items():
            cells = None
            for number, line in enumerate(text.splitlines(), 1):
                if not line.startswith("|"):
                    cells = None
                    continue
                found = len(re.findall(r"(?<!\\)\|", line))
                self.assertEqual(found, cells or found, f"{doc}:{number}: {line}")
                cells = found
                rows += 1
        self.assertGreater(rows, 100)

    def test_functions_exist(self):
        """Every `name()` is a function; one that stands behind its file is in that file."""
        count = 0
        for doc, text in self.texts.items():
            for name in set(re.findall(r"`(\w+)\(\)`", text)):
                self.assertTrue(any(self.defines(path, name) for path in self.code), f"{doc} names {name}()")
                count += 1
            for path, name in re.findall(r"`([\w/]+\.c)`:\s+`(\w+)\(\)`", text):
                self.assertTrue(self.defines(path, name), f"{doc} says that {path} has {name}()")
        self.assertGreater(count, 40)

    def test_flags_are_the_programs(self):
        """docs/FLAGS.md is what the programs print."""
        spec = importlib.util.spec_from_file_location("flags_table", os.path.join(ROOT, "docs", "flags_table.py"))
        table = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(table)
        self.maxDiff = 2000
        self.assertEqual(table.document(HERE), self.texts["docs/FLAGS.md"],
                         "run: python3 docs/flags_table.py bazel-bin > docs/FLAGS.md")

    def test_flags_in_texts_exist(self):
        known = set(re.findall(r"`--([a-z0-9-]+)", self.texts["docs/FLAGS.md"])) | {"help", "model", "keep", "config"}
        for path in glob.glob(os.path.join(ROOT, "bench", "**", "*.py"), recursive=True):
            known |= set(re.findall(r'"--([a-z][a-z0-9-]*)["=]', read(path)))
        known.add("pure")  # of llama.cpp's program that quantizes
        for doc, text in self.texts.items():
            for flag in set(re.findall(r"`--([a-z][a-z0-9-]*)[=`]", text)):
                self.assertIn(flag, known, f"{doc} names --{flag}")

    def test_metrics_exist(self):
        exported = set()
        for path in ("node/node_metrics.c", "router/router_metrics.c"):
            exported |= set(re.findall(r'"((?:vllm:|baton_)\w+)"', self.code[path]))
        named = set(re.findall(r"`((?:vllm:|baton_)\w+)`", self.texts["docs/OPERATIONS.md"]))
        self.assertGreater(len(named), 25)
        self.assertLessEqual(named, exported)

    def test_log_events_exist(self):
        """The table of log lines names events that are logged, and every warning and error of the servers."""
        logged = {}
        for path, text in self.code.items():
            if not path.endswith(".c") or path.split("/")[0] in ("client", "bench", "sim"):
                continue
            for level, event in re.findall(r'LOGF\(LOG_([A-Z]+), "(\w+)"', text):
                logged.setdefault(event, set()).add(level)
        section = self.texts["docs/OPERATIONS.md"].split("## Troubleshooting")[1]
        named = {event for row in re.findall(r"^\| (`[^|]+) \|", section, re.M) for event in re.findall(r"`(\w+)`", row)}
        self.assertGreater(len(named), 20)
        self.assertLessEqual(named, set(logged))
        serious = {event for event, levels in logged.items() if levels & {"WARN", "ERROR"}}
        self.assertLessEqual(serious, named)

    def test_no_machine_is_named(self):
        """No path of the machine that a document was written on."""
        for doc, text in self.texts.items():
            self.assertIsNone(re.search(r"/(home|root|work)/", text), doc)


if __name__ == "__main__":
    unittest.main()
