#!/usr/bin/python3
"""resize: what qemu-img sees afterwards, what is refused, preallocation, and an image that is served."""

import os
import signal
import subprocess

from cli import COWNBD, Workdir, cownbd, expect, expect_equal, expect_refused, load_json, must, ours, qemu_io, run

MB = 1 << 20


def size_of(image, fmt="qcow2"):
    return load_json(must("qemu-img", "info", "--output=json", "-f", fmt, image))["virtual-size"]


def check(image):
    """Clean, also for qemu-img, which counts everything itself."""
    must("qemu-img", "check", "-q", "-f", "qcow2", image)
    ours("check", "-f", "qcow2", image)


def sizes():
    """Absolute and relative, as qemu-img takes them."""
    ours("create", "-q", "-f", "qcow2", "a.qcow2", "64M")
    qemu_io("a.qcow2", "write -P 1 0 64k", "write -P 2 30M 128k", "write -P 3 60M 1M")
    for argument, want in (("1G", 1024), ("+8T", 1024 + 8 * MB), ("32M", 32), ("-2M", 30), ("+2M", 32), ("-0", 32)):
        shrink = ["--shrink"] if want <= 32 else []
        ours("resize", *shrink, "a.qcow2", argument)
        expect_equal(size_of("a.qcow2"), want * MB, argument)
        check("a.qcow2")
    qemu_io("a.qcow2", "read -P 1 0 64k", "read -P 0 30M 2M")
    answer = load_json(ours("resize", "--json", "a.qcow2", "+1M"))
    expect_equal(answer, {"filename": "a.qcow2", "old-size": 32 * MB, "virtual-size": 33 * MB})
    expect(os.stat("a.qcow2").st_size < 2 * MB, "the file did not become smaller")


def last_cluster():
    """What a cluster holds behind the end of the disk does not show: compressed, shared, below in the backing."""
    must("qemu-img", "create", "-q", "-f", "raw", "base.raw", "1M")
    must("qemu-io", "-f", "raw", "-c", "write -P 9 0 1M", "base.raw")
    must("qemu-img", "convert", "-c", "-O", "qcow2", "base.raw", "packed.qcow2")
    must("qemu-img", "convert", "-O", "qcow2", "base.raw", "shared.qcow2")
    must("qemu-img", "snapshot", "-c", "one", "shared.qcow2")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "over.qcow2")
    for image in ("packed.qcow2", "shared.qcow2", "over.qcow2"):
        ours("resize", "--shrink", image, "400000")
        expect_equal(size_of(image), 400384, "sizes are whole sectors")
        ours("resize", image, "2M")
        qemu_io(image, "read -P 9 0 400384", f"read -P 0 400384 {2 * MB - 400384}")
        check(image)
    must("qemu-img", "snapshot", "-a", "one", "shared.qcow2")
    qemu_io("shared.qcow2", "read -P 9 0 1M")
    check("shared.qcow2")


def preallocation():
    for how, least in (("off", 0), ("metadata", 0), ("falloc", 16 * MB), ("full", 16 * MB)):
        for fmt in ("qcow2", "raw"):
            ours("create", "-q", "-f", fmt, f"p.{fmt}", "1M")
            result = cownbd("resize", "-q", "-f", fmt, f"--preallocation={how}", f"p.{fmt}", "17M")
            if (fmt, how) == ("raw", "metadata"):
                expect_refused(result, "off, falloc or full")
                expect_equal(os.stat("p.raw").st_size, MB)
                continue
            expect_equal((result.returncode, result.stdout + result.stderr), (0, ""), fmt, how)
            expect(os.stat(f"p.{fmt}").st_blocks * 512 >= least, fmt, how, "has no space")
            expect_equal(size_of(f"p.{fmt}", fmt), 17 * MB)
            qemu_io(f"p.{fmt}", "read -P 0 0 17M", fmt=fmt)
            if fmt == "qcow2":
                check("p.qcow2")
                data = sum(e["length"] for e in load_json(ours("map", "--json", "p.qcow2")) if "offset" in e)
                expect_equal(data, 0 if how == "off" else 16 * MB, how)


def block_formats():
    """Tables that must become longer than their place, and shorter; what others read, and call clean."""
    with open("data.raw", "wb") as file:
        file.write(os.urandom(3 * MB + 5000))
        file.seek(64 * MB - 3)
        file.write(b"end")
    both, up = ("128M", "2G", "67107328", "2M", "64M"), ("67109376", "128M", "2G")
    cases = (("vhd", "vpc", "block_size=64k", both), ("vhd", "vpc", "subformat=fixed", both),
             ("vdi", "vdi", "static=off", both), ("vhdx", "vhdx", "block_size=1M", ("256G",) + both),
             ("vhdx", "vhdx", "subformat=fixed,block_size=1M", ("70M", "5M")), ("qcow", "qcow", "cluster_size=4k", up),
             ("vmdk", "vmdk", "grain_size=4k", ("600M",) + both), ("vmdk", "vmdk", "subformat=monolithicFlat", both),
             ("vmdk", "vmdk", "subformat=twoGbMaxExtentSparse,extent_size=32M", up),
             ("vmdk", "vmdk", "subformat=twoGbMaxExtentFlat,extent_size=32M", up[:2]),
             ("vmdk", None, "subformat=vmfsSparse", ("600M",) + both),  # which qemu takes for flat
             ("qed", "qed", "cluster_size=4k,table_size=2", up[:2]), ("parallels", "parallels", "cluster_size=64k", up))
    for fmt, peer, option, sizes in cases:
        image = f"b.{fmt}"
        must("cp", "--sparse=always", "data.raw", "want.raw")
        ours("convert", "-q", "-O", fmt, "-o", option, "want.raw", image)
        for size in sizes:
            ours("resize", "-q", "--shrink", image, size)
            must("truncate", "-s", size, "want.raw")
            if peer and size != "256G":  # of so many blocks qemu takes minutes
                must("qemu-img", "compare", "-f", "raw", "-F", peer, "want.raw", image)
            ours("compare", "want.raw", image)
            expect(cownbd("check", image).returncode in (0, 3) if fmt in ("vhd", "qcow", "parallels", "vmdk") else ours("check", image), image)
            if fmt in ("vdi", "vhdx", "qed"):
                must("qemu-img", "check", "-q", "-f", fmt, image)
        os.unlink(image)
    ours("create", "-q", "-f", "vhd", "base.vhd", "8M")
    ours("create", "-q", "-f", "vhd", "-b", "base.vhd", "-F", "vhd", "child.vhd")
    expect_refused(cownbd("resize", "child.vhd", "9M"), "differencing vhd", "size of its parent")
    expect_refused(cownbd("resize", "base.vhd", "3T"), "base.vhd", "2040G")


def vmdk():
    """What an extent cannot become; a file that has the name of a new extent stays as it is."""
    ours("create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse,extent_size=1M", "v.vmdk", "3M")
    with open("v-s004.vmdk", "w") as file:
        file.write("mine")
    ours("resize", "-q", "v.vmdk", "5M")
    expect_equal(open("v-s004.vmdk").read(), "mine")
    text = open("v.vmdk").read()
    expect('SPARSE "v-s005.vmdk"' in text and 'SPARSE "v-s006.vmdk"' in text, text)
    qemu_io("v.vmdk", "read -P 0 0 5M", fmt="vmdk")
    for size, word in (("1M", "only the last of its 5 extents"), ("8G", "62T")):
        expect_refused(cownbd("resize", "--shrink", "v.vmdk", size), "v.vmdk", word)
    expect_equal(open("v.vmdk").read(), text, "what was refused")
    ours("create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized", "stream.vmdk", "3M")
    expect_refused(cownbd("resize", "stream.vmdk", "4M"), "stream.vmdk", "streamOptimized", "convert")
    ours("create", "-q", "-f", "vmdk", "-o", "subformat=vmfsSparse", "cowd.vmdk", "3M")
    expect_refused(cownbd("resize", "cowd.vmdk", "2T"), "cowd.vmdk", "below 2T")
    ours("create", "-q", "-f", "vmdk", "-b", "stream.vmdk", "-F", "vmdk", "over.vmdk", "1M")
    expect_refused(cownbd("resize", "over.vmdk", "2M"), "over.vmdk", "its backing file is longer")
    os.link("v.vmdk", "another-name")
    expect_refused(cownbd("resize", "v.vmdk", "6M"), "v.vmdk", "cannot write the descriptor")
    expect(not os.path.exists("v-s007.vmdk"), "an extent of a resize that failed is left")


def vmdk_split_over_a_longer_backing():
    """What the disk gains in new files is zero, too, and nobody's who could not read the image."""
    with open("long.raw", "wb") as file:
        file.write(b"\7" * (8 * MB))
    ours("convert", "-q", "-f", "raw", "-O", "vmdk", "long.raw", "long.vmdk")
    ours("create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse,extent_size=1M,zeroed_grain=on",
         "-b", "long.vmdk", "-F", "vmdk", "short.vmdk", "2M")
    os.chmod("short.vmdk", 0o600)
    for size in 5, 9:
        ours("resize", "short.vmdk", f"{size}M")
        ours("convert", "-q", "-O", "raw", "short.vmdk", "read.raw")
        with open("read.raw", "rb") as file:
            expect(file.read() == b"\7" * (2 * MB) + bytes((size - 2) * MB), f"{size} MiB over 8 MiB")
        ours("check", "-q", "short.vmdk")
    expect_equal([os.stat(f"short-s00{n}.vmdk").st_mode & 0o777 for n in (3, 9)], [0o600, 0o600], "mode")


def encrypted():
    """What a luks image had stays; what it gains is there, and noise."""
    with open("secret", "w") as file:
        file.write("passphrase")
    secret = ["--secret-file", "secret"]
    with open("plain.raw", "wb") as file:
        file.write(b"\3" * MB)
    for version in ("1", "2"):
        ours("convert", "-q", "-O", "luks", "-o", f"iterations=1000,version={version}", *secret, "plain.raw", "r.luks")
        ours("resize", "-q", *secret, "r.luks", "+1M")
        expect_equal(load_json(ours("info", "--json", "r.luks"))["virtual-size"], 2 * MB)
        ours("convert", "--range", "0:1M", "-O", "raw", *secret, "r.luks", "front.raw")
        must("cmp", "front.raw", "plain.raw")
        ours("resize", "-q", "--shrink", *secret, "r.luks", "1M")
        ours("compare", *secret, "r.luks", "plain.raw")
        expect_refused(cownbd("resize", *secret, "r.luks", "1048577"), "1048577", "multiple of its sectors of 512")
        expect_refused(cownbd("resize", "r.luks", "2M"), "r.luks", "needs its secret")
        expect_refused(cownbd("resize", *secret, "--preallocation=full", "r.luks", "2M"), "is encrypted")
        expect_equal(load_json(ours("info", "--json", "r.luks"))["virtual-size"], MB)


def refusals():
    ours("create", "-q", "-f", "qcow2", "r.qcow2", "8M")
    expect_refused(cownbd("resize", "r.qcow2", "4M"), "r.qcow2", "--shrink")
    expect_refused(cownbd("resize", "r.qcow2", "-9M"), "cannot lose")
    expect_refused(cownbd("resize", "r.qcow2", "8E"), "8E")
    expect_refused(cownbd("resize", "r.qcow2", "7E"), "r.qcow2", "at most")
    expect_refused(cownbd("resize", "r.qcow2", "+7.9E"), "r.qcow2")
    expect_refused(cownbd("resize", "r.qcow2"), "no size given")
    expect_refused(cownbd("resize"), "no image given")
    expect_refused(cownbd("resize", "--preallocation=some", "r.qcow2", "9M"), "some", "falloc")
    expect_refused(cownbd("resize", "none.qcow2", "9M"), "none.qcow2")
    expect_equal(size_of("r.qcow2"), 8 * MB)
    must("qemu-img", "create", "-q", "-f", "raw", "long.raw", "16M")
    must("qemu-img", "create", "-q", "-f", "qcow", "-b", "long.raw", "-F", "raw", "r.qcow", "8M")
    expect_refused(cownbd("resize", "r.qcow", "9M"), "r.qcow", "backing file is longer")
    expect_refused(cownbd("resize", "--shrink", "r.qcow", "7M"), "r.qcow", "cannot become smaller")
    must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "8M")
    must("qemu-img", "snapshot", "-c", "one", "old.qcow2")
    expect_refused(cownbd("resize", "old.qcow2", "9M"), "snapshot 'one'")


def served():
    """A new client sees the new size; one that is there may use the new part."""
    ours("create", "-q", "-f", "qcow2", "s.qcow2", "8M")
    server = subprocess.Popen([COWNBD, "serve", "--listen", "unix:sock", "--control", "control", "s.qcow2"],
                              stdout=subprocess.PIPE, text=True)
    try:
        server.stdout.readline()
        uri = f"nbd+unix:///?socket={os.path.abspath('sock')}"
        script = f"""
import nbd, subprocess
def resize(*arguments):
    subprocess.run([{COWNBD!r}, "resize", "-q", "--control", "control", *arguments], check=True)
h = nbd.NBD()
h.connect_uri({uri!r})
h.pwrite(b"1" * 65536, (8 << 20) - 65536)
resize("s.qcow2", "16M")
other = nbd.NBD()
other.connect_uri({uri!r})
assert other.get_size() == 16 << 20, other.get_size()
h.set_strict_mode(0)
for it in h, other:
    it.pwrite(b"2" * 512, (16 << 20) - 512)
assert h.pread(65536, 8 << 20) == bytes(65536)
resize("--shrink", "s.qcow2", "4M")
for failing in (lambda: h.pread(512, (8 << 20) - 512), lambda: other.pwrite(b"3" * 512, (16 << 20) - 512)):
    try:
        failing()
        raise SystemExit("beyond the end, and no error")
    except nbd.Error as error:
        print(error.errno)
resize("s.qcow2", "+4M")
assert h.pread(4 << 20, 4 << 20) == bytes(4 << 20)
"""
        answer = must("/usr/bin/python3", "-c", script)  # Debian's, which has libnbd
        expect_equal(answer.split(), ["EINVAL", "ENOSPC"])
        call = [COWNBD, "resize", "--control", "control"]
        expect_refused(run(*call, "s.qcow2", "1M"), "s.qcow2", "--shrink")
        expect_refused(run(*call, "--preallocation=full", "s.qcow2", "9M"), "a server has it")
        expect_refused(run(*call, "a.qcow2", "9M"), "does not serve it")
        expect_refused(cownbd("ctl", "--control", "control", "resize", "image=" + os.path.realpath("s.qcow2")),
                       "size is missing")
        server.send_signal(signal.SIGSTOP)
        expect_refused(run(*call, "s.qcow2", "9M"), f"process {server.pid}, does not answer")
        server.send_signal(signal.SIGCONT)
        expect_equal(load_json(ours("list", "--control", "control", "--json"))["exports"][0]["size"], 8 * MB)
    finally:
        server.send_signal(signal.SIGTERM)
        expect_equal(server.wait(timeout=60), 0)
    check("s.qcow2")


with Workdir():
    sizes()
    last_cluster()
    preallocation()
    block_formats()
    vmdk()
    vmdk_split_over_a_longer_backing()
    encrypted()
    refusals()
    served()
