"""Hostile qcow2 images: with an external data file, and with subclusters."""
import struct

from case import Case, patched
from cases_qcow2 import (AUTOCLEAR, CLUSTER, CLUSTER_BITS, COMPRESSED, COPIED, DISK, EXTENSIONS, IMAGE, INCOMPATIBLE, L2,
                         NAME_AT, PACKED, SNAPSHOT_COUNT, bitmaps_extension, compressed_entry, extension)

DATA_FILE, EXTENDED = 4, 16


def names(name):
    return (EXTENSIONS, extension(0x44415441, name) + bitmaps_extension() + bytes(8))


# Clusters 0 and 1 of the disk are in the data file, at their own offsets.
EXTERNAL = patched(IMAGE, (INCOMPATIBLE, ">Q", DATA_FILE), (SNAPSHOT_COUNT, ">I", 0), names(b"data.raw"),
                   (L2, ">QQ", COPIED, CLUSTER | COPIED))


def external(name, words, *changes, at=None, data=bytes(DISK)):
    files = {} if data is None else {"data.raw": data}
    return Case("qcow2-data-file-" + name, {"top.qcow2": patched(EXTERNAL, *changes), **files}, *words, at=at)


def data_files():
    yield external("without-name", ["no header extension names it"], (EXTENSIONS, bitmaps_extension() + bytes(64)))
    for name, text, word in (
            ("empty", b"", "the name has 0 bytes"), ("of-1024-bytes", b"n" * 1024, "the name has 1024 bytes"),
            ("zero-byte", b"data\0raw", "none of them zero"), ("absolute", b"/etc/passwd", "--allow-path"),
            ("above", b"../../../../../../etc/passwd", "--allow-path"), ("device", b"/dev/zero", "--allow-path"),
            ("json", b'json:{"driver":"file","filename":"/etc/passwd"}', "json:"),
            ("nbd", b"nbd://127.0.0.1:1/x", "nbd:"), ("directory", b".", "data file"),
            ("missing", b"gone.raw", "gone.raw"), ("escapes", b"\x1b[2J\n\n", "data file")):
        yield external("name-" + name, [word], names(text))
    yield external("missing", ["data.raw"], data=None)
    yield external("is-the-image", [], names(b"top.qcow2"))
    yield external("and-snapshots", ["nb_snapshots is 1"], (SNAPSHOT_COUNT, ">I", 1))
    yield external("raw-and-backing", ["raw data file"], (AUTOCLEAR, ">Q", 2), (NAME_AT, ">QI", 512, 8),
                   (512, b"base.raw"))
    yield external("autoclear-unknown", [], (AUTOCLEAR, ">Q", (1 << 64) - 4))
    yield external("raw-without-the-bit", [], (INCOMPATIBLE, ">Q", 0), (AUTOCLEAR, ">Q", 2))
    yield external("raw-not-mapped", [], (AUTOCLEAR, ">Q", 2))
    yield external("empty", ["behind the end"], data=b"", at="read")
    yield external("short", ["behind the end"], data=bytes(CLUSTER), at="read")
    entry = L2 + 8
    for name, word in (("elsewhere", 2 * CLUSTER | COPIED), ("at-0", COPIED), ("unaligned", CLUSTER + 512 | COPIED),
                       ("far", (1 << 56) - CLUSTER), ("zero-elsewhere", 3 * CLUSTER | 1),
                       ("compressed", compressed_entry(PACKED, 0)), ("reserved-bits", CLUSTER | COPIED | 1 << 57)):
        yield external("entry-" + name, ["L2 entry"], (entry, ">Q", word), at="read")
    yield external("entry-not-copied", [], (entry, ">Q", CLUSTER))


# Six clusters of 16 KiB: header, refcount table, refcount block, L1, L2, data; the first subcluster is data.
BITS = 14
BIG = 1 << BITS
PARTS_L2, PARTS_DATA = 4 * BIG, 5 * BIG


def build_parts():
    image = bytearray(6 * BIG)
    struct.pack_into(">4sIQIIQIIQQIIQ", image, 0, b"QFI\xfb", 3, 0, 0, BITS, 4 * BIG, 0, 1, 3 * BIG, BIG, 1, 0, 0)
    struct.pack_into(">QQQIIB", image, 72, EXTENDED, 0, 0, 4, 112, 0)
    struct.pack_into(">Q", image, BIG, 2 * BIG)
    struct.pack_into(">6H", image, 2 * BIG, *[1] * 6)
    struct.pack_into(">Q", image, 3 * BIG, PARTS_L2 | COPIED)
    struct.pack_into(">QQ", image, PARTS_L2, PARTS_DATA | COPIED, 1)
    image[PARTS_DATA:] = b"subcluster data!" * (BIG // 16)
    return bytes(image)


PARTS = build_parts()


def subclusters():
    def parts(name, words, *changes, at="read"):
        return Case("qcow2-extended-" + name, {"top.qcow2": patched(PARTS, *changes)}, *words, at=at if words else None)

    yield parts("cluster-bits-13", ["cluster_bits is 13: must be 14"], (CLUSTER_BITS, ">I", 13), at="open")
    word = PARTS_DATA | COPIED
    for name, entry, bitmap in (
            ("both", word, 1 << 32 | 1), ("all-both", word, (1 << 64) - 1), ("allocated-nowhere", 0, 1),
            ("zero-flag", word | 1, 1), ("zero-flag-nowhere", 1, 0), ("unaligned", word | 1 << 13, 1),
            ("compressed-with-bitmap", COMPRESSED | PARTS_DATA, 1)):
        yield parts("entry-" + name, ["L2 entry"], (PARTS_L2, ">QQ", entry, bitmap))
    yield parts("entry-behind-end", ["behind the end"], (PARTS_L2, ">QQ", 6 * BIG | COPIED, 1))
    yield parts("l2-is-data", ["L2 entry"], (3 * BIG, ">Q", PARTS_DATA))
    for name, entry, bitmap in (("place-without-parts", word, 0), ("on-its-l2", PARTS_L2 | COPIED, 1),
                                ("not-copied", PARTS_DATA, 1), ("zero-with-place-behind-end", 9 * BIG, 0xFF << 32)):
        yield parts(name, [], (PARTS_L2, ">QQ", entry, bitmap))
    yield parts("disk-of-2-62", ["size is"], (24, ">Q", 1 << 62), at="open")


def cases():
    yield from data_files()
    yield from subclusters()
