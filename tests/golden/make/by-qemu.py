#!/usr/bin/python3
"""Makes the golden images that qemu-img and qemu-io (7.2) can make; what is expected of them is what qemu sees.

    by-qemu.py [FORMAT/NAME...]
"""
import os
import sys

from golden import make_all, qemu

SIZE = (1 << 20) + 5 * 512  # not a multiple of any cluster

# Runs that begin and end inside clusters, one that fills some, one of zeroes, and the last sector.
WRITES = ["write -P 0x11 0 4k", "write -P 0x22 100k 70k", "write -P 0x33 256k 128k",
          "write -z 300k 4k", "write -P 0x44 700000 333", "write -P 0x55 %d 512" % (SIZE - 512)]


def io(path, *commands):
    for command in commands:
        qemu("qemu-io", "-f", path.suffix[1:], "-c", command, path)


def written(golden, name, fmt, options="", commands=None, backing=()):
    path = golden.path(name)
    words = ["qemu-img", "create", "-q", "-f", fmt]
    if options:
        words += ["-o", options]
    if backing:
        words += ["-b", backing[0], "-F", backing[1]]
    qemu(*words, path, *(() if backing else (SIZE,)))
    io(path, *(WRITES if commands is None else commands))
    return path


def converted(golden, name, fmt, options, *more):
    source = written(golden, "source.raw", "raw")
    qemu("qemu-img", "convert", "-f", "raw", "-O", fmt, *more, "-o", options, source,
         golden.path(name))
    source.unlink()


def make_vmdk__monolithic_sparse(golden):
    """`qemu-img create -f vmdk -o subformat=monolithicSparse`, then writes of qemu-io."""
    written(golden, "top.vmdk", "vmdk", "subformat=monolithicSparse")
    golden.expect_as_qemu("top.vmdk")


def make_vmdk__monolithic_flat(golden):
    """`qemu-img create -f vmdk -o subformat=monolithicFlat`, then writes of qemu-io."""
    written(golden, "top.vmdk", "vmdk", "subformat=monolithicFlat")
    golden.expect_as_qemu("top.vmdk")


def make_vmdk__two_gb_sparse(golden):
    """`qemu-img create -f vmdk -o subformat=twoGbMaxExtentSparse`, then writes of qemu-io."""
    written(golden, "top.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse")
    golden.expect_as_qemu("top.vmdk")


def make_vmdk__two_gb_flat(golden):
    """`qemu-img create -f vmdk -o subformat=twoGbMaxExtentFlat`, then writes of qemu-io."""
    written(golden, "top.vmdk", "vmdk", "subformat=twoGbMaxExtentFlat")
    golden.expect_as_qemu("top.vmdk")


def make_vmdk__stream_optimized(golden):
    """`qemu-img convert -O vmdk -o subformat=streamOptimized` of a raw file."""
    converted(golden, "top.vmdk", "vmdk", "subformat=streamOptimized")
    golden.expect_as_qemu("top.vmdk")


def make_vmdk__three_deep(golden):
    """A vmdk overlay on a vmdk overlay on a streamOptimized base, by qemu-img and qemu-io."""
    converted(golden, "base.vmdk", "vmdk", "subformat=streamOptimized")
    written(golden, "middle.vmdk", "vmdk", "", ["write -P 0x66 90k 20k"], ("base.vmdk", "vmdk"))
    written(golden, "top.vmdk", "vmdk", "zeroed_grain=on",
            ["write -P 0x77 0 512", "write -z 320k 64k"], ("middle.vmdk", "vmdk"))
    golden.expect_as_qemu("top.vmdk")


def plain_qcow2(golden, options, commands=None):
    written(golden, "top.qcow2", "qcow2", options, commands)
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__v2(golden):
    """`qemu-img create -f qcow2 -o compat=0.10`, then writes of qemu-io."""
    plain_qcow2(golden, "compat=0.10,cluster_size=4k")


def make_qcow2__v3(golden):
    """`qemu-img create -f qcow2` with 64 KiB clusters, then writes of qemu-io."""
    plain_qcow2(golden, "cluster_size=64k")


def make_qcow2__cluster_512(golden):
    """The smallest clusters: many L2 tables, an L1 table of more than one cluster."""
    plain_qcow2(golden, "cluster_size=512")


def make_qcow2__refcount_1(golden):
    """Refcounts of one bit."""
    plain_qcow2(golden, "cluster_size=4k,refcount_bits=1")


def make_qcow2__refcount_64(golden):
    """Refcounts of 64 bits, lazy refcounts."""
    plain_qcow2(golden, "cluster_size=4k,refcount_bits=64,lazy_refcounts=on")


def make_qcow2__preallocated_zero(golden):
    """Clusters with the zero flag and an offset: preallocated, then written as zeroes."""
    plain_qcow2(golden, "cluster_size=16k,preallocation=metadata",
                WRITES + ["write -z 128k 64k", "write -z 512k 100k"])


def make_qcow2__compressed_zlib(golden):
    """`qemu-img convert -c`: raw deflate; then two clusters are written over."""
    converted(golden, "top.qcow2", "qcow2", "cluster_size=16k", "-c")
    io(golden.path("top.qcow2"), "write -P 0x66 100k 5k", "write -z 16k 16k")
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__compressed_zstd(golden):
    """`qemu-img convert -c -o compression_type=zstd`."""
    converted(golden, "top.qcow2", "qcow2", "cluster_size=16k,compression_type=zstd", "-c")
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__snapshot(golden):
    """An internal snapshot, then writes: clusters with a refcount of 2 and without COPIED."""
    path = written(golden, "top.qcow2", "qcow2", "cluster_size=4k")
    qemu("qemu-img", "snapshot", "-c", "before", path)
    io(path, "write -P 0x77 110k 10k", "write -z 256k 4k", "discard 270k 8k")
    golden.expect_as_qemu("top.qcow2")


def resized_since(golden, change, *commands):
    """What a snapshot is expected to be is what the disk was when it was made."""
    path = written(golden, "top.qcow2", "qcow2", "cluster_size=4k")
    golden.expect_as_qemu("top.qcow2")
    golden.write("snapshot", "before\n")
    qemu("qemu-img", "snapshot", "-c", "before", path)
    qemu("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", path, change)
    io(path, *commands)


def make_qcow2__snapshot_of_a_smaller_disk(golden):
    """An internal snapshot; then the disk grew, and was written before and behind its old end."""
    resized_since(golden, "2M", "write -P 0x66 50k 70k", "write -P 0x77 1040k 100k")


def make_qcow2__snapshot_of_a_larger_disk(golden):
    """An internal snapshot; then the disk became smaller, and was written."""
    resized_since(golden, "500k", "write -P 0x66 50k 70k")


def make_qcow2__on_raw(golden):
    """An overlay on a raw file, with zero clusters that hide it."""
    written(golden, "base.raw", "raw")
    written(golden, "top.qcow2", "qcow2", "cluster_size=4k",
            ["write -P 0x77 110k 10k", "write -z 256k 4k"], ("base.raw", "raw"))
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__on_vmdk(golden):
    """Three images: qcow2 on qcow2 on a streamOptimized vmdk."""
    converted(golden, "base.vmdk", "vmdk", "subformat=streamOptimized")
    written(golden, "middle.qcow2", "qcow2", "cluster_size=4k,compat=0.10",
            ["write -P 0x66 90k 20k", "write -P 0 130k 4k"], ("base.vmdk", "vmdk"))
    written(golden, "top.qcow2", "qcow2", "cluster_size=16k",
            ["write -P 0x77 0 512", "write -z 320k 64k"], ("middle.qcow2", "qcow2"))
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__longer_than_its_backing(golden):
    """The overlay is larger than the image below: zeroes beyond the end of that, which is inside a cluster."""
    written(golden, "base.qcow2", "qcow2", "cluster_size=4k")
    written(golden, "top.qcow2", "qcow2", "cluster_size=64k", [], ("base.qcow2", "qcow2"))
    qemu("qemu-img", "resize", "-q", golden.path("top.qcow2"), "2M")
    io(golden.path("top.qcow2"), "write -P 0x77 1700k 10k")
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__shorter_than_its_backing(golden):
    """The overlay is smaller than the image below."""
    written(golden, "base.qcow2", "qcow2", "cluster_size=4k")
    written(golden, "top.qcow2", "qcow2", "cluster_size=64k", [], ("base.qcow2", "qcow2"))
    qemu("qemu-img", "resize", "-q", "--shrink", golden.path("top.qcow2"), "300k")
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__refused_missing_backing(golden):
    """The backing file is gone."""
    written(golden, "base.qcow2", "qcow2")
    written(golden, "top.qcow2", "qcow2", "cluster_size=4k", [], ("base.qcow2", "qcow2"))
    golden.path("base.qcow2").unlink()
    golden.expect_error("base.qcow2")


def extended(golden, *more, options="extended_l2=on,cluster_size=16k"):
    """Parts of clusters of every kind: written, zero, dropped, over a cluster that has others."""
    writes = ["write -P 0x66 1000 100", "write -P 0x77 20k 600", "write -z 21k 512", *WRITES, *more]
    return written(golden, "top.qcow2", "qcow2", options, writes)


def make_qcow2__extended_l2(golden):
    """`qemu-img create -f qcow2 -o extended_l2=on`, then writes of qemu-io to parts of clusters."""
    extended(golden, "discard 112k 16k", "write -P 0x78 120k 1k")
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__extended_l2_on_raw(golden):
    """Subclusters over a backing: what is not allocated shows it, what is zero does not."""
    written(golden, "base.raw", "raw", "", ["write -P 0xbb 0 200k"])
    written(golden, "top.qcow2", "qcow2", "extended_l2=on", ["write -P 0x11 5000 3000", "write -z 64k 10k",
            "write -P 0x22 80k 100"], ("base.raw", "raw"))
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__extended_l2_snapshot(golden):
    """An internal snapshot, then writes: clusters whose place is shared, or was."""
    top = extended(golden)
    qemu("qemu-img", "snapshot", "-c", "one", top)
    io(top, "write -P 0x79 2000 100", "write -z 104k 2k", "write -P 0x7a 400k 3k")
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__extended_l2_compressed(golden):
    """`qemu-img convert -c -o extended_l2=on`, then a write to a part of a compressed cluster."""
    converted(golden, "top.qcow2", "qcow2", "extended_l2=on,cluster_size=16k", "-c")
    io(golden.path("top.qcow2"), "write -P 0x7b 130k 700")
    golden.expect_as_qemu("top.qcow2")


def with_data_file(golden, options, *commands):
    """qemu looks for the data file where it is started, so it is started there."""
    os.chdir(golden.scratch)
    written(golden, "top.qcow2", "qcow2", "data_file=data.raw," + options, WRITES + list(commands))
    golden.expect_as_qemu("top.qcow2")


def make_qcow2__data_file(golden):
    """`qemu-img create -f qcow2 -o data_file=data.raw`, then writes of qemu-io."""
    with_data_file(golden, "cluster_size=16k", "discard 112k 16k")


def make_qcow2__data_file_raw(golden):
    """The same with data_file_raw=on: all of the disk is mapped, zeroes are in the data file."""
    with_data_file(golden, "cluster_size=16k,data_file_raw=on")


def make_qcow2__data_file_extended_l2(golden):
    """A data file and subclusters: the clusters lie at their own offsets, their parts are there or not."""
    with_data_file(golden, "cluster_size=16k,extended_l2=on", "write -P 0x77 20k 600", "write -z 21k 512")


def make_qcow2__bitmap(golden):
    """Two persistent bitmaps, one of them disabled, then writes of qemu-io."""
    written(golden, "top.qcow2", "qcow2", "cluster_size=4k", [])
    for name, more in (("followed", []), ("still", ["--disable"])):
        qemu("qemu-img", "bitmap", "--add", *more, golden.path("top.qcow2"), name)
    io(golden.path("top.qcow2"), *WRITES)
    golden.expect_as_qemu("top.qcow2")


def make_raw__plain(golden):
    """A raw file, by qemu-io."""
    written(golden, "top.raw", "raw")
    golden.expect_as_qemu("top.raw")


if __name__ == "__main__":
    make_all(globals(), sys.argv[1:])
