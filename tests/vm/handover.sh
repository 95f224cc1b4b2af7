#!/bin/bash
# In a guest: a server with block devices of the kernel hands over to another process, while they are in use.
. "$(dirname "$0")/lib.sh"

# Five handovers each.
rounds=$(((${COWNBD_TEST_SCALE:-10} + 49) / 50))

# The control socket of the server in the background, of which there is one.
control() {
    local pid
    pid=$(pgrep -f -- '--background-log')
    tr '\0' '\n' <"/proc/$pid/cmdline" | sed -n '/^--control$/{n;p}; s/^--control=//p'
}

# kernel_load DEVICE: checked writes, and discards where the device has them, until the file `enough` is there.
kernel_load() {
    until [[ -e enough ]]; do
        fio --name=load --filename="$1" --direct=1 --rw=randwrite --bsrange=4k-64k --size=24m --io_size=6m \
            --verify=crc32c --verify_fatal=1 --ioengine=libaio --iodepth=8 --output=fio.log >fio.err 2>&1 || return 1
        [[ $(lsblk -dnbo DISC-MAX "$1") -gt 0 ]] || continue
        fio --name=trim --filename="$1" --direct=1 --rw=randtrim --bs=64k --offset=32m --size=8m --io_size=2m \
            --output=trim.log >fio.err 2>&1 || return 1
    done
}

# handovers MODE: of an image that is attached so, under load, with a client of the socket beside it.
handovers() {
    local device socket answer load digest
    mkdir "/mnt/disks/$1"
    cd "/mnt/disks/$1"
    "$COWNBD" create -f qcow2 disk.qcow2 64M
    device=$("$COWNBD" attach --fast-path="$1" disk.qcow2)
    socket=$(control)
    kernel_load "$device" &
    load=$!
    for ((i = 0; i < 5 * rounds; i++)); do
        sleep 1
        answer=$("$COWNBD" ctl --control "$socket" handover)
        echo "# $1: $answer"
        kill -0 $load
    done
    sleep 1
    touch enough
    wait $load
    # The mode is what it was, and a handover that fails leaves it so.
    "$COWNBD" list --control "$socket" --json | grep -qF "\"$device\""
    fails "$COWNBD" ctl --control "$socket" handover binary=/bin/false
    mkfs.ext4 -q -F "$device"
    mkdir mnt
    mount "$device" mnt
    make_data mnt/data 16
    printf '#!/bin/sh\ncommand=$1\nshift\nexec %s "$command" --format=vdi "$@"\n' "$COWNBD" >half # cannot open the image
    chmod +x half
    fails "$COWNBD" ctl --control "$socket" handover binary="$PWD/half"
    grep -qF 'disk.qcow2: ' failure
    "$COWNBD" ctl --control "$socket" handover
    digest=$(digest_of mnt/data)
    umount mnt
    "$COWNBD" detach "$device"
    "$COWNBD" check disk.qcow2
    qemu-img check -q disk.qcow2
    device=$("$COWNBD" attach --fast-path=off disk.qcow2)
    mount "$device" mnt
    [[ $(digest_of mnt/data) == "$digest" ]]
    umount mnt
    "$COWNBD" detach "$device"
}

test_a_device_without_a_fast_path() {
    handovers off
}

test_a_linear_device() {
    handovers linear
}

# In snapshot mode the kernel has the store: the image is only read, so the next process finds it as it was.
test_a_snapshot() {
    handovers snapshot
}

# What was said when it was attached holds in the next process, too.
test_what_was_said_at_attaching() {
    local device socket
    mkdir /mnt/disks/said
    cd /mnt/disks/said
    "$COWNBD" create -f qcow2 disk.qcow2 16M
    "$COWNBD" serve --sandbox=off --listen=none --control "$PWD/socket" disk.qcow2 &
    eventually "the server" "$COWNBD" ctl --control socket hello
    device=$("$COWNBD" attach --control "$PWD/socket" --fast-path=linear --read-only --fast-path-lines=7 disk.qcow2)
    "$COWNBD" ctl --control socket handover
    eventually "the device" device_is_served
    [[ $(blockdev --getro "$device") == 1 ]]
    dd if="$device" of=/dev/null bs=1M iflag=direct
    "$COWNBD" detach --control "$PWD/socket" "$device"
    kill -TERM "$("$COWNBD" ctl --control socket hello | sed -n 's/^pid: //p')"
}

device_is_served() {
    "$COWNBD" list --json --control socket | grep -q '"device"'
}

# What servers in the background have said.
after_test() {
    cat /run/cownbd/*.log 2>/dev/null
    umount -l "/mnt/disks/"*/mnt 2>/dev/null
}

# Where the linear device's loop device has direct I/O.
disk_folder /mnt/disks 240
run_tests
