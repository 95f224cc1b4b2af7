"""Hostile vmdk extents of ESX, COWD and seSparse, each behind a good descriptor."""
import struct

import vmdk_esx
from case import MIB, Case, patched, with_holes

SECTORS = 2 * vmdk_esx.TABLE_ENTRIES + 100
GRAINS = {7: b"a" * 512, 4095: b"b" * 512, 2 * vmdk_esx.TABLE_ENTRIES + 99: b"c" * 512}
COWD = vmdk_esx.Cowd(SECTORS, GRAINS).image
SESPARSE_SECTORS = 8 * 5000
SESPARSE = vmdk_esx.SeSparse(SESPARSE_SECTORS, {0: b"a" * 4096, 1: vmdk_esx.ZERO, 4100: b"b" * 4096}).image
ALL32, ALL64 = 0xFFFFFFFF, (1 << 64) - 1
COWD_DIRECTORY, COWD_TABLE = 4 * 512, 5 * 512
SE_DIRECTORY, SE_TABLE = 8 * 512, 16 * 512


def case(kind, name, words, *changes, at=None, size=None):
    image, sectors, word = {"cowd": (COWD, SECTORS, "VMFSSPARSE"), "sesparse": (SESPARSE, SESPARSE_SECTORS, "SESPARSE")}[kind]
    content = patched(image, *changes)
    if size is not None:
        content = with_holes(content, size) if size > len(content) else content[:size]
    text = vmdk_esx.HEAD % (5, vmdk_esx.NO_PARENT, "vmfsSparse") + 'RW %d %s "disk-delta.vmdk"\n' % (sectors, word)
    return Case("%s-%s" % (kind, name), {"top.vmdk": text.encode(), "disk-delta.vmdk": content}, *words, at=at)


def cowd():
    fields = [
        ("version-0", "version is 0", 4, "<I", 0), ("version-2", "version is 2", 4, "<I", 2),
        ("flags-all", "flags are 0xffffffff", 8, "<I", ALL32), ("flag-inconsistent", "inconsistent", 8, "<I", 7),
        ("capacity-all", "gdOffset", 12, "<I", ALL32), ("grain-0", "grain", 16, "<I", 0), ("grain-all", "grain", 16, "<I", ALL32),
        ("grain-2-31", "grain", 16, "<I", 1 << 31),
        ("directory-behind-end", "gdOffset", 20, "<I", len(COWD) // 512 + 1), ("directory-all", "gdOffset", 20, "<I", ALL32),
        ("entries-0", "numGDEntries is 0", 24, "<I", 0), ("entries-too-few", "numGDEntries is 2", 24, "<I", 2),
    ]
    for name, word, *change in fields:
        yield case("cowd", name, [word], tuple(change))
    for name, change in (("capacity-0", (12, "<I", 0)), ("directory-0", (20, "<I", 0)), ("entries-all", (24, "<I", ALL32)),
                         ("free-sector-all", (28, "<I", ALL32)), ("no-magic", (0, b"DWOC"))):
        yield case("cowd", name, [], change)
    for name, entry in (("header", 1), ("itself", 4), ("behind-end", len(COWD) // 512), ("all", ALL32)):
        yield case("cowd", "directory-entry-" + name, [], (COWD_DIRECTORY, "<I", entry))
        yield case("cowd", "table-entry-" + name, [], (COWD_TABLE, "<I", entry))
    yield case("cowd", "directory-all-one-table", [], (COWD_DIRECTORY, "<3I", 5, 5, 5))
    for size in (0, 4, 511, 2048, COWD_DIRECTORY + 4, COWD_TABLE + 100):
        yield case("cowd", "cut-at-%d" % size, [], size=size)
    yield case("cowd", "disk-of-2-tib-in-a-hole", [], (12, "<I", ALL32), (20, "<I", 64), (24, "<I", MIB), size=64 * MIB)


def sesparse():
    numbers = ["magic", "version", "capacity", "grain-size", "table-size", "flags"]
    for index, name in enumerate(numbers):
        for value in (0, 7, ALL64):
            yield case("sesparse", "%s-%d" % (name, value), [], (8 * index, "<Q", value))
    yield case("sesparse", "reserved", ["reserved"], (48, "<Q", 1))
    yield case("sesparse", "version-3", ["version is 0x3"], (8, "<Q", 3))
    for index, name in enumerate(("volatile-header", "journal-header", "journal", "directory", "tables", "bitmap", "backmap", "grains")):
        for kind, values in (("0", (0, 0)), ("at-all", (ALL64, 1)), ("length-all", (1, ALL64)), ("behind-end", (1 << 40, 1 << 20)),
                             ("on-header", (0, 1 << 20))):
            yield case("sesparse", "%s-%s" % (name, kind), [], (80 + 16 * index, "<QQ", *values))
    for name, values in (("magic", (1, 0, 1, 0)), ("replay", (0xCAFECAFE, 0, 1, 1))):
        yield case("sesparse", "volatile-" + name, [], (512, "<4Q", *values))
    for name, entry in (("type-0", 1), ("type-2", 2 << 60), ("type-15", ALL64), ("behind-end", 1 << 60 | 1 << 40), ("last", 2 << 60 - 1)):
        yield case("sesparse", "directory-entry-" + name, [], (SE_DIRECTORY, "<Q", entry))
    for name, entry in (("type-0", 1), ("type-4", 4 << 60), ("type-15", ALL64), ("behind-end", 3 << 60 | 1 << 40),
                        ("far", 3 << 60 | (1 << 60) - 1)):
        yield case("sesparse", "table-entry-" + name, [], (SE_TABLE, "<Q", entry))
    yield case("sesparse", "directory-all-one-table", [], (SE_DIRECTORY, struct.pack("<2Q", 1 << 60, 1 << 60)))
    for size in (0, 8, 511, 513, 1024, SE_DIRECTORY + 8, SE_TABLE + 100):
        yield case("sesparse", "cut-at-%d" % size, [], size=size)


def cases():
    yield from cowd()
    yield from sesparse()
