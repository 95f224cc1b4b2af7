"""What the tests of the command line share.

Each test is a script of its own: it works in a temporary directory, runs the program named by $COWNBD, compares
with qemu-img, and exits 0 when all is well.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

COWNBD = os.path.abspath(os.environ.get("COWNBD", "cownbd"))

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET_MASK = 0x00FFFFFFFFFFFE00

failures = 0


def run(*command, timeout=120, **kwargs):
    return subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=timeout, text=True, errors="replace", **kwargs)


def cownbd(*arguments, **kwargs):
    return run(COWNBD, *arguments, **kwargs)


def must(*command, **kwargs):
    result = run(*command, **kwargs)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def ours(*arguments, **kwargs):
    return must(COWNBD, *arguments, **kwargs)


def qemu_io(image, *commands, fmt="qcow2"):
    arguments = [a for c in commands for a in ("-c", c)]
    return must("qemu-io", "-f", fmt, *arguments, image)


def change_served(image, *commands, options=()):
    """What a client does to an image that cownbd serves: commands of qemu-io."""
    with subprocess.Popen([COWNBD, "serve", "--once", "--control=none", "--listen=unix:served", *options, image],
                          stdout=subprocess.DEVNULL) as server:
        wait_for(lambda: os.path.exists("served") or server.poll() is not None)
        arguments = [a for c in commands for a in ("-c", c)]
        result = run("qemu-io", "-d", "unmap", "-f", "raw", *arguments, "nbd+unix:///?socket=served")
        if result.returncode != 0:
            server.terminate()
            sys.exit(f"{image}: {result.stdout}{result.stderr}")
    if server.returncode != 0:
        sys.exit(f"{image}: the server ended with {server.returncode}")


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit("waited for too long")
        time.sleep(0.01)


def full_pipe():
    """A pipe that nobody has room in: who writes to it stands still."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


def wait_for_new_file(pid):
    """Until the process has opened the file that shall become the target: it has no name, or another one."""
    for _ in range(6000):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                name = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            if name.endswith(" (deleted)") or "/.cownbd-" in name:
                return
        time.sleep(0.01)
    sys.exit("no new file is opened")


def kill_held(number, *arguments):
    """Ends a tool by a signal while it is held at its first line of progress, whatever its threads have done by then."""
    reader, writer = full_pipe()
    process = subprocess.Popen([COWNBD, *arguments], stdout=writer, stderr=writer)
    os.close(writer)
    wait_for_new_file(process.pid)
    process.send_signal(number)
    while os.read(reader, 65536):
        pass
    os.close(reader)
    expect_equal(process.wait(timeout=100), -number, "exit")


def expect(condition, *what):
    """Notes a failure and goes on: one run shows all that is wrong."""
    global failures
    if not condition:
        failures += 1
        print("FAIL:", *what)
    return condition


def expect_equal(got, want, *what):
    return expect(got == want, *what, f"\n  got  {got!r}\n  want {want!r}")


def expect_refused(result, *words, status=1):
    """One line on stderr, nothing on stdout, with these words in it."""
    lines = result.stderr.splitlines()
    good = (result.returncode == status and len(lines) == 1 and lines[0].startswith("cownbd: ")
            and result.stdout == "" and all(w in lines[0] for w in words))
    return expect(good, "not refused in one line with", words, result.returncode, result.stdout,
                  result.stderr)


class Workdir:
    """A fresh current directory, removed at the end; the script's exit status says whether all was well."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="cownbd-cli-")
        os.chdir(self.path)
        return self

    def __exit__(self, kind, value, trace):
        os.chdir("/")
        shutil.rmtree(self.path, ignore_errors=True)
        if kind is None:
            print("failures:", failures)
            sys.exit(1 if failures else 0)


class Qcow2:
    """Reads and damages a qcow2 file."""

    def __init__(self, path):
        self.path = path
        self.file = open(path, "r+b")
        head = self.read(0, 112)
        self.version, = struct.unpack(">I", head[4:8])
        self.cluster_bits, = struct.unpack(">I", head[20:24])
        self.cluster_size = 1 << self.cluster_bits
        self.size, = struct.unpack(">Q", head[24:32])
        self.l1_size, = struct.unpack(">I", head[36:40])
        self.l1_offset, self.table_offset = struct.unpack(">QQ", head[40:56])
        self.table_clusters, self.snapshots = struct.unpack(">II", head[56:64])
        self.snapshots_offset, = struct.unpack(">Q", head[64:72])
        self.order = struct.unpack(">I", head[96:100])[0] if self.version >= 3 else 4

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, offset, length):
        self.file.seek(offset)
        return self.file.read(length).ljust(length, b"\0")

    def write(self, offset, data):
        self.file.seek(offset)
        self.file.write(data)
        self.file.flush()

    def u64(self, offset):
        return struct.unpack(">Q", self.read(offset, 8))[0]

    def set_u64(self, offset, value):
        self.write(offset, struct.pack(">Q", value))

    def l1(self, index):
        return self.u64(self.l1_offset + index * 8)

    def set_l1(self, index, value):
        self.set_u64(self.l1_offset + index * 8, value)

    def l2_place(self, guest):
        entry = guest >> self.cluster_bits
        per_table = self.cluster_size // 8
        table = self.l1(entry // per_table) & OFFSET_MASK
        assert table
        return table + entry % per_table * 8

    def l2(self, guest):
        return self.u64(self.l2_place(guest))

    def set_l2(self, guest, value):
        self.set_u64(self.l2_place(guest), value)

    def host(self, guest):
        return self.l2(guest) & OFFSET_MASK

    def block(self, index=0):
        return self.u64(self.table_offset + index * 8)

    def refcount(self, cluster, value=None):
        """The refcount of a host cluster; set to value when one is given."""
        per_block = self.cluster_size * 8 >> self.order
        block = self.block(cluster // per_block)
        assert block
        index = cluster % per_block
        bits = 1 << self.order
        if bits >= 8:
            place, length = block + index * bits // 8, bits // 8
            old = int.from_bytes(self.read(place, length), "big")
            if value is not None:
                self.write(place, value.to_bytes(length, "big"))
            return old
        place, shift = block + index * bits // 8, index * bits % 8
        byte = self.read(place, 1)[0]
        mask = (1 << bits) - 1
        if value is not None:
            self.write(place, bytes([byte & ~(mask << shift) | value << shift]))
        return byte >> shift & mask

    def end(self):
        self.file.seek(0, 2)
        return -(-self.file.tell() // self.cluster_size) * self.cluster_size

    def append(self, data=b""):
        """A new cluster at the end of the file, not counted; gives its offset."""
        end = self.end()
        self.write(end, data.ljust(self.cluster_size, b"\0"))
        return end


def load_json(text):
    return json.loads(text)
