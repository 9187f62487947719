#!/usr/bin/env bash
# Installs what building and testing Baton on Debian 12 needs, and nothing that is there already.
#   deploy/install_deps.sh build   compiler, Bazel, libraries           (quickstart)
#   deploy/install_deps.sh test    the same, and what only tests need   (tests/run.sh)
#   deploy/install_deps.sh list    prints the packages of both, one a line, and installs nothing
# Safe to run twice, and beside another one. What cannot be installed is named, with the
# command that would do it.
set -euo pipefail

build_packages=(
  gcc libc6-dev bazel-bootstrap bazel-platforms bazel-skylib bazel-rules-java bazel-rules-proto
  protobuf-compiler protobuf-c-compiler libprotobuf-c-dev libgrpc-dev libjansson-dev libpcre2-dev
  libutf8proc-dev libmicrohttpd-dev libssl-dev libxxhash-dev liburing-dev
)
test_packages=(libcmocka-dev iproute2 openssl clang libclang-rt-14-dev python3 python3-venv python3-pip)

what="${1:-build}"
case "$what" in
  build) wanted=("${build_packages[@]}") ;;
  test) wanted=("${build_packages[@]}" "${test_packages[@]}") ;;
  list) printf '%s\n' "${build_packages[@]}" "${test_packages[@]}"; exit 0 ;;
  *) echo "usage: deploy/install_deps.sh [build|test|list]" >&2; exit 2 ;;
esac

if ! command -v dpkg-query > /dev/null || ! command -v apt-get > /dev/null; then
  echo "This is no Debian system: dpkg-query or apt-get is missing. Install what these packages of" >&2
  echo "Debian 12 hold, in the versions named in third_party/BUILD: ${wanted[*]}" >&2
  exit 1
fi

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
((${#missing[@]} > 0)) || exit 0

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
  ((${#missing[@]} > 0)) || exit 0
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
