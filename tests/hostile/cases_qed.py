"""Hostile qed images: clusters of 4 KiB, tables of one."""
import struct

import qed
from case import MIB, Case, patched, with_holes

CLUSTER = qed.CLUSTER
IMAGE, PLACES = qed.image(600, {0: qed.fill(0), 1: qed.ZERO, 2: qed.fill(2), 520: qed.fill(520)}, 1)
L1 = CLUSTER
L2 = struct.unpack_from("<Q", IMAGE, L1)[0]
CLUSTER_SIZE, TABLE_SIZE, HEADER_SIZE, FEATURES, L1_AT, SIZE, NAME_AT, NAME_SIZE = 4, 8, 12, 16, 40, 48, 56, 60
ALL, BACKING = (1 << 64) - 1, 1


def case(name, words, *changes, at=None, size=None, **files):
    content = patched(IMAGE, *changes)
    if size is not None:
        content = with_holes(content, size) if size > len(content) else content[:size]
    return Case("qed-" + name, {"top.qed": content, **files}, *words, at=at)


def cases():
    fields = [
        ("cluster-size-0", "cluster_size is 0", CLUSTER_SIZE, "<I", 0),
        ("cluster-size-2048", "cluster_size is 2048", CLUSTER_SIZE, "<I", 2048),
        ("cluster-size-4097", "cluster_size is 4097", CLUSTER_SIZE, "<I", 4097),
        ("cluster-size-128m", "cluster_size is 134217728", CLUSTER_SIZE, "<I", 128 * MIB),
        ("cluster-size-2g", "cluster_size is 2147483648", CLUSTER_SIZE, "<I", 1 << 31),
        ("table-size-0", "table_size is 0", TABLE_SIZE, "<I", 0), ("table-size-3", "table_size is 3", TABLE_SIZE, "<I", 3),
        ("table-size-32", "table_size is 32", TABLE_SIZE, "<I", 32),
        ("table-size-all", "table_size is 4294967295", TABLE_SIZE, "<I", 0xFFFFFFFF),
        ("header-size-0", "header_size is 0", HEADER_SIZE, "<I", 0),
        ("header-size-behind-end", "header_size is 4096", HEADER_SIZE, "<I", 4096),
        ("header-size-all", "header_size is 4294967295", HEADER_SIZE, "<I", 0xFFFFFFFF),
        ("features-all", "feature", FEATURES, "<Q", ALL), ("feature-8", "feature", FEATURES, "<Q", 8),
        ("l1-0", "l1_table_offset is 0", L1_AT, "<Q", 0), ("l1-unaligned", "l1_table_offset is 4608", L1_AT, "<Q", 4608),
        ("l1-behind-end", "l1_table_offset", L1_AT, "<Q", len(IMAGE)),
        ("l1-wraps", "l1_table_offset", L1_AT, "<Q", (1 << 64) - CLUSTER),
        ("size-all", "image_size", SIZE, "<Q", ALL), ("size-2-63", "image_size", SIZE, "<Q", 1 << 63),
        ("size-of-a-byte", "image_size is 1", SIZE, "<Q", 1),
        ("size-above-tables", "image_size", SIZE, "<Q", 512 * 512 * CLUSTER + 512),
    ]
    for name, word, *change in fields:
        yield case(name, [word], tuple(change))
    for name, word, offset, length in (("0", "backing_filename_size is 0", 64, 0), ("1024", "backing_filename_size is 1024", 64, 1024),
                                       ("all", "backing_filename_size is 4294967295", 64, 0xFFFFFFFF)):
        yield case("name-size-" + name, [word], (FEATURES, "<Q", BACKING), (NAME_AT, "<II", offset, length))
    for name, offset in (("in-header", 8), ("behind-header", CLUSTER - 4), ("wraps", 0xFFFFFFFC)):
        yield case("name-" + name, ["backing_filename_offset is"], (FEATURES, "<Q", BACKING), (NAME_AT, "<II", offset, 9))
    for size in (4, 63, 64, CLUSTER, L1 + 8, L2 + 8):
        yield case("cut-at-%d" % size, [], size=size)
    entries = (("header", 0), ("in-header", 8), ("behind-end", len(IMAGE)), ("unaligned", L2 + 8), ("l1", L1), ("itself", L2),
               ("far", (1 << 63) - CLUSTER), ("wraps", (1 << 64) - CLUSTER), ("all", ALL), ("zero", 1), ("2", 2))
    for name, entry in entries:
        yield case("l1-entry-" + name, [], (L1, "<Q", entry))
        yield case("l2-entry-" + name, [], (L2, "<Q", entry))
    yield case("l1-entries-all-one-table", [], (L1, struct.pack("<512Q", *[L2] * 512)), (SIZE, "<Q", 512 * 512 * CLUSTER))
    yield case("l2-entries-all-one-cluster", [], (L2, struct.pack("<512Q", *[PLACES[0]] * 512)))
    # Tables of 16 clusters of 64 MiB would be a GiB each.
    large = [(CLUSTER_SIZE, "<I", 64 * MIB), (TABLE_SIZE, "<I", 16), (L1_AT, "<Q", 64 * MIB), (SIZE, "<Q", 1 << 40)]
    yield case("tables-of-a-gib-in-a-hole", [], *large, size=4096 * MIB)
    named = [(FEATURES, "<Q", BACKING), (NAME_AT, "<II", 100, 11), (100, b"/etc/passwd")]
    yield case("backing-absolute", ["--allow-path"], *named, at="chain")
    yield case("backing-itself", ["loop"], (FEATURES, "<Q", BACKING), (NAME_AT, "<II", 100, 7), (100, b"top.qed"), at="chain")
