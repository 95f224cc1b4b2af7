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


SECTORS_OF_IMAGE = 10 * TRACKS
STORAGES = [(SECTORS_OF_IMAGE, [(parallels.SNAPSHOTS[0], "Plain", "root.hds"), (parallels.TOP, "Compressed", "now.hds")]),
            (SECTORS_OF_IMAGE, [(parallels.SNAPSHOTS[0], "Compressed", "now.hds"), (parallels.TOP, "Compressed", "now.hds")])]
TREE = parallels.shots(parallels.SNAPSHOTS[0], parallels.TOP)
TEXT = parallels.descriptor(STORAGES, TREE)
PARTS = {"root.hds": bytes(SECTORS_OF_IMAGE * 512), "now.hds": IMAGES["new"]}


def disk(name, words, text, at=None, **parts):
    return Case("parallels-disk-" + name, {"DiskDescriptor.xml": text.encode("latin-1") if isinstance(text, str) else text,
                                           **PARTS, **parts}, *words, at=at)


def shots_of(count, close):
    """A chain of so many snapshots; the last one's parent is nobody, or the first."""
    guids = ["{%08x-0000-0000-0000-000000000000}" % number for number in range(1, count)] + [parallels.TOP]
    tree = parallels.shots(*guids)
    return guids, tree.replace(parallels.NO_GUID, guids[-1]) if close else tree


def texts():
    """One thing in the good text exchanged for another, the first time it occurs."""
    top, snapshot, no = parallels.TOP, parallels.SNAPSHOTS[0], parallels.NO_GUID
    for name, word, old, new in (
            ("version", "Version is '9'", 'Version="1.0"', 'Version="9"'),
            ("size-0", "Disk_size is 0", "<Disk_size>160", "<Disk_size>0"),
            ("size-2-64", "Disk_size is", "<Disk_size>160", "<Disk_size>18446744073709551616"),
            ("size-2-55", "Disk_size is", "<Disk_size>160", "<Disk_size>36028797018963968"),
            ("size-negative", "Disk_size is '-160'", "<Disk_size>160", "<Disk_size>-160"),
            ("size-hex", "Disk_size is '0xa0'", "<Disk_size>160", "<Disk_size>0xa0"),
            ("padding", "Padding is '1'", "<Padding>0", "<Padding>1"),
            ("encrypted", "Engine is", "<Engine>" + no, "<Engine>" + top),
            ("overlap", "Start is 79: must be 80", "<Start>80", "<Start>79"),
            ("gap", "Start is 81: must be 80", "<Start>80", "<Start>81"),
            ("end-before-start", "End is 80: must be behind Start", "<End>160", "<End>80"),
            ("end-all", "Disk_size is 160: must be 18014398509481983", "<End>160", "<End>18014398509481983"),
            ("end-2-64", "End is", "<End>160", "<End>18446744073709551696"),
            ("blocksize", "Blocksize is 16", "<Blocksize>8", "<Blocksize>16"),
            ("blocksize-all", "Blocksize is", "<Blocksize>8", "<Blocksize>4294967295"),
            ("type", "Type is 'Ploop'", "<Type>Plain", "<Type>Ploop"),
            ("plain-with-a-parent", "must be Compressed", "<Type>Compressed", "<Type>Plain"),
            ("plain-as-compressed", "magic is wrong", "<Type>Plain", "<Type>Compressed"),
            ("file-absolute", "--allow-path", "root.hds", "/etc/passwd"),
            ("file-above", "--allow-path", "root.hds", "../../../../etc/passwd"),
            ("file-device", "--allow-path", "root.hds", "/dev/zero"),
            ("file-directory", "--allow-path", "root.hds", "."),
            ("file-url", "nbd:", "root.hds", "nbd://127.0.0.1:1/x"), ("file-json", "json:", "root.hds", "json:{}"),
            ("file-missing", "nothing.hds", "root.hds", "nothing.hds"), ("file-empty", "is empty", "root.hds", ""),
            ("file-itself", "not opened by its path", "<File>now.hds", "<File>DiskDescriptor.xml"),
            ("guid-form", "GUID is '{5fba'", top + "</GUID>", "{5fba</GUID>"),
            ("guid-unknown", "no Image with the GUID", "<GUID>" + top, "<GUID>{99999999-0000-0000-0000-000000000000}"),
            ("guid-twice", "of one image", "<GUID>" + top, "<GUID>" + snapshot),
            ("parent-unknown", "which is a ParentGUID", "<ParentGUID>" + snapshot,
             "<ParentGUID>{99999999-0000-0000-0000-000000000000}"),
            ("parent-itself", "below itself", "<ParentGUID>" + snapshot, "<ParentGUID>" + top),
            ("parent-circle", "below itself", "<ParentGUID>" + no, "<ParentGUID>" + top),
            ("top-unknown", "which is the top", "<Snapshots>", "<Snapshots><TopGUID>%s</TopGUID>" % no),
            ("entity", "is no XML", "<Name>", "<Name>&name;"), ("latin-1", "is no XML", "<Name>", "<Name>\xe9"),
            ("end-tag", "is no XML", "</Name>", "</Mane>"),
            ("control", "is no XML", "<Name>", "<Name &#27;='x'>"), ("twice", "Disk_size is said twice", "<Padding>",
                                                                    "<Disk_size>160</Disk_size><Padding>"),
            ("nested", "is in Start", "<Start>", "<Start><Start>")):
        yield disk(name, [word], TEXT.replace(old, new, 1))
    yield disk("nul", [], TEXT.replace("<File>", "<File>\0", 1))
    yield disk("doctype", [], TEXT.replace("<Parallels", "<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]>\n<Parallels", 1))


def disks():
    yield from texts()
    for name, text in (("deep", TEXT.replace("<Name>", "<a>" * 100000)), ("many-elements", TEXT.replace("<Name>", "<a/>" * 250000 + "<Name>")),
                       ("long-name", TEXT.replace("<Name>", "<" + "a" * 900000 + "/><Name>")),
                       ("long-text", TEXT.replace("<Start>0", "<Start>" + "0" * 900000)),
                       ("many-attributes", TEXT.replace("<Name>", "<Name " + "a='' " * 180000 + ">")),
                       ("many-shots", TEXT.replace("<Shot>", "<Shot/>" * 100000 + "<Shot>", 1)),
                       ("many-images", TEXT.replace("<Image>", (parallels.IMAGE % ("%s", "Plain", "x")) % parallels.TOP * 5000 + "<Image>", 1))):
        yield disk(name, [], text)
    yield disk("of-2-mib", ["must be 1048576 at most"], (2 * MIB, {0: TEXT.encode()}))
    for length in (100, 500, len(TEXT) - 3):
        yield disk("cut-at-%d" % length, ["is no XML"], TEXT[:length])
    for name, count, close, word in (("500-deep", 500, False, None), ("501-deep", 501, False, "500 snapshots below it"),
                                     ("circle-of-100", 100, True, "500 snapshots below it")):
        guids, tree = shots_of(count, close)
        images = [(guid, "Compressed", "now.hds") for guid in guids]
        yield disk(name, [word] if word else [], parallels.descriptor([(SECTORS_OF_IMAGE, images)], tree))
    large = patched(IMAGES["new"], (ENTRIES, "<I", 4 * MIB), (SECTORS, "<Q", SECTORS_OF_IMAGE), (DATA, "<I", 64 * MIB // 512),
                    (TABLE, "<10I", *[0] * 10))
    guids, tree = shots_of(60, False)
    yield disk("tables-of-16-mib-each", ["its table is one too many"], parallels.descriptor(
        [(SECTORS_OF_IMAGE, [(guid, "Compressed", "large.hds") for guid in guids])], tree), **{"large.hds": with_holes(large, 256 * MIB)})
    far = patched(IMAGES["new"], (TABLE + 4, "<I", ALL))
    yield disk("entry-of-a-layer", [], TEXT, **{"now.hds": far})
    yield disk("file-cut", ["now.hds"], TEXT, **{"now.hds": IMAGES["new"][:70]})
    yield disk("file-short", ["holds 4096 bytes, but its storage has"], TEXT.replace("Plain", "Compressed").replace("root", "now"),
               **{"now.hds": patched(IMAGES["new"], (SECTORS, "<Q", TRACKS))})


def cases():
    yield from disks()
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
