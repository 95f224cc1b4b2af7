#!/usr/bin/python3
"""Makes the golden images of qed: by qemu-img, and byte by byte where qemu is wrong or makes none.

    qed.py [FORMAT/NAME...]

What is expected of those made by hand comes from the same description, not from a program that reads them.
"""
import struct
import subprocess
import sys

from golden import make_all, qemu

CLUSTER = 4096
BACKING_FILE, NEED_CHECK, IS_RAW = 1, 2, 4
ZERO = "zero"


def fill(number):
    return (b"cluster %05d " % number * 400)[:CLUSTER]


def header(clusters, table_size, l1_offset, features=0, name=b"", header_size=1):
    packed = struct.pack("<4sIIIQQQQQII", b"QED\0", CLUSTER, table_size, header_size, features, 0, 0, l1_offset,
                         clusters * CLUSTER, 64 if name else 0, len(name))
    return (packed + name).ljust(header_size * CLUSTER, b"\0")


def image(clusters, content, table_size, features=0, name=b"", header_size=1):
    """content: cluster of the disk -> bytes, or ZERO. The bytes of the file, and where each cluster lies."""
    entries = table_size * CLUSTER // 8
    l1_offset = header_size * CLUSTER
    file = bytearray(header(clusters, table_size, l1_offset, features, name, header_size))
    file += bytes(table_size * CLUSTER)
    tables, places = {}, {}
    for number, value in content.items():
        index = number // entries
        if index not in tables:
            tables[index] = len(file)
            struct.pack_into("<Q", file, l1_offset + index * 8, len(file))
            file += bytes(table_size * CLUSTER)
        entry = 1
        if value is not ZERO:
            entry = places[number] = len(file)
            file += value
        struct.pack_into("<Q", file, tables[index] + number % entries * 8, entry)
    return bytes(file), places


def expected(clusters, content, places, base=b""):
    """The model: contents, and the lines of the map. base: a raw backing without holes."""
    contents, lines = b"", []
    for number in range(clusters):
        value = content.get(number)
        below = base[number * CLUSTER:(number + 1) * CLUSTER]
        line = {"start": number * CLUSTER, "length": CLUSTER, "depth": 0, "present": True, "data": False, "zero": True}
        if number in places:
            contents += value
            line.update(data=True, zero=False, offset=places[number], filename="top.qed")
        elif value is None and below:
            contents += below
            line.update(depth=1, data=True, zero=False, offset=number * CLUSTER, filename="base.raw")
        else:
            contents += bytes(CLUSTER)
            line["present"] = value is ZERO
        last = lines[-1] if lines else None
        same = last and all(last.get(key) == line.get(key) for key in ("depth", "present", "data", "filename"))
        if same and ("offset" not in line or last["offset"] + last["length"] == line["offset"]):
            last["length"] += CLUSTER
        else:
            lines.append(line)
    return contents, lines


def put(golden, clusters, content, table_size, base=b"", **how):
    data, places = image(clusters, content, table_size, **how)
    golden.write("top.qed", data)
    golden.expect(*expected(clusters, content, places, base))


def raw_content(golden):
    raw = golden.path("base.raw")
    raw.write_bytes(b"".join(fill(n) if n % 7 < 3 else bytes(CLUSTER) for n in range(40)))


def make_qed__by_qemu(golden):
    """
    qemu-img convert -O qed of a disk with holes: clusters of 64 KiB, tables of 4.
    """
    raw_content(golden)
    qemu("qemu-img", "convert", "-f", "raw", "-O", "qed", golden.path("base.raw"), golden.path("top.qed"))
    golden.path("base.raw").unlink()
    golden.expect_as_qemu("top.qed")


def make_qed__on_raw_by_qemu(golden):
    """
    qemu-img create -f qed -b, clusters of 4 KiB and tables of 2, then writes: of data, and of zeroes.
    """
    raw_content(golden)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qed", "-o", "cluster_size=4k,table_size=2", "-b", "base.raw",
                    "-F", "raw", "top.qed"], check=True, cwd=golden.scratch)
    qemu("qemu-io", "-f", "qed", "-c", "write -P 65 2048 9000", "-c", "write -z 32k 16k", golden.path("top.qed"))
    golden.expect_as_qemu("top.qed")


CONTENT = {0: fill(0), 2: ZERO, 3: fill(3), 511: fill(511), 512: fill(512), 700: ZERO, 1030: fill(1030)}


def make_qed__table_size_1(golden):
    """
    By hand: tables of one cluster, 512 entries, so that the disk needs three of them. qemu 7.2 refuses such an image,
    also one that it made itself: "QED table offset is invalid".
    """
    put(golden, 1200, CONTENT, 1)


def make_qed__table_size_16(golden):
    """
    By hand: tables of 16 clusters.
    """
    put(golden, 1200, CONTENT, 16)


def make_qed__header_of_3_clusters(golden):
    """
    By hand: the header has three clusters, of which the last two hold something else; L1 lies behind them.
    """
    put(golden, 1200, CONTENT, 2, header_size=3)


def make_qed__raw_not_probed(golden):
    """
    By hand: the bit that says that the backing is raw, over a backing that begins like a qcow2 image; and the bit
    "needs a check", which a reader may ignore.
    """
    base = b"QFI\xfb\0\0\0\3".ljust(8 * CLUSTER, b"x")
    golden.write("base.raw", base)
    put(golden, 16, {1: fill(1), 3: ZERO, 9: fill(9)}, 1, base, features=BACKING_FILE | NEED_CHECK | IS_RAW,
        name=b"base.raw")


def make_qed__refused_feature(golden):
    """
    By hand: a feature that nobody knows.
    """
    golden.write("top.qed", image(16, {1: fill(1)}, 1, features=8)[0])
    golden.expect_error("features are 0x8")


def make_qed__refused_l1_outside(golden):
    """
    By hand: the L1 table begins in the file and ends behind it.
    """
    golden.write("top.qed", header(16, 2, CLUSTER) + bytes(CLUSTER))
    golden.expect_error("l1_table_offset is 4096")


if __name__ == "__main__":
    make_all(globals(), sys.argv[1:])
