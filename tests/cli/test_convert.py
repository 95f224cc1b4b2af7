#!/usr/bin/python3
"""convert: what it writes, qemu-img reads and finds sound; what qemu-img writes, it reads; nothing is left of what fails."""
import os
import pty
import random
import signal
import subprocess
import sys
import time

from cli import (COWNBD, Workdir, cownbd, expect, expect_equal, expect_refused, kill_held, load_json, must, ours, run)

SIZE = 9 << 20
QEMU_NAME = {"vhd": "vpc"}
CHECKED_BY_QEMU = ("qcow2", "vdi", "qed", "parallels")
WRITTEN = ("raw", "qcow2", "vhd", "vdi", "qcow", "qed", "parallels")


def make_source(path, seed=1):
    """Data, zeroes that are written, holes, small pieces, and data in the last byte."""
    dice = random.Random(seed)
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for offset, length in ((0, 70000), (1 << 20, 300000), (SIZE - 5000, 5000)):
            file.seek(offset)
            file.write(dice.randbytes(length))
        file.seek(3 << 20)
        file.write(b"words that compress " * 20000 + bytes(200000))
        for _ in range(20):
            file.seek(dice.randrange(4 << 20, 8 << 20))
            file.write(dice.randbytes(dice.randrange(1, 3000)))


def same(a, b, fmt_b):
    result = run("qemu-img", "compare", "-f", "raw", "-F", QEMU_NAME.get(fmt_b, fmt_b), a, b)
    expect_equal(result.returncode, 0, "qemu-img compare", a, b, result.stdout, result.stderr)


def sound(path, fmt):
    if fmt in CHECKED_BY_QEMU:
        must("qemu-img", "check", "-q", "-f", fmt, path)
    if fmt != "raw":
        ours("check", path)


def test_matrix():
    for first in WRITTEN:
        ours("convert", "-q", "-O", first, "source", f"a.{first}")
        same("source", f"a.{first}", first)
        sound(f"a.{first}", first)
        for second in WRITTEN:
            ours("convert", "-q", "-f", first, "-O", second, f"a.{first}", "b")
            same("source", "b", second)
            os.unlink("b")


def test_reads_qemu():
    for fmt in ("qcow2", "vpc", "vdi", "vmdk", "qcow", "qed", "parallels"):
        must("qemu-img", "convert", "-f", "raw", "-O", fmt, "source", "theirs")
        ours("convert", "-q", "theirs", "back")
        same("source", "back", "raw")


def test_holes():
    """What is zero takes no space, and -S 0 writes all of it."""
    with open("zeroes", "wb") as file:
        file.write(bytes(4 << 20))
    for fmt in ("raw", "qcow2"):
        ours("convert", "-q", "-O", fmt, "zeroes", "thin")
        ours("convert", "-q", "-O", fmt, "-S", "0", "zeroes", "thick")
        expect(os.stat("thin").st_blocks * 512 < 1 << 20, fmt, "zeroes take space")
        expect(os.stat("thick").st_blocks * 512 >= 4 << 20, fmt, "-S 0 left holes")
        same("zeroes", "thick", fmt)


def test_preallocation():
    for fmt, how in (("raw", "falloc"), ("raw", "full"), ("qcow2", "metadata"), ("qcow2", "falloc"), ("qcow2", "full")):
        ours("convert", "-q", "-O", fmt, "-o", f"preallocation={how}", "source", "image")
        same("source", "image", fmt)
        sound("image", fmt)
        if how == "metadata":
            expect_equal(load_json(ours("check", "--json", "image"))["allocated-clusters"], SIZE >> 16, "clusters")
        else:
            expect(os.stat("image").st_blocks * 512 >= SIZE, fmt, how, "has no space")
    expect_refused(cownbd("convert", "-c", "-O", "qcow2", "-o", "preallocation=full", "source", "no"), "preallocation", "-c")
    expect_refused(cownbd("convert", "-O", "qcow2", "-o", "preallocation=full", "-b", "image", "-F", "qcow2", "source", "no"),
                   "preallocation is 'full' with a backing file")


def test_compressed():
    for fmt, options in (("qcow", ("-o", "cluster_size=512")), ("qcow", ("-o", "cluster_size=64k")), ("qcow", ()),
                         ("qcow2", ("-o", "cluster_size=4k")), ("qcow2", ("-o", "cluster_size=2M")),
                         ("qcow2", ("-o", "refcount_bits=1")), ("qcow2", ("-o", "cluster_size=512")),
                         ("qcow2", ("-o", "compat=0.10")), ("qcow2", ("--compression", "zstd")), ("qcow2", ())):
        ours("convert", "-q", "-c", "-O", fmt, *options, "source", "small")
        same("source", "small", fmt)
        sound("small", fmt)
        report = load_json(ours("check", "--json", "small"))
        expect(report.get("compressed-clusters", 0) > 0, options, "nothing is compressed")
        ours("convert", "-q", "small", "back")
        same("source", "back", "raw")
    # Written on: what is compressed is replaced, its space is counted right.
    must("qemu-io", "-f", "qcow2", "-c", "write -P 7 3M 200k", "small")
    sound("small", "qcow2")
    # What replaces a cluster of a qcow is packed behind all others, until compact leaves the old ones behind.
    ours("convert", "-q", "-c", "-O", "qcow", "source", "small")
    before = os.path.getsize("small")
    make_source("other", seed=4)
    ours("convert", "-q", "-n", "-c", "-O", "qcow", "other", "small")
    same("other", "small", "qcow")
    ours("compact", "-q", "-c", "small")
    same("other", "small", "qcow")
    sound("small", "qcow")
    expect(os.path.getsize("small") < before + before // 4, "compact left packed clusters behind, or wrote them plain")


def test_backing():
    make_source("base", seed=2)
    for fmt in ("qcow2", "vhd", "qcow", "qed"):
        ours("convert", "-q", "-O", fmt, "-b", "base", "-F", "raw", "source", "over")
        ours("convert", "-q", "-f", fmt, "over", "back")
        same("source", "back", "raw")
        sound("over", fmt)
    ours("convert", "-q", "-O", "qcow2", "-b", "base", "-F", "raw", "base", "over")
    lines = load_json(ours("map", "--json", "over"))
    expect(all(line["depth"] == 1 or not line["present"] for line in lines), "an overlay copied its backing", lines)


def test_existing():
    for fmt in ("raw", "qcow2", "vhd", "vdi"):
        make_source("other", seed=3)
        ours("convert", "-q", "-O", fmt, "other", "there")
        inode = os.stat("there").st_ino
        ours("convert", "-q", "-n", "-O", fmt, "source", "there")
        expect_equal(os.stat("there").st_ino, inode, "-n made a new file")
        same("source", "there", fmt)
        sound("there", fmt)
    ours("create", "-q", "-f", "qcow2", "large", SIZE + (1 << 20))
    must("qemu-io", "-f", "qcow2", "-c", f"write -P 9 {SIZE} 1M", "large")
    ours("convert", "-q", "-n", "source", "large")
    same("source", "large", "qcow2")
    ours("create", "-q", "-f", "qcow2", "little", SIZE - 512)
    expect_refused(cownbd("convert", "-q", "-n", "source", "little"), "must be at least as large")


def test_range():
    with open("source", "rb") as file:
        whole = file.read()
    ours("convert", "-q", "-O", "qcow2", "source", "image")
    for offset, length in ((0, 512), (1000, 70000), ((3 << 20) + 7, 2 << 20), (SIZE - 1, 1), (0, SIZE)):
        ours("convert", "-q", "--range", f"{offset}:{length}", "image", "part")
        with open("part", "rb") as file:
            expect(file.read() == whole[offset:offset + length], "--range", offset, length)
    for text in (f"{SIZE}:1", f"0:{SIZE + 1}", "1:0", "5", "a:b", "1:2:3"):
        expect_refused(cownbd("convert", "-q", "--range", text, "image", "no"), "--range")


def test_refusals():
    os.symlink("source", "symlink")
    os.link("source", "hardlink")
    ours("create", "-q", "-f", "qcow2", "-b", "source", "-F", "raw", "over")
    for target in ("source", "symlink", "hardlink"):
        expect_refused(cownbd("convert", "source", target), "the same file")
        expect_refused(cownbd("convert", "over", target), "the same file")
        expect_refused(cownbd("convert", "-n", "source", target), "the same file")
    for arguments, words in (
            (("-O", "dmg", "source", "no"), ("dmg",)),
            (("-O", "vdi", "-c", "source", "no"), ("-c", "qcow2, qcow or vmdk")),
            (("-O", "raw", "-c", "source", "no"), ("-c", "qcow2, qcow or vmdk")),
            (("-O", "qcow2", "-o", "color=red", "source", "no"), ("color", "cluster_size")),
            (("-O", "qcow2", "-o", "size=1G", "source", "no"), ("size",)),
            (("-O", "qcow2", "--compression", "lzma", "source", "no"), ("zlib or zstd",)),
            (("-S", "3", "source", "no"), ("-S",)),
            (("-m", "1000", "source", "no"), ("1 to 256",)),
            (("-n", "-o", "compat=1.1", "source", "no"), ("-n",)),
            (("-O", "qcow2", "-b", "source", "source", "no"), ("-F",)),
            (("missing", "no"), ("missing", "No such file")),
            (("source", "/dev/null"), ("no regular file",)),
            (("source", "missing/no"), ("missing",)),
            (("--image-opts", "driver=raw", "no"), ("--image-opts", "its format by -f")),
            (("--object", "secret", "source", "no"), ("--object", "--secret-file")),
            (("-t", "none", "source", "no"), ("-t is 'none'", "writeback")),
            (("-T", "directsync", "source", "no"), ("-T is 'directsync'",)),
            (("-r", "0", "source", "no"), ("-r is '0'",)),
            (("--skip-broken-bitmaps", "source", "no"), ("without --bitmaps",)),
            (("source",), ("SRC and DST",))):
        expect_refused(cownbd("convert", *arguments), *words)
    expect(not os.path.exists("no"), "a refused conversion left a file")
    for path in ("symlink", "hardlink"):
        os.unlink(path)


def test_failures():
    """Damage in the middle of the source, a full host: the target stays what it was, nothing else is left."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "image", SIZE)
    must("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 9M", "image")
    with open("image", "r+b") as file:
        file.truncate(os.path.getsize("image") - (1 << 20))
    with open("target", "w", encoding="ascii") as file:
        file.write("as it was")
    before = sorted(os.listdir("."))
    result = cownbd("convert", "-q", "image", "target")
    expect_equal(result.returncode, 1, "a damaged source", result.stderr)
    expect("cannot read near offset" in result.stderr, result.stderr)
    full = run("bash", "-c", f"ulimit -f 1024; trap '' XFSZ; exec {COWNBD} convert -q -S 0 source target")
    expect_refused(full, "target: cannot set the size", "File too large")
    full = run("bash", "-c", f"ulimit -f 1024; trap '' XFSZ; exec {COWNBD} convert -q -S 0 -O qcow2 source target")
    expect_equal(full.returncode, 1, "a full host", full.stderr)
    expect("target: cannot write near offset" in full.stderr, full.stderr)
    with open("target", encoding="ascii") as file:
        expect_equal(file.read(), "as it was", "the target changed")
    expect_equal(sorted(os.listdir(".")), before, "files were left")


def test_killed():
    """Held at its first line of progress, whatever the threads have done by then, and killed: the target is as it was."""
    with open("target", "w", encoding="ascii") as file:
        file.write("as it was")
    before = sorted(os.listdir("."))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup leaves it ignored, in whatever is started
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        kill_held(number, "convert", "--json", "-O", "qcow2", "source", "target")
        expect_equal(sorted(os.listdir(".")), before, "files were left by signal", number)
        with open("target", "rb") as file:
            expect_equal(file.read(), b"as it was", "signal", number)


def test_snapshot():
    ours("convert", "-q", "-O", "qcow2", "source", "image")
    must("qemu-img", "snapshot", "-c", "before", "image")
    must("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 3M", "image")
    for named in ("--snapshot", "before"), ("-l", "before"), ("-l", "snapshot.name=before"), ("-l", "snapshot.id=1"):
        ours("convert", "-q", *named, "image", "copy")
        same("source", "copy", "raw")
    expect_refused(cownbd("convert", "-l", "before", "--snapshot=before", "image", "no"), "say it once")
    expect_refused(cownbd("convert", "-q", "--snapshot", "never", "image", "no"), "never")


def marks(image, name):
    """What a bitmap says, by a server of qemu: (offset, length) of what is marked."""
    server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-k", os.path.abspath("q"), "-B", name, image])
    while run("nbdinfo", "--size", "nbd+unix:///?socket=q").returncode != 0:
        expect(server.poll() is None, "qemu-nbd has ended") or sys.exit(1)
        time.sleep(0.05)
    pieces = load_json(must("nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}", "nbd+unix:///?socket=q"))
    server.terminate()
    server.wait(60)
    return [(piece["offset"], piece["length"]) for piece in pieces if piece["type"] == 1]


def test_bitmaps():
    """They come along as they are, and go on; what cannot be copied is refused before anything is."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "image", SIZE)
    for arguments in ("-g", "64k", "image", "kept"), ("--disable", "-g", "512", "image", "still"):
        must("qemu-img", "bitmap", "--add", *arguments)
    must("qemu-io", "-f", "qcow2", "-c", "write -P 3 1M 100k", "image")
    ours("convert", "-q", "--bitmaps", "-O", "qcow2", "image", "copy")
    must("qemu-img", "convert", "--bitmaps", "-O", "qcow2", "image", "theirs")
    must("qemu-img", "check", "-q", "copy")
    expect_equal(ours("bitmap", "list", "--json", "copy"), ours("bitmap", "list", "--json", "theirs"), "bitmaps")
    for name in "kept", "still":
        expect_equal(marks("copy", name), marks("image", name), name)
    expect_equal(marks("copy", "kept"), [(1 << 20, 2 << 16)], "kept")
    before = ours("info", "--json", "copy")
    expect_refused(cownbd("convert", "-q", "-n", "--bitmaps", "image", "copy"), "there is a bitmap 'kept' already")
    expect_equal(ours("info", "--json", "copy"), before, "a refused conversion has changed its target")
    ours("create", "-q", "-f", "qcow2", "larger", 2 * SIZE)
    before = ours("info", "--json", "larger")
    expect_refused(cownbd("convert", "-q", "-n", "--bitmaps", "image", "larger"), f"has {2 * SIZE} bytes", "as large")
    expect_equal(ours("info", "--json", "larger"), before, "a refused conversion has changed its target")
    for arguments, words in (
            (("-O", "raw", "image", "no"), ("-O qcow2",)), (("-O", "qcow2", "source", "no"), ("format raw has no bitmaps",)),
            (("--range", "0:512", "-O", "qcow2", "image", "no"), ("leave out --range",)),
            (("-O", "qcow2", "-o", "compat=0.10", "image", "no"), ("version 2 has no bitmaps",))):
        expect_refused(cownbd("convert", "-q", "--bitmaps", *arguments), *words)
    expect(not os.path.exists("no"), "a refused conversion left a file")


def test_target_is_zero():
    """Who says so is believed: what is zero in the source is not written."""
    ours("create", "-q", "-f", "qcow2", "there", SIZE)
    must("qemu-io", "-f", "qcow2", "-c", "write -P 5 2M 64k", "there")
    with open("source", "rb") as file:
        want = bytearray(file.read())
    expect(not any(want[2 << 20:(2 << 20) + 65536]), "the source has data there")
    ours("convert", "-q", "-n", "--target-is-zero", "source", "there")
    want[2 << 20:(2 << 20) + 65536] = b"\5" * 65536
    ours("convert", "-q", "there", "back")
    with open("back", "rb") as file:
        expect(file.read() == want, "--target-is-zero")
    expect_refused(cownbd("convert", "-q", "--target-is-zero", "source", "no"), "say -n")
    ours("create", "-q", "-f", "qcow2", "-b", "source", "-F", "raw", "over")
    expect_refused(cownbd("convert", "-q", "-n", "--target-is-zero", "image", "over"), "backing file")


def test_salvage():
    """Clusters behind the end of the file, and an entry that cannot be true: the rest is copied, all losses are told."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "image", SIZE)
    must("qemu-io", "-f", "qcow2", "-c", f"write -P 1 0 {SIZE}", "image")
    with open("image", "r+b") as file:
        file.truncate(os.path.getsize("image") - (1 << 20))
        file.seek(0x40000 + 2 * 8)  # the L2 table of a new image
        file.write(bytes([0x80, 0, 0, 0, 0, 1, 0x23, 0]))
    want = bytearray(b"\1" * SIZE)
    want[2 << 16:3 << 16] = bytes(1 << 16)
    want[SIZE - (1 << 20):] = bytes(1 << 20)
    expect_equal(cownbd("convert", "-q", "image", "back").returncode, 1, "a damaged image is converted")
    result = cownbd("convert", "--salvage", "image", "back")
    expect_equal(result.returncode, 0, result.stderr)
    with open("back", "rb") as file:
        expect(file.read() == want, "--salvage")
    told = [line for line in result.stderr.splitlines() if "zeroes stand there now" in line]
    expect_equal([line.split("cannot read ")[1].split(":")[0] for line in told],
                 [f"65536 bytes at offset {2 << 16}", f"{1 << 20} bytes at offset {SIZE - (1 << 20)}"], "losses")
    ours("convert", "-q", "--salvage", "-O", "vmdk", "-o", "subformat=streamOptimized", "image", "stream")
    same("back", "stream", "vmdk")


def test_rate():
    start = time.monotonic()
    with open("even", "wb") as file:
        file.write(b"\1" * (8 << 20))
    ours("convert", "-q", "-r", "40M", "even", "copy")
    expect(time.monotonic() - start >= 0.1, "faster than -r allows")
    same("even", "copy", "raw")


def test_locked():
    """A source that somebody writes is refused, and taken with -U."""
    ours("convert", "-q", "-O", "qcow2", "source", "image")
    server = subprocess.Popen([COWNBD, "serve", "--listen=unix:s.sock", "--control=none", "image"],
                              stdout=subprocess.PIPE, text=True)
    server.stdout.readline()
    expect_refused(cownbd("convert", "-q", "image", "copy"), "in use")
    expect_refused(cownbd("convert", "-q", "source", "image"), "in use")
    ours("convert", "-q", "-U", "image", "copy")
    same("source", "copy", "raw")
    server.terminate()
    server.wait(timeout=60)


def test_progress():
    lines = [load_json(line) for line in ours("convert", "--json", "source", "copy").splitlines()]
    expect_equal((lines[-1]["done"], lines[-1]["total"]), (SIZE, SIZE), "the last line of progress")
    expect_equal(sorted(lines[0]), ["bytes-per-second", "done", "seconds-left", "total"], "keys")
    expect_equal(cownbd("convert", "-q", "source", "copy").stderr, "", "-q prints")
    expect_equal(cownbd("convert", "source", "copy").stderr, "", "a bar where there is no terminal")
    lines = [load_json(line) for line in cownbd("convert", "-p", "source", "copy").stderr.splitlines()]
    expect_equal((lines[-1]["done"], lines[-1]["total"]), (SIZE, SIZE), "-p where there is no terminal")
    master, slave = pty.openpty()
    process = subprocess.Popen([COWNBD, "convert", "source", "copy"], stderr=slave, stdout=slave)
    os.close(slave)
    shown = b""
    try:
        while data := os.read(master, 4096):
            shown += data
    except OSError:  # how a terminal ends whose other side is closed
        pass
    os.close(master)
    expect_equal(process.wait(timeout=60), 0, "exit on a terminal")
    expect(b"100%" in shown and b"[=====" in shown and shown.endswith(b"\r\n"), "no bar on a terminal", shown)


with Workdir():
    make_source("source")
    for test in (test_matrix, test_reads_qemu, test_holes, test_preallocation, test_compressed, test_backing, test_existing,
                 test_range, test_refusals, test_failures, test_killed, test_snapshot, test_bitmaps, test_target_is_zero,
                 test_salvage, test_rate, test_locked, test_progress):
        test()
