#!/usr/bin/python3
"""Makes seeds/wire: what clients of several kinds send. Run it by hand; the results are in the tree."""
import os
import struct

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "seeds", "wire")


def option(number, data=b""):
    return struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data


def string(text):
    return struct.pack(">I", len(text)) + text


def info(name, *infos):
    return string(name) + struct.pack(">H", len(infos)) + b"".join(struct.pack(">H", i) for i in infos)


def meta(name, *queries):
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def request(command, offset=0, length=0, flags=0, payload=b""):
    return struct.pack(">IHHQQI", 0x25609513, flags, command, offset + 1000, offset, length) + payload


def wide(command, offset=0, length=0, flags=0, payload=b""):
    return struct.pack(">IHHQQQ", 0x21e41c71, flags, command, offset + 1000, offset, length) + payload


def named(length, *numbers):
    return struct.pack(">Q", length) + b"".join(struct.pack(">I", number) for number in numbers)


flags = struct.pack(">I", 3)
structured = option(8)
chosen = option(10, meta(b"", b"base:allocation"))
go = option(7, info(b"disk", 3))
work = (request(1, 3, 600, 0, b"w" * 600) + request(0, 0, 20000) + request(0, 1, 9000) + request(0, 1, 90, 4)
        + request(3) + request(4, 4096, 8192) + request(6, 100, 5, 3) + request(6, 1, 4096, 16)
        + request(5, 0, 90000) + request(7, 0, 90000) + request(7, 5, 10000, 8) + request(0, 90000, 9000)
        + request(1, 0, 0) + request(9) + request(0, 0, 0))
extended = option(11)
both = option(10, meta(b"", b"base:allocation", b"qemu:allocation-depth"))
wide_work = (wide(1, 3, 600, 32, b"w" * 600) + wide(0, 0, 20000) + wide(0, 1, 9000, 4) + wide(3) + wide(4, 4096, 8192)
             + wide(6, 100, 5, 3) + wide(7, 0, 90000) + wide(7, 0, 16, 32, named(90000, 1, 2))
             + wide(7, 5, 12, 40, named(9000, 2)) + wide(7, 0, 12, 32, named(9000, 3)) + wide(7, 0, 9, 32, b"n" * 9)
             + wide(1, 0, 512) + wide(0, 0, 300, 32, b"r" * 300) + wide(6, 0, 1 << 33) + wide(0, 0, 1 << 40)
             + wide(1, 1 << 40, 300, 32, b"p" * 300) + wide(9, 0, 5, 32, b"x" * 5))
seeds = {
    "extended": flags + extended + both + go + wide_work + wide(2),
    "extended-options": flags + structured + extended + structured + extended + option(11, b"x") + both
    + option(6, info(b"disk", 0, 1, 2, 3)) + go + wide_work,
    "extended-export-name": flags + extended + option(1, b"disk") + wide_work,
    "extended-half-a-payload": flags + extended + both + go + wide(7, 0, 16, 32, named(90000, 1)),
    "both-contexts": flags + structured + both + go + work,
    "go": flags + structured + chosen + go + work + request(2),
    "go-simple": flags + go + work,
    "export-name": flags + option(1, b"disk") + work,
    "export-name-zeroes": struct.pack(">I", 1) + option(1, b"") + work,
    "read-only": flags + structured + option(7, info(b"read-only")) + work,
    "options": flags + option(3) + option(9, meta(b"disk")) + option(5) + structured
    + option(9, meta(b"disk")) + option(9, meta(b"disk", b"base:", b"x")) + option(10, meta(b"disk", b"base:allocation", b"y:z"))
    + option(6, info(b"disk", 0, 1, 2, 3)) + option(6, info(b"none")) + option(77, b"abc") + option(2),
    "too-big": flags + struct.pack(">QII", 0x49484156454F5054, 3, 40000) + b"t" * 20000,
    "refused-writes": flags + structured + go + request(1, 1 << 40, 300, 0, b"r" * 300)
    + request(1, 0, 100, 8, b"r" * 100) + request(1, 0, 66 << 20, 0, b"x" * 99),
    "resize": flags + extended + both + go + wide(8, 50000) + wide(0, 49000, 2000) + wide(1, 0, 9, 32, b"w" * 9)
    + wide(8, 1 << 40) + wide(8, 4096, 1) + wide(8, 98304, 0, 1) + wide(7, 0, 98304) + request(8, 7),
    "starttls": flags + structured + option(5) + b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00" + option(3),
    "half-a-payload": flags + go + request(1, 0, 5000, 1, b"h" * 2000),
    "over-budget": flags + structured + go + request(0, 0, 96 << 10) * 8 + request(0, 3, 4096, 4) * 20,
}
os.makedirs(here, exist_ok=True)
for name, stream in seeds.items():
    for piece in (0, 13, 0xC0):
        with open(os.path.join(here, f"{name}-{piece}"), "wb") as out:
            out.write(bytes([piece]) + stream)
# Replies that leave while the next request comes in single bytes, each a record of TLS.
with open(os.path.join(here, "reads-129"), "wb") as out:
    out.write(bytes([129]) + flags + go + request(0, 1, 96000) * 4)
