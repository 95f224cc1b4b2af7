#!/bin/bash
# What the server must refuse: one clear line, status 1, and nothing lost. And what it must live through.
. "$(dirname "$0")/lib.sh"

# Of every file here. Zeroes at the end do not count: a writer may make the last cluster whole when it opens an image.
digest() {
    /usr/bin/python3 - <<'PY'
import glob, hashlib, os
for name in sorted(glob.glob("**", recursive=True)):
    if os.path.isfile(name) and name not in ("out", "err"):
        with open(name, "rb") as f:
            print(name, hashlib.sha256(f.read().rstrip(b"\0")).hexdigest())
PY
}

# refuse PATTERN OPTION...: `serve OPTION...` must say one line that matches, end with 1, and change no file.
refuse() {
    local pattern=$1 status=0 before
    shift
    before=$(digest)
    timeout 20 "$COWNBD" serve -l unix:refused-socket "$@" >out 2>err </dev/null || status=$?
    cat err
    if [[ $status != 1 ]]; then
        echo "status $status, not 1: serve $*"
        return 1
    fi
    if [[ $(wc -l <err) != 1 || -s out ]] || ! grep -q '^cownbd: ' err; then
        echo "not one line: serve $*"
        return 1
    fi
    if ! grep -Eqi -- "$pattern" err; then
        echo "does not say '$pattern': serve $*"
        return 1
    fi
    [[ $(digest) == "$before" ]]
}

# poke FILE OFFSET HEX: overwrites bytes.
poke() {
    /usr/bin/python3 -c 'import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2], 0))
    f.write(bytes.fromhex(sys.argv[3]))' "$@"
}

# What to put before a command so that it runs without root's right to open everything.
as_nobody=()
if [[ $(id -u) == 0 ]]; then
    as_nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups --)
fi

test_no_image() {
    refuse 'image'
    refuse 'nothing.qcow2.*no such file' nothing.qcow2
    refuse 'directory' .
}

test_missing_backing() {
    qemu-img create -q -f qcow2 base.qcow2 1M
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
    rm base.qcow2
    refuse 'base\.qcow2.*no such file' top.qcow2
}

test_looping_backing() {
    qemu-img create -q -f qcow2 a.qcow2 1M
    qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
    qemu-img rebase -q -u -f qcow2 -b b.qcow2 -F qcow2 a.qcow2
    refuse 'loop' a.qcow2
    refuse 'loop' b.qcow2
    qemu-img create -q -f qcow2 self.qcow2 1M
    qemu-img rebase -q -u -f qcow2 -b self.qcow2 -F qcow2 self.qcow2
    refuse 'loop' self.qcow2
}

test_backing_outside_the_allowed_directories() {
    mkdir images elsewhere images/below
    qemu-img create -q -f raw elsewhere/base.raw 1M
    qemu-img create -q -f qcow2 -b ../elsewhere/base.raw -F raw images/up.qcow2
    qemu-img create -q -f qcow2 -b "$PWD/elsewhere/base.raw" -F raw images/absolute.qcow2
    ln -s ../elsewhere/base.raw images/link.raw
    qemu-img create -q -f qcow2 -b link.raw -F raw images/link.qcow2
    qemu-img create -q -f raw images/below/base.raw 1M
    qemu-img create -q -f qcow2 -b below/base.raw -F raw images/below.qcow2
    refuse 'elsewhere/base.raw.*--allow-path' images/up.qcow2
    refuse 'elsewhere/base.raw.*--allow-path' images/absolute.qcow2
    refuse 'link.raw.*--allow-path' images/link.qcow2
    qemu-img create -q -f qcow2 -b /etc/passwd -F raw images/passwd.qcow2 1M
    refuse '/etc/passwd.*--allow-path' images/passwd.qcow2
    serve --allow-path "$PWD/elsewhere" images/up.qcow2 images/absolute.qcow2 images/below.qcow2
    nbdinfo --size "$(uri up.qcow2)"
}

test_backing_that_is_no_file_name() {
    local name
    qemu-img create -q -f qcow2 top.qcow2 1M
    for name in 'json:{"driver":"file","filename":"/etc/passwd"}' 'nbd://127.0.0.1:1/' 'https://host/x'; do
        qemu-img rebase -q -u -f qcow2 -b "$name" -F raw top.qcow2
        refuse 'backing|json|allow' top.qcow2
    done
}

test_locked_by_a_writer() {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 top.qcow2
    mkfifo keep
    qemu-io -f qcow2 disk.qcow2 <keep >prompt &
    exec 9>keep
    until grep -q 'qemu-io>' prompt; do # it has opened the image
        kill -0 $!
        sleep 0.05
    done
    refuse 'disk\.qcow2.*in use' disk.qcow2
    refuse 'disk\.qcow2.*in use' -r disk.qcow2
    refuse 'disk\.qcow2.*in use' top.qcow2
    exec 9>&-
    wait $!
    serve top.qcow2
}

test_locks_other_writers_out() {
    qemu-img create -q -f qcow2 base.qcow2 1M
    qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
    serve disk.qcow2
    fails qemu-io -f qcow2 -c 'write 0 512' disk.qcow2
    grep -i 'lock' failure
    fails qemu-io -f qcow2 -c 'write 0 512' base.qcow2
    refuse 'disk\.qcow2.*in use' disk.qcow2
    refuse 'base\.qcow2.*in use' base.qcow2
    qemu-io -r -f qcow2 -c 'read 0 512' base.qcow2
    stop
    qemu-io -f qcow2 -c 'write 0 512' disk.qcow2
}

test_readers_share() {
    qemu-img create -q -f qcow2 disk.qcow2 1M
    serve -r disk.qcow2
    serve_only -r -l unix:socket2 disk.qcow2
    qemu-io -r -f qcow2 -c 'read 0 512' disk.qcow2
}

test_truncated_image() {
    make_data data 1
    qemu-img convert -f raw -O qcow2 -o cluster_size=4k data whole.qcow2
    qemu-img convert -f raw -O vmdk data whole.vmdk
    local size
    for size in 50 100 4096 5000; do
        head -c $size whole.qcow2 >cut.qcow2
        refuse 'cut\.qcow2' cut.qcow2
    done
    for size in 100 511 600; do
        head -c $size whole.vmdk >cut.vmdk
        refuse 'cut\.vmdk' -r cut.vmdk
    done
    # Data is missing, tables are not: it may be refused or give errors or zeroes, but not end the server.
    head -c $(($(stat -c %s whole.qcow2) - 20000)) whole.qcow2 >short.qcow2
    if serve -r short.qcow2; then
        nbdcopy "$(uri)" got || true
        nbdinfo --size "$(uri)"
    fi
}

test_damaged_headers() {
    qemu-img create -q -f qcow2 good.qcow2 1M
    local field offset bytes pattern
    while read -r offset bytes pattern; do
        cp good.qcow2 bad.qcow2
        poke bad.qcow2 "$offset" "$bytes"
        refuse "bad\.qcow2.*$pattern" bad.qcow2
    done <<'TABLE'
4 00000009 version
20 00000040 cluster_bits
20 00000008 cluster_bits
24 7fffffffffffff00 size|l1
32 00000001 crypt|encrypt
36 7fffffff l1_size|l1
40 0000000000000001 l1
40 7fffffffffff0000 l1
48 0000000000000001 refcount
48 7fffffffffff0000 refcount
72 0000000000000002 corrupt
72 8000000000000000 feature
96 00000008 refcount_order|refcount
100 00000001 header_length|header
TABLE
}

test_read_only_file() {
    chmod 755 "$top" .
    qemu-img create -q -f qcow2 disk.qcow2 1M
    chmod 444 disk.qcow2
    refused() {
        local status=0
        "${as_nobody[@]}" timeout 20 "$COWNBD" serve -l "unix:$1" disk.qcow2 >out 2>err || status=$?
        cat err
        [[ $status == 1 && $(wc -l <err) == 1 ]] && grep -qi 'disk\.qcow2.*\(permission denied\|read-only\)$' err
    }
    mkdir sockets
    chmod 777 sockets
    refused sockets/socket
    "${as_nobody[@]}" "$COWNBD" serve -r -l unix:sockets/socket disk.qcow2 >server0.out 2>server0.err &
    servers+=($!)
    until [[ -s server0.out ]]; do
        kill -0 $!
        sleep 0.05
    done
    nbdinfo --is read-only "nbd+unix:///?socket=$PWD/sockets/socket"
}

# In a mount namespace of its own, with a file system of 4 MiB: the disk gets full, a client hears of it, the server
# goes on, and when there is room again so do writes.
full_disk() {
    mkdir small
    mount -t tmpfs -o size=4m none small
    qemu-img create -q -f qcow2 small/disk.qcow2 64M
    qemu-img create -q -f qcow2 other.qcow2 4M
    head -c 1M /dev/urandom >small/filler
    serve small/disk.qcow2 other.qcow2
    /usr/bin/python3 - "$PWD/socket" <<'PY'
import errno, os, sys, nbd
def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(sys.argv[1])
    return h
h, other = connect("disk.qcow2"), connect("other.qcow2")
written, error = {}, None
for at in range(0, 60 << 20, 65536):
    data = os.urandom(65536)
    try:
        h.pwrite(data, at)
        written[at] = data
    except nbd.Error as e:
        error = e
        break
assert error is not None and error.errnum == errno.ENOSPC, error
assert len(written) > 20
# The others do not mind, and what was written is there.
other.pwrite(b"x" * 4096, 0)
other.flush()
for at, data in written.items():
    assert h.pread(65536, at) == data, at
os.unlink("small/filler")
for at in range(at, at + (8 << 16), 65536):
    written[at] = os.urandom(65536)
    h.pwrite(written[at], at)
h.flush()
for at, data in written.items():
    assert h.pread(65536, at) == data, at
with open("wanted", "wb") as out:
    out.truncate(64 << 20)
    for at, data in written.items():
        out.seek(at)
        out.write(data)
PY
    stop
    qemu-img check small/disk.qcow2
    qemu-img compare -q -f qcow2 -F raw small/disk.qcow2 wanted
}

test_full_disk() {
    export -f full_disk serve serve_only stop
    unshare $([[ $(id -u) == 0 ]] && echo -m || echo -Urm) bash -ec 'servers=(); full_disk'
}

# The file may not grow past a limit (a signal that would end the server, were it not ignored).
test_file_size_limit() {
    qemu-img create -q -f qcow2 disk.qcow2 64M
    (
        ulimit -f 2048 # KiB
        exec "$COWNBD" serve -l unix:socket disk.qcow2 >server0.out 2>server0.err
    ) &
    servers+=($!)
    until [[ -s server0.out ]]; do
        kill -0 $!
        sleep 0.05
    done
    /usr/bin/python3 - "$PWD/socket" <<'PY'
import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"a" * 65536, 0)
h.flush()
try:
    for at in range(65536, 60 << 20, 65536):
        h.pwrite(b"b" * 65536, at)
except nbd.Error as e:
    print("refused as it should be:", e)
else:
    assert False
assert h.pread(65536, 0) == b"a" * 65536
PY
    stop
    qemu-img check disk.qcow2 || [[ $? == 3 ]]
}

test_port_in_use() {
    local port
    port=$(free_port)
    qemu-img create -q -f qcow2 a.qcow2 1M
    qemu-img create -q -f qcow2 b.qcow2 1M
    serve -l "127.0.0.1:$port" a.qcow2
    refuse "127\.0\.0\.1:$port.*in use" -l "127.0.0.1:$port" b.qcow2
    refuse "socket.*in use" -l "unix:$PWD/socket" b.qcow2
    nbdinfo --size "$(uri)"
}

test_a_name_twice() {
    mkdir a b
    qemu-img create -q -f qcow2 a/x.qcow2 1M
    qemu-img create -q -f qcow2 b/x.qcow2 1M
    refuse 'x\.qcow2.*(twice|already|used)' a/x.qcow2 b/x.qcow2
    refuse 'in use|twice|already' a/x.qcow2 a/x.qcow2
}

test_bad_options() {
    qemu-img create -q -f qcow2 x.qcow2 1M
    refuse 'nonsense' --nonsense x.qcow2
    refuse 'nonsense.*qcow2' -f nonsense x.qcow2
    refuse 'threads' -t -3 x.qcow2
    refuse '127.0.0.1:99999' -l 127.0.0.1:99999 x.qcow2
    refuse 'qcow2' -f vmdk x.qcow2 || refuse 'vmdk' -f vmdk x.qcow2
}

# A guest must not be able to turn its raw disk into an image that names other files.
test_no_magic_on_a_disk_that_was_guessed_raw() {
    truncate -s 1M disk
    serve disk
    /usr/bin/python3 - "$PWD/socket" <<'PY'
import errno, sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
magics = [b"QFI\xfb\0\0\0\3", b"KDMV", b"# Disk DescriptorFile\n"]
for magic in magics:
    try:
        h.pwrite(magic.ljust(512, b"\0"), 0)
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
    else:
        assert False, magic
    # Nor in pieces.
    try:
        for i in range(len(magic)):
            h.pwrite(magic[i:i + 1], i)
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
    else:
        assert False, magic
    h.zero(512, 0)
h.pwrite(b"a boot sector, say".ljust(512), 0)
h.pwrite(magics[0], 512)
PY
    stop
    serve -f raw disk
    /usr/bin/python3 - "$PWD/socket" <<'PY'
import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
h.pwrite(b"QFI\xfb\0\0\0\3", 0)
assert h.pread(4, 0) == b"QFI\xfb"
PY
}

run_tests
