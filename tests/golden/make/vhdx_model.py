"""A vhdx as bytes, and what a guest must see in a chain of them: sector by sector, the first of the chain that has it."""
import struct
import uuid

MIB = 1 << 20
PAGE = 4096
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, PRESENT, PARTIAL = 0, 1, 2, 3, 6, 7
LOG, METADATA, TABLE, DATA = MIB, 2 * MIB, 3 * MIB, 4 * MIB

CRC_TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    CRC_TABLE.append(byte)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def with_crc(data):
    """The checksum lies at 4 and does not count itself."""
    return data[:4] + struct.pack("<I", crc32c(data[:4] + bytes(4) + data[8:])) + data[8:]


def guid(text):
    return uuid.UUID(text).bytes_le


def number_guid(number):
    return guid("%08x-0000-4000-8000-000000000000" % number)


def pattern(number, size):
    """Bytes that say which sector they are."""
    return (b"sector %07d " % number * (size // 15 + 1))[:size]


def log_page(content, offset, sequence):
    """(descriptor, page) of a page that the log writes to offset."""
    descriptor = b"desc" + content[-4:] + content[:8] + struct.pack("<QQ", offset, sequence)
    page = b"data" + struct.pack("<I", sequence >> 32) + content[8:-4] + struct.pack("<I", sequence & 0xFFFFFFFF)
    return descriptor, page


def log_entry(tail, sequence, number, flushed, last, pages=(), zeroes=()):
    """pages: (offset, bytes); zeroes: (offset, length). number: of the log's GUID."""
    parts = [log_page(content, offset, sequence) for offset, content in pages]
    descriptors = [part[0] for part in parts]
    descriptors += [b"zero" + bytes(4) + struct.pack("<QQQ", length, offset, sequence) for offset, length in zeroes]
    length = PAGE * (1 + len(parts))
    head = b"loge" + struct.pack("<IIIQII", 0, length, tail, sequence, len(descriptors), 0) + number_guid(number)
    head += struct.pack("<QQ", flushed, last) + b"".join(descriptors)
    return with_crc(head.ljust(PAGE, b"\0") + b"".join(part[1] for part in parts))


class Disk:
    """blocks: number -> state, or {sector of the block: number of its pattern}, or (state, the same)."""

    def __init__(self, size, blocks, me=1, parent=None, name=None, sector=512, fixed=False, log=b"", log_guid=0,
                 locator=None):
        self.size, self.me, self.parent, self.name = size, me, parent, name
        self.sector, self.fixed, self.log, self.log_guid = sector, fixed, log, log_guid
        self.locator, self.count, self.ratio = locator, -(-size // MIB), (1 << 23) * sector // MIB
        self.blocks, self.places = {}, {}
        for index, value in blocks.items():
            if isinstance(value, dict):
                value = (PARTIAL if parent is not None else PRESENT, value)
            elif isinstance(value, int):
                value = (value, {})
            self.blocks[index] = value

    def header(self, sequence):
        data = b"head" + struct.pack("<IQ", 0, sequence) + number_guid(1000 + self.me) + number_guid(self.me)
        data += number_guid(self.log_guid) if self.log_guid else bytes(16)
        data += struct.pack("<HHIQ", 0, 1, MIB, LOG)
        return with_crc(data.ljust(PAGE, b"\0"))

    def regions(self):
        data = b"regi" + struct.pack("<III", 0, 2, 0)
        data += guid("2dc27766-f623-4200-9d64-115e9bfd4a08") + struct.pack("<QII", TABLE, MIB, 1)
        data += guid("8b7ca206-4790-4b9a-b8fe-575f050f886e") + struct.pack("<QII", METADATA, MIB, 1)
        return with_crc(data.ljust(65536, b"\0"))

    def locator_bytes(self):
        pairs = self.locator or [("parent_linkage", "{%s}" % uuid.UUID(bytes_le=number_guid(self.parent))),
                                 ("relative_path", self.name)]
        texts = [text.encode("utf-16-le") for pair in pairs for text in pair]
        offset, entries = 20 + 12 * len(pairs), b""
        for key, value in zip(texts[::2], texts[1::2]):
            entries += struct.pack("<IIHH", offset, offset + len(key), len(key), len(value))
            offset += len(key) + len(value)
        return guid("b04aefb7-d19e-4a81-b789-25b8e9445913") + struct.pack("<HH", 0, len(pairs)) + entries + \
            b"".join(texts)

    def metadata(self):
        flags = (1 if self.fixed else 0) | (2 if self.parent is not None else 0)
        items = [("caa16737-fa36-4d43-b3b6-33f0aa44e76b", struct.pack("<II", MIB, flags), 4),
                 ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", struct.pack("<Q", self.size), 6),
                 ("beca12ab-b2e6-4523-93ef-c309e000c746", number_guid(77), 6),
                 ("8141bf1d-a96f-4709-ba47-f233a8faab5f", struct.pack("<I", self.sector), 6),
                 ("cda348c7-445d-4471-9cc9-e9885251c556", struct.pack("<I", 4096), 6)]
        if self.parent is not None:
            items.append(("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", self.locator_bytes(), 4))
        table = b"metadata" + struct.pack("<HH", 0, len(items)) + bytes(20)
        values = b""
        for name, value, item_flags in items:
            table += guid(name) + struct.pack("<IIII", 65536 + len(values), len(value), item_flags, 0)
            values += value
        return table.ljust(65536, b"\0") + values

    def put_block(self, image, index, place):
        state, sectors = self.blocks[index]
        self.places[index] = place
        if len(image) < place + MIB:
            image.extend(bytes(place + MIB - len(image)))
        if state == PARTIAL:
            image[place:place + MIB] = b"rubbish " * (MIB // 8)
        for sector, number in sectors.items():
            image[place + sector * self.sector:place + (sector + 1) * self.sector] = pattern(number, self.sector)

    def put_bits(self, image, place):
        image.extend(bytes(place + MIB - len(image)))
        for index, (state, sectors) in self.blocks.items():
            first = index * (MIB // self.sector)
            for sector in sectors if state == PARTIAL else ():
                bit = first + sector
                image[place + bit // 8] |= 1 << bit % 8

    def table(self, image):
        """Blocks lie in the order in which they are named."""
        entries = bytearray(MIB)
        partial = any(state == PARTIAL for state, _ in self.blocks.values())
        if partial:
            struct.pack_into("<Q", entries, self.ratio * 8, DATA | PRESENT)
            self.put_bits(image, DATA)
        for index, (state, _) in self.blocks.items():
            place = 0
            if state in (PRESENT, PARTIAL):
                place = len(image)
                self.put_block(image, index, place)
            struct.pack_into("<Q", entries, index * 8, place | state)
        return entries

    def build(self):
        image = bytearray(DATA)
        entries = self.table(image)
        image[:8] = b"vhdxfile"
        image[65536:65536 + PAGE] = self.header(7)
        image[131072:131072 + PAGE] = self.header(8)
        for offset in (196608, 262144):
            image[offset:offset + 65536] = self.regions()
        image[LOG:LOG + len(self.log)] = self.log
        metadata = self.metadata()
        image[METADATA:METADATA + len(metadata)] = metadata
        image[TABLE:TABLE + MIB] = entries
        return bytes(image)


def piece_of(disk, number):
    """(state, where, pattern) of a sector; state None: nothing is said of it."""
    index, inside = divmod(number, MIB // disk.sector)
    state, sectors = disk.blocks.get(index, (NOT_PRESENT, {}))
    if state == NOT_PRESENT or (state == PARTIAL and inside not in sectors):
        return None
    if state in (PRESENT, PARTIAL):
        content = pattern(sectors[inside], disk.sector) if inside in sectors else bytes(disk.sector)
        return disk.places[index] + inside * disk.sector, content
    return "zero", bytes(disk.sector)


def chain_expectation(chain):
    """(contents, map) of a chain of (name, Disk), the top first."""
    top = chain[0][1]
    contents, entries = [], []
    for number in range(top.size // top.sector):
        depth, found = next(((depth, piece) for depth, (_, disk) in enumerate(chain)
                             if (piece := piece_of(disk, number))), (len(chain) - 1, None))
        contents.append(found[1] if found else bytes(top.sector))
        data = bool(found) and found[0] != "zero"
        entry = {"start": number * top.sector, "length": top.sector, "depth": depth, "present": bool(found),
                 "data": data, "zero": not data}
        if data:
            entry.update(offset=found[0], filename=chain[depth][0])
        last = entries[-1] if entries else None
        alike = last and all(last[key] == entry[key] for key in ("depth", "present", "data", "zero"))
        if alike and (not data or last["offset"] + last["length"] == entry["offset"]):
            last["length"] += top.sector
        else:
            entries.append(entry)
    return b"".join(contents), entries
