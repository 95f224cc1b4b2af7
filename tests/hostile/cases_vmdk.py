"""Hostile vmdk images: descriptors, and sparse extents of grains of 4 KiB."""
import importlib
import struct
import zlib

from case import MIB, Case, patched, with_holes

made = importlib.import_module("by-hand")
HEAD, NO_PARENT, GRAIN, SECTOR, ENTRIES, pattern = (
    made.HEAD, made.NO_PARENT, made.GRAIN, made.SECTOR, made.ENTRIES, made.pattern)

CAPACITY = 4 * GRAIN // SECTOR
TEXT = (HEAD % (1, NO_PARENT, "monolithicSparse")) + 'RW %d SPARSE "top.vmdk"\n' % CAPACITY
IMAGE, PLACES = made.sparse(CAPACITY, {0: pattern(0), 2: pattern(2)}, TEXT.encode(), descriptor_sectors=4)
VERSION, FLAGS, SIZE, GRAIN_SIZE, DESCRIPTOR, DESCRIPTOR_SIZE = 4, 8, 12, 20, 28, 36
PER_TABLE, REDUNDANT, DIRECTORY, NEWLINES, COMPRESSION = 44, 48, 56, 73, 77
DIRECTORY_AT = struct.unpack_from("<Q", IMAGE, DIRECTORY)[0] * SECTOR
TABLE_AT = struct.unpack_from("<I", IMAGE, DIRECTORY_AT)[0] * SECTOR
END = len(IMAGE) // SECTOR
ALL64 = (1 << 64) - 1


def case(name, words, *changes, at=None, size=None, image=IMAGE, **files):
    content = patched(image, *changes)
    if size is not None:
        content = with_holes(content, size) if size > len(content) else content[:size]
    return Case("vmdk-" + name, {"top.vmdk": content, **files}, *words, at=at)


def headers():
    fields = [
        ("version-0", "version is 0", VERSION, "<I", 0), ("version-4", "version is 4", VERSION, "<I", 4),
        ("newlines", "newline test", NEWLINES, b"\r\n \n"),
        ("compressed-without-algorithm", "compressAlgorithm is 0", FLAGS, "<I", 0x30003),
        ("algorithm-2", "compressAlgorithm is 2", COMPRESSION, "<H", 2),
        ("capacity-0", "capacity is 0", SIZE, "<Q", 0), ("capacity-all", "capacity is", SIZE, "<Q", ALL64),
        ("capacity-2-55", "capacity is", SIZE, "<Q", 1 << 55),
        ("capacity-above-directory", "gdOffset", SIZE, "<Q", 1 << 40),
        ("grain-0", "grainSize is 0", GRAIN_SIZE, "<Q", 0), ("grain-3", "grainSize is 3", GRAIN_SIZE, "<Q", 3),
        ("grain-all", "grainSize is", GRAIN_SIZE, "<Q", ALL64), ("grain-2-63", "grainSize is", GRAIN_SIZE, "<Q", 1 << 63),
        ("grain-2-32", "grainSize is", GRAIN_SIZE, "<Q", 1 << 32),
        ("entries-0", "numGTEsPerGT is 0", PER_TABLE, "<I", 0), ("entries-513", "numGTEsPerGT is 513", PER_TABLE, "<I", 513),
        ("entries-all", "numGTEsPerGT is", PER_TABLE, "<I", 0xFFFFFFFF),
        ("directory-0", "gdOffset is 0", DIRECTORY, "<Q", 0), ("directory-behind-end", "gdOffset", DIRECTORY, "<Q", END),
        ("directory-wraps", "gdOffset", DIRECTORY, "<Q", (1 << 55) + 1), ("directory-2-63", "gdOffset", DIRECTORY, "<Q", 1 << 63),
        ("directory-in-no-footer", "gdOffset is -1", DIRECTORY, "<Q", ALL64),
        ("descriptor-behind-end", "descriptor", DESCRIPTOR, "<Q", END),
        ("descriptor-wraps", "descriptor", DESCRIPTOR, "<Q", (1 << 55) + 1),
        ("descriptor-size-all", "descriptor", DESCRIPTOR_SIZE, "<Q", ALL64),
        ("descriptor-size-2-55", "descriptor", DESCRIPTOR_SIZE, "<Q", 1 << 55),
        ("descriptor-size-beyond-file", "descriptor", DESCRIPTOR_SIZE, "<Q", 1 << 20),
    ]
    for name, word, *change in fields:
        yield case("header-" + name, [word], tuple(change))
    yield case("header-directory-in-header", [], (DIRECTORY, "<Q", 0x7F >> 7))
    yield case("header-descriptor-of-32-mib-in-a-hole", [], (DESCRIPTOR, "<Q", END), (DESCRIPTOR_SIZE, "<Q", 65536),
               size=64 * MIB)
    for size in (4, 79, 511, 512, 1000, DIRECTORY_AT, TABLE_AT + 4):
        yield case("cut-at-%d" % size, [], size=size)


def tables():
    for name, sector in (("behind-end", END), ("far", 0xFFFFFFFF), ("header", 1 >> 1 | 1), ("itself", DIRECTORY_AT // SECTOR)):
        yield case("directory-entry-" + name, [], (DIRECTORY_AT, "<I", sector))
    for name, sector in (("behind-end", END), ("far", 0xFFFFFFFF), ("one", 1), ("table", TABLE_AT // SECTOR),
                         ("twice", PLACES[0] // SECTOR), ("cut", END - 1)):
        yield case("grain-entry-" + name, [], (TABLE_AT + 4, "<I", sector))
    yield case("table-of-all-ones", [], (TABLE_AT, b"\xff" * ENTRIES * 4))
    yield case("disk-of-an-exbibyte-in-a-hole", [], (SIZE, "<Q", 1 << 45), (DIRECTORY, "<Q", 4096), (GRAIN_SIZE, "<Q", 32768),
               size=64 * MIB)


def packed(marker, stream):
    """A compressed extent of one grain, without footer."""
    flags = 3 | 0x30000
    text = made.pad((HEAD % (1, NO_PARENT, "streamOptimized")).encode())
    head = made.header(CAPACITY, 2 + len(text) // SECTOR, 1, len(text) // SECTOR, flags, 1)
    directory = made.pad(struct.pack("<I", 3 + len(text) // SECTOR))
    table_at = 3 + len(text) // SECTOR
    table = struct.pack("<%dI" % ENTRIES, *[table_at + 4] + [0] * (ENTRIES - 1))
    return made.pad(head + text) + bytes(SECTOR) + directory + table + made.pad(marker + stream)


def streams():
    good = zlib.compress(pattern(0), 9)
    for name, marker, stream in (
            ("marker-of-another-grain", struct.pack("<QI", 8, len(good)), good),
            ("marker-length-0", struct.pack("<QI", 0, 0), good), ("marker-length-all", struct.pack("<QI", 0, 0xFFFFFFFF), good),
            ("marker-length-behind-end", struct.pack("<QI", 0, 6000), good), ("stream-of-noise", struct.pack("<QI", 0, 100), b"\xee" * 100),
            ("stream-cut", struct.pack("<QI", 0, 10), good[:10]),
            ("stream-too-long", struct.pack("<QI", 0, len(zlib.compress(bytes(MIB)))), zlib.compress(bytes(MIB))),
            ("stream-too-short", struct.pack("<QI", 0, len(zlib.compress(b"x"))), zlib.compress(b"x"))):
        yield case(name, [], image=packed(marker, stream))
    bomb = zlib.compress(bytes(16 * MIB))
    yield case("stream-of-a-grain-of-16-mib", [], (GRAIN_SIZE, "<Q", 32768), (SIZE, "<Q", 32768),
               image=packed(struct.pack("<QI", 0, len(bomb)), bomb))
    footer = packed(struct.pack("<QI", 0, len(good)), good)
    footer = patched(footer, (DIRECTORY, "<Q", ALL64))
    head = footer[:SECTOR]
    for name, marker, copy, word in (
            ("footer-marker-type", made.marker(1, 2), head, "marker before the footer"),
            ("footer-again-elsewhere", made.marker(1, 3), head, "gdOffset of the footer is -1"),
            ("footer-magic", made.marker(1, 3), b"KDMW" + head[4:], "magic of the footer"),
            ("footer-directory-far", made.marker(1, 3), patched(head, (DIRECTORY, "<Q", 1 << 40)), "gdOffset"),
            ("footer-grain-0", made.marker(1, 3), patched(head, (DIRECTORY, "<Q", 1), (GRAIN_SIZE, "<Q", 0)), "grainSize is 0")):
        yield case(name, [word], image=footer + marker + copy + bytes(SECTOR))


def descriptors():
    flat = (HEAD % (1, NO_PARENT, "monolithicFlat"))
    lines = [
        ("absolute", 'RW 1 FLAT "/etc/passwd" 0', "--allow-path"), ("above", 'RW 1 FLAT "../../../etc/passwd" 0', "lies outside"),
        ("device", 'RW 1 FLAT "/dev/zero" 0', "--allow-path"), ("url", 'RW 1 FLAT "http://127.0.0.1/x" 0', "http"),
        ("json", 'RW 1 FLAT "json:{}" 0', "json:"), ("nbd", 'RW 1 FLAT "nbd://127.0.0.1:1/x" 0', "nbd:"),
        ("no-file", "RW 1 FLAT", "line 6"), ("no-name", 'RW 1 FLAT "" 0', "line 6"), ("missing", 'RW 1 FLAT "nothing" 0', "nothing"),
        ("size-0", 'RW 0 FLAT "part" 0', "line 6"), ("size-negative", 'RW -1 FLAT "part" 0', "line 6"),
        ("size-2-64", 'RW 18446744073709551616 FLAT "part" 0', "line 6"), ("size-2-54", 'RW 18014398509481984 FLAT "part" 0', "line 6"),
        ("size-hex", 'RW 0x10 FLAT "part" 0', "line 6"), ("size-above-file", 'RW 3 FLAT "part" 0', "truncated"),
        ("offset-negative", 'RW 1 FLAT "part" -1', "line 6"), ("offset-above-file", 'RW 1 FLAT "part" 2', "truncated"),
        ("offset-wraps", 'RW 1 FLAT "part" 18014398509481983', "part"), ("type", 'RW 1 RDM "part"', "'RDM'"),
        ("access", 'WO 1 FLAT "part" 0', "line 6"), ("sparse-of-itself", 'RW 1 SPARSE "top.vmdk"', "top.vmdk"),
        ("sparse-of-raw", 'RW 1 SPARSE "part"', "part"), ("sum-overflows", 'RW 18014398509481983 ZERO\n' * 3, "line"),
        ("directory", 'RW 1 FLAT "." 0', "top.vmdk"), ("name-without-end", 'RW 1 FLAT "part', "top.vmdk"),
    ]
    for name, line, word in lines:
        at = "any" if name == "name-without-end" else None
        yield case("extent-" + name, [] if at else [word], image=(flat + line + "\n").encode(), at=at, **{"part": bytes(1024)})
    settings = [("version", "version=1", "version=9", "descriptor version is '9'"), ("cid", "CID=00000001", "CID=xyz", "CID is 'xyz'"),
                ("cid-long", "CID=00000001", "CID=123456789", "CID is"), ("parent-cid", "parentCID=ffffffff", "parentCID=-1", "parentCID is"),
                ("create-type", "monolithicFlat", "fullDevice", "fullDevice"), ("no-version", "version=1", "", "has no version"),
                ("no-cid", "\nCID=00000001", "", "has no CID"), ("no-type", 'createType="monolithicFlat"', "", "has no createType"),
                ("parent-without-name", "parentCID=ffffffff", "parentCID=5", "parentFileNameHint"),
                ("name-without-parent", "version=1", 'version=1\nparentFileNameHint="x"', "parentFileNameHint")]
    for name, old, new, word in settings:
        yield case("setting-" + name, [word], image=(flat.replace(old, new, 1) + "RW 1 ZERO\n").encode())
    yield case("descriptor-without-extents", ["names no extents"], image=flat.encode())
    yield case("descriptor-line-of-1-mib", [], image=(flat + "RW 1 ZERO " + "x" * MIB + "\n").encode())
    yield case("descriptor-of-100000-extents", ["more than"], image=(flat + "RW 1 ZERO\n" * 100000).encode())
    yield case("descriptor-of-500-sparse-extents", [], image=(flat + 'RW 8 SPARSE "part.vmdk"\n' * 500).encode(),
               **{"part.vmdk": made.sparse(8, {0: pattern(0)})[0]})
    yield case("descriptor-of-2-mib", [], image=(flat + "# nothing\n" * 200000 + "RW 1 ZERO\n").encode())
    yield case("descriptor-of-noise", [], image=flat.encode() + bytes(range(256)) * 64)
    yield case("descriptor-with-zeroes", [], image=flat.encode() + b"\0RW 1 FLAT \"/etc/passwd\" 0\n")
    yield case("descriptor-with-escapes", ["top.vmdk"], image=(flat + 'RW 1 FLAT "\x1b[2J\r" 0\n').encode())


def parents():
    child = HEAD % (2, 1, "custom") + 'parentFileNameHint="%s"\nRW 1 ZERO\n'
    for name, hint, word in (("absolute", "/etc/passwd", "top.vmdk"), ("above", "../../../etc/passwd", "lies outside"),
                             ("url", "http://127.0.0.1/x", "http"), ("json", "json:{}", "json:"), ("itself", "top.vmdk", "loop"),
                             ("no-vmdk", "part", "top.vmdk")):
        yield case("parent-" + name, [word], image=(child % hint).encode(), at="chain", **{"part": bytes(1024)})


def cases():
    for group in (headers, tables, streams, descriptors, parents):
        yield from group()
