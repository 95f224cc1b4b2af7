#!/bin/bash
# nbdcopy: whole disks in and out, with many connections.
. "$(dirname "$0")/lib.sh"

test_out_of_a_chain() {
    make_data data 16
    qemu-img convert -f raw -O qcow2 data base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2
    qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2
    qemu-io -f qcow2 -c 'write -P 7 1M 100k' middle.qcow2 >/dev/null
    qemu-io -f qcow2 -c 'write -P 8 1060k 1M' -c 'write -z 5M 300k' top.qcow2 >/dev/null
    qemu-img convert -f qcow2 -O raw top.qcow2 wanted
    serve -r top.qcow2
    nbdcopy --connections=4 "$(uri)" got
    equal wanted got
    nbdcopy --connections=1 --requests=1 "$(uri)" got1
    equal wanted got1
    nbdcopy --synchronous "$(uri)" got2
    equal wanted got2
}

test_out_of_a_compressed_image() {
    make_data data 16
    qemu-img convert -c -f raw -O qcow2 data zlib.qcow2
    qemu-img convert -c -f raw -O qcow2 -o compression_type=zstd data zstd.qcow2
    serve -r zlib.qcow2 zstd.qcow2
    nbdcopy "$(uri zlib.qcow2)" got
    equal data got
    nbdcopy "$(uri zstd.qcow2)" got
    equal data got
}

test_into_an_empty_image() {
    make_data data 16
    qemu-img create -q -f qcow2 disk.qcow2 16M
    serve disk.qcow2
    nbdcopy --flush --connections=4 data "$(uri)"
    nbdcopy "$(uri)" back
    equal data back
    stop
    qemu-img check -q disk.qcow2
    qemu-img compare -q -f raw -F qcow2 data disk.qcow2
}

test_zeroes_take_no_space() {
    truncate -s 64M data
    qemu-img create -q -f qcow2 disk.qcow2 64M
    qemu-io -f qcow2 -c 'write -P 3 0 8M' disk.qcow2 >/dev/null
    serve disk.qcow2
    nbdcopy --flush data "$(uri)"
    stop
    qemu-img check -q disk.qcow2
    qemu-img compare -q -f raw -F qcow2 data disk.qcow2
    [[ $(du -k disk.qcow2 | cut -f1) -lt 2048 ]]
}

test_from_one_export_to_another() {
    make_data data 16
    qemu-img convert -f raw -O qcow2 data source.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=4k target.qcow2 16M
    serve source.qcow2 target.qcow2
    nbdcopy --flush "$(uri source.qcow2)" "$(uri target.qcow2)"
    stop
    qemu-img check -q target.qcow2
    qemu-img compare -q source.qcow2 target.qcow2
}

run_tests
