#!/usr/bin/python3
"""convert makes streamOptimized vmdk from the front to the end, into files and pipes; a strict reader of its own goes
through them, qemu-img and 7-Zip read them."""
import os
import random
import struct
import subprocess
import zlib

from cli import COWNBD, Workdir, cownbd, expect, expect_equal, expect_refused, must, ours, run

SECTOR, ENTRIES = 512, 512
END, TABLE, DIRECTORY, FOOTER = range(4)
HEADER = ("capacity", "grain", "descriptor", "descriptor_size", "entries", "rgd", "gd", "overhead")
STREAM = ("-O", "vmdk", "-o", "subformat=streamOptimized")


def make_source(path, size):
    """Text, noise, zeroes that are written, holes, and data in the last byte."""
    dice = random.Random(size)
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in ((0, b"words that compress " * 9000), (size // 3, dice.randbytes(200000)),
                             (size // 2, bytes(300000)), (size - 700, dice.randbytes(700))):
            file.seek(offset)
            file.write(data)
        file.truncate(size)


def sector(image, number):
    return image[number * SECTOR:(number + 1) * SECTOR]


def header(data, what):
    fields = struct.unpack("<4sIIQQQQIQQQB4sH", data[:79])
    expect_equal(fields[:3] + fields[11:], (b"KDMV", 3, 0x30001, 0, b"\n \r\n", 1), what)
    return dict(zip(HEADER, fields[3:11]))


def walk(image):
    """The contents, read as strictly as can be: nothing is sought, everything follows what came before."""
    head = header(image, "header")
    expect_equal((head["gd"], head["rgd"], head["entries"], head["descriptor"]), (2 ** 64 - 1, 0, ENTRIES, 1), "header")
    grain, at = head["grain"], head["overhead"]
    contents = bytearray(-(-head["capacity"] // grain) * grain * SECTOR)
    placed, tables, directory, last, kinds = {}, {}, None, -1, []
    while True:
        value, size, kind = struct.unpack("<QII", sector(image, at)[:16])
        if size:  # a grain
            expect(value > last and value % grain == 0, "grain at", at, "is of sector", value, "after", last)
            expect_equal(kinds[-1:] in ([], [TABLE]), True, "a grain behind the directory")
            packed = image[at * SECTOR + 12:at * SECTOR + 12 + size]
            data = zlib.decompress(packed)
            expect_equal(len(data), grain * SECTOR, "bytes of the grain of sector", value)
            expect(any(data), "a grain of zeroes is stored")
            contents[value * SECTOR:value * SECTOR + len(data)] = data
            placed[value // grain], last = at, value
            end = at * SECTOR + 12 + size
            expect(not any(image[end:-(-end // SECTOR) * SECTOR]), "padding of the grain of sector", value)
            at = -(-end // SECTOR)
            continue
        expect(not any(sector(image, at)[16:]), "padding of the marker at", at)
        kinds.append(kind)
        at += 1
        if kind == TABLE:
            entries = struct.unpack("<512I", image[at * SECTOR:(at + value) * SECTOR])
            number = last // grain // ENTRIES
            expect_equal({number * ENTRIES + i: e for i, e in enumerate(entries) if e},
                         {g: p for g, p in placed.items() if g // ENTRIES == number}, "grain table", number)
            tables[number] = at
        elif kind == DIRECTORY:
            count = -(-len(contents) // SECTOR // (grain * ENTRIES))
            directory = at
            expect_equal(value, -(-count * 4 // SECTOR), "sectors of the directory")
            found = struct.unpack("<%dI" % count, image[at * SECTOR:at * SECTOR + count * 4])
            expect_equal({i: e for i, e in enumerate(found) if e}, tables, "directory")
        elif kind == FOOTER:
            foot = header(sector(image, at), "footer")
            expect_equal(foot, dict(head, gd=directory), "footer")
        else:
            break
        at += value
    expect_equal(kinds[-3:], [DIRECTORY, FOOTER, END], "the last markers")
    expect_equal(at * SECTOR, len(image), "end of the image")
    return bytes(contents[:head["capacity"] * SECTOR])


def test_layout():
    """Whole grains and cut ones, one table and more, with holes left out and tables that are not there."""
    for size, options in ((3 << 20, ()), ((5 << 20) + 1536, ()), (700, ()), (9 << 20, ("-o", "grain_size=4k")),
                          (100 << 20, ("-m", "8")), ((40 << 20) + 512, ("-o", "grain_size=1M", "-m", "3")),
                          (3 << 20, ("-c", "-o", "adapter_type=lsilogic"))):
        make_source("source", size)
        ours("convert", "-q", *STREAM, *options, "source", "image")
        with open("source", "rb") as file, open("image", "rb") as image:
            source = file.read()
            expect(walk(image.read()) == source + bytes(-size % SECTOR), size, options, "another disk")
        must("qemu-img", "compare", "-q", "-f", "raw", "-F", "vmdk", "source", "image")
        ours("compare", "source", "image")
        must("qemu-img", "check", "-q", "-f", "vmdk", "image")
        ours("check", "image")
        with open("unpacked", "wb") as out:
            subprocess.run(["7zz", "x", "-so", "-tvmdk", "image"], stdout=out, stderr=subprocess.DEVNULL, check=True)
        must("cmp", "-n", size, "source", "unpacked")


def test_pipe():
    """Through a pipe comes the same, whatever the number of threads; only the random CID differs."""
    make_source("source", 20 << 20)
    ours("convert", "-q", *STREAM, "-m", "1", "source", "image")
    with open("image", "rb") as file:
        image = file.read()
    for threads in (1, 2, 7):
        done = subprocess.run([COWNBD, "convert", *STREAM, "-m", str(threads), "source", "-"], capture_output=True,
                              check=True, timeout=120)
        expect_equal(done.stderr, b"", "printed beside the image")
        expect(done.stdout[64 << 10:-2 * SECTOR] == image[64 << 10:-2 * SECTOR], threads, "threads: another image")
        with open("piped", "wb") as file:
            file.write(done.stdout)
        must("qemu-img", "compare", "-q", "-f", "raw", "-F", "vmdk", "source", "piped")


def test_zeroes():
    with open("zeroes", "wb") as file:
        file.truncate(70 << 20)
    ours("convert", "-q", *STREAM, "zeroes", "image")
    with open("image", "rb") as file:
        expect(walk(file.read()) == bytes(70 << 20), "an empty disk")
    expect(os.path.getsize("image") < 70 << 10, "an empty disk takes", os.path.getsize("image"))
    ours("convert", "-q", *STREAM, "-S", "0", "zeroes", "all")
    report = must("qemu-img", "check", "-f", "vmdk", "all")
    expect_equal(run("qemu-img", "compare", "zeroes", "all").returncode, 0, "-S 0", report)
    expect(os.path.getsize("all") > (70 << 4) * SECTOR, "-S 0 leaves zeroes out")


def test_range_and_chain():
    """A part of an overlay; the target replaces what was there."""
    make_source("source", 8 << 20)
    ours("create", "-f", "qcow2", "-b", "source", "-F", "raw", "top")
    must("qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 1M", "top")
    ours("convert", "-q", "--range", "1M:3M", "top", "part")
    ours("convert", "-q", *STREAM, "--range", "1M:3M", "top", "image")
    ours("compare", "part", "image")


def test_refusals():
    make_source("source", 3 << 20)
    before = sorted(os.listdir("."))
    expect_refused(cownbd("convert", "-O", "raw", "source", "-"), "subformat=streamOptimized")
    expect_refused(cownbd("convert", "-n", *STREAM[:2], "source", "-"), "subformat=streamOptimized")
    expect_refused(cownbd("convert", "--json", *STREAM, "source", "-"), "--json")
    expect_refused(cownbd("convert", "-c", "-O", "vmdk", "source", "new"), "-c")
    expect_refused(cownbd("convert", *STREAM, "-o", "grain_size=5k", "source", "new"), "grain_size is '5k'")
    expect_refused(cownbd("convert", *STREAM, "-b", "image", "-F", "vmdk", "source", "new"), "no backing file")
    expect_refused(cownbd("convert", *STREAM, "source", "/nowhere/new"), "/nowhere")
    expect_equal(sorted(os.listdir(".")), before, "a refused run left something")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([COWNBD, "convert", *STREAM, "source", "-"], stdout=writer, stderr=subprocess.PIPE, text=True,
                          timeout=120)
    os.close(writer)
    done.stdout = ""
    expect_refused(done, "Broken pipe")


with Workdir():
    for test in (test_layout, test_pipe, test_zeroes, test_range_and_chain, test_refusals):
        test()
