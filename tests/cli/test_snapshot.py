"""cownbd snapshot beside qemu-img snapshot: what one makes, the other lists, reads, applies and deletes."""

import json
import struct
import subprocess

from cli import COWNBD, Workdir, cownbd, expect, expect_equal, expect_refused, must, ours, qemu_io

OPTIONS = ["cluster_size=64k", "cluster_size=512", "compat=0.10", "cluster_size=4k,refcount_bits=64",
           "cluster_size=4k,lazy_refcounts=on"]


def clean(image):
    """No corruption and no leak, by both."""
    expect_equal(json.loads(ours("check", "--json", image)),
                 json.loads(must("qemu-img", "check", "--output=json", image)), "check", image)


def contents(image, snapshot, raw):
    must("qemu-img", "convert", *(["-l", snapshot] if snapshot else []), "-O", "raw", image, raw)


def same(image, raw):
    must("qemu-img", "compare", "-q", "-F", "raw", image, raw)


def names(image):
    """As both of us say it."""
    listed = [s["name"] for s in json.loads(ours("snapshot", "list", "--json", image))]
    info = json.loads(must("qemu-img", "info", "--output=json", image)).get("snapshots", [])
    expect_equal(listed, [s["name"] for s in info], "the list of", image)
    return listed


def back_and_forth(options):
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "16M")
    qemu_io("a.qcow2", "write -P 1 0 3M", "write -P 2 5M 1M", "write -z 4M 1M")
    ours("snapshot", "create", "a.qcow2", "one")
    clean("a.qcow2")
    qemu_io("a.qcow2", "write -P 3 1M 3M")
    must("qemu-img", "snapshot", "-c", "two", "a.qcow2")
    qemu_io("a.qcow2", "write -P 4 0 64k", "discard 5M 1M")
    ours("snapshot", "-c", "three", "a.qcow2")
    for snapshot in ["one", "two", "three"]:
        contents("a.qcow2", snapshot, snapshot + ".raw")
    expect_equal(names("a.qcow2"), ["one", "two", "three"], "names")
    for apply in [("snapshot", "apply", "a.qcow2", "one"), ("snapshot", "-a", "3", "a.qcow2")]:
        ours(*apply)
        clean("a.qcow2")
        same("a.qcow2", "one.raw" if "one" in apply else "three.raw")
    must("qemu-img", "snapshot", "-a", "two", "a.qcow2")
    ours("snapshot", "delete", "a.qcow2", "one")
    clean("a.qcow2")
    same("a.qcow2", "two.raw")
    must("qemu-img", "snapshot", "-d", "two", "a.qcow2")
    ours("snapshot", "-d", "three", "a.qcow2")
    clean("a.qcow2")
    same("a.qcow2", "two.raw")
    expect_equal(names("a.qcow2"), [], "names in the end")


def list_as_qemu():
    must("qemu-img", "create", "-q", "-f", "qcow2", "l.qcow2", "1M")
    expect_equal(ours("snapshot", "list", "l.qcow2"), "", "the list of none")
    ours("snapshot", "create", "l.qcow2", "with a space")
    must("qemu-img", "snapshot", "-c", "second", "l.qcow2")
    expect_equal(ours("snapshot", "-l", "l.qcow2"), must("qemu-img", "snapshot", "-l", "l.qcow2"), "the list")


def other_sizes():
    """A snapshot of a disk that was smaller, and of one that was larger."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "s.qcow2", "1M")
    qemu_io("s.qcow2", "write -P 1 0 1M")
    ours("snapshot", "create", "s.qcow2", "small")
    must("qemu-img", "resize", "-q", "s.qcow2", "3M")
    qemu_io("s.qcow2", "write -P 2 2M 1M")
    ours("snapshot", "create", "s.qcow2", "large")
    for name, size in [("small", 1 << 20), ("large", 3 << 20), ("small", 1 << 20)]:
        expect_equal(json.loads(ours("info", "--json", "--snapshot", name, "s.qcow2"))["virtual-size"], size, name)
        ours("snapshot", "apply", "s.qcow2", name)
        expect_equal(json.loads(ours("info", "--json", "s.qcow2"))["virtual-size"], size, "applied", name)
        clean("s.qcow2")
    expect_equal(sum(e["length"] for e in json.loads(ours("map", "--json", "--snapshot", "large", "s.qcow2"))), 3 << 20,
                 "map of the larger one")


def many():
    """More than a cluster of table, and of L1."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "m.qcow2", "16M")
    qemu_io("m.qcow2", "write 0 64k", "write 15M 64k")
    for i in range(12):
        ours("snapshot", "create", "m.qcow2", f"number {i}")
    clean("m.qcow2")
    for i in range(0, 12, 2):
        ours("snapshot", "delete", "m.qcow2", f"number {i}")
    clean("m.qcow2")
    expect_equal(names("m.qcow2"), [f"number {i}" for i in range(1, 12, 2)], "those that stay")


def served():
    must("qemu-img", "create", "-q", "-f", "qcow2", "v.qcow2", "1M")
    qemu_io("v.qcow2", "write -P 1 0 1M")
    ours("snapshot", "create", "v.qcow2", "old")
    contents("v.qcow2", None, "old.raw")
    qemu_io("v.qcow2", "write -P 2 0 1M")
    server = subprocess.Popen([COWNBD, "serve", "--control", "none", "-l", "unix:s", "--snapshot", "old", "v.qcow2"],
                              stdout=subprocess.PIPE)
    server.stdout.readline()
    must("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", "nbd+unix:///?socket=s", "old.raw")
    must("nbdinfo", "--is", "read-only", "nbd+unix:///?socket=s")
    server.terminate()
    expect_equal(server.wait(60), 0, "the server of a snapshot")


def live():
    """Made and deleted by the server that has the image, while a client writes."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "l.qcow2", "8M")
    server = subprocess.Popen([COWNBD, "serve", "--control", "c", "-l", "unix:s", "l.qcow2"], stdout=subprocess.PIPE)
    server.stdout.readline()
    io = ("qemu-io", "-f", "raw", "nbd+unix:///?socket=s", "-c")
    must(*io, "write -P 1 0 4M")
    ours("snapshot", "create", "--control", "c", "l.qcow2", "one")
    must(*io, "write -P 2 1M 4M")
    load = subprocess.Popen(["qemu-io", "-f", "raw", "nbd+unix:///?socket=s"]
                            + [a for i in range(200) for a in ("-c", f"write -P 3 {6 * 1024 + i * 8}k 8k")],
                            stdout=subprocess.DEVNULL)
    for name in ["two", "three", "four"]:
        ours("snapshot", "create", "--control", "c", "l.qcow2", name)
    ours("snapshot", "delete", "--control", "c", "l.qcow2", "three")
    expect_equal(load.wait(60), 0, "a client under snapshots")
    must(*io, "read -P 1 0 1M")
    must(*io, "read -P 3 6M 1600k")
    expect_refused(cownbd("snapshot", "apply", "--control", "c", "l.qcow2", "one"), "create or delete")
    expect_refused(cownbd("snapshot", "create", "--control", "c", "l.qcow2", "one"), "'one' already")
    expect_refused(cownbd("snapshot", "delete", "--control", "c", "l.qcow2", "none"), "no snapshot 'none'")
    must(*io, "write -P 4 0 8M")
    server.terminate()
    expect_equal(server.wait(60), 0, "the server of a disk with snapshots")
    clean("l.qcow2")
    expect_equal(names("l.qcow2"), ["one", "two", "four"], "names")
    contents("l.qcow2", "one", "one.raw")
    must("qemu-io", "-f", "raw", "-c", "read -P 1 0 4M", "-c", "read -P 0 4M 4M", "one.raw")
    contents("l.qcow2", "two", "two.raw")
    must("qemu-io", "-f", "raw", "-c", "read -P 1 0 1M", "-c", "read -P 2 1M 4M", "two.raw")
    must("qemu-io", "-f", "qcow2", "-c", "read -P 4 0 8M", "l.qcow2")


def refusals():
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", "r.qcow2", "1M")
    qemu_io("r.qcow2", "write 0 64k")
    expect_refused(cownbd("snapshot", "create", "r.qcow2", "x"), "r.qcow2", "1-bit refcounts")
    clean("r.qcow2")
    must("qemu-img", "create", "-q", "-f", "qcow2", "n.qcow2", "1M")
    ours("snapshot", "create", "n.qcow2", "1")
    ours("snapshot", "create", "n.qcow2", "1st")
    ours("snapshot", "create", "n.qcow2", "2")
    before = open("n.qcow2", "rb").read()
    expect_refused(cownbd("snapshot", "create", "n.qcow2", "1st"), "'1st' already")
    expect_refused(cownbd("snapshot", "create", "n.qcow2", ""), "1 to 255")
    expect_refused(cownbd("snapshot", "create", "n.qcow2", "x" * 256), "256 bytes", "1 to 255")
    expect_refused(cownbd("snapshot", "delete", "n.qcow2", "2"), "more than one")
    expect_refused(cownbd("snapshot", "apply", "n.qcow2", "none"), "no snapshot 'none'")
    expect_refused(cownbd("info", "--snapshot", "none", "n.qcow2"), "no snapshot 'none'")
    expect_refused(cownbd("snapshot", "undo", "n.qcow2"), "'undo'", "must be list, create, apply or delete")
    expect_refused(cownbd("snapshot"), "no verb given")
    expect_refused(cownbd("snapshot", "create", "n.qcow2"), "an image and a name")
    expect_refused(cownbd("snapshot", "-l", "-c", "a", "n.qcow2"), "one of -l, -c, -a and -d")
    expect_refused(cownbd("snapshot", "-U", "create", "n.qcow2", "a"), "--force-share")
    expect_equal(open("n.qcow2", "rb").read(), before, "what a refusal leaves")
    must("qemu-img", "create", "-q", "-f", "raw", "w.raw", "1M")
    expect_refused(cownbd("snapshot", "create", "w.raw", "a"), "w.raw", "only qcow2")
    expect_refused(cownbd("info", "--snapshot", "a", "w.raw"), "w.raw", "only qcow2")


def bitmaps_refuse_apply():
    must("qemu-img", "create", "-q", "-f", "qcow2", "b.qcow2", "1M")
    ours("snapshot", "create", "b.qcow2", "s")
    must("qemu-img", "bitmap", "--add", "b.qcow2", "b")
    expect_refused(cownbd("snapshot", "apply", "b.qcow2", "s"), "bitmaps")


def damaged():
    """What hangs on the L1 table of a snapshot cannot be true: nothing is freed that others use."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "d.qcow2", "1M")
    qemu_io("d.qcow2", "write -P 7 0 1M")
    ours("snapshot", "create", "d.qcow2", "s")
    with open("d.qcow2", "r+b") as f:
        f.seek(64)
        f.seek(struct.unpack(">Q", f.read(8))[0])
        f.seek(struct.unpack(">Q", f.read(8))[0])
        f.write(struct.pack(">Q", 1 << 40))
    for verb in ["delete", "apply"]:
        result = cownbd("snapshot", verb, "d.qcow2", "s")
        expect(result.returncode == 1 and "must be the aligned offset of a table" in result.stderr, result.stderr)
        expect("its tables cannot be used" in result.stderr, result.stderr)
    qemu_io("d.qcow2", "read -P 7 0 1M")


with Workdir():
    for options in OPTIONS:
        back_and_forth(options)
    list_as_qemu()
    other_sizes()
    many()
    served()
    live()
    refusals()
    bitmaps_refuse_apply()
    damaged()
