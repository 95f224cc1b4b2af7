#!/usr/bin/python3
"""Makes the golden images that are encrypted. Headers are cryptsetup's and qemu-img's; data of luks images is encrypted
here, with a key that cryptsetup was told, and so is what a guest sees in sectors that nobody has written.

    luks.py [FORMAT/NAME...]

Needs cryptsetup, qemu-utils and python3-cryptography.
"""
import hashlib
import json
import subprocess

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from golden import make_all, qemu

PASSPHRASE = b"a secret of no value\n"  # the line end counts
KIB = 1024
STRIPES = 4000  # of the key's material


def fill(number, size=512):
    return (b"sector %06d " % number * (size // 14 + 1))[:size]


def ecb(key):
    return Cipher(algorithms.AES(key), modes.ECB())


class Xts:
    """IEEE 1619; the number counts sectors of 512 bytes, whatever the sector's size."""

    def __init__(self, key):
        self.data, self.tweak = ecb(key[:len(key) // 2]), ecb(key[len(key) // 2:])

    def run(self, step, number, sector):
        tweak = int.from_bytes(self.tweak.encryptor().update(number.to_bytes(16, "little")), "little")
        out = b""
        for at in range(0, len(sector), 16):
            mask = tweak.to_bytes(16, "little")
            block = bytes(a ^ b for a, b in zip(sector[at:at + 16], mask))
            out += bytes(a ^ b for a, b in zip(step(self.data).update(block), mask))
            tweak = (tweak << 1) ^ (0x87 | 1 << 128 if tweak >> 127 else 0)
        return out

    def encrypt(self, number, sector):
        return self.run(lambda cipher: cipher.encryptor(), number, sector)


class CbcEssiv:
    """CBC whose first block is XORed with the sector's number, encrypted under the SHA-256 of the key."""

    def __init__(self, key):
        self.data, self.number = ecb(key), ecb(hashlib.sha256(key).digest())

    def iv(self, number):
        return self.number.encryptor().update(number.to_bytes(16, "little"))

    def encrypt(self, number, sector):
        out, last = b"", self.iv(number)
        for at in range(0, len(sector), 16):
            last = self.data.encryptor().update(bytes(a ^ b for a, b in zip(sector[at:at + 16], last)))
            out += last
        return out

    def decrypt(self, number, sector):
        out, last = b"", self.iv(number)
        for at in range(0, len(sector), 16):
            block = sector[at:at + 16]
            out += bytes(a ^ b for a, b in zip(self.data.decryptor().update(block), last))
            last = block
        return out


def luks_format(golden, key, slot, *options):
    """An image of 8 MiB with that key in its first key slot, which begins there; returns where its data begins. Few rounds:
    it is opened often. Behind the slot there is noise, which would make the files large: zeroes instead."""
    golden.write("secret", PASSPHRASE)
    golden.write("key", key)
    golden.write("top.luks", bytes(8 << 20))
    subprocess.run(["cryptsetup", "luksFormat", "-q", "--key-file", golden.path("secret"), "--volume-key-file", golden.path("key"),
                    "--key-size", str(len(key) * 8), "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", *options,
                    golden.path("top.luks")], check=True)
    golden.path("key").unlink()
    found = subprocess.run(["cryptsetup", "luksDump", golden.path("top.luks")], check=True, capture_output=True, text=True).stdout
    words = [line.split() for line in found.splitlines()]
    begins = next(int(w[-1]) * 512 if w[0] == "Payload" else int(w[1]) for w in words
                  if w[:2] == ["Payload", "offset:"] or (w[:1] == ["offset:"] and "[bytes]" in w))
    slot_end = slot + -(-len(key) * STRIPES // 4096) * 4096
    with open(golden.path("top.luks"), "r+b") as file:
        file.seek(slot_end)
        file.write(bytes(begins - slot_end))
    return begins


def finish_luks(golden, begins, stored, contents):
    with open(golden.path("top.luks"), "r+b") as file:
        file.seek(begins)
        file.write(stored)
        file.truncate()
    golden.expect(contents, [{"start": 0, "length": len(contents), "depth": 0, "present": True, "zero": False, "data": True}])


def key_of(length):
    return hashlib.shake_256(b"key").digest(length)


def make_luks__version_1(golden):
    """cryptsetup luksFormat --type luks1 with aes-xts-plain64 and 128 bits; 128 sectors, the last two KiB zero."""
    key = key_of(32)
    begins = luks_format(golden, key, 4 * KIB, "--type", "luks1", "--cipher", "aes-xts-plain64", "--align-payload", "8")
    sectors = [fill(n) for n in range(124)] + [bytes(512)] * 4
    finish_luks(golden, begins, b"".join(Xts(key).encrypt(n, s) for n, s in enumerate(sectors)), b"".join(sectors))


def make_luks__version_2(golden):
    """cryptsetup luksFormat --type luks2 with aes-xts-plain64, 128 bits and sectors of 4096 bytes, whose numbers count
    512 bytes all the same."""
    key = key_of(32)
    begins = luks_format(golden, key, 32 * KIB, "--type", "luks2", "--cipher", "aes-xts-plain64", "--sector-size", "4096",
                         "--luks2-metadata-size", "16k", "--luks2-keyslots-size", "256k")
    sectors = [fill(n, 4096) for n in range(20)]
    finish_luks(golden, begins, b"".join(Xts(key).encrypt(n * 8, s) for n, s in enumerate(sectors)), b"".join(sectors))


def make_luks__unwritten(golden):
    """cryptsetup luksFormat --type luks1 with aes-cbc-essiv:sha256 and 128 bits. Nobody has written every other KiB: it
    is zero in the file, and noise on the disk."""
    key = key_of(16)
    begins = luks_format(golden, key, 4 * KIB, "--type", "luks1", "--cipher", "aes-cbc-essiv:sha256", "--align-payload", "8")
    cipher, stored, contents = CbcEssiv(key), b"", b""
    for number in range(128):
        written = number % 4 < 2
        stored += cipher.encrypt(number, fill(number)) if written else bytes(512)
        contents += fill(number) if written else cipher.decrypt(number, bytes(512))
    finish_luks(golden, begins, stored, contents)


def encrypted_by_qemu(golden, fmt, method, *options):
    """Clusters written from the last to the first, so that places in the file are none on the disk. Returns the contents."""
    golden.write("secret", PASSPHRASE)
    top = golden.path("top." + fmt)
    secret = ["--object", "secret,id=s,file=%s" % golden.path("secret")]
    settings = ",".join(["encrypt.format=" + method, "encrypt.key-secret=s", *options])
    qemu("qemu-img", "create", *secret, "-f", fmt, "-o", settings, top, 256 * KIB)
    contents = bytearray(256 * KIB)
    commands = []
    for start in (200 * KIB, 136 * KIB, 128 * KIB, 4 * KIB, 0):
        pattern = start // KIB % 250 + 1
        commands += ["-c", "write -P %d %d 4k" % (pattern, start)]
        contents[start:start + 4 * KIB] = bytes([pattern]) * 4 * KIB
    if fmt == "qcow2":
        commands += ["-c", "write -z 132k 4k"]
    image = "driver=%s,encrypt.format=%s,encrypt.key-secret=s,file.filename=%s" % (fmt, method, top)
    qemu("qemu-io", *secret, "--image-opts", image, *commands)
    found = subprocess.run(["qemu-img", "map", *secret, "--output=json", "--image-opts", image], check=True,
                           capture_output=True).stdout
    golden.expect(bytes(contents), json.loads(found))


def make_qcow2__luks(golden):
    """qemu-img create -o encrypt.format=luks, written by qemu-io backwards: sectors are counted in the file."""
    encrypted_by_qemu(golden, "qcow2", "luks", "encrypt.cipher-alg=aes-128", "encrypt.iter-time=10", "cluster_size=4k")


def make_qcow2__aes(golden):
    """qemu-img create -o encrypt.format=aes, written by qemu-io backwards: sectors are counted on the disk."""
    encrypted_by_qemu(golden, "qcow2", "aes", "cluster_size=4k")


def make_qcow__aes(golden):
    """qemu-img create -f qcow -o encrypt.format=aes, written by qemu-io backwards: sectors are counted on the disk."""
    encrypted_by_qemu(golden, "qcow", "aes")


if __name__ == "__main__":
    import sys
    make_all(globals(), sys.argv[1:])
