#!/usr/bin/env bash
# one_gpu does over the emulated device and fake_nccl what it does on a chip: every part comes to its end, and every byte is where
# it belongs. No figure is looked at.
set -euo pipefail
results=$(mktemp)
trap 'rm -f "$results"' EXIT
for part in loop pairs deaths; do tests/nccl/one_gpu_emulated --what="$part" --bytes=1MiB | tee -a "$results"; done
for expected in 'nccl_loop 3' 'nccl_pair 3' 'nccl_death 4'; do
  read -r bench count <<< "$expected"
  got=$(grep -c "\"bench\":\"$bench\"" "$results")
  [[ "$got" == "$count" ]] || { echo "$got lines of $bench instead of $count"; exit 1; }
done
[[ $(grep -c '"verified":true' "$results") == 6 ]] || { echo "not all is verified"; exit 1; }
