#!/usr/bin/python3
"""Makes the golden images of qcow, version 1: by qemu-img, and byte by byte as Xen's blktap wrote them.

    qcow.py [FORMAT/NAME...]
"""
import struct
import subprocess
import zlib

from golden import make_all, qemu

CLUSTER_BITS, L2_BITS = 9, 6
CLUSTER = 1 << CLUSTER_BITS
ENTRIES = 1 << L2_BITS


def fill(number):
    return (b"cluster %05d " % number * 40)[:CLUSTER]


def deflate(content):
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(content) + packer.flush()


def header(clusters, l1_offset, name=b"", name_offset=0, xen=None):
    data = struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, name_offset, len(name), 0, clusters * CLUSTER, CLUSTER_BITS,
                       L2_BITS, 0, 0, l1_offset)
    if xen is not None:
        data += struct.pack(">4sIII", b"XEN\xfb", 0x12345678, 1, xen)
    return data


def image(clusters, content, xen=None, name=b""):
    """content: cluster of the disk -> bytes, or ("packed", bytes), or ("at", cluster whose place it shares).
    Returns the bytes, and where each cluster lies."""
    l1_size = -(-clusters // ENTRIES)
    start = 512 if xen is None and not name else 1024
    order = "<" if xen is not None and not xen & 2 else ">"
    file = bytearray(start + l1_size * 8)
    file[:64] = header(clusters, start, name, 512 if name else 0, xen).ljust(64, b"\0")
    file[512:512 + len(name)] = name
    tables, places = {}, {}
    for number, value in content.items():
        index = number // ENTRIES
        if index not in tables:
            file += bytes(-len(file) % CLUSTER)
            tables[index] = len(file)
            struct.pack_into(order + "Q", file, start + index * 8, len(file))
            file += bytes(ENTRIES * 8)
        if isinstance(value, bytes):
            file += bytes(-len(file) % CLUSTER)
            entry = places[number] = len(file)
            file += value
        elif value[0] == "at":
            entry = places[number] = places[value[1]]
        else:
            packed = deflate(value[1])
            entry = 1 << 63 | len(packed) << (63 - CLUSTER_BITS) | len(file)
            file += packed
        struct.pack_into(">Q", file, tables[index] + number % ENTRIES * 8, entry)
    return bytes(file), places


def expected(clusters, content, places):
    contents, entries = b"", []
    for number in range(clusters):
        value = content.get(number)
        if isinstance(value, tuple):
            value = content[value[1]] if value[0] == "at" else value[1]
        data, at = value is not None, places.get(number)
        contents += value if data else bytes(CLUSTER)
        last = entries[-1] if entries else None
        goes_on = last and last["data"] == data and ("offset" in last) == (at is not None) and \
            (at is None or last["offset"] + last["length"] == at)
        if goes_on:
            last["length"] += CLUSTER
        else:
            entries.append({"start": number * CLUSTER, "length": CLUSTER, "depth": 0, "present": data, "data": data,
                            "zero": not data})
            if at is not None:
                entries[-1].update(offset=at, filename="top.qcow")
    return contents, entries


def put(golden, clusters, content, **how):
    data, places = image(clusters, content, **how)
    golden.write("top.qcow", data)
    golden.expect(*expected(clusters, content, places))


def raw_content(golden):
    raw = golden.path("raw")
    raw.write_bytes(b"".join(fill(n) if n % 7 < 3 else bytes(CLUSTER) for n in range(304)))
    return raw


def make_qcow__by_qemu(golden):
    """
    qemu-img convert -O qcow of a disk with holes.
    """
    raw = raw_content(golden)
    qemu("qemu-img", "convert", "-f", "raw", "-O", "qcow", raw, golden.path("top.qcow"))
    raw.unlink()
    golden.expect_as_qemu("top.qcow")


def make_qcow__on_raw_by_qemu(golden):
    """
    qemu-img create -f qcow -b, then one write: qemu's clusters over a backing have 512 bytes.
    """
    raw = raw_content(golden)
    raw.rename(golden.path("base.raw"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow", "-b", "base.raw", "-F", "raw", "top.qcow"], check=True,
                   cwd=golden.scratch)
    qemu("qemu-io", "-f", "qcow", "-c", "write -P 65 2048 1536", golden.path("top.qcow"))
    golden.expect_as_qemu("top.qcow")


CONTENT = {0: fill(0), 1: ("packed", fill(1)), 2: ("packed", fill(2)), 70: fill(70), 71: fill(71), 199: fill(199)}


def make_qcow__xen_little_endian(golden):
    """
    By hand: Xen's extended header without flag 2: the L1 table is in little endian, the L2 tables are not. The
    checksum of L1 is stale.
    """
    put(golden, 200, CONTENT, xen=1)


def make_qcow__xen_big_endian(golden):
    """
    By hand: Xen's extended header with flag 2: the L1 table is in big endian, as ever.
    """
    put(golden, 200, CONTENT, xen=3)


def make_qcow__xen_overlapping(golden):
    """
    By hand: two clusters of the disk at one place of the file, as blktap left them behind; it can be read.
    """
    put(golden, 200, {0: fill(0), 5: ("at", 0), 6: fill(6), 130: ("at", 6)}, xen=3)


def make_qcow__refused_l1_outside(golden):
    """
    By hand: the L1 table begins in the file and ends behind it.
    """
    golden.write("top.qcow", header(ENTRIES * 100, 512).ljust(1024, b"\0"))
    golden.expect_error("l1_table_offset is 512")


def make_qcow__refused_encrypted(golden):
    """
    By hand: an encryption that there never was.
    """
    data = bytearray(image(200, CONTENT)[0])
    data[39] = 2
    golden.write("top.qcow", bytes(data))
    golden.expect_error("crypt_method is 2")


def make_qcow__refused_outside(golden):
    """
    By hand: the backing is /etc/passwd.
    """
    golden.write("top.qcow", image(200, CONTENT, name=b"/etc/passwd")[0])
    golden.expect_error("lies outside the directory of the image")


if __name__ == "__main__":
    import sys
    make_all(globals(), sys.argv[1:])
