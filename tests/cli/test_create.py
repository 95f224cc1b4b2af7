#!/usr/bin/python3
"""Every kind of qcow2 that create can make: clean for qemu-img check and ours, and as qemu-img would have made it."""

import itertools
import os

from cli import (COWNBD, Workdir, cownbd, expect, expect_equal, expect_refused, load_json, must, ours, qemu_io, run)

CLUSTERS = [512, 1024, 4096, 65536, 2 << 20]
BITS = [1, 2, 4, 8, 16, 32, 64]
SIZES = ["0", "1", "700", "64k", "1M", "1G", "100G"]
SIZES_OF_SMALL = SIZES[:-1] + ["4G"]  # qemu-img takes five seconds for 100G of the smallest clusters


def features(path):
    info = load_json(must("qemu-img", "info", "--output=json", path))
    for key in ("actual-size", "filename"):
        info.pop(key)
    return info


def compare(options, size, extra=()):
    option = [a for o in options for a in ("-o", o)]
    theirs = run("qemu-img", "create", "-q", "-f", "qcow2", *option, *extra, "theirs.qcow2", size)
    mine = run(COWNBD, "create", "-q", "-f", "qcow2", *option, *extra, "ours.qcow2", size)
    what = (options, size, extra)
    if not expect_equal(mine.returncode, theirs.returncode, what, mine.stderr, theirs.stderr):
        return
    if mine.returncode:
        return
    expect_equal(features("ours.qcow2"), features("theirs.qcow2"), what)
    check = run("qemu-img", "check", "ours.qcow2")
    expect(check.returncode == 0, what, check.stdout, check.stderr)
    check = run(COWNBD, "check", "ours.qcow2")
    expect(check.returncode == 0, what, check.stdout, check.stderr)


def sizes_of(cluster):
    return SIZES_OF_SMALL if cluster == 512 else SIZES


def matrix():
    for cluster, bits in itertools.product(CLUSTERS, BITS):
        sizes = sizes_of(cluster)
        size = sizes[(cluster.bit_length() + bits) % len(sizes)]
        compare([f"cluster_size={cluster}", f"refcount_bits={bits}"], size)
    for cluster in CLUSTERS:
        for size in sizes_of(cluster):
            compare([f"cluster_size={cluster}"], size)
            compare([f"cluster_size={cluster}", "compat=0.10"], size)
    for lazy, compression in itertools.product(("on", "off"), ("zlib", "zstd")):
        compare([f"lazy_refcounts={lazy},compression_type={compression}"], "1M")
    for cluster, more in itertools.product(("8k", "16k", "64k", "2M"), ("compat=1.1", "compat=0.10")):
        compare([f"extended_l2=on,cluster_size={cluster}", more], "40M")  # refused: 8k, 0.10
    for options, size in itertools.product(
            ("data_file=d.raw", "data_file=d.raw,data_file_raw=on", "data_file=d.raw,extended_l2=on",
             "data_file=d.raw,compat=0.10", "data_file_raw=on", "data_file=d.raw,data_file_raw=on,cluster_size=4k"),
            ("1M", "700k")):
        compare([options], size)
    compare(["compat=v2"], "1M")
    compare(["compat=v3"], "1M")
    compare(["preallocation=off"], "1M")
    compare(["cluster_size=512", "refcount_bits=64"], "4G")  # many refcount blocks
    compare(["cluster_size=512"], "129G")  # too large for both


def large_table():
    """An L1 table of 30 MiB: what is said of it does not need a twin, for which qemu-img takes five seconds."""
    ours("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "large.qcow2", "120G")
    info = features("large.qcow2")
    expect_equal((info["virtual-size"], info["cluster-size"]), (120 << 30, 512))
    must("qemu-img", "check", "-q", "large.qcow2")
    ours("check", "large.qcow2")


def geometries():
    """A vhd's size as a geometry can say it: qemu's choice, where nothing else is asked of it."""
    for size in (512, 1536, 1000000, "33M", "3G", "127G", "128G", 140000000000, "2000G"):
        ours("create", "-q", "-f", "vhd", "-o", "force_size=off", "ours", size)
        must("qemu-img", "create", "-q", "-f", "vpc", "theirs", size)
        sizes = [load_json(must("qemu-img", "info", "--output=json", "-f", "vpc", name))["virtual-size"] for name in ("ours", "theirs")]
        expect_equal(sizes[0], sizes[1], size)
        expect_equal(load_json(ours("info", "--json", "-f", "vhd", "ours"))["virtual-size"], sizes[1], size)


def backing():
    ours("create", "-q", "-f", "raw", "base.raw", "3M")
    ours("create", "-q", "-f", "qcow2", "base.qcow2", "5M")
    for cluster in (512, 65536):
        compare([f"cluster_size={cluster}"], "7M", ("-b", "base.raw", "-F", "raw"))
        compare([f"cluster_size={cluster}", "compat=0.10"], "7M", ("-b", "base.qcow2", "-F", "qcow2"))
    ours("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    expect_equal(features("top.qcow2")["virtual-size"], 5 << 20, "size of the backing")
    os.mkdir("sub")
    ours("create", "-q", "-f", "qcow2", "-b", "../base.raw", "-F", "raw", "-u", "sub/top.qcow2", "3M")
    expect_equal(features("sub/top.qcow2")["full-backing-filename"], "sub/../base.raw")
    ours("create", "-q", "-f", "qcow2", "-o", "backing_file=base.raw,backing_fmt=raw", "by-option.qcow2")
    expect_equal(features("by-option.qcow2")["backing-filename"], "base.raw")


def usable():
    """What was made takes writes of qemu in each of its cluster sizes and widths."""
    for cluster, bits in itertools.product((512, 65536, 2 << 20), BITS):
        ours("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster},refcount_bits={bits}", "w.qcow2",
             "64M")
        qemu_io("w.qcow2", "write -P 1 0 1M", "write -P 2 33M 70k", "discard 0 512k")
        check = run("qemu-img", "check", "w.qcow2")
        expect(check.returncode == 0, cluster, bits, check.stdout, check.stderr)


def data_file(options):
    """The data lies beside the image; with data_file_raw the file alone reads as the disk does."""
    ours("create", "-q", "-f", "raw", "source.raw", "1000k")
    qemu_io("source.raw", "write -P 1 0 100k", "write -P 2 300k 50k", fmt="raw")
    ours("convert", "-q", "-f", "raw", "-O", "qcow2", "-o", "data_file=disk.raw," + options, "source.raw", "disk.qcow2")
    must("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "source.raw", "disk.qcow2")
    ours("resize", "-q", "disk.qcow2", "3M")
    qemu_io("disk.qcow2", "write -P 3 2M 70k", "write -z 10k 80k", "discard 300k 20k")
    ours("resize", "-q", "--shrink", "disk.qcow2", "2500k")
    must("qemu-img", "check", "disk.qcow2")
    ours("check", "disk.qcow2")
    must("qemu-img", "convert", "-O", "raw", "disk.qcow2", "theirs.raw")
    ours("convert", "-q", "-O", "raw", "disk.qcow2", "ours.raw")
    must("cmp", "ours.raw", "theirs.raw")
    if "raw=on" in options:
        must("cmp", "ours.raw", "disk.raw")
    for entry in load_json(ours("map", "--json", "disk.qcow2")):
        expect(entry.get("offset", entry["start"]) == entry["start"], entry)
    expect_refused(cownbd("snapshot", "create", "disk.qcow2", "now"), "disk.raw", "no snapshots")
    expect_refused(cownbd("convert", "-c", "-O", "qcow2", "-o", "data_file=new.raw", "disk.qcow2", "new.qcow2"),
                   "-c: a data file holds no compressed clusters")
    expect(not os.path.exists("new.raw") and not os.path.exists("new.qcow2"), os.listdir())
    os.truncate("disk.raw", 100000)
    expect_equal(cownbd("check", "disk.qcow2").returncode, 2, options)
    ours("check", "--repair=all", "disk.qcow2")
    ours("check", "disk.qcow2")
    expect_equal(os.path.getsize("disk.raw"), 2500 << 10, options)


def preallocation():
    size = (5 << 20) + 512
    for fmt, how, more in (("raw", "falloc", ""), ("raw", "full", ""), ("qcow2", "metadata", ""),
                           ("qcow2", "falloc", ",cluster_size=4k"), ("qcow2", "full", ",extended_l2=on")):
        made = ours("create", "-f", fmt, "-o", f"preallocation={how}{more}", f"p.{fmt}", str(size))
        expect(f"preallocation={how}" in made, made)
        expect(how == "metadata" or os.stat(f"p.{fmt}").st_blocks * 512 >= size, fmt, how, "has no space")
        must("qemu-io", "-f", fmt, "-c", f"read -P 0 0 {size}", f"p.{fmt}")
        if fmt == "qcow2":
            must("qemu-img", "check", "p.qcow2")
            here = sum(e["length"] for e in load_json(ours("map", "--json", "p.qcow2")) if "offset" in e)
            expect_equal(here, size, how)


def output():
    said = load_json(ours("create", "--json", "-f", "qcow2", "-o", "cluster_size=4k", "j.qcow2", "1.5M"))
    expect_equal(said, {"filename": "j.qcow2", "format": "qcow2", "virtual-size": 1572864,
                        "cluster_size": "4k"})
    expect_equal(ours("create", "-f", "raw", "j.raw", "10k"), "Formatting 'j.raw', fmt=raw size=10240\n")
    expect_equal(os.path.getsize("j.raw"), 10240)
    listed = ours("create", "-f", "qcow2", "-o", "help")
    for name in ("cluster_size", "compat", "refcount_bits", "lazy_refcounts", "preallocation", "extended_l2",
                 "compression_type", "size"):
        expect(name in listed, name, "not listed by -o help")


with Workdir():
    matrix()
    large_table()
    geometries()
    backing()
    usable()
    for more in ("cluster_size=4k", "data_file_raw=on", "extended_l2=on"):
        data_file(more)
    preallocation()
    output()
