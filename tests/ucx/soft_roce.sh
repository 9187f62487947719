#!/usr/bin/env bash
# The ucx cable over RDMA verbs, without RDMA hardware: a Debian kernel in QEMU, emulated, with two
# Soft-RoCE devices (rdma_rxe) on the two ends of a veth pair. Two processes transfer over RC queue
# pairs from one end to the other; what lands is compared; each side is killed and stopped in turn.
#   tests/ucx/soft_roce.sh                 builds the conformance suite, boots, prints a summary
#   tests/ucx/soft_roce.sh --keep=DIR      leaves the guest's files and its whole log in DIR
#   tests/ucx/soft_roce.sh --shell=CMD     runs CMD in the guest instead of the suite
# It takes some minutes: every instruction of the guest is emulated, which is slow and shows nothing of
# RDMA's speed. Not part of the default tests. Ends with 0 and a message where it cannot run.
#
# It needs these Debian packages, and names what is missing: qemu-system-x86 kmod cpio busybox-static
# iproute2 libibverbs1 ibverbs-providers; a kernel (BATON_KERNEL_DEB, a package file, or it is fetched
# with apt-get download); and a UCX 1.19 or newer that has its verbs part (BATON_UCX_VERBS, the path of its
# libucp, or the wheel nixl-cu12 is fetched with pip download: the wheels libucx-* leave that part out).
#
# Why one network namespace: rdma_rxe of Linux 6.1 looks up routes and opens its socket in the first one
# alone. So that packets cross the veth pair all the same, the addresses of its ends are taken out
# of the local table and are local only for what arrives at the right end.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."

keep="" shell_command=""
for argument in "$@"; do
  case "$argument" in
    --keep=*) keep="${argument#--keep=}" ;;
    --shell=*) shell_command="${argument#--shell=}" ;;
    *) sed -n '2,9p' "$0" | cut -c3- >&2; exit 2 ;;
  esac
done

skip() { echo "skipped: $*"; exit 0; }
for tool in qemu-system-x86_64:qemu-system-x86 modprobe:kmod depmod:kmod cpio:cpio busybox:busybox-static rdma:iproute2 ip:iproute2 unzip:unzip; do
  command -v "${tool%%:*}" > /dev/null || PATH="$PATH:/usr/sbin:/sbin" command -v "${tool%%:*}" > /dev/null ||
    skip "${tool%%:*} is missing: apt-get install ${tool##*:}"
done
PATH="$PATH:/usr/sbin:/sbin"
libs=/usr/lib/x86_64-linux-gnu
[[ -e "$libs/libibverbs.so.1" ]] || skip "libibverbs is missing: apt-get install libibverbs1"
[[ -e "$libs/libibverbs/librxe-rdmav34.so" ]] || skip "the rxe provider is missing: apt-get install ibverbs-providers"

work="${keep:-$(mktemp -d)}"
mkdir -p "$work"
[[ -n "$keep" ]] || trap 'rm -rf "$work"' EXIT
cache="${XDG_CACHE_HOME:-$HOME/.cache}/baton/soft_roce"
mkdir -p "$cache"
started=$SECONDS

# ---- a kernel
kernel_deb="${BATON_KERNEL_DEB:-}"
if [[ -z "$kernel_deb" ]]; then
  kernel_deb=$(find "$cache" -name 'linux-image-*.deb' | sort | tail -n 1)
  if [[ -z "$kernel_deb" ]]; then
    package=$(apt-cache depends linux-image-amd64 2> /dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [[ -n "$package" ]] && (cd "$cache" && apt-get download "$package" > /dev/null 2>&1) ||
      skip "no kernel package: name one with BATON_KERNEL_DEB"
    kernel_deb=$(find "$cache" -name 'linux-image-*.deb' | sort | tail -n 1)
  fi
fi
dpkg-deb -x "$kernel_deb" "$work/kernel"
version=$(basename "$work"/kernel/lib/modules/*)

# ---- UCX with verbs
ucx="${BATON_UCX_VERBS:-}"
if [[ -z "$ucx" ]]; then
  if ! compgen -G "$cache/nixl_cu12.libs/libucp*" > /dev/null; then
    python="${BATON_PYTHON:-python3}"
    "$python" -m pip download --quiet --no-deps --dest "$cache" nixl-cu12 > /dev/null 2>&1 ||
      skip "no UCX with verbs: name its libucp with BATON_UCX_VERBS"
    unzip -qo "$cache"/nixl_cu12-*.whl 'nixl_cu12.libs/*' -d "$cache"
  fi
  ucx=$(compgen -G "$cache/nixl_cu12.libs/libucp*" | head -n 1)
fi
compgen -G "$(dirname "$ucx")/ucx/libuct_ib.so*" > /dev/null || skip "$ucx has no verbs part: there is no ucx/libuct_ib beside it"

# ---- the suite
suite="${BATON_SUITE:-}"
if [[ -z "$suite" ]]; then
  # shellcheck disable=SC2086
  bazel build ${BATON_BAZEL_FLAGS:-} //tests/conformance:conformance_ucx_test 2>&1 | grep -v linux-sandbox || true
  suite="$(bazel info bazel-bin 2> /dev/null)/tests/conformance/conformance_ucx_test"
fi
[[ -x "$suite" ]] || { echo "the conformance suite was not built: $suite" >&2; exit 1; }

# ---- the guest's files
root="$work/root"
rm -rf "$root"
mkdir -p "$root"/{bin,tools,dev,proc,sys,tmp,run,etc,ucx,lib64,usr/lib64} "$root$libs/libibverbs"
cp "$(command -v busybox)" "$root/bin/busybox"
put() { # a program or library, and what it links
  local file
  cp -L "$1" "$root/$2"
  while read -r file; do
    [[ -e "$root/$file" ]] || cp -L --parents "$file" "$root"
  done < <(LD_LIBRARY_PATH="$(dirname "$ucx")" ldd "$1" | sed -nE 's/.*(=> )?[[:space:]](\/[^ ]+) \(.*/\2/p')
}
put "$(command -v ip)" tools/ip # not in bin: the shell of busybox takes its own "ip" first
put "$(command -v rdma)" bin/rdma
put "$suite" bin/suite
for tool in ibv_rc_pingpong ibv_ud_pingpong; do # for --shell
  if command -v "$tool" > /dev/null; then put "$(command -v "$tool")" "bin/$tool"; fi
done
put "$libs/libibverbs.so.1" "$libs/libibverbs.so.1"
put "$libs/libibverbs/librxe-rdmav34.so" "$libs/libibverbs/librxe-rdmav34.so"
mkdir -p "$root/etc/libibverbs.d"
echo "driver rxe" > "$root/etc/libibverbs.d/rxe.driver"
# The libraries that UCX itself consists of. One that carries a libibverbs of its own under another
# name gets the guest's: there can be one, or the rxe provider would announce itself to the wrong one.
mkdir -p "$root/ucx/ucx"
for file in "$(dirname "$ucx")"/libuc[mpst]*.so* "$(dirname "$ucx")"/libnl-*.so*; do
  [[ -e "$file" ]] && cp -a "$file" "$root/ucx/"
done
for file in "$(dirname "$ucx")"/ucx/libuct_ib.so* "$(dirname "$ucx")"/ucx/libuct_cma.so*; do
  [[ -e "$file" ]] && cp -a "$file" "$root/ucx/ucx/"
done
# What they want of the C library.
for name in libc libm libdl libpthread librt libgcc_s; do
  for file in "$libs/$name".so.*; do [[ -e "$root$file" ]] || cp -L "$file" "$root$file"; done
done
own_verbs=$(readelf -d "$(compgen -G "$root/ucx/ucx/libuct_ib.so*" | head -n 1)" | sed -nE 's/.*NEEDED.*\[(libibverbs[^]]*)\]/\1/p')
[[ "$own_verbs" == libibverbs.so.1 ]] || ln -s "$libs/libibverbs.so.1" "$root/ucx/$own_verbs"
# Programs of ours that a test calls.
for name in sh mount mkdir cat sleep ls grep mknod ln poweroff modprobe insmod head tail ulimit dmesg env date uname sed; do
  ln -sf busybox "$root/bin/$name"
done
depmod -b "$work/kernel" "$version"
for module in crc32_generic rdma_rxe ib_uverbs veth; do # crc32 is rxe's, which does not say so
  modprobe -d "$work/kernel" -S "$version" --show-depends "$module" 2> /dev/null | sed -n 's/^insmod //p'
done | awk '!seen[$1]++ {print $1}' > "$work/modules"
mkdir -p "$root/modules"
count=10
while read -r module; do
  cp "$module" "$root/modules/$count-$(basename "$module")"
  count=$((count + 1))
done < "$work/modules"

tests="${BATON_SOFT_ROCE_TESTS:-transfers_side_by_side_do_not_mix all_shapes_land_whole forged_frames_land_nowhere wrong_sums_are_data_loss lease_ends_a_grant killed_sender_frees_the_blocks killed_receiver_and_its_successor stopped_sender_writes_nothing_when_it_wakes stopped_receiver_finds_the_transfer_over slow_reader_gets_everything abort_storm}"
cat > "$root/init" << EOF
#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
for module in /modules/*; do insmod \$module || echo "guest: \$module was refused"; done
/tools/ip link set lo up
/tools/ip link add veth0 type veth peer name veth1
for end in 0 1; do
  other=\$((1 - end))
  echo 1 > /proc/sys/net/ipv4/conf/veth\$end/accept_local
  echo 0 > /proc/sys/net/ipv4/conf/veth\$end/rp_filter
  /tools/ip addr add 10.77.0.1\$end/24 dev veth\$end
  /tools/ip link set veth\$end up
done
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind
for end in 0 1; do rdma link add rxe\$end type rxe netdev veth\$end; done
/tools/ip rule add pref 10 iif veth0 lookup 100
/tools/ip rule add pref 11 iif veth1 lookup 101
/tools/ip route add local 10.77.0.10 dev veth0 table 100
/tools/ip route add local 10.77.0.11 dev veth1 table 101
/tools/ip route flush dev veth0 table main
/tools/ip route flush dev veth1 table main
/tools/ip route add 10.77.0.11 dev veth0 src 10.77.0.10
/tools/ip route add 10.77.0.10 dev veth1 src 10.77.0.11
/tools/ip route del local 10.77.0.10 table local
/tools/ip route del local 10.77.0.11 table local
# No address resolution between two ends that answer for each other.
/tools/ip neigh replace 10.77.0.11 lladdr \$(cat /sys/class/net/veth1/address) dev veth0 nud permanent
/tools/ip neigh replace 10.77.0.10 lladdr \$(cat /sys/class/net/veth0/address) dev veth1 nud permanent
mkdir -p /dev/infiniband
for device in /sys/class/infiniband_verbs/uverbs*; do
  name=\${device##*/}
  [ -e /dev/infiniband/\$name ] || mknod /dev/infiniband/\$name c \$(sed 's/:/ /' \$device/dev)
done
rdma link
ulimit -l unlimited
export LD_LIBRARY_PATH=/ucx BATON_UCX_LIBRARY=/ucx/$(basename "$ucx")
export BATON_UCX_MODE=\${BATON_UCX_MODE:-1}
# The address by IPv4: index 0 is the link-local one, which both ends would keep to themselves.
export UCX_IB_GID_INDEX=1 BATON_TEST_PATIENCE=6
export BATON_UCX_DEVICES_D=rxe1:1 BATON_UCX_DEVICES_P=rxe0:1 BATON_TEST_STORM=${BATON_TEST_STORM:-300}
echo "guest: up"
$(if [[ -n "$shell_command" ]]; then
    echo "$shell_command"
  else
    for test in $tests; do
      echo "echo \"guest: begins $test\"; suite ucx $test; echo \"guest: $test ended with \$?\""
    done
  fi)
echo "guest: \$(cat /sys/class/infiniband/rxe1/ports/1/hw_counters/rcvd_pkts 2>/dev/null) packets received by rxe1, \$(cat /sys/class/net/veth1/statistics/rx_bytes) bytes by veth1"
echo "guest: done"
poweroff -f
EOF
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 > "$work/initrd"

# ---- the run
log="$work/log"
timeout "${BATON_SOFT_ROCE_SECONDS:-900}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 3072 -nographic -no-reboot -net none \
  -kernel "$work/kernel/boot/vmlinuz-$version" -initrd "$work/initrd" \
  -append "console=ttyS0 quiet panic=-1 rdinit=/init" < /dev/null > "$log" 2>&1 || true
[[ -z "$keep" ]] || echo "log: $log"

# ---- the summary
if ! grep -q 'guest: done' "$log"; then
  tail -n 40 "$log"
  echo "the guest did not come to its end"
  exit 1
fi
[[ -z "$shell_command" ]] || { tr -d '\r' < "$log"; exit 0; }
tr -d '\r' < "$log" | sed -nE 's/.*event=ucx_connected (.*role=p.*lanes="[^"]*").*/\1/p' | sed -E 's/link=[0-9]+ //' | sort | uniq -c | sed 's/^/connections: /'
failed=0
for test in $tests; do
  if tr -d '\r' < "$log" | grep -q "guest: $test ended with 0"; then echo "ok      $test"; else echo "FAILED  $test"; failed=$((failed + 1)); fi
done
tr -d '\r' < "$log" | sed -n 's/^guest: \(.*packets.*\)/\1/p'
if ! grep -q 'rc_verbs/rxe' "$log"; then
  echo "FAILED  no connection was made over rc_verbs"
  failed=$((failed + 1))
fi
echo "$((SECONDS - started)) s, kernel $version, $(sed -nE 's/.*event=ucx_ready version=([0-9.]+) tls=([^ ]+).*/UCX \1, lanes allowed: \2/p' "$log" | head -n 1)"
((failed == 0))
