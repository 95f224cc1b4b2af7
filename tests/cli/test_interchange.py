#!/usr/bin/python3
"""Images of vhd, vhdx, vdi, qcow, qed and parallels go both ways: what we make and write, qemu-img and 7-Zip read; what qemu makes, we read.

qemu reads no differencing vhd or vhdx, so 7-Zip says what such a chain holds; and neither reads a differencing vdi.
"""
import hashlib
import os
import subprocess
import time

from cli import COWNBD, Workdir, expect, expect_equal, expect_refused, must, ours, run

SIZE = 20 << 20
QEMU_NAME = {"vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi", "qcow": "qcow", "qed": "qed", "parallels": "parallels"}
QEMU_CREATE = {"vpc": ("-o", "force_size=on")}


class Served:
    """The image behind a unix socket, written by qemu-io."""

    def __init__(self, image):
        self.image = image

    def __enter__(self):
        self.process = subprocess.Popen([COWNBD, "serve", "--listen=unix:s.sock", "--control=none", self.image],
                                        stdout=subprocess.DEVNULL)
        for _ in range(300):
            if os.path.exists("s.sock"):
                return self
            time.sleep(0.1)
        raise SystemExit("the server does not begin to listen")

    def __exit__(self, *_):
        self.process.terminate()
        expect_equal(self.process.wait(timeout=60), 0, "exit of the server of", self.image)

    def io(self, *commands):
        arguments = [a for c in commands + ("flush",) for a in ("-c", c)]
        must("qemu-io", "-f", "raw", *arguments, "nbd+unix:///?socket=s.sock")


def contents(image):
    """As a client of our server sees them."""
    with Served(image):
        must("qemu-img", "convert", "-f", "raw", "-O", "raw", "nbd+unix:///?socket=s.sock", "contents")
    with open("contents", "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def by_qemu(image, name):
    must("qemu-img", "convert", "-f", QEMU_NAME[name], "-O", "raw", image, "theirs")
    with open("theirs", "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def by_7zip(image):
    found = subprocess.run(["7zz", "x", "-so", image], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)
    return hashlib.sha256(found.stdout).hexdigest()


def check_ours(name):
    base, child = f"base.{name}", f"child.{name}"
    ours("create", "-q", "-f", name, base, SIZE)
    with Served(base) as served:
        served.io("write -P 65 1M 3M", "write -P 66 7000k 900k", "discard 2M 2M", "write -z 3M 512k")
    want = contents(base)
    expect_equal(by_qemu(base, name), want, "qemu-img reads another", base)
    ours("check", base)
    if name == "parallels":
        return  # it has no parents
    ours("create", "-q", "-f", name, "-b", base, "-F", name, child)
    with Served(child) as served:
        served.io("write -P 67 1030k 9k", "write -P 68 19M 1M", "discard 7000k 100k")
    chain = contents(child)
    expect(chain != want, "nothing was written to", child)
    ours("check", child)
    if name in ("vhd", "vhdx"):
        expect_equal(by_7zip(base), want, "7-Zip reads another", base)
        expect_equal(by_7zip(child), chain, "7-Zip reads another", child)
    elif name in ("qcow", "qed"):
        expect_equal(by_qemu(child, name), chain, "qemu-img reads another", child)
    else:
        expect_equal(by_7zip(base), want, "7-Zip reads another", base)
    expect_equal(contents(base), want, "the child changed", base)


def check_theirs(name):
    theirs = f"theirs.{name}"
    fmt = QEMU_NAME[name]
    must("qemu-img", "create", "-q", "-f", fmt, *QEMU_CREATE.get(fmt, ()), theirs, SIZE)
    must("qemu-io", "-f", fmt, "-c", "write -P 70 3M 70k", "-c", "write -P 71 12345k 5k", theirs)
    expect_equal(contents(theirs), by_qemu(theirs, name), "we read another", theirs)
    with Served(theirs) as served:
        served.io("write -P 72 5M 1M", "write -P 73 3100k 1k")
    expect_equal(by_qemu(theirs, name), contents(theirs), "qemu-img reads another", theirs)
    ours("check", theirs)


def check_repair():
    """The command mends what the unit tests damage by hand: here, a vhd whose footer is gone."""
    with open("base.vhd", "r+b") as file:
        file.truncate(os.path.getsize("base.vhd") - 512)
    result = run(COWNBD, "check", "base.vhd")
    expect(result.returncode == 2 and "footer at the end" in result.stdout + result.stderr, "no footer", result)
    run(COWNBD, "check", "--repair=all", "base.vhd")
    ours("check", "base.vhd")
    expect_refused(run(COWNBD, "create", "-f", "vhd", "-b", "base.vdi", "-F", "vdi", "x.vhd"), "must be vhd or raw")
    expect_refused(run(COWNBD, "create", "-f", "vdi", "-o", "static=on", "-b", "base.vdi", "-F", "vdi", "x.vdi"),
                   "static")


with Workdir():
    for each in QEMU_NAME:
        check_ours(each)
        check_theirs(each)
    check_repair()
