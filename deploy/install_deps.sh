#!/usr/bin/env bash
# Installs what building and testing Baton on Debian 12 needs, and nothing that is there already.
#   deploy/install_deps.sh build   compiler, Bazel, libraries           (quickstart)
#   deploy/install_deps.sh test    the same, and what only tests need   (tests/run.sh)
# Safe to run twice. What cannot be installed is named, with the command that would do it.
set -euo pipefail

build_packages=(
  gcc libc6-dev bazel-bootstrap bazel-platforms bazel-skylib bazel-rules-java bazel-rules-proto
  protobuf-compiler protobuf-c-compiler libprotobuf-c-dev libgrpc-dev libjansson-dev libpcre2-dev
  libutf8proc-dev libmicrohttpd-dev libssl-dev libxxhash-dev
)
test_packages=(libcmocka-dev iproute2 python3 python3-venv python3-pip)

wanted=("${build_packages[@]}")
[[ "${1:-build}" == test ]] && wanted+=("${test_packages[@]}")

missing=()
for package in "${wanted[@]}"; do
  if [[ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)" != "install ok installed" ]]; then
    missing+=("$package")
  fi
done

if ((${#missing[@]} > 0)); then
  as_root=()
  if [[ "$(id -u)" != 0 ]]; then
    if ! command -v sudo > /dev/null; then
      echo "These Debian packages are missing and there is neither root nor sudo to install them:" >&2
      echo "  apt-get install ${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  echo "Installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update && "${as_root[@]}" apt-get install -y --no-install-recommends "${missing[@]}"; } > "$log" 2>&1; then
    tail -20 "$log" >&2
    echo "Could not install: ${missing[*]}" >&2
    echo "Do it by hand: apt-get update && apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  rm -f "$log"
fi
