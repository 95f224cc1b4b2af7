#!/usr/bin/python3
"""What create refuses: one line that says what would be right, and nothing left behind or changed."""

import os
import subprocess

from cli import COWNBD, Workdir, cownbd, expect, expect_equal, expect_refused, must, ours


def refused(*arguments, words):
    before = sorted(os.listdir("."))
    expect_refused(cownbd("create", *arguments), *words)
    expect_equal(sorted(os.listdir(".")), before, arguments, "left something behind")


def options():
    for option, words in {
            "cluster_size=100": ("cluster_size is '100'", "512 to 2M"),
            "cluster_size=4M": ("cluster_size is '4M'", "512 to 2M"),
            "cluster_size=3k": ("cluster_size is '3k'", "power of two"),
            "cluster_size=": ("cluster_size is ''", "power of two"),
            "cluster_size=-4096": ("cluster_size is '-4096'",),
            "refcount_bits=3": ("refcount_bits is '3'", "1, 2, 4, 8, 16, 32 or 64"),
            "refcount_bits=128": ("refcount_bits is '128'",),
            "refcount_bits=0": ("refcount_bits is '0'",),
            "compat=1.0": ("compat is '1.0'", "0.10", "1.1"),
            "lazy_refcounts=maybe": ("lazy_refcounts is 'maybe'", "on or off"),
            "compression_type=lz4": ("compression_type is 'lz4'", "zlib or zstd"),
            "preallocation=some": ("preallocation is 'some'", "off, metadata, falloc or full"),
            "compat=0.10,refcount_bits=8": ("refcount_bits is 8", "compat=1.1"),
            "compat=0.10,lazy_refcounts=on": ("lazy_refcounts is on", "compat=1.1"),
            "compat=0.10,compression_type=zstd": ("compression_type is zstd", "compat=1.1"),
            "cluster_sise=4k": ("'cluster_sise' is not known to qcow2", "cluster_size", "refcount_bits"),
            "=4k": ("without a name",),
            "size=1G": ("size",),
    }.items():
        size = () if option.startswith("size") else ("1M",)
        if size:
            refused("-f", "qcow2", "-o", option, "x.qcow2", *size, words=words)
    refused("-f", "qcow2", "-o", "preallocation=full", "-b", "base.raw", "-F", "raw", "-u", "x.qcow2", "1M",
            words=("preallocation is 'full'", "backing"))
    refused("-f", "raw", "-o", "preallocation=metadata", "x.raw", "1M", words=("off, falloc or full",))
    refused("-f", "raw", "-o", "cluster_size=4k", "x.raw", "1M", words=("not known to raw",))
    refused("-f", "qcow2", "-o", "cluster_size=512", "x.qcow2", "129G",
            words=("too large for cluster_size 512", "137438953472", "cluster_size=1024"))
    refused("-f", "qcow2", "x.qcow2", "4E", words=("too large",))


def arguments():
    refused("-f", "qcow2", words=("arguments", "--help"))
    refused("-f", "qcow2", "a", "1M", "b", words=("arguments",))
    refused("-f", "qcow3", "x", "1M", words=("'qcow3' is not known", "qcow2", "raw"))
    refused("-f", "bochs", "x", "1M", words=("bochs cannot be made", "qcow2"))
    refused("--nonsense", "x", "1M", words=("nonsense", "--help"))
    for size in ("1Q", "abc", "", "1.5", "99999999999999999999", "8E", " 1M", "1 M", "0x100"):
        refused("-f", "raw", "x.raw", size, words=("size is", "K, M, G"))
    refused("-f", "qcow2", "x.qcow2", words=("no size given",))
    refused("-f", "raw", "no/such/dir/x.raw", "1M", words=("no/such/dir/x.raw", "No such file"))
    os.mkdir("dir")
    refused("-f", "raw", "dir", "1M", words=("dir", "regular file"))
    os.rmdir("dir")


def backing():
    ours("create", "-q", "-f", "raw", "base.raw", "1M")
    refused("-f", "qcow2", "-b", "base.raw", "x.qcow2", words=("base.raw", "-F"))
    refused("-f", "qcow2", "-F", "raw", "x.qcow2", "1M", words=("-b",))
    refused("-f", "qcow2", "-b", "", "-F", "raw", "x.qcow2", "1M", words=("empty",))
    refused("-f", "qcow2", "-b", "none.raw", "-F", "raw", "x.qcow2", words=("none.raw", "No such file"))
    refused("-f", "qcow2", "-b", "base.raw", "-F", "qcow2", "x.qcow2", words=("base.raw", "magic"))
    refused("-f", "qcow2", "-b", "base.raw", "-F", "foo", "x.qcow2", words=("'foo' is not known",))
    refused("-f", "raw", "-b", "base.raw", "-F", "raw", "x.raw", words=("raw", "-f qcow2"))
    refused("-f", "qcow2", "-u", "-b", "base.raw", "-F", "raw", "x.qcow2", words=("no size given",))
    refused("-f", "qcow2", "-u", "-b", "n" * 1024, "-F", "raw", "x.qcow2", "1M", words=("1024 bytes", "1023"))
    refused("-f", "qcow2", "-u", "-o", "cluster_size=512", "-b", "n" * 500, "-F", "raw", "x.qcow2", "1M",
            words=("500 bytes", "room for"))
    refused("-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", "backing_file=x", "x.qcow2",
            words=("backing_file is given twice",))
    for fmt in ("vhd", "vhdx"):  # to which a backslash is a slash: nobody would find this parent again
        ours("create", "-q", "-f", fmt, f"back\\slash.{fmt}", "8M")
        refused("-f", fmt, "-b", f"back\\slash.{fmt}", "-F", fmt, f"x.{fmt}", words=("back\\slash", "backslash"))
    ours("create", "-q", "-f", "qcow2", "self.qcow2", "1M")
    refused("-f", "qcow2", "-b", "self.qcow2", "-F", "qcow2", "self.qcow2", words=("its own backing",))


def existing():
    """A file that is there is replaced whole, or stays as it was."""
    with open("old.img", "w") as f:
        f.write("precious" * 1000)
    os.chmod("old.img", 0o640)
    refused("-f", "qcow2", "-o", "cluster_size=3k", "old.img", "1M", words=("cluster_size",))
    expect_equal(open("old.img").read(), "precious" * 1000)
    os.symlink("old.img", "link.img")
    ours("create", "-q", "-f", "qcow2", "link.img", "1M")
    expect(os.path.islink("link.img"), "the link was replaced")
    expect(open("old.img", "rb").read(4) == b"QFI\xfb", "not written through the link")
    expect_equal(os.stat("old.img").st_mode & 0o777, 0o640, "permissions")


def in_use():
    """An image that somebody writes is not replaced."""
    ours("create", "-q", "-f", "qcow2", "used.qcow2", "1M")
    writer = subprocess.Popen(["qemu-io", "used.qcow2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        writer.stdin.write(b"write 0 64k\n")
        writer.stdin.flush()
        while b"ops" not in writer.stdout.readline():
            pass
        before = open("used.qcow2", "rb").read()
        refused("-f", "qcow2", "used.qcow2", "5M", words=("used.qcow2", "in use"))
        expect_equal(open("used.qcow2", "rb").read(), before, "changed")
    finally:
        writer.stdin.close()
        writer.wait()


def full_disk():
    """ENOSPC leaves nothing; a file size limit stands for the full disk."""
    limited = subprocess.run(["sh", "-c", f"ulimit -f 64; trap '' XFSZ; exec {COWNBD} create -q -f qcow2 "
                              "-o cluster_size=512 big.qcow2 100G"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    expect_refused(limited, "big.qcow2")
    expect(not os.path.exists("big.qcow2"), "big.qcow2 is there")
    expect(not [n for n in os.listdir(".") if n.startswith(".cownbd")], "a temporary file is left")


with Workdir():
    must("true")
    options()
    arguments()
    backing()
    existing()
    in_use()
    full_disk()
