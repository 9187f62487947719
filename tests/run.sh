#!/usr/bin/env bash
# All tests: set-up, then `bazel test` of everything. Ends with "N passed, N failed".
#   tests/run.sh                 everything, and a few seconds of fuzzing for each parser
#   tests/run.sh //kv/...        what Bazel calls so
#   BATON_BAZEL_FLAGS=--config=asan tests/run.sh
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

deploy/install_deps.sh test || { echo "0 passed, 1 failed"; exit 1; }

# Tests over ../shared/data skip with a message where it is missing.
if [[ -z "${BATON_SHARED_DATA:-}" && -f ../shared/data/MANIFEST.md ]]; then
  BATON_SHARED_DATA="$(readlink -f ../shared/data)"
fi
export BATON_SHARED_DATA="${BATON_SHARED_DATA:-}"

# Python's gRPC speaks to the servers as a foreign client would, manifests are checked against
# Kubernetes' own schemas, and the ucx cable runs over the UCX of a wheel; these tests skip without
# their packages.
venv="$PWD/.venv"
if [[ ! -x "$venv/bin/python" ]] || ! "$venv/bin/python" -c 'import grpc, grpc_health, grpc_reflection, libucx, kubernetes_validate, dockerfile_parse' 2> /dev/null; then
  python3 -m venv "$venv" > /dev/null &&
    "$venv/bin/pip" install --quiet --retries 2 -r tests/python/requirements.txt ||
    echo "Python packages of tests/python/requirements.txt could not be installed: their tests skip."
fi
export BATON_PYTHON="$venv/bin/python"

targets=("$@")
((${#targets[@]} > 0)) || targets=(//...)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
progress=()
[[ ! -t 1 ]] || progress=(--show_progress --show_progress_rate_limit=10)
# shellcheck disable=SC2086
bazel test --test_env=BATON_PYTHON --keep_going "${progress[@]}" ${BATON_BAZEL_FLAGS:-} "${targets[@]}" 2>&1 |
  grep -v -e 'linux-sandbox' -e '^remount' | tee "$log"
status=${PIPESTATUS[0]}

count() { grep -cE "^//[^ ]+ +(\(cached\) +)?($1)" "$log"; }

# A plain run replays every fuzz corpus. Here libFuzzer searches from it, briefly; in a Bazel of
# its own, so that the two kinds of build do not undo each other.
if (($# == 0)) && [[ -z "${BATON_BAZEL_FLAGS:-}" ]]; then
  if command -v clang > /dev/null && compgen -G '/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a' > /dev/null; then
    bazel --output_base="$(bazel info output_base 2> /dev/null)-fuzz" --host_jvm_args=-Xmx600m test --config=fuzz \
      --symlink_prefix=/ --test_arg=-max_total_time=4 --keep_going //tests/fuzz/... 2>&1 |
      grep -v -e 'linux-sandbox' -e '^remount' | sed -E 's#^(//tests/fuzz/[^ ]+)#\1 (libFuzzer)#' | tee "$log.fuzz"
    ((PIPESTATUS[0] == 0)) || status=1
    sed -E 's# \(libFuzzer\)##' "$log.fuzz" >> "$log"
    rm -f "$log.fuzz"
  else
    echo "clang with its fuzzer library is not installed: the fuzz targets only replayed their corpora."
  fi
fi

passed=$(count 'PASSED')
failed=$(count 'FAILED|TIMEOUT|NO STATUS|FLAKY')
if ((status != 0 && failed == 0)); then failed=1; fi # it did not build
if ((passed == 0 && failed == 0)); then failed=1; fi # no test ran

echo "$SECONDS s. Slowest:"
sed -nE 's#^(//[^ ]+) .*(PASSED|FAILED).* in ([0-9.]+)s$#\3 s  \1#p' "$log" | sort -rn | head -5
echo "$passed passed, $failed failed"
((failed == 0))
