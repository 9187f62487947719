#!/usr/bin/env bash
# Builds Baton and the GPU checks with gcc and nvcc alone: a machine with a GPU has these, and seldom Bazel.
#   tests/gpu/build.sh [FOLDER]     default build/gpu; only what changed is compiled again
# BATON_SYSROOT: headers and libraries of the Debian packages, as tests/gpu/sysroot.sh unpacks them, for a machine
# where they cannot be installed. NVCC, CUDA_HOME: where the toolkit is, if not on PATH or in /usr/local/cuda.
# BATON_CUDA_ARCHS: default the GPU that is here, else "80 89 90a 100". CHECKS=no: no test programs.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
out=${1:-build/gpu}
mkdir -p "$out/gen" "$out/obj"
jobs=$(nproc)

say() { echo "build: $*" >&2; }
die() { say "$*"; exit 1; }

# ---- tools

command -v "${CC:-gcc}" > /dev/null || die "no C compiler: install gcc, or set CC"
nvcc=${NVCC:-}
for at in "$(command -v nvcc || true)" "${CUDA_HOME:-/nonexistent}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
  [[ -n "$nvcc" || ! -x "$at" ]] || nvcc=$at
done
[[ -n "$nvcc" ]] || die "no nvcc: set NVCC or CUDA_HOME, or run deploy/install_deps.sh cuda"
cuda=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
toolkit=(-isystem "$cuda/include")
# A toolkit that is the compiler alone: cuBLAS comes as a package of Python then.
if [[ ! -f "$cuda/include/cublasLt.h" ]]; then
  wheels=$("${BATON_PYTHON:-python3}" -c 'import nvidia.cu13; print(list(nvidia.cu13.__path__)[0])' 2> /dev/null || true)
  [[ -f "$wheels/include/cublasLt.h" ]] || die "no cublasLt.h in $cuda/include: install the toolkit's cuBLAS, or pip install nvidia-cublas"
  toolkit+=(-isystem "$wheels/include")
fi

sys=() links=()
if [[ -n "${BATON_SYSROOT:-}" ]]; then
  root=$(readlink -f "$BATON_SYSROOT")
  lib="$root/usr/lib/x86_64-linux-gnu"
  sys=(-isystem "$root/usr/include" -isystem "$root/usr/include/x86_64-linux-gnu")
  # The old tag: the new one (RUNPATH) would not be looked at for the libraries that these libraries need.
  links=(-L"$lib" -Wl,--disable-new-dtags "-Wl,-rpath,$lib:$root/lib/x86_64-linux-gnu"
    -Wl,-rpath-link,"$lib:$root/lib/x86_64-linux-gnu")
  PATH="$root/usr/bin:$PATH"
  generator_libraries="$lib:$root/lib/x86_64-linux-gnu"
fi
# For the sysroot's own programs alone: this machine's compiler wants its own libz and libgmp.
generate() {
  if [[ -z "${generator_libraries:-}" ]]; then "$@"; return; fi
  LD_LIBRARY_PATH="$generator_libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"
}

# ---- what is generated: messages and descriptors

for proto in $(find proto -name '*.proto'); do
  stem=${proto%.proto}
  [[ "$out/gen/$stem.pb-c.c" -nt "$proto" ]] && continue
  mkdir -p "$out/gen/$(dirname "$proto")"
  generate protoc-c -I. --c_out="$out/gen" "$proto" 2> "$out/protoc.err" ||
    die "protoc-c on $proto: $(head -n 1 "$out/protoc.err"); install protobuf-c-compiler, or set BATON_SYSROOT"
done
# The rules are the truth about which descriptors there are, and what each is made from.
while read -r folder name proto; do
  [[ "$out/gen/$folder/$name.c" -nt "$folder/$proto" ]] && continue
  mkdir -p "$out/gen/$folder"
  generate protoc -Iproto --include_imports --descriptor_set_out="$out/gen/$folder/$name.set" "$folder/$proto"
  {
    echo "#include \"$folder/$name.h\""
    echo "const unsigned char $name[] = {"
    od -An -v -tu1 "$out/gen/$folder/$name.set" | awk '{ for (i = 1; i <= NF; i++) printf "%s,", $i; print "" }'
    echo "};"
    echo "const unsigned long ${name}_len = sizeof $name;"
  } > "$out/gen/$folder/$name.c"
  printf 'extern const unsigned char %s[];\nextern const unsigned long %s_len;\n' "$name" "$name" > "$out/gen/$folder/$name.h"
done < <(find proto -name BUILD | while read -r build; do
  awk -v folder="$(dirname "$build")" '
    /^proto_descriptor_library\(/ { inside = 1 }
    inside && /name = / { split($0, part, "\""); name = part[2] }
    inside && /proto = / { split($0, part, "\""); proto = part[2] }
    inside && /^\)/ { print folder, name, proto; inside = 0 }' "$build"
done)

# ---- for which chips

archs=${BATON_CUDA_ARCHS:-}
if [[ -z "$archs" ]] && command -v nvidia-smi > /dev/null; then
  archs=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1 | tr -d '. ' || true)
  [[ "$archs" != 90 ]] || archs=90a
fi
archs=${archs:-80 89 90a 100}

# ---- C

common=("-DDRIVER_ARCHS=\"${archs// /, sm_}\"" -std=c11 -D_GNU_SOURCE -DPCRE2_CODE_UNIT_WIDTH=8 -g1 -fno-omit-frame-pointer -I. "-I$out/gen" "${sys[@]}" "${toolkit[@]}")
avx2="-mavx2 -mfma -mf16c"
avx512="$avx2 -mavx512f -mavx512bw -mavx512dq -mavx512vl"
# As the rules have it (kernels/cpu/BUILD): the arithmetic fuses nothing that the text does not.
flags_of() {
  case $1 in
    kernels/cpu/*avx512bf16.c) echo "$avx512 -mavx512bf16" ;;
    kernels/cpu/*avx512vnni.c) echo "$avx512 -mavx512vnni" ;;
    kernels/cpu/gemm_int_amx_emulated.c) echo "$avx512 -mavx512vnni" ;;
    kernels/cpu/gemm_int_amx.c) echo "$avx512 -mavx512vnni -mamx-tile -mamx-int8" ;;
    kernels/cpu/gemm_amx_emulated.c) echo "$avx512" ;;
    kernels/cpu/gemm_amx.c) echo "$avx512 -mamx-tile -mamx-bf16" ;;
    kernels/cpu/*avxvnni.c) echo "$avx2 -mavxvnni" ;;
    kernels/cpu/*avx512.c) echo "$avx512" ;;
    kernels/cpu/*avx2.c) echo "$avx2" ;;
  esac
}
is_stale() { # OBJECT SOURCE: older than the source or any header it named
  [[ -f "$1" && -f "${1%.o}.d" ]] || return 0
  local file
  for file in $2 $(sed -e 's/^[^:]*://' -e 's/\\$//' "${1%.o}.d"); do
    [[ "$file" -nt "$1" || ! -e "$file" ]] && return 0
  done
  return 1
}
compile_c() { # SOURCE
  local object="$out/obj/${1//\//.}.o"
  object=${object/.c.o/.o}
  is_stale "$object" "$1" || return 0
  mkdir -p "$(dirname "$object")"
  # shellcheck disable=SC2046
  "${CC:-gcc}" "${common[@]}" -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math $(flags_of "$1") \
    -MMD -MF "${object%.o}.d" -c "$1" -o "$object" || { echo "build: $1 does not compile" >&2; return 1; }
}

products=(base kv kernels model engine control sched transfer rpc node router prefill_node decode_node client)
sources=()
while read -r file; do
  case $file in
    */main.c) ;;                     # linked one by one below
    kernels/cuda/driver_absent.c) ;; # stands in where there is no toolkit
    *) sources+=("$file") ;;
  esac
done < <(find "${products[@]}" -name '*.c' | sort; find "$out/gen" -name '*.c' | sort)

mains=(router/main.c prefill_node/main.c decode_node/main.c client/main.c)
benches=(device_bench model_bench)
for name in "${benches[@]}"; do mains+=("bench/gpu/$name.c"); done
mains+=(bench/median.c)
# The kernels' and the backend's own tests, on the chip: "NAME: other sources in their folder". See tests/gpu/*.c.
launch_checks=("rows_test: rows_testing" "crc32c_test: rows_testing" "kv_write_test: rows_testing" "slots_test: rows_testing ../../kv_memory/kv_convert" "attention_test:" "sample_test:" "gemv_test: ../kernels/kernels_testing")
backend_checks=("backend_ops_test: backend_testing" "gemm_plan_test: backend_testing" "graph_test: backend_testing" "../model/forward_cuda_test: ../model/forward_harness")
test_objects() { # "NAME: OTHERS": their sources
  local name
  for name in ${1/:/}; do echo "tests/unit/kernels_cuda/$name.c"; done | sed 's#[a-z_]*/\.\./##; s#[a-z_]*/\.\./##'
}
if [[ "${CHECKS:-yes}" == yes ]]; then
  mains+=(tests/gpu/launch_on_device.c tests/gpu/emulated_by_device.c)
  one_gpu=(tests/nccl/one_gpu.c tests/nccl/one_gpu_loop.c tests/nccl/one_gpu_pair.c) # of tests/nccl/one_gpu.sh
  mains+=("${one_gpu[@]}")
  while read -r file; do mains+=("$file"); done < <(for check in "${launch_checks[@]}" "${backend_checks[@]}"; do test_objects "$check"; done | sort -u)
fi
pids=0
failed_mark="$out/failed"
rm -f "$failed_mark"
run_limited() {
  if ((pids >= jobs)); then wait -n || true; pids=$((pids - 1)); fi
  ("$@" || touch "$failed_mark") &
  pids=$((pids + 1))
}

# ---- device code, as build_defs/cuda.bzl has it

gencode=()
for arch in $archs; do gencode+=(-gencode "arch=compute_$arch,code=sm_$arch"); done
mkdir -p "$out/fatbin"
[[ "$(cat "$out/fatbin/archs" 2> /dev/null)" == "$archs" ]] || { rm -f "$out"/fatbin/*.fatbin; echo "$archs" > "$out/fatbin/archs"; }

compile_cu() { # SOURCE
  local fatbin="$out/fatbin/$(basename "$1" .cu).fatbin" newest
  newest=$(ls -t "$1" kernels/cuda/*.cuh kernels/cuda/*_args.h kernels/kernels.h | head -n 1)
  [[ -f "$fatbin" && "$fatbin" -nt "$newest" ]] && return 0
  "$nvcc" --fatbin -std=c++17 -O3 --fmad=false --Werror all-warnings -I. "${gencode[@]}" -o "$fatbin" "$1" ||
    { echo "build: $1 does not compile" >&2; return 1; }
}
kernels=(kernels/cuda/*.cu)
for file in "${kernels[@]}"; do run_limited compile_cu "$file"; done
for file in "${sources[@]}" "${mains[@]}"; do run_limited compile_c "$file"; done
wait
pids=0
[[ ! -e "$failed_mark" ]] || die "see above; a missing header belongs to a package of deploy/install_deps.sh list"

object_of() { local object="$out/obj/${1//\//.}.o"; echo "${object/.c.o/.o}"; }
archive="$out/libbaton.a"
rm -f "$archive"
objects=()
# A weak reference takes nothing out of an archive: the driver is linked by name.
driver=()
for file in "${sources[@]}"; do
  case $file in
    kernels/cuda/driver_*.c) driver+=("$(object_of "$file")") ;;
    *) objects+=("$(object_of "$file")") ;;
  esac
done
{
  echo '#include "kernels/cuda/fatbin_rows.h"'
  for file in "${kernels[@]}"; do name=$(basename "$file" .cu); echo "CUDA_FATBIN($name, \"$out/fatbin/$name.fatbin\")"; done
  echo CUDA_FATBIN_TABLE
  for file in "${kernels[@]}"; do name=$(basename "$file" .cu); echo "CUDA_FATBIN_ROW($name, \"$name.cu\")"; done
  echo CUDA_FATBIN_TABLE_END
} > "$out/obj/fatbin_table.S"
"${CC:-gcc}" -I. -c "$out/obj/fatbin_table.S" -o "$out/obj/fatbin_table.o"
driver+=("$out/obj/fatbin_table.o")
ar rcs "$archive" "${objects[@]}"

libraries=(-lgrpc -lgpr -lprotobuf-c -ljansson -lpcre2-8 -lutf8proc -lmicrohttpd -lssl -lcrypto -lxxhash -luring -lpthread -lm -ldl)
link_program() { # PROGRAM OBJECT...
  local program="$out/bin/$1"
  shift
  mkdir -p "$(dirname "$program")"
  "${CC:-gcc}" -o "$program" "${links[@]}" "$@" "${driver[@]}" "$archive" "${libraries[@]}"
}
# Where Bazel has them too, so that tests/e2e/cluster.py finds them below BATON_BIN.
run_limited link_program router/router "$(object_of router/main.c)"
run_limited link_program prefill_node/prefill_node "$(object_of prefill_node/main.c)"
run_limited link_program decode_node/decode_node "$(object_of decode_node/main.c)"
run_limited link_program client/baton "$(object_of client/main.c)"
for name in "${benches[@]}"; do run_limited link_program "bench/$name" "$(object_of "bench/gpu/$name.c")" "$(object_of bench/median.c)"; done
link_check() { # CHECK SUPPORT
  local objects=() file
  for file in $(test_objects "$1"); do objects+=("$(object_of "$file")"); done
  link_program "tests/$(basename "${1%%:*}")" "${objects[@]}" "$(object_of "tests/gpu/$2.c")" -lcmocka
}
if [[ "${CHECKS:-yes}" == yes ]]; then
  for check in "${launch_checks[@]}"; do run_limited link_check "$check" launch_on_device; done
  for check in "${backend_checks[@]}"; do run_limited link_check "$check" emulated_by_device; done
  # shellcheck disable=SC2046
  run_limited link_program tests/nccl/one_gpu $(for file in "${one_gpu[@]}"; do object_of "$file"; done)
fi
wait
[[ ! -e "$failed_mark" ]] || die "linking failed"
# tests/e2e/cuda_test.py asks for the nodes that are linked with a device: here a real one.
mkdir -p "$out/bin/tests/cuda"
for role in prefill decode; do ln -sfn "../../${role}_node/${role}_node" "$out/bin/tests/cuda/${role}_node_emulated"; done
say "programs in $out/bin after $SECONDS s"
