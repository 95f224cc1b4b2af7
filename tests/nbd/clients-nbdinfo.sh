#!/bin/bash
# nbdinfo: what the server says of its exports.
. "$(dirname "$0")/lib.sh"

make_image() {
    qemu-img create -q -f qcow2 disk.qcow2 4M
    qemu-io -f qcow2 -c 'write -P 1 1M 1M' -c 'write -z 2M 512k' disk.qcow2 >/dev/null
}

test_json_says_what_the_server_can() {
    make_image
    serve disk.qcow2
    nbdinfo --json "$(uri)" >info
    jq -e '.["protocol"] == "newstyle-fixed" and .["structured"]' info
    jq -e '.exports[0] | .["export-size"] == 4194304 and (.is_read_only | not)
        and .can_multi_conn and .can_flush and .can_fua and .can_trim and .can_zero and .can_fast_zero
        and .can_df and .can_cache' info
    jq -e '.exports[0] | .block_size_minimum == 1 and .block_size_preferred == 4096
        and .block_size_maximum == 67108864' info
    jq -e '.exports[0].contexts == ["base:allocation", "qemu:allocation-depth"]' info
}

test_read_only() {
    make_image
    serve -r disk.qcow2
    nbdinfo --is read-only "$(uri)"
    nbdinfo --size "$(uri)" | grep -x 4194304
}

test_a_format_without_writing_is_served_read_only_with_a_warning() {
    qemu-img create -q -f vmdk -o subformat=streamOptimized disk.vmdk 4M
    serve disk.vmdk
    nbdinfo --is read-only "$(uri)"
    grep -c 'this vmdk image cannot be written: served read-only' server0.err
    nbdinfo --size "$(uri)" | grep -x 4194304
}

test_list_names_every_export() {
    make_image
    qemu-img create -q -f qcow2 other.qcow2 8M
    serve disk.qcow2 other.qcow2
    nbdinfo --list --json "$(uri)" >list
    jq -e '[.exports[]["export-name"]] | index("disk.qcow2") != null and index("other.qcow2") != null' list
    nbdinfo --size "$(uri other.qcow2)" | grep -x 8388608
    nbdinfo --size "$(uri)" | grep -x 4194304
    fails nbdinfo "$(uri nothing)"
}

test_map() {
    make_image
    serve disk.qcow2
    nbdinfo --map --json "$(uri)" >map
    # Gapless, to the end; data exactly where it was written.
    jq -e '(map(.length) | add) == 4194304' map
    jq -e '[.[] | select(.type == 0)] == [.[] | select(.offset >= 1048576 and .offset < 2097152)]' map
    jq -e '[.[] | select(.offset < 1048576 or .offset >= 2097152) | .type >= 2] | all' map
    nbdinfo --map --totals "$(uri)" | grep -E '^ *1048576 +25.0% +0 data'
}

test_every_family_of_address_at_once() {
    local port port6
    port=$(free_port)
    port6=$(free_port)
    make_image
    serve -l "127.0.0.1:$port" -l "[::1]:$port6" disk.qcow2
    [[ $(grep -c '^listening on ' server0.out) == 3 ]]
    nbdinfo --size "$(uri)" | grep -x 4194304
    nbdinfo --size "nbd://127.0.0.1:$port/" | grep -x 4194304
    nbdinfo --size "nbd://[::1]:$port6/disk.qcow2" | grep -x 4194304
}

run_tests
