#!/usr/bin/env bash
# transfer/nccl_abi.h says what NCCL's own header says: compiled against it, where it is found, with the CUDA headers
# that it includes. $1: the toolkit, if there is one.
set -euo pipefail
toolkit=${1:-}
candidates=(/usr/include)
[[ -z "$toolkit" ]] || candidates+=("$toolkit/include")
[[ -z "${BATON_NCCL_LIBRARY:-}" ]] || candidates=("$(dirname "$BATON_NCCL_LIBRARY")/../include" "${candidates[@]}")
if [[ -n "${BATON_PYTHON:-}" ]]; then
  for folder in "$(dirname "$BATON_PYTHON")"/../lib/python3*/site-packages/nvidia/nccl/include; do
    candidates=("$folder" "${candidates[@]}")
  done
fi
for folder in "${candidates[@]}"; do
  [[ -e "$folder/nccl.h" ]] || continue
  cuda=()
  for at in "$toolkit/include" /usr/include; do [[ ! -e "$at/cuda_runtime.h" ]] || { cuda=(-isystem "$at"); break; }; done
  [[ ${#cuda[@]} -gt 0 ]] || break
  program=$(mktemp)
  trap 'rm -f "$program"' EXIT
  gcc -std=gnu11 -Wall -I. -isystem "$folder" "${cuda[@]}" tests/nccl/abi_check.c -o "$program"
  "$program"
  echo "compared with $folder/nccl.h: $(grep -oE 'NCCL_VERSION_CODE +[0-9]+' "$folder/nccl.h")"
  exit 0
done
echo "skipped: nccl.h, with the CUDA runtime's headers, is in none of: ${candidates[*]}"
