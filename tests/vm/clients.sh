#!/bin/bash
# In a guest: nbd-client as people use it, over TCP and unix sockets: several connections, by netlink and by ioctl,
# from /etc/nbdtab as nbd@.service does it, several devices of one server.
. "$(dirname "$0")/lib.sh"

# The connections that clients have to the last server.
connections() {
    local names
    names=$(readlink "/proc/${servers[-1]}/fd/"* | grep -c '^socket:')
    # One of them listens.
    echo $((names - 1))
}

# The load of many: allocating writes and trims in random places, each block verified, by four at a time.
load() {
    fio --name=load --filename="$1" --size=32M --direct=1 --ioengine=libaio --iodepth=8 --bs=4k-64k --rw=randwrite \
        --numjobs=4 --offset_increment=32M --verify=crc32c --verify_fatal=1 --io_size=8M --group_reporting \
        --output=fio.log "${@:2}" || {
        cat fio.log
        return 1
    }
}

# use DEVICE URI CONNECTIONS: a load, after which the kernel, a client and the image on disk show the same.
use() {
    local device=$1 wanted
    [[ $(connections) == "$3" ]]
    [[ $(blockdev --getsize64 "$device") == $((128 << 20)) ]]
    load "$device"
    blkdiscard -o 1M -l 3M "$device"
    wanted=$(digest_of "$device")
    [[ $(digest_through_nbd "$2") == "$wanted" ]]
    [[ $(dd if="$device" bs=1M skip=1 count=3 iflag=direct status=none | tr -d '\0' | wc -c) == 0 ]]
    detach "$device"
    eventually "the connections to be gone" no_connections
    stop
    "$COWNBD" check disk.qcow2
    qemu-img check -q disk.qcow2
    qemu-img convert -O raw disk.qcow2 after.raw
    [[ $(digest_of after.raw) == "$wanted" ]]
}

no_connections() {
    [[ $(connections) == 0 ]]
}

test_unix_socket_with_four_connections() {
    qemu-img create -q -f qcow2 disk.qcow2 128M
    serve -n disk disk.qcow2
    attach /dev/nbd0 -unix "$PWD/socket" -N disk -C 4
    use /dev/nbd0 "$(uri disk)" 4
}

test_tcp_with_four_connections() {
    local port
    port=$(free_port)
    qemu-img create -q -f qcow2 disk.qcow2 128M
    serve_only -l "127.0.0.1:$port" -n disk disk.qcow2
    attach /dev/nbd1 127.0.0.1 "$port" -N disk -C 4
    use /dev/nbd1 "nbd://127.0.0.1:$port/disk" 4
}

test_ioctl_and_larger_blocks() {
    qemu-img create -q -f qcow2 disk.qcow2 128M
    serve -n disk disk.qcow2
    attach /dev/nbd2 -unix "$PWD/socket" -N disk -nonetlink -b 4096
    [[ $(blockdev --getss /dev/nbd2) == 4096 ]]
    use /dev/nbd2 "$(uri disk)" 1
}

# What `systemctl start nbd@nbd3` runs, and nbd-client -c, by which scripts see whether a device is in use. Of what
# stands in the table, nbd-client 3.24 ignores port=, so TCP is on the usual one.
test_nbdtab() {
    truncate -s 16M tcp.raw unix.raw
    serve -l "127.0.0.1:10809" tcp.raw unix.raw
    cat >/etc/nbdtab <<TABLE
# device host-or-socket export options
nbd3 $PWD/socket unix.raw unix,conns=4
nbd4 127.0.0.1 tcp.raw conns=2,timeout=30
TABLE
    local device
    for device in nbd3 nbd4; do
        fails nbd-client -c "/dev/$device"
        attach "/dev/$device"
        nbd-client -c "/dev/$device"
        make_data data 4
        dd if=data of="/dev/$device" bs=1M oflag=direct status=none
    done
    for device in nbd3 nbd4; do
        detach "/dev/$device"
        fails nbd-client -c "/dev/$device"
    done
    stop
    cmp -n 4194304 data unix.raw
    cmp tcp.raw unix.raw
}

# Between virtual machines and their host; here over the kernel's own loop, which few machines that build have.
test_vsock() {
    local port=10809
    modprobe vsock_loopback
    qemu-img create -q -f qcow2 disk.qcow2 128M
    # Nobody else is in the guest. A port that the kernel chooses has 32 bits, and libnbd parses 31.
    serve_only -l "vsock:$port" -n disk disk.qcow2
    make_data data 4
    nbdcopy data "nbd+vsock://1:$port/disk"
    nbdcopy "nbd+vsock://1:$port/disk" copy.raw
    cmp -n 4194304 data copy.raw
    nbdinfo "nbd+vsock://1:$port/disk" | grep '^protocol: newstyle-fixed without TLS'
    stop
    rm copy.raw
}

# What cannot be had is refused at once, and leaves the device free.
test_refusals() {
    truncate -s 1M disk.raw
    serve disk.raw
    fails nbd-client -unix "$PWD/socket" -N no-such-export /dev/nbd5
    [[ ! -e /sys/block/nbd5/pid && $(</sys/block/nbd5/size) == 0 ]]
    attach /dev/nbd5 -unix "$PWD/socket" -N disk.raw
    fails nbd-client -unix "$PWD/socket" -N disk.raw /dev/nbd5
    detach /dev/nbd5
}

run_tests
