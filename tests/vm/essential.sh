#!/bin/bash
# In a guest with two processors and the kernel that users have: what the project exists for, from end to end. A
# filesystem on an attached image whose data the kernel moves; the server is killed under it, and another one goes
# on; and the snapshot mode, whose store is folded into the image.
. "$(dirname "$0")/lib.sh"

# The process that serves an image of the current folder: the kernel knows who made the device.
server_of() {
    local backend
    backend=$(grep -lxF "cownbd:$PWD/$1" /sys/block/nbd*/backend)
    cat "${backend%/backend}/pid"
}

# Lines of the device that do not go through the server.
mapped_lines() {
    dmsetup table "$1" | awk -v nbd="$(dmsetup deps -o devname "$1" | grep -o 'nbd[0-9]*')" '
        BEGIN { getline line <("/sys/block/" nbd "/dev") } $3 ~ /^(linear|switch)$/ && $(NF - 1) != line' | wc -l
}

has_mapped_lines() {
    [[ $(mapped_lines "$1") -gt 0 ]]
}

# same_after_detach DEVICE IMAGE: what the device showed is in the image, and the image is in good order.
same_after_detach() {
    local seen
    seen=$(digest_of "$1")
    "$COWNBD" detach "$1"
    [[ ! -e $1 ]]
    stop
    "$COWNBD" check "$2"
    qemu-img check -q "$2"
    qemu-img convert -O raw "$2" after.raw
    [[ $(digest_of after.raw) == "$seen" ]]
    rm after.raw
}

# A load on the filesystem that compares what it reads with what it wrote, for as long as ./load is there.
load() {
    local round=0
    while [[ -e load ]]; do
        fio --name=load --filename=mnt/load --size=8M --bs=4k-32k --rw=randwrite --direct=1 --ioengine=libaio \
            --iodepth=4 --verify=crc32c --verify_fatal=1 --fsync=16 --output=fio.log || return 1
        rm mnt/load
        echo $((round += 1)) >rounds
    done
}

test_linear_and_a_killed_server() {
    disk_folder ext4 160
    cd ext4
    local device loader
    qemu-img create -q -f qcow2 base.qcow2 64M
    qemu-io -f qcow2 -c 'write -P 5 40M 2M' base.qcow2 >/dev/null
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2 64M
    device=$("$COWNBD" attach --fast-path=linear --name=essential disk.qcow2)
    [[ $device == /dev/mapper/essential && $("$COWNBD" attach disk.qcow2) == "$device" ]]
    mkfs.ext4 -q -F "$device"
    mkdir mnt
    mount "$device" mnt
    make_data data 8
    cp data mnt/data
    sync -f mnt
    eventually "lines" has_mapped_lines "$device"

    touch load
    load &
    loader=$!
    eventually "a round of the load" test -e rounds
    kill -KILL "$(server_of disk.qcow2)"
    sleep 1
    "$COWNBD" serve --listen=none --fast-path=linear --attach-name=essential --adopt --attach \
        disk.qcow2 >adopter.out 2>&1 </dev/null &
    servers+=($!)
    rm -f rounds
    eventually "a round after the death" test -e rounds
    rm load
    wait $loader
    equal data mnt/data
    umount mnt
    e2fsck -fn "$device"
    same_after_detach "$device" disk.qcow2
    if dmesg | grep -E 'I/O error|critical .* error'; then
        echo "the death of the server was seen above the device"
        return 1
    fi
    cd ..
    umount ext4
}

test_snapshot_and_fold() {
    disk_folder ext4 160
    cd ext4
    local device
    qemu-img create -q -f qcow2 disk.qcow2 64M
    qemu-io -f qcow2 -c 'write -P 5 40M 2M' disk.qcow2 >/dev/null
    device=$("$COWNBD" attach --fast-path=snapshot disk.qcow2)
    mkfs.ext4 -q -F "$device"
    mkdir mnt
    mount "$device" mnt
    make_data data 8
    cp data mnt/data
    umount mnt
    e2fsck -fn "$device"
    same_after_detach "$device" disk.qcow2
    cd ..
    umount ext4
}

# Served through TLS: the kernel makes the records where that is asked for; by itself the server has it do so only
# where it takes new keys.
test_tls_by_the_kernel() {
    local uri="nbds://alice@127.0.0.1:10809/?tls-psk-file=$PWD/keys.psk" taken="the kernel makes the records"
    modprobe tls
    echo "alice:00112233445566778899aabbccddeeff" >keys.psk
    make_data data 1
    truncate -s 1M disk.raw
    set -- --listen=127.0.0.1:10809 --tls=require --tls-psk keys.psk --log-level=debug -f raw disk.raw
    serve_only --ktls=on "$@"
    nbdcopy data "$uri"
    nbdcopy "$uri" copy.raw
    equal data copy.raw
    grep -q "$taken" server0.err
    stop # and the next one is server 0 again
    serve_only "$@"
    nbdinfo --size "$uri"
    grep 'the kernel has TLS' server0.err
    if grep -q 'the kernel has TLS, and new keys' server0.err; then
        grep -q "$taken" server0.err
    elif grep "$taken" server0.err; then
        echo "by itself, too, where the kernel takes no new keys"
        return 1
    fi
}

run_tests
