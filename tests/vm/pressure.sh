#!/bin/bash
# In a guest with little memory and a disk (vm-run --memory 192 --disk 700): the server in a tight cgroup, a
# filesystem on the device, and more dirty pages than the guest has memory. To write them out the kernel needs the
# server, and the server must not need memory for that: nothing hangs, all is written, the image is clean.
. "$(dirname "$0")/lib.sh"
# MiB: written through the filesystem in one go, and what the server may have.
amount=224
allowed=64
disk=/dev/ubda
if [[ ! -b $disk ]]; then
    modprobe virtio_blk
    disk=/dev/vda
fi

# in_cgroup NAME MIB COMMAND...: under a limit of memory of its own, and what it starts as well.
in_cgroup() {
    local group=$cgroups/$1 mib=$2
    shift 2
    mkdir -p "$group"
    echo $((mib << 20)) >"$group/memory.max"
    (
        echo 0 >"$group/cgroup.procs"
        exec "$@"
    )
}

mount_cgroups() {
    cgroups=$top/cgroup
    mkdir -p "$cgroups"
    mountpoint -q "$cgroups" || mount -t cgroup2 none "$cgroups"
    echo +memory >"$cgroups/cgroup.subtree_control"
}

mount_disk() {
    mkfs.ext4 -q -F -E lazy_itable_init=0 "$disk"
    mkdir -p disk
    mount "$disk" disk
    cd disk
}

# data_of KEY: half of the amount, the same for the same key, and nothing that could be left out.
data_of() {
    head -c "$((amount / 2))M" /dev/zero | openssl enc -aes-128-ctr -nosalt -K "$(printf %032x "$1")" -iv 0
}

# fill DEVICE: more than fits, through the page cache, by two writers and one who syncs all the time.
fill() {
    local pids=() i syncer
    mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$1"
    mkdir mnt
    mount "$1" mnt
    (while :; do sync -f mnt; sleep 0.5; done) &
    syncer=$!
    for i in 1 2; do
        data_of $i >mnt/$i &
        pids+=($!)
    done
    for i in "${pids[@]}"; do
        wait "$i"
    done
    kill $syncer
    wait $syncer || true
    sync -f mnt
}

# What was written is what is read: from the device, past all caches.
compare() {
    local i
    umount mnt
    e2fsck -fn "$1" >fsck
    mount -o ro "$1" mnt
    for i in 1 2; do
        cmp mnt/$i <(data_of $i)
    done
    umount mnt
}

say_how_tight_it_was() {
    local group=$cgroups/server
    echo "$1: wrote $amount MiB with $(free -m | awk '/^Mem:/ {print $2}') MiB of memory; server: $(
        cat "$group/memory.peak" 2>/dev/null || cat "$group/memory.current") bytes of $allowed MiB; $(
        tr '\n' ' ' <"$group/memory.events")"
    grep -qx 'oom_kill 0' "$group/memory.events"
}

pressure() {
    local device
    mount_cgroups
    mount_disk
    qemu-img create -q -f qcow2 image.qcow2 300M
    device=$(in_cgroup server "$allowed" "$COWNBD" attach "--fast-path=$1" image.qcow2)
    fill "$device"
    say_how_tight_it_was "$1" >>"$top/summary"
    compare "$device"
    "$COWNBD" detach "$device"
    "$COWNBD" check image.qcow2
    qemu-img check -q image.qcow2
    cd ..
    umount disk
}

test_linear() {
    pressure linear
}

test_off() {
    pressure off
}

trap 'cat "$top/summary" 2>/dev/null; umount "$top/cgroup" 2>/dev/null; rm -rf "$top"' EXIT
run_tests
