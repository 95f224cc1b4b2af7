#!/usr/bin/python3
"""compact: the disk stays, the space goes; options, backing and compression stay, too."""
import os
import random
import signal

from cli import (COWNBD, Workdir, change_served, cownbd, expect, expect_equal, expect_refused, kill_held, load_json, must,
                 ours, run)

SIZE = 8 << 20


def contents(image, fmt):
    must("qemu-img", "convert", "-f", fmt, "-O", "raw", image, "theirs")
    with open("theirs", "rb") as file:
        return file.read()


def used(image):
    return os.stat(image).st_blocks * 512


def fill(image, fmt, dice):
    """Data in no order, some of it zeroes that take space, some of it discarded again."""
    commands = [f"write -P {dice.randrange(1, 256)} {block << 16} 64k" for block in dice.sample(range(128), 100)]
    commands += [f"write -P 0 {block << 16} 128k" for block in dice.sample(range(126), 20)]
    commands += [f"discard {block << 16} 64k" for block in dice.sample(range(128), 10)]
    must("qemu-io", "-d", "unmap", "-f", fmt, *[a for c in commands for a in ("-c", c)], image)


def test_formats():
    for fmt, options in (("raw", ()), ("qcow", ()), ("qed", ()), ("parallels", ("-o", "cluster_size=64k")),
                         ("qcow2", ()), ("qcow2", ("-o", "compat=0.10")),
                         ("qcow2", ("-o", "cluster_size=4k,refcount_bits=64,lazy_refcounts=on")),
                         ("qcow2", ("-o", "compression_type=zstd"))):
        must("qemu-img", "create", "-q", "-f", fmt, *options, "image", SIZE)
        os.chmod("image", 0o640)
        fill("image", fmt, random.Random(1))
        want, before = contents("image", fmt), used("image")
        report = load_json(ours("compact", "--json", "-f", fmt, "image"))
        expect(contents("image", fmt) == want, fmt, options, "reads differently")
        expect(used("image") < before and report["after"] < report["before"], fmt, options, "is no smaller", report)
        expect_equal(os.stat("image").st_mode & 0o777, 0o640, "permissions")
        if fmt != "raw":
            ours("check", "image")
        if fmt != "qcow2":
            continue
        must("qemu-img", "check", "-q", "image")
        report = load_json(ours("check", "--json", "image"))
        # Tables lie where they became needed, so data goes on behind them.
        expect(report.get("fragmented-clusters", 0) * 100 <= report["allocated-clusters"], "is not in order", options,
               report)
        info = load_json(must("qemu-img", "info", "--output=json", "image"))["format-specific"]["data"]
        for option in (options[1].split(",") if options else ()):
            name, value = option.split("=")
            if name != "cluster_size":
                expect_equal(str(info[name.replace("_", "-")]).lower().replace("true", "on"), value, "option", name)


def test_backing():
    """Zero over a backing stays zero, what is not there stays the backing's."""
    must("qemu-img", "create", "-q", "-f", "raw", "base", SIZE)
    must("qemu-io", "-f", "raw", "-c", f"write -P 3 0 {SIZE}", "base")
    for compat in ("0.10", "1.1"):
        must("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", "-b", "base", "-F", "raw", "over")
        fill("over", "qcow2", random.Random(2))
        want = contents("over", "qcow2")
        ours("compact", "-q", "over")
        expect(contents("over", "qcow2") == want, compat, "reads differently over a backing")
        must("qemu-img", "check", "-q", "over")
        info = load_json(must("qemu-img", "info", "--output=json", "over"))
        expect_equal((info["backing-filename"], info["backing-filename-format"]), ("base", "raw"), "the backing")


def test_parts():
    """A cluster that is the image's own in part keeps what the backing has of the rest."""
    must("qemu-img", "create", "-q", "-f", "raw", "base", SIZE)
    must("qemu-io", "-f", "raw", "-c", f"write -P 3 0 {SIZE}", "base")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", "base", "-F", "raw", "parts")
    must("qemu-io", "-f", "qcow2", "-c", "write -P 5 4k 2k", "-c", "write -z 70k 2k", "-c", "write -P 6 1M 64k",
         "parts")
    want = contents("parts", "qcow2")
    ours("compact", "-q", "parts")
    expect(contents("parts", "qcow2") == want, "parts of clusters read differently")
    must("qemu-img", "check", "-q", "parts")
    own = sum(line["length"] for line in load_json(ours("map", "--json", "parts")) if line["depth"] == 0)
    expect_equal(own, 3 << 16, "what the image has itself")


def read_ours(image, fmt):
    ours("convert", "-q", "-f", fmt, "-O", "raw", image, "ours")
    with open("ours", "rb") as file:
        return file.read()


def layer(dice):
    """Writes that overlap what lies below: whole blocks and bits of them, zeroes and discards."""
    pieces = [(dice.randrange(SIZE - (300 << 10)) & ~511, dice.choice((512, 4096, 70 << 10, 300 << 10)))
              for _ in range(24)]
    commands = [f"write -P {dice.randrange(1, 256)} {at} {length}" for at, length in pieces]
    commands += [f"write -z {at} {length}" for at, length in pieces[::5]]
    commands += [f"discard {at & ~65535} 128k" for at, _ in pieces[::7]]
    dice.shuffle(commands)
    return commands


CHAINS = (
    ("vhd", ("block_size=512k",), "vpc"),
    ("vhdx", ("block_size=1M",), "vhdx"),
    ("vdi", (), "vdi"),
    ("vmdk", ("zeroed_grain=on",), "vmdk"),
    ("vmdk", ("subformat=vmfsSparse",), None),
    ("vmdk", ("subformat=twoGbMaxExtentSparse", "extent_size=3M"), "vmdk"),
)


def test_chains():
    """In each image of a chain: the disk stays, children and parents still know each other, no file gets larger."""
    for fmt, options, theirs in CHAINS:
        chain = [f"{name}.{fmt}" for name in ("base", "middle", "top")]
        dice = random.Random(3)
        for image, below in zip(chain, [None] + chain):
            arguments = ("-b", below, "-F", fmt) if below else (SIZE,)
            ours("create", "-q", "-f", fmt, *(a for option in options for a in ("-o", option)), image, *arguments)
            change_served(image, *layer(dice))
        wanted = [read_ours(image, fmt) for image in chain]
        contents(chain[0], "raw")
        files = sorted(os.listdir("."))
        for image in chain:
            before = os.stat(image).st_size, used(image)
            own = [line for line in load_json(ours("map", "--json", image)) if line["depth"] == 0]
            report = load_json(ours("compact", "--json", image))
            expect(os.stat(image).st_size <= before[0] and used(image) <= before[1], image, "became larger", before,
                   os.stat(image).st_size, report)
            for other, want in zip(chain, wanted):
                expect(read_ours(other, fmt) == want, other, "reads differently when", image, "is compact")
            ours("check", image)
            left = sum(line["length"] for line in load_json(ours("map", "--json", image)) if line["depth"] == 0)
            expect(left <= sum(line["length"] for line in own) + len(own) * 8192, image, "has what was not its own")
        expect_equal(sorted(os.listdir(".")), files, fmt, "files")
        if theirs:
            expect(contents(chain[0], theirs) == wanted[0], chain[0], "others read it differently")
        if theirs not in (None, "vpc", "vmdk"):
            must("qemu-img", "check", "-q", "-f", theirs, chain[0])


def test_compressed():
    with open("plain", "wb") as file:
        file.write(b"some words, and some more " * 150000)
    must("qemu-img", "convert", "-c", "-O", "qcow2", "plain", "small")
    must("qemu-io", "-f", "qcow2", "-c", "write -P 8 1M 1M", "small")
    want = contents("small", "qcow2")
    clusters = load_json(ours("check", "--json", "small"))["compressed-clusters"]
    ours("compact", "-q", "small")
    expect(contents("small", "qcow2") == want, "reads differently")
    expect_equal(load_json(ours("check", "--json", "small"))["compressed-clusters"], clusters, "compressed clusters")
    ours("compact", "-q", "-c", "small")
    expect(contents("small", "qcow2") == want, "reads differently with -c")
    expect(load_json(ours("check", "--json", "small"))["compressed-clusters"] > clusters, "-c compressed nothing more")
    must("qemu-img", "check", "-q", "small")


KEY = ("--object", "secret,id=s,file=secret")
SECRET = ("--secret-file", "secret")
ENCRYPTED = (
    ("qcow2", "luks", "encrypt.iterations=1000"),
    ("qcow2", "luks", "encrypt.iterations=1000,cluster_size=4k,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv"),
    ("qcow2", "luks", "encrypt.iterations=1000,extended_l2=on"),
    ("qcow2", "aes", "compat=0.10"),
    ("qcow", "aes", "cluster_size=4k"),
)


def make_encrypted(image, fmt, method, options, *backing):
    for name, passphrase in (("secret", "opens it"), ("wrong", "opens nothing")):
        with open(name, "w", encoding="ascii") as file:
            file.write(passphrase)
    ours("create", "-q", "-f", fmt, "-o", f"encrypt.format={method},{options}", *SECRET, *backing, image, SIZE)


def fill_encrypted(image, fmt, dice):
    change_served(image, *layer(dice), f"write -P 0 {SIZE // 2} 128k", options=("-f", fmt, *SECRET))


def read_encrypted(image, fmt):
    ours("convert", "-q", "-f", fmt, *SECRET, "-O", "raw", image, "ours")
    with open("ours", "rb") as file:
        return file.read()


def luks_header(image):
    """The key slots of a qcow2, and what else stands there."""
    with open(image, "rb") as file:
        data = file.read()
    at = data.find(bytes.fromhex("0537be7700000010"))
    offset, length = (int.from_bytes(data[at + 8 + i:at + 16 + i], "big") for i in (0, 8))
    return data[offset:offset + length] if at > 0 else b""


def test_encrypted():
    """What moves is encrypted for its new place, by the key that was there: header and key slots stay, byte for byte."""
    must("qemu-img", "create", "-q", "-f", "raw", "base", SIZE)
    must("qemu-io", "-f", "raw", "-c", f"write -P 3 0 {SIZE}", "base")
    for fmt, method, options in ENCRYPTED:
        for backing in ((), ("-b", "base", "-F", "raw")):
            make_encrypted("image", fmt, method, options, *backing)
            fill_encrypted("image", fmt, random.Random(7))
            want, header, before = read_encrypted("image", fmt), luks_header("image"), used("image")
            expect_equal(len(header) > 0, method == "luks", "a LUKS header")
            report = load_json(ours("compact", "--json", "-f", fmt, *SECRET, "image"))
            expect(read_encrypted("image", fmt) == want, fmt, options, backing, "reads differently")
            expect(luks_header("image") == header, fmt, options, "has another LUKS header")
            old = method == "aes"  # whose images say no zero over a backing
            expect(used("image") < before or (backing and old), fmt, options, "is no smaller", report)
            ours("check", "-f", fmt, "image")
            driver = f"driver={fmt},encrypt.format={method},encrypt.key-secret=s,file.filename=image"
            must("qemu-img", "compare", "-q", *KEY, "--image-opts", driver, "driver=raw,file.filename=ours")
            if fmt == "qcow2":
                must("qemu-img", "check", "-q", *KEY, "--image-opts", driver)


def test_encrypted_refusals():
    make_encrypted("image", "qcow2", "luks", "encrypt.iterations=1000")
    fill_encrypted("image", "qcow2", random.Random(8))
    ours("create", "-q", "-f", "luks", "-o", "iterations=1000", *SECRET, "image.luks", "64k")
    with open("image", "rb") as file:
        before = file.read()
    files = sorted(os.listdir("."))
    for arguments, words in ((("image",), ("is encrypted", "--secret-file")),
                             (("--secret-file", "wrong", "image"), ("opens none of its 1 key slots",)),
                             (("-c", *SECRET, "image"), ("-c", "leave out -c")),
                             ((*SECRET, "image.luks"), ("luks image",))):
        expect_refused(cownbd("compact", *arguments), *words)
    for number in (signal.SIGKILL, signal.SIGTERM):
        kill_held(number, "compact", "-p", *SECRET, "image")
    with open("image", "rb") as file:
        expect(file.read() == before, "an image changed that was not made compact")
    expect_equal(sorted(os.listdir(".")), files, "files")


def test_encrypted_compressed():
    """Compressed clusters are not encrypted, and stay as they are; old AES knows no wrong passphrase: it spoils nothing."""
    with open("plain", "wb") as file:
        file.write(b"some words, and some more " * 50000)
    must("qemu-img", "convert", "-c", "-O", "qcow2", "plain", "image")
    with open("image", "r+b") as file:
        file.seek(32)
        file.write((1).to_bytes(4, "big"))
    change_served("image", "write -P 8 128k 256k", options=SECRET)
    want, clusters = read_encrypted("image", "qcow2"), load_json(ours("check", "--json", "image"))["compressed-clusters"]
    expect(clusters > 0, "no compressed clusters")
    for secret in ("wrong", "secret"):
        ours("compact", "-q", "--secret-file", secret, "image")
        expect(read_encrypted("image", "qcow2") == want, "reads differently after compact with the passphrase", secret)
        expect_equal(load_json(ours("check", "--json", "image"))["compressed-clusters"], clusters, secret)


def test_refusals():
    must("qemu-img", "create", "-q", "-f", "qcow2", "image", SIZE)
    must("qemu-img", "snapshot", "-c", "one", "image")
    ours("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "image.vmdk", SIZE)
    with open("image", "rb") as file:
        before = file.read()
    must("qemu-img", "create", "-q", "-f", "qcow2", "linked", SIZE)
    os.link("linked", "other")
    for arguments, words in ((("image",), ("snapshots",)), (("image.vmdk",), ("is flat",)), (("linked",), ("2 names",)),
                             (("-c", "-f", "raw", "plain"), ("-c",)), (("none",), ("No such file",)),
                             (("/dev/null",), ("no regular file",)), ((), ("must be one",))):
        expect_refused(cownbd("compact", *arguments), *words)
    with open("image", "rb") as file:
        expect(file.read() == before, "a refused image changed")


def test_full_host():
    must("qemu-img", "create", "-q", "-f", "qcow2", "image", SIZE)
    must("qemu-io", "-f", "qcow2", "-c", f"write -P 3 0 {SIZE}", "image")
    before = sorted(os.listdir("."))
    with open("image", "rb") as file:
        image = file.read()
    result = run("bash", "-c", f"ulimit -f 1024; trap '' XFSZ; exec {COWNBD} compact image")
    expect_equal((result.returncode, sorted(os.listdir("."))), (1, before), "a full host", result.stderr)
    with open("image", "rb") as file:
        expect(file.read() == image, "the image changed on a full host")


with Workdir():
    for test in (test_formats, test_backing, test_parts, test_chains, test_compressed, test_encrypted,
                 test_encrypted_refusals, test_encrypted_compressed, test_refusals, test_full_host):
        test()
