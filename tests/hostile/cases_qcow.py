"""Hostile images of qcow, version 1: clusters of 512 bytes, 64 entries in an L2 table."""
import struct

import qcow
from case import Case, patched, with_holes

CLUSTER = 512
CLUSTERS = 200
L1 = 512
IMAGE, PLACES = qcow.image(CLUSTERS, {0: qcow.fill(0), 1: ("packed", qcow.fill(1)), 70: qcow.fill(70)})
L2 = struct.unpack_from(">Q", IMAGE, L1)[0]
NAME_AT, NAME_SIZE, SIZE, CLUSTER_BITS, L2_BITS, CRYPT, L1_AT = 8, 16, 24, 32, 33, 36, 40


def case(name, words, *changes, at=None, size=None, image=IMAGE, **files):
    content = patched(image, *changes)
    if size is not None:
        content = with_holes(content, size) if size > len(content) else content[:size]
    return Case("qcow-" + name, {"top.qcow": content, **files}, *words, at=at)


def cases():
    fields = [
        ("cluster-bits-8", "cluster_bits is 8", CLUSTER_BITS, ">B", 8),
        ("cluster-bits-17", "cluster_bits is 17", CLUSTER_BITS, ">B", 17),
        ("cluster-bits-255", "cluster_bits is 255", CLUSTER_BITS, ">B", 255),
        ("l2-bits-5", "l2_bits is 5", L2_BITS, ">B", 5), ("l2-bits-14", "l2_bits is 14", L2_BITS, ">B", 14),
        ("l2-bits-255", "l2_bits is 255", L2_BITS, ">B", 255),
        ("size-all", "size is", SIZE, ">Q", (1 << 64) - 1),
        ("size-makes-l1-overflow", "size is", SIZE, ">Q", 1 << 62),
        ("size-above-l1", "l1_table_offset", SIZE, ">Q", 1 << 30),
        ("crypt-method-2", "crypt_method is 2", CRYPT, ">I", 2), ("crypt-all", "crypt_method", CRYPT, ">I", 0xFFFFFFFF),
        ("l1-in-header", "l1_table_offset is 8", L1_AT, ">Q", 8),
        ("l1-unaligned", "l1_table_offset is 513", L1_AT, ">Q", 513),
        ("l1-behind-end", "l1_table_offset", L1_AT, ">Q", len(IMAGE) + 8),
        ("l1-wraps", "l1_table_offset", L1_AT, ">Q", (1 << 64) - 8),
        ("name-of-1024", "backing_file_size is 1024", NAME_AT, ">QI", 48, 1024),
        ("name-all", "backing_file_size", NAME_AT, ">QI", 48, 0xFFFFFFFF),
        ("name-behind-end", "backing_file_offset", NAME_AT, ">QI", len(IMAGE), 9),
        ("name-wraps", "backing_file_offset", NAME_AT, ">QI", (1 << 64) - 4, 9),
    ]
    for name, word, *change in fields:
        yield case(name, [word], tuple(change))
    for size in (8, 47, 48, 511, 520):
        yield case("cut-at-%d" % size, [], size=size)
    for name, entry in (("header", 0x30), ("behind-end", len(IMAGE) + CLUSTER), ("unaligned", L2 + 1),
                        ("far", (1 << 63) - 512), ("itself", L1), ("wraps", (1 << 64) - 512)):
        yield case("l1-entry-" + name, [], (L1, ">Q", entry))
    packed = struct.unpack_from(">Q", IMAGE, L2 + 8)[0]
    for name, entry in (("behind-end", len(IMAGE) + CLUSTER), ("header", 16), ("on-l1", L1), ("on-itself", L2),
                        ("wraps", (1 << 63) - 512), ("packed-all", (1 << 64) - 1), ("packed-empty", 1 << 63 | PLACES[0]),
                        ("packed-behind-end", packed | 0xFFFFFF), ("packed-longest", packed | 0xFF << 55),
                        ("packed-of-noise", 1 << 63 | 100 << 54 | PLACES[0])):
        yield case("l2-entry-" + name, [], (L2 + 8, ">Q", entry))
    yield case("disk-of-8-tib-in-a-hole", [], (SIZE, ">Q", 1 << 37), (L1_AT, ">Q", 1 << 20), size=64 << 20)
    named = [(NAME_AT, ">QI", 400, 11), (400, b"/etc/passwd")]
    yield case("backing-absolute", ["--allow-path"], *named, at="chain")
    yield case("backing-itself", ["loop"], (NAME_AT, ">QI", 400, 8), (400, b"top.qcow"), at="chain")
