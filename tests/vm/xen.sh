#!/bin/bash
# In dom0: PV domUs on disks of cownbd: by way of the kernel's nbd client, and by contrib/xen/block-cownbd.
. "$(dirname "$0")/lib.sh"

# domu NAME DISK: a domain that runs the script that comes in, until it is gone. What it says goes to ./NAME.console.
domu() {
    mkdir -p "$1"
    {
        echo 'set -e'
        echo 'for i in $(seq 200); do [ ! -b /dev/xvda ] || break; usleep 50000; done; echo running'
        cat
    } >"$1/script"
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

# by_script IMAGE[,OPTION...] [MODE]: the disk that the hotplug script attaches.
by_script() {
    echo "format=raw, vdev=xvda, access=${2:-w}, script=block-cownbd, target=$1"
}

install_script() {
    install -D -m 755 "$COWNBD_SOURCE/contrib/xen/block-cownbd" /etc/xen/scripts/block-cownbd
}

# is_detached IMAGE: and the toolstack has nothing left of it.
is_detached() {
    ! grep -qsxF "cownbd:$PWD/$1" /sys/block/nbd*/backend
}

# A base that another program made, and overlays of it: NAME...
make_overlays() {
    local name
    make_data base.raw 32
    qemu-img convert -f raw -O vmdk base.raw base.vmdk
    for name; do
        "$COWNBD" create -f qcow2 -b base.vmdk -F vmdk "$name.qcow2" >created
    done
}

# What a domain does with its disk: it sees the base, writes beside it and into it, reads back, flushes, discards.
use_of_a_disk() {
    cat <<'SCRIPT'
dd if=/dev/urandom of=/tmp/random bs=64k count=16 2>/dev/null
echo "base $(dd if=/dev/xvda bs=64k count=64 2>/dev/null | sha256sum)"
dd if=/tmp/random of=/dev/xvda bs=64k seek=16 conv=fsync,notrunc 2>/dev/null
dd if=/tmp/random of=/dev/xvda bs=4k seek=1025 count=3 conv=fsync,notrunc 2>/dev/null
blkdiscard -o 8388608 -l 4194304 /dev/xvda
dd if=/tmp/random of=/dev/xvda bs=64k seek=136 count=2 conv=fsync,notrunc 2>/dev/null
sync
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/xvda of=/tmp/back bs=64k skip=16 count=16 2>/dev/null
cmp /tmp/random /tmp/back
echo "random $(sha256sum </tmp/random)"
echo "disk $(sha256sum </dev/xvda)"
SCRIPT
}

# said NAME WORD: the digest that the domain NAME printed.
said() {
    sed -n "s/^$2 //p" "$1.console"
}

# check_overlay NAME: the domain saw what was there, and left what it saw at its end.
check_overlay() {
    [[ $(said "$1" base) == "$(head -c 4M base.raw | sha256sum)" ]]
    eventually "the end of $1.qcow2's device" is_detached "$1.qcow2"
    "$COWNBD" check "$1.qcow2"
    qemu-img check -q "$1.qcow2"
    qemu-img convert -O raw "$1.qcow2" "$1.raw"
    [[ $(sha256sum <"$1.raw") == "$(said "$1" disk)" ]]
    [[ $(dd if="$1.raw" bs=64k skip=16 count=16 status=none | sha256sum) == "$(said "$1" random)" ]]
    rm "$1.raw"
}

test_overlay_by_script() {
    install_script
    make_overlays guest
    use_of_a_disk | domu guest "$(by_script "$PWD/guest.qcow2")"
    check_overlay guest
}

# started NAME PID: waits until the domain runs its script; fails when PID, which watches it, ends before.
started() {
    until grep -qs '^running' "$1.console"; do
        kill -0 "$2" || return 1
        sleep 0.2
    done
}

# The first one sleeps while the second one is made, so that this takes no longer than alone: the toolstack waits 40 s
# for a hotplug script, also on a machine that emulates all of it.
test_two_domus_on_one_base() {
    local first
    install_script
    make_overlays one two
    (echo 'sleep 20'; use_of_a_disk) | domu one "$(by_script "$PWD/one.qcow2,fast-path=off")" &
    first=$!
    started one $first
    use_of_a_disk | domu two "$(by_script "$PWD/two.qcow2,fast-path=linear")"
    wait $first
    check_overlay one
    check_overlay two
    [[ $(said one random) != "$(said two random)" ]]
}

test_read_only() {
    install_script
    make_overlays shown
    domu shown "$(by_script "$PWD/shown.qcow2" r)" <<'SCRIPT'
[ "$(cat /sys/block/xvda/ro)" = 1 ]
echo "disk $(sha256sum </dev/xvda)"
SCRIPT
    [[ $(said shown disk) == "$(sha256sum <base.raw)" ]]
    eventually "the end of the device" is_detached shown.qcow2
}

# The toolstack says why.
test_refusal() {
    install_script
    mkdir no.qcow2
    fails domu refused "$(by_script "$PWD/no.qcow2")" <<<true
    grep -q "no.qcow2" refused.console
}

run_tests
