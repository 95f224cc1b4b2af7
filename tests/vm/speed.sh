#!/bin/bash
# In a guest: what the fast path is worth. Measures the same jobs on the device that `cownbd attach` makes, in each
# mode, and on what it has to be compared with. scripts/bench-fastpath runs this and makes a table of it.
#
#   speed.sh [--rounds N] [--slice MS] [--size MIB] [--devices LIST] [--jobs GLOB]
#
# Devices, all over files of one ext4 that lies in memory, past the page cache:
#
#   loop      a loop device on a raw file
#   dm        device-mapper `linear` on a loop device, one line: on a raw file; for the jobs full-* on the data of a
#             qcow2 like the one that cownbd has, so that both write to the same places of a file
#   linear    cownbd attach --fast-path=linear, of a qcow2
#   snapshot  cownbd attach --fast-path=snapshot, of a qcow2
#   off       cownbd attach --fast-path=off, of a qcow2
#   qemu      qemu-nbd with the kernel's nbd, of a qcow2
#
# Jobs, by the state of the image: full, allocated from end to end; empty, nothing allocated, and the time is taken
# for all from the first write to the flush at the end; lines, every second cluster allocated, so that the table of
# `linear` has as many lines as it may have; with two seconds of the same load before what is measured, and at most three
# rounds.
#
# One line for each measurement goes to the output: JOB DEVICE PER-SECOND (operations, of empty-* bytes).
. "$(dirname "$0")/lib.sh"
rounds=1
slice=200
size=64
devices=loop,dm,linear,snapshot,off,qemu
jobs='*'
while [[ $# -gt 0 ]]; do
    case $1 in
    --rounds | --slice | --size | --devices | --jobs) printf -v "${1#--}" %s "${2:?$1 needs a value}" ;;
    *) echo "unknown option $1" >&2 && exit 1 ;;
    esac
    shift 2
done
all_jobs="full-read-4k full-write-4k full-read-128k full-write-128k full-fsync lines-fsync lines-write-4k
    empty-write-4k empty-write-64k empty-write-128k"

# make_image NAME STATE: ./NAME.img for that device, allocated as far as its state asks.
make_image() {
    rm -f raw
    truncate -s "${size}M" raw
    case $2 in
    full) dd if=/dev/zero bs=1M count="$size" status=none | tr '\0' U >raw ;;
    lines) /usr/bin/python3 - "$size" <<'PY' ;;
import sys
with open("raw", "r+b") as image:
    for cluster in range(0, int(sys.argv[1]) * 16, 2):
        image.seek(cluster * 65536)
        image.write(b"U" * 65536)
PY
    esac
    case $1-$2 in
    loop-* | dm-lines | dm-empty) mv raw "$1.img" ;;
    *) qemu-img convert -f raw -O qcow2 raw "$1.img" ;;
    esac
    rm -f raw
    sync -f .
}

# open_NAME makes the device on ./NAME.img and leaves its path in device[NAME]; close_NAME takes it away.
declare -A device
open_loop() {
    device[loop]=$(losetup --find --show --direct-io=on loop.img)
}

close_loop() {
    losetup -d "${device[loop]}"
}

open_dm() {
    local offset
    # Of the first extent; there is no second one: device-mapper would refuse a line that leaves the file.
    offset=$("$COWNBD" map --json dm.img | jq '.[0].offset // 0')
    below=$(losetup --find --show --direct-io=on dm.img)
    dmsetup create plain --table "0 $((size << 11)) linear $below $((offset >> 9))"
    device[dm]=/dev/mapper/plain
}

close_dm() {
    dmsetup remove plain
    losetup -d "$below"
}

open_cownbd() {
    device[$1]=$("$COWNBD" attach "--fast-path=$1" "$1.img")
}

close_cownbd() {
    "$COWNBD" detach "$1.img" >/dev/null
}

open_linear() { open_cownbd linear; }
close_linear() { close_cownbd linear; }
open_snapshot() { open_cownbd snapshot; }
close_snapshot() { close_cownbd snapshot; }
open_off() { open_cownbd off; }
close_off() { close_cownbd off; }

open_qemu() {
    device[qemu]=/dev/nbd15
    qemu-nbd --fork -f qcow2 --cache=none --aio=threads --discard=unmap -t -k "$PWD/socket" \
        --pid-file="$PWD/qemu.pid" qemu.img
    attach /dev/nbd15 -unix "$PWD/socket" >/dev/null 2>&1
}

close_qemu() {
    local pid
    pid=$(<qemu.pid)
    detach /dev/nbd15 >/dev/null
    kill "$pid"
    eventually "the end of qemu-nbd" process_is_gone "$pid"
}

process_is_gone() {
    ! kill -0 "$1" 2>/dev/null
}

# fio_options JOB: sets `options`. What is written is in each round the same and as random. The pieces of `lines` lie in
# the first cluster, which is there.
fio_options() {
    case $1 in
    *-read-4k) options=(rw=randread bs=4k) ;;
    *-write-4k) options=(rw=randwrite bs=4k) ;;
    *-write-64k) options=(rw=randwrite bs=64k) ;;
    *-read-128k) options=(rw=read bs=128k) ;;
    *-write-128k) options=(rw=write bs=128k) ;;
    *-fsync) options=(rw=randwrite bs=4k fsync=1) ;;
    esac
    case $1 in
    full-*) options+=("size=${size}M" time_based "runtime=${slice}ms") ;;
    # After a while: a device that flushes a lot is given fewer lines.
    lines-*) options+=(size=64k time_based ramp_time=2s "runtime=$((slice * 5))ms") ;;
    empty-write-4k) options+=("size=${size}M" "io_size=$((size / 4))M" end_fsync=1) ;;
    empty-*) options+=("size=${size}M" end_fsync=1) ;;
    esac
}

# measure JOB ROUNDS DEVICE...: all in one run of fio, slices of the devices in turn. Prints how much of it a second.
measure() {
    local job=$1 rounds=$2 name options what
    shift 2
    fio_options "$job"
    {
        printf '%s\n' '[global]' direct=1 ioengine=psync randseed=7 randrepeat=1 thread stonewall "${options[@]}"
        for _ in $(seq "$rounds"); do
            for name; do
                printf '%s\n' "[$name]" "filename=${device[$name]}"
            done
        done
    } >jobs.fio
    fio --output-format=json --output=fio.json jobs.fio >/dev/null
    case $job in
    *read*) what=.read.iops ;;
    empty-*) what='.write.io_bytes / .job_runtime * 1000' ;;
    *) what=.write.iops ;;
    esac
    jq -r ".jobs[] | \"$job \\(.jobname) \\($what | floor)\"" fio.json | tee -a /job/results
}

# jobs_of STATE: those that were asked for.
jobs_of() {
    local job
    for job in $all_jobs; do
        # shellcheck disable=SC2254
        case $job in
        $jobs) [[ $job != "$1"-* ]] || echo "$job" ;;
        esac
    done
}

# All devices are there at once, and measured in turn: what else the machine does hits all alike.
measure_standing() {
    local state=$1 rounds=$rounds job name
    [[ $(jobs_of "$state") ]] || return 0
    for name in $devices; do
        make_image "$name" "$state"
        "open_$name"
    done
    [[ $state == full || $rounds -lt 3 ]] || rounds=3
    for job in $(jobs_of "$state"); do
        measure "$job" "$rounds" $devices
    done
    for name in $devices; do
        "close_$name"
        rm "$name.img"
    done
}

# Each measurement with a new image.
measure_empty() {
    local round job name
    for round in $(seq "$rounds"); do
        for job in $(jobs_of empty); do
            for name in $devices; do
                make_image "$name" empty
                "open_$name"
                measure "$job" 1 "$name"
                "close_$name"
                rm "$name.img"
            done
        done
    done
}

main() {
    set -e
    devices=${devices//,/ }
    # Room for an image each, for what snapshot mode writes beside its own, and for making the next.
    disk_folder "$top/ext4" $((size * 8 + 64))
    cd "$top/ext4"
    measure_standing full
    measure_standing lines
    measure_empty
    cd /
    umount "$top/ext4"
}

main
