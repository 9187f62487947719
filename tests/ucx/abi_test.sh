#!/usr/bin/env bash
# transfer/ucx_abi.h says what UCX's own headers say: compiled against them, where they are found.
set -euo pipefail
candidates=(/usr/include)
[[ -z "${BATON_UCX_LIBRARY:-}" ]] || candidates=("$(dirname "$BATON_UCX_LIBRARY")/../include" "${candidates[@]}")
if [[ -n "${BATON_PYTHON:-}" ]]; then
  for folder in "$(dirname "$BATON_PYTHON")"/../lib/python3*/site-packages/libucx/include; do
    candidates=("$folder" "${candidates[@]}")
  done
fi
for folder in "${candidates[@]}"; do
  [[ -e "$folder/ucp/api/ucp.h" ]] || continue
  gcc -std=gnu11 -fsyntax-only -Wall -I. -isystem "$folder" tests/ucx/abi_check.c
  echo "compared with $folder: $(grep -hoE 'UCP_API_M(AJOR|INOR) +[0-9]+' "$folder/ucp/api/ucp_version.h" | tr '\n' ' ')"
  exit 0
done
echo "skipped: UCX's headers are in none of: ${candidates[*]}"
