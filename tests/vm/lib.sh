# What the scripts that run in a guest share (scripts/vm-run), on top of what all shell tests share.
. "$(dirname "${BASH_SOURCE[0]}")/../nbd/lib.sh"
export PATH=$PATH:/usr/sbin:/sbin
modprobe -a nbd loop dm-mod dm-snapshot || exit 1

# attach DEVICE ARG...: nbd-client with ARGs (where to, -N NAME ...); ready means that the kernel knows the size.
attach() {
    local device=$1 name=${1#/dev/}
    shift
    nbd-client "$@" "$device"
    eventually "the size of $device" kernel_size_is_known "$name"
}

kernel_size_is_known() {
    [[ $(<"/sys/block/$1/size") -gt 0 ]]
}

# detach DEVICE: and waits until it is free for the next one.
detach() {
    nbd-client -d "$1"
    eventually "the end of $1" test ! -e "/sys/block/${1#/dev/}/pid"
}

# disk_folder DIR MIB: mounts an ext4 in the guest's memory on DIR, once in a guest. Unlike in all other folders
# there, O_DIRECT works in it.
disk_folder() {
    modprobe brd rd_nr=1 rd_size=$(($2 << 10))
    mkfs.ext4 -q -F /dev/ram0
    mkdir -p "$1"
    mount /dev/ram0 "$1"
}

# after_test DIR: a test that failed leaves its file systems mounted.
after_test() {
    local dir
    sed -n "s|^[^ ]* \($1/[^ ]*\) .*|\1|p" /proc/mounts | tac | while IFS= read -r dir; do
        umount -l "$dir"
    done
}

# eventually WHAT COMMAND...: waits up to two minutes until the command succeeds.
eventually() {
    local what=$1 tries=0
    shift
    until "$@"; do
        if [[ $((tries += 1)) -gt 2400 ]]; then
            echo "waited in vain for $what"
            return 1
        fi
        sleep 0.05
    done
}

# digest_of FILE-OR-DEVICE: past the page cache where that is possible. What a device shows through its cache
# may be old when another device writes to the same place.
digest_of() {
    if [[ -b $1 ]]; then
        dd if="$1" bs=1M iflag=direct status=none | sha256sum
    else
        sha256sum <"$1"
    fi
}

# digest_through_nbd URI: the same bytes, without the kernel.
digest_through_nbd() {
    nbdcopy "$1" - | sha256sum
}
