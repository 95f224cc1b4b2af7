#!/usr/bin/python3
"""measure: qemu-img's numbers where it has them, and no less than what convert then takes where it has not."""
import os
import random

from cli import Workdir, cownbd, expect, expect_equal, expect_refused, load_json, must, ours

SIZE = 12 << 20


def test_like_qemu():
    for fmt in ("raw", "qcow2"):
        for options in ((), ("-o", "cluster_size=512"), ("-o", "cluster_size=2M"), ("-o", "refcount_bits=64"),
                        ("-o", "compat=0.10"), ("-o", "preallocation=metadata"), ("-o", "preallocation=full")):
            if fmt == "raw" and options:
                continue
            for what in ([], ["-f", "raw", "source"], ["-f", "qcow2", "source.qcow2"]):
                arguments = ["measure", "--output=json", "-O", fmt, *options, *(what or ["--size", "3G"])]
                got, want = load_json(ours(*arguments)), load_json(must("qemu-img", *arguments))
                expect_equal(got, want, arguments)


def test_bitmaps():
    """As for the copy that convert --bitmaps makes; nothing for those that are of no use."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "marked", "300G")
    for name, granularity in (("one", "64k"), ("a longer name", "512k"), ("x", "1M")):
        must("qemu-img", "bitmap", "--add", "-g", granularity, "marked", name)
    for options in ((), ("-o", "cluster_size=4k"), ("-o", "compat=0.10")):
        arguments = ["measure", "--output=json", "-O", "qcow2", *options, "marked"]
        expect_equal(load_json(ours(*arguments)), load_json(must("qemu-img", *arguments)), arguments)
    arguments = ["measure", "-O", "qcow2", "marked"]
    expect_equal(ours(*arguments), must("qemu-img", *arguments), "for people")


def test_enough():
    for fmt, options in (("qcow2", ()), ("vhd", ()), ("vhd", ("-o", "block_size=64k")), ("vhd", ("-o", "subformat=fixed")),
                         ("vdi", ()), ("vdi", ("-o", "static=on")), ("qcow", ()), ("qed", ()), ("parallels", ()),
                         ("qed", ("-o", "cluster_size=4k,table_size=16")), ("raw", ())):
        for key, grain in (("required", "4k"), ("fully-allocated", "0")):
            ours("convert", "-q", "-O", fmt, *options, "-S", grain, "source", "image")
            measured = load_json(ours("measure", "--json", "-O", fmt, *options, "source"))[key]
            size = os.path.getsize("image")
            expect(size <= measured <= size * 1.3 + (1 << 20), fmt, options, key, "measured", measured, "took", size)


def test_exact():
    """The size of the file that convert makes. The data are whole MiBs, whatever pieces the host's holes come in."""
    with open("whole", "wb") as file:
        file.truncate(SIZE)
        for start in (0, 5 << 20, SIZE - (1 << 20)):
            file.seek(start)
            file.write(random.Random(start).randbytes(1 << 20))
    for fmt, options in (("vhdx", "block_size=1M"), ("vhdx", "subformat=fixed"), ("vdi", "block_size=64k"),
                         ("vdi", "static=on"), ("vmdk", "grain_size=4k"), ("qcow", "cluster_size=512"),
                         ("qcow", "cluster_size=64k"), ("qed", "cluster_size=4k,table_size=1"),
                         ("parallels", "cluster_size=64k"), ("vhd", "subformat=fixed")):
        ours("convert", "-q", "-O", fmt, "-o", options, "whole", "image")
        measured = load_json(ours("measure", "--json", "-O", fmt, "-o", options, "whole"))
        expect_equal(measured["required"], os.path.getsize("image"), fmt, options)


def test_encrypted():
    """The header counts: as it will be, for each choice of the key."""
    with open("secret", "w") as file:
        file.write("passphrase")
    for fmt, prefix, options in (("luks", "", ()), ("luks", "", ("cipher-alg=aes-128", "cipher-mode=cbc")), ("luks", "", ("version=2",)),
                                 ("qcow2", "encrypt.", ()), ("qcow2", "encrypt.", ("cipher-alg=aes-128", "cipher-mode=cbc"))):
        given = ",".join([prefix + option for option in options + ("iterations=1000",)] + (["encrypt.format=luks"] if prefix else []))
        ours("convert", "-q", "-O", fmt, "-o", given, "--secret-file", "secret", "-S", "0", "source", "image")
        measured = load_json(ours("measure", "--json", "-O", fmt, "-o", given, "source"))["fully-allocated"]
        size = os.path.getsize("image")
        expect(size == measured if fmt == "luks" else size <= measured <= size + (1 << 20), fmt, options, "measured", measured, "took", size)


def test_refusals():
    for arguments, words in ((("-O", "qcow2"), ("--size",)), (("-O", "qcow2", "--size", "1G", "source"), ("either",)),
                             (("--size", "lots"), ("lots",)), (("-O", "dmg", "source"), ("dmg",)),
                             (("-O", "qcow2", "-o", "x=1", "source"), ("cluster_size",)), (("none",), ("No such file",)),
                             (("-O", "qcow2", "-o", "cluster_size=512", "--size", "1P"), ("too large",))):
        expect_refused(cownbd("measure", *arguments), *words)


with Workdir():
    with open("source", "wb") as file:
        file.truncate(SIZE)
        file.write(random.Random(1).randbytes(100000))
        for start in (1 << 20, 5 << 20, SIZE - 70000):
            file.seek(start)
            file.write(random.Random(start).randbytes(70000))
    must("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "source", "source.qcow2")
    test_like_qemu()
    test_bitmaps()
    test_enough()
    test_exact()
    test_encrypted()
    test_refusals()
