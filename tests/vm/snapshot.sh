#!/bin/bash
# In a guest with a disk (vm-run --disk 512): snapshot mode. The kernel does the copy-on-write into a store beside the image, and the store is folded
# into the image; whoever is killed meanwhile, the image ends up as the device was.
#
#   snapshot.sh [ROUNDS [SEED]]      how often the server dies while the device is written to, and the fold after it
. "$(dirname "$0")/lib.sh"
rounds=${1:-10}
RANDOM=${2:-$((16#$(head -c 2 /dev/urandom | od -An -tx1 | tr -d ' \n') & 32767))}
echo "seed $RANDOM"
disk=/dev/ubda
if modprobe -q virtio_blk && [[ -b /dev/vda ]]; then
    disk=/dev/vda
fi

# host_folder MIB: a new filesystem of that size on ./ext4, and goes there.
host_folder() {
    mkfs.ext4 -q -F "$disk" "$1M"
    mkdir ext4
    mount "$disk" ext4
    cd ext4
}

# The process that serves an image of the current folder: the kernel knows who made the device.
server_of() {
    local backend
    backend=$(grep -lxF "cownbd:$PWD/$1" /sys/block/nbd*/backend)
    cat "${backend%/backend}/pid"
}

kill_server_of() {
    local pid
    pid=$(server_of "$1")
    kill -KILL "$pid"
    eventually "the end of $pid" test ! -e "/proc/$pid"
}

# chunks_in_use NAME: how many chunks the kernel says are in use, header and areas included.
chunks_in_use() {
    local used chunk
    read -r _ _ _ used _ < <(dmsetup status "$1")
    chunk=$(dmsetup table "$1" | awk '{ print $NF }')
    echo $((${used%/*} / chunk))
}

# same_as_image DIGEST IMAGE: the image has these bytes, is in good order, and no store is left.
same_as_image() {
    qemu-img check -q "$2"
    "$COWNBD" check "$2"
    qemu-img convert -O raw "$2" after.raw
    [[ $(digest_of after.raw) == "$1" ]]
    rm after.raw
    [[ ! -e $2.cownbd-cow ]]
}

# A chain with all that a composite is made of: plain data, zeroes, and what must be decoded, in several files.
make_chain() {
    qemu-img create -q -f raw base.raw 48M
    qemu-io -f raw -c 'write -P 1 0 4M' -c 'write -P 2 30M 2M' base.raw >/dev/null
    qemu-img convert -f raw -O vmdk base.raw base.vmdk
    qemu-img create -q -f qcow2 -b base.vmdk -F vmdk middle.qcow2 64M
    qemu-io -f qcow2 -c 'write -P 3 2M 1M' -c 'write -c -P 4 31M 64k' -c 'write -c -P 5 33M 192k' \
        -c 'write -z 1M 512k' middle.qcow2 >/dev/null
    qemu-img create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2
    qemu-io -f qcow2 -c 'write -P 6 2560k 1M' -c 'write -P 7 50M 1M' top.qcow2 >/dev/null
}

fill_and_check() {
    local i
    mkfs.ext4 -q -F "$1"
    mkdir -p mnt
    mount "$1" mnt
    make_data data 6
    cp data mnt/one
    mkdir mnt/many
    for i in {1..50}; do
        echo "file $i" >"mnt/many/$i"
    done
    sync -f mnt
    rm mnt/many/7
    umount mnt
    e2fsck -fn "$1"
}

test_a_filesystem_on_a_chain() {
    host_folder 200
    make_chain
    local device before whole seen used result chunks
    before=$(digest_of top.qcow2)
    qemu-img convert -O raw top.qcow2 whole.raw
    whole=$(digest_of whole.raw)
    rm whole.raw
    device=$("$COWNBD" attach --fast-path=snapshot --name=snap top.qcow2)
    [[ $device == /dev/mapper/snap && $("$COWNBD" attach top.qcow2) == "$device" ]]
    [[ $(digest_of "$device") == "$whole" ]]
    dmsetup table snap-origin | grep -q ' linear 7:'
    [[ $(blockdev --getsize64 "$device") == $((64 << 20)) && $(blockdev --getro "$device") == 0 ]]
    fill_and_check "$device"
    seen=$(digest_of "$device")
    used=$(chunks_in_use snap)
    [[ $(digest_of top.qcow2) == "$before" ]]
    "$COWNBD" detach --no-fold "$device"
    [[ ! -e $device && -e top.qcow2.cownbd-cow ]]
    [[ $(dmsetup ls) == "No devices found" && ! -e /sys/block/nbd0/pid ]]
    [[ $(losetup -a) != *ext4* ]]
    [[ $(digest_of top.qcow2) == "$before" ]]
    result=$("$COWNBD" fold --json top.qcow2)
    echo "$result"
    chunks=$(awk '/"chunks"/ { print $3 + 0 }' <<<"$result")
    [[ $used == $((1 + chunks / 1024 + 1 + chunks)) ]]
    same_as_image "$seen" top.qcow2
    cd ..
    umount ext4
}

test_detach_folds_and_a_store_goes_on() {
    host_folder 200
    make_chain
    local device seen
    device=$("$COWNBD" attach --fast-path=snapshot top.qcow2)
    dd if=/dev/urandom of="$device" bs=64k count=40 seek=100 oflag=direct status=none
    "$COWNBD" detach --no-fold "$device"
    # the same store goes on
    device=$("$COWNBD" attach --fast-path=snapshot top.qcow2)
    dd if=/dev/urandom of="$device" bs=4k count=100 seek=7777 oflag=direct status=none
    seen=$(digest_of "$device")
    exec 9<"$device"
    fails "$COWNBD" detach "$device"
    exec 9<&-
    [[ $(digest_of "$device") == "$seen" ]]
    "$COWNBD" detach "$device" >folded
    grep -q 'folded, .* exceptions' folded
    same_as_image "$seen" top.qcow2
    # nothing was written: nothing is folded, and the image stays as it is
    local before
    before=$(digest_of top.qcow2)
    device=$("$COWNBD" attach --fast-path=snapshot top.qcow2)
    "$COWNBD" detach top.qcow2
    [[ ! -e top.qcow2.cownbd-cow && $(digest_of top.qcow2) == "$before" ]]
    cd ..
    umount ext4
}

test_others_keep_off() {
    host_folder 200
    make_chain
    local device seen
    device=$("$COWNBD" attach --fast-path=snapshot top.qcow2)
    dd if=/dev/urandom of="$device" bs=64k count=4 oflag=direct status=none
    keeps_off
    kill_server_of top.qcow2
    keeps_off
    # The kernel goes on without a server, but for what must be decoded.
    [[ $(dd if="$device" bs=1M count=20 iflag=direct status=none | sha256sum) == \
        $(dd if="$device" bs=1M count=20 iflag=direct status=none | sha256sum) ]]
    dd if=/dev/urandom of="$device" bs=64k count=30 seek=300 oflag=direct status=none
    # detach finds what the dead server left
    [[ $("$COWNBD" attach top.qcow2) == "$device" ]]
    seen=$(digest_of "$device")
    "$COWNBD" detach --no-fold "$device"
    # now the image is changed behind the store's back
    cp top.qcow2 top.kept
    touch -r top.qcow2 top.kept
    qemu-io -f qcow2 -c 'write -P 9 60M 64k' top.qcow2 >/dev/null
    fails "$COWNBD" fold top.qcow2
    grep -q 'was changed after this store was made' failure
    fails "$COWNBD" attach --fast-path=snapshot top.qcow2
    cat top.kept >top.qcow2
    touch -r top.kept top.qcow2
    "$COWNBD" fold top.qcow2
    same_as_image "$seen" top.qcow2
    cd ..
    umount ext4
}

keeps_off() {
    fails qemu-io -f qcow2 -c 'write 0 64k' top.qcow2
    grep -qi 'lock' failure
    fails "$COWNBD" fold top.qcow2
    grep -q 'is in use by another process' failure
    fails timeout 5 "$COWNBD" serve --control none -l unix:busy top.qcow2
    grep -q 'is in use by another process' failure
}

# A load on the device that compares what it reads with what it wrote.
load() {
    fio --name=load --filename="$1" --offset=8M --size=32M --io_size=24M --bs=4k-64k --rw=randwrite --direct=1 \
        --ioengine=libaio --iodepth=4 --verify=crc32c --verify_fatal=1 --randseed="$2" --output=fio.log
}

# fold_with_deaths IMAGE: killed at random until it gets through. Prints how often.
fold_with_deaths() {
    local fold kills=0 longest=60
    while true; do
        "$COWNBD" fold "$1" >fold.out 2>fold.err &
        fold=$!
        sleep "0.$(printf %03d $((RANDOM % longest)))"
        kill -KILL $fold 2>/dev/null || true
        if wait $fold 2>/dev/null; then
            break
        fi
        kills=$((kills + 1))
        [[ ! -s fold.err ]]
        # leaks are what a cut may leave
        qemu-img check -q "$1" >check.out 2>&1 || [[ $? == 3 ]]
        longest=$((longest < 900 ? longest + longest / 8 + 1 : longest))
        [[ $kills -lt 200 ]]
    done
    echo "fold cut off $kills times"
}

test_deaths() {
    host_folder 220
    local round device seen loader
    qemu-img create -q -f qcow2 top.qcow2 64M
    for ((round = 0; round < rounds; round++)); do
        device=$("$COWNBD" attach --fast-path=snapshot top.qcow2)
        load "$device" "$((RANDOM + 1))" &
        loader=$!
        sleep "0.$(printf %03d $((RANDOM % 900)))"
        kill_server_of top.qcow2
        if ((RANDOM % 2)); then
            "$COWNBD" serve --listen=none --fast-path=snapshot --adopt --attach --control="$PWD/control" \
                top.qcow2 >>serve.out 2>>serve.err </dev/null &
            servers+=($!)
        fi
        wait $loader
        seen=$(digest_of "$device")
        if [[ ${#servers[@]} -gt 0 ]]; then
            "$COWNBD" detach --no-fold --control="$PWD/control" "$device"
            stop
        else
            "$COWNBD" detach --no-fold "$device"
        fi
        fold_with_deaths top.qcow2
        same_as_image "$seen" top.qcow2
    done
    if dmesg | grep -E 'I/O error|critical .* error|Buffer I/O'; then
        return 1
    fi
    cd ..
    umount ext4
}

# The host has no space for a larger store: writes fail then, and nothing else does.
test_a_full_host() {
    host_folder 340
    local device seen size steps=0
    truncate -s 300M disk.raw
    fill_up_to 170 filler
    device=$("$COWNBD" attach -f raw --fast-path=snapshot --name=full disk.raw)
    while dd if=/dev/urandom of="$device" bs=1M count=4 seek=$((steps * 4)) oflag=direct status=none 2>dd.err; do
        [[ $((steps += 1)) -lt 70 ]]
    done
    [[ $(dmsetup status full) == *Overflow* && $steps -gt 15 ]]
    seen=$(digest_of "$device")
    eventually "the server to see it" has_overflowed
    "$COWNBD" detach --no-fold "$device"
    # No space in the image either: nothing is lost by trying.
    fill_up_to 8 more
    size=$(stat -c %s disk.raw.cownbd-cow)
    cd .. # there is no space for the message here
    fails "$COWNBD" fold -f raw ext4/disk.raw
    grep -q 'nothing is lost' failure
    cd ext4
    [[ $(stat -c %s disk.raw.cownbd-cow) == "$size" ]]
    # What was left to the host is enough for a fold, though the store is larger.
    rm more
    "$COWNBD" fold -f raw disk.raw
    [[ $(digest_of disk.raw) == "$seen" && ! -e disk.raw.cownbd-cow ]]
    cd ..
    umount ext4
}

# fill_up_to MIB FILE: so much space is left.
fill_up_to() {
    fallocate -l $(($(df --output=avail -B1 . | tail -n 1) - ($1 << 20))) "$2"
}

has_overflowed() {
    "$COWNBD" stats --control /run/cownbd/*.sock --json | grep -q '"overflowed" *: *true'
}

write_and_leave() {
    local device
    device=$("$COWNBD" attach -f raw --fast-path=snapshot base.raw)
    dd if=/dev/urandom of="$device" bs=64k count=4 oflag=direct status=none
    "$COWNBD" detach --no-fold "$device"
}

test_refusals() {
    host_folder 100
    local loop
    qemu-img create -q -f raw base.raw 8M
    qemu-img convert -f raw -O vmdk -o subformat=streamOptimized base.raw base.vmdk
    fails "$COWNBD" attach --fast-path=snapshot base.vmdk
    grep -q 'make an overlay' failure
    loop=$(losetup -f --show base.raw)
    fails "$COWNBD" attach -f raw --fast-path=snapshot "$loop"
    grep -q 'is a block device' failure
    losetup -d "$loop"
    # A name in /dev/mapper that somebody else has: nothing is left of the attempt.
    dmsetup create taken --table '0 8 zero'
    fails "$COWNBD" attach -f raw --fast-path=snapshot --name=taken base.raw
    dmsetup remove taken
    [[ $(dmsetup ls) == "No devices found" && $(echo *) != *cownbd-cow* && ! -e /sys/block/nbd0/pid ]]
    # A store that the kernel has given up is folded, and not used any more.
    write_and_leave
    printf '\0' | dd of=base.raw.cownbd-cow bs=1 seek=$(((1 << 20) + 4)) conv=notrunc status=none
    fails "$COWNBD" attach -f raw --fast-path=snapshot base.raw
    grep -q 'has given it up' failure
    "$COWNBD" fold -f raw base.raw 2>told
    grep -q 'had given the store up' told
    # A store whose header is damaged stays, and is not used.
    write_and_leave
    printf x | dd of=base.raw.cownbd-cow bs=1 seek=60 conv=notrunc status=none
    fails "$COWNBD" attach -f raw --fast-path=snapshot base.raw
    grep -q 'damaged' failure
    [[ -e base.raw.cownbd-cow ]]
    cd ..
    umount ext4
}

# A store that grows while it is written to, on a disk that is larger than what is kept free ahead.
test_growth() {
    host_folder 500
    local device seen before
    qemu-img create -q -f qcow2 -o cluster_size=64k top.qcow2 2G
    device=$("$COWNBD" attach --fast-path=snapshot top.qcow2)
    before=$(stat -c %s top.qcow2.cownbd-cow)
    dd if=/dev/zero of="$device" bs=1M count=160 seek=1000 oflag=direct status=none
    eventually "growth" grown "$before"
    head -c 4M /dev/urandom >data
    dd if=data of="$device" bs=64k seek=20000 oflag=direct status=none
    "$COWNBD" detach "$device"
    # What was zeroes takes no space.
    [[ $(stat -c %s top.qcow2) -lt $((12 << 20)) ]]
    qemu-img convert -O raw top.qcow2 after.raw
    cmp data <(dd if=after.raw bs=64k skip=20000 count=64 status=none)
    [[ $(tr -d '\0' <after.raw | wc -c) == $(tr -d '\0' <data | wc -c) ]]
    qemu-img check -q top.qcow2
    cd ..
    umount ext4
}

grown() {
    [[ $(stat -c %s top.qcow2.cownbd-cow) -gt $1 ]]
}

run_tests
