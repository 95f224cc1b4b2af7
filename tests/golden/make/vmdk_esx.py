#!/usr/bin/python3
"""Makes the golden images of vmdk extents that only ESX writes: COWD ("vmfsSparse") and seSparse.

    vmdk_esx.py [FORMAT/NAME...]

What is expected comes from the description here; where qemu-img 7.2 can read them it is asked, too, and must see the
same contents.
"""
import gzip
import pathlib
import struct
import subprocess
import sys

from golden import make_all

SECTOR = 512
TABLE_ENTRIES = 4096
NO_PARENT = 0xFFFFFFFF
HEAD = '# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=%08x\ncreateType="%s"\n'

ZERO, UNMAPPED = "zero", "unmapped"  # grains of seSparse that have no bytes


def pad(data, size=SECTOR):
    return data + bytes(-len(data) % size)


def pattern(number, size):
    """Bytes that say which grain they belong to."""
    return (b"grain %05d " % number * (size // 12 + 1))[:size]


class Cowd:
    """grains: number -> bytes; they lie in the file in the order of the dictionary."""

    def __init__(self, sectors, grains, grain_sectors=1, flags=3, parent=b""):
        self.grains, self.grain = grains, grain_sectors * SECTOR
        tables = -(-sectors // (grain_sectors * TABLE_ENTRIES))
        used = sorted({number // TABLE_ENTRIES for number in grains})
        place = 4 + -(-tables * 4 // SECTOR)
        table_at = {table: place + index * 32 for index, table in enumerate(used)}
        first = place + len(used) * 32
        self.places = {number: first + index * grain_sectors for index, number in enumerate(grains)}
        end = first + len(grains) * grain_sectors
        head = struct.pack("<4s7I", b"COWD", 1, flags, sectors, grain_sectors, 4, tables, end)
        head += (parent.ljust(1024, b"\0") + struct.pack("<I", 1)) if parent else \
            struct.pack("<3I", 1, 16, 63).ljust(1028, b"\0")
        head += struct.pack("<I", 1)
        image = bytearray(pad(head, 4 * SECTOR))
        image += pad(struct.pack("<%dI" % tables, *[table_at.get(table, 0) for table in range(tables)]))
        for table in used:
            numbers = range(table * TABLE_ENTRIES, (table + 1) * TABLE_ENTRIES)
            image += struct.pack("<%dI" % TABLE_ENTRIES, *[self.places.get(number, 0) for number in numbers])
        assert len(image) == first * SECTOR
        self.image = bytes(image) + b"".join(pad(content, self.grain) for content in grains.values())

    def at(self, number):
        return self.places[number] * SECTOR


class SeSparse:
    """grains: number -> bytes, ZERO or UNMAPPED. first_grain: the number of grains in the file before the first."""

    GRAIN = 4096

    def __init__(self, sectors, grains, first_grain=0, replay=0):
        tables = -(-sectors // (8 * TABLE_ENTRIES))
        used = sorted({number // TABLE_ENTRIES for number in grains}, reverse=True)
        directory_sectors = -(-tables * 8 // SECTOR)
        self.tables_at = 16
        self.grains_at = self.tables_at + len(used) * 64
        areas = [(1, 1), (2, 1), (3, 1), (8, directory_sectors), (self.tables_at, len(used) * 64),
                 (4, 1), (5, 1), (self.grains_at, 1 << 20)]
        head = struct.pack("<6Q32x", 0xCAFEBABE, 0x200000001, sectors, 8, 64, 0)
        head += b"".join(struct.pack("<QQ", *area) for area in areas)
        image = bytearray(pad(head) + pad(struct.pack("<4Q", 0xCAFECAFE, 0, 1, replay)))
        image += bytes(8 * SECTOR - len(image))
        image += pad(struct.pack("<%dQ" % tables, *[1 << 60 | used.index(table) if table in used else 0
                                                    for table in range(tables)]))
        image += bytes(self.tables_at * SECTOR - len(image))
        entries, data, self.places = [0] * (len(used) * TABLE_ENTRIES), bytes(first_grain * self.GRAIN), {}
        for number, content in grains.items():
            index = used.index(number // TABLE_ENTRIES) * TABLE_ENTRIES + number % TABLE_ENTRIES
            if content == ZERO:
                entries[index] = 2 << 60
            elif content == UNMAPPED:
                entries[index] = 1 << 60 | 12345
            else:
                place = len(data) // self.GRAIN
                self.places[number] = place
                entries[index] = 3 << 60 | (place & 0xFFF) << 48 | place >> 12
                data += pad(content, self.GRAIN)
        self.image = bytes(image) + struct.pack("<%dQ" % len(entries), *entries) + data

    def at(self, number):
        return self.grains_at * SECTOR + self.places[number] * self.GRAIN


def entry(start, length, kind, at=None, name=None, depth=0, present=True):
    found = {"start": start, "length": length, "depth": depth, "present": present,
             "data": kind == "data", "zero": kind == "zero"}
    if at is not None:
        found.update(offset=at, filename=name)
    return found


def check_by_qemu(golden, contents):
    raw = golden.path("contents")
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", golden.path("top.vmdk"), raw], check=True)
    assert pathlib.Path(raw).read_bytes() == contents
    raw.unlink()


def place(contents, offset, data):
    contents[offset:offset + len(data)] = data


def make_vmdk__cowd(golden):
    """
    By hand: a COWD extent in a descriptor file, with grains of one sector, in another order than on the disk; the
    second of its three tables is not there. The descriptor calls it VMFSSPARSE.
    """
    sectors = 2 * TABLE_ENTRIES + 100
    grains = {7: b"", 8: b"", 4095: b"", 3: b"", 2 * TABLE_ENTRIES + 99: b""}
    cowd = Cowd(sectors, {number: pattern(number, SECTOR) for number in grains})
    golden.write("top.vmdk", HEAD % (5, NO_PARENT, "vmfsSparse") + 'RW %d VMFSSPARSE "disk-delta.vmdk"\n' % sectors)
    golden.write("disk-delta.vmdk", cowd.image)
    contents = bytearray(sectors * SECTOR)
    for number in grains:
        place(contents, number * SECTOR, pattern(number, SECTOR))
    name, last = "disk-delta.vmdk", 2 * TABLE_ENTRIES + 99

    def hole(first, end):
        return entry(first * SECTOR, (end - first) * SECTOR, "zero", present=False)

    def data(number, count=1):
        return entry(number * SECTOR, count * SECTOR, "data", cowd.at(number), name)
    golden.expect(bytes(contents), [
        hole(0, 3), data(3), hole(4, 7), data(7, 2), hole(9, 4095), data(4095), hole(4096, last), data(last)])
    check_by_qemu(golden, bytes(contents))


def make_vmdk__cowd_chain(golden):
    """
    By hand: an overlay of COWD with grains of 4 sectors (its header has no root flag, and names a parent that is not
    looked for: the descriptor's counts) over a flat disk of ESX.
    """
    base = b"".join(pattern(50 + number, SECTOR) for number in range(30))
    cowd = Cowd(30, {7: pattern(7, 1024), 2: pattern(2, 2048)}, grain_sectors=4, flags=2, parent=b"/vmfs/nowhere.vmdk")
    golden.write("base-flat.vmdk", base)
    golden.write("base.vmdk", HEAD % (8, NO_PARENT, "vmfs") + 'RW 30 VMFS "base-flat.vmdk"\n')
    golden.write("top.vmdk", HEAD % (9, 8, "vmfsSparse") + 'parentFileNameHint="base.vmdk"\n'
                 'RW 30 VMFSSPARSE "top-delta.vmdk"\n')
    golden.write("top-delta.vmdk", cowd.image)
    contents = bytearray(base)
    place(contents, 2 * 2048, pattern(2, 2048))
    place(contents, 7 * 2048, pattern(7, 1024))
    golden.expect(bytes(contents), [
        entry(0, 4096, "data", 0, "base-flat.vmdk", depth=1),
        entry(4096, 2048, "data", cowd.at(2), "top-delta.vmdk"),
        entry(6144, 8192, "data", 6144, "base-flat.vmdk", depth=1),
        entry(14336, 1024, "data", cowd.at(7), "top-delta.vmdk"),
    ])
    check_by_qemu(golden, bytes(contents))


def make_vmdk__cowd_alone(golden):
    """
    By hand: a COWD file without a descriptor. It is a root, so it is a disk by itself. (qemu-img 7.2 does not open it.)
    """
    cowd = Cowd(50, {1: pattern(1, 8192), 3: pattern(3, 512)}, grain_sectors=16)
    golden.write("top.vmdk", cowd.image)
    contents = bytearray(50 * SECTOR)
    place(contents, 8192, pattern(1, 8192))
    place(contents, 3 * 8192, pattern(3, 512) + bytes(512))
    golden.expect(bytes(contents), [
        entry(0, 8192, "zero", present=False),
        entry(8192, 8192, "data", cowd.at(1), "top.vmdk"),
        entry(16384, 8192, "zero", present=False),
        entry(24576, 1024, "data", cowd.at(3), "top.vmdk"),
    ])


def make_vmdk__sesparse(golden):
    """
    By hand: a seSparse extent with two of its three tables, in another order than on the disk, over a flat disk: grains
    with data (the last of the disk among them), one of zeroes, one that the guest has unmapped.
    """
    sectors, grain = 2 * TABLE_ENTRIES * 8 + 16, 4096
    last = 2 * TABLE_ENTRIES + 1
    base = pattern(77, 16 * SECTOR) + bytes((sectors - 16) * SECTOR)
    disk = SeSparse(sectors, {last: pattern(last, grain), 0: UNMAPPED, 5: pattern(5, grain), 6: pattern(6, grain),
                              4: ZERO, last - 1: ZERO})
    golden.write("base-flat.vmdk", base[:16 * SECTOR])
    golden.write("base.vmdk", HEAD % (8, NO_PARENT, "vmfs") + 'RW 16 VMFS "base-flat.vmdk"\nRW %d ZERO\n'
                 % (sectors - 16))
    golden.write("top.vmdk", HEAD % (9, 8, "seSparse") + 'parentFileNameHint="base.vmdk"\n'
                 'RW %d SESPARSE "top-sesparse.vmdk"\n' % sectors)
    golden.write("top-sesparse.vmdk", disk.image)
    contents = bytearray(base)
    place(contents, 0, bytes(grain))
    for number in (5, 6, last):
        place(contents, number * grain, pattern(number, grain))
    name = "top-sesparse.vmdk"
    golden.expect(bytes(contents), [
        entry(0, grain, "zero"),
        entry(grain, grain, "data", grain, "base-flat.vmdk", depth=1),
        entry(2 * grain, 2 * grain, "zero", depth=1),
        entry(4 * grain, grain, "zero"),
        entry(5 * grain, 2 * grain, "data", disk.at(5), name),
        entry(7 * grain, (last - 1 - 7) * grain, "zero", depth=1),
        entry((last - 1) * grain, grain, "zero"),
        entry(last * grain, grain, "data", disk.at(last), name),
    ])
    check_by_qemu(golden, bytes(contents))


def make_vmdk__sesparse_far_grain(golden):
    """
    By hand: a seSparse extent whose grain is number 4097 of its area: bits of the number lie in two places of the entry.
    """
    disk = SeSparse(24, {1: pattern(1, 4096)}, first_grain=4097)
    golden.write("top.vmdk", HEAD % (9, NO_PARENT, "seSparse") + 'RW 24 SESPARSE "top-sesparse.vmdk"\n')
    golden.write("top-sesparse.vmdk", disk.image)
    contents = bytes(4096) + pattern(1, 4096) + bytes(4096)
    golden.expect(contents, [
        entry(0, 4096, "zero", present=False),
        entry(4096, 4096, "data", disk.at(1), "top-sesparse.vmdk"),
        entry(8192, 4096, "zero", present=False),
    ])
    check_by_qemu(golden, contents)
    golden.path("top-sesparse.vmdk").unlink()
    golden.write("top-sesparse.vmdk.gz", gzip.compress(disk.image, mtime=0))


def make_vmdk__refused_cowd(golden):
    """By hand: COWD of a version that nobody has written."""
    golden.write("top.vmdk", Cowd(50, {}).image.replace(b"COWD\1", b"COWD\2", 1))
    golden.expect_error("version is 2: must be 1")


def make_vmdk__refused_cowd_child(golden):
    """By hand: COWD without a descriptor, of a disk that has a parent."""
    golden.write("top.vmdk", Cowd(50, {}, flags=2, parent=b"base.vmdk").image)
    golden.expect_error("is one extent of a disk (it holds no descriptor)")


def make_vmdk__refused_sesparse(golden):
    """By hand: the writer was cut off; what it did last is in the journal."""
    golden.write("top-sesparse.vmdk", SeSparse(24, {}, replay=1).image)
    golden.write("top.vmdk", HEAD % (9, NO_PARENT, "seSparse") + 'RW 24 SESPARSE "top-sesparse.vmdk"\n')
    golden.expect_error("its journal must be replayed (replay journal is 1)")


if __name__ == "__main__":
    make_all(globals(), sys.argv[1:])
