#!/bin/bash
# In dom0: a PV domU on a disk that the server has, by way of the kernel's nbd client and blkback.
. "$(dirname "$0")/lib.sh"

# domu NAME DISK: a domain that runs the script that comes in, until it is gone. What it says goes to ./NAME.console.
domu() {
    mkdir -p "$1"
    cat >"$1/script"
    cp "$COWNBD_DOMU_RAMDISK" "$1.cpio"
    # A ramdisk may be several archives, one after the other.
    (cd "$1" && echo script | cpio -o -H newc --quiet) >>"$1.cpio"
    cat >"$1.cfg" <<CONFIG
name = "$1"
kernel = "$COWNBD_DOMU_KERNEL"
ramdisk = "$PWD/$1.cpio"
extra = "console=hvc0 loglevel=4 panic=-1 tsc=reliable"
memory = 160
vcpus = 1
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
disk = ['$2']
CONFIG
    xl create -c "$1.cfg" </dev/null 2>&1 | tr -d '\r' | tee "$1.console"
    eventually "the end of $1" domu_is_gone "$1"
    grep -q 'script ended with status 0' "$1.console"
}

domu_is_gone() {
    ! xl list "$1" >/dev/null 2>&1
}

test_domu_on_a_qcow2() {
    qemu-img create -q -f qcow2 disk.qcow2 64M
    serve -n disk disk.qcow2
    attach /dev/nbd0 -unix "$PWD/socket" -N disk
    domu writer phy:/dev/nbd0,xvda,w <<'SCRIPT'
set -e
for i in $(seq 200); do [ ! -b /dev/xvda ] || break; usleep 50000; done
[ "$(cat /sys/block/xvda/size)" = 131072 ]
dd if=/dev/urandom of=/tmp/random bs=64k count=16
dd if=/tmp/random of=/dev/xvda bs=64k seek=16 conv=fsync
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/xvda of=/tmp/back bs=64k skip=16 count=16
cmp /tmp/random /tmp/back
echo "digest $(sha256sum </tmp/random)"
SCRIPT
    local wanted
    wanted=$(sed -n 's/^digest //p' writer.console)
    detach /dev/nbd0
    stop
    "$COWNBD" check disk.qcow2
    qemu-img convert -O raw disk.qcow2 disk.raw
    [[ $(dd if=disk.raw bs=64k skip=16 count=16 status=none | sha256sum) == "$wanted" ]]
}

run_tests
