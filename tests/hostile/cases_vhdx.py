"""Hostile vhdx images: blocks of 1 MiB. Checksums are right, so that what follows them is looked at."""
import struct

from case import MIB, Case, patched
from vhdx_model import DATA, LOG, METADATA, PAGE, PRESENT, TABLE, Disk, guid, log_entry, number_guid, with_crc

DISK = 4 * MIB
HEADERS, REGIONS = (65536, 131072), (196608, 262144)
# Of a header, of a region table, of the metadata table; entries have 32 bytes.
SEQUENCE, LOG_GUID, LOG_VERSION, VERSION, LOG_LENGTH, LOG_AT = 8, 48, 64, 66, 68, 72
REGION_COUNT, REGION_TABLE, REGION_METADATA = 8, 16, 48
ITEM_COUNT, PARAMETERS, DISK_SIZE, DISK_ID, SECTOR_SIZE, PHYSICAL = 10, 32, 64, 96, 128, 160
LOCATOR = 192
VALUES = METADATA + 65536
ALL64 = (1 << 64) - 1


def disk(**how):
    return Disk(DISK, {1: {n: n for n in range(0, 2048, 64)}}, **how)


IMAGE = disk().build()
CHILD = disk(me=2, parent=1, name="base.vhdx").build()


def signed(image, places):
    image = bytearray(image)
    for start, length in places:
        image[start:start + length] = with_crc(bytes(image[start:start + length]))
    return bytes(image)


def case(name, words, *changes, at=None, size=None, image=IMAGE, **files):
    content = patched(image, *changes)
    if size is not None:
        content = content[:size] if size < len(content) else content + bytes(size - len(content))
    return Case("vhdx-" + name, {"top.vhdx": content, **files}, *words, at=at)


def header_case(name, words, *changes, image=IMAGE, sign=True, **how):
    """The same changes in both headers."""
    content = patched(image, *[(start + offset, *what) for start in HEADERS for offset, *what in changes])
    content = signed(content, [(start, PAGE) for start in HEADERS]) if sign else content
    return case("header-" + name, words, image=content, **how)


def region_case(name, words, *changes, sign=True):
    """The same in both region tables: one of them is signed, the other is copied."""
    content = patched(IMAGE, *[(REGIONS[0] + offset, *what) for offset, *what in changes])
    content = signed(content, [(REGIONS[0], 65536)]) if sign else content
    content = patched(content, (REGIONS[1], content[REGIONS[0]:REGIONS[0] + 65536]))
    return case("region-" + name, words, image=content)


def headers():
    yield header_case("version-0", ["version is 0"], (VERSION, "<H", 0))
    yield header_case("version-2", ["version is 2"], (VERSION, "<H", 2))
    yield header_case("log-version-1", ["version of the log is 1"], (LOG_VERSION, "<H", 1))
    for name, length in (("0", 0), ("odd", MIB + 1), ("all", 0xFFFFFFFF), ("65-mib", 65 * MIB)):
        yield header_case("log-length-" + name, ["length of the log is %d" % length], (LOG_LENGTH, "<I", length))
    for name, at in (("0", 0), ("in-headers", 65536), ("odd", MIB + 512), ("behind-end", 1 << 40), ("wraps", ALL64 - MIB + 1),
                     ("on-metadata", METADATA), ("on-table", TABLE)):
        yield header_case("log-at-" + name, ["offset of the"], (LOG_AT, "<Q", at))
    yield header_case("checksums", ["checksum of the header"], (4, "<I", 1), sign=False)
    yield header_case("signatures", ["no header"], (0, b"tail"), sign=False)
    yield header_case("sequence-all", [], (SEQUENCE, "<Q", ALL64))
    for size in (8, 65536, 65540, 131072, 196608, 262144 + 9, MIB, METADATA + 100, TABLE + 4):
        yield case("cut-at-%d" % size, [], size=size)


def regions():
    yield region_case("count-2048", ["entry count of the region table is 2048"], (REGION_COUNT, "<I", 2048))
    yield region_case("count-all", ["entry count of the region table"], (REGION_COUNT, "<I", 0xFFFFFFFF))
    yield region_case("count-0", ["has no block allocation table"], (REGION_COUNT, "<I", 0))
    yield region_case("count-1", ["has no metadata region"], (REGION_COUNT, "<I", 1))
    yield region_case("checksums", ["region tables"], (4, "<I", 1), sign=False)
    yield region_case("required-unknown", ["needs a region"], (REGION_TABLE, number_guid(99)))
    for what, entry, word in (("table", REGION_TABLE, "block allocation table"), ("metadata", REGION_METADATA, "metadata region")):
        for name, offset, form, value in (
                ("at-0", 16, "<Q", 0), ("at-odd", 16, "<Q", TABLE + 512), ("in-headers", 16, "<Q", 65536),
                ("behind-end", 16, "<Q", 1 << 40), ("wraps", 16, "<Q", ALL64 - MIB + 1), ("on-log", 16, "<Q", LOG),
                ("length-0", 24, "<I", 0), ("length-odd", 24, "<I", MIB - 1), ("length-all", 24, "<I", 0xFFF00000)):
            yield region_case(what + "-" + name, ["offset of the " + word], (entry + offset, form, value))
    yield region_case("tables-overlap", ["lies on what is at"], (REGION_METADATA + 16, "<Q", TABLE))
    yield region_case("table-twice", ["lies on what is at"], (REGION_METADATA, guid("2dc27766-f623-4200-9d64-115e9bfd4a08")),
                      (REGION_METADATA + 16, "<Q", TABLE))


def metadata():
    for name, changes, words in (
            ("signature", [(0, b"metadatb")], ["signature of the metadata"]),
            ("count-2048", [(ITEM_COUNT, "<H", 2048)], ["entry count of the metadata is 2048"]),
            ("count-all", [(ITEM_COUNT, "<H", 0xFFFF)], ["entry count of the metadata"]),
            ("count-0", [(ITEM_COUNT, "<H", 0)], ["the metadata have no"]),
            ("required-unknown", [(DISK_ID, number_guid(98)), (DISK_ID + 24, "<I", 4)], ["needs metadata"])):
        yield case("metadata-" + name, words, *[(METADATA + offset, *what) for offset, *what in changes])
    for what, entry in (("parameters", PARAMETERS), ("disk-size", DISK_SIZE), ("sector-size", SECTOR_SIZE), ("disk-id", DISK_ID)):
        for name, offset, value in (("in-table", 16, 100), ("behind-region", 16, MIB), ("wraps", 16, 0xFFFFFFFE),
                                    ("length-0", 20, 0), ("length-all", 20, 0xFFFFFFFF)):
            yield case("item-%s-%s" % (what, name), ["of the metadata"], (METADATA + entry + offset, "<I", value))
    for name, offset, form, value, word in (
            ("block-size-0", 0, "<I", 0, "block size is 0"), ("block-size-odd", 0, "<I", 3 * MIB, "block size is 3145728"),
            ("block-size-512-kib", 0, "<I", MIB // 2, "block size"), ("block-size-512-mib", 0, "<I", 512 * MIB, "block size"),
            ("disk-size-odd", 8, "<Q", 511, "virtual disk size is 511"), ("disk-size-all", 8, "<Q", ALL64 - 511, "virtual disk size"),
            ("disk-size-65-tib", 8, "<Q", 65 << 40, "virtual disk size"),
            ("disk-size-above-table", 8, "<Q", 1 << 40, "length of the block allocation table"),
            ("sector-size-0", 32, "<I", 0, "logical sector size is 0"), ("sector-size-1024", 32, "<I", 1024, "sector size is 1024"),
            ("sector-size-all", 32, "<I", 0xFFFFFFFF, "logical sector size")):
        yield case("value-" + name, [word], (VALUES + offset, form, value))


def tables():
    for state in (4, 5):
        yield case("entry-state-%d" % state, [], (TABLE + 8, "<Q", 4 * MIB | state))
    for name, entry in (("behind-end", 1 << 40 | PRESENT), ("wraps", ALL64 - MIB + 1 | PRESENT), ("at-0", PRESENT),
                        ("on-log", LOG | PRESENT), ("on-table", TABLE | PRESENT), ("on-metadata", METADATA | PRESENT),
                        ("in-headers", MIB // 2 | PRESENT), ("reserved-bits", DATA | PRESENT | 0xFFFF8),
                        ("partial-without-parent", DATA | 7), ("all", ALL64)):
        yield case("entry-" + name, [], (TABLE + 8, "<Q", entry))
    yield case("entries-all-one-block", [], (TABLE, struct.pack("<4Q", *[DATA | PRESENT] * 4)))
    bits = 4096 * 8 + TABLE
    for name, entry in (("behind-end", 1 << 40 | PRESENT), ("on-log", LOG | PRESENT), ("none", 0), ("state-7", DATA | 7),
                        ("on-a-block", DATA + MIB | PRESENT)):
        yield case("bits-entry-" + name, [], (bits, "<Q", entry), image=CHILD, at="any", **{"base.vhdx": IMAGE})


def logged(entries, log_guid=5, length=MIB, at=LOG):
    """The image with a log of these bytes."""
    content = patched(IMAGE, *[(start + LOG_GUID, number_guid(log_guid)) for start in HEADERS], (at, entries[:length]))
    return signed(content, [(start, PAGE) for start in HEADERS])


def logs():
    page = bytes(range(256)) * 16
    size = len(IMAGE)

    def entry(tail=0, sequence=7, number=5, flushed=size, last=size, **what):
        return log_entry(tail, sequence, number, flushed, last, **(what or {"pages": [(TABLE, page)]}))

    good = entry()
    damaged = [("torn", patched(good, (PAGE + 100, b"?"))), ("without-checksum", patched(good, (4, "<I", 0))),
               ("of-another", entry(number=6)), ("sequence-0", entry(sequence=0)),
               ("tail-behind-log", entry(tail=2 * MIB)), ("tail-odd", entry(tail=77)), ("tail-of-nothing", entry(tail=16 * PAGE)),
               ("length-0", with_crc(patched(good, (8, "<I", 0)))), ("length-all", with_crc(patched(good, (8, "<I", 0xFFFFF000)))),
               ("length-odd", with_crc(patched(good, (8, "<I", 4097)))),
               ("descriptors-all", with_crc(patched(good, (24, "<I", 0xFFFFFFFF)))),
               ("descriptors-overflow", with_crc(patched(good, (24, "<I", 0x08000000)))),
               ("descriptor-of-nothing", with_crc(patched(good, (64, b"none")))),
               ("descriptor-of-another-sequence", with_crc(patched(good, (64 + 24, "<Q", 9)))),
               ("data-of-another-sequence", with_crc(patched(good, (PAGE + 4, "<I", 9)))), ("nothing", bytes(PAGE))]
    for name, data in damaged:
        yield case("log-" + name, ["log"], image=logged(data))
    writes = [("page-odd", entry(pages=[(TABLE + 512, page)])), ("page-far", entry(pages=[(1 << 62, page)])),
              ("page-wraps", entry(pages=[(ALL64 - PAGE + 1, page)])), ("page-on-header", entry(pages=[(HEADERS[0], page)])),
              ("page-on-log", entry(pages=[(LOG, page)])), ("zeroes-all", entry(zeroes=[(0, ALL64 - PAGE + 1)])),
              ("zeroes-wrap", entry(zeroes=[(ALL64 - PAGE + 1, 2 * PAGE)])), ("zeroes-on-all", entry(zeroes=[(0, size)])),
              ("zeroes-of-a-gib", entry(zeroes=[(8 * MIB, 1 << 30)])), ("zeroes-of-4-eib", entry(zeroes=[(MIB, 1 << 62)])),
              ("file-shorter-than-flushed", entry(flushed=1 << 40, last=1 << 40)), ("last-all", entry(last=ALL64)),
              ("last-below-flushed", entry(last=0)), ("pages-of-bat-from-noise", entry(pages=[(TABLE, b"\xff" * PAGE)])),
              ("many-zeroes", entry(zeroes=[(DATA, PAGE)] * 100))]
    for name, data in writes:
        yield case("log-" + name, [], image=logged(data))
    chain = b"".join(entry(sequence=7 + n, tail=0, pages=[(TABLE, page)]) for n in range(100))
    yield case("log-of-100-entries", [], image=logged(chain))
    ring = entry(sequence=8, tail=2 * PAGE) + entry(sequence=7, tail=0)
    yield case("log-loop", [], image=logged(ring))
    full = b"".join(entry(sequence=7 + n, tail=n * PAGE, zeroes=[(DATA, PAGE)]) for n in range(256))
    yield case("log-of-heads-only", [], image=logged(full))


def locators():
    """Of a parent."""
    locator_at = METADATA + 65536 + struct.unpack_from("<I", CHILD, METADATA + LOCATOR + 16)[0] - 65536
    for name, changes, words in (
            ("length-0", [(METADATA + LOCATOR + 20, "<I", 0)], ["parent locator"]),
            ("length-all", [(METADATA + LOCATOR + 20, "<I", 0xFFFFFFFF)], ["parent locator"]),
            ("behind-region", [(METADATA + LOCATOR + 16, "<I", MIB)], ["parent locator"]),
            ("type", [(locator_at, number_guid(97))], ["type of the parent locator"]),
            ("count-0", [(locator_at + 18, "<H", 0)], ["parent_linkage"]),
            ("key-behind-end", [(locator_at + 20, "<I", 0xFFFFFFF0)], ["parent_linkage"]),
            ("value-behind-end", [(locator_at + 24, "<I", 0xFFFFFFF0)], ["parent_linkage"]),
            ("value-length-all", [(locator_at + 30, "<H", 0xFFFF)], ["parent_linkage"])):
        yield case("locator-" + name, words, *changes, image=CHILD, **{"base.vhdx": IMAGE})
    yield case("locator-count-all", [], (locator_at + 18, "<H", 0xFFFF), image=CHILD, **{"base.vhdx": IMAGE})
    linkage = ("parent_linkage", "{%08x-0000-4000-8000-000000000000}" % 1)
    for name, path in (("absolute", "/etc/passwd"), ("above", "..\\..\\..\\etc\\passwd"), ("unc", "\\\\host\\share\\base.vhdx"),
                       ("device", "\\\\.\\PhysicalDrive0"), ("url", "http://127.0.0.1/x"), ("escapes", "\x1b[2J\n")):
        image = disk(me=2, parent=1, locator=[linkage, ("relative_path", path)]).build()
        yield case("parent-" + name, ["top.vhdx"], image=image, at="chain")
    image = disk(me=1, parent=1, name="top.vhdx").build()
    yield case("parent-is-itself", ["loop"], image=image, at="chain")


def cases():
    for group in (headers, regions, metadata, tables, logs, locators):
        yield from group()
