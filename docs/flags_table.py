"""Writes docs/FLAGS.md from what the programs print for --help, so that it stays true.

    bazel build //router //prefill_node //decode_node //client:baton
    python3 docs/flags_table.py bazel-bin > docs/FLAGS.md

tests/deploy/docs_test.py compares the file with what this writes.
"""
import re
import subprocess
import sys

NOTE = """# Flags

Written by `docs/flags_table.py` from the programs' own `--help`; do not edit by hand.

Flags are `--name=value`. Every flag of the servers can also be set by an environment variable:
`BATON_` and the name in capitals with `_` for `-`, so `--kv-memory` is `BATON_KV_MEMORY`. The
command line wins. Only `--prefill` and `--decode` of the router have no variable. An unknown or
repeated flag, or a value out of range, is an error that names it. Sizes are `512MiB`, `2GiB`;
times are `250ms`, `10s`, `5m`.
"""
COMMANDS = ("up", "generate", "chat", "status", "kv", "tokenize", "bench")


def help_of(words):
    return subprocess.run([*words, "--help"], check=True, capture_output=True, text=True).stdout


def table(text):
    rows = ["| flag | default | what it does |", "|---|---|---|"]
    for line in text.splitlines():
        match = re.match(r"^  (--\S+(?: \S+)*?)  +(.*)$|^  (--\S+) (.*)$", line)
        if not match:
            continue
        flag, what = (match.group(1), match.group(2)) if match.group(1) else (match.group(3), match.group(4))
        default = ""
        tail = re.search(r" \[([^\]]*)\]$", what)
        if tail:
            default, what = f"`{tail.group(1)}`", what[: tail.start()]
        cells = [f"`{flag}`", default, what]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def document(bin_dir):
    parts = [NOTE]
    router = help_of([f"{bin_dir}/router/router"])
    prefill = help_of([f"{bin_dir}/prefill_node/prefill_node"])
    decode = help_of([f"{bin_dir}/decode_node/decode_node"])
    parts.append("## router\n\n" + table(router) + "\n")
    if table(prefill) == table(decode):
        parts.append("## prefill_node, decode_node\n\n" + table(prefill) + "\n")
    else:
        parts.append("## prefill_node\n\n" + table(prefill) + "\n\n## decode_node\n\n" + table(decode) + "\n")
    for command in COMMANDS:
        parts.append(f"## baton {command}\n\n" + table(help_of([f"{bin_dir}/client/baton", command])) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(document(sys.argv[1] if len(sys.argv) > 1 else "bazel-bin"))
