#!/bin/bash
# In a guest: the unit for a device from boot on, under a systemd of its own (the first process of a PID namespace, as in a
# container). It starts, its server is replaced when it dies, and a device that was detached is not attached again.
. "$(dirname "$0")/lib.sh"

start_systemd() {
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
    mkdir -p /run/systemd/system
    sed "s|^ExecStart=[^ ]*|ExecStart=$COWNBD|" "$COWNBD_BUILD/contrib/systemd/cownbd-attach@.service" \
        >/run/systemd/system/cownbd-attach@.service
    local unit
    for unit in {/lib,/usr/lib,/etc}/systemd/system/{sysinit,basic}.target.wants/*; do # nothing of what else a boot does
        ln -sf /dev/null "/run/systemd/system/${unit##*/}"
    done
    printf '[Unit]\nDescription=Nothing\n' >/run/systemd/system/nothing.target
    unshare --pid --fork --mount --mount-proc --propagation unchanged env container=other \
        /lib/systemd/systemd --system --unit=nothing.target --log-target=console --log-level=warning >systemd.log 2>&1 &
    eventually "systemd" systemd_answers
}

# control ARG...: systemctl, where systemd is.
control() {
    local pid
    pid=$(pgrep -x systemd)
    nsenter --target "$pid" --pid --mount --root systemctl --no-pager "$@"
}

systemd_answers() {
    control is-active nothing.target >/dev/null 2>&1
}

server_pid() {
    pgrep -f -- '--image-control'
}

is_another_server() {
    local pid
    pid=$(server_pid) && [[ $pid != "$1" ]]
}

unit_is() {
    [[ $(control show --property=ActiveState --value "$2") == "$1" ]]
}

test_the_unit_of_an_attached_image() {
    start_systemd
    "$COWNBD" create -f qcow2 disk.qcow2 64M
    local unit device=/dev/mapper/disk.qcow2 digest first
    unit=$(systemd-escape --template=cownbd-attach@.service -p "$PWD/disk.qcow2")
    control start "$unit"
    unit_is active "$unit"
    [[ -b $device ]] # Type=notify: ready means ready
    mkfs.ext4 -q -F "$device"
    mkdir mnt
    mount "$device" mnt
    make_data mnt/data 8
    sync -f mnt
    digest=$(sha256sum <mnt/data)

    first=$(server_pid)
    kill -KILL "$first"
    cp mnt/data mnt/copy # waits for the next server
    sync -f mnt
    eventually "another server" is_another_server "$first"
    eventually "the unit's new server" unit_is active "$unit"
    [[ $(sha256sum <mnt/copy) == "$digest" ]]

    umount mnt
    "$COWNBD" detach disk.qcow2
    eventually "the end of the unit" unit_is inactive "$unit"
    [[ ! -e $device && ! -e /sys/block/nbd0/pid ]]
    "$COWNBD" check disk.qcow2
    qemu-img check -q disk.qcow2
    control exit >/dev/null 2>&1 || true
    wait
}

# What a failed test leaves.
after_test() {
    cat "$1/systemd.log" 2>/dev/null
    ! pgrep -x systemd >/dev/null || kill -KILL "$(pgrep -x systemd)"
    umount "$1/mnt" 2>/dev/null
    true
}
run_tests
