#!/usr/bin/python3
"""map --dm: each line of the table says what the map says, and a fragmented image does not make it long."""

import json
import struct

from cli import OFFSET_MASK, Workdir, cownbd, expect, expect_equal, load_json, must, ours, qemu_io

SECTOR = 512


def table(image, *options):
    """(files by name, [(start, length, target, device, offset)]), bytes."""
    files, lines = {}, []
    for line in ours("map", "--dm", *options, image).splitlines():
        words = line.split()
        if words[0] == "#":
            files[words[1]] = json.loads(line.split(" is ", 1)[1])
        elif words[2] == "zero":
            lines.append((int(words[0]) * SECTOR, int(words[1]) * SECTOR, "zero", None, 0))
        else:
            lines.append((int(words[0]) * SECTOR, int(words[1]) * SECTOR, words[2], words[3], int(words[4]) * SECTOR))
    return files, lines


def covers(entries, line, files, read_only):
    """The map's entries below the line all say what the line says."""
    start, length, target, device, offset = line
    for e in entries:
        if e["start"] + e["length"] <= start or e["start"] >= start + length:
            continue
        if target == "zero":
            if not e["zero"]:
                return False
        elif not (e["data"] and "offset" in e and e["filename"] == files[device]
                  and e["offset"] - e["start"] == offset - start and (read_only or e["depth"] == 0)):
            return False
    return True


def compare(image, size, most, *options):
    """Every line is right, they leave no gap, and at least `most` bytes need no server."""
    read_only = "--read-only" in options
    files, lines = table(image, *options)
    # What is a hole of the host file is still data for a table.
    entries = [dict(e, data=True, zero=False) if "offset" in e and not e.get("compressed") else e
               for e in load_json(ours("map", "--json", image))]
    at = mapped = 0
    for line in lines:
        expect_equal(line[0], at, image, line)
        at += line[1]
        if line[3] == "NBD":
            expect_equal(line[4], line[0], image, line)
        else:
            mapped += line[1]
            expect(covers(entries, line, files, read_only), image, options, line)
    expect_equal(at, size, image)
    expect(mapped >= most, image, options, mapped, most)


def small():
    must("truncate", "-s", "4M", "base.raw")
    qemu_io("base.raw", "write -P 1 64k 64k", "write -P 2 1M 512k", fmt="raw")
    compare("base.raw", 4 << 20, 4 << 20)
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "top.qcow2", "6M")
    qemu_io("top.qcow2", "write -P 5 128k 128k", "write -z 1M 64k", "write -c -P 6 5M 64k", "write -P 7 3M 100k")
    compare("top.qcow2", 6 << 20, 128 + 128 << 10)
    compare("top.qcow2", 6 << 20, (6 << 20) - (64 << 10), "--read-only")
    must("qemu-img", "convert", "-O", "vmdk", "base.raw", "disk.vmdk")
    compare("disk.vmdk", 4 << 20, 4 << 20, "--read-only")
    must("qemu-img", "create", "-q", "-f", "qcow2", "nothing.qcow2", "0")
    expect_equal(table("nothing.qcow2"), ({}, []))


def fragment(image):
    """Turns each L2 table round, so that no two clusters follow each other."""
    with open(image, "r+b") as f:
        header = f.read(104)
        cluster = 1 << struct.unpack(">I", header[20:24])[0]
        size, = struct.unpack(">I", header[36:40])
        offset, = struct.unpack(">Q", header[40:48])
        f.seek(offset)
        for entry in struct.unpack(f">{size}Q", f.read(size * 8)):
            if entry & OFFSET_MASK:
                f.seek(entry & OFFSET_MASK)
                entries = list(struct.unpack(f">{cluster // 8}Q", f.read(cluster)))
                entries.reverse()
                f.seek(entry & OFFSET_MASK)
                f.write(struct.pack(f">{cluster // 8}Q", *entries))


def a_million_extents():
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k,preallocation=metadata", "many.qcow2",
         str(1000000 * 4096))
    fragment("many.qcow2")
    must("qemu-img", "check", "-q", "many.qcow2")
    _, lines = table("many.qcow2")
    expect_equal(len(lines), 1, "one line of a thousandth part of the data is not worth it")
    _, lines = table("many.qcow2", "--read-only", "--fast-path-lines", "500")
    expect(400 <= len(lines) <= 500, len(lines))


def refused():
    for options in (("--dm", "--json"), ("--read-only",), ("--dm", "--fast-path-lines", "0"),
                    ("--dm", "--fast-path-lines", "2000000"), ("--fast-path-lines", "7")):
        result = cownbd("map", *options, "base.raw")
        expect(result.returncode == 1 and result.stderr.startswith("cownbd: map: "), options, result.stderr)


with Workdir():
    small()
    a_million_extents()
    refused()
