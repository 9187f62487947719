#!/usr/bin/env bash
# Unpacks headers, libraries and generators of the Debian 12 packages that Baton builds with into a folder that
# can be taken to a machine with a GPU where nothing can be installed:
#   tests/gpu/sysroot.sh [FOLDER]      default .gpu-sysroot
# There: BATON_SYSROOT=FOLDER tests/gpu/run.sh. The C library and compiler are that machine's own.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
to=${1:-.gpu-sysroot}
mkdir -p "$to"
to=$(readlink -f "$to")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mapfile -t headers < <(deploy/install_deps.sh list | grep -E '^lib.*-dev$' | grep -vE '^libc6|^libclang')
tools=(protobuf-compiler protobuf-c-compiler)
# What they need at run time, less what any glibc machine has.
mapfile -t needed < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
  --no-enhances "${headers[@]}" "${tools[@]}" |
  grep -E '^lib[a-z0-9+.-]+$' | grep -vE -- '-dev$|^libc6|^libgcc|^libstdc|^libcrypt|-doc$|^libc-|^lib(32|x32)|^libunbound|^libgnutls-dane|^libevent' | sort -u)
needed+=(libc-ares2)
cd "$work"
apt-get -q download "${headers[@]}" "${tools[@]}" "${needed[@]}" > "$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" "$to"; done

# Nothing is linked statically, and pages are for readers.
find "$to" -name '*.a' -delete
rm -rf "$to/usr/share" "$to/etc" "$to/var" "$to"/usr/lib/x86_64-linux-gnu/libgrpc_unsecure*
# Links to a library in /lib, as the -dev packages make them, must stay inside.
find "$to" -type l | while read -r link; do
  target=$(readlink "$link")
  [[ "$target" != /* ]] || ln -sf "$(realpath -m --relative-to="$(dirname "$link")" "$to$target")" "$link"
done
du -sh "$to"
