#!/usr/bin/python3
"""Makes the golden images of vhd, byte by byte, after the specification.

    vhd.py [FORMAT/NAME...]

qemu reads no differencing image and looks at no bitmap, so what is expected comes from the description here: a model
of sectors, not a program that reads images.
"""
import struct

from golden import make_all, qemu
from vhd_model import (BLOCK, SECTOR, Disk, checksum, chain_expectation, locator_macx, locator_w2ku, locator_w2ru,
                       pattern)


def make_vhd__by_qemu(golden):
    """
    qemu-img convert -O vpc of a disk with data in one of two blocks of 2 MiB; its size is what the geometry says.
    qemu calls a block that is not there present, which we do not.
    """
    raw = golden.path("raw")
    raw.write_bytes(bytes(200 * SECTOR) + pattern(1, 20) + bytes(7000 * SECTOR))
    qemu("qemu-img", "convert", "-f", "raw", "-O", "vpc", raw, golden.path("top.vhd"))
    raw.unlink()
    golden.expect_as_qemu("top.vhd")
    golden.write("expect.map", golden.path("expect.map").read_text().replace("present zero", "absent zero"))


def make_vhd__cleared_bits(golden):
    """
    By hand: a dynamic disk whose first block has only some of its sector bits set, one of them alone, some that
    begin in the middle of a byte. What lies in the block where a bit is clear is rubbish: the disk is zero there.
    (qemu 7.2 shows the rubbish.) The disk ends inside its last block.
    """
    disk = Disk(2 * BLOCK + 5 * SECTOR)
    disk.block(0, {n: n for n in (0, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 31)}, rubbish=True)
    disk.block(2, {n: 64 + n for n in range(32)})
    golden.write("top.vhd", disk.build())
    golden.expect(*chain_expectation([("top.vhd", disk)]))


def make_vhd__differencing(golden):
    """
    By hand: two differencing images on a dynamic one, found by W2ru in ".\\" and in "..\\"-less form. Single sectors
    of a block come from each of the three, and blocks that only one of them has.
    """
    base = Disk(4 * BLOCK, uuid=1)
    base.block(0, {n: n for n in range(32)})
    base.block(1, {n: 32 + n for n in range(32)})
    middle = Disk(4 * BLOCK, uuid=2, parent=1, locators=[locator_w2ru(".\\base.vhd")])
    middle.block(1, {n: 1032 + n for n in range(3, 20)}, rubbish=True)
    middle.block(2, {n: 1064 + n for n in (0, 1, 31)}, rubbish=True)
    top = Disk(4 * BLOCK, uuid=3, parent=2, locators=[locator_w2ru("middle.vhd")])
    top.block(1, {n: 2032 + n for n in (0, 7, 30)}, rubbish=True)
    golden.write("base.vhd", base.build())
    golden.write("middle.vhd", middle.build())
    golden.write("top.vhd", top.build())
    golden.expect(*chain_expectation([("top.vhd", top), ("middle.vhd", middle), ("base.vhd", base)]))


def make_vhd__parent_of_windows(golden):
    """
    By hand: the only locator is an absolute path of a Windows machine, its space counted in bytes; the parent lies
    beside the image.
    """
    base = Disk(BLOCK, uuid=7)
    base.block(0, {n: n for n in range(32)})
    top = Disk(BLOCK, uuid=8, parent=7,
               locators=[locator_w2ku("C:\\Virtual Machines\\old base.vhd", space_in_bytes=True)])
    top.block(0, {4: 104}, rubbish=True)
    golden.write("old base.vhd", base.build())
    golden.write("top.vhd", top.build())
    golden.expect(*chain_expectation([("top.vhd", top), ("old base.vhd", base)]))


def make_vhd__xen_raw_parent(golden):
    """
    By hand, as blktap's vhd-util does: a parent that is no vhd has no UUID (all zeroes), and is named by a URL.
    """
    raw = b"".join(pattern(n, 1) for n in range(64))
    top = Disk(2 * BLOCK, uuid=9, parent=0, creator=b"tap\0", locators=[locator_macx("file://./base%20image.raw")])
    top.block(1, {n: 132 + n for n in (2, 3, 4)}, rubbish=True)
    golden.write("base image.raw", raw)
    golden.write("top.vhd", top.build())
    golden.expect(*chain_expectation([("top.vhd", top), ("base image.raw", raw)]))


def make_vhd__batmap(golden):
    """
    By hand: as blktap writes it, a "batmap" behind the table and blocks behind that, their data on 4096 bytes.
    """
    disk = Disk(3 * BLOCK, creator=b"tap\0", batmap=True, alignment=4096)
    disk.block(2, {n: 64 + n for n in range(32)})
    disk.block(0, {n: n for n in range(32)})
    golden.write("top.vhd", disk.build())
    golden.expect(*chain_expectation([("top.vhd", disk)]))


def make_vhd__footer_of_511_bytes(golden):
    """
    By hand: as early versions of Virtual PC, with a footer at the end that lacks its last byte.
    """
    disk = Disk(BLOCK)
    disk.block(0, {n: n for n in range(32)})
    image = disk.build()
    golden.write("top.vhd", image[:-1])
    golden.expect(*chain_expectation([("top.vhd", disk)]))


def make_vhd__no_footer_at_end(golden):
    """
    By hand: the file has grown, then the power went: there is no footer at its end, only the copy at its start.
    """
    disk = Disk(2 * BLOCK)
    disk.block(1, {n: n for n in range(32)})
    golden.write("top.vhd", disk.build()[:-SECTOR] + bytes(9000))
    golden.expect(*chain_expectation([("top.vhd", disk)]))


def make_vhd__fixed(golden):
    """
    By hand: a fixed disk, whose only magic is at its end.
    """
    disk = Disk(40 * SECTOR, fixed=True)
    content = b"".join(pattern(n, 1) for n in range(40))
    golden.write("top.vhd", content + disk.footer())
    golden.expect(*chain_expectation([("top.vhd", content)]))


def make_vhd__size_by_geometry(golden):
    """
    By hand: made by Virtual PC ("vpc "): the disk has the size that its geometry says, less than the current size.
    """
    disk = Disk(3 * 4 * 17 * SECTOR, creator=b"vpc ", geometry=(3, 4, 17), current=3 * 4 * 17 * SECTOR + 9 * SECTOR)
    disk.block(0, {n: n for n in range(32)})
    golden.write("top.vhd", disk.build())
    golden.expect(*chain_expectation([("top.vhd", disk)]))


def make_vhd__refused_other_parent(golden):
    """
    By hand: the file that the locator names has another UUID.
    """
    top = Disk(BLOCK, uuid=8, parent=7, locators=[locator_w2ru("base.vhd")])
    golden.write("base.vhd", Disk(BLOCK, uuid=6).build())
    golden.write("top.vhd", top.build())
    golden.expect_error("parent UUID is 07070707")


def make_vhd__refused_no_parent(golden):
    """
    By hand: a differencing disk without locators and without a name.
    """
    top = Disk(BLOCK, uuid=8, parent=7)
    golden.write("top.vhd", top.build())
    golden.expect_error("type is 4 (differencing), but neither")


def make_vhd__refused_outside(golden):
    """
    By hand: the locator leads out of the image's directory.
    """
    top = Disk(BLOCK, uuid=8, parent=0, locators=[locator_w2ru("..\\..\\..\\..\\..\\..\\..\\..\\etc\\passwd")])
    golden.write("top.vhd", top.build())
    golden.expect_error("lies outside the directory of the image")


def make_vhd__refused_block_size(golden):
    """
    By hand: a block size of 3 sectors, with the right checksum.
    """
    image = bytearray(Disk(BLOCK).build())
    struct.pack_into(">I", image, SECTOR + 32, 3 * SECTOR)
    struct.pack_into(">I", image, SECTOR + 36, checksum(image[SECTOR:3 * SECTOR], 36))
    golden.write("top.vhd", bytes(image))
    golden.expect_error("block size is 1536")


if __name__ == "__main__":
    import sys
    make_all(globals(), sys.argv[1:])
