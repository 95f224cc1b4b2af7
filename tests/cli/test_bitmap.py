"""cownbd bitmap beside qemu-img bitmap, and what follows writes: what one keeps, the other reads."""

import json
import os
import signal
import subprocess
import sys
import time

from cli import COWNBD, Workdir, cownbd, expect, expect_equal, expect_refused, must, ours, qemu_io, run

MIB = 1 << 20


class Serve:
    """A server of one image on a unix socket; ended in order, or killed."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen([COWNBD, "serve", "--control", "none", "-l", "unix:s", *arguments],
                                        stdout=subprocess.PIPE)
        self.process.stdout.readline()

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(60)


def requests(*commands):
    must("qemu-io", "-f", "raw", *[a for c in commands for a in ("-c", c)], "nbd+unix:///?socket=s")


def dirty_over_nbd(bitmap):
    """As [(offset, length)], joined."""
    ranges = []
    for piece in json.loads(must("nbdinfo", "--json", "--map=qemu:dirty-bitmap:" + bitmap, "nbd+unix:///?socket=s")):
        if piece["type"] == 1:
            if ranges and sum(ranges[-1]) == piece["offset"]:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + piece["length"])
            else:
                ranges.append((piece["offset"], piece["length"]))
    return ranges


def dirty_by_us(image, bitmap):
    server = Serve("-r", image)
    ranges = dirty_over_nbd(bitmap)
    expect_equal(server.end(), 0, "the end of a server")
    return ranges


def dirty_by_qemu(image, bitmap):
    """qemu reads the bitmap from the file and gives it to its own client."""
    server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-k", os.path.abspath("q"), "-B", bitmap, image])
    while run("nbdinfo", "--size", "nbd+unix:///?socket=q").returncode != 0:
        expect(server.poll() is None, "qemu-nbd has ended") or sys.exit(1)
        time.sleep(0.05)
    pieces = json.loads(must("qemu-img", "map", "--output=json", "--image-opts",
                             "driver=nbd,server.type=unix,server.path=q,"
                             f"x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"))
    server.terminate()
    server.wait(60)
    ranges = []
    for piece in pieces:  # "data": false says dirty: that is how qemu shows it
        if not piece["data"]:
            if ranges and sum(ranges[-1]) == piece["start"]:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + piece["length"])
            else:
                ranges.append((piece["start"], piece["length"]))
    return ranges


def shown(image):
    """What both call the bitmaps of the image."""
    got = json.loads(ours("info", "--json", image))["format-specific"]["data"].get("bitmaps", [])
    want = json.loads(must("qemu-img", "info", "--output=json", image))["format-specific"]["data"].get("bitmaps", [])
    expect_equal(got, want, "the bitmaps of", image)
    expect_equal(json.loads(ours("bitmap", "list", "--json", image)), got, "the list of", image)
    return got


def flags(image):
    return {b["name"]: sorted(b["flags"]) for b in shown(image)}


def clean(image):
    must("qemu-img", "check", "-q", image)
    ours("check", image)


def life(options):
    """Made by us, kept by us, read, kept and removed by qemu, and the other way round."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "16M")
    ours("bitmap", "add", "a.qcow2", "ours")
    must("qemu-img", "bitmap", "--add", "-g", "4k", "a.qcow2", "theirs")
    ours("bitmap", "add", "--disabled", "-g", "512", "a.qcow2", "still")
    clean("a.qcow2")
    expect_equal(flags("a.qcow2"), {"ours": ["auto"], "theirs": ["auto"], "still": []}, "flags")
    server = Serve("a.qcow2")
    requests("write 1M 100k", "write -z 5M 1M", "discard 9M 64k", "write 15M 1M")
    want = [(MIB, 128 << 10), (5 * MIB, MIB), (9 * MIB, 64 << 10), (15 * MIB, MIB)]
    fine = [(MIB, 100 << 10)] + want[1:]
    expect_equal(dirty_over_nbd("ours"), want, "while it is served")
    expect_equal(server.end(), 0, "the end of a server")
    clean("a.qcow2")
    expect_equal(flags("a.qcow2"), {"ours": ["auto"], "theirs": ["auto"], "still": []}, "flags after an orderly end")
    for name, ranges in [("ours", want), ("theirs", fine), ("still", [])]:
        expect_equal(dirty_by_us("a.qcow2", name), ranges, name, "by us")
        expect_equal(dirty_by_qemu("a.qcow2", name), ranges, name, "by qemu")
    qemu_io("a.qcow2", "write 0 64k")
    expect_equal(dirty_by_us("a.qcow2", "ours"), [(0, 64 << 10)] + want, "what qemu added")
    ours("bitmap", "merge", "a.qcow2", "still", "theirs")
    expect_equal(dirty_by_qemu("a.qcow2", "still"), [(0, 64 << 10)] + fine, "merged")
    clean("a.qcow2")
    ours("bitmap", "disable", "a.qcow2", "ours")
    ours("bitmap", "clear", "a.qcow2", "theirs")
    must("qemu-img", "bitmap", "--enable", "a.qcow2", "still")
    expect_equal(flags("a.qcow2"), {"ours": [], "theirs": ["auto"], "still": ["auto"]}, "flags after changes")
    expect_equal(dirty_by_qemu("a.qcow2", "theirs"), [], "cleared")
    clean("a.qcow2")
    must("qemu-img", "bitmap", "--remove", "a.qcow2", "ours")
    ours("bitmap", "remove", "a.qcow2", "theirs")
    ours("bitmap", "--remove", "a.qcow2", "still")
    expect_equal(flags("a.qcow2"), {}, "flags in the end")
    clean("a.qcow2")


def overlay():
    """The name of the backing lies where the extension must go."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "4M")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "o.qcow2")
    ours("bitmap", "add", "o.qcow2", "b")
    qemu_io("o.qcow2", "write 1M 64k")
    clean("o.qcow2")
    expect_equal(dirty_by_us("o.qcow2", "b"), [(MIB, 64 << 10)], "on an overlay")
    expect_equal(json.loads(must("qemu-img", "info", "--output=json", "o.qcow2"))["backing-filename"], "base.qcow2",
                 "the name of the backing")


def from_other_image():
    for name in ["x", "y"]:
        must("qemu-img", "create", "-q", "-f", "qcow2", name + ".qcow2", "4M")
        ours("bitmap", "add", name + ".qcow2", name)
        qemu_io(name + ".qcow2", f"write {'1M' if name == 'x' else '2M'} 64k")
    ours("bitmap", "merge", "-b", "y.qcow2", "x.qcow2", "x", "y")
    expect_equal(dirty_by_qemu("x.qcow2", "x"), [(MIB, 64 << 10), (2 * MIB, 64 << 10)], "merged from another image")
    must("qemu-img", "create", "-q", "-f", "qcow2", "z.qcow2", "5M")
    ours("bitmap", "add", "z.qcow2", "z")
    expect_refused(cownbd("bitmap", "merge", "-b", "y.qcow2", "z.qcow2", "z", "y"), "one size")


def killed():
    """A bitmap that was not saved is of no use, says so, and can be removed."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "k.qcow2", "4M")
    ours("bitmap", "add", "k.qcow2", "kept")
    ours("bitmap", "add", "--disabled", "k.qcow2", "still")
    server = Serve("k.qcow2")
    requests("write 1M 64k")
    server.end(signal.SIGKILL)
    expect_equal(flags("k.qcow2"), {"kept": ["auto", "in-use"], "still": []}, "flags after a death")
    expect(run("qemu-img", "bitmap", "--clear", "k.qcow2", "kept").returncode != 0, "qemu takes it for good")
    result = cownbd("bitmap", "clear", "k.qcow2", "kept")
    expect(result.returncode == 1 and "can only be removed" in result.stderr, result.stderr)
    expect("'kept' is not kept" in result.stderr, result.stderr)
    expect_equal(dirty_by_us("k.qcow2", "still"), [], "one that nobody kept")
    ours("bitmap", "remove", "k.qcow2", "kept")
    clean("k.qcow2")
    expect_equal(flags("k.qcow2"), {"still": []}, "flags in the end")


def refusals():
    must("qemu-img", "create", "-q", "-f", "qcow2", "r.qcow2", "4M")
    ours("bitmap", "add", "r.qcow2", "b")
    before = open("r.qcow2", "rb").read()
    expect_refused(cownbd("bitmap", "add", "r.qcow2", "b"), "'b' already")
    expect_refused(cownbd("bitmap", "add", "r.qcow2", ""), "1 to 1023")
    expect_refused(cownbd("bitmap", "add", "-g", "1000", "r.qcow2", "c"), "1000", "power of two")
    expect_refused(cownbd("bitmap", "add", "-g", "4G", "r.qcow2", "c"), "512 to 2 GiB")
    expect_refused(cownbd("bitmap", "clear", "-g", "4k", "r.qcow2", "b"), "for add")
    expect_refused(cownbd("bitmap", "remove", "r.qcow2", "c"), "no bitmap 'c'")
    expect_refused(cownbd("bitmap", "merge", "r.qcow2", "b", "c"), "no bitmap 'c'")
    expect_refused(cownbd("bitmap", "merge", "r.qcow2", "b"), "the bitmap to add")
    expect_refused(cownbd("bitmap", "grow", "r.qcow2", "b"), "'grow'", "must be list, add")
    expect_refused(cownbd("bitmap"), "no verb given")
    expect_equal(shown("r.qcow2"), [{"name": "b", "granularity": 65536, "flags": ["auto"]}], "what a refusal leaves")
    expect_equal(len(open("r.qcow2", "rb").read()), len(before), "the size of the file after refusals")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2.qcow2", "4M")
    expect_refused(cownbd("bitmap", "add", "v2.qcow2", "b"), "version 2")
    must("qemu-img", "create", "-q", "-f", "raw", "w.raw", "1M")
    expect_refused(cownbd("bitmap", "add", "w.raw", "b"), "w.raw", "only qcow2")


with Workdir():
    for options in ["cluster_size=64k", "cluster_size=512"]:
        life(options)
    overlay()
    from_other_image()
    killed()
    refusals()
