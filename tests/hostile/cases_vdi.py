"""Hostile vdi images: blocks of 4 KiB."""
import struct

import vdi
from case import MIB, Case, patched, with_holes

BLOCK = 4096
DISK = vdi.Disk(8 * BLOCK, BLOCK, {0: (1, vdi.fill(0, BLOCK)), 3: (0, vdi.fill(3, BLOCK))})
IMAGE = DISK.build()
SIGNATURE, VERSION, HEADER_SIZE, TYPE = 0x40, 0x44, 0x48, 0x4C
TABLE_AT, DATA_AT, SECTOR_SIZE, SIZE, BLOCK_SIZE, EXTRA, BLOCKS = 0x154, 0x158, 0x168, 0x170, 0x178, 0x17C, 0x180
ALLOCATED, LINK = 0x184, 0x1A8


def case(name, words, *changes, at=None, size=None, image=IMAGE, **files):
    content = patched(image, *changes)
    if size is not None:
        content = with_holes(content, size) if size > len(content) else content[:size]
    return Case("vdi-" + name, {"top.vdi": content, **files}, *words, at=at)


def cases():
    fields = [
        ("version-0", "version is 0.0", VERSION, "<I", 0), ("version-2", "version is 2.0", VERSION, "<I", 0x20000),
        ("header-size-0", "header size is 0", HEADER_SIZE, "<I", 0), ("type-0", "type is 0", TYPE, "<I", 0),
        ("type-5", "type is 5", TYPE, "<I", 5), ("type-all", "type is 4294967295", TYPE, "<I", 0xFFFFFFFF),
        ("sector-size-4096", "sector size is 4096", SECTOR_SIZE, "<I", 4096),
        ("block-size-0", "block size is 0", BLOCK_SIZE, "<I", 0), ("block-size-511", "block size is 511", BLOCK_SIZE, "<I", 511),
        ("block-size-all", "block size is 4294966784", BLOCK_SIZE, "<I", 0xFFFFFE00),
        ("extra-above-block", "block extra is 4608", EXTRA, "<I", BLOCK + 512),
        ("extra-all", "block extra is 4294967295", EXTRA, "<I", 0xFFFFFFFF),
        ("blocks-all", "blocks in image is 4294967295", BLOCKS, "<I", 0xFFFFFFFF),
        ("blocks-times-4-overflows", "blocks in image", BLOCKS, "<I", 0x40000001),
        ("blocks-beyond-file", "offset of the table", BLOCKS, "<I", 1 << 20),
        ("blocks-too-few", "disk size is", BLOCKS, "<I", 7), ("blocks-0", "disk size is", BLOCKS, "<I", 0),
        ("size-all", "disk size is", SIZE, "<Q", (1 << 64) - 1), ("size-2-63", "disk size is", SIZE, "<Q", 1 << 63),
        ("table-in-header", "offset of the table is 72", TABLE_AT, "<I", 72),
        ("table-0", "offset of the table is 0", TABLE_AT, "<I", 0),
        ("table-unaligned", "offset of the table is 513", TABLE_AT, "<I", 513),
        ("table-behind-end", "offset of the table", TABLE_AT, "<I", len(IMAGE)),
        ("table-wraps", "offset of the table", TABLE_AT, "<I", 0xFFFFFFFC),
        ("data-in-table", "offset of the data", DATA_AT, "<I", 512 + 4), ("data-0", "offset of the data is 0", DATA_AT, "<I", 0),
    ]
    for name, word, *change in fields:
        yield case(name, [word], tuple(change))
    yield case("data-behind-end", [], (DATA_AT, "<I", 0xFFFFFE00))
    yield case("allocated-all", [], (ALLOCATED, "<I", 0xFFFFFFFF))
    for name, entry in (("behind-end", 2), ("far", 0x7FFFFFFF), ("largest", 0xFFFFFFFD), ("twice", 1)):
        yield case("entry-" + name, [], (512 + 4 * 3, "<I", entry))
    yield case("entries-all-one-block", [], (512, struct.pack("<8I", *[0] * 8)))
    yield case("entries-all-last", [], (512, struct.pack("<8I", *[0xFFFFFFFD] * 8)))
    for size in (8, 0x47, 0x1C7, 0x1FF, 514):
        yield case("cut-at-%d" % size, [], size=size)
    yield case("table-of-16-mib", [], (BLOCKS, "<I", 4 * MIB), (DATA_AT, "<I", 32 * MIB), (SIZE, "<Q", 4 * MIB * BLOCK),
               (512, b"\xff" * (16 * MIB)))
    yield case("entries-all-one-block-in-a-hole", [], (BLOCKS, "<I", MIB // 16), (TABLE_AT, "<I", MIB),
               (DATA_AT, "<I", 32 * MIB), (SIZE, "<Q", MIB // 16 * BLOCK), size=64 * MIB)
    child = vdi.Disk(8 * BLOCK, BLOCK, {}, kind=4, me=1, modified=1, link=1, parent=1).build()
    yield case("parent-is-itself", ["top.vdi"], image=child, at="chain")
    first = vdi.Disk(8 * BLOCK, BLOCK, {}, kind=4, me=1, modified=1, link=2, parent=2).build()
    second = vdi.Disk(8 * BLOCK, BLOCK, {}, kind=4, me=2, modified=2, link=1, parent=1).build()
    yield case("parents-in-a-loop", ["loop"], image=first, at="chain", **{"other.vdi": second})
    crowd = {"%d.vdi" % n: patched(IMAGE, (BLOCKS, "<I", 0xFFFFFFFF)) for n in range(200)}
    yield case("parent-among-200-broken", ["top.vdi"], image=first, at="chain", **crowd)
