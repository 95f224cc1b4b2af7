"""Hostile images of bochs and cloop, and files that are none of anything."""
import struct
import zlib

import read_only
from case import MIB, Case, patched, with_holes

BOCHS = read_only.Bochs(29, {0: (1, range(8)), 2: (0, (0, 3))}).build()
CLOOP, OFFSETS = read_only.cloop([read_only.pattern(n, 512) for n in range(4)], 512)
FIRST = 136
ALL64 = (1 << 64) - 1


def bochs():
    fields = [("version-0", "version is 0.0", 64, "<I", 0), ("version-3", "version is 3.0", 64, "<I", 0x30000),
              ("header-size-0", "header size is 0", 68, "<I", 0), ("header-size-all", "header size is", 68, "<I", 0xFFFFFFFF),
              ("header-size-behind-end", "header size is", 68, "<I", len(BOCHS)),
              ("catalog-0", "catalog has 0", 72, "<I", 0), ("catalog-all", "catalog has 4294967295", 72, "<I", 0xFFFFFFFF),
              ("catalog-times-4-overflows", "catalog has", 72, "<I", 0x40000001),
              ("catalog-beyond-file", "header size is", 72, "<I", MIB), ("bitmap-0", "bitmap size is 0", 76, "<I", 0),
              ("bitmap-all", "bitmap size is", 76, "<I", 0xFFFFFFFF), ("extent-0", "extent size is 0", 80, "<I", 0),
              ("extent-511", "extent size is 511", 80, "<I", 511), ("extent-2-31", "extent size is", 80, "<I", 1 << 31),
              ("size-odd", "disk size is 511", 88, "<Q", 511), ("size-all", "disk size is", 88, "<Q", ALL64 - 511),
              ("size-above-catalog", "catalog has", 88, "<Q", 1 << 40)]
    for name, word, *change in fields:
        yield Case("bochs-" + name, {"top.bochs": patched(BOCHS, tuple(change))}, word)
    for name, number in (("behind-end", 2), ("far", 0xFFFFFFFE), ("twice", 1)):
        yield Case("bochs-entry-" + name, {"top.bochs": patched(BOCHS, (512 + 4, "<I", number))})
    for size in (64, 83, 512, 516):
        yield Case("bochs-cut-at-%d" % size, {"top.bochs": BOCHS[:size]})


def cloop():
    fields = [("block-size-0", "block size is 0", 128, ">I", 0), ("block-size-511", "block size is 511", 128, ">I", 511),
              ("block-size-all", "block size is", 128, ">I", 0xFFFFFE00),
              ("blocks-all", "number of blocks is 4294967295", 132, ">I", 0xFFFFFFFF),
              ("blocks-times-8-overflows", "number of blocks is", 132, ">I", 0x20000001),
              ("blocks-beyond-file", "number of blocks is", 132, ">I", 100000),
              ("first-offset-0", "offset 0 is 0", FIRST, ">Q", 0), ("first-offset-behind-end", "offset 0 is", FIRST, ">Q", len(CLOOP) + 1),
              ("offsets-decrease", "offset 2 is", FIRST + 16, ">Q", OFFSETS[1] - 1),
              ("offsets-stay", "offset 2 is", FIRST + 16, ">Q", OFFSETS[1]),
              ("offset-all", "offset 3 is", FIRST + 24, ">Q", ALL64), ("last-behind-end", "offset 4 is", FIRST + 32, ">Q", len(CLOOP) + 1)]
    for name, word, *change in fields:
        yield Case("cloop-" + name, {"top.cloop": patched(CLOOP, tuple(change))}, word)
    bomb, _ = read_only.cloop([bytes(4 * MIB)] * 4, 4 * MIB)
    yield Case("cloop-blocks-of-4-mib", {"top.cloop": bomb})
    yield Case("cloop-block-of-8-mib", {"top.cloop": patched(CLOOP, (128, ">I", 8 * MIB))}, "block size is 8388608")
    long, _ = read_only.cloop([bytes(16 * MIB)], 512)
    yield Case("cloop-block-longer-than-it-says", {"top.cloop": long})
    yield Case("cloop-block-of-noise", {"top.cloop": patched(CLOOP, (OFFSETS[1], b"\xee" * 10))})
    yield Case("cloop-512-ki-blocks-in-a-hole", {"top.cloop": with_holes(patched(CLOOP, (132, ">I", 524287)), 64 * MIB)})
    for size in (23, 130, 136, 150, OFFSETS[2]):
        yield Case("cloop-cut-at-%d" % size, {"top.cloop": CLOOP[:size]})


def nothing():
    """Files that are taken for raw, or of which no format can be told."""
    for name, content in (("empty", b""), ("one-byte", b"Q"), ("noise", bytes(range(256)) * 17), ("zeroes", bytes(65536))):
        yield Case("raw-" + name, {"top.img": content})
    yield Case("raw-with-a-name-of-vhd", {"top.vhd": bytes(4096)}, "top.vhd")
    yield Case("raw-that-packs", {"top.img": zlib.compress(bytes(MIB))})


def cases():
    for group in (bochs, cloop, nothing):
        yield from group()
