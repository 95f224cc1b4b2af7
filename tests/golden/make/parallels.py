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


def joined(pieces):
    """Of (bytes, where they lie, in which file; None for nowhere) in the order of the disk: contents, entries of the map."""
    contents, lines = b"", []
    for data, place, name in pieces:
        line = {"start": len(contents), "length": len(data), "depth": 0, "present": place is not None,
                "data": place is not None, "zero": place is None}
        if place is not None:
            line.update(offset=place, filename=name)
        contents += data
        last = lines[-1] if lines else None
        if last and last["data"] == line["data"] and (place is None or last["filename"] == name and
                                                      last["offset"] + last["length"] == place):
            last["length"] += len(data)
        else:
            lines.append(line)
    return contents, lines


def expected(tracks, sectors, places):
    cluster = tracks * SECTOR
    pieces = []
    for at in range(0, sectors * SECTOR, cluster):
        place, length = places.get(at // cluster), min(cluster, sectors * SECTOR - at)
        data = bytes(length) if place is None else fill(at // cluster, cluster)[:length]
        pieces.append((data, place, "top.hds"))
    return joined(pieces)


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


# ---- disks of several files ----

TOP, NO_GUID = "{5fbaabe3-6958-40ff-92a7-860e329aab41}", "{00000000-0000-0000-0000-000000000000}"
SNAPSHOTS = ["{11111111-2222-3333-4444-5555555555%02d}" % number for number in range(8)]
TRACKS = 8

DESCRIPTOR = """<?xml version='1.0' encoding='UTF-8'?>
<Parallels_disk_image Version="1.0">
    <Disk_Parameters>
        <Disk_size>%d</Disk_size>
        <Cylinders>1</Cylinders>
        <Heads>16</Heads>
        <Sectors>32</Sectors>
        <Padding>0</Padding>
        <Encryption>
            <Engine>%s</Engine>
            <Data></Data>
        </Encryption>
        <Name>disk &amp; snapshots</Name>
    </Disk_Parameters>
    <StorageData>
%s    </StorageData>
    <Snapshots>
%s    </Snapshots>
</Parallels_disk_image>
"""
STORAGE = """        <Storage>
            <Start>%d</Start>
            <End>%d</End>
            <Blocksize>%d</Blocksize>
%s        </Storage>
"""
IMAGE = """            <Image>
                <GUID>%s</GUID>
                <Type>%s</Type>
                <File>%s</File>
            </Image>
"""
SHOT = """        <Shot>
            <GUID>%s</GUID>
            <ParentGUID>%s</ParentGUID>
        </Shot>
"""


def shots(*guids):
    """From the root up."""
    return "".join(SHOT % (guid, parent) for parent, guid in zip((NO_GUID,) + guids, guids))


def descriptor(storages, snapshots):
    """A storage: its sectors, and its images as (GUID, type, file)."""
    text, start = "", 0
    for sectors, images in storages:
        text += STORAGE % (start, start + sectors, TRACKS, "".join(IMAGE % image for image in images))
        start += sectors
    return DESCRIPTOR % (start, NO_GUID, text, snapshots)


def layer(golden, name, sectors, order, salt):
    """A file of a storage. order: clusters as they lie in it; None: it is plain. What the file has: cluster -> (bytes, place)."""
    clusters = -(-sectors // TRACKS)
    old = image(b"WithouFreSpacExt", TRACKS, sectors, range(clusters) if order is None else order)
    data, places = bytearray(old[0]), old[1]
    for place in places.values():
        data[place:place + 4] = b"%04d" % salt
    start = places[0] if order is None else 0
    golden.write(name, bytes(data[start:start + sectors * SECTOR] if order is None else data))
    return {number: (bytes(data[place:place + TRACKS * SECTOR]), place - start, name) for number, place in places.items()}


def disk_pieces(sectors, layers):
    """What a storage shows; layers from the root up."""
    cluster = TRACKS * SECTOR
    for at in range(0, sectors * SECTOR, cluster):
        length, number = min(cluster, sectors * SECTOR - at), at // cluster
        data, place, name = next((has[number] for has in reversed(layers) if number in has), (bytes(cluster), None, None))
        yield data[:length], place, name


def make_parallels__snapshots(golden):
    """
    By hand: a disk of three files, plain bytes below two snapshots of it; the one that is written to has the GUID that
    stands for it where nothing else is said, and is shorter at its end by half a cluster than whole clusters.
    """
    sectors = 20 * TRACKS + 4
    layers = [layer(golden, "root.hds", sectors, None, 1),
              layer(golden, "middle.hds", sectors, [3, 2, None, 20, 9], 2),
              layer(golden, "now.hds", sectors, [9, 10, 0], 3)]
    golden.write("top.xml", descriptor([(sectors, [
        (TOP.upper(), "Compressed", "now.hds"), (SNAPSHOTS[0], "Plain", "root.hds"),
        (SNAPSHOTS[1], "Compressed", "middle.hds")])], shots(SNAPSHOTS[0], SNAPSHOTS[1], TOP)))
    golden.expect(*joined(disk_pieces(sectors, layers)))


def make_parallels__split(golden):
    """
    By hand: three storages one behind the other, each with a snapshot and what was written since, which TopGUID names;
    a snapshot beside it is not shown. The second storage ends inside a cluster, the last one's root is shorter than it.
    """
    sizes, snapshot, now = [5 * TRACKS, 3 * TRACKS + 1, 9 * TRACKS], SNAPSHOTS[2], SNAPSHOTS[3]
    storages, pieces = [], []
    for number, sectors in enumerate(sizes):
        root = sectors if number < 2 else 4 * TRACKS
        layers = [layer(golden, "%d.root.hds" % number, root, [[0, 1, 4], [3, 1], [2, 0, 3]][number], 10 + number),
                  layer(golden, "%d.now.hds" % number, sectors, [[1], [], [8, 7, 0]][number], 20 + number)]
        pieces += disk_pieces(sectors, layers)
        storages.append((sectors, [(guid, "Compressed", "%d.%s.hds" % (number, name))
                                   for guid, name in ((snapshot, "root"), (now, "now"), (TOP, "other"))]))
    tree = "        <TopGUID> %s\n</TopGUID>\n" % now + shots(snapshot, now) + SHOT % (TOP, snapshot)
    golden.write("top.xml", descriptor(storages, tree))
    golden.expect(*joined(pieces))


if __name__ == "__main__":
    make_all(globals(), sys.argv[1:])
