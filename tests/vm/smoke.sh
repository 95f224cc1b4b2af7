#!/bin/bash
# In a guest: the kernel's own nbd client on the server, with a filesystem on it; what goes through the kernel
# is what is on the disk.
. "$(dirname "$0")/lib.sh"

# fill_and_check DEVICE: an ext4 that survives being unmounted and mounted.
fill_and_check() {
    mkfs.ext4 -q -F "$1"
    mkdir -p mnt
    mount "$1" mnt
    make_data data 4
    cp data mnt/one
    mkdir mnt/many
    local i
    for i in {1..50}; do
        echo "file $i" >"mnt/many/$i"
    done
    sync mnt/one
    rm mnt/many/7
    fstrim mnt
    umount mnt
    e2fsck -fn "$1"
    mount -o ro "$1" mnt
    equal data mnt/one
    [[ $(find mnt/many -type f | wc -l) == 49 && $(<mnt/many/50) == "file 50" ]]
    umount mnt
}

# same_everywhere DEVICE URI IMAGE: the kernel, an NBD client and, after the server has gone, qemu see the same.
same_everywhere() {
    local kernel client
    kernel=$(digest_of "$1")
    client=$(digest_through_nbd "$2")
    [[ $kernel == "$client" ]]
    detach "$1"
    stop
    "$COWNBD" check "$3"
    qemu-img check -q "$3"
    qemu-img convert -O raw "$3" after.raw
    [[ $(digest_of after.raw) == "$kernel" ]]
}

test_kernel() {
    [[ -b /dev/nbd0 && -b /dev/loop0 ]]
    dmsetup targets >targets
    grep -q '^linear ' targets
    grep -q '^snapshot ' targets
}

test_unix_socket() {
    qemu-img create -q -f qcow2 disk.qcow2 64M
    serve -n disk disk.qcow2
    attach /dev/nbd0 -unix "$PWD/socket" -N disk
    [[ $(blockdev --getsize64 /dev/nbd0) == $((64 << 20)) ]]
    fill_and_check /dev/nbd0
    same_everywhere /dev/nbd0 "$(uri disk)" disk.qcow2
}

test_tcp_and_a_backing_file() {
    truncate -s 48M base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2
    local port
    port=$(free_port)
    serve_only -l "127.0.0.1:$port" -n disk disk.qcow2
    attach /dev/nbd1 127.0.0.1 "$port" -N disk
    fill_and_check /dev/nbd1
    same_everywhere /dev/nbd1 "nbd://127.0.0.1:$port/disk" disk.qcow2
}

test_read_only() {
    make_data disk.raw 4
    serve -r -n disk disk.raw
    attach /dev/nbd2 -unix "$PWD/socket" -N disk
    [[ $(blockdev --getro /dev/nbd2) == 1 ]]
    [[ $(digest_of /dev/nbd2) == "$(digest_of disk.raw)" ]]
    fails dd if=/dev/zero of=/dev/nbd2 bs=4k count=1 oflag=direct
    detach /dev/nbd2
}

# One device made of both: the upper half from a loop device that goes past the page cache.
test_device_mapper() {
    disk_folder ext4 96
    cd ext4
    qemu-img create -q -f qcow2 disk.qcow2 16M
    truncate -s 16M half.raw
    serve -n disk disk.qcow2
    attach /dev/nbd3 -unix "$PWD/socket" -N disk
    local loop sectors=32768
    loop=$(losetup -f --show --direct-io=on half.raw)
    dmsetup create both <<TABLE
0 $sectors linear /dev/nbd3 0
$sectors $sectors linear $loop 0
TABLE
    make_data data 32
    dd if=data of=/dev/mapper/both bs=1M oflag=direct conv=fsync status=none
    [[ $(digest_of /dev/mapper/both) == "$(digest_of data)" ]]
    dmsetup remove both
    losetup -d "$loop"
    head -c 16M data | cmp - <(nbdcopy "$(uri disk)" -)
    detach /dev/nbd3
    stop
    tail -c 16M data | cmp - half.raw
    cd ..
    umount ext4
}

run_tests
