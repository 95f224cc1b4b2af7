#!/usr/bin/python3
"""Encrypted images: what qemu and cryptsetup make is read, what we make they read; secrets, and what is refused."""

import hashlib
import json
import os
import signal
import subprocess
import time

from cli import COWNBD, Workdir, cownbd, expect, expect_equal, expect_refused, load_json, must, ours

MB = 1 << 20
SIZE = 3 * MB + 512
KEY = ["--object", "secret,id=s,file=secret"]
SECRET = ["--secret-file", "secret"]


def write(name, content):
    with open(name, "wb") as file:
        file.write(content)


def content():
    """Noise and zeroes, the same each time."""
    pieces = [hashlib.shake_256(bytes([i])).digest(65536) if i % 3 else bytes(65536) for i in range(48)]
    return b"".join(pieces) + b"\7" * 512


def image_opts(fmt, image, encrypt):
    option = "key-secret=s" if fmt == "luks" else f"encrypt.format={encrypt},encrypt.key-secret=s"
    return f"driver={fmt},{option},file.filename={image}"


def qemu_same(fmt, image, encrypt):
    """Whether qemu sees in the image what the raw file has."""
    must("qemu-img", "compare", "-q", *KEY, "--image-opts", "driver=raw,file.filename=plain.raw",
         image_opts(fmt, image, encrypt))


KINDS = (
    ("luks", "luks", "iterations=1000"),
    ("luks", "luks", "iterations=1000,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256"),
    ("qcow2", "luks", "compat=0.10,cluster_size=512,encrypt.format=luks,encrypt.iterations=1000"),
    ("qcow2", "aes", "encrypt.format=aes"),
    ("qcow", "aes", "encrypt.format=aes"),
)


def both_ways():
    for fmt, encrypt, our_options in KINDS:
        ours("convert", "-O", fmt, "-o", our_options, *SECRET, "plain.raw", "ours")
        qemu_same(fmt, "ours", encrypt)
        ours("create", "-q", "-f", fmt, "-o", our_options, *SECRET, "theirs", SIZE)
        must("qemu-img", "convert", *KEY, "-n", "--target-image-opts", "plain.raw", image_opts(fmt, "theirs", encrypt))
        ours("compare", *SECRET, "-f", "raw", "-F", fmt, "plain.raw", "theirs")
        info = load_json(ours("info", "--json", "-f", fmt, "ours"))
        expect_equal(info["encrypted"], True, fmt)
        ours("map", "--json", "-f", fmt, "ours")
        with open("ours", "rb") as file:
            expect(b"\7" * 64 not in file.read(), "the contents are there as they are", fmt, our_options)
        if fmt != "luks":
            ours("check", "-f", fmt, "ours")
        if fmt == "qcow2":
            must("qemu-img", "check", "-q", *KEY, "--image-opts", image_opts(fmt, "ours", encrypt))


def with_cryptsetup():
    for version in ("1", "2"):
        ours("convert", "-O", "luks", "-o", f"version={version},iterations=1000", *SECRET, "plain.raw", "ours")
        must("cryptsetup", "luksOpen", "--test-passphrase", "--key-file", "secret", "ours")
    with open("theirs", "wb") as file:
        file.truncate(4 * MB)
    must("cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", "32",
         "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1", "--sector-size", "4096",
         "--luks2-keyslots-size", "512k", "--key-file", "secret", "theirs")
    size = load_json(ours("info", "--json", "theirs"))["virtual-size"]
    ours("convert", "-n", "-O", "luks", *SECRET, "-f", "raw", "short.raw", "theirs")
    ours("compare", *SECRET, "short.raw", "theirs")
    expect(size % 4096 == 0 and size > MB, "size", size)
    must("cryptsetup", "luksOpen", "--test-passphrase", "--key-file", "secret", "theirs")


def unwritten_is_noise():
    """A sector of a luks image that nobody wrote: never called zero, and what qemu reads there."""
    ours("create", "-q", "-f", "luks", "-o", "iterations=1000", *SECRET, "new.luks", "1M")
    entries = load_json(ours("map", "--json", "new.luks"))
    expect(all(e["data"] and not e["zero"] for e in entries), "called zero", entries)
    ours("convert", "-O", "raw", *SECRET, "new.luks", "ours.raw")
    must("qemu-img", "convert", *KEY, "--image-opts", "driver=luks,key-secret=s,file.filename=new.luks",
         "-O", "raw", "theirs.raw")
    must("cmp", "ours.raw", "theirs.raw")
    with open("ours.raw", "rb") as file:
        expect(file.read(4096) != bytes(4096), "noise reads as zeroes")


def chain():
    """Each image of a chain has its own secret; a snapshot keeps what it had."""
    ours("convert", "-O", "qcow2", "-o", "encrypt.format=luks,encrypt.iterations=1000", *SECRET, "plain.raw", "base.qcow2")
    ours("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "-o",
         "encrypt.format=luks,encrypt.iterations=1000", "--secret-file", "other", "top.qcow2")
    named = ["--secret-file", "base.qcow2=secret", "--secret-file", "top.qcow2=other"]
    ours("compare", *named, "plain.raw", "top.qcow2")
    expect_refused(cownbd("compare", *SECRET, "plain.raw", "top.qcow2"), "top.qcow2", "opens none of its 1 key slots",
                   status=2)
    ours("snapshot", "-c", "one", "base.qcow2")
    ours("resize", *SECRET, "base.qcow2", "+1M")
    ours("convert", "--snapshot", "one", "-O", "raw", *SECRET, "base.qcow2", "snapshot.raw")
    must("cmp", "snapshot.raw", "plain.raw")


def compare_refused(secret, *words, option="--secret-file", image="a.luks"):
    """compare says 1 where disks differ, 2 where it cannot tell."""
    expect_refused(cownbd("compare", option, secret, image, image, timeout=60), *words, status=2)


def refusals():
    ours("create", "-q", "-f", "luks", "-o", "iterations=1000", *SECRET, "a.luks", "1M")
    expect_refused(cownbd("convert", "-O", "raw", "a.luks", "x"), "a.luks", "is encrypted", "--secret-file")
    compare_refused("other", "opens none of its 1 key slots")
    write("line", b"passphrase\n")
    compare_refused("line", "ends with a newline")
    compare_refused("none", "none", "No such file")
    write("empty", b"")
    compare_refused("empty", "is empty", "1 to 4096")
    compare_refused("x", "--secret-fd is 'x'", option="--secret-fd")
    expect_refused(cownbd("create", "-f", "luks", "b.luks", "1M"), "needs its secret")
    expect(not os.path.exists("b.luks"), "a refused create left a file")
    for options, words in (("cipher-alg=rot13", "aes-128, aes-192 or aes-256"), ("iter-time=0", "1 to 20000"),
                           ("version=3", "1 or 2"), ("ivgen-hash-alg=sha1", "only for ivgen-alg=essiv")):
        expect_refused(cownbd("create", "-f", "luks", "-o", options, *SECRET, "b.luks", "1M"), words)
    expect_refused(cownbd("create", "-f", "qcow2", "-o", "encrypt.iter-time=5", *SECRET, "b.qcow2", "1M"),
                   "encrypt.iter-time", "encrypt.format")
    expect_refused(cownbd("convert", "-c", "-O", "qcow2", "-o", "encrypt.format=aes", *SECRET, "plain.raw", "b.qcow2"),
                   "-c", "encrypt")


def hostile_cost():
    """A key slot that wants 2^32 - 1 rounds is refused before any is done."""
    ours("create", "-q", "-f", "luks", "-o", "iterations=1000", *SECRET, "h.luks", "64k")
    with open("h.luks", "r+b") as file:
        file.seek(208 + 4)  # the first key slot: active, then its rounds
        file.write(b"\xff\xff\xff\xff")
    compare_refused("secret", "429496", "rounds", image="h.luks")


def hostile_digest():
    """So is a digest of version 2 that wants as many: as a number below 0, or as several whose sum has no room."""
    ours("create", "-q", "-f", "luks", "-o", "version=2,iterations=1000", *SECRET, "good.luks", "64k")
    with open("good.luks", "rb") as file:
        good = file.read()
    for rounds in ((-1,), (2 ** 32 - 1,), (2 ** 32 + 1,), (2 ** 63 - 1, 2 ** 63 - 1, 2)):
        image = bytearray(good)
        for at in (0, 16384):  # the header and its copy: 4 KiB, the last 64 bytes of its first 512 a checksum; then JSON
            area = slice(at + 4096, at + 16384)
            metadata = json.loads(image[area].rstrip(b"\0"))
            first = metadata["digests"]["0"]
            others = dict(first, keyslots=[], segments=[])
            metadata["digests"] = {str(i): dict(others if i else first, iterations=n) for i, n in enumerate(rounds)}
            image[area] = json.dumps(metadata).encode().ljust(12288, b"\0")
            image[at + 448:at + 512] = bytes(64)
            image[at + 448:at + 480] = hashlib.sha256(image[at:at + 16384]).digest()
        write("h2.luks", image)
        compare_refused("secret", "rounds", "at most 200000000", image="h2.luks")


def served():
    """Secrets by descriptor and as systemd hands them over; nothing of them is said."""
    ours("convert", "-O", "qcow2", "-o", "encrypt.format=luks,encrypt.iterations=1000", *SECRET, "plain.raw", "s.qcow2")
    os.mkdir("credentials")
    write("credentials/cownbd-secret.s.qcow2", b"passphrase")
    for how in ("fd", "credential"):
        read_end, write_end = os.pipe()
        os.write(write_end, b"passphrase")
        os.close(write_end)
        option = ["--secret-fd", f"s.qcow2={read_end}"] if how == "fd" else []
        environment = dict(os.environ, CREDENTIALS_DIRECTORY="credentials") if how == "credential" else None
        socket = os.path.abspath("socket")
        with open("log", "w") as log:
            server = subprocess.Popen([COWNBD, "serve", "-l", f"unix:{socket}", "--control", "control", *option,
                                       "s.qcow2"], pass_fds=[read_end], env=environment, stdout=log, stderr=log)
        os.close(read_end)
        deadline = time.monotonic() + 120
        while not os.path.exists("control") and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        must("qemu-img", "compare", "-q", "-F", "raw", "-f", "raw", f"nbd+unix:///s.qcow2?socket={socket}", "plain.raw")
        said = ours("list", "--control", "control") if how == "fd" else ""
        server.send_signal(signal.SIGTERM)
        expect_equal(server.wait(timeout=120), 0, how)
        with open("log") as log:
            expect("passphrase" not in said + log.read(), "the secret is said")


with Workdir():
    write("secret", b"passphrase")
    write("other", b"another one")
    write("plain.raw", content())
    write("short.raw", content()[:MB])
    for test in (both_ways, with_cryptsetup, unwritten_is_noise, chain, refusals, hostile_cost, hostile_digest, served):
        test()
