#!/usr/bin/python3
"""Makes the golden images of parallels: by qemu-img, and byte by byte where it makes none.

    parallels.py [FORMAT/NAME...]

What is expected of those made by hand comes from the same description, not from a program that reads them.
"""
import struct
import sys

from golden import make_all, qemu

SECTOR = 512
CLOSED, IN_USE = 0x312E3276, 0x746F6E59


def fill(number, size):
    return (b"cluster %05d " % number * (size // 14 + 1))[:size]


def image(magic, tracks, sectors, order, data_off=None, in_use=CLOSED, flags=0):
    """order: clusters of the disk, as they lie in the file; None: nobody's. The bytes, and where each lies."""
    cluster = tracks * SECTOR
    entries = -(-sectors // tracks)
    start = -(-(64 + entries * 4) // SECTOR) * SECTOR if data_off in (None, 0) else data_off * SECTOR
    unit = cluster if magic == b"WithouFreSpacExt" else SECTOR
    if unit == cluster:
        start = -(-start // cluster) * cluster
        data_off = start // SECTOR
    table, data, places = [0] * entries, b"", {}
    for number in order:
        if number is not None:
            places[number] = start + len(data)
            table[number] = places[number] // unit
        data += fill(9999 if number is None else number, cluster)
    header = struct.pack("<16sIIIIIQIIIQ", magic, 2, 16, 1, tracks, entries, sectors, in_use, data_off or 0, flags, 0)
    file = header + struct.pack("<%dI" % entries, *table)
    return file.ljust(start, b"\0") + data, places


def expected(tracks, sectors, places):
    contents, lines, at, cluster = b"", [], 0, tracks * SECTOR
    while at < sectors * SECTOR:
        number, length = at // cluster, min(cluster, sectors * SECTOR - at)
        place = places.get(number)
        line = {"start": at, "length": length, "depth": 0, "present": place is not None, "data": place is not None,
                "zero": place is None}
        if place is None:
            contents += bytes(length)
        else:
            contents += fill(number, cluster)[:length]
            line.update(offset=place, filename="top.hds")
        last = lines[-1] if lines else None
        if last and last["data"] == line["data"] and ("offset" not in line or
                                                      last["offset"] + last["length"] == line["offset"]):
            last["length"] += length
        else:
            lines.append(line)
        at += length
    return contents, lines


def put(golden, magic, tracks, sectors, order, **how):
    data, places = image(magic, tracks, sectors, order, **how)
    golden.write("top.hds", data)
    golden.expect(*expected(tracks, sectors, {} if how.get("flags") else places))


def make_parallels__by_qemu(golden):
    """
    qemu-img convert -O parallels of a disk with holes, with clusters of 64 KiB.
    """
    raw = golden.path("raw")
    raw.write_bytes(b"".join(fill(n, 4096) if n % 50 < 20 else bytes(4096) for n in range(301)))
    qemu("qemu-img", "convert", "-f", "raw", "-O", "parallels", "-o", "cluster_size=64k", raw, golden.path("top.hds"))
    raw.unlink()
    golden.expect_as_qemu("top.hds")


def make_parallels__old_of_63_sectors(golden):
    """
    By hand: the old magic, clusters of 63 sectors as the first versions had them, and no word where the data begins.
    """
    put(golden, b"WithoutFreeSpace", 63, 63 * 6 + 5, [0, 3, 2, None, 6], data_off=0)


def make_parallels__old_with_data_offset(golden):
    """
    By hand: the old magic, the first cluster at sector 24; the writer was cut off.
    """
    put(golden, b"WithoutFreeSpace", 8, 8 * 20 + 3, [20, 7, 8, 1, 0], data_off=24, in_use=IN_USE)


def make_parallels__extended(golden):
    """
    By hand: the newer magic; in_use is 0, as old programs left it.
    """
    put(golden, b"WithouFreSpacExt", 8, 8 * 20, [19, 18, None, 0, 1, 2], in_use=0)


def make_parallels__marked_empty(golden):
    """
    By hand: the flag of an empty image: what the table says does not count.
    """
    put(golden, b"WithouFreSpacExt", 8, 8 * 20, [0, 1, 2], flags=1)


def make_parallels__refused_table_outside(golden):
    """
    By hand: the table begins in the file and ends behind it.
    """
    golden.write("top.hds", image(b"WithouFreSpacExt", 8, 8 * 4000, [])[0][:8192])
    golden.expect_error("nb_bat_entries is 4000")


if __name__ == "__main__":
    make_all(globals(), sys.argv[1:])
