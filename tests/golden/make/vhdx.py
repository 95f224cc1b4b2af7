#!/usr/bin/python3
"""Makes the golden images of vhdx, byte by byte, after the specification.

    vhdx.py [FORMAT/NAME...]

qemu reads no differencing image and calls holes data, so what is expected comes from the description here: a model of
sectors, not a program that reads images. The files are packed: a vhdx is large and empty.
"""
import struct

from golden import make_all, qemu
from vhdx_model import (DATA, MIB, NOT_PRESENT, PAGE, PRESENT, TABLE, UNDEFINED, UNMAPPED, ZERO, Disk,
                        chain_expectation, log_entry, pattern)

FULL = {sector: 100 + sector for sector in range(2048)}


def full(first):
    return {sector: first + sector for sector in range(2048)}


def put(golden, *chain):
    for name, disk in chain:
        golden.write(name, disk.build())
    golden.expect(*chain_expectation(chain))


def make_vhdx__by_qemu(golden):
    """
    qemu-img convert -O vhdx of a disk with data in two of five blocks of 1 MiB, which it puts behind 8 MiB. qemu 7.2
    calls all of such a disk data, also what its own table says are zeroes.
    """
    raw = golden.path("raw")
    contents = bytes(MIB) + pattern(1, MIB) + bytes(2 * MIB) + pattern(2, MIB)
    raw.write_bytes(contents)
    qemu("qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", raw, golden.path("top.vhdx"))
    raw.unlink()
    golden.expect(contents, [
        {"start": 0, "length": MIB, "depth": 0, "present": True, "data": False, "zero": True},
        {"start": MIB, "length": MIB, "depth": 0, "present": True, "data": True, "zero": False, "offset": 8 * MIB},
        {"start": 2 * MIB, "length": 2 * MIB, "depth": 0, "present": True, "data": False, "zero": True},
        {"start": 4 * MIB, "length": MIB, "depth": 0, "present": True, "data": True, "zero": False, "offset": 9 * MIB},
    ])


def make_vhdx__states(golden):
    """
    By hand: a block in each state that a dynamic disk has; those that are not here hold nothing but zeroes, whatever
    their entries say. The blocks lie in another order than on the disk, which ends inside the last one.
    """
    blocks = {5: full(5000), 0: NOT_PRESENT, 1: UNDEFINED, 2: ZERO, 3: UNMAPPED, 4: full(4000), 6: full(6000)}
    put(golden, ("top.vhdx", Disk(6 * MIB + 700 * 512, blocks)))


def make_vhdx__differencing(golden):
    """
    By hand: two differencing images on a dynamic one. Single sectors come from each of the three; where a bit is
    clear lies rubbish; a block of zeroes hides the parent.
    """
    size = 4 * MIB
    base = Disk(size, {0: full(0), 1: full(2048), 2: full(4096)}, me=1)
    middle = Disk(size, {1: {n: 20000 + n for n in list(range(3, 20)) + [2047]}, 3: {0: 30000, 9: 30009}}, me=2,
                  parent=1, name=".\\base.vhdx")
    top = Disk(size, {1: {0: 40000, 7: 40007, 8: 40008, 2046: 42046}, 2: ZERO, 3: (PRESENT, full(50000))}, me=3,
               parent=2, name="middle.vhdx")
    put(golden, ("top.vhdx", top), ("middle.vhdx", middle), ("base.vhdx", base))


def make_vhdx__sectors_of_4096(golden):
    """
    By hand: a chain of disks whose sectors have 4096 bytes, with a bit each. The table has its sector bits behind
    32768 blocks.
    """
    base = Disk(2 * MIB, {0: {n: n for n in range(256)}}, me=1, sector=4096)
    top = Disk(2 * MIB, {0: {n: 1000 + n for n in (1, 7, 8, 9, 255)}, 1: {0: 2000}}, me=2, sector=4096, parent=1,
               name="base.vhdx")
    put(golden, ("top.vhdx", top), ("base.vhdx", base))


def make_vhdx__parent_of_windows(golden):
    """
    By hand: the locator has the GUID in capital letters, and the path of a Windows machine; the parent lies beside.
    """
    base = Disk(MIB, {0: full(0)}, me=0xAB)
    locator = [("absolute_win32_path", "C:\\Virtual Machines\\old base.vhdx"),
               ("parent_linkage", "{000000AB-0000-4000-8000-000000000000}")]
    put(golden, ("top.vhdx", Disk(MIB, {0: {5: 5000}}, me=2, parent=0xAB, locator=locator)), ("old base.vhdx", base))


def make_vhdx__fixed(golden):
    """
    By hand: a fixed image has all its blocks.
    """
    put(golden, ("top.vhdx", Disk(2 * MIB, {0: full(0), 1: full(3000)}, fixed=True)))


def make_vhdx__log(golden):
    """
    By hand: the last writer was cut off. The log has three entries; the first is older than the tail of the last one,
    and must not be done again. The second gives block 0 and block 1 their places, the third makes zeroes of a page of
    the table and says again where block 1 is: block 0 is gone. In place the table has nothing of it.
    """
    disk = Disk(3 * MIB, {1: full(0)}, log_guid=9)
    disk.build()
    size = DATA + MIB
    wrong = struct.pack("<QQQ", 5, 5, 5).ljust(PAGE, b"\0")
    first = struct.pack("<QQ", DATA | PRESENT, 0).ljust(PAGE, b"\0")
    second = struct.pack("<QQ", 0, DATA | PRESENT).ljust(PAGE, b"\0")
    disk.log = (log_entry(0, 41, 9, size, size, pages=[(TABLE, wrong)]) +
                log_entry(2 * PAGE, 42, 9, size, size, pages=[(TABLE, first)]) +
                log_entry(2 * PAGE, 43, 9, size, size, pages=[(TABLE, second)], zeroes=[(TABLE + PAGE, 2 * PAGE)]))
    image = bytearray(disk.build())
    image[TABLE:TABLE + PAGE] = bytes(PAGE)
    image[TABLE + PAGE:TABLE + 2 * PAGE] = b"\5" * PAGE
    golden.write("top.vhdx", bytes(image))
    golden.expect(*chain_expectation([("top.vhdx", disk)]))


def make_vhdx__log_of_another(golden):
    """
    By hand: the header's GUID of the log is null: what lies there is of long ago.
    """
    disk = Disk(MIB, {0: full(0)})
    disk.log = log_entry(0, 1, 9, DATA, DATA, pages=[(TABLE, bytes(PAGE))])
    put(golden, ("top.vhdx", disk))


def make_vhdx__refused_torn_log(golden):
    """
    By hand: the header says that the log has entries, but the only one was not written as a whole.
    """
    disk = Disk(MIB, {}, log_guid=9)
    disk.log = log_entry(0, 1, 9, DATA, DATA, pages=[(TABLE, bytes(PAGE))])[:-512]
    golden.write("top.vhdx", disk.build())
    golden.expect_error("the log is damaged")


def make_vhdx__refused_changed_parent(golden):
    """
    By hand: the parent was written to after the child was made, so it has another GUID.
    """
    golden.write("base.vhdx", Disk(MIB, {}, me=5).build())
    golden.write("top.vhdx", Disk(MIB, {}, me=2, parent=1, name="base.vhdx").build())
    golden.expect_error("parent_linkage is {00000001-")


def make_vhdx__refused_outside(golden):
    """
    By hand: the locator leads out of the image's directory.
    """
    top = Disk(MIB, {}, me=2, parent=1, name="..\\..\\..\\..\\..\\..\\..\\etc\\passwd")
    golden.write("top.vhdx", top.build())
    golden.expect_error("lies outside the directory of the image")


if __name__ == "__main__":
    import sys
    make_all(globals(), sys.argv[1:])
