#!/usr/bin/python3
"""info says what qemu-img info says, with the same keys."""

import os
import struct

from cli import Qcow2, Workdir, cownbd, expect, expect_equal, expect_refused, load_json, must, ours, qemu_io


def compare(image, *flags):
    theirs = load_json(must("qemu-img", "info", "--output=json", *flags, image))
    mine = load_json(ours("info", "--json", *flags, image))
    expect_equal(mine, theirs, image)


def compare_chain(image):
    theirs = load_json(must("qemu-img", "info", "--output=json", "--backing-chain", image))
    mine = load_json(ours("info", "--json", "--chain", image))
    expect_equal(mine, theirs, image)


def compare_human(image, *flags):
    expect_equal(ours("info", *flags, image), must("qemu-img", "info", *flags, image), image)


def compare_all(image, *flags):
    compare(image, *flags)
    compare_human(image, *flags)


def qcow2():
    for i, options in enumerate(("compat=0.10", "compat=1.1", "lazy_refcounts=on", "cluster_size=512,refcount_bits=1",
                                 "cluster_size=2M,refcount_bits=64", "compression_type=zstd")):
        name = f"{i}.qcow2"
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, name, "1000M")
        qemu_io(name, "write 0 3M")
        compare_all(name)
    with Qcow2("1.qcow2") as image:
        image.set_u64(72, 2)
    compare_all("1.qcow2")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "dirty.qcow2", "1M")
    with Qcow2("dirty.qcow2") as image:
        image.set_u64(72, 1)
    compare_all("dirty.qcow2")


def snapshots_and_bitmaps():
    must("qemu-img", "create", "-q", "-f", "qcow2", "kept.qcow2", "10M")
    for name in ("one", "a longer name of a snapshot"):
        must("qemu-img", "snapshot", "-c", name, "kept.qcow2")
        qemu_io("kept.qcow2", "write 1M 1M")
    compare_all("kept.qcow2")
    for name in ("first", "second"):
        must("qemu-img", "bitmap", "--add", "kept.qcow2", name)
    must("qemu-img", "bitmap", "--disable", "kept.qcow2", "second")
    compare_all("kept.qcow2")


def raw():
    must("qemu-img", "create", "-q", "-f", "raw", "a.raw", "10M")
    compare_all("a.raw")
    compare_all("0.qcow2", "-f", "raw")


def chains():
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "mid.qcow2")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", "20M")
    compare_all("top.qcow2")
    compare_chain("top.qcow2")
    compare_human("top.qcow2", "--backing-chain")
    os.mkdir("sub")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "../mid.qcow2", "-F", "qcow2", "-u", "sub/top.qcow2", "1M")
    compare_all("sub/top.qcow2")
    here = os.getcwd()
    compare_all(f"{here}/top.qcow2")
    compare_chain(f"{here}/top.qcow2")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", f"{here}/mid.qcow2", "-F", "qcow2", "absolute.qcow2")
    compare_all("absolute.qcow2")
    compare_chain("absolute.qcow2")


def sizes_of_vhd():
    """Of the two in the footer the creator decides, or who says so."""
    size = 12345 * 512
    ours("create", "-q", "-f", "vhd", "size.vhd", str(size))
    with open("size.vhd", "rb") as file:
        footer = file.read(512)
    cylinders, heads, sectors = struct.unpack_from(">HBB", footer, 56)
    chs = cylinders * heads * sectors * 512
    expect(0 < chs < size, "the geometry says", chs)
    for option, want in ((), size), (("--vhd-size=current",), size), (("--vhd-size=chs",), chs):
        expect_equal(load_json(ours("info", "--json", *option, "size.vhd"))["virtual-size"], want, option)
        expect_equal(load_json(ours("map", "--json", *option, "size.vhd"))[-1]["length"], want, option)
        ours("convert", "-q", *option, "size.vhd", "size.raw")
        expect_equal(os.path.getsize("size.raw"), want, option)
    expect_refused(cownbd("info", "--vhd-size=big", "size.vhd"), "--vhd-size is 'big'", "chs or current")


def order():
    """The keys come in the order of the brief list, so that a reader finds them."""
    want = ["virtual-size", "filename", "cluster-size", "format", "actual-size", "format-specific",
            "full-backing-filename", "backing-filename", "backing-filename-format", "dirty-flag"]
    expect_equal(list(load_json(ours("info", "--json", "top.qcow2"))), want)


def sharing():
    """Only with -U is an image looked at that somebody writes."""
    import subprocess
    writer = subprocess.Popen(["qemu-io", "0.qcow2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        writer.stdin.write(b"write 0 64k\n")
        writer.stdin.flush()
        while b"ops" not in writer.stdout.readline():
            pass
        for command in ("info", "map", "check"):
            refused = cownbd(command, "0.qcow2")
            expect(refused.returncode == 1 and "in use" in refused.stderr, command, refused.stderr)
            allowed = cownbd(command, "-U", "0.qcow2")
            expect(allowed.returncode == 0, command, allowed.stderr)
    finally:
        writer.stdin.close()
        writer.wait()


with Workdir():
    qcow2()
    snapshots_and_bitmaps()
    raw()
    chains()
    sizes_of_vhd()
    order()
    sharing()
