#!/bin/bash
# In a guest: nobody notices a death. The server is killed in random states, over and over, while fio writes to the
# attached device, reads back and compares; each time a new server adopts the device. No I/O fails, no byte is
# wrong, and what is left is a clean image.
#
#   kill.sh [--seconds N] [--kills N] [--seed N] [linear|off...]
#
# In each mode: that many kills (no limit), for at most so long (35 s). Prints how many there were, and how long the
# device stood still: from the kill to the answer of a request that only a server can answer.
. "$(dirname "$0")/lib.sh"
seconds=35
kills=1000000
seed=$((16#$(head -c 3 /dev/urandom | od -An -tx1 | tr -d ' \n')))
while [[ ${1:-} == --* ]]; do
    case $1 in
    --seconds | --kills | --seed) printf -v "${1#--}" %s "${2:?$1 needs a number}" ;;
    *) echo "unknown option $1" >&2 && exit 1 ;;
    esac
    shift 2
done
[[ $# -gt 0 ]] || set -- linear off
RANDOM=$((seed & 32767))
server=
loads=()

# start OPTION...: a server that shows the image; it is not ready when this returns.
start() {
    "$COWNBD" serve --listen=none --control "$PWD/control" --fast-path="$mode" --attach-name=killed "$@" --attach \
        top.qcow2 >>server.out 2>>server.err </dev/null &
    server=$!
}

kill_server() {
    kill -KILL $server
    wait $server 2>/dev/null || true
    server=
}

# Microseconds since some time.
now() {
    echo "${EPOCHREALTIME/[.,]/}"
}

nap() {
    sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"
}

# verify NAME OFFSET SIZE FIO-OPTION...: writes all of a piece of the device in random order, reads back, compares.
verify() {
    local name=$1 offset=$2 size=$3
    shift 3
    fio --name="$name" --filename="$device" --offset="$offset" --size="$size" --direct=1 --ioengine=libaio \
        --iodepth=4 --rw=randwrite --bsrange=4k-64k --bs_unaligned=0 --verify=crc32c --verify_fatal=1 \
        --randseed=$((RANDOM + 1)) --output="fio.$name" "$@"
}

# Two loads for the whole time. This one allocates: what it has written is discarded before the next round.
load_new() {
    local round=0
    until [[ -e stop ]]; do
        verify new 0 12M --fsync=32 && blkdiscard --offset 0 --length 12M "$device" || return 1
        # Left at the end, so that there is something to compare, and in the lines.
        verify kept 12M 4M && blkdiscard --offset 20M --length 64k "$device" || return 1
        echo $((round += 1)) >rounds.new
    done
}

# And this one overwrites, in place when it has gone round once.
load_old() {
    local round=0
    until [[ -e stop ]]; do
        verify old 32M 12M || return 1
        echo $((round += 1)) >rounds.old
    done
}

# One kill, the next server, and a request of a probe that was there all the time. Each fourth time the next
# server is killed while it takes over.
kill_once() {
    local since end
    nap $((RANDOM % 400))
    since=$(now)
    kill_server
    dd if="$nbd" of=/dev/null bs=4k count=1 skip=$((RANDOM % 4096)) iflag=direct status=none &
    local probe=$!
    start --adopt
    if [[ $((RANDOM % 4)) == 0 ]]; then
        nap $((RANDOM % 80))
        kill_server
        kills_done=$((kills_done + 1))
        start --adopt
    fi
    wait $probe
    end=$(now)
    echo $((end - since)) >>resumed
    kills_done=$((kills_done + 1))
}

all_loads_run() {
    local pid
    for pid in "${loads[@]}"; do
        kill -0 "$pid" 2>/dev/null || return 1
    done
}

# The percentile of the times in ./resumed, in milliseconds.
percentile() {
    sort -n resumed | awk -v p="$1" '{t[NR] = $1} END {n = int(NR * p / 100 + 0.999); printf "%.0f", t[n] / 1000}'
}

device_is_there() {
    kill -0 $server || return 0
    [[ -b $device ]] && nbd=$(nbd_of) && [[ $(<"/sys/block/${nbd#/dev/}/size") -gt 0 ]]
}

# The nbd device that shows the image.
nbd_of() {
    local entry
    entry=$(grep -lsxF "cownbd:$PWD/top.qcow2" /sys/block/nbd*/backend) || return 1
    entry=${entry%/backend}
    echo "/dev/${entry##*/}"
}

begin() {
    qemu-img create -q -f qcow2 base.qcow2 48M
    qemu-io -f qcow2 -c 'write -P 7 30M 3M' -c 'write -P 9 11M 2M' base.qcow2 >/dev/null
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 48M
    rm -f resumed stop
    kills_done=0
    start
    if [[ $mode == off ]]; then
        eventually "an nbd device" nbd_of
        device=$(nbd_of)
    else
        device=/dev/mapper/killed
    fi
    eventually "$device" device_is_there
    nbd=$(nbd_of)
}

finish() {
    local pid
    touch stop
    for pid in "${loads[@]}"; do
        wait "$pid" || { cat fio.*; return 1; }
    done
    loads=()
    echo "$mode: seed $seed: $kills_done kills in $SECONDS s; rounds of the loads: $(<rounds.new) and $(<rounds.old);" \
        "resumed after $(percentile 50) ms (p99 $(percentile 99), longest $(percentile 100))" | tee -a "$top/summary"
    [[ ! $(dmesg | grep -E 'I/O error|critical .* error' | tee /dev/stderr) ]]
}

# What was seen through the device is what is in the image.
leave() {
    local seen
    seen=$(digest_of "$device")
    # It detaches what nobody uses.
    kill -TERM $server
    wait $server
    if nbd_of; then
        echo "the device is still there"
        return 1
    fi
    server=
    "$COWNBD" check top.qcow2
    qemu-img check -q top.qcow2
    qemu-img convert -O raw top.qcow2 after.raw
    [[ $(digest_of after.raw) == "$seen" ]]
}

run_mode() {
    mode=$1
    # run_one stops all in this array at the end of the test, also of a failed one.
    disk_folder ext4 192
    cd ext4
    trap 'kill -KILL $server ${loads[@]} 2>/dev/null || true' EXIT
    begin
    load_new &
    loads+=($!)
    load_old &
    loads+=($!)
    SECONDS=0
    while [[ $SECONDS -lt $seconds && $kills_done -lt $kills ]] && all_loads_run; do
        kill_once
    done
    finish
    leave
    cd ..
    umount ext4
    rmmod brd
}

for mode in "$@"; do
    eval "test_$mode() { run_mode $mode; }"
done
trap 'cat "$top/summary" 2>/dev/null; rm -rf "$top"' EXIT
run_tests
