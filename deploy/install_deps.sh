#!/usr/bin/env bash
# Installs what building and testing Baton on Debian 12 needs, and nothing that is there already.
#   deploy/install_deps.sh build   compiler, Bazel, libraries           (quickstart)
#   deploy/install_deps.sh test    the same, and what only tests need   (tests/run.sh)
#   deploy/install_deps.sh cuda    what build does, and the CUDA 13 toolkit as Python wheels into .cuda of this
#                                  repository, about 1.2 GB, where the build finds it; only when asked. A machine with
#                                  a toolkit in CUDA_HOME, PATH or /usr/local/cuda needs none of it
#   deploy/install_deps.sh list    prints the packages of both, one a line, and installs nothing
# Safe to run twice, and beside another one. What cannot be installed is named, with the
# command that would do it.
set -euo pipefail

build_packages=(
  gcc libc6-dev bazel-bootstrap bazel-platforms bazel-skylib bazel-rules-java bazel-rules-proto
  protobuf-compiler protobuf-c-compiler libprotobuf-c-dev libgrpc-dev libjansson-dev libpcre2-dev
  libutf8proc-dev libmicrohttpd-dev libssl-dev libxxhash-dev liburing-dev
)
# g++ compiles the CUDA kernels for the emulator that tests run them on.
test_packages=(libcmocka-dev iproute2 openssl clang libclang-rt-14-dev g++ python3 python3-venv python3-pip)
# nvcc needs a g++ to preprocess with. NCCL finds RDMA cards through libibverbs and its providers, and without them
# goes by sockets.
cuda_packages=(g++ python3 python3-pip libibverbs1 ibverbs-providers)
# The compiler, its parts and headers, cuBLAS, whose header the build and whose library the nodes need, and NCCL, whose
# library they need for --nccl=on.
cuda_wheels=(
  'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-runtime==13.0.*'
  'nvidia-cuda-cccl==13.0.*' 'nvidia-cublas==13.*' 'nvidia-nccl-cu13==2.28.*'
)

what="${1:-build}"
case "$what" in
  build) wanted=("${build_packages[@]}") ;;
  test) wanted=("${build_packages[@]}" "${test_packages[@]}") ;;
  cuda) wanted=("${build_packages[@]}" "${cuda_packages[@]}") ;;
  list) printf '%s\n' "${build_packages[@]}" "${test_packages[@]}"; exit 0 ;;
  *) echo "usage: deploy/install_deps.sh [build|test|cuda|list]" >&2; exit 2 ;;
esac

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
  echo "This is no Debian system: dpkg-query or apt-get is missing. Install what these packages of" >&2
  echo "Debian 12 hold, in the versions named in third_party/BUILD: ${wanted[*]}" >&2
  exit 1
fi

# Into a folder beside the last, so that a download that stops half way leaves no toolkit that is one in part.
fetch_cuda() {
  local root
  root="$(cd "$(dirname "$0")/.." && pwd)"
  if [[ -x "$root/.cuda/bin/nvcc" && -f "$root/.cuda/include/cublasLt.h" && -f "$root/.cuda/lib/libnccl.so.2" ]]; then return; fi
  local fresh="$root/.cuda.part"
  rm -rf "$fresh"
  echo "Fetching the CUDA 13 toolkit into $root/.cuda (some minutes): ${cuda_wheels[*]}"
  if ! python3 -m pip install --quiet --no-deps --disable-pip-version-check --target "$fresh" "${cuda_wheels[@]}" ||
    [[ ! -d "$fresh/nvidia/cu13" || ! -d "$fresh/nvidia/nccl" ]]; then
    rm -rf "$fresh"
    echo "Could not fetch it. By hand: install the CUDA 13 toolkit and set CUDA_HOME to it, or" >&2
    echo "  python3 -m pip install --no-deps --target FOLDER ${cuda_wheels[*]}" >&2
    echo "and set CUDA_HOME to FOLDER/nvidia/cu13; NCCL is then FOLDER/nvidia/nccl/lib/libnccl.so.2 (--nccl-library)." >&2
    exit 1
  fi
  cp -al "$fresh/nvidia/nccl/include/." "$fresh/nvidia/cu13/include/" # its wheel has a tree of its own
  cp -al "$fresh/nvidia/nccl/lib/." "$fresh/nvidia/cu13/lib/"
  rm -rf "$root/.cuda"
  mv "$fresh/nvidia/cu13" "$root/.cuda"
  rm -rf "$fresh"
  echo "The toolkit is in $root/.cuda. Where Bazel has run before: bazel sync --configure"
  echo "A node finds cuBLASLt there with CUDA_HOME=$root/.cuda, and NCCL with --nccl-library=$root/.cuda/lib/libnccl.so.2"
}

finish() {
  if [[ "$what" == cuda ]]; then fetch_cuda; fi
  exit 0
}

find_missing() {
  missing=()
  local package
  for package in "${wanted[@]}"; do
    if [[ "$(dpkg-query -W -f='${Status}' "$package" 2> /dev/null || true)" != "install ok installed" ]]; then
      missing+=("$package")
    fi
  done
}

find_missing
((${#missing[@]} > 0)) || finish

by_hand() { echo "  apt-get update && apt-get install --no-install-recommends ${missing[*]}" >&2; }

as_root=()
if [[ "$(id -u)" != 0 ]]; then
  if ! command -v sudo > /dev/null; then
    echo "These Debian packages are missing and there is neither root nor sudo to install them. As root:" >&2
    by_hand
    exit 1
  fi
  echo "Debian packages are missing; sudo may ask for your password: ${missing[*]}"
  if ! sudo -v; then
    echo "sudo was refused. As root:" >&2
    by_hand
    exit 1
  fi
  as_root=(sudo)
fi

# One at a time: apt's own lock on its lists does not wait.
exec 9< /var/lib/dpkg
if command -v flock > /dev/null && ! flock --nonblock 9; then
  echo "Another installation is running; waiting for it."
  flock 9
  find_missing
  ((${#missing[@]} > 0)) || finish
fi

echo "Installing ${#missing[@]} Debian packages and what they need (some minutes): ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Half an installation is worse than a late one: apt is left to finish.
trap 'echo >&2; echo "Stopped; what apt has begun it finishes by itself." >&2; exit 130' INT

# Shows that it goes on: the last line of the log, on a terminal only.
watched() {
  "$@" >> "$log" 2>&1 9<&- < /dev/null &
  local pid=$! start=$SECONDS
  if [[ -t 2 ]]; then
    while kill -0 "$pid" 2> /dev/null; do
      printf '\r\033[K  %3d s  %.60s' $((SECONDS - start)) "$(tail -n 1 "$log" | tr -cd '[:print:]')" >&2
      sleep 1
    done
    printf '\r\033[K' >&2
  fi
  wait "$pid"
}

apt() { watched "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 "$@"; }

# An update that fails may be one dead mirror of many: the installation says what is missing.
apt update || echo "apt-get update failed; trying with the lists that are here." >&2
if ! apt install -y --no-install-recommends "${missing[@]}"; then
  tail -n 20 "$log" >&2
  find_missing
  echo "Could not install: ${missing[*]}" >&2
  echo "They come from Debian 12 (bookworm), section main. By hand, as root:" >&2
  by_hand
  exit 1
fi
finish
