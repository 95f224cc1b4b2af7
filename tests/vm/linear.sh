#!/bin/bash
# In a guest: the fast path linear. What the kernel moves by itself, what it gives back when the server must have it,
# and that every way to the same bytes shows the same, at any moment.
#
# linear.sh [PART...]: only the tests whose names begin with one of the parts.
. "$(dirname "$0")/lib.sh"

scale=${COWNBD_TEST_SCALE:-10} # percent: at 100 the load with verification goes on for minutes

# start IMAGE OPTION...: serves the image, as export "disk", and attaches it; its device is $device.
start() {
    serve --sandbox=off -n disk --control "$PWD/control" "$1"
    device=$("$COWNBD" attach --control "$PWD/control" --fast-path=linear --name=linear "${@:2}" "$1")
    [[ $device == /dev/mapper/linear && -b $device ]]
}

# stat_of NAME: a number of the fast path.
stat_of() {
    "$COWNBD" stats --json --control control | jq ".exports[0].\"fast-path\".\"$1\""
}

# at_least NAME NUMBER: of the fast path.
at_least() {
    jq -en "$(stat_of "$1") >= $2" >/dev/null
}

is_none() {
    [[ $(stat_of "$1") == 0 ]]
}

# Lines that lead to loop devices.
loop_lines() {
    dmsetup table linear | grep -c ' 7:[0-9]* [0-9]*$' || true
}

has_loop_lines() {
    [[ $(loop_lines) -gt 0 ]]
}

# same_everywhere IMAGE: dm, NBD and, after the end, qemu show the same, and nothing is wrong with the image.
same_everywhere() {
    local seen
    seen=$(digest_of "$device")
    [[ $(digest_through_nbd "$(uri disk)") == "$seen" ]]
    "$COWNBD" detach --control "$PWD/control" "$device"
    [[ ! -e $device ]]
    stop
    "$COWNBD" check "$1" || [[ $1 == *.raw || $1 == *.vmdk ]]
    [[ $1 != *.qcow2 ]] || qemu-img check -q "$1"
    qemu-img convert -O raw "$1" after.img
    [[ $(digest_of after.img) == "$seen" ]]
    rm after.img
}

# use_filesystem IMAGE: an ext4 that is filled, changed and checked; then most of it needs no server.
use_filesystem() {
    start "$1"
    mkfs.ext4 -q -F "$device"
    mkdir -p mnt
    mount "$device" mnt
    make_data data 12
    cp data mnt/one
    sync -f mnt
    eventually "lines" has_loop_lines
    cp data mnt/two
    rm mnt/one
    sync -f mnt
    fstrim mnt
    cp mnt/two mnt/three
    sync -f mnt
    equal data mnt/three
    eventually "most in lines" at_least mapped-bytes $((24 << 20))
    umount mnt
    e2fsck -fn "$device"
    mount -o ro "$device" mnt
    equal data mnt/two
    umount mnt
    is_none failed-reloads
    same_everywhere "$1"
}

in_ext4() {
    disk_folder ext4 "$1"
    cd ext4
}

out_of_ext4() {
    cd ..
    umount ext4
    blockdev --flushbufs /dev/ram0
}

test_ext4_on_qcow2() {
    in_ext4 200
    qemu-img create -q -f qcow2 disk.qcow2 128M
    use_filesystem disk.qcow2
    out_of_ext4
}

test_ext4_on_raw() {
    in_ext4 200
    truncate -s 96M disk.raw
    use_filesystem disk.raw
    out_of_ext4
}

test_ext4_on_an_overlay_of_three() {
    in_ext4 200
    qemu-img create -q -f qcow2 base.qcow2 96M
    qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 50M 2M' base.qcow2 >/dev/null
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 middle.qcow2 96M
    qemu-io -f qcow2 -c 'write -P 3 51M 2M' -c 'write -z 90M 1M' middle.qcow2 >/dev/null
    qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 disk.qcow2 128M
    use_filesystem disk.qcow2
    out_of_ext4
}

# Nothing of a vmdk that is read-only needs the server, nor does a chain of qcow2 but for what is compressed.
test_read_only() {
    in_ext4 200
    make_data data 8
    qemu-img convert -O vmdk data disk.vmdk
    serve --sandbox=off -r -n disk --control "$PWD/control" disk.vmdk
    device=$("$COWNBD" attach --control "$PWD/control" --fast-path=linear --name=linear --read-only disk.vmdk)
    [[ $(blockdev --getro "$device") == 1 ]]
    dmsetup table linear | fails grep ' 43:'
    at_least mapped-bytes $((8 << 20))
    same_everywhere disk.vmdk

    qemu-img convert -c -O qcow2 data base.qcow2
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2 16M
    qemu-io -f qcow2 -c 'write -P 7 1M 2M' disk.qcow2 >/dev/null
    serve --sandbox=off -r -n disk --control "$PWD/control" disk.qcow2
    device=$("$COWNBD" attach --control "$PWD/control" --fast-path=linear --name=linear disk.qcow2)
    fails dd if=/dev/zero of="$device" bs=4k count=1 oflag=direct
    at_least mapped-bytes $((9 << 20)) # what was written, and zeroes
    same_everywhere disk.qcow2
    out_of_ext4
}

# Clusters that are smaller than a page, and a block device as the file: where the kernel and the server would meet in
# a page of the cache.
test_small_clusters_and_a_block_device() {
    in_ext4 200
    qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 8M
    start disk.qcow2
    fio --name=small --filename="$device" --size=1M --bs=512-8k --bs_unaligned=0 --rw=randwrite --direct=1 \
        --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --loops=3 --output=fio.log
    eventually "lines" has_loop_lines
    fio --name=small --filename="$device" --size=1M --bs=512-8k --bs_unaligned=0 --rw=randwrite --direct=1 \
        --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --loops=3 --output=fio.log
    same_everywhere disk.qcow2

    truncate -s 32M backing.img
    local host
    host=$(losetup -f --show backing.img)
    qemu-img create -q -f qcow2 "$host" 16M
    start "$host"
    make_data data 4
    dd if=data of="$device" bs=1M oflag=direct conv=fsync status=none
    eventually "lines" has_loop_lines
    dmsetup deps -o devname linear | fails grep "$(basename "$host")"
    dd if=data of="$device" bs=1M seek=2 oflag=direct conv=fsync status=none
    cmp -n $((4 << 20)) -i 0:$((2 << 20)) data <(nbdcopy "$(uri disk)" -)
    same_everywhere "$host"
    losetup -d "$host"
    out_of_ext4
}

# What the kernel threw away is free in the image after detach, and while attached.
test_discards_free_space() {
    in_ext4 200
    qemu-img create -q -f qcow2 disk.qcow2 64M
    start disk.qcow2
    make_data data 16
    dd if=data of="$device" bs=1M oflag=direct conv=fsync status=none
    eventually "all in lines" at_least mapped-bytes $((16 << 20))
    blkdiscard -o 4M -l 8M "$device"
    dd if=/dev/zero of=data bs=1M seek=4 count=8 conv=notrunc status=none
    cmp data <(dd if="$device" bs=1M count=16 iflag=direct status=none)
    eventually "space that was given back" at_least reclaimed-bytes $((8 << 20))
    blkdiscard -o 12M -l 2M "$device"
    same_everywhere disk.qcow2
    [[ $(qemu-img map --output=json disk.qcow2 | jq 'map(select(.data) | .length) | add') == $((6 << 20)) ]]
    out_of_ext4
}

# An image of 300 short extents, each of them a line.
start_many_lines() {
    in_ext4 200
    qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 16M
    /usr/bin/python3 -c 'for i in range(300): print(f"write -q {(i * 7 % 300) * 8}k 4k")' | qemu-io -f qcow2 disk.qcow2 >/dev/null
    start disk.qcow2
}

# flushes_of DEVICE: how many it has been given.
flushes_of() {
    awk '{ print $16 }' "/sys/dev/block/$1/stat"
}

# However many lines there are, one flush goes to each device below, and it does go there.
test_a_flush_costs_one_line_a_device() {
    start_many_lines
    local loop nbd at before_loop before_nbd
    [[ $(loop_lines) == 300 ]]
    [[ $(dmsetup table linear | grep -c ' linear 7:') == 1 && $(dmsetup table linear | grep -c ' linear 43:') == 1 ]]
    loop=$(dmsetup table linear | grep -o ' 7:[0-9]*' | sort -u | tr -d ' ')
    nbd=$(dmsetup table linear | grep -o ' 43:[0-9]*' | sort -u | tr -d ' ')
    for at in 0 800 1600; do # the line that takes the flushes, and two that take none
        before_loop=$(flushes_of "$loop")
        before_nbd=$(flushes_of "$nbd")
        dd if=/dev/urandom of="$device" bs=4k seek=$((at / 4)) count=1 oflag=direct conv=notrunc,fsync status=none
        [[ $(flushes_of "$loop") -gt $before_loop && $(flushes_of "$nbd") -gt $before_nbd ]]
    done
    same_everywhere disk.qcow2
    out_of_ext4
}

# Lines that take flushes to the server.
told_lines() {
    dmsetup table linear | grep -c ' linear 43:' || true
}

is_told() {
    [[ $(told_lines) == 1 ]]
}

is_untold() {
    [[ $(told_lines) == 0 ]]
}

# While somebody does little else than write and flush in place, the server hears nothing of it, and writes through; also
# one that takes over from a server that was killed. When it is written to again, it is told again.
test_flushes_need_not_go_to_the_server() {
    start_many_lines
    is_told
    fio --name=flush --filename="$device" --size=4k --bs=4k --rw=randwrite --fsync=1 --direct=1 --ioengine=psync \
        --runtime=600 --time_based --output=fio.log &
    local load=$!
    eventually "a table that leaves the server alone" is_untold
    kill "$load"
    wait "$load" || true
    kill -KILL "${servers[@]}"
    wait "${servers[@]}" || true
    servers=()
    rm -f socket
    serve -n disk --control "$PWD/control" --attach --adopt --fast-path=linear --attach-name=linear disk.qcow2
    is_untold
    fio --name=change --filename="$device" --offset=8M --size=7M --bs=4k --rw=randwrite --direct=1 --ioengine=psync \
        --runtime=600 --time_based --output=fio.log &
    load=$!
    eventually "a table that tells the server" is_told
    kill "$load"
    wait "$load" || true
    same_everywhere disk.qcow2
    out_of_ext4
}

# Where the kernel lacks the target for that, a flush is sent once for each line: whoever does little but flush gets few
# lines, and all of them later.
test_lines_are_bounded_by_flushes() {
    echo 'install dm-switch /bin/false' >/etc/modprobe.d/no-switch.conf
    ! grep -q '^dm_switch ' /proc/modules || rmmod dm_switch
    start_many_lines
    local before
    [[ $(dmsetup table linear | grep -c switch || true) == 0 ]]
    before=$(stat_of lines)
    [[ $before -gt 500 && $(dmsetup table linear | wc -l) == "$before" ]]
    fio --name=flush --filename="$device" --size=2400k --bs=4k --rw=randwrite --fsync=1 --direct=1 --ioengine=psync \
        --runtime=4 --time_based --output=fio.log
    cat fio.log
    [[ $(stat_of lines) -lt $((before / 2)) && $(dmsetup table linear | wc -l) == "$(stat_of lines)" ]]
    eventually "all lines" at_least lines "$before"
    same_everywhere disk.qcow2
    rm /etc/modprobe.d/no-switch.conf
    out_of_ext4
}

# Another client changes what the kernel holds, again and again.
recall_all_the_time() {
    /usr/bin/python3 - "$(uri disk)" <<'PYTHON'
import nbd, os, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
random.seed(3)
unit, held = 65536, {}
while os.path.exists("load"):
    at = (32 << 20) + random.randrange(64) * unit
    assert h.pread(unit, at) == held.get(at, bytes(unit))
    (h.zero if random.random() < 0.5 else h.trim)(unit, at)
    assert h.pread(unit, at) == bytes(unit)
    held[at] = os.urandom(4096) * 16
    h.pwrite(held[at], at)
h.shutdown()
PYTHON
}

# Allocating writes, writes in place and discards, each compared with what was written, while lines come and go.
test_verify_under_reloads_and_recalls() {
    in_ext4 300
    qemu-img create -q -f qcow2 disk.qcow2 64M
    start disk.qcow2
    local round client seconds=$((6 + scale * 9 / 10))
    touch load
    recall_all_the_time &
    client=$!
    SECONDS=0
    for ((round = 0; SECONDS < seconds; round++)); do
        fio --name=verify --filename="$device" --offset=0 --size=32M --io_size=12M --bs=512-64k --bs_unaligned=0 \
            --rw=randwrite --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --fsync=64 \
            --randseed="$round" --output=fio.log || {
            cat fio.log
            return 1
        }
        blkdiscard -o $(((round % 8) * 4 << 20)) -l 4M "$device"
    done
    rm load
    wait $client
    echo "$round rounds, $(stat_of reloads) reloads, $(stat_of recalls) recalls, $(stat_of suspended-max-us) us at most"
    at_least reloads 3
    at_least recalls 1
    is_none failed-reloads
    same_everywhere disk.qcow2
    out_of_ext4
}

# A table that the kernel refuses: the old one runs on, and later it works.
test_a_reload_that_fails() {
    in_ext4 200
    qemu-img create -q -f qcow2 disk.qcow2 64M
    qemu-io -f qcow2 -c 'write -P 1 0 1M' disk.qcow2 >/dev/null
    start disk.qcow2
    local loop holder
    loop=$(losetup -n -O NAME -j disk.qcow2)
    [[ $(loop_lines) == 1 && -n $loop ]]
    nbdsh -u "$(uri disk)" -c 'h.zero(1 << 20, 0)'
    [[ $(loop_lines) == 0 ]]
    # Whoever has the loop device for himself keeps device-mapper from using it.
    /usr/bin/python3 -c 'import os, sys, time
os.open(sys.argv[1], os.O_RDONLY | os.O_EXCL)
open("held", "w")
time.sleep(60)' "$loop" &
    holder=$!
    eventually "the holder" test -e held
    make_data data 2
    dd if=data of="$device" bs=1M oflag=direct conv=fsync status=none
    eventually "a failure" at_least failed-reloads 1
    grep -q 'goes on with its old table' server0.err
    [[ $(loop_lines) == 0 ]]
    cmp -n $((2 << 20)) data <(dd if="$device" bs=1M count=2 iflag=direct status=none)
    kill $holder
    wait $holder || true
    eventually "lines after all" has_loop_lines
    cmp -n $((2 << 20)) data <(dd if="$device" bs=1M count=2 iflag=direct status=none)
    same_everywhere disk.qcow2
    out_of_ext4
}

# A new server finds a device whose table is not what the image says: the wrong line goes, the right ones stay.
test_adopting_a_table_with_a_wrong_line() {
    in_ext4 200
    qemu-img create -q -f qcow2 disk.qcow2 64M
    qemu-io -f qcow2 -c 'write -P 1 0 1M' -c 'write -P 2 8M 1M' disk.qcow2 >/dev/null
    start disk.qcow2
    local seen
    seen=$(digest_of "$device")
    [[ $(loop_lines) == 2 ]]
    kill -KILL "${servers[@]}"
    wait "${servers[@]}" || true
    servers=()
    dmsetup table linear >table
    awk '$4 ~ /^7:/ && !done { $5 += 128; done = 1 } { print }' table >wrong
    [[ $(<table) != "$(<wrong)" ]]
    dmsetup load linear wrong
    dmsetup resume --noflush linear
    rm -f socket
    serve --sandbox=off -n disk --control "$PWD/control" --attach --adopt --fast-path=linear --attach-name=linear disk.qcow2
    eventually "the right line" has_loop_lines
    grep -q 'is not what the image says' server0.err
    [[ $(digest_of "$device") == "$seen" ]]
    same_everywhere disk.qcow2
    out_of_ext4
}

# What a failed test leaves: the device, and the filesystem with the server's words.
after_test() {
    cat "$1"/ext4/server*.err 2>/dev/null | sed 's/^/server: /'
    umount "$1/ext4/mnt" 2>/dev/null
    dmsetup remove --force linear 2>/dev/null
    umount -l "$1/ext4" 2>/dev/null
    true
}

for name in $(declare -F | sed -n 's/^declare -f \(test_.*\)/\1/p'); do
    wanted=$(($# == 0))
    for part in "$@"; do
        [[ $name != "test_$part"* ]] || wanted=1
    done
    [[ $wanted == 1 ]] || unset -f "$name"
done
run_tests
