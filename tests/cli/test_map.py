#!/usr/bin/python3
"""The map of all kinds of images and chains equals that of qemu-img."""

import os

from cli import COWNBD, Workdir, cownbd, expect, expect_equal, expect_refused, load_json, must, ours, qemu_io, run

KEYS = ("start", "length", "depth", "present", "zero", "data", "offset")


def compare(image, fmt=None, *part):
    flags = (*part, "-f", fmt) if fmt else part
    theirs = load_json(must("qemu-img", "map", "--output=json", *flags, image))
    mine = load_json(ours("map", "--json", *flags, image))
    cut = [{k: e[k] for k in KEYS if k in e} for e in mine]
    expect_equal(cut, [{k: e[k] for k in KEYS if k in e} for e in theirs], image)
    for entry in mine:
        expect(("filename" in entry) == ("offset" in entry), image, entry)
        expect(entry["compressed"] == (entry["data"] and "offset" not in entry), image, entry)


def compare_human(image):
    theirs = [line.split() for line in must("qemu-img", "map", image).splitlines()]
    mine = [line.split() for line in ours("map", image).splitlines()]
    expect_equal(mine, theirs, image)


def raws():
    must("truncate", "-s", "4M", "base.raw")
    qemu_io("base.raw", "write -P 1 64k 64k", "write -P 2 1M 512k", "write -P 3 3M 4k", fmt="raw")
    compare("base.raw", "raw")
    must("truncate", "-s", "8M", "empty.raw")
    compare("empty.raw", "raw")
    with open("full.raw", "wb") as f:
        f.write(b"x" * (1 << 20))
    compare("full.raw", "raw")


def singles():
    for compat in ("0.10", "1.1"):
        for cluster in (512, 4096, 65536, 2 << 20):
            name = f"one-{compat}-{cluster}.qcow2"
            must("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat},cluster_size={cluster}", name,
                 "32M")
            compare(name)
            qemu_io(name, "write -P 1 0 100k", "write -P 2 1M 64k", "write -P 3 9M 3M", "write -z 9M 1M",
                    "discard 10M 1M", "write -P 4 31M 1M")
            compare(name)
            compare_human(name)


def zeroes():
    must("qemu-img", "create", "-q", "-f", "qcow2", "zero.qcow2", "16M")
    qemu_io("zero.qcow2", "write -z 0 1M", "write -P 1 2M 2M", "write -z 2M 1M", "write -z -u 3M 512k",
            "write -z 8M 128k")
    compare("zero.qcow2")


def compressed():
    for kind in ("zlib", "zstd"):
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compression_type={kind}", f"{kind}.qcow2", "8M")
        qemu_io(f"{kind}.qcow2", "write -c -P 1 0 64k", "write -c -P 2 64k 64k", "write -P 3 128k 64k",
                "write -c -P 4 1M 64k")
        compare(f"{kind}.qcow2")
        mine = load_json(ours("map", "--json", f"{kind}.qcow2"))
        expect_equal([e["compressed"] for e in mine], [True, False, False, True, False], kind)


def overlay(name, backing, fmt, size, *commands, options="cluster_size=64k"):
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", backing, "-F", fmt, name, size)
    if commands:
        qemu_io(name, *commands)
    compare(name)
    if backing != "zlib.qcow2":  # compressed: there qemu-img has no text to show
        compare_human(name)


def chains():
    overlay("same.qcow2", "base.raw", "raw", "4M", "write -P 5 128k 64k", "write -z 1M 64k")
    overlay("longer.qcow2", "base.raw", "raw", "9M", "write -P 6 8M 64k", "write -z 5M 64k")
    overlay("shorter.qcow2", "base.raw", "raw", "1M")
    overlay("top.qcow2", "longer.qcow2", "qcow2", "12M", "write -P 7 192k 64k", "write -P 8 11M 64k")
    overlay("small.qcow2", "top.qcow2", "qcow2", "10M", "write -P 7 0 512", options="cluster_size=512")
    overlay("v2.qcow2", "small.qcow2", "qcow2", "10M", "write -P 9 3M 64k", options="compat=0.10")
    overlay("discarded.qcow2", "base.raw", "raw", "4M", "write -P 1 0 1M", "discard 0 512k", "write -z -u 1M 512k")
    overlay("packed.qcow2", "zlib.qcow2", "qcow2", "8M", "write -P 1 64k 64k")
    overlay("empty.qcow2", "empty.raw", "raw", "16M")


def deep():
    below, fmt = "base.raw", "raw"
    for i in range(10):
        overlay(f"deep{i}.qcow2", below, fmt, f"{4 + i % 3}M", f"write -P {i} {i * 128}k 64k",
                f"write -z {i * 192 + 2048}k 64k")
        below, fmt = f"deep{i}.qcow2", "qcow2"
    for i in range(100):
        ours("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", f"deeper{i}.qcow2")
        below = f"deeper{i}.qcow2"
    qemu_io("deeper40.qcow2", "write -P 40 3M 64k")
    compare(below)
    # with fewer files than the chains have, as a shell allows at first
    result = run("prlimit", "--nofile=80:", COWNBD, "compare", below, "deeper98.qcow2")
    expect_equal((result.returncode, result.stdout), (0, "Images are identical.\n"))


def vmdk():
    must("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "base.raw", "base.vmdk")
    compare("base.vmdk")
    overlay("on-vmdk.qcow2", "base.vmdk", "vmdk", "6M", "write -P 1 2M 64k")


def parts():
    for start, length in ((0, "1M"), ("1M", "64k"), (1000, 70000), ("11M", "5M")):
        compare("top.qcow2", None, f"--start-offset={start}", f"--max-length={length}")
    compare("top.qcow2", None, "-s", "1M", "-l", "3M")
    compare("base.raw", "raw", "-s", "100000")
    expect_refused(cownbd("map", "-s", "1T", "top.qcow2"), "--start-offset", "must lie inside the disk")
    expect_refused(cownbd("map", "-l", "much", "top.qcow2"), "--max-length is 'much'")
    expect_refused(cownbd("map", "--dm", "-s", "1M", "top.qcow2"), "--dm")


def edges():
    must("qemu-img", "create", "-q", "-f", "qcow2", "nothing.qcow2", "0")
    expect_equal(load_json(ours("map", "--json", "nothing.qcow2")), [])
    expect(cownbd("map", "none.qcow2").returncode == 1, "a missing image")
    os.symlink("top.qcow2", "link.qcow2")
    compare("link.qcow2")


with Workdir():
    raws()
    singles()
    zeroes()
    compressed()
    chains()
    deep()
    vmdk()
    parts()
    edges()
