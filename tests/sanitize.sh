#!/usr/bin/env bash
# The tests under AddressSanitizer (leaks too), UndefinedBehaviorSanitizer and ThreadSanitizer.
#   tests/sanitize.sh                  all three
#   tests/sanitize.sh tsan             one of them
# Each has a Bazel of its own, so that the builds do not undo each other. About ten minutes each
# on two cores the first time.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
deploy/install_deps.sh test || exit 1
kinds=("$@")
((${#kinds[@]} > 0)) || kinds=(asan ubsan tsan)
base=$(bazel info output_base 2> /dev/null)
failed=0
for kind in "${kinds[@]}"; do
  echo "== $kind"
  bazel --output_base="$base-$kind" --host_jvm_args=-Xmx600m test --config="$kind" --symlink_prefix=/ --keep_going \
    //tests/unit/... //tests/fuzz/... //tests/sim/... 2>&1 | grep -v -e 'linux-sandbox' -e '^remount'
  ((PIPESTATUS[0] == 0)) || failed=1
done
exit "$failed"
