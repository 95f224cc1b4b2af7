"""Hostile vhd images: blocks of 16 KiB. Checksums are right, so that what follows them is looked at."""
import struct

from case import MIB, Case, patched, with_holes
from vhd_model import BLOCK, SECTOR, Disk, checksum, locator_macx, locator_w2ku, locator_w2ru

# Of the footer, and of the header behind its copy.
VERSION, DATA_AT, CREATOR, CURRENT, GEOMETRY, TYPE, UUID = 12, 16, 28, 48, 56, 60, 68
COOKIE, TABLE_AT, HEADER_VERSION, ENTRIES, BLOCK_SIZE, PARENT, LOCATORS = 0, 16, 24, 28, 32, 40, 576
TABLE = 3 * SECTOR


def disk():
    made = Disk(4 * BLOCK)
    made.block(1, {n: n for n in range(32)})
    made.block(3, {n: n for n in range(0, 32, 2)}, rubbish=True)
    return made


IMAGE = disk().build()


def signed(image):
    """With the right checksums at its start and end."""
    image = bytearray(image)
    places = [(0, 64, 512), (SECTOR, 36, 1024)] + ([(len(image) - 512, 64, 512)] if len(image) >= 2560 else [])
    for start, at, length in places:
        struct.pack_into(">I", image, start + at, checksum(image[start:start + length], at))
    return bytes(image)


def footer(offset, *what):
    """The same change in both of them."""
    return (offset, *what), (offset - SECTOR, *what)


def case(name, words, *changes, at=None, size=None, image=IMAGE, sign=True, **files):
    content = patched(image, *changes)
    content = signed(content) if sign else content
    if size is not None:
        content = with_holes(content, size) if size > len(content) else content[:size]
    return Case("vhd-" + name, {"top.vhd": content, **files}, *words, at=at)


def footers():
    fields = [("version-2", "version of the footer is 2.0", VERSION, ">I", 0x20000), ("type-0", "type is 0", TYPE, ">I", 0),
              ("type-5", "type is 5", TYPE, ">I", 5), ("type-all", "type is 4294967295", TYPE, ">I", 0xFFFFFFFF),
              ("size-odd", "current size is 511", CURRENT, ">Q", 511),
              ("size-all", "current size is", CURRENT, ">Q", (1 << 64) - 512),
              ("size-2-62", "max_table_entries", CURRENT, ">Q", 1 << 62),
              ("size-one-more-sector", "max_table_entries is 4", CURRENT, ">Q", 4 * BLOCK + 512),
              ("header-at-0", "data offset of the footer", DATA_AT, ">Q", 0),
              ("header-in-copy", "data offset of the footer", DATA_AT, ">Q", 511),
              ("header-behind-end", "data offset of the footer", DATA_AT, ">Q", len(IMAGE)),
              ("header-wraps", "data offset of the footer", DATA_AT, ">Q", (1 << 64) - 512),
              ("header-on-itself", "cookie of the dynamic header", DATA_AT, ">Q", len(IMAGE) - 1024)]
    for name, word, *change in fields:
        yield case("footer-" + name, [word], *footer(*change))
    yield case("fixed-longer-than-file", ["current size is"], *footer(TYPE, ">I", 2), *footer(CURRENT, ">Q", 1 << 40))
    yield case("no-footer-at-all", ["checksum of the footer"], (64, bytes(4)), (64 - SECTOR, bytes(4)), sign=False)
    yield case("footers-differ", [], (CURRENT, ">Q", 1 << 50))
    yield case("size-by-geometry-of-nothing", [], *footer(CREATOR, b"vpc "), *footer(GEOMETRY, bytes(4)))
    yield case("size-by-largest-geometry", [], *footer(CREATOR, b"vpc "), *footer(GEOMETRY, b"\xff" * 4))
    for size in (8, 511, 512, 513, 1024, 1535, 1536, 1540):
        yield case("cut-at-%d" % size, [], size=size)


def dynamic_headers():
    fields = [("cookie", "cookie of the dynamic header", COOKIE, b"cxsparsf"),
              ("version-2", "version of the dynamic header is 2.0", HEADER_VERSION, ">I", 0x20000),
              ("block-size-0", "block size is 0", BLOCK_SIZE, ">I", 0), ("block-size-511", "block size is 511", BLOCK_SIZE, ">I", 511),
              ("block-size-3-sectors", "block size is 1536", BLOCK_SIZE, ">I", 1536),
              ("block-size-2-31", "block size is 2147483648", BLOCK_SIZE, ">I", 1 << 31),
              ("entries-0", "max_table_entries is 0", ENTRIES, ">I", 0),
              ("entries-too-few", "max_table_entries is 3", ENTRIES, ">I", 3),
              ("entries-times-4-overflows", "max_table_entries is 1073741825", ENTRIES, ">I", 0x40000001),
              ("entries-all", "max_table_entries is 4294967295", ENTRIES, ">I", 0xFFFFFFFF),
              ("entries-beyond-file", "table offset", ENTRIES, ">I", 1 << 20),
              ("table-0", "table offset is 0", TABLE_AT, ">Q", 0), ("table-in-header", "table offset is 1024", TABLE_AT, ">Q", 1024),
              ("table-unaligned", "table offset is 1537", TABLE_AT, ">Q", TABLE + 1),
              ("table-behind-end", "table offset", TABLE_AT, ">Q", 1 << 30),
              ("table-wraps", "table offset", TABLE_AT, ">Q", (1 << 64) - 512)]
    for name, word, offset, *what in fields:
        yield case("header-" + name, [word], (SECTOR + offset, *what))
    yield case("header-checksum", ["checksum of the dynamic header"], (SECTOR + 36, ">I", 1), sign=False)
    yield case("table-of-16-mib-in-a-hole", [], (SECTOR + ENTRIES, ">I", 4 * MIB), (SECTOR + TABLE_AT, ">Q", MIB),
               size=64 * MIB)


def blocks():
    for name, entry in (("behind-end", 0x1000), ("in-copy", 0), ("in-header", 1), ("in-table", 3), ("largest", 0xFFFFFFFE),
                        ("on-another", 5), ("footer", len(IMAGE) // SECTOR - 1)):
        yield case("entry-" + name, [], (TABLE + 4, ">I", entry))
    yield case("entries-all-one-block", [], (TABLE, struct.pack(">I", 4) * 4))
    batmap = Disk(4 * BLOCK, batmap=True)
    batmap.block(0, {n: n for n in range(32)})
    image = batmap.build()
    head = image.index(b"tdbatmap")
    for name, offset, what, value, word in (
            ("size-all", 16, ">I", 0xFFFFFFFF, "size of the batmap"), ("wraps", 8, ">Q", (1 << 64) - 512, "offset of the batmap"),
            ("behind-end", 8, ">Q", 1 << 40, "offset of the batmap"), ("on-table", 8, ">Q", TABLE, "offset of the batmap"),
            ("on-its-header", 8, ">Q", head, "offset of the batmap")):
        yield case("batmap-" + name, [word], (head + offset, what, value), image=image)


def parents():
    for name, locators in (
            ("absolute", [locator_w2ku("C:\\..\\..\\etc\\passwd")]), ("above", [locator_w2ru("..\\..\\..\\etc\\passwd")]),
            ("url", [locator_macx("http://127.0.0.1/base.vhd")]), ("url-of-host", [locator_macx("file://host/etc/passwd")]),
            ("zero", [locator_w2ru("base\0.vhd")]), ("device", [locator_w2ru("\\\\.\\PhysicalDrive0")]),
            ("escapes", [locator_w2ru("\x1b[2J\n.vhd")]), ("of-surrogates", [(b"W2ru", b"\0\xd8" * 20, False)]),
            ("of-odd-length", [(b"W2ru", b"b\0a", False)]), ("json", [locator_w2ru("json:{\"file\":\"/etc/passwd\"}")])):
        child = Disk(4 * BLOCK, uuid=8, parent=7, locators=locators).build()
        yield case("parent-" + name, ["top.vhd"], image=child, at="chain")
    child = Disk(4 * BLOCK, uuid=8, parent=8, locators=[locator_w2ru("top.vhd")]).build()
    yield case("parent-is-itself", ["loop"], image=child, at="chain")
    at = child.index("top.vhd".encode("utf-16-le"))
    for name, offset, what, value in (("length-all", 8, ">I", 0xFFFFFFFF), ("length-0", 8, ">I", 0),
                                      ("behind-end", 16, ">Q", 1 << 40), ("wraps", 16, ">Q", (1 << 64) - 4),
                                      ("space-all", 4, ">I", 0xFFFFFFFF), ("in-footer", 16, ">Q", 0)):
        yield case("locator-" + name, ["top.vhd"], (SECTOR + LOCATORS + offset, what, value), (at, b"?"), image=child,
                   at="chain")


def cases():
    for group in (footers, dynamic_headers, blocks, parents):
        yield from group()
