#!/bin/bash
# fio's nbd engine, which reads back and checks (crc32c) all that it wrote.
. "$(dirname "$0")/lib.sh"

# What the sanitizers' runs do less of.
scale=${COWNBD_TEST_SCALE:-100}
size=$((64 * (scale < 25 ? 25 : scale) / 100))

verify() {
    fio --name=verify --ioengine=nbd --uri="$(uri)" --size=${size}M --verify=crc32c --verify_fatal=1 \
        --randseed=42 --output=fio.log "$@"
    grep -E 'err= *[1-9]' fio.log && return 1
    return 0
}

test_random_on_an_empty_image() {
    qemu-img create -q -f qcow2 disk.qcow2 ${size}M
    serve disk.qcow2
    verify --rw=randrw --bs=4k --iodepth=32
    stop
    qemu-img check -q disk.qcow2
}

test_random_on_an_overlay_of_several_jobs() {
    make_data base.raw $size
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2
    serve disk.qcow2
    verify --rw=randrw --bsrange=512-128k --iodepth=16 --numjobs=4 \
        --size=$((size / 4))M --offset_increment=$((size / 4))M
    stop
    qemu-img check -q disk.qcow2
}

test_small_clusters() {
    qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 ${size}M
    serve disk.qcow2
    verify --rw=randwrite --bsrange=512-16k --iodepth=16 --size=$((size / 4))M
    stop
    qemu-img check -q disk.qcow2
}

test_raw() {
    truncate -s ${size}M disk.raw
    serve -f raw disk.raw
    verify --rw=randrw --bs=4k --iodepth=32 --fsync=500
}

# As where a seccomp filter or a sysctl refuses io_uring.
test_transfers_by_the_pool_alone() {
    qemu-img create -q -f qcow2 disk.qcow2 ${size}M
    COWNBD_AIO=pool serve disk.qcow2
    verify --rw=randrw --bsrange=512-64k --iodepth=16 --size=$((size / 4))M
    stop
    qemu-img check -q disk.qcow2
}

test_transfers_by_io_uring_or_what_there_is() {
    qemu-img create -q -f qcow2 disk.qcow2 ${size}M
    serve disk.qcow2
    verify --rw=randrw --bsrange=512-64k --iodepth=16 --size=$((size / 4))M
    stop
    qemu-img check -q disk.qcow2
}

test_sequential() {
    qemu-img create -q -f qcow2 disk.qcow2 ${size}M
    serve disk.qcow2
    verify --rw=write --bs=1M --iodepth=4
    stop
    qemu-img check -q disk.qcow2
}

run_tests
