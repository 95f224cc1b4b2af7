#!/bin/bash
# nbdsh (libnbd's Python): several connections to one disk, which must look like one.
. "$(dirname "$0")/lib.sh"

# Debian's nbdsh, whatever python3 comes first in PATH.
sh_nbd() {
    /usr/bin/python3 -m nbd -n --command "$1"
}

# Connects handles a and b.
prelude() {
    cat <<PY
import nbd, os
def connect(name="", structured=True):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    if structured:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.set_export_name(name)
    h.connect_unix("$PWD/socket")
    return h
a = connect()
b = connect(structured=False)
def status(offset, length, flags=0):
    found = []
    a.block_status(length, offset, lambda c, o, e, err: found.extend(zip(e[::2], e[1::2])), flags)
    return found
PY
}

test_a_write_is_seen_by_every_connection() {
    qemu-img create -q -f qcow2 disk.qcow2 4M
    serve disk.qcow2
    sh_nbd "$(prelude)
for i in range(500):
    data = os.urandom(1000 + i)
    a.pwrite(data, i * 5000)
    assert b.pread(len(data), i * 5000) == data
    b.trim(1000, i * 5000)
    left = a.pread(1000, i * 5000)
    assert left in (data[:1000], bytes(1000))
assert a.can_multi_conn() and b.can_multi_conn()
b.flush()"
    stop
    qemu-img check -q disk.qcow2
}

test_status_follows_what_is_written() {
    qemu-img create -q -f qcow2 disk.qcow2 4M
    serve disk.qcow2
    sh_nbd "$(prelude)
assert [f & 2 for n, f in status(0, 4 << 20)] == [2]
b.pwrite(b'x' * 65536, 65536)
assert status(65536, 65536) == [(65536, 0)], status(65536, 65536)
assert status(0, 131072) == [(65536, 3), (65536, 0)], status(0, 131072)
assert len(status(0, 131072, nbd.CMD_FLAG_REQ_ONE)) == 1
b.zero(65536, 65536)
assert status(65536, 65536)[0][1] & 2
a.pwrite(b'y', 65537)
assert a.pread(3, 65536) == b'\0y\0'"
}

test_ranges_of_any_alignment() {
    qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 1M
    serve disk.qcow2
    sh_nbd "$(prelude)
import random
random.seed(1)
model = bytearray(1 << 20)
for i in range(2000):
    n = random.randint(1, 3000)
    at = random.randint(0, len(model) - n)
    what = random.randint(0, 3)
    if what == 0:
        assert random.choice((a, b)).pread(n, at) == model[at:at + n]
    elif what == 1:
        random.choice((a, b)).zero(n, at, random.choice((0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA)))
        model[at:at + n] = bytes(n)
    else:
        data = random.randbytes(n)
        random.choice((a, b)).pwrite(data, at)
        model[at:at + n] = data
assert a.pread(len(model), 0) == model"
    stop
    qemu-img check -q disk.qcow2
}

test_errors_are_true() {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-img create -q -f qcow2 other.qcow2 1M
    serve -r disk.qcow2
    sh_nbd "$(prelude)
import errno
a.set_strict_mode(0)
def refused(wanted, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum in wanted, (call, args, error.errnum)
    else:
        assert False, (call, args)
refused([errno.EPERM], a.pwrite, b'x', 0)
refused([errno.EPERM], a.trim, 512, 0)
refused([errno.EPERM], a.zero, 512, 0)
refused([errno.EINVAL], a.pread, 512, 1 << 20)
refused([errno.EINVAL], a.pread, 512, (1 << 20) - 511)
refused([errno.EINVAL], a.pread, 512, (1 << 64) - 256)
assert a.pread(512, 0) == bytes(512)"
}

run_tests
