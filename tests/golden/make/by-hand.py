#!/usr/bin/python3
"""Makes the golden images that qemu-img cannot make: byte by byte, after the specification.

    by-hand.py [FORMAT/NAME...]

What is expected of them comes from the same description, not from a program that reads them.
"""
import struct
import sys
import zlib

from golden import make_all

SECTOR = 512
GRAIN = 4096
ENTRIES = 512

HEAD = '# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=%08x\ncreateType="%s"\n'
NO_PARENT = 0xFFFFFFFF


def pad(data, size=SECTOR):
    return data + bytes(-len(data) % size)


def pattern(number, size=GRAIN):
    """Bytes that say which grain they belong to."""
    return (b"grain %05d " % number * (size // 12 + 1))[:size]


def header(capacity, directory, descriptor=0, descriptor_sectors=0, flags=3, compression=0):
    return pad(struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", 1, flags, capacity, GRAIN // SECTOR,
                           descriptor, descriptor_sectors, ENTRIES, 0, directory, 0, 0,
                           b"\n \r\n", compression))


def sparse(capacity, grains, descriptor=b"", flags=3, descriptor_sectors=None):
    """A sparse extent. grains: number -> bytes, or an entry's value as it is."""
    text = pad(descriptor)
    if descriptor_sectors:
        text += bytes(descriptor_sectors * SECTOR - len(text))
    directory = 1 + len(text) // SECTOR
    tables = -(-capacity * SECTOR // (GRAIN * ENTRIES))
    table = directory + -(-tables * 4 // SECTOR)
    first = table + tables * ENTRIES * 4 // SECTOR
    entries, data = [0] * (tables * ENTRIES), b""
    for number, content in sorted(grains.items()):
        if isinstance(content, int):
            entries[number] = content
        else:
            entries[number] = first + len(data) // SECTOR
            data += pad(content, GRAIN)
    places = [table + index * ENTRIES * 4 // SECTOR for index in range(tables)]
    image = header(capacity, directory, 1 if text else 0, len(text) // SECTOR, flags) + text
    image += pad(struct.pack("<%dI" % tables, *places))
    image += struct.pack("<%dI" % len(entries), *entries)
    assert len(image) == first * SECTOR
    return image + data, {number: entries[number] * SECTOR for number in grains}


def entry(start, length, kind, at=None, name=None, depth=0, present=True):
    found = {"start": start, "length": length, "depth": depth, "present": present,
             "data": kind == "data", "zero": kind == "zero"}
    if at is not None:
        found.update(offset=at, filename=name)
    return found


def make_vmdk__zero_grains(golden):
    """
    By hand: an overlay with flag 4, whose grain 1 has the entry 1: zeroes, though the base has data there.
    Grain 2 has the entry 0: the base shows. The disk ends in the middle of grain 3.
    """
    text = (HEAD % (2, 1, "monolithicSparse")) + 'parentFileNameHint="base.vmdk"\nRW 28 SPARSE "x"\n'
    base, base_at = sparse(28, {number: pattern(number) for number in range(4)},
                           (HEAD % (1, NO_PARENT, "monolithicSparse")).encode())
    top, at = sparse(28, {0: pattern(100), 1: 1}, text.encode(), flags=3 | 4)
    golden.write("base.vmdk", base)
    golden.write("top.vmdk", top)
    contents = pattern(100) + bytes(GRAIN) + pattern(2) + pattern(3)[:GRAIN // 2]
    golden.expect(contents, [
        entry(0, GRAIN, "data", at[0], "top.vmdk"),
        entry(GRAIN, GRAIN, "zero"),
        entry(2 * GRAIN, GRAIN + GRAIN // 2, "data", base_at[2], "base.vmdk", depth=1),
    ])


def stream_grain(number, content):
    packed = zlib.compress(content, 9)
    return pad(struct.pack("<QI", number * GRAIN // SECTOR, len(packed)) + packed)


def marker(sectors, kind):
    return pad(struct.pack("<QII", sectors, 0, kind))


def make_vmdk__stream_with_footer(golden):
    """
    By hand: a streamOptimized image as ovftool writes one to a pipe: gdOffset is -1 in the header, and the footer,
    1024 bytes before the end of the file, says where the directory is. The last grain is stored only as far as the
    disk goes.
    """
    capacity = 5 * GRAIN // SECTOR + 3
    grains = {0: pattern(0), 3: pattern(3), 4: b"\0" * GRAIN, 5: pattern(5, 3 * SECTOR)}
    text = pad((HEAD % (7, NO_PARENT, "streamOptimized")).encode())
    flags = 3 | 0x30000
    image = header(capacity, 0xFFFFFFFFFFFFFFFF, 1, len(text) // SECTOR, flags, 1) + text
    entries = [0] * ENTRIES
    for number, content in grains.items():
        entries[number] = len(image) // SECTOR
        image += stream_grain(number, content)
    image += marker(4, 1)
    table = len(image) // SECTOR
    image += struct.pack("<%dI" % ENTRIES, *entries)
    image += marker(1, 2)
    directory = len(image) // SECTOR
    image += pad(struct.pack("<I", table))
    image += marker(1, 3) + header(capacity, directory, 1, len(text) // SECTOR, flags, 1)
    golden.write("top.vmdk", image + bytes(SECTOR))
    contents = b"".join(grains.get(number, bytes(GRAIN)) for number in range(6))
    golden.expect(contents, [
        entry(0, GRAIN, "data"),
        entry(GRAIN, 2 * GRAIN, "zero", present=False),
        entry(3 * GRAIN, 2 * GRAIN + 3 * SECTOR, "data"),
    ])


def make_vmdk__large_embedded_descriptor(golden):
    """
    By hand: an embedded descriptor of 100 sectors, with all that counts behind the 20 sectors that most programs
    write. The extent's name in it is of a file that does not exist: it is the image itself.
    """
    text = "# Disk DescriptorFile\n" + "# nothing\n" * 4000
    text += (HEAD % (9, NO_PARENT, "monolithicSparse")) + 'RW 16 SPARSE "renamed since.vmdk"\n'
    image, at = sparse(16, {1: pattern(1)}, text.encode(), descriptor_sectors=100)
    golden.write("top.vmdk", image)
    golden.expect(bytes(GRAIN) + pattern(1), [
        entry(0, GRAIN, "zero", present=False),
        entry(GRAIN, GRAIN, "data", at[1], "top.vmdk"),
    ])


def make_vmdk__crlf_and_tabs(golden):
    """
    By hand: a descriptor as on Windows: CRLF, tabs, keys in other cases, encoding=, a quoted name with blanks; with
    FLAT extents at offsets in one file, RDONLY and ZERO ones, and a sparse one that ends inside a grain.
    """
    text = (HEAD % (3, NO_PARENT, "custom")).replace("CID", "cid").replace("=", "\t= ")
    text += 'encoding="windows-1252"\n'
    text += 'RW\t11\tSPARSE\t"part one.vmdk"\nRW 3 FLAT "the rest.bin" 2\n'
    text += '  RDONLY 2 FLAT "the rest.bin" 0 \nRW 4 ZERO\nddb.adapterType = "ide"\n'
    part, at = sparse(16, {1: pattern(1)})
    rest = b"".join(pattern(50 + number, SECTOR) for number in range(5))
    golden.write("top.vmdk", text.replace("\n", "\r\n"))
    golden.write("part one.vmdk", part)
    golden.write("the rest.bin", rest)
    contents = bytes(GRAIN) + pattern(1)[:3 * SECTOR] + rest[2 * SECTOR:] + rest[:2 * SECTOR]
    golden.expect(contents + bytes(4 * SECTOR), [
        entry(0, GRAIN, "zero", present=False),
        entry(GRAIN, 3 * SECTOR, "data", at[1], "part one.vmdk"),
        entry(11 * SECTOR, 3 * SECTOR, "data", 2 * SECTOR, "the rest.bin"),
        entry(14 * SECTOR, 2 * SECTOR, "data", 0, "the rest.bin"),
        entry(16 * SECTOR, 4 * SECTOR, "zero"),
    ])


def make_vmdk__parent_of_another_system(golden):
    """
    By hand: parentFileNameHint is an absolute path of a Windows machine. The file of that base name beside the image
    has the CID that parentCID wants, so that is it.
    """
    text = HEAD % (2, 0xABCD, "monolithicSparse")
    text += 'parentFileNameHint="D:\\VM store\\win\\base.vmdk"\nRW 16 SPARSE "x"\n'
    base, base_at = sparse(16, {1: pattern(1)},
                           (HEAD % (0xABCD, NO_PARENT, "monolithicSparse")).encode())
    top, at = sparse(16, {0: pattern(7)}, text.encode())
    golden.write("base.vmdk", base)
    golden.write("top.vmdk", top)
    golden.expect(pattern(7) + pattern(1), [
        entry(0, GRAIN, "data", at[0], "top.vmdk"),
        entry(GRAIN, GRAIN, "data", base_at[1], "base.vmdk", depth=1),
    ])


def make_vmdk__many_tables(golden):
    """
    By hand: a capacity of 20 tables, of which one exists: directory entries of 0 are holes, each of 2 MiB here.
    """
    capacity = 20 * ENTRIES * GRAIN // SECTOR
    text = (HEAD % (4, NO_PARENT, "monolithicSparse")).encode()
    image, at = sparse(capacity, {13 * ENTRIES + 5: pattern(5), 13 * ENTRIES + 6: pattern(6)}, text)
    # Takes the empty tables away again.
    directory = 1 + len(pad(text)) // SECTOR
    for index in range(20):
        if index != 13:
            place = directory * SECTOR + 4 * index
            image = image[:place] + bytes(4) + image[place + 4:]
    golden.write("top.vmdk", image)
    start = (13 * ENTRIES + 5) * GRAIN
    contents = bytearray(capacity * SECTOR)
    contents[start:start + 2 * GRAIN] = pattern(5) + pattern(6)
    end = start + 2 * GRAIN
    golden.expect(bytes(contents), [
        entry(0, start, "zero", present=False),
        entry(start, 2 * GRAIN, "data", at[13 * ENTRIES + 5], "top.vmdk"),
        entry(end, capacity * SECTOR - end, "zero", present=False),
    ])


def refused_descriptor(golden, text, words):
    golden.write("top.vmdk", text)
    golden.expect_error(words)


def make_vmdk__refused_outside(golden):
    """By hand: an extent that names a file of the host (CVE-2022-47951 was this)."""
    refused_descriptor(golden, (HEAD % (1, NO_PARENT, "monolithicFlat")) + 'RW 1 FLAT "/etc/passwd" 0\n',
                       "--allow-path /etc")


def make_vmdk__refused_truncated_flat(golden):
    """By hand: the flat file is shorter than the descriptor says."""
    golden.write("data.bin", bytes(SECTOR))
    refused_descriptor(golden, (HEAD % (1, NO_PARENT, "monolithicFlat")) + 'RW 2 FLAT "data.bin" 0\n',
                       "is truncated: it has 512 bytes")


def make_vmdk__refused_changed_parent(golden):
    """By hand: the parent was written to after the overlay was made, so it has another CID."""
    base, _ = sparse(16, {1: pattern(1)}, (HEAD % (0x5A, NO_PARENT, "monolithicSparse")).encode())
    text = (HEAD % (2, 0x59, "monolithicSparse")) + 'parentFileNameHint="base.vmdk"\n'
    top, _ = sparse(16, {0: pattern(7)}, text.encode())
    golden.write("base.vmdk", base)
    golden.write("top.vmdk", top)
    golden.expect_error("parentCID is 00000059, but the CID of its parent")


def make_vmdk__refused_loop(golden):
    """By hand: two images that name each other."""
    for name, cid, other in (("top", 1, "other"), ("other", 2, "top")):
        text = (HEAD % (cid, 3 - cid, "custom")) + 'parentFileNameHint="%s.vmdk"\nRW 1 ZERO\n' % other
        golden.write(name + ".vmdk", text)
    golden.expect_error("backing file loop")


if __name__ == "__main__":
    make_all(globals(), sys.argv[1:])
