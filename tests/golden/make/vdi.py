#!/usr/bin/python3
"""Makes the golden images of vdi, byte by byte, after the layout that VirtualBox writes.

    vdi.py [FORMAT/NAME...]

qemu reads no differencing image, no block size but 1 MiB and no data that begins inside a sector, so what is expected
comes from the description here.
"""
import struct

from golden import make_all, qemu

SECTOR = 512
UNALLOCATED, ZERO = 0xFFFFFFFF, 0xFFFFFFFE


def uuid(number):
    return bytes([number]) * 16


def fill(number, size):
    return (b"block %06d " % number * (size // 13 + 1))[:size]


class Disk:
    """blocks: block of the disk -> (block of the file, bytes), or the value of the entry as it is."""

    def __init__(self, size, block_size, blocks, kind=1, table=512, data=None, extra=0, link=0, parent=0, me=1,
                 modified=1, allocated=None):
        self.size, self.block_size, self.blocks = size, block_size, blocks
        self.count = -(-size // block_size)
        self.data = data if data is not None else table + self.count * 4 + -(table + self.count * 4) % SECTOR
        self.table, self.kind, self.extra = table, kind, extra
        self.uuids = uuid(me) + uuid(modified) + uuid(link) + uuid(parent)
        in_file = [value[0] + 1 for value in blocks.values() if isinstance(value, tuple)]
        self.places = max(in_file, default=0)
        self.allocated = self.places if allocated is None else allocated

    def offset(self, place):
        return self.data + place * (self.block_size + self.extra) + self.extra

    def build(self):
        head = b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0")
        head += struct.pack("<IIIII", 0xBEDA107F, 0x10001, 0x180, self.kind, 0) + bytes(256)
        head += struct.pack("<IIIIIIIQIIII", self.table, self.data, 0, 0, 0, SECTOR, 0, self.size, self.block_size,
                            self.extra, self.count, self.allocated) + self.uuids
        assert len(head) == 0x1C8
        entries = [UNALLOCATED] * self.count
        image = bytearray(self.offset(self.places) - self.extra)
        image[:len(head)] = head
        for index, value in self.blocks.items():
            if isinstance(value, tuple):
                place, content = value
                entries[index] = place
                image[self.offset(place):self.offset(place) + len(content)] = content
            else:
                entries[index] = value
        struct.pack_into("<%dI" % self.count, image, self.table, *entries)
        return bytes(image)


def block_of(chain, index):
    """(depth, value) of the first image of the chain that has something to say of the block."""
    for depth, (_, disk) in enumerate(chain):
        value = disk.blocks.get(index, UNALLOCATED)
        if value != UNALLOCATED:
            return depth, value
    return len(chain) - 1, UNALLOCATED


def expectation(chain):
    top = chain[0][1]
    contents, entries = b"", []
    for index in range(top.count):
        start = index * top.block_size
        length = min(top.block_size, top.size - start)
        depth, value = block_of(chain, index)
        entry = {"start": start, "length": length, "depth": depth, "present": value != UNALLOCATED,
                 "data": isinstance(value, tuple), "zero": not isinstance(value, tuple)}
        if isinstance(value, tuple):
            contents += value[1][:length]
            entry.update(offset=chain[depth][1].offset(value[0]), filename=chain[depth][0])
        else:
            contents += bytes(length)
        last = entries[-1] if entries else None
        alike = last and all(last[key] == entry[key] for key in ("depth", "present", "data", "zero"))
        if alike and (not entry["data"] or last["offset"] + last["length"] == entry["offset"]):
            last["length"] += length
        else:
            entries.append(entry)
    return contents, entries


def put(golden, *chain):
    for name, disk in chain:
        golden.write(name, disk.build())
    golden.expect(*expectation(chain))


def make_vdi__by_qemu(golden):
    """
    qemu-img convert -O vdi of a disk with data in one of two blocks of 1 MiB. qemu calls a block that is not there
    present, which we do not.
    """
    raw = golden.path("raw")
    raw.write_bytes(bytes(700 * SECTOR) + fill(1, 9000 * 2) + bytes(3000 * SECTOR))
    raw.write_bytes(raw.read_bytes().ljust(4001 * SECTOR, b"\0"))
    qemu("qemu-img", "convert", "-f", "raw", "-O", "vdi", raw, golden.path("top.vdi"))
    raw.unlink()
    golden.expect_as_qemu("top.vdi")
    golden.write("expect.map", golden.path("expect.map").read_text().replace("present zero", "absent zero"))


def make_vdi__data_at_0x220(golden):
    """
    By hand: 8 blocks, the first of which begins right behind the table, inside a sector. Blocks of 4 KiB.
    """
    blocks = {0: (1, fill(0, 4096)), 1: (0, fill(1, 4096)), 5: (2, fill(5, 4096)), 7: (3, fill(7, 4096))}
    disk = Disk(8 * 4096 - 1024, 4096, blocks, data=0x220)
    assert disk.data == disk.table + disk.count * 4
    put(golden, ("top.vdi", disk))


def make_vdi__zero_blocks(golden):
    """
    By hand: entries that say "zeroes" and entries that say nothing; the header counts more blocks than there are.
    """
    blocks = {0: ZERO, 1: (0, fill(1, 8192)), 2: ZERO, 4: (2, fill(4, 8192))}
    put(golden, ("top.vdi", Disk(6 * 8192, 8192, blocks, allocated=77)))


def make_vdi__extra_bytes_before_blocks(golden):
    """
    By hand: 512 extra bytes before each block, and a block size that is no power of two.
    """
    blocks = {0: (0, fill(0, 3 * SECTOR)), 2: (1, fill(2, 3 * SECTOR))}
    put(golden, ("top.vdi", Disk(8 * SECTOR, 3 * SECTOR, blocks, extra=512)))


def make_vdi__fixed(golden):
    """
    By hand: a fixed image; its blocks lie in the order of the disk.
    """
    blocks = {index: (index, fill(index, 4096)) for index in range(5)}
    put(golden, ("top.vdi", Disk(5 * 4096 - 512, 4096, blocks, kind=2)))


def make_vdi__differencing(golden):
    """
    By hand: three images, found by their UUIDs beside the top, whatever their names are. A block of zeroes hides
    what the parent has.
    """
    size = 6 * 4096
    base = Disk(size, 4096, {0: (0, fill(0, 4096)), 1: (1, fill(1, 4096)), 2: (2, fill(2, 4096))}, me=10, modified=11)
    middle = Disk(size, 4096, {1: (0, fill(101, 4096)), 3: (1, fill(103, 4096))}, kind=4, me=20, modified=21, link=10,
                  parent=11)
    top = Disk(size, 4096, {2: ZERO, 3: (0, fill(203, 4096))}, kind=4, me=30, modified=31, link=20, parent=21)
    put(golden, ("top.vdi", top), ("any name.vdi", middle), ("Base.VDI", base))


def make_vdi__refused_changed_parent(golden):
    """
    By hand: the parent was written to after the child was made.
    """
    golden.write("base.vdi", Disk(4096, 4096, {}, me=10, modified=12).build())
    golden.write("top.vdi", Disk(4096, 4096, {}, kind=4, me=20, link=10, parent=11).build())
    golden.expect_error("the parent was changed")


def make_vdi__refused_missing_parent(golden):
    """
    By hand: no file beside the image has the parent's UUID.
    """
    golden.write("base.vdi", Disk(4096, 4096, {}, me=9).build())
    golden.write("top.vdi", Disk(4096, 4096, {}, kind=4, me=20, link=10).build())
    golden.expect_error("{0a0a0a0a-0a0a-0a0a-0a0a-0a0a0a0a0a0a}.vdi")


def make_vdi__refused_table_in_header(golden):
    """
    By hand: the table begins inside the header.
    """
    image = bytearray(Disk(4096, 4096, {}).build())
    struct.pack_into("<I", image, 0x154, 0x1C4)
    golden.write("top.vdi", bytes(image))
    golden.expect_error("offset of the table is 452")


if __name__ == "__main__":
    import sys
    make_all(globals(), sys.argv[1:])
