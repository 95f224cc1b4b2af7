#!/usr/bin/python3
"""Makes the golden images of formats that are only read, byte by byte.

    read_only.py [FORMAT/NAME...]

What is expected comes from the description here; qemu 7.2 reads the same contents.
"""
import struct
import zlib

from golden import make_all

SECTOR = 512
EXTENT = 8 * SECTOR
NOT_THERE = 0xFFFFFFFF


def pattern(number, size=SECTOR):
    return (b"sector %07d " % number * (size // 15 + 1))[:size]


class Bochs:
    """extents: number on the disk -> (number in the file, the sectors that it has)."""

    def __init__(self, sectors, extents, version=0x20000, bitmap=1):
        self.sectors, self.extents, self.version, self.bitmap = sectors, extents, version, bitmap
        self.entries = -(-sectors * SECTOR // EXTENT)
        self.stride = SECTOR + EXTENT

    def place(self, number):
        return SECTOR + self.entries * 4 + number * self.stride

    def build(self):
        head = b"Bochs Virtual HD Image".ljust(32, b"\0") + b"Redolog".ljust(16, b"\0") + b"Growing".ljust(16, b"\0")
        head += struct.pack("<IIIII", self.version, SECTOR, self.entries, self.bitmap, EXTENT)
        head += struct.pack("<Q" if self.version == 0x10000 else "<4xQ", self.sectors * SECTOR)
        catalog = [self.extents.get(index, (NOT_THERE,))[0] for index in range(self.entries)]
        image = bytearray(head.ljust(SECTOR, b"\0") + struct.pack("<%dI" % self.entries, *catalog))
        image += (bytes(SECTOR) + b"rubbish " * (EXTENT // 8)) * len(self.extents)
        for index, (number, present) in self.extents.items():
            at = self.place(number)
            for sector in present:
                image[at + sector // 8] |= 1 << sector % 8
                data = at + SECTOR + sector * SECTOR
                image[data:data + SECTOR] = pattern(index * 8 + sector)
        return bytes(image)

    def expectation(self, name):
        contents, entries = b"", []
        for sector in range(self.sectors):
            number, present = self.extents.get(sector // 8, (None, ()))
            here = sector % 8 in present
            contents += pattern(sector) if here else bytes(SECTOR)
            entry = {"start": sector * SECTOR, "length": SECTOR, "depth": 0, "present": here, "data": here,
                     "zero": not here}
            if here:
                entry.update(offset=self.place(number) + SECTOR + sector % 8 * SECTOR, filename=name)
            last = entries[-1] if entries else None
            if last and last["data"] == here and (not here or last["offset"] + last["length"] == entry["offset"]):
                last["length"] += SECTOR
            else:
                entries.append(entry)
        return contents, entries


def make_bochs__growing(golden):
    """
    By hand: extents of 8 sectors, in another order than on the disk, one that is not there; rubbish where a bit is
    clear. The disk ends inside the last one.
    """
    disk = Bochs(29, {0: (2, range(8)), 1: (0, (0, 3, 4, 7)), 3: (1, range(5))})
    golden.write("top.bochs", disk.build())
    golden.expect(*disk.expectation("top.bochs"))


def make_bochs__version_1(golden):
    """
    By hand: the header of version 1.0 has the size of the disk 4 bytes earlier.
    """
    disk = Bochs(16, {1: (0, (1, 2))}, version=0x10000)
    golden.write("top.bochs", disk.build())
    golden.expect(*disk.expectation("top.bochs"))


def make_bochs__refused_extent_size(golden):
    """
    By hand: extents of no size.
    """
    image = bytearray(Bochs(16, {}).build())
    image[80:84] = bytes(4)
    golden.write("top.bochs", bytes(image))
    golden.expect_error("extent size is 0")


def cloop(blocks, size):
    packed = [zlib.compress(block, 9) for block in blocks]
    offsets = [136 + 8 * (len(blocks) + 1)]
    for block in packed:
        offsets.append(offsets[-1] + len(block))
    script = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    head = script.ljust(128, b"\0") + struct.pack(">II", size, len(blocks))
    return head + struct.pack(">%dQ" % len(offsets), *offsets) + b"".join(packed), offsets


def make_cloop__blocks(golden):
    """
    By hand: five blocks of 1536 bytes, of which one is zeroes and one does not get smaller.
    """
    noise = b"".join(zlib.crc32(b"%d" % n).to_bytes(4, "big") for n in range(384))
    blocks = [pattern(0, 1536), bytes(1536), noise, pattern(3, 1536), pattern(4, 1536)]
    image, offsets = cloop(blocks, 1536)
    golden.write("top.cloop", image)
    golden.expect(b"".join(blocks), [{"start": 0, "length": 5 * 1536, "depth": 0, "present": True, "data": True,
                                      "zero": False}])


def make_cloop__refused_offsets(golden):
    """
    By hand: the third block ends before it begins.
    """
    image, offsets = cloop([bytes(512)] * 4, 512)
    image = bytearray(image)
    struct.pack_into(">Q", image, 136 + 3 * 8, offsets[2] - 1)
    golden.write("top.cloop", bytes(image))
    golden.expect_error("offset 3 is %d" % (offsets[2] - 1))


if __name__ == "__main__":
    import sys
    make_all(globals(), sys.argv[1:])
