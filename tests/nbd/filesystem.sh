#!/bin/bash
# A real filesystem: ext4, filled without mounting it (mke2fs -d, debugfs), written through the server into an overlay
# and read back through the server.
. "$(dirname "$0")/lib.sh"
export PATH=$PATH:/usr/sbin:/sbin

make_files() {
    mkdir -p files/a/b/c
    /usr/bin/python3 - <<'PY'
import os, random
random.seed(3)
for i in range(300):
    path = "files/" + ("a/" * (i % 2)) + f"file-{i}"
    with open(path, "wb") as out:
        out.write(random.randbytes(random.choice((0, 1, 100, 4096, 5000, 70000))))
with open("files/a/b/c/large", "wb") as out:
    out.write(random.randbytes(3 << 20))
with open("files/sparse", "wb") as out:
    out.write(b"begin")
    out.seek(2 << 20)
    out.write(b"end")
os.symlink("../file-0", "files/a/link")
PY
}

# digests DIRECTORY: of every file below.
digests() {
    (cd "$1" && find . -type f ! -path './lost+found/*' -print0 | sort -z | xargs -0 sha256sum)
}

# look IMAGE: the filesystem is clean, and the files in it are files/.
look() {
    e2fsck -fn "$1"
    rm -rf out
    mkdir out
    debugfs -R 'rdump / out' "$1"
    digests files >wanted
    digests out >got
    cmp wanted got
    [[ $(readlink out/a/link) == ../file-0 ]]
}

test_written_and_read_back_through_an_overlay() {
    make_files
    mke2fs -q -t ext4 -d files fs.raw 48M
    truncate -s 48M base.raw
    qemu-img create -q -f qcow2 -b base.raw -F raw disk.qcow2
    serve disk.qcow2
    nbdcopy --flush fs.raw "$(uri)"
    nbdcopy "$(uri)" back.raw
    look back.raw
    stop
    qemu-img check -q disk.qcow2
    qemu-img convert -f qcow2 -O raw disk.qcow2 after.raw
    look after.raw
}

test_changed_in_an_overlay() {
    make_files
    mke2fs -q -t ext4 -d files base.raw 48M
    qemu-img create -q -f qcow2 -o cluster_size=4k -b base.raw -F raw disk.qcow2
    # The same filesystem with changes: only the blocks that differ are written, as a guest would.
    cp base.raw changed.raw
    rm files/file-10
    head -c 1500000 /dev/urandom >files/new
    debugfs -w -R 'rm file-10' changed.raw
    debugfs -w -R 'write files/new new' changed.raw
    e2fsck -fn changed.raw
    serve disk.qcow2
    /usr/bin/python3 - "$PWD/socket" <<'PY'
import sys, nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
with open("base.raw", "rb") as old, open("changed.raw", "rb") as new:
    at = 0
    while True:
        a, b = old.read(1024), new.read(1024)
        if not b:
            break
        if a != b:
            h.pwrite(b, at)
        at += len(b)
h.flush()
PY
    nbdcopy "$(uri)" back.raw
    equal changed.raw back.raw
    look back.raw
    stop
    qemu-img check -q disk.qcow2
    qemu-img compare -q -f raw -F qcow2 changed.raw disk.qcow2
}

test_made_by_mke2fs_in_an_image_of_qemu() {
    make_files
    mke2fs -q -t ext4 -b 1024 -d files fs.raw 48M
    qemu-img convert -c -f raw -O qcow2 fs.raw disk.qcow2
    serve -r disk.qcow2
    nbdcopy "$(uri)" back.raw
    look back.raw
}

run_tests
