#!/usr/bin/python3
"""Images go both ways: what we make and write, qemu-img, 7-Zip and libyal read; what qemu makes, we read and write.

qemu reads no differencing vhd or vhdx, so 7-Zip and libvhdi say what such a chain holds; none reads a differencing vdi.
docs/formats.md has the table of who judged what.
"""
import hashlib
import os
import subprocess
import sys
import time

import pyqcow
import pyvhdi
import pyvmdk

sys.path.insert(0, os.path.join(os.environ["COWNBD_SOURCE"], "tests/golden/make"))
import parallels

from cli import COWNBD, Workdir, expect, expect_equal, expect_refused, load_json, must, ours, run

SIZE = 20 << 20
QEMU_NAME = {"vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi", "vmdk": "vmdk", "qcow": "qcow", "qed": "qed",
             "parallels": "parallels"}
CONVERTED = [("vhd", "subformat=fixed"), ("vhdx", "subformat=fixed"), ("vhdx", "block_size=1M"), ("vdi", "static=on"),
             ("qcow2", "cluster_size=4k"), ("qcow2", "compat=0.10"), ("vmdk", "subformat=monolithicSparse"),
             ("vmdk", "subformat=monolithicFlat"), ("vmdk", "subformat=twoGbMaxExtentSparse"),
             ("vmdk", "subformat=twoGbMaxExtentFlat")]
COMPRESSED = [("qcow2", "cluster_size=4k"), ("qcow2", "cluster_size=64k"), ("qcow", "cluster_size=512"),
              ("qcow", "cluster_size=4k")]
CHECKED_BY_QEMU = ("vhdx", "vdi", "qcow2", "vmdk")
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


def libyal_open(image):
    kind = image.rpartition(".")[2]
    opened = {"vmdk": pyvmdk.handle, "vhd": pyvhdi.file, "vhdx": pyvhdi.file}.get(kind, pyqcow.file)()
    opened.open(image)
    if kind == "vmdk":
        opened.open_extent_data_files()
    return opened


def by_libyal(*images):
    """A chain, from the top on. An image does not keep its parent alive, the list does."""
    chain = [libyal_open(image) for image in images]
    for child, parent in zip(chain, chain[1:]):
        child.set_parent(parent)
    expect_equal(chain[0].get_media_size(), SIZE, "libyal: size of", *images)
    content = hashlib.sha256()
    for offset in range(0, SIZE, 1 << 20):
        content.update(chain[0].read_buffer_at_offset(1 << 20, offset))
    return content.hexdigest()


def check_converted(name, options, *flags):
    """A disk copied into an image of ours: everybody reads the same, and qemu-img finds nothing wrong with it."""
    image = f"converted.{name}"
    fmt = QEMU_NAME.get(name, name)
    ours("convert", "-q", "-O", name, *flags, "-o", options, "source.raw", image)
    with open("source.raw", "rb") as file:
        want = hashlib.sha256(file.read()).hexdigest()
    must("qemu-img", "compare", "-q", "-f", fmt, "-F", "raw", image, "source.raw")
    if name in CHECKED_BY_QEMU:
        must("qemu-img", "check", "-q", "-f", fmt, image)
    if name != "qcow":  # 7-Zip knows no compressed clusters of version 1, qemu's neither
        expect_equal(by_7zip(image), want, "7-Zip reads another", image, options, *flags)
    if name != "vdi":
        expect_equal(by_libyal(image), want, "libyal reads another", image, options)


def check_backing_names():
    """The name of a format inside an image is qemu's; we show our own."""
    ours("create", "-q", "-f", "vhd", "below.vhd", SIZE)
    ours("create", "-q", "-f", "qcow2", "-b", "below.vhd", "-F", "vhd", "above.qcow2")
    ours("bitmap", "add", "above.qcow2", "b")
    expect("backing file format: vpc" in must("qemu-img", "info", "above.qcow2"), "qemu's name of vhd, created")
    expect("backing file format: vhd" in ours("info", "above.qcow2"), "our name of vhd")
    ours("rebase", "-u", "-b", "source.raw", "-F", "raw", "above.qcow2")
    ours("rebase", "-u", "-b", "below.vhd", "-F", "vhd", "above.qcow2")
    expect("backing file format: vpc" in must("qemu-img", "info", "above.qcow2"), "qemu's name of vhd, rebased")
    must("qemu-img", "convert", "-O", "raw", "above.qcow2", "theirs")


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
        expect_equal(by_libyal(base), want, "libvhdi reads another", base)
        expect_equal(by_libyal(child, base), chain, "libvhdi reads another", child)
    elif name in ("qcow", "qed", "vmdk"):
        expect_equal(by_qemu(child, name), chain, "qemu-img reads another", child)
        if name != "qcow":
            must("qemu-img", "check", "-q", child)
        else:
            expect_equal(by_libyal(base), want, "libqcow reads another", base)
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


VMDK_EXTENTS = ("subformat=monolithicFlat", "subformat=twoGbMaxExtentSparse,extent_size=8M",
                "subformat=twoGbMaxExtentFlat,extent_size=8M",
                "subformat=monolithicSparse,grain_size=4k,zeroed_grain=on")


def check_vmdk_extents():
    """Of several files, and with grains of other sizes."""
    for number, options in enumerate(VMDK_EXTENTS):
        image = f"extents-{number}.vmdk"
        ours("create", "-q", "-f", "vmdk", "-o", options, image, SIZE)
        with Served(image) as served:
            served.io("write -P 65 1M 3M", "write -P 66 7900k 9000k", "discard 2M 2M", "write -z 3M 512k")
        want = contents(image)
        expect_equal(by_qemu(image, "vmdk"), want, "qemu-img reads another", options)
        expect_equal(by_7zip(image), want, "7-Zip reads another", options)
        must("qemu-img", "check", "-q", image)
        must("qemu-io", "-f", "vmdk", "-c", "write -P 70 11M 70k", image)
        expect_equal(contents(image), by_qemu(image, "vmdk"), "we read another after qemu-io wrote", options)
        ours("check", image)
    for subformat in ("monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"):
        theirs = f"theirs-{subformat}.vmdk"
        must("qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", theirs, SIZE)
        with Served(theirs) as served:
            served.io("write -P 72 5M 1M", "write -P 73 3100k 1k")
        expect_equal(by_qemu(theirs, "vmdk"), contents(theirs), "qemu-img reads another", theirs)
        must("qemu-img", "check", "-q", theirs)


def check_vmdk_of_esx():
    """COWD, which only we make: over a parent, too. qemu-img and libvmdk read it, qemu-io changes what is there."""
    options = ("-f", "vmdk", "-o", "subformat=vmfsSparse")
    ours("create", "-q", *options, "esx.vmdk", SIZE)
    with Served("esx.vmdk") as served:
        served.io("write -P 65 1M 3M", "write -P 66 7900k 900k", "discard 2M 2M", "write -z 3M 512k")
    must("qemu-io", "-f", "vmdk", "-c", "write -P 70 1100k 70k", "esx.vmdk")
    want = contents("esx.vmdk")
    expect_equal(by_qemu("esx.vmdk", "vmdk"), want, "qemu-img reads another COWD")
    expect_equal(by_libyal("esx.vmdk"), want, "libvmdk reads another COWD")
    must("qemu-img", "check", "-q", "esx.vmdk")
    ours("create", "-q", *options, "-b", "esx.vmdk", "-F", "vmdk", "snapshot.vmdk")
    with Served("snapshot.vmdk") as served:
        served.io("write -P 71 1030k 9k", "write -P 72 19M 1M")
    chain = contents("snapshot.vmdk")
    expect(chain != want, "nothing was written to snapshot.vmdk")
    expect_equal(by_qemu("snapshot.vmdk", "vmdk"), chain, "qemu-img reads another chain of COWD")
    ours("check", "snapshot.vmdk")
    ours("check", "esx.vmdk")


def check_vmdk_names():
    """All files of an image appear, or none; what it replaces goes away as a whole."""
    def names():
        return sorted(name for name in os.listdir(".") if name.startswith("several"))
    os.mkdir("several-f002.vmdk")
    refused = run(COWNBD, "create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat,extent_size=8M",
                  "several.vmdk", SIZE)
    expect_refused(refused, "several-f002.vmdk", "regular file")
    expect_equal(names(), ["several-f002.vmdk"], "files are left over")
    os.rmdir("several-f002.vmdk")
    expect_refused(run(COWNBD, "convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", "gone.raw",
                       "several.vmdk"), "gone.raw")
    expect_equal(names(), [], "files are left over")
    ours("convert", "-q", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse,extent_size=16M", "base.vmdk",
         "several.vmdk")
    expect_equal(names(), ["several-s001.vmdk", "several-s002.vmdk", "several.vmdk"], "files of the image")
    ours("compare", "base.vmdk", "several.vmdk")
    ours("convert", "-q", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse,extent_size=16M", "theirs.vmdk",
         "several.vmdk")
    ours("compare", "theirs.vmdk", "several.vmdk")
    with Served("several.vmdk"):
        expect_refused(run(COWNBD, "create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse,extent_size=16M",
                           "several.vmdk", SIZE), "in use")
    ours("compare", "theirs.vmdk", "several.vmdk")


def check_parallels_directory():
    """Files that qemu made, put together by a descriptor: a root, what was written since, and plain bytes behind both."""
    os.mkdir("disk.hdd")
    half = SIZE // 2
    cluster = ("-o", "cluster_size=4k")
    must("qemu-img", "create", "-q", "-f", "parallels", *cluster, "disk.hdd/root.hds", half)
    must("qemu-img", "create", "-q", "-f", "parallels", *cluster, "disk.hdd/now.hds", half)
    must("qemu-io", "-f", "parallels", "-c", "write -P 1 0 1M", "-c", "write -P 2 5M 1M", "disk.hdd/root.hds")
    must("qemu-io", "-f", "parallels", "-c", "write -P 3 512k 1M", "disk.hdd/now.hds")
    must("qemu-img", "create", "-q", "-f", "raw", "model.raw", SIZE)
    must("qemu-io", "-f", "raw", "-c", "write -P 1 0 512k", "-c", "write -P 3 512k 1M", "-c", "write -P 2 5M 1M",
         "-c", f"write -P 4 {half} 64k", "model.raw")
    with open("model.raw", "rb") as model, open("disk.hdd/plain.hds", "wb") as plain:
        model.seek(half)
        plain.write(model.read())
    snapshot, sectors = parallels.SNAPSHOTS[0], half // 512
    storages = [(sectors, [(snapshot, "Compressed", "root.hds"), (parallels.TOP, "Compressed", "now.hds")]),
                (sectors, [(snapshot, "Plain", "plain.hds"), (parallels.TOP, "Compressed", "nothing.hds")])]
    must("qemu-img", "create", "-q", "-f", "parallels", *cluster, "disk.hdd/nothing.hds", half)
    text = parallels.descriptor(storages, parallels.shots(snapshot, parallels.TOP))

    expect_refused(run(COWNBD, "info", "disk.hdd"), "disk.hdd: is a directory")
    with open("disk.hdd/DiskDescriptor.xml", "w") as file:
        file.write(text)
    for path in ("disk.hdd", "disk.hdd/", "disk.hdd/DiskDescriptor.xml"):
        ours("compare", path, "model.raw")
    ours("check", "-f", "parallels", "disk.hdd")
    must("qemu-img", "compare", "-f", "raw", "-F", "raw", "model.raw", converted("disk.hdd"))
    ours("create", "-f", "qcow2", "-b", "disk.hdd", "-F", "parallels", "over.qcow2")
    ours("compare", "over.qcow2", "model.raw")
    with open("model.raw", "rb") as model:
        expect_equal(contents("disk.hdd"), hashlib.sha256(model.read()).hexdigest(), "disk.hdd over NBD")
    check_parallels_snapshot(snapshot, half)
    for command in (["check", "--repair=all"], ["resize"]):
        expect_refused(run(COWNBD, *command, "disk.hdd", *["+1M"] * (command == ["resize"])), "open it read-only")
    expect_refused(run(COWNBD, "info", "-f", "raw", "disk.hdd"), "is a directory")
    with open("disk.hdd/DiskDescriptor.xml", "w") as file:
        file.write(text.replace("root.hds", "../model.raw"))
    expect_refused(run(COWNBD, "map", "disk.hdd"), "--allow-path")


def check_parallels_snapshot(guid, half):
    """The disk as it was before now.hds: by its number, and by its GUID however that is written."""
    must("qemu-img", "create", "-q", "-f", "raw", "old.raw", SIZE)
    must("qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", "-c", "write -P 2 5M 1M", "-c", f"write -P 4 {half} 64k",
         "old.raw")
    expect_equal(load_json(ours("snapshot", "list", "--json", "disk.hdd")), [{"id": "1", "name": guid.lower()}], "the list")
    expect(guid.lower() in ours("info", "disk.hdd"), "info shows no snapshot")
    for name in ("1", guid.lower(), guid.upper()):
        ours("convert", "-q", "--snapshot", name, "-O", "raw", "disk.hdd", "before.raw")
        ours("compare", "before.raw", "old.raw")
    for name in ("2", "0", parallels.TOP, ""):
        expect_refused(run(COWNBD, "map", "--snapshot", name, "disk.hdd"), f"no snapshot '{name}'")
    expect_refused(run(COWNBD, "map", "--snapshot", "1", "-f", "parallels", "disk.hdd/root.hds"), "is one file")
    expect_refused(run(COWNBD, "snapshot", "create", "disk.hdd", "new"), "open it read-only")


def converted(image):
    ours("convert", "-q", "-O", "raw", image, "converted.raw")
    return "converted.raw"


with Workdir():
    check_parallels_directory()
    for each in QEMU_NAME:
        check_ours(each)
        check_theirs(each)
    check_repair()
    with open("contents", "rb") as last, open("source.raw", "wb") as source:
        source.write(last.read())
    for each in CONVERTED:
        check_converted(*each)
    for name, options in COMPRESSED:
        check_converted(name, options, "-c")
    check_backing_names()
    check_vmdk_extents()
    check_vmdk_of_esx()
    check_vmdk_names()
