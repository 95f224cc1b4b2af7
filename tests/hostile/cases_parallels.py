"""Hostile parallels images: both magics, clusters of 4 KiB."""
import struct

import parallels
from case import MIB, Case, patched, with_holes

OLD, NEW = b"WithoutFreeSpace", b"WithouFreSpacExt"
TRACKS = 8
IMAGES = {"old": parallels.image(OLD, TRACKS, 10 * TRACKS, [0, 3, 2, None, 6])[0],
          "new": parallels.image(NEW, TRACKS, 10 * TRACKS, [0, 3, 2, None, 6])[0]}
VERSION, CLUSTER, ENTRIES, SECTORS, IN_USE, DATA, FLAGS, EXTENSION, TABLE = 16, 28, 32, 36, 44, 48, 52, 56, 64
ALL = 0xFFFFFFFF


def case(kind, name, words, *changes, at=None, size=None):
    content = patched(IMAGES[kind], *changes)
    if size is not None:
        content = with_holes(content, size) if size > len(content) else content[:size]
    return Case("parallels-%s-%s" % (kind, name), {"top.hds": content}, *words, at=at)


def cases():
    fields = [
        ("version-0", "version is 0", VERSION, "<I", 0), ("version-3", "version is 3", VERSION, "<I", 3),
        ("tracks-0", "tracks is 0", CLUSTER, "<I", 0), ("tracks-all", "tracks is 4294967295", CLUSTER, "<I", ALL),
        ("tracks-2-31", "tracks is 2147483648", CLUSTER, "<I", 1 << 31),
        ("entries-all", "nb_bat_entries is 4294967295", ENTRIES, "<I", ALL),
        ("entries-times-4-overflows", "nb_bat_entries is 1073741825", ENTRIES, "<I", 0x40000001),
        ("entries-beyond-file", "nb_bat_entries is 1048576", ENTRIES, "<I", MIB),
        ("entries-too-few", "nb_sectors is", ENTRIES, "<I", 9), ("entries-0", "nb_sectors is", ENTRIES, "<I", 0),
        ("in-use-unknown", "in_use is 0x00000005", IN_USE, "<I", 5),
        ("data-in-table", "data_off is", DATA, "<I", 0),
    ]
    for kind in IMAGES:
        for name, word, *change in fields:
            if (kind, name) != ("old", "data-in-table"):  # there 0 says: behind the table
                yield case(kind, name, [word], tuple(change))
        yield case(kind, "sectors-all", [], (SECTORS, "<Q", (1 << 64) - 1))
        yield case(kind, "sectors-2-32", [], (SECTORS, "<Q", 1 << 32))
        yield case(kind, "data-behind-end", [], (DATA, "<I", 0xFFFFFFF8))
        yield case(kind, "flags-all", [], (FLAGS, "<I", ALL))
        for name, place in (("here", 1), ("behind-end", MIB), ("all", (1 << 64) - 1)):
            yield case(kind, "extension-" + name, [], (EXTENSION, "<Q", place))
        for name, entry in (("header", 0), ("table", 1), ("behind-end", MIB), ("all", ALL), ("2-31", 1 << 31), ("twice", 2)):
            yield case(kind, "entry-" + name, [], (TABLE + 4, "<I", entry))
        yield case(kind, "entries-all-one-cluster", [], (TABLE, struct.pack("<10I", *[8] * 10)))
        for size in (16, 63, 64, 70, 512, 4096 + 512):
            yield case(kind, "cut-at-%d" % size, [], size=size)
        yield case(kind, "table-of-16-mib-in-a-hole", [], (ENTRIES, "<I", 4 * MIB), (SECTORS, "<Q", 4 * MIB * TRACKS),
                   (DATA, "<I", 64 * MIB // 512), (TABLE, "<10I", *[0] * 10), size=256 * MIB)
        yield case(kind, "clusters-of-256-mib", [], (CLUSTER, "<I", 256 * MIB // 512), (DATA, "<I", 256 * MIB // 512),
                   (SECTORS, "<Q", 10 * 256 * MIB // 512), size=1024 * MIB)
