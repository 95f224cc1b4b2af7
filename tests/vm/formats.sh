#!/bin/bash
# In a guest: every format as a block device. What can be written gets a filesystem; what the device showed at the end is
# what the image reads as without the kernel. What can only be read shows what it has to. The kernel never reads by
# itself what is encrypted or compressed.
. "$(dirname "$0")/lib.sh"

# fill DEVICE: gets a filesystem with a file.
fill() {
    mkfs.ext4 -q -F "$1"
    mount "$1" mnt
    cp data mnt
    umount mnt
    e2fsck -fn "$1" >fsck.log 2>&1 || {
        cat fsck.log
        return 1
    }
}

# Lines of the device that lead to loop devices.
has_loop_lines() {
    dmsetup table "$1" | grep -q ' 7:[0-9]* [0-9]*$'
}

# same_as_image DIGEST IMAGE OPTION...: the image has these bytes, and nothing is wrong with it.
same_as_image() {
    "$COWNBD" convert -q "${@:3}" -O raw "$2" after.raw
    [[ $(digest_of after.raw) == "$1" ]] || {
        echo "$2 reads as something else than its device"
        return 1
    }
    "$COWNBD" check "$2" >check.log 2>&1 || grep -q 'cannot be checked' check.log || {
        cat check.log
        return 1
    }
}

# NAME and how it is made: all that can be written, but for raw and plain qcow2, which have tests of their own.
writable() {
    cat <<FORMS
extended -f qcow2 -o extended_l2=on
datafile -f qcow2 -o data_file=datafile.bytes
vmdk -f vmdk
cowd -f vmdk -o subformat=vmfsSparse
vhd -f vhd
vhdx -f vhdx
vdi -f vdi
parallels -f parallels
qcow -f qcow
qed -f qed
FORMS
}

# All at once, by one server.
test_linear() {
    local name images=()
    while read -r name options; do
        # shellcheck disable=SC2086
        "$COWNBD" create -q $options "$name" 16M
        images+=("$name")
    done < <(writable)
    serve_attached "${images[@]}"
    for name in "${images[@]}"; do
        fill "/dev/mapper/$name"
    done
    for name in "${images[@]}"; do
        eventually "lines of $name" has_loop_lines "$name"
        digest_of "/dev/mapper/$name" >"$name.seen"
    done
    stop
    for name in "${images[@]}"; do
        [[ ! -e /dev/mapper/$name ]]
        same_as_image "$(<"$name.seen")" "$name"
    done
}

# serve_attached IMAGE...: in mode linear.
serve_attached() {
    serve --sandbox=off --attach --fast-path=linear "$@"
}

# In this mode all that is written is folded into the image at the end.
test_snapshot() {
    local name seen
    while read -r name options; do
        [[ $name == @(extended|parallels) ]] || continue
        # shellcheck disable=SC2086
        "$COWNBD" create -q $options "$name" 16M
        "$COWNBD" attach --fast-path=snapshot "$name"
        fill "/dev/mapper/$name"
        seen=$(digest_of "/dev/mapper/$name")
        "$COWNBD" detach "$name"
        same_as_image "$seen" "$name"
    done < <(writable)
}

test_encrypted() {
    local device seen mode secret=(--secret-file "$PWD/secret")
    printf 'open sesame' >secret
    "$COWNBD" create -q "${secret[@]}" -f qcow2 -o encrypt.format=luks,encrypt.iterations=1000 disk 16M
    for mode in linear snapshot; do
        fails "$COWNBD" attach "${secret[@]}" --fast-path="$mode" disk
        grep -q 'must be --fast-path=off' failure
    done
    device=$("$COWNBD" attach "${secret[@]}" disk)
    [[ $device == /dev/nbd0 ]]
    fill "$device"
    seen=$(digest_of "$device")
    # The next server needs the secret as well.
    kill -KILL "$(pgrep -f -- '--background-log')"
    fails "$COWNBD" detach "$device"
    grep -q 'needs its secret' failure
    "$COWNBD" detach "${secret[@]}" "$device"
    same_as_image "$seen" disk "${secret[@]}"
}

# What was compressed becomes a line when it was written, not before.
test_compressed() {
    head -c 1M < <(yes 'compress me') >letters
    "$COWNBD" convert -q -c -O qcow2 -o extended_l2=on letters disk
    serve_attached disk
    fails has_loop_lines disk
    equal letters <(dd if=/dev/mapper/disk bs=1M iflag=direct status=none)
    dd if=data of=/dev/mapper/disk bs=4k seek=33 count=64 oflag=direct status=none
    dd if=data of=letters bs=4k seek=33 count=64 conv=notrunc status=none
    eventually "lines" has_loop_lines disk
    equal letters <(dd if=/dev/mapper/disk bs=1M iflag=direct status=none)
    stop
    same_as_image "$(digest_of letters)" disk
}

test_read_only() {
    local image name seen images=(bochs/growing/top.bochs cloop/blocks/top.cloop dmg/every-type/top.dmg
        parallels/snapshots/top.xml qcow2/compressed-zstd/top.qcow2 vmdk/stream-optimized/top.vmdk)
    for image in "${images[@]}"; do
        mkdir -p "${image%/*}"
        cp "$COWNBD_SOURCE/tests/golden/${image%/*}"/* "${image%/*}"
    done
    serve_attached --read-only "${images[@]}"
    for image in "${images[@]}"; do
        name=/dev/mapper/${image##*/}
        seen=$(digest_of "$name")
        [[ ${seen%% *} == "$(<"${image%/*}/expect.sha256")" && $(blockdev --getro "$name") == 1 ]]
    done
}

# All of them where the kernel goes past the page cache.
run_one() {
    set -e
    mkdir "$top/disks/$1"
    cd "$top/disks/$1"
    mkdir mnt
    make_data data 1
    trap 'kill -KILL "${servers[@]}" 2>/dev/null || true' EXIT
    "$1"
    stop
    rm -rf "$top/disks/$1"
}

# What a test that failed leaves.
after_test() {
    local name=$top/disks/${1##*/}
    cat "$name"/server*.err 2>/dev/null
    umount "$name/mnt" 2>/dev/null
    true
}

disk_folder "$top/disks" 200
trap 'umount -l "$top/disks"; rm -rf "$top"' EXIT
run_tests
