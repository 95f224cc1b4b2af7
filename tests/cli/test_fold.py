#!/usr/bin/python3
"""fold brings a store into its image, whole, once, also when it is cut off; and never one that does not fit."""

import fcntl
import hashlib
import os
import random
import signal
import struct
import subprocess
import sys
import time

from cli import COWNBD, Workdir, cownbd, expect, expect_equal, load_json, must, ours, qemu_io

MAKE = os.path.abspath(sys.argv[1])
OPEN, FOLDING, FOLDED = 1, 2, 3


def make_store(image, fmt="qcow2", chunk=16384, count=200, seed=1, more=()):
    """The store, and expected.raw: what the disk must be in the end."""
    must("qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", image, "expected.raw")
    must(MAKE, image, chunk, count, seed, "expected.raw", *more)
    return image + ".cownbd-cow"


def same(image, fmt="qcow2"):
    return must("qemu-img", "convert", "-f", fmt, "-O", "raw", image, "now.raw") == "" and \
        open("now.raw", "rb").read() == open("expected.raw", "rb").read()


def refused(words, *arguments):
    result = cownbd("fold", *arguments)
    expect(result.returncode == 1 and words in result.stderr and result.stderr.count("\n") == 1,
           "fold", *arguments, "\n", result.stdout, result.stderr)


def set_state(store, state):
    with open(store, "r+b") as f:
        header = bytearray(f.read(112))
        header[12:16] = struct.pack("<I", state)
        f.seek(0)
        f.write(header + hashlib.sha256(header).digest())


def digest(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()


def test_formats():
    for name, create, fmt in (
            ("plain.qcow2", ("-f", "qcow2", "plain.qcow2", "64M"), "qcow2"),
            ("odd.qcow2", ("-f", "qcow2", "-o", "cluster_size=4k", "odd.qcow2", "5000704"), "qcow2"),
            ("v2.qcow2", ("-f", "qcow2", "-o", "compat=0.10", "v2.qcow2", "64M"), "qcow2"),
            ("disk.raw", ("-f", "raw", "disk.raw", "20M"), "raw")):
        must("qemu-img", "create", "-q", *create)
        qemu_io(name, "write -P 7 0 1M", "write -P 8 3M 100k", fmt=fmt)
        store = make_store(name, fmt)
        text = ours("fold", "-f", fmt, name)
        expect("200 exceptions" in text and "folded" in text, name, text)
        expect(not os.path.exists(store), name, "the store is there")
        expect(same(name, fmt), name, "is not what the device was")
        if fmt == "qcow2":
            must("qemu-img", "check", "-q", name)
        expect_equal(ours("fold", "-f", fmt, name), f"{name}: nothing to fold\n")


def test_overlay():
    must("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "32M")
    qemu_io("base.qcow2", "write -P 1 0 8M")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    qemu_io("top.qcow2", "write -P 2 1M 1M")
    store = make_store("top.qcow2", chunk=4096, count=700)
    before = digest("base.qcow2")
    result = load_json(ours("fold", "--json", "--keep", "top.qcow2"))
    expect_equal((result["chunks"], result["chunk-size"], result["bytes"], result["found"], result["resumed"],
                  result["incomplete"]), (700, 4096, 700 * 4096, True, False, False))
    expect(0 < result["zero-bytes"] < result["bytes"], result)
    expect(os.path.exists(store + ".folded") and not os.path.exists(store), "--keep")
    expect(same("top.qcow2"), "overlay")
    expect_equal(digest("base.qcow2"), before, "base")
    # A store of the overlay; then the base changes, or the overlay itself.
    for changed in ("base.qcow2", "top.qcow2"):
        store = make_store("top.qcow2", seed=2)
        before = digest("top.qcow2")
        qemu_io(changed, "write -P 3 20M 4k")
        if changed == "base.qcow2":
            expect_equal(digest("top.qcow2"), before)
        before = digest("top.qcow2")
        refused("was changed after this store was made", "top.qcow2")
        expect_equal(digest("top.qcow2"), before, "refused, and yet written to")
        os.unlink(store)


def test_others_keep_off():
    must("qemu-img", "create", "-q", "-f", "qcow2", "busy.qcow2", "16M")
    store = make_store("busy.qcow2")
    before = digest("busy.qcow2")
    os.symlink("busy.qcow2", "link.qcow2")
    for name in ("busy.qcow2", "link.qcow2"):
        for arguments in (("check", "--repair=all", name), ("serve", "-l", "unix:s", name)):
            result = cownbd(*arguments)
            expect(result.returncode == 1 and "cownbd fold" in result.stderr, arguments, result.stderr)
    for command in ("info", "check", "map"):
        result = cownbd(command, "busy.qcow2")
        expect(result.returncode == 0 and "is old" in result.stderr, command, result.stderr)
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "busy.qcow2", "-F", "qcow2", "over.qcow2")
    result = cownbd("check", "over.qcow2")
    expect(result.returncode == 0, result.stderr)
    expect_equal(digest("busy.qcow2"), before)
    with open(store, "r+b") as f:
        fcntl.lockf(f, fcntl.LOCK_EX, 1, 101)
        refused("is in use by another process", "busy.qcow2")
    with open("busy.qcow2", "r+b") as f:
        fcntl.lockf(f, fcntl.LOCK_EX, 1, 101)
        refused("is in use by another process", "busy.qcow2")
    ours("fold", "link.qcow2")
    expect(same("busy.qcow2"), "folded by another name")


def test_stores_that_do_not_fit():
    must("qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "16M")
    must("qemu-img", "create", "-q", "-f", "qcow2", "b.qcow2", "17M")
    must("qemu-img", "create", "-q", "-f", "qcow2", "c.qcow2", "16M")
    store = make_store("a.qcow2")
    before = digest("a.qcow2")
    refused("belongs to a disk of 16777216 bytes", "b.qcow2", store)
    refused("was changed after this store was made", "c.qcow2", store)
    refused("cannot open", "a.qcow2", "nowhere")
    refused("is no store of cownbd", "a.qcow2", "b.qcow2")
    good = open(store, "rb").read()
    for offset, words in ((0, "is no store"), (8, "version"), (12, "damaged"), (40, "damaged"), (115, "damaged"),
                          (1 << 20, "begins with"), ((1 << 20) + 12, "sectors"),
                          ((1 << 20) + 16384 + 15, "cut short")):
        bad = bytearray(good)
        bad[offset] ^= 0x55
        open(store, "wb").write(bad)
        refused(words, "a.qcow2")
    for size in (0, 100, 1 << 20):
        open(store, "wb").write(good[:size])
        if size < 1 << 20:
            refused("is no store" if size == 0 else "damaged", "a.qcow2")
    open(store, "wb").write(good[:-20000])
    refused("cut short", "a.qcow2")
    expect_equal(digest("a.qcow2"), before, "refused, and yet written to")
    open(store, "wb").write(good)
    ours("fold", "a.qcow2", store)
    expect(same("a.qcow2"), "at last")


def test_given_up_by_the_kernel():
    must("qemu-img", "create", "-q", "-f", "qcow2", "invalid.qcow2", "16M")
    make_store("invalid.qcow2", more=("invalid",))
    result = cownbd("fold", "invalid.qcow2")
    expect(result.returncode == 0 and "given the store up" in result.stderr, result.stderr)
    expect(same("invalid.qcow2"), "what was there")


def test_states():
    must("qemu-img", "create", "-q", "-f", "qcow2", "state.qcow2", "16M")
    store = make_store("state.qcow2")
    set_state(store, FOLDING)
    qemu_io("state.qcow2", "write -P 1 0 64k")  # as the fold that was cut off may have
    expect("cut off" in ours("fold", "state.qcow2"), "resumed")
    expect(not os.path.exists(store), "the store is there")
    store = make_store("state.qcow2", seed=5)
    set_state(store, FOLDED)
    before = digest("state.qcow2")
    expect_equal(ours("fold", "state.qcow2"), "state.qcow2: was folded already\n")
    expect_equal(digest("state.qcow2"), before)
    expect(not os.path.exists(store), "the store is there")
    store = make_store("state.qcow2", count=0)
    before = digest("state.qcow2")
    ours("fold", "state.qcow2")
    expect_equal(digest("state.qcow2"), before, "nothing to bring in")
    expect(not os.path.exists(store), "the store is there")


def test_guessed_raw():
    must("qemu-img", "create", "-q", "-f", "raw", "guess.raw", "8M")
    make_store("guess.raw", "raw", more=("plant",))
    result = cownbd("fold", "guess.raw")
    expect(result.returncode == 1 and "say -f raw when that" in result.stderr, result.stderr)
    ours("fold", "-f", "raw", "guess.raw")
    expect(same("guess.raw", "raw"), "raw by name")


def test_kills():
    """Killed at random, again and again; each time the image checks, at the end it is whole."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=16k", "kill.qcow2", "512M")
    store = make_store("kill.qcow2", chunk=4096, count=6000)
    dice = random.Random(4)
    kills = 0
    longest = 0.05
    for _ in range(200):
        fold = subprocess.Popen([COWNBD, "fold", "kill.qcow2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            fold.wait(dice.random() * longest)
        except subprocess.TimeoutExpired:
            fold.send_signal(signal.SIGKILL)
        if fold.wait() == 0:
            break
        expect_equal(fold.returncode, -signal.SIGKILL, fold.stderr.read())
        kills += 1
        if not os.path.exists(store):  # killed when all was done
            break
        # 3: leaks; the rest of qemu-img's statuses are worse
        expect(subprocess.run(["qemu-img", "check", "-q", "kill.qcow2"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode in (0, 3), "check after kill", kills)
        if kills >= 12:
            longest *= 1.3
    expect(kills > 3, kills, "kills")
    expect(not os.path.exists(store), "the store is there")
    expect(same("kill.qcow2"), "after", kills, "kills")
    must("qemu-img", "check", "-q", "kill.qcow2")  # the last fold gives back what the others have left


with Workdir():
    test_formats()
    test_overlay()
    test_others_keep_off()
    test_stores_that_do_not_fit()
    test_given_up_by_the_kernel()
    test_states()
    test_guessed_raw()
    test_kills()
