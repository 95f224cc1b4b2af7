#!/usr/bin/python3
"""Makes the golden images of dmg, byte by byte.

    dmg.py [FORMAT/NAME...]

What is expected comes from the description here. qemu-img 7.2 reads the same contents where it knows the compression.
"""
import base64
import bz2
import lzma
import struct
import sys
import zlib

import lzfse
from golden import make_all

SECTOR = 512
ZERO, RAW, IGNORE, ADC, ZLIB, BZIP2, LZFSE, XZ = 0, 1, 2, 0x80000004, 0x80000005, 0x80000006, 0x80000007, 0x80000008
COMMENT, END = 0x7FFFFFFE, 0xFFFFFFFF


def pattern(number, sectors):
    return (b"chunk %05d " % number * (sectors * SECTOR // 12 + 1))[:sectors * SECTOR]


def adc(data):
    """The first twelve bytes as they are, then copies of three lengths from twelve bytes back, and a far one."""
    packed, at = bytes([0x80 | 11]) + data[:12], 12
    while at < len(data):
        left = len(data) - at
        if left >= 67:
            packed, at = packed + bytes([0x40 | 63]) + struct.pack(">H", 11), at + 67
        elif left >= 3:
            length = min(left, 18)
            packed, at = packed + bytes([(length - 3) << 2, 11]), at + length
        else:
            packed, at = packed + bytes([0x80 | left - 1]) + data[at:], len(data)
    return packed


CONTENT = {LZFSE: lambda number, sectors: lzfse.sample(number, sectors * SECTOR)}
PACK = {RAW: bytes, ADC: adc, ZLIB: zlib.compress, BZIP2: bz2.compress, LZFSE: lzfse.compress, XZ: lzma.compress}


class Dmg:
    """tables: lists of (type, number, sectors); they follow each other on the disk."""

    def __init__(self, tables, sectors=None, fork=0, data_offset=0, pack=None):
        pack = PACK | (pack or {})
        self.contents, self.entries, body, lists = b"", [], b"\xee" * (fork + data_offset), []
        for chunks in tables:
            first, rows, inside = len(self.contents) // SECTOR, [], 0
            for kind, number, count in chunks:
                content = CONTENT.get(kind, pattern)(number, count) if kind in PACK else bytes(count * SECTOR)
                stored = pack[kind](content) if kind in PACK else b""
                rows.append(struct.pack(">IIQQQQ", kind, 0, inside, count, len(body) - fork - data_offset, len(stored)))
                self.note(kind, count * SECTOR, len(body))
                body += stored
                self.contents += content
                inside += count
            rows.append(struct.pack(">IIQQQQ", COMMENT, 0x2B626567, inside, 0, len(body) - fork - data_offset, 0))
            rows.append(struct.pack(">IIQQQQ", END, 0, inside, 0, len(body) - fork - data_offset, 0))
            head = struct.pack(">4sIQQQII24x136xI", b"mish", 1, first, inside, data_offset, 0, 0, len(rows))
            lists.append(head + b"".join(rows))
        sectors = sectors or len(self.contents) // SECTOR
        self.rest(sectors * SECTOR - len(self.contents))
        plist = self.plist(lists)
        trailer = struct.pack(">4sIIIQQQQQII16s136xQQ120x136xIQ12x", b"koly", 4, 512, 1, 0, fork, len(body), 0, 0, 1, 1,
                              bytes(16), len(body), len(plist), 1, sectors)
        self.image = body + plist + trailer

    def rest(self, length):
        self.contents += bytes(length)
        if length:
            self.note(ZERO, length, 0)

    def note(self, kind, length, at):
        start = self.entries[-1]["start"] + self.entries[-1]["length"] if self.entries else 0
        data = kind in PACK
        entry = {"start": start, "length": length, "depth": 0, "present": True, "data": data, "zero": not data}
        if kind == RAW:
            entry.update(offset=at, filename="top.dmg")
        last = self.entries[-1] if self.entries else None
        if last and kind != RAW and "offset" not in last and last["data"] == data:
            last["length"] += length
        else:
            self.entries.append(entry)

    @staticmethod
    def plist(lists):
        text = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE plist PUBLIC "-//Apple Computer//DTD PLIST 1.0//EN" ' \
               '"http://www.apple.com/DTDs/PropertyList-1.0.dtd">\n<plist version="1.0">\n<dict>\n' \
               '\t<key>resource-fork</key>\n\t<dict>\n\t\t<key>blkx</key>\n\t\t<array>\n'
        for number, table in enumerate(lists):
            data = base64.encodebytes(table).decode().replace("\n", "\n\t\t\t\t")
            text += '\t\t\t<dict>\n\t\t\t\t<key>Attributes</key>\n\t\t\t\t<string>0x0050</string>\n' \
                    '\t\t\t\t<key>Data</key>\n\t\t\t\t<data>\n\t\t\t\t%s</data>\n\t\t\t\t<key>ID</key>\n' \
                    '\t\t\t\t<string>%d</string>\n\t\t\t</dict>\n' % (data, number)
        text += '\t\t</array>\n\t\t<key>plst</key>\n\t\t<array>\n\t\t\t<dict>\n\t\t\t\t<key>Data</key>\n' \
                '\t\t\t\t<data>AAAA</data>\n\t\t\t</dict>\n\t\t</array>\n\t</dict>\n</dict>\n</plist>\n'
        return text.encode()


def write(golden, dmg):
    golden.write("top.dmg", dmg.image)
    golden.expect(dmg.contents, dmg.entries)


def make_dmg__every_type(golden):
    """
    By hand: two tables with chunks of all kinds but lzfse (dmg/lzfse), of different lengths; data that other readers call ignored is
    zero. The disk is longer than its chunks say.
    """
    write(golden, Dmg([[(ZLIB, 0, 7), (RAW, 1, 3), (ZERO, 2, 20), (BZIP2, 3, 64)],
                       [(XZ, 4, 33), (IGNORE, 5, 9), (ADC, 6, 5), (RAW, 7, 1), (ZLIB, 8, 128)]], sectors=300))


def make_dmg__offsets(golden):
    """
    By hand: a data fork that begins behind other bytes, and a table with an offset of its own.
    """
    write(golden, Dmg([[(RAW, 0, 2), (ZLIB, 1, 2)]], fork=1000, data_offset=24))


def make_dmg__lzfse(golden):
    """
    By hand: chunks in lzfse as newer macOS writes them, in blocks of LZVN and of entropy with a packed head. 7-Zip 26.02
    reads the same.
    """
    write(golden, Dmg([[(LZFSE, 1, 128), (LZFSE, 2, 1), (LZFSE, 3, 33)]]))


def make_dmg__lzfse_blocks(golden):
    """
    By hand: blocks of the two kinds, too, that no writer of images is known to make: bytes as they are, and a plain head.
    They stand between others, which repeat what is in them.
    """
    kinds = ["plain", "fse", "tables", "lzvn"]
    write(golden, Dmg([[(LZFSE, 4, 100)]], pack={LZFSE: lambda data: lzfse.compress(data, kinds, 3000)}))


def make_dmg__refused_no_trailer(golden):
    """By hand: what is left of a download that was cut off."""
    golden.write("top.dmg", Dmg([[(ZLIB, 0, 400)]]).image[:-300])
    golden.expect_error("no trailer with the magic koly")


def make_dmg__refused_overlap(golden):
    """By hand: two tables speak of the same sectors."""
    dmg = Dmg([[(RAW, 0, 2)], [(RAW, 1, 2)]])
    # the second table's first sector
    text = dmg.image
    old = base64.b64encode(struct.pack(">4sIQQQII24x136xI", b"mish", 1, 2, 2, 0, 0, 0, 3))[:24]
    new = base64.b64encode(struct.pack(">4sIQQQII24x136xI", b"mish", 1, 1, 2, 0, 0, 0, 3))[:24]
    at = text.rindex(old[:16])
    golden.write("top.dmg", text[:at] + text[at:].replace(old, new, 1))
    golden.expect_error("two chunks overlap")


if __name__ == "__main__":
    make_all(globals(), sys.argv[1:])
