#!/usr/bin/env bash
# The transfer benches run with pools on a GPU as they do with pools in host memory: what lands is what was sent, a death
# is seen, and each form has its line. On an emulated device, so the figures themselves mean nothing.
set -euo pipefail
cd tests/bench
lines=$(./transfer_bench_emulated --cables=shm@gpu,tcp@gpu,nccl@gpu --mib=16 --slices=65536 --rounds=1 --iperf3=no)
lines+=$'\n'$(./death_bench_emulated --cables=shm@gpu,tcp@gpu,nccl@gpu --runs=1 --what=kill)
echo "$lines"
want() { # PATTERN COUNT
  [[ $(grep -c "$1" <<< "$lines") == "$2" ]] || { echo "not $2 lines with $1"; exit 1; }
}
for form in shm@gpu tcp@gpu nccl@gpu; do
  want "\"kv_transfer\",\"form\":\"$form\"" 1
  want "\"death\",\"form\":\"$form\",\"what\":\"kill -9\",\"survivor\":\"D\"" 1
  want "\"death\",\"form\":\"$form\",\"what\":\"kill -9\",\"survivor\":\"P\"" 1
done
want gpu_copy_scattered 1
want absent 0
