#!/usr/bin/python3
"""check counts what qemu-img check counts, on images damaged in every way; what it repairs is clean and intact."""

import os
import shutil

from cli import (COMPRESSED, COPIED, OFFSET_MASK, Qcow2, Workdir, cownbd, expect, expect_equal, load_json, must,
                 ours, qemu_io, run)

COUNTS = ("corruptions", "leaks", "check-errors", "total-clusters", "allocated-clusters", "fragmented-clusters",
          "compressed-clusters", "image-end-offset")
MB = 1 << 20


def make(name, options, *commands, size="64M"):
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, name, size)
    qemu_io(name, "write -P 1 0 1M", "write -P 2 5M 256k", "write -P 3 40M 512k", "write -P 4 6M 64k",
            "write -z 41M 128k", "write -P 5 20M 64k", *commands)


def counts(result):
    found = load_json(result.stdout)
    return {k: found.get(k, 0) for k in COUNTS}


def status(result):
    """qemu-img gives 2 before 3; so do we."""
    return result.returncode


# ---- damages: each gets a Qcow2; what it does is in its name ----

def nothing(q):
    pass


def leak(q):
    q.refcount(q.append() >> q.cluster_bits, 1)


def leaks(q):
    for _ in range(20):
        q.refcount(q.append(b"leaked") >> q.cluster_bits, 1)


def refcount_zero_of_data(q):
    q.refcount(q.host(5 * MB) >> q.cluster_bits, 0)


def refcount_zero_of_l2(q):
    q.refcount((q.l1(0) & OFFSET_MASK) >> q.cluster_bits, 0)


def refcount_zero_of_l1(q):
    q.refcount(q.l1_offset >> q.cluster_bits, 0)


def refcount_zero_of_header(q):
    q.refcount(0, 0)


def refcount_zero_of_its_block(q):
    q.refcount(q.block() >> q.cluster_bits, 0)


def all_refcounts_zero(q):
    q.write(q.block(), bytes(q.cluster_size))


def refcount_two_of_data(q):
    q.refcount(q.host(5 * MB) >> q.cluster_bits, 2)


def refcount_two_of_l2(q):
    q.refcount((q.l1(0) & OFFSET_MASK) >> q.cluster_bits, 2)


def refcount_two_of_l1(q):
    q.refcount(q.l1_offset >> q.cluster_bits, 2)


def copied_missing_on_data(q):
    q.set_l2(5 * MB, q.l2(5 * MB) & ~COPIED)


def copied_missing_on_l1(q):
    q.set_l1(0, q.l1(0) & ~COPIED)


def data_twice(q):
    q.set_l2(6 * MB, q.l2(5 * MB))


def data_twice_in_a_hole(q):
    q.set_l2(6 * MB + (64 << 10), q.l2(5 * MB))


def data_on_l2(q):
    q.set_l2(6 * MB, q.l1(0))


def data_on_l1(q):
    q.set_l2(6 * MB, q.l1_offset | COPIED)


def data_on_block(q):
    q.set_l2(6 * MB, q.block() | COPIED)


def data_on_refcount_table(q):
    q.set_l2(6 * MB, q.table_offset | COPIED)


def data_behind_end(q):
    q.set_l2(6 * MB, (q.end() + 50 * q.cluster_size) | COPIED)


def data_at_end(q):
    q.set_l2(6 * MB, q.end() | COPIED)


def data_far_behind_end(q):
    q.set_l2(6 * MB, OFFSET_MASK & ~(q.cluster_size - 1) | COPIED)


def data_unaligned(q):
    q.set_l2(6 * MB, q.l2(6 * MB) + 512)


def data_reserved_bits(q):
    q.set_l2(6 * MB, q.l2(6 * MB) | 1 << 57 | 1 << 3)


def l1_behind_end(q):
    q.set_l1(0, (q.end() + 50 * q.cluster_size) | COPIED)


def l1_reserved_bits(q):
    q.set_l1(0, q.l1(0) | 1 << 60)


def table_entry_reserved_bits(q):
    q.set_u64(q.table_offset, q.block() | 4)


def table_entry_unaligned(q):
    q.set_u64(q.table_offset, q.block() + 512)


def table_entry_behind_end(q):
    q.set_u64(q.table_offset + 8, q.end() + 5 * q.cluster_size)


def table_entry_gone(q):
    q.set_u64(q.table_offset, 0)


def block_twice(q):
    q.set_u64(q.table_offset + 8, q.block())


def file_cut(q):
    q.file.truncate(q.end() - 3 * q.cluster_size)


def compressed_copied(q):
    entry = q.l2(10 * MB)
    assert entry & COMPRESSED
    q.set_l2(10 * MB, entry | COPIED)


def compressed_behind_end(q):
    q.set_l2(10 * MB, q.l2(10 * MB) + 1000 * q.cluster_size)


def compressed_refcount_low(q):
    shift = 62 - (q.cluster_bits - 8)
    host = q.l2(10 * MB) & ((1 << shift) - 1)
    q.refcount(host >> q.cluster_bits, 1)


def zero_kept_twice(q):
    q.set_l2(6 * MB, q.l2(5 * MB) | 1)


# Keeps: what the guest reads is the same after the repair. Loses: something was lost by the damage itself.
KEEPS = [nothing, leak, leaks, refcount_zero_of_data, refcount_zero_of_l2, refcount_zero_of_l1,
         refcount_zero_of_header, refcount_zero_of_its_block, all_refcounts_zero, refcount_two_of_data,
         refcount_two_of_l2, refcount_two_of_l1, copied_missing_on_data, copied_missing_on_l1,
         table_entry_reserved_bits, table_entry_unaligned, table_entry_behind_end, table_entry_gone, block_twice]
LOSES = [data_twice, data_twice_in_a_hole, data_on_l2, data_on_l1, data_on_block, data_on_refcount_table, data_behind_end,
         data_at_end, data_far_behind_end, data_unaligned, data_reserved_bits, l1_behind_end, l1_reserved_bits,
         file_cut]
# What qemu counts in a way of its own: it gives up (a block that cannot be read is a check error for each cluster).
NOT_COUNTED_ALIKE = {table_entry_unaligned}


def check_counts(what, damage, image):
    theirs = run("qemu-img", "check", "--output=json", image)
    mine = cownbd("check", "--json", image)
    if damage not in NOT_COUNTED_ALIKE:
        expect_equal(counts(mine), counts(theirs), what, "\n", mine.stderr, theirs.stderr)
        expect_equal(mine.returncode, theirs.returncode, what)
    expect(mine.returncode == 0 or mine.stderr, what, "damage without a message")
    human = cownbd("check", image)
    expect_equal(human.returncode, mine.returncode, what)
    if damage not in NOT_COUNTED_ALIKE:
        expect_equal(human.stdout, run("qemu-img", "check", image).stdout, what)


def check_repair(what, original, image, keeps):
    before = cownbd("check", "--json", image)
    mended = cownbd("check", "--repair=all", "--json", image)
    if mended.returncode == 3:  # an L1 entry was given up: its clusters are freed by the second repair
        expect("once more" in mended.stderr, what, mended.stderr)
        mended = cownbd("check", "--repair=all", "--json", image)
    expect_equal(mended.returncode, 0, what, mended.stdout, mended.stderr)
    if before.returncode:
        fixed = load_json(mended.stdout)
        expect(fixed.get("corruptions-fixed", 0) + fixed.get("leaks-fixed", 0) > 0, what, fixed)
    clean = run("qemu-img", "check", image)
    expect_equal(clean.returncode, 0, what, clean.stdout, clean.stderr)
    if keeps:
        same = run("qemu-img", "compare", original, image)
        expect_equal(same.returncode, 0, what, "contents", same.stdout)
    again = cownbd("check", "--repair=all", "--json", image)
    expect_equal(again.returncode, 0, what, "again")
    used = run("qemu-io", "-c", "write -P 9 0 3M", "-c", "discard 5M 1M", "-c", "write -P 8 30M 1M", image)
    expect_equal(used.returncode, 0, what, "use", used.stdout, used.stderr)
    used = run("qemu-img", "check", image)
    expect_equal(used.returncode, 0, what, "after use", used.stdout, used.stderr)


def check_leaks(what, original, image):
    """Repair of leaks never touches what is more than a leak."""
    before = load_json(cownbd("check", "--json", image).stdout)
    mended = load_json(cownbd("check", "--repair=leaks", "--json", image).stdout)
    expect_equal(mended.get("leaks", 0), 0, what, mended)
    expect_equal(mended.get("leaks-fixed", 0), before.get("leaks", 0), what, mended)
    same = run("qemu-img", "compare", original, image)
    expect_equal(same.returncode, 0, what, "contents", same.stdout)


def try_damage(original, damage, keeps):
    what = f"{original} {damage.__name__}"
    image = "damaged.qcow2"
    shutil.copyfile(original, image)
    with Qcow2(image) as q:
        damage(q)
    check_counts(what, damage, image)
    if damage in (leak, leaks):
        shutil.copyfile(image, "leaks.qcow2")
        check_leaks(what, original, "leaks.qcow2")
    check_repair(what, original, image, keeps)


def damages():
    """Each on each kind of image; scaled, each on one kind at least, and each kind with some."""
    kinds = {
        "v3.qcow2": "cluster_size=64k",
        "v2.qcow2": "cluster_size=64k,compat=0.10",
        "wide.qcow2": "cluster_size=64k,refcount_bits=64",
        "byte.qcow2": "cluster_size=4k,refcount_bits=8",
        "narrow.qcow2": "cluster_size=64k,refcount_bits=2",
    }
    scale = int(os.environ.get("COWNBD_TEST_SCALE") or 100)
    turns = max(1, len(kinds) * min(scale, 100) // 100)
    for kind, (name, options) in enumerate(kinds.items()):
        make(name, options)
        for number, damage in enumerate(KEEPS + LOSES):
            if (number + kind) % len(kinds) < turns:
                try_damage(name, damage, damage in KEEPS)
    try_damage("v3.qcow2", zero_kept_twice, False)


def one_bit():
    """With one bit a refcount of two cannot be said."""
    make("bit.qcow2", "cluster_size=64k,refcount_bits=1")
    for damage in (nothing, leak, leaks, refcount_zero_of_data, refcount_zero_of_l1, all_refcounts_zero,
                   table_entry_gone, copied_missing_on_data):
        try_damage("bit.qcow2", damage, True)
    shutil.copyfile("bit.qcow2", "twice.qcow2")
    with Qcow2("twice.qcow2") as q:
        data_twice(q)
    check_counts("one bit, twice", data_twice, "twice.qcow2")


def small_clusters():
    make("small.qcow2", "cluster_size=512", size="45M")
    for damage in (nothing, leak, refcount_zero_of_data, refcount_zero_of_header, all_refcounts_zero, data_twice,
                   table_entry_gone, copied_missing_on_l1, data_behind_end):
        try_damage("small.qcow2", damage, damage not in (data_twice, data_behind_end))


def compressed():
    for kind in ("zlib", "zstd"):
        name = f"{kind}.qcow2"
        make(name, f"compression_type={kind}", "write -c -P 1 10M 64k", "write -c -P 2 11M 64k",
             "write -c -P 3 12M 64k")
        for damage in (nothing, compressed_copied, compressed_refcount_low):
            try_damage(name, damage, True)
        try_damage(name, compressed_behind_end, False)


def snapshots():
    make("snap.qcow2", "cluster_size=64k")
    must("qemu-img", "snapshot", "-c", "one", "snap.qcow2")
    qemu_io("snap.qcow2", "write -P 7 0 128k", "write -P 8 30M 1M")
    must("qemu-img", "snapshot", "-c", "two", "snap.qcow2")
    qemu_io("snap.qcow2", "write -P 9 64k 128k")
    for damage in (nothing, leak, refcount_two_of_l1, copied_missing_on_l1, refcount_zero_of_data,
                   all_refcounts_zero, table_entry_gone):
        try_damage("snap.qcow2", damage, True)
    for damage in (data_twice, data_behind_end, l1_reserved_bits):
        try_damage("snap.qcow2", damage, False)
    shutil.copyfile("snap.qcow2", "shared.qcow2")
    with Qcow2("shared.qcow2") as q:
        q.refcount(q.host(5 * MB) >> q.cluster_bits, 1)  # three refer to it
    check_counts("shared cluster", nothing, "shared.qcow2")
    check_repair("shared cluster", "snap.qcow2", "shared.qcow2", True)
    must("qemu-img", "snapshot", "-d", "one", "shared.qcow2")
    expect_equal(run("qemu-img", "check", "shared.qcow2").returncode, 0, "after the snapshot is gone")


def bitmaps():
    make("bitmap.qcow2", "cluster_size=64k")
    for name in ("a", "b"):
        must("qemu-img", "bitmap", "--add", "bitmap.qcow2", name)
    qemu_io("bitmap.qcow2", "write -P 7 0 1M", "write -P 7 20M 1M")
    for damage in (nothing, leak, data_twice, all_refcounts_zero):
        try_damage("bitmap.qcow2", damage, damage is not data_twice)
    names = [b["name"] for b in load_json(must("qemu-img", "info", "--output=json", "bitmap.qcow2"))
             ["format-specific"]["data"]["bitmaps"]]
    expect_equal(sorted(names), ["a", "b"], "bitmaps")


def marks():
    """Dirty and corrupt images are marked clean once they are."""
    make("marked.qcow2", "lazy_refcounts=on")
    for bits in (1, 2, 3):
        shutil.copyfile("marked.qcow2", "m.qcow2")
        with Qcow2("m.qcow2") as q:
            q.set_u64(72, bits)
            leak(q)
        expect_equal(cownbd("check", "m.qcow2").returncode, 3, "marked", bits)
        with Qcow2("m.qcow2") as q:
            expect_equal(q.u64(72), bits, "a check changes nothing")
        expect_equal(cownbd("check", "--repair=all", "m.qcow2").returncode, 0, "marked", bits)
        with Qcow2("m.qcow2") as q:
            expect_equal(q.u64(72), 0, "marks")


def huge_numbers():
    """Refcounts of 64 bits, larger than any number in memory."""
    make("huge.qcow2", "refcount_bits=64")
    with Qcow2("huge.qcow2") as q:
        q.refcount(q.host(5 * MB) >> q.cluster_bits, 2**63 - 1)
        q.refcount(q.host(0) >> q.cluster_bits, 65535)
        q.refcount(q.host(40 * MB) >> q.cluster_bits, 65536)
    check_counts("huge", nothing, "huge.qcow2")
    expect_equal(cownbd("check", "--repair=all", "huge.qcow2").returncode, 0, "huge")
    expect_equal(run("qemu-img", "check", "huge.qcow2").returncode, 0, "huge")


def untouched():
    """A check without --repair, and a repair of what is clean, write nothing."""
    make("clean.qcow2", "cluster_size=64k")
    before = open("clean.qcow2", "rb").read()
    ours("check", "clean.qcow2")
    ours("check", "--repair=all", "clean.qcow2")
    ours("check", "--repair=leaks", "clean.qcow2")
    expect_equal(ours("check", "-q", "clean.qcow2"), "", "-q says something")
    expect(open("clean.qcow2", "rb").read() == before, "written")
    os.remove("clean.qcow2")


with Workdir():
    damages()
    one_bit()
    small_clusters()
    compressed()
    snapshots()
    bitmaps()
    marks()
    huge_numbers()
    untouched()
