#!/bin/bash
# In a guest: attach and detach without a fast path; what the kernel shows, whom it may not be taken away from, what
# happens when the server dies, and when nothing can be saved.
. "$(dirname "$0")/lib.sh"

# The processes of servers that attach has started.
background_servers() {
    pgrep -f -- '--background-log' || true
}

kill_servers() {
    local pid
    for pid in $(background_servers); do
        kill -KILL "$pid"
    done
}

# said TEXT COMMAND...: the command fails, and says why.
said() {
    local text=$1
    shift
    if "$@" >said 2>&1; then
        echo "should fail: $*"
        return 1
    fi
    grep -qF -- "$text" said || {
        echo "should say '$text': $(<said)"
        return 1
    }
}

test_a_filesystem_and_the_same_again() {
    "$COWNBD" create -f qcow2 disk.qcow2 64M
    local device
    device=$("$COWNBD" attach --fast-path=off disk.qcow2)
    [[ $device == /dev/nbd0 && $(blockdev --getsize64 "$device") == $((64 << 20)) ]]
    [[ $(<"/sys/block/nbd0/backend") == "cownbd:$PWD/disk.qcow2" ]]
    [[ $("$COWNBD" attach disk.qcow2) == "$device" && $("$COWNBD" attach ../*/disk.qcow2) == "$device" ]]
    [[ $(background_servers | wc -l) == 1 ]]
    "$COWNBD" stats --json "$device" | jq -e '.exports[0]."fast-path".mode == "off"'
    "$COWNBD" list disk.qcow2 | grep -qF "$PWD/disk.qcow2"
    mkfs.ext4 -q -F "$device"
    mkdir mnt
    mount "$device" mnt
    make_data mnt/data 8
    local digest
    digest=$(sha256sum <mnt/data)
    said 'is in use' "$COWNBD" detach "$device"
    umount mnt
    exec 9<"$device"
    said 'has it open' "$COWNBD" detach disk.qcow2
    exec 9<&-
    local seen
    seen=$(digest_of "$device")
    "$COWNBD" detach "$device"
    [[ -z $(background_servers) && ! -e /sys/block/nbd0/pid ]]
    [[ -z $(find /run/cownbd -name '*.lock' -o -name '*.sock' -o -name '*.journal') ]]
    said 'no server of it' "$COWNBD" stats disk.qcow2
    said 'is not attached' "$COWNBD" detach disk.qcow2
    said 'nothing is attached' "$COWNBD" detach "$device"
    "$COWNBD" check disk.qcow2
    qemu-img check -q disk.qcow2
    qemu-img convert -O raw disk.qcow2 after.raw
    [[ $(digest_of after.raw) == "$seen" ]]
    device=$("$COWNBD" attach --fast-path=off disk.qcow2)
    mount "$device" mnt
    [[ $(sha256sum <mnt/data) == "$digest" ]]
    umount mnt
    "$COWNBD" detach "$device"
}

test_a_device_of_somebody_else() {
    "$COWNBD" create -f qcow2 disk.qcow2 16M
    truncate -s 16M other.raw
    serve -n other other.raw
    attach /dev/nbd0 -unix "$PWD/socket" -N other
    said 'cownbd did not make it' "$COWNBD" detach /dev/nbd0
    said 'cownbd did not make it' "$COWNBD" rescue /dev/nbd0
    said 'in use' "$COWNBD" attach --fast-path=off disk.qcow2 /dev/nbd0
    [[ $("$COWNBD" attach --fast-path=off disk.qcow2) == /dev/nbd1 ]]
    "$COWNBD" detach disk.qcow2
    [[ $("$COWNBD" attach --fast-path=off disk.qcow2 /dev/nbd7) == /dev/nbd7 ]]
    "$COWNBD" detach /dev/nbd7
    # One that the kernel makes at that moment.
    [[ $("$COWNBD" attach --fast-path=off disk.qcow2 /dev/nbd77) == /dev/nbd77 ]]
    "$COWNBD" detach /dev/nbd77
    said 'is no nbd device' "$COWNBD" attach --fast-path=off disk.qcow2 /dev/sda
    dmsetup create foreign --table '0 8 zero'
    said 'cownbd did not make it' "$COWNBD" detach /dev/mapper/foreign
    dmsetup remove foreign
    detach /dev/nbd0
}

test_read_only_and_odd_sizes() {
    make_data disk.raw 4
    echo tail >>disk.raw
    local device
    device=$("$COWNBD" attach --fast-path=off --read-only disk.raw 2>said)
    grep -q 'no whole sector' said
    [[ $(blockdev --getro "$device") == 1 && $(blockdev --getsize64 "$device") == $((4 << 20)) ]]
    fails dd if=/dev/zero of="$device" bs=4k count=1 oflag=direct
    [[ $(digest_of "$device") == "$(head -c 4M disk.raw | sha256sum)" ]]
    "$COWNBD" detach "$device"
    echo tiny >tiny.raw
    said 'at least a sector' "$COWNBD" attach tiny.raw
    said 'No such file' "$COWNBD" attach missing.qcow2
}

test_many_at_once() {
    local i pids=()
    for i in {1..6}; do
        "$COWNBD" create -f qcow2 "disk$i.qcow2" 16M
    done
    for i in {1..6}; do
        "$COWNBD" attach --fast-path=off "disk$i.qcow2" >"device$i" &
        pids+=($!)
    done
    for i in "${pids[@]}"; do
        wait "$i"
    done
    [[ $(cat device* | sort -u | wc -l) == 6 ]]
    for i in {1..6}; do
        [[ $(<"/sys/block/$(basename "$(<"device$i")")/backend") == "cownbd:$PWD/disk$i.qcow2" ]]
        "$COWNBD" detach "disk$i.qcow2" &
    done
    wait
    [[ -z $(background_servers) ]]
}

# Each has the fast path, under a name of its own.
test_the_same_name_many_times_at_once() {
    local i pids=()
    for i in {1..4}; do
        mkdir "$i"
        "$COWNBD" create -f qcow2 "$i/disk.qcow2" 16M
    done
    for i in {1..4}; do
        "$COWNBD" attach "$i/disk.qcow2" >"device$i" &
        pids+=($!)
    done
    for i in "${pids[@]}"; do
        wait "$i"
    done
    sort -u device* | tee devices
    [[ $(grep -c '^/dev/mapper/disk.qcow2' devices) == 4 ]]
    for i in {1..4}; do
        "$COWNBD" detach "$(<"device$i")"
    done
}

test_the_same_image_many_times_at_once() {
    "$COWNBD" create -f qcow2 disk.qcow2 16M
    local i pids=()
    for i in {1..5}; do
        "$COWNBD" attach --fast-path=off disk.qcow2 >"device$i" &
        pids+=($!)
    done
    for i in "${pids[@]}"; do
        wait "$i"
    done
    [[ $(sort -u device*) == /dev/nbd0 && $(background_servers | wc -l) == 1 ]]
    "$COWNBD" detach disk.qcow2
}

# A server that is there anyway attaches, and stays after detach.
test_a_running_server() {
    "$COWNBD" create -f qcow2 disk.qcow2 16M
    serve --sandbox=off --control "$PWD/control" disk.qcow2
    local device
    device=$("$COWNBD" attach --fast-path=off --control "$PWD/control" disk.qcow2)
    [[ -z $(background_servers) ]]
    make_data data 1
    dd if=data of="$device" oflag=direct bs=1M conv=fsync status=none
    cmp -n $((1 << 20)) data <(nbdcopy "$(uri)" -)
    "$COWNBD" list --control "$PWD/control" | grep -qF "$device"
    "$COWNBD" stats --json --control "$PWD/control" | jq -e '.exports[0]."fast-path".mode == "off"'
    [[ $("$COWNBD" attach --fast-path=off --control "$PWD/control" disk.qcow2) == "$device" ]]
    "$COWNBD" detach --control "$PWD/control" "$device"
    nbdinfo "$(uri)" >/dev/null
    said 'is served for writing' "$COWNBD" attach --fast-path=snapshot --control "$PWD/control" disk.qcow2
    "$COWNBD" create -f qcow2 other.qcow2 16M
    said 'does not serve it' "$COWNBD" attach --control "$PWD/control" other.qcow2
}

test_nbdtab() {
    "$COWNBD" create -f qcow2 disk.qcow2 16M
    said 'no server listens' "$COWNBD" attach --fast-path=off --persist-nbdtab disk.qcow2
    serve --sandbox=off -n disk --control "$PWD/control" disk.qcow2
    printf 'nbd9 elsewhere other\nnbd0 old line\n' >/etc/nbdtab
    "$COWNBD" attach --fast-path=off --persist-nbdtab --control "$PWD/control" disk.qcow2
    [[ $(</etc/nbdtab) == "nbd9 elsewhere other
nbd0 $PWD/socket disk unix,persist" ]]
    "$COWNBD" detach --control "$PWD/control" disk.qcow2
    nbd-client nbd0
    eventually "the size of nbd0" kernel_size_is_known nbd0
    detach /dev/nbd0
}

# The server dies under a load that compares; another one goes on.
test_killed_and_adopted() {
    "$COWNBD" create -f qcow2 disk.qcow2 64M
    local device load i
    device=$("$COWNBD" attach --fast-path=off --request-timeout=1 disk.qcow2)
    fio --name=load --filename="$device" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bsrange=4k-32k \
        --size=64M --io_size=24M --verify=crc32c --verify_fatal=1 --fsync=64 --output=fio.log &
    load=$!
    for i in 1 2 3 4; do
        sleep 0.$((i * 2))
        kill_servers
        sleep 0.$i
        [[ $("$COWNBD" attach --request-timeout=1 disk.qcow2) == "$device" ]]
    done
    wait $load
    # Detach needs a server to flush through: it starts one itself.
    kill_servers
    "$COWNBD" detach "$device"
    [[ -z $(background_servers) ]]
    "$COWNBD" check disk.qcow2
    qemu-img check -q disk.qcow2
}

test_a_device_that_was_left_is_not_forgotten() {
    "$COWNBD" create -f qcow2 disk.qcow2 16M
    "$COWNBD" attach --fast-path=off disk.qcow2
    kill_servers
    said 'say --adopt' "$COWNBD" serve -l unix:socket disk.qcow2
    said 'is attached as /dev/nbd0' "$COWNBD" check --repair=leaks disk.qcow2
    said 'is attached as /dev/nbd0' "$COWNBD" create -f qcow2 disk.qcow2 16M
    "$COWNBD" detach disk.qcow2
    # A server that is asked to leave detaches what nobody uses, and leaves the rest to the next one.
    serve --sandbox=off -n disk --control "$PWD/control" disk.qcow2
    "$COWNBD" attach --fast-path=off --control "$PWD/control" disk.qcow2
    stop
    [[ ! -e /sys/block/nbd0/pid ]]
    serve --attach --fast-path=off --control "$PWD/control" disk.qcow2
    mkfs.ext4 -q -F /dev/nbd0
    mkdir mnt
    mount /dev/nbd0 mnt
    stop
    [[ -e /sys/block/nbd0/pid ]]
    serve --adopt --control "$PWD/control" disk.qcow2
    echo after >mnt/file
    umount mnt
    e2fsck -fn /dev/nbd0
    stop
    [[ ! -e /sys/block/nbd0/pid ]]
}

# The image is resized while nobody serves it: the device follows when somebody does.
test_another_size() {
    disk_folder ext4 96
    cd ext4
    local device mode
    for mode in off linear; do
        "$COWNBD" create -f qcow2 $mode.qcow2 16M
        device=$("$COWNBD" attach --fast-path=$mode $mode.qcow2)
        make_data data 4
        dd if=data of="$device" bs=1M oflag=direct conv=fsync status=none
        kill_servers
        qemu-img resize -q $mode.qcow2 40M
        [[ $("$COWNBD" attach $mode.qcow2) == "$device" ]]
        eventually "the new size" has_size "$device" $((40 << 20))
        dd if=data of="$device" bs=1M seek=36 oflag=direct conv=fsync status=none
        cmp -n $((4 << 20)) data "$device"
        "$COWNBD" detach $mode.qcow2
        qemu-img convert -O raw $mode.qcow2 after.raw
        cmp data <(tail -c 4M after.raw)
    done
    cd ..
    umount ext4
}

# The device follows its image in both directions, with a filesystem on it; what comes back reads as zeroes.
test_resized_while_it_is_used() {
    disk_folder ext4 96
    cd ext4
    mkdir mnt
    local device mode
    for mode in off linear; do
        "$COWNBD" create -f qcow2 $mode.qcow2 16M
        device=$("$COWNBD" attach --fast-path=$mode $mode.qcow2)
        mkfs.ext4 -q -F "$device"
        mount "$device" mnt
        make_data mnt/data 6
        "$COWNBD" resize $mode.qcow2 +24M
        has_size "$device" $((40 << 20))
        resize2fs "$device"
        make_data mnt/more 20
        cp mnt/data mnt/again
        sync mnt/again
        said '--shrink' "$COWNBD" resize $mode.qcow2 12M
        has_size "$device" $((40 << 20))
        cmp mnt/data mnt/again
        umount mnt
        e2fsck -fp "$device"
        dd if="$device" of=before bs=1M count=12 iflag=direct status=none
        "$COWNBD" resize --shrink $mode.qcow2 12M
        has_size "$device" $((12 << 20))
        fails dd if=/dev/zero of="$device" bs=4k seek=3072 count=1 oflag=direct
        "$COWNBD" resize $mode.qcow2 40M
        has_size "$device" $((40 << 20))
        cat before <(head -c 28M /dev/zero) | cmp - <(dd if="$device" bs=1M iflag=direct status=none)
        make_data after 2
        dd if=after of="$device" bs=1M seek=38 oflag=direct conv=fsync status=none
        "$COWNBD" detach "$device"
        "$COWNBD" check $mode.qcow2
        qemu-img check -q $mode.qcow2
        qemu-img convert -O raw $mode.qcow2 after.raw
        cmp after <(tail -c 2M after.raw)
        rm -f after.raw $mode.qcow2
    done
    cd ..
    umount ext4
}

has_size() {
    [[ $(blockdev --getsize64 "$1") == "$2" ]]
}

test_dead_timeout() {
    "$COWNBD" create -f qcow2 disk.qcow2 16M
    "$COWNBD" attach --fast-path=off --dead-timeout=2 --request-timeout=1 disk.qcow2
    kill_servers
    said 'Input/output error' timeout 60 dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct
    # A server that comes too late is better than none.
    "$COWNBD" attach disk.qcow2
    dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct status=none
    "$COWNBD" detach disk.qcow2
}

test_rescue() {
    "$COWNBD" create -f qcow2 disk.qcow2 16M
    "$COWNBD" attach --fast-path=off disk.qcow2
    kill_servers
    dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct skip=9 2>said &
    sleep 0.5
    timeout 20 "$COWNBD" rescue /dev/nbd0
    fails wait $!
    grep -q 'Input/output error' said
    [[ ! -e /sys/block/nbd0/pid ]]
    # A server that lives, and does nothing.
    "$COWNBD" attach --fast-path=off disk.qcow2
    local server
    server=$(background_servers)
    kill -STOP "$server"
    dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct skip=19 2>said &
    sleep 0.5
    said "process $server, does not answer" "$COWNBD" detach disk.qcow2
    timeout 30 "$COWNBD" rescue disk.qcow2
    fails wait $!
    said 'is not attached' "$COWNBD" rescue disk.qcow2
    # When it goes on, it attaches again.
    kill -CONT "$server"
    [[ $("$COWNBD" attach --fast-path=off disk.qcow2) == /dev/nbd0 && $(background_servers) == "$server" ]]
    "$COWNBD" detach disk.qcow2
    "$COWNBD" check disk.qcow2
}

# With a filesystem on it whose writes wait for a server that is gone.
test_rescue_of_a_fast_path() {
    "$COWNBD" create -f qcow2 disk.qcow2 32M
    local device=/dev/mapper/rescued writer
    [[ $("$COWNBD" attach --fast-path=linear --name=rescued disk.qcow2) == "$device" ]]
    mkfs.ext4 -q -F "$device"
    mkdir mnt
    mount "$device" mnt
    make_data mnt/data 4
    sync mnt/data
    eventually "lines for the kernel" has_lines rescued
    kill_servers
    dd if=/dev/zero of=mnt/more bs=1M count=8 conv=fsync 2>/dev/null &
    writer=$!
    sleep 1
    kill -0 $writer
    timeout 60 "$COWNBD" rescue "$device"
    fails wait $writer
    umount mnt
    eventually "the end of $device" test ! -e "$device"
    [[ ! -e /sys/block/nbd0/pid && -z $(losetup -a | grep disk.qcow2) ]]
    [[ $("$COWNBD" attach --fast-path=linear --name=rescued disk.qcow2) == "$device" ]]
    # The same with a server that lives.
    "$COWNBD" rescue "$device"
    [[ $("$COWNBD" attach --fast-path=linear --name=rescued disk.qcow2) == "$device" ]]
    e2fsck -fp "$device" || [[ $? -le 1 ]]
    "$COWNBD" detach "$device"
}

has_lines() {
    dmsetup table "$1" | grep -q ' linear 7:'
}

# The last: the kernel has them no more.
# With all targets that earlier tests have brought in.
remove_device_mapper() {
    local holder
    for holder in /sys/module/dm_mod/holders/*; do
        [[ ! -e $holder ]] || modprobe -r "${holder##*/}" || true
    done
    modprobe -r dm-mod
}

test_without_device_mapper() {
    "$COWNBD" create -f qcow2 disk.qcow2 16M
    eventually "the end of all devices" remove_device_mapper
    mkdir -p /etc/modprobe.d
    echo 'install dm-mod /bin/false' >/etc/modprobe.d/no-dm.conf
    [[ $("$COWNBD" attach disk.qcow2) == /dev/nbd0 ]]
    "$COWNBD" detach disk.qcow2
    said 'no device-mapper' "$COWNBD" attach --fast-path=linear disk.qcow2
    [[ ! -e /sys/block/nbd0/pid ]]
    rm /etc/modprobe.d/no-dm.conf
    [[ $("$COWNBD" attach disk.qcow2) == /dev/mapper/disk.qcow2 ]]
    "$COWNBD" detach disk.qcow2
}

test_without_nbd() {
    "$COWNBD" create -f qcow2 disk.qcow2 16M
    modprobe -r nbd
    mkdir -p /etc/modprobe.d
    echo 'install nbd /bin/false' >/etc/modprobe.d/no-nbd.conf
    said 'this kernel has no nbd' "$COWNBD" attach disk.qcow2
    grep -q 'cownbd serve' said
    rm /etc/modprobe.d/no-nbd.conf
    "$COWNBD" attach --fast-path=off disk.qcow2
    "$COWNBD" detach disk.qcow2
}

run_tests
