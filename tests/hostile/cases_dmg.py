"""Hostile dmg images: chunks of a few sectors, and their property list."""
import base64
import bz2
import lzma
import struct
import zlib

import dmg
from case import MIB, Case, patched, with_holes

SECTOR = 512
ALL, FAR = (1 << 64) - 1, 1 << 62
IMAGE = dmg.Dmg([[(dmg.ZLIB, 0, 7), (dmg.RAW, 1, 3), (dmg.ZERO, 2, 20), (dmg.BZIP2, 3, 64)], [(dmg.XZ, 4, 33), (dmg.ADC, 6, 5)]]).image
TRAILER = -512
VERSION, HEADER_SIZE, FORK_AT, FORK_SIZE, LIST_AT, LIST_SIZE, SECTORS = (TRAILER + n for n in (4, 8, 24, 32, 216, 224, 492))


def case(name, words, *changes, at=None, size=None, image=IMAGE):
    content = patched(image, *changes)
    if size is not None:
        content = content[:size]
    return Case("dmg-" + name, {"top.dmg": content}, *words, at=at)


def table(rows, count=None, first=0, offset=0, magic=b"mish", version=1):
    """rows: (type, first sector, sectors, place, bytes stored)."""
    head = struct.pack(">4sIQQQII24x136xI", magic, version, first, sum(row[2] for row in rows) % (1 << 64), offset, 0, 0,
                       len(rows) if count is None else count)
    return head + b"".join(struct.pack(">IIQQQQ", kind, 0, *row) for kind, *row in rows)


def image(lists, body=b"", sectors=64, text=None):
    text = dmg.Dmg.plist(lists) if text is None else text
    trailer = struct.pack(">4sIIIQQQQQII16s136xQQ120x136xIQ12x", b"koly", 4, 512, 1, 0, 0, len(body), 0, 0, 1, 1, bytes(16),
                          len(body), len(text), 1, sectors)
    return body + text + trailer


def of_rows(name, words, rows, body=bytes(4096), **how):
    keep = {key: how.pop(key) for key in ("sectors",) if key in how}
    return Case("dmg-" + name, {"top.dmg": image([table(rows, **how)], body, **keep)}, *words)


def lzfse_blocks():
    """Streams that say more than they have, and those that would never end or make nothing."""
    empty = bytes(20 + 20 + 64 + 256)  # all frequencies 0, in 90 bytes
    streams = {
        "plain-all": struct.pack("<4sI", b"bvx-", 0xFFFFFFFF),
        "plain-of-0-bytes": struct.pack("<4sI", b"bvx-", 0) * 10000 + b"bvx$",
        "lzvn-cut-head": b"bvxn" + bytes(4),
        "lzvn-payload-all": struct.pack("<4s2I", b"bvxn", 4096, 0xFFFFFFFF),
        "lzvn-far-back": struct.pack("<4s2I", b"bvxn", 4096, 64) + b"\x07\xff\xff" + bytes(64),
        "lzvn-nothing": struct.pack("<4s2I", b"bvxn", 4096, 1 << 20) + b"\x0e" * (1 << 20),
        "rows-of-nothing": (struct.pack("<4sI3Q", b"bvx2", 1, 0xFFFFF << 40 | 7 << 60, 7 << 60, 32 + 90) + empty[:90]) * 1000,
        "head-all": struct.pack("<4sI3Q", b"bvx2", 4096, 2**64 - 1, 2**64 - 1, 2**64 - 1) + bytes(4096),
        "head-of-0-bytes": struct.pack("<4sI3Q", b"bvx2", 4096, 0, 0, 0),
        "states-all": struct.pack("<4sI3Q", b"bvx2", 4096, 8, 2**40 - 1, 32 + 90 | 0xFFFFFFFF << 32) + bytes(4096),
        "frequencies-all": struct.pack("<4sI3Q", b"bvx2", 4096, 8, 0, 32 + 640) + b"\xff" * 4096,
        "numbers-all": struct.pack("<4sI", b"bvx1", 4096) + b"\xff" * 4096,
        "numbers-cut": struct.pack("<4sI", b"bvx1", 4096) + bytes(700),
        "numbers-of-0": struct.pack("<4s4I", b"bvx1", 4096, 0, 0, 0xFFFFFFFF) + bytes(4096),
        "no-end": struct.pack("<4sI", b"bvx-", 4096) + bytes(4096),
    }
    for name, stream in streams.items():
        yield of_rows("lzfse-" + name, [], [(dmg.LZFSE, 0, 8, 0, len(stream))], stream)


def chunks():
    bomb = zlib.compress(bytes(64 * MIB), 9)
    for name, kind, data in (("zlib", dmg.ZLIB, bomb), ("bzip2", dmg.BZIP2, bz2.compress(bytes(16 * MIB))),
                             ("xz", dmg.XZ, lzma.compress(bytes(64 * MIB)))):
        yield of_rows("bomb-" + name, [], [(kind, 0, 8, 0, len(data))], data)
        yield of_rows("cut-" + name, [], [(kind, 0, 64, 0, len(data) // 2)], data)
        yield of_rows("short-" + name, [], [(kind, 0, 100000, 0, len(data))], data, sectors=100000)
    for name, kind in (("zlib", dmg.ZLIB), ("bzip2", dmg.BZIP2), ("xz", dmg.XZ), ("adc", dmg.ADC),
                       ("lzfse", dmg.LZFSE)):
        yield of_rows("noise-" + name, [], [(kind, 0, 8, 0, 4096)], bytes(range(256)) * 16)
        yield of_rows("zeroes-" + name, [], [(kind, 0, 8, 0, 4096)])
        yield of_rows("stored-0-" + name, ["compressed chunk"], [(kind, 0, 8, 0, 0)])
        yield of_rows("stored-all-" + name, ["a chunk has"], [(kind, 0, 8, 0, ALL)])
        yield of_rows("stored-behind-end-" + name, ["a chunk has"], [(kind, 0, 8, 1 << 20, 100)])
        yield of_rows("huge-" + name, ["compressed chunk"], [(kind, 0, 1 << 18, 0, 100)], sectors=1 << 18)
    yield of_rows("adc-far-back", [], [(dmg.ADC, 0, 8, 0, 3)], b"\x7f\xff\xff" + bytes(64))
    yield of_rows("lzma-hungry", [], [(dmg.XZ, 0, 8, 0, 100)], lzma.compress(bytes(100), preset=9 | lzma.PRESET_EXTREME).ljust(100, b"\0"))
    yield of_rows("raw-longer-than-stored", ["a raw chunk"], [(dmg.RAW, 0, 8, 0, 512)])
    yield of_rows("raw-overlapping", [], [(dmg.RAW, 0, 8, 0, 4096), (dmg.RAW, 4, 8, 0, 4096)])
    yield of_rows("raw-backwards", [], [(dmg.RAW, 8, 8, 0, 4096), (dmg.RAW, 0, 8, 0, 4096)])
    yield from lzfse_blocks()
    yield of_rows("type-unknown", ["0x12345678"], [(0x12345678, 0, 8, 0, 4096)])
    for name, first, count in (("first-wraps", ALL, 8), ("count-wraps", 8, ALL), ("beyond-2-63", FAR, FAR)):
        yield of_rows("sector-" + name, ["2^63"], [(dmg.RAW, first, count, 0, 4096)])
        yield of_rows("zero-sector-" + name, ["2^63"], [(dmg.ZERO, first, count, 0, 0)])
    yield of_rows("table-first-wraps", ["2^63"], [(dmg.RAW, 8, 8, 0, 4096)], first=ALL)
    yield of_rows("table-offset-all", [], [(dmg.RAW, 0, 8, 0, 4096)], offset=ALL)
    yield of_rows("30000-chunks", [], [(dmg.RAW, n, 1, 0, 512) for n in range(30000)], sectors=30000)
    yield of_rows("disk-of-2-53-sectors", [], [(dmg.ZERO, 0, 1 << 53, 0, 0)], sectors=1 << 53)


def lists():
    row = (dmg.RAW, 0, 8, 0, 4096)
    for name, words, data in (("of-0-bytes", ["mish"], b""), ("of-10-bytes", ["mish"], b"mish\0\0\0\1ab"),
                              ("magic", ["mish"], table([row], magic=b"hsim")), ("version-2", ["mish"], table([row], version=2)),
                              ("count-all", ["chunks"], table([row], count=0xFFFFFFFF)), ("count-2", ["chunks"], table([row], count=2))):
        yield Case("dmg-table-" + name, {"top.dmg": image([data], bytes(4096))}, *words)
    encoded = base64.b64encode(table([row]))
    good = dmg.Dmg.plist([table([row])])
    texts = [
        ("empty", ["property list"], b""), ("no-xml", ["property list"], b"bplist00 and more"), ("zeroes", ["property list"], bytes(400)),
        ("cut", ["property list"], good[:len(good) // 2]), ("no-tables", ["blkx"], b"<plist><dict></dict></plist>"),
        ("not-utf-8", ["property list"], good.replace(b"Attributes", b"Attr\xff\xfetes")),
        ("no-base64", [], good.replace(b"Data</key>\n\t\t\t\t<data>", b"Data</key>\n\t\t\t\t<data>!!!", 1)),
        ("entities", [], b'<!DOCTYPE x [<!ENTITY a "' + b"a" * 1000 + b'">' +
         b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 50) for n in range(8)) + b"]><plist>&i;</plist>"),
        ("deep", [], b"<array>" * 50000 + b"</array>" * 50000),
        ("many-keys", [], b"<plist>" + b"<key>blkx</key>" * 50000 + b"</plist>"),
        ("3000-tables", [], b"<plist><key>blkx</key><array>" +
         b"".join(b"<dict><key>Data</key><data>" + encoded + b"</data></dict>" for _ in range(3000)) + b"</array></plist>"),
    ]
    for name, words, text in texts:
        yield Case("dmg-list-" + name, {"top.dmg": image([], bytes(4096), text=text)}, *words)


def cases():
    fields = [
        ("version-0", "version is 0", VERSION, ">I", 0), ("version-5", "version is 5", VERSION, ">I", 5),
        ("header-size-0", "header size is 0", HEADER_SIZE, ">I", 0), ("header-size-all", "header size", HEADER_SIZE, ">I", 0xFFFFFFFF),
        ("list-behind-end", "property list", LIST_AT, ">Q", len(IMAGE)), ("list-wraps", "property list", LIST_AT, ">Q", ALL),
        ("list-size-0", "property list", LIST_SIZE, ">Q", 0), ("list-size-all", "property list", LIST_SIZE, ">Q", ALL),
        ("list-size-2-31", "property list", LIST_SIZE, ">Q", 1 << 31),
        ("sectors-all", "sectors", SECTORS, ">Q", ALL), ("sectors-2-55", "sectors", SECTORS, ">Q", 1 << 55),
    ]
    for name, word, *change in fields:
        yield case(name, [word], tuple(change))
    for name, change in (("fork-all", (FORK_AT, ">Q", ALL)), ("fork-behind-end", (FORK_AT, ">Q", len(IMAGE))),
                         ("fork-size-all", (FORK_SIZE, ">Q", ALL)), ("sectors-0", (SECTORS, ">Q", 0)),
                         ("sectors-1", (SECTORS, ">Q", 1)), ("no-magic", (TRAILER, b"ylok"))):
        yield case(name, [], change)
    for size in (0, 4, 511, 512, len(IMAGE) - 1):
        yield case("cut-at-%d" % size, [], size=size)
    yield Case("dmg-only-a-trailer", {"top.dmg": IMAGE[-512:]})
    yield Case("dmg-in-a-hole", {"top.dmg": with_holes(IMAGE, 64 * MIB)})
    yield from chunks()
    yield from lists()
