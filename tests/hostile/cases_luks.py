"""Hostile LUKS headers, of both versions. No case has a secret: what is tried is what reading a header costs."""
import hashlib
import json
import struct

from case import MIB, Case, patched

ALL32, ALL64 = 0xFFFFFFFF, (1 << 64) - 1
DATA = 4096 * 512
SLOT = ">IIQ32sII"
ENABLED, DISABLED = 0x00AC71F3, 0x0000DEAD


def version_1():
    head = struct.pack(">6sH32s32s32sII20s32sI40s", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64, bytes(20),
                       bytes(32), 1000, b"b0193d49-6e41-41ff-bb0b-a9c46e57c35d")
    for slot in range(8):
        head += struct.pack(">II32sII", ENABLED if slot == 0 else DISABLED, 1000, bytes(32), 8 + slot * 504, 4000)
    return head.ljust(DATA, b"\0") + bytes(MIB)


def metadata():
    key = {"type": "luks2", "key_size": 64, "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
           "area": {"type": "raw", "offset": "32768", "size": "258048", "encryption": "aes-xts-plain64", "key_size": 64},
           "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": "AAAA"}}
    return {"keyslots": {"0": key}, "tokens": {},
            "segments": {"0": {"type": "crypt", "offset": str(DATA), "size": "dynamic", "iv_tweak": "0", "encryption": "aes-xts-plain64",
                               "sector_size": 512}},
            "digests": {"0": {"type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256", "iterations": 1000,
                              "salt": "AAAA", "digest": "AAAA"}},
            "config": {"json_size": "12288", "keyslots_size": "2031616"}}


def area(text, magic, offset, size=16384, sequence=1):
    def packed(checksum):
        return struct.pack(">6sHQQ48s32s64s40s48sQ184s64s", magic, 2, size, sequence, b"", b"sha256", bytes(range(64)),
                           b"b0193d49-6e41-41ff-bb0b-a9c46e57c35d", b"", offset, b"", checksum).ljust(4096, b"\0")
    body = text.ljust(16384 - 4096, b"\0")[:16384 - 4096]
    return packed(hashlib.sha256(packed(b"") + body).digest()) + body


def version_2(text, **how):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    both = area(text, b"LUKS\xba\xbe", 0, **how) + area(text, b"SKUL\xba\xbe", 16384, **how)
    return both.ljust(DATA, b"\0") + bytes(MIB)


def case(name, content, *words):
    return Case("luks-" + name, {"top.luks": content}, *words)


def changed(*path, value):
    """The metadata with one thing set; value None: without it."""
    root = node = metadata()
    for key in path[:-1]:
        node = node[key]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return version_2(root)


def cases_1():
    image = version_1()
    yield case("1-good", image)
    fields = [("version-0", 6, ">H", 0), ("version-3", 6, ">H", 3), ("payload-0", 104, ">I", 0), ("payload-1", 104, ">I", 1),
              ("payload-behind-end", 104, ">I", len(image) // 512 + 1), ("payload-all", 104, ">I", ALL32), ("key-0", 108, ">I", 0),
              ("key-all", 108, ">I", ALL32), ("key-2-31", 108, ">I", 1 << 31), ("digest-rounds-0", 164, ">I", 0),
              ("digest-rounds-all", 164, ">I", ALL32)]
    for name, *change in fields:
        yield case("1-" + name, patched(image, tuple(change)))
    for name, offset in (("cipher", 8), ("mode", 40), ("hash", 72)):
        for kind, text in (("empty", bytes(32)), ("endless", b"a" * 32), ("escapes", b"\x1b[31m\nx".ljust(32, b"\0")), ("bytes", b"\xff" * 32)):
            yield case("1-%s-%s" % (name, kind), patched(image, (offset, text)))
    for name, offset, value in (("state", 0, 5), ("rounds-0", 4, 0), ("rounds-all", 4, ALL32), ("area-0", 40, 0), ("area-all", 40, ALL32),
                                ("area-on-data", 40, 4096), ("stripes-0", 44, 0), ("stripes-all", 44, ALL32)):
        yield case("1-slot-" + name, patched(image, (208 + offset, ">I", value)))
    yield case("1-all-slots-all-rounds", patched(image, *[(208 + 48 * n, ">II", ENABLED, ALL32) for n in range(8)]))
    for size in (6, 8, 207, 591, 592, 4096):
        yield case("1-cut-at-%d" % size, image[:size])


def cases_2():
    yield case("2-good", version_2(metadata()))
    for name, size in (("0", 0), ("4096", 4096), ("all", ALL64), ("1-gib", 1 << 30), ("16385", 16385)):
        yield case("2-header-size-" + name, version_2(metadata(), size=size))
    yield case("2-no-checksum", patched(version_2(metadata()), (448, bytes(64)), (16384 + 448, bytes(64))))
    yield case("2-second-only", patched(version_2(metadata()), (448, bytes(64))))
    deep = b'{"a":' * 2000 + b"1" + b"}" * 2000
    for name, text in (("empty", b""), ("no-object", b"[]"), ("cut", json.dumps(metadata()).encode()[:200]), ("deep", deep),
                       ("bytes", b"\xff" * 500), ("no-end", b"{" * 12288), ("empty-object", b"{}")):
        yield case("2-json-" + name, version_2(text))
    for name in ("keyslots", "segments", "digests", "config", "tokens"):
        yield case("2-without-" + name, changed(name, value=None))
        yield case("2-empty-" + name, changed(name, value={}))
    segment = ("segments", "0")
    for key, values in (("offset", ("0", "-1", "512", "1", str(ALL64), str(1 << 63), "99999999999999999999999", 5, "x")),
                        ("size", ("0", "1", str(ALL64), "-1", 7)), ("iv_tweak", (str(ALL64), "-1", "x")),
                        ("sector_size", (0, 1, 511, 513, 4096, 8192, 1 << 31, -512)),
                        ("encryption", ("", "null", "cipher_null-ecb", "aes", "aes-xts-" + "p" * 500, "capi:x", "\x1b[31m")),
                        ("type", ("linear", "", "x"))):
        for number, value in enumerate(values):
            yield case("2-segment-%s-%d" % (key, number), changed(*segment, key, value=value))
    slot = ("keyslots", "0")
    for path, values in ((("key_size",), (0, -1, 1 << 31, 65)), (("af", "stripes"), (0, -1, 1 << 31)),
                         (("area", "offset"), ("0", str(ALL64), str(DATA))), (("area", "size"), ("0", str(ALL64))),
                         (("kdf", "iterations"), (0, -1, 1 << 31))):
        for number, value in enumerate(values):
            yield case("2-slot-%s-%d" % ("-".join(path), number), changed(*slot, *path, value=value))
    for number, (rounds, memory, threads) in enumerate(((1 << 31, 1 << 20, 4), (4, ALL32, 4), (4, 1 << 20, 100000), (0, 0, 0))):
        kdf = {"type": "argon2id", "time": rounds, "memory": memory, "cpus": threads, "salt": "AAAA"}
        yield case("2-argon2-%d" % number, changed(*slot, "kdf", value=kdf))
    yield case("2-digest-rounds", changed("digests", "0", "iterations", value=(1 << 31) - 1))
    yield case("2-1000-segments", changed("segments", value={str(n): metadata()["segments"]["0"] for n in range(60)}))


def cases():
    yield from cases_1()
    yield from cases_2()
