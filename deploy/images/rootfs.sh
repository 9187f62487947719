#!/usr/bin/env bash
# Assembles what a container of Baton holds: the programs, the shared libraries they need and
# nothing else: no shell, no package manager. The Dockerfiles call it in their build stage; the
# test in tests/deploy calls it too, so that what is tested is what ships.
#   deploy/images/rootfs.sh OUT_DIR PROGRAM... [--library=FILE]... [--file=FILE]... [--model=DIR]
# Programs come to /usr/bin, the model to /models/<its name>, a --library, which a program loads at run
# time by its name, with what it needs itself to /usr/lib. A --file, which is sought by its whole path, such as
# a plug-in of a library, stays at that path, with what it needs. Prints the size.
set -euo pipefail

out= model=
programs=() libraries=() files=()
for word in "$@"; do
  case "$word" in
    --model=*) model="${word#*=}" ;;
    --library=*) libraries+=("${word#*=}") ;;
    --file=*) files+=("${word#*=}") ;;
    -*) echo "rootfs.sh: $word: no such flag" >&2; exit 2 ;;
    *) if [[ -z "$out" ]]; then out="$word"; else programs+=("$word"); fi ;;
  esac
done
[[ -n "$out" && ${#programs[@]} -gt 0 ]] || { echo "usage: rootfs.sh OUT_DIR PROGRAM... [--library=FILE]... [--file=FILE]... [--model=DIR]" >&2; exit 2; }
[[ ! -e "$out" ]] || [[ -d "$out" && -z "$(ls -A "$out")" ]] || { echo "rootfs.sh: $out is not empty" >&2; exit 1; }

# Debian's merged layout, so that every library lies where the loader looks without a cache.
mkdir -p "$out"/{usr/bin,usr/lib,usr/lib64,etc,tmp,run/baton,models}
ln -s usr/lib "$out/lib"
ln -s usr/lib64 "$out/lib64"
ln -s usr/bin "$out/bin"
chmod 1777 "$out/tmp" "$out/run/baton"

declare -A owners_wanted=()
copy_library() {
  local path="$1" at="$out$1" real
  case "$path" in /lib/* | /lib64/*) at="$out/usr$path" ;; esac
  [[ ! -e "$at" ]] || return 0
  real=$(readlink -f "$path")
  install -D -m 755 "$real" "$at"
  # Some packages name their files below /lib, some below /usr/lib.
  owners_wanted["$real"]=1 owners_wanted["${real#/usr}"]=1
}

copy_needed() { # FILE: the libraries that it is linked with
  if ldd "$1" | grep 'not found' >&2; then
    echo "rootfs.sh: $1 needs the libraries above" >&2
    exit 1
  fi
  # "libx.so => /path (0x..)" and the loader's own "/lib64/ld-linux... (0x..)".
  while read -r library; do copy_library "$library"; done < <(
    ldd "$1" | sed -n -e 's/.*=> \(\/[^ ]*\) .*/\1/p' -e 's/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | sort -u
  )
}

for program in "${programs[@]}"; do
  install -m 755 "$program" "$out/usr/bin/"
  # Line tables stay on the build machine; function names stay, for backtraces.
  ! command -v strip > /dev/null || strip --strip-debug "$out/usr/bin/$(basename "$program")"
  copy_needed "$program"
done
for library in "${libraries[@]}"; do
  [[ -f "$library" ]] || { echo "rootfs.sh: --library=$library: no such file" >&2; exit 1; }
  install -D -m 755 "$(readlink -f "$library")" "$out/usr/lib/$(basename "$library")"
  owners_wanted["$(readlink -f "$library")"]=1
  copy_needed "$library"
done
for file in "${files[@]}"; do
  [[ "$file" == /* && -f "$file" ]] || { echo "rootfs.sh: --file=$file: no such file, or no whole path" >&2; exit 1; }
  real=$(readlink -f "$file") # a link stays one: a library under two names is loaded once
  owners_wanted["$real"]=1 owners_wanted["${real#/usr}"]=1
  case "$real" in *.so | *.so.*) mode=755 && copy_needed "$real" ;; *) mode=644 ;; esac
  case "$file" in /lib/* | /lib64/*) file="/usr$file" ;; esac
  [[ -e "$out$real" ]] || install -D -m "$mode" "$real" "$out$real"
  [[ -e "$out$file" || -L "$out$file" ]] || { mkdir -p "$(dirname "$out$file")" && ln -s "$real" "$out$file"; }
done

# Debian's licences travel with its libraries. Each library is unknown under one of its two names.
while read -r package; do
  [[ ! -f "/usr/share/doc/$package/copyright" ]] ||
    install -D -m 644 "/usr/share/doc/$package/copyright" "$out/usr/share/doc/$package/copyright"
done < <({ dpkg-query -S "${!owners_wanted[@]}" 2> /dev/null || true; } | sed 's/:.*//' | sort -u)

# getaddrinfo reads these; files and dns are part of glibc itself.
echo 'hosts: files dns' > "$out/etc/nsswitch.conf"
echo 'baton:x:65532:65532::/:/none' > "$out/etc/passwd"
echo 'baton:x:65532:' > "$out/etc/group"

if [[ -n "$model" ]]; then
  name=$(basename "$(readlink -f "$model")")
  mkdir -p "$out/models/$name"
  for file in "$model"/*.json "$model"/*.safetensors "$model"/*.jinja; do
    [[ ! -f "$file" ]] || install -m 644 "$file" "$out/models/$name/"
  done
fi

echo "$out: $(du -sk --apparent-size "$out" | cut -f1) KiB, $(find "$out" -name '*.so*' -type f | wc -l) libraries"
