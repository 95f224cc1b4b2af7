#!/bin/bash
# qemu-img and qemu-io as clients.
. "$(dirname "$0")/lib.sh"

test_convert_out() {
    make_data data 16
    qemu-img convert -f raw -O qcow2 -o cluster_size=4k data disk.qcow2
    serve -r disk.qcow2
    qemu-img convert -f raw -O raw "$(uri)" got
    equal data got
    qemu-img convert -f raw -O qcow2 -m 8 -W "$(uri)" got.qcow2
    qemu-img compare -q got.qcow2 disk.qcow2
}

test_convert_in() {
    make_data data 16
    qemu-img create -q -f qcow2 disk.qcow2 16M
    serve disk.qcow2
    qemu-img convert -n -f raw -O raw -m 8 -W data "$(uri)"
    qemu-img compare -q -f raw -F raw data "$(uri)"
    stop
    qemu-img check -q disk.qcow2
    qemu-img compare -q -f raw -F qcow2 data disk.qcow2
}

test_map_over_nbd_shows_the_same_data() {
    qemu-img create -q -f qcow2 disk.qcow2 8M
    qemu-io -f qcow2 -c 'write -P 1 1M 1M' -c 'write -z 3M 1M' -c 'write -P 2 6M 64k' disk.qcow2 >/dev/null
    qemu-img map --output=json disk.qcow2 | jq -c '[.[] | select(.data) | [.start, .length]]' >wanted
    serve -r disk.qcow2
    qemu-img map --output=json -f raw "$(uri)" | jq -c '[.[] | select(.data) | [.start, .length]]' >got
    cat wanted got
    equal wanted got
}

test_bench() {
    qemu-img create -q -f qcow2 disk.qcow2 32M
    serve disk.qcow2
    qemu-img bench -q -w -f raw -c 4000 -d 16 -s 4096 -S 8192 "$(uri)"
    qemu-img bench -q -w -f raw -c 200 -d 4 -s 262144 --flush-interval=20 "$(uri)"
    qemu-img bench -q -f raw -c 4000 -d 32 -s 4096 "$(uri)"
    stop
    qemu-img check -q disk.qcow2
}

test_patterns() {
    qemu-img create -q -f raw base.raw 8M
    qemu-io -f raw -c 'write -P 0x11 0 8M' base.raw >/dev/null
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2
    serve disk.qcow2
    qemu-io -f raw -c 'write -P 0x22 1000 5000' -c 'write -z 1M 200k' -c 'discard 2M 1M' \
        -c 'write -f -P 0x33 4M 70000' -c 'write -z -u 5M 1M' -c 'flush' "$(uri)" >log
    for image in "$(uri)" disk.qcow2; do
        [[ $image != disk.qcow2 ]] || stop
        qemu-io $([[ $image == disk.qcow2 ]] && echo -f qcow2 || echo -f raw) \
            -c 'read -P 0x11 0 1000' -c 'read -P 0x22 1000 5000' -c 'read -P 0x11 6000 1000' \
            -c 'read -P 0 1M 200k' -c 'read -P 0 2M 1M' -c 'read -P 0x33 4M 70000' \
            -c 'read -P 0x11 7M 1M' -c 'read -P 0 5M 1M' "$image" >>log
    done
    cat log
    if grep -qi 'failed\|error' log; then
        return 1
    fi
    qemu-img check -q disk.qcow2
}

test_an_overlay_of_an_nbd_export() {
    make_data data 8
    qemu-img convert -f raw -O qcow2 data disk.qcow2
    serve -r disk.qcow2
    qemu-img create -q -f qcow2 -b "$(uri)" -F raw over.qcow2
    qemu-io -f qcow2 -c 'write -P 5 0 1M' over.qcow2 >/dev/null
    qemu-img convert -f qcow2 -O raw over.qcow2 got
    cmp -i 1M data got
}

run_tests
