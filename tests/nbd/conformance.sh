#!/bin/bash
# The conformance prober against our server: no rule is wrong, on any kind of image and over any kind of socket.
source "$(dirname "$0")/lib.sh"
prober=$(dirname "$(realpath "$0")")/conformance

# probe OPTION... URI: prints what is wrong; fails when there is something.
probe() {
    /usr/bin/python3 -B "$prober" --timeout 60 "$@" | tee table
    grep -q '^right .* greeting-magic ' table
}

test_qcow2_is_right_in_every_rule() {
    qemu-img create -q -f qcow2 disk.qcow2 16M
    serve disk.qcow2
    probe --write "$(uri)"
}

test_a_chain_is_right_in_every_rule() {
    make_data base.raw 2
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2 16M
    serve disk.qcow2
    probe --write "$(uri disk.qcow2)"
}

test_raw_over_tcp_is_right_in_every_rule() {
    local port
    port=$(free_port)
    truncate -s 16M disk.raw
    serve -f raw -l "127.0.0.1:$port" disk.raw
    probe --write "nbd://127.0.0.1:$port/disk.raw"
}

test_a_disk_that_clients_may_resize_is_right_in_every_rule() {
    qemu-img create -q -f qcow2 disk.qcow2 16M
    serve --allow-resize disk.qcow2
    probe --write "$(uri)"
    grep -q '^right .* resize-to-the-same ' table
}

# tls_directory: certificates for a server and a client, in ./pki.
tls_directory() {
    (cd "$(dirname "$prober")" && /usr/bin/python3 -B -c 'import pki, sys
authority = pki.Authority(sys.argv[1])
authority.sign("server", pki.SERVER)
authority.sign("client")' "$OLDPWD/pki")
}

test_through_tls_every_rule_is_right() {
    local mode
    tls_directory
    qemu-img create -q -f qcow2 disk.qcow2 16M
    for mode in on require; do
        serve --tls=$mode --tls-certificates pki --tls-verify-peer disk.qcow2
        probe --write "nbds+unix:///?socket=$PWD/socket&tls-certificates=$PWD/pki"
        grep -q '^right .* starttls-injection ' table
        grep -q '^right .* starttls-twice ' table
        [[ $mode == on ]] && grep -q '^right .* starttls-forgets ' table
        [[ $mode == on ]] || grep -q '^right .* tls-required ' table
        stop
    done
}

test_a_read_only_export_is_right_in_every_rule() {
    make_data disk.raw 2
    serve -f raw -r disk.raw
    probe "$(uri)"
    grep -q '^right .* read-only-eperm ' table
}

# Ranges over 4 GiB.
test_a_large_export_is_right_in_every_rule() {
    qemu-img create -q -f qcow2 disk.qcow2 8G
    serve disk.qcow2
    probe --write "$(uri)"
}

# The prober must see a fault when there is one: a server that answers but breaks rules.
test_a_wrong_server_is_found_out() {
    /usr/bin/python3 -B "$(dirname "$prober")/wrong-server.py" "$PWD/socket" &
    local pid=$! tries=0
    until [[ -S socket ]]; do
        [[ $((tries += 1)) -lt 1200 ]]
        sleep 0.05
    done
    local status=0
    /usr/bin/python3 -B "$prober" --timeout 10 "$(uri)" >table || status=$?
    kill "$pid"
    cat table
    [[ $status == 1 ]]
    for rule in abort-acknowledged read-past-the-end flags-known option-unknown; do
        grep -q "^wrong .* $rule " table
    done
    grep -q '^right .* greeting-magic ' table
}

test_a_server_that_is_not_there_is_no_wrong_server() {
    local status=0
    /usr/bin/python3 -B "$prober" "$(uri)" 2>failure || status=$?
    [[ $status == 2 ]]
    grep -q '^conformance: ' failure
}

run_tests
