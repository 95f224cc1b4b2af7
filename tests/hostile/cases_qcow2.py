"""Hostile qcow2 images: clusters of 4 KiB, a disk of 64 KiB, one of everything, then one thing wrong in each."""
import struct
import zlib

from case import MIB, Case, patched, with_holes

BITS = 12
CLUSTER = 1 << BITS
COPIED, COMPRESSED = 1 << 63, 1 << 62
TABLE, BLOCK, L1, L2, DATA, PACKED, SNAPSHOTS, OLD_L1, DIRECTORY, BITMAP = (n * CLUSTER for n in range(1, 11))
END = 11 * CLUSTER
DISK = 16 * CLUSTER
EXTENSIONS = 112
CHAIN_MOST = 500  # images

# Offsets of the header's fields.
VERSION, NAME_AT, NAME_SIZE, CLUSTER_BITS, SIZE, CRYPT, L1_SIZE, L1_AT = 4, 8, 16, 20, 24, 32, 36, 40
TABLE_AT, TABLE_CLUSTERS, SNAPSHOT_COUNT, SNAPSHOTS_AT = 48, 56, 60, 64
INCOMPATIBLE, AUTOCLEAR, ORDER, LENGTH, COMPRESSION = 72, 88, 96, 100, 104


def fill(number):
    return (b"cluster %05d " % number * 400)[:CLUSTER]


def deflate(content):
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(content) + packer.flush()


def compressed_entry(offset, sectors, bits=BITS):
    """sectors: how many more than the first."""
    return COMPRESSED | sectors << (62 - (bits - 8)) | offset


def snapshot(l1_at=OLD_L1, l1_size=1, name=b"old", extra=struct.pack(">QQ", 0, DISK), extra_size=None, ident=b"1"):
    head = struct.pack(">QIHHIIQII", l1_at, l1_size, len(ident), len(name), 0, 0, 0, 0,
                       len(extra) if extra_size is None else extra_size)
    entry = head + extra + ident + name
    return entry + bytes(-len(entry) % 8)


def bitmap_entry(table_at=BITMAP, table_size=1, flags=2, kind=1, granularity=16, name=b"changes", extra=0):
    entry = struct.pack(">QIIBBHI", table_at, table_size, flags, kind, granularity, len(name), extra) + name
    return entry + bytes(-len(entry) % 8)


def extension(kind, data, length=None):
    return struct.pack(">II", kind, len(data) if length is None else length) + data + bytes(-len(data) % 8)


def bitmaps_extension(count=1, size=len(bitmap_entry()), at=DIRECTORY):
    return extension(0x23852875, struct.pack(">IIQQ", count, 0, size, at))


def build():
    image = bytearray(END)
    struct.pack_into(">4sIQIIQIIQQIIQ", image, 0, b"QFI\xfb", 3, 0, 0, BITS, DISK, 0, 1, L1, TABLE, 1, 1, SNAPSHOTS)
    struct.pack_into(">QQQIIB", image, 72, 0, 0, 1, 4, 112, 0)
    head = bitmaps_extension()
    image[EXTENSIONS:EXTENSIONS + len(head)] = head
    struct.pack_into(">Q", image, TABLE, BLOCK)
    struct.pack_into(">11H", image, BLOCK, *[2 if n * CLUSTER in (L2, DATA) else 1 for n in range(11)])
    packed = deflate(fill(1))
    for table, at in ((L1, L2), (OLD_L1, L2)):
        struct.pack_into(">Q", image, table, at)
    struct.pack_into(">QQ", image, L2, DATA, compressed_entry(PACKED, (len(packed) - 1) // 512))
    image[DATA:DATA + CLUSTER] = fill(0)
    image[PACKED:PACKED + len(packed)] = packed
    for at, data in ((SNAPSHOTS, snapshot()), (DIRECTORY, bitmap_entry())):
        image[at:at + len(data)] = data
    struct.pack_into(">H", image, BLOCK + PACKED // CLUSTER * 2, 2)
    return bytes(image)


IMAGE = build()


def case(name, words, *changes, at=None, size=None, image=IMAGE, **files):
    content = patched(image, *changes)
    if size is not None:
        content = with_holes(content, size) if size > len(content) else content[:size]
    return Case("qcow2-" + name, {"top.qcow2": content, **files}, *words, at=at)


def headers():
    """Every field of the header at the borders of what it may be."""
    fields = [
        ("version-4", "version is 4", VERSION, ">I", 4),
        ("cluster-bits-8", "cluster_bits is 8", CLUSTER_BITS, ">I", 8),
        ("cluster-bits-22", "cluster_bits is 22", CLUSTER_BITS, ">I", 22),
        ("cluster-bits-64", "cluster_bits is 64", CLUSTER_BITS, ">I", 64),
        ("cluster-bits-all", "cluster_bits is 4294967295", CLUSTER_BITS, ">I", 0xFFFFFFFF),
        ("size-negative", "size is 18446744073709551615", SIZE, ">Q", (1 << 64) - 1),
        ("size-needs-huge-l1", "size is", SIZE, ">Q", 1 << 62),
        ("size-above-l1", "l1_size is 1", SIZE, ">Q", 2 * MIB + 512),
        ("crypt-method-3", "crypt_method is 3", CRYPT, ">I", 3),
        ("l1-size-0", "l1_size is 0", L1_SIZE, ">I", 0),
        ("l1-size-above-32-mib", "l1_size", L1_SIZE, ">I", (4 << 20) + 1),
        ("l1-size-times-8-overflows", "l1_size", L1_SIZE, ">I", 0x20000001),
        ("l1-size-all", "l1_size", L1_SIZE, ">I", 0xFFFFFFFF),
        ("l1-table-in-file-only-partly", "l1_table_offset", L1_SIZE, ">I", 0x100000),
        ("l1-offset-0", "l1_table_offset is 0", L1_AT, ">Q", 0),
        ("l1-offset-unaligned", "l1_table_offset", L1_AT, ">Q", L1 + 8),
        ("l1-offset-behind-end", "l1_table_offset", L1_AT, ">Q", END),
        ("l1-offset-2-63", "l1_table_offset", L1_AT, ">Q", 1 << 63),
        ("l1-offset-wraps", "l1_table_offset", L1_AT, ">Q", (1 << 64) - CLUSTER),
        ("l1-on-refcount-table", "l1_table_offset", L1_AT, ">Q", TABLE),
        ("refcount-table-offset-0", "refcount_table_offset is 0", TABLE_AT, ">Q", 0),
        ("refcount-table-unaligned", "refcount_table_offset", TABLE_AT, ">Q", TABLE + 512),
        ("refcount-table-behind-end", "refcount_table_offset", TABLE_AT, ">Q", END),
        ("refcount-table-wraps", "refcount_table_offset", TABLE_AT, ">Q", (1 << 64) - CLUSTER),
        ("refcount-table-clusters-0", "refcount_table_clusters is 0", TABLE_CLUSTERS, ">I", 0),
        ("refcount-table-above-8-mib", "refcount_table_clusters", TABLE_CLUSTERS, ">I", 2049),
        ("refcount-table-clusters-overflow", "refcount_table_clusters", TABLE_CLUSTERS, ">I", 0x00100001),
        ("refcount-table-clusters-all", "refcount_table_clusters", TABLE_CLUSTERS, ">I", 0xFFFFFFFF),
        ("refcount-order-7", "refcount_order is 7", ORDER, ">I", 7),
        ("refcount-order-32", "refcount_order is 32", ORDER, ">I", 32),
        ("refcount-order-all", "refcount_order is 4294967295", ORDER, ">I", 0xFFFFFFFF),
        ("header-length-0", "header_length is 0", LENGTH, ">I", 0),
        ("header-length-103", "header_length is 103", LENGTH, ">I", 103),
        ("header-length-105", "header_length is 105", LENGTH, ">I", 105),
        ("header-length-above-cluster", "header_length is 4104", LENGTH, ">I", CLUSTER + 8),
        ("header-length-all", "header_length", LENGTH, ">I", 0xFFFFFFF8),
        ("compression-type-2", "compression_type is 2", COMPRESSION, ">B", 2),
        ("compression-type-without-bit", "compression_type is 1", COMPRESSION, ">B", 1),
        ("compression-bit-without-type", "compression_type is 0", INCOMPATIBLE, ">Q", 8),
        ("incompatible-bit-5", "incompatible_features", INCOMPATIBLE, ">Q", 1 << 5),
        ("incompatible-bit-63", "incompatible_features", INCOMPATIBLE, ">Q", 1 << 63),
        ("snapshots-65537", "nb_snapshots is 65537", SNAPSHOT_COUNT, ">I", 65537),
        ("snapshots-all", "nb_snapshots", SNAPSHOT_COUNT, ">I", 0xFFFFFFFF),
        ("snapshots-offset-0", "snapshots_offset is 0", SNAPSHOTS_AT, ">Q", 0),
        ("snapshots-unaligned", "snapshots_offset", SNAPSHOTS_AT, ">Q", SNAPSHOTS + 4),
        ("snapshots-behind-end", "snapshots_offset", SNAPSHOTS_AT, ">Q", END),
        ("snapshots-wrap", "snapshots_offset", SNAPSHOTS_AT, ">Q", (1 << 64) - CLUSTER),
        ("backing-name-1024", "backing_file_size is 1024", NAME_AT, ">QI", 512, 1024),
        ("backing-name-all", "backing_file_size", NAME_AT, ">QI", 512, 0xFFFFFFFF),
        ("backing-name-above-cluster", "backing_file_size is 1000", NAME_AT, ">QI", CLUSTER - 999, 1000),
        ("backing-name-in-header", "backing_file_offset is 16", NAME_AT, ">QI", 16, 9),
        ("backing-name-behind-cluster", "backing_file_offset", NAME_AT, ">QI", CLUSTER + 1, 9),
        ("backing-name-wraps", "backing_file_offset", NAME_AT, ">QI", (1 << 64) - 4, 9),
    ]
    for name, word, *change in fields:
        yield case(name, [word], tuple(change))
    yield case("version-0", [], (VERSION, ">I", 0))
    yield case("crypt-method-aes", ["secret"], (CRYPT, ">I", 1), at="read")
    yield case("crypt-method-luks-without-header", [], (CRYPT, ">I", 2))
    for size in (5, 71, 72, 103, 104, 111, 512, CLUSTER, L1, L1 + 4):
        yield case("cut-at-%d" % size, [], size=size)


def extensions():
    long = [("length-all", 0xE2792ACA, 0xFFFFFFFF), ("length-above-cluster", 0x12345678, CLUSTER),
            ("length-wraps", 0x6803F857, 0xFFFFFFF9), ("data-file-name-above-cluster", 0x44415441, CLUSTER - 112)]
    for name, kind, length in long:
        yield case("extension-" + name, ["header extension 0x%08x" % kind, "length is %d" % length],
                   (EXTENSIONS, extension(kind, b"", length)))
    yield case("extensions-without-end", [], (EXTENSIONS, extension(0x77777777, b"") * ((CLUSTER - EXTENSIONS) // 8)))
    yield case("extension-backing-format-unknown", ["nonsense"], (EXTENSIONS, extension(0xE2792ACA, b"nonsense")),
               (NAME_AT, ">QI", 512, 8), (512, b"base.raw"), at="chain", **{"base.raw": bytes(CLUSTER)})
    yield case("extension-backing-format-of-3-kib", ["backing format"],
               (EXTENSIONS, extension(0xE2792ACA, b"f" * 3000)), (NAME_AT, ">QI", 3500, 8), (3500, b"base.raw"),
               at="chain", **{"base.raw": bytes(CLUSTER)})
    yield case("extension-feature-names-without-end", ["incompatible_features"], (INCOMPATIBLE, ">Q", 1 << 62),
               (EXTENSIONS, extension(0x6803F857, (b"\0\x3e" + b"\xff" * 46) * 60)))
    fields = [("count-0", "nb_bitmaps is 0", bitmaps_extension(count=0)),
              ("count-65536", "nb_bitmaps is 65536", bitmaps_extension(count=65536)),
              ("directory-unaligned", "bitmap_directory_offset", bitmaps_extension(at=DIRECTORY + 8)),
              ("directory-behind-end", "bitmap_directory_offset", bitmaps_extension(at=END)),
              ("directory-wraps", "bitmap_directory_offset", bitmaps_extension(at=(1 << 64) - CLUSTER)),
              ("directory-size-all", "bitmap_directory_size", bitmaps_extension(size=(1 << 64) - 1)),
              ("directory-size-above-64-mib", "bitmap_directory_size", bitmaps_extension(size=65 * MIB)),
              ("extension-of-8-bytes", "length is 8", extension(0x23852875, bytes(8)))]
    for name, word, data in fields:
        yield case("bitmaps-" + name, [word], (EXTENSIONS, data.ljust(40, b"\0")))


def bitmaps():
    """What is wrong inside a bitmap spoils the bitmap, not the disk."""
    entries = [("table-behind-end", bitmap_entry(table_at=END)), ("table-wraps", bitmap_entry(table_at=(1 << 64) - CLUSTER)),
               ("table-unaligned", bitmap_entry(table_at=BITMAP + 1)), ("table-size-all", bitmap_entry(table_size=0xFFFFFFFF)),
               ("granularity-64", bitmap_entry(granularity=64)), ("granularity-255", bitmap_entry(granularity=255)),
               ("granularity-0", bitmap_entry(granularity=0)), ("type-9", bitmap_entry(kind=9)),
               ("flags-unknown", bitmap_entry(flags=0xFFFFFFF8)), ("name-empty", bitmap_entry(name=b"")),
               ("name-of-1024", bitmap_entry(name=b"n" * 1024)), ("extra-data-all", bitmap_entry(extra=0xFFFFFFFF)),
               ("name-of-no-text", bitmap_entry(name=b"\xff\xfe\0\x80\x80\x80\x80"))]
    for name, entry in entries:
        yield case("bitmap-" + name, [], (DIRECTORY, entry), (EXTENSIONS, bitmaps_extension(size=len(entry))))
    yield case("bitmap-directory-shorter-than-entries", [], (EXTENSIONS, bitmaps_extension(count=9)))
    yield case("bitmap-same-name-twice", [], (DIRECTORY, bitmap_entry() * 2),
               (EXTENSIONS, bitmaps_extension(count=2, size=2 * len(bitmap_entry()))))
    for name, entry in (("header", 0), ("end", END), ("unaligned", DATA + 8), ("wraps", (1 << 56) - CLUSTER)):
        yield case("bitmap-table-points-to-" + name, [], (BITMAP, ">Q", entry | (1 if name == "header" else 0)))


def snapshots():
    entries = [("l1-behind-end", "l1_table_offset", snapshot(l1_at=END)),
               ("l1-unaligned", "l1_table_offset", snapshot(l1_at=OLD_L1 + 1)),
               ("l1-wraps", "l1_table_offset", snapshot(l1_at=(1 << 64) - CLUSTER)),
               ("l1-size-all", "l1_size is 4294967295", snapshot(l1_size=0xFFFFFFFF)),
               ("l1-size-above-32-mib", "l1_size is 4194305", snapshot(l1_size=(4 << 20) + 1)),
               ("extra-data-1025", "extra data size is 1025", snapshot(extra_size=1025)),
               ("extra-data-all", "extra data size is 4294967295", snapshot(extra_size=0xFFFFFFFF))]
    for name, word, entry in entries:
        yield case("snapshot-" + name, ["snapshot 0", word], (SNAPSHOTS, entry))
    yield case("snapshot-table-ends-with-file", ["snapshot 0", "inside the file"], (SNAPSHOTS_AT, ">Q", BITMAP),
               (BITMAP, snapshot(name=b"n" * 65535)[:CLUSTER]))
    yield case("snapshots-65536-in-a-hole", [], (SNAPSHOT_COUNT, ">I", 65536), (SNAPSHOTS_AT, ">Q", 16 * MIB),
               size=32 * MIB)
    for name, size in (("0", 0), ("all", (1 << 64) - 1), ("2-62", 1 << 62), ("odd", DISK - 7)):
        yield case("snapshot-disk-size-" + name, [], (SNAPSHOTS, snapshot(extra=struct.pack(">QQ", 0, size))))
    yield case("snapshot-is-active-l1", [], (SNAPSHOTS, snapshot(l1_at=L1)))
    yield case("snapshot-l1-is-its-own-table", [], (SNAPSHOTS, snapshot(l1_at=SNAPSHOTS)))
    yield case("snapshots-one-name", [], (SNAPSHOTS, snapshot() * 3), (SNAPSHOT_COUNT, ">I", 3))
    yield case("snapshot-names-no-text", [], (SNAPSHOTS, snapshot(name=b"\xff\0\x1b[2J", ident=b"\n\n")))


def tables():
    """L1, L2 and refcounts lead where they must not: found when they are read."""
    words = ["L1 entry 0"]
    for name, entry in (("header", 512), ("unaligned", L2 + 512), ("behind-end", END), ("far", (1 << 56) - CLUSTER),
                        ("reserved-bits", L2 | 1 << 60)):
        yield case("l1-entry-" + name, words, (L1, ">Q", entry), at="read")
    for name, table in (("itself", L1), ("refcount-block", BLOCK), ("refcount-table", TABLE), ("snapshots", SNAPSHOTS)):
        yield case("l1-entry-is-" + name, [], (L1, ">Q", table | COPIED))
    for name, word, entry in (
            ("behind-end", "behind the end", END), ("far", "behind the end", (1 << 56) - CLUSTER),
            ("on-header", "L2 entry", 512), ("unaligned", "L2 entry", DATA + 512),
            ("reserved-bits", "L2 entry", DATA | 1 << 57)):
        yield case("l2-entry-" + name, [word], (L2, ">Q", entry), at="read")
    for name, entry in (("on-l1", L1), ("on-refcount-table", TABLE), ("on-refcount-block", BLOCK), ("on-itself", L2),
                        ("on-snapshots", SNAPSHOTS), ("on-bitmaps", DIRECTORY), ("twice", DATA),
                        ("zero-and-compressed", COMPRESSED | 1), ("zero-with-offset-behind-end", END | 1)):
        yield case("l2-entry-" + name, [], (L2 + 16, ">Q", entry))
    for name, entry in (("0", 0), ("unaligned", BLOCK + 8), ("behind-end", END), ("itself", TABLE), ("l2", L2),
                        ("far", (1 << 63) - CLUSTER), ("reserved-bits", BLOCK | 1)):
        yield case("refcount-entry-" + name, [], (TABLE, ">Q", entry))
    yield case("refcount-table-all-one-block", [], (TABLE, struct.pack(">Q", BLOCK) * (CLUSTER // 8)))
    yield case("refcount-table-all-itself", [], (TABLE, struct.pack(">Q", TABLE) * (CLUSTER // 8)))
    yield case("refcounts-all", [], (BLOCK, b"\xff" * CLUSTER))
    yield case("refcounts-none", [], (BLOCK, bytes(CLUSTER)))
    yield case("l1-of-32-mib-in-a-hole", [], (L1_SIZE, ">I", 4 << 20), (L1_AT, ">Q", 16 * MIB), size=64 * MIB)
    yield case("refcount-table-of-8-mib-in-a-hole", [], (TABLE_CLUSTERS, ">I", 2048), (TABLE_AT, ">Q", 16 * MIB),
               size=64 * MIB)
    yield case("disk-of-8-tib-in-one-l2", [], (SIZE, ">Q", 8 << 40), (L1_SIZE, ">I", 4 << 20),
               (L1_AT, ">Q", 16 * MIB), size=64 * MIB)
    yield case("file-of-a-tebibyte", [], size=1 << 40)


def packed():
    """Compressed clusters."""
    descriptors = [("behind-end", compressed_entry(END, 0)), ("far", compressed_entry((1 << 58) - 512, 15)),
                   ("in-header", compressed_entry(4, 0)), ("longest", compressed_entry(PACKED, 15)),
                   ("last-sector-behind-end", compressed_entry(END - 100, 1)), ("copied", COPIED | compressed_entry(PACKED, 0)),
                   ("of-l2-itself", compressed_entry(L2, 7)), ("offset-inside-stream", compressed_entry(PACKED + 9, 0))]
    for name, entry in descriptors:
        yield case("compressed-" + name, [], (L2 + 8, ">Q", entry))
    streams = [("garbage", b"\xff" * 200), ("empty", bytes(8)), ("endless", deflate(bytes(64 * MIB))[:CLUSTER]),
               ("short", deflate(fill(1)[:100])), ("cut", deflate(fill(1))[:12]),
               ("longer-than-a-cluster", deflate(fill(1) * 2)), ("window", zlib.compress(fill(1), 9))]
    for name, data in streams:
        at = "read" if name in ("garbage", "short") else None
        yield case("stream-" + name, ["%d" % PACKED] if at else [], (L2 + 8, ">Q", compressed_entry(PACKED, 7)),
                   (PACKED, data.ljust(CLUSTER, b"\0")), at=at)
    zstd = [("garbage", b"\xff" * 200), ("no-frame", bytes(200)), ("magic-only", b"\x28\xb5\x2f\xfd"),
            ("frame-of-4-gib", b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 0xFFFFFFFF) + b"\x03\0\xff\xff"),
            ("window-of-2-gib", b"\x28\xb5\x2f\xfd\0\xb0" + b"\x01\0\0"), ("dictionary", b"\x28\xb5\x2f\xfd\x23" + b"\x77" * 20),
            ("runs", b"\x28\xb5\x2f\xfd\0\x58" + b"\x02\0\x08\0" * 100), ("skippable", b"\x50\x2a\x4d\x18\xf0\xff\xff\xff")]
    for name, data in zstd:
        yield case("zstd-" + name, [], (L2 + 8, ">Q", compressed_entry(PACKED, 7)), (INCOMPATIBLE, ">Q", 8),
                   (COMPRESSION, ">B", 1), (PACKED, data.ljust(CLUSTER, b"\0")))


def named(name):
    return [(NAME_AT, ">QI", 512, len(name)), (512, name)]


def backings():
    """Names: CVE-2008-2004, CVE-2015-1850, CVE-2024-4467, CVE-2024-32498 and their kind."""
    names = [("absolute", b"/etc/passwd", "--allow-path"), ("above", b"../../../../../../../etc/passwd", "lies outside"),
             ("json", b'json:{"driver":"file","filename":"/etc/passwd"}', "json:"),
             ("nbd", b"nbd://127.0.0.1:1/x", "nbd:"), ("http", b"http://127.0.0.1/x", "http:"),
             ("fat", b"fat:rw:/etc", "fat:"), ("ssh", b"ssh://root@localhost/x", "ssh:"),
             ("device", b"/dev/zero", "--allow-path"), ("proc", b"/proc/self/mem", "--allow-path"),
             ("directory", b".", "top.qcow2"), ("missing", b"nothing.raw", "nothing.raw"),
             ("zero-byte", b"base\0raw", "zero byte"), ("itself", b"top.qcow2", "loop"),
             ("itself-by-another-way", b"./././top.qcow2", "loop"), ("escapes", b"\x1b[2J\n\n", "top.qcow2"),
             ("of-1023-bytes", b"n" * 1023, "top.qcow2"), ("blockdev", b"blkdebug::top.qcow2", "blkdebug:")]
    for name, text, word in names:
        yield case("backing-" + name, [word], *named(text), at=None if name == "zero-byte" else "chain")
    yield case("backing-loop-of-two", ["loop"], *named(b"other.qcow2"), at="chain",
               **{"other.qcow2": patched(IMAGE, *named(b"top.qcow2"))})
    yield case("backing-loop-below", ["loop"], *named(b"other.qcow2"), at="chain",
               **{"other.qcow2": patched(IMAGE, *named(b"other.qcow2"))})
    deep = {"%d.qcow2" % n: patched(IMAGE, *named(b"%d.qcow2" % (n + 1))) for n in range(CHAIN_MOST)}
    yield case("backing-chain-too-long", [f"more than {CHAIN_MOST}"], *named(b"0.qcow2"), at="chain", **deep,
               **{f"{CHAIN_MOST}.qcow2": IMAGE})
    yield case("backing-is-hostile", ["other.qcow2", "cluster_bits is 63"], *named(b"other.qcow2"), at="chain",
               **{"other.qcow2": patched(IMAGE, (CLUSTER_BITS, ">I", 63))})


def cases():
    for group in (headers, extensions, bitmaps, snapshots, tables, packed, backings):
        yield from group()
