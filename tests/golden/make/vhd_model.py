"""A vhd as bytes, and what a guest must see in a chain of them: sector by sector, the first of the chain that has it."""
import struct

SECTOR = 512
BLOCK = 32 * SECTOR
UNUSED = 0xFFFFFFFF


def pad(data, size=SECTOR, fill=b"\0"):
    return data + fill * (-len(data) % size)


def pattern(number, sectors):
    """Sectors that say which they are."""
    return b"".join((b"sector %05d " % (number + n) * 40)[:SECTOR] for n in range(sectors))


def checksum(data, offset):
    """Of the footer (offset 64) or the header (36): the field itself does not count."""
    return ~(sum(data) - sum(data[offset:offset + 4])) & 0xFFFFFFFF


def uuid_bytes(number):
    return bytes([number]) * 16


def locator_w2ru(path):
    return b"W2ru", path.encode("utf-16-le"), False


def locator_w2ku(path, space_in_bytes=False):
    return b"W2ku", path.encode("utf-16-le"), space_in_bytes


def locator_macx(url):
    return b"MacX", url.encode(), False


class Disk:
    """parent: None, or the number of the parent's UUID (0: of all zeroes)."""

    def __init__(self, size, uuid=5, parent=None, locators=(), creator=b"win ", fixed=False, batmap=False,
                 alignment=SECTOR, geometry=(0, 0, 0), current=None):
        self.size, self.uuid, self.parent, self.locators = size, uuid, parent, locators
        self.creator, self.fixed, self.batmap, self.alignment = creator, fixed, batmap, alignment
        self.geometry, self.current = geometry, size if current is None else current
        self.blocks, self.rubbish, self.places = {}, set(), {}

    def block(self, index, sectors, rubbish=False):
        """sectors: number in the block -> number of its pattern."""
        self.blocks[index] = sectors
        if rubbish:
            self.rubbish.add(index)

    def footer(self):
        kind = 2 if self.fixed else 3 if self.parent is None else 4
        offset = 0xFFFFFFFFFFFFFFFF if self.fixed else SECTOR
        data = struct.pack(">8sIIQI4sI4sQQHBBI", b"conectix", 2, 0x10000, offset, 700000000, self.creator, 0x10003,
                           b"Wi2k", self.current, self.current, *self.geometry, kind)
        data += bytes(4) + uuid_bytes(self.uuid)
        data = bytearray(pad(data))
        struct.pack_into(">I", data, 64, checksum(data, 64))
        return bytes(data)

    def header(self, entries, locators):
        data = struct.pack(">8sQQIIII", b"cxsparse", 0xFFFFFFFFFFFFFFFF, 3 * SECTOR, 0x10000, entries, BLOCK, 0)
        data += uuid_bytes(self.parent or 0) + struct.pack(">II", 600000000, 0) + bytes(512)
        data = bytearray(pad(data + b"".join(locators), 1024))
        struct.pack_into(">I", data, 36, checksum(data, 36))
        return bytes(data)

    def block_bytes(self, index):
        bits, data = bytearray(SECTOR), bytearray(b"rubbish " * (BLOCK // 8) if index in self.rubbish else BLOCK)
        for sector, number in self.blocks[index].items():
            bits[sector // 8] |= 0x80 >> sector % 8
            data[sector * SECTOR:(sector + 1) * SECTOR] = pattern(number, 1)
        return bytes(bits + data)

    def build(self):
        entries = -(-self.current // BLOCK)
        behind, fields = b"", []
        start = 3 * SECTOR + len(pad(bytes(entries * 4)))
        if self.batmap:
            bits = bytearray(SECTOR)
            for index in self.blocks:
                bits[index // 8] |= 0x80 >> index % 8
            head = struct.pack(">8sQIII", b"tdbatmap", start + SECTOR, 1, 0x10002, ~sum(bits) & 0xFFFFFFFF)
            behind += pad(head) + bytes(bits)
        for platform, text, in_bytes in self.locators:
            room = pad(text)
            space = len(room) if in_bytes else len(room) // SECTOR
            fields.append(struct.pack(">4sIIIQ", platform, space, len(text), 0, start + len(behind)))
            behind += room
        table, blocks = [UNUSED] * entries, b""
        for index in self.blocks:
            at = start + len(behind) + len(blocks)
            gap = -(at + SECTOR) % self.alignment
            table[index] = (at + gap) // SECTOR
            self.places[index] = at + gap + SECTOR
            blocks += bytes(gap) + self.block_bytes(index)
        table = pad(struct.pack(">%dI" % entries, *table), fill=b"\xff")
        return self.footer() + self.header(entries, fields) + table + behind + blocks + self.footer()


def sector_of(disk, number):
    """(where it is in the file, its bytes), or None when the image does not have it."""
    if isinstance(disk, bytes):
        at = number * SECTOR
        return (at, disk[at:at + SECTOR]) if at < len(disk) else None
    index, inside = divmod(number, BLOCK // SECTOR)
    if inside not in disk.blocks.get(index, {}):
        return None
    return disk.places[index] + inside * SECTOR, pattern(disk.blocks[index][inside], 1)


def chain_expectation(chain):
    """(contents, map) of a chain of (name, Disk or raw bytes), the top first."""
    size = chain[0][1].size if isinstance(chain[0][1], Disk) else len(chain[0][1])
    contents, entries = b"", []
    for number in range(size // SECTOR):
        depth, found = next(((depth, place) for depth, (_, disk) in enumerate(chain)
                             if (place := sector_of(disk, number))), (len(chain) - 1, None))
        contents += found[1] if found else bytes(SECTOR)
        last = entries[-1] if entries else None
        if found and last and last["data"] and last["depth"] == depth and \
                last["offset"] + last["length"] == found[0]:
            last["length"] += SECTOR
        elif not found and last and not last["data"] and last["depth"] == depth:
            last["length"] += SECTOR
        else:
            entry = {"start": number * SECTOR, "length": SECTOR, "depth": depth, "present": bool(found),
                     "data": bool(found), "zero": not found}
            if found:
                entry.update(offset=found[0], filename=chain[depth][0])
            entries.append(entry)
    return contents, entries
