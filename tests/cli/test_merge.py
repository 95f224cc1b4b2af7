#!/usr/bin/python3
"""commit and rebase: what a chain reads as stays, wherever it is cut off; qemu-img agrees."""
import os
import random
import shutil

from cli import COWNBD, Qcow2, Workdir, cownbd, expect, expect_equal, expect_refused, load_json, must, ours, run

GOLDEN = os.environ["COWNBD_SOURCE"] + "/tests/golden"
SIZE = 6 << 20
SMALL = 1 << 20
FAMILIES = ("vhd", "vdi", "vhdx", "qcow", "qed", "vmdk")


def bytes_of(image):
    ours("convert", "-q", "-O", "raw", image, "contents")
    with open("contents", "rb") as file:
        return file.read()


def by_qemu(image, fmt="qcow2"):
    must("qemu-img", "convert", "-f", fmt, "-O", "raw", image, "theirs")
    with open("theirs", "rb") as file:
        return file.read()


def fill(image, dice, fmt="qcow2", size=SIZE):
    commands = []
    for _ in range(12):
        start = dice.randrange(size // 512) * 512
        length = min(dice.choice((512, 4096, 65536, 300 * 1024)), size - start)
        commands.append(dice.choice((f"write -P {dice.randrange(1, 256)} {start} {length}", f"write -z {start} {length}")))
    must("qemu-io", "-f", fmt, *[a for c in commands for a in ("-c", c)], image)


def chain(dice, fmt="qcow2", sizes=(SIZE, SIZE, SIZE), options=()):
    """base <- middle <- top, each with something of its own."""
    must("qemu-img", "create", "-q", "-f", fmt, *options, "base", sizes[0])
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", fmt, *options, "middle", sizes[1])
    must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "middle", "-F", "qcow2", *options, "top", sizes[2])
    fill("base", dice, fmt, sizes[0])
    fill("middle", dice, "qcow2", sizes[1])
    fill("top", dice, "qcow2", sizes[2])


def sound(*images):
    for image in images:
        must("qemu-img", "check", "-q", "-f", "qcow2", image)
        ours("check", image)


def test_commit():
    dice = random.Random(1)
    for options in ((), ("-o", "cluster_size=512"), ("-o", "cluster_size=2M"), ("-o", "compat=0.10"),
                    ("-o", "extended_l2=on")):
        chain(dice, options=options)
        want = bytes_of("top")
        ours("commit", "-q", "top")
        expect_equal(bytes_of("top") == want, True, "top after commit", options)
        expect_equal(bytes_of("middle") == want, True, "middle after commit", options)
        expect(all(line["depth"] > 0 or not line["present"] for line in load_json(ours("map", "--json", "top"))),
               "top was not emptied", options)
        ours("commit", "-q", "-d", "middle")
        expect_equal(by_qemu("base") == want, True, "base after commit", options)
        sound("top", "middle", "base")


def test_commit_deep():
    dice = random.Random(2)
    chain(dice)
    want = bytes_of("top")
    ours("commit", "-q", "-b", "base", "top")
    expect_equal(by_qemu("base") == want, True, "base after a deep commit")
    expect_equal(bytes_of("top") == want, True, "top after a deep commit")
    sound("top", "base")


def test_commit_sizes():
    dice = random.Random(3)
    for fmt in ("qcow2", "raw"):
        chain(dice, fmt, (SIZE - 66048, SIZE - 512, SIZE))
        want = bytes_of("top")
        ours("commit", "-q", "-b", "base", "top")
        expect_equal(by_qemu("base", fmt) == want, True, "a base that was shorter", fmt)
        chain(dice, fmt, (SIZE + 66048, SIZE, SIZE - 512))
        want, rest = bytes_of("top"), by_qemu("base", fmt)[SIZE - 512:]
        ours("commit", "-q", "-b", "base", "top")
        expect_equal(by_qemu("base", fmt) == want + rest, True, "a base that is longer", fmt)


def test_commit_formats():
    dice = random.Random(4)
    for fmt in ("vhd", "vdi", "qcow", "raw"):
        ours("create", "-q", "-f", fmt, "base", SIZE)
        size = load_json(ours("info", "--json", "base"))["virtual-size"]
        ours("create", "-q", "-f", "qcow2", "-b", "base", "-F", "vpc" if fmt == "vhd" else fmt, "top", size)
        fill("top", dice)
        want = bytes_of("top")
        ours("commit", "-q", "top")
        expect_equal(bytes_of("base") == want, True, fmt, "as a base")


def all_states(command, images, model, step=97, least=4):
    """Runs the command with a limit of written bytes that grows until it is enough: after each cut, `model` holds, and
    the same command without a limit goes on to the end. Scaled, a third of the cuts."""
    if int(os.environ.get("COWNBD_TEST_SCALE") or 100) < 100:
        step, least = step * 3, max(1, least // 3)
    for image in images:
        shutil.copy(image, image + ".kept")
    cuts = 0
    for blocks in range(0, 100000, step):
        for image in images:
            shutil.copy(image + ".kept", image)
        cut = run("bash", "-c", f"ulimit -f {blocks}; trap '' XFSZ; exec \"$@\"", "bash", COWNBD, *command)
        if cut.returncode == 0:
            break
        cuts += 1
        model("after a cut", blocks)
        result = cownbd(*command)
        expect_equal(result.returncode, 0, "cannot go on", blocks, result.stderr)
        model("gone on", blocks)
    expect(cuts >= least, "the command was hardly ever cut off", cuts)


def test_cut_off():
    dice = random.Random(5)
    chain(dice)
    want = bytes_of("top")

    def reads_the_same(*what):
        expect(by_qemu("top") == want, "top reads differently", *what)

    all_states(("commit", "-q", "top"), ("top", "middle"), reads_the_same)
    chain(dice)
    want = bytes_of("top")
    all_states(("rebase", "-q", "-b", "", "top"), ("top",), reads_the_same)


def test_rebase():
    dice = random.Random(6)
    for turn, options in enumerate(((), ("-o", "cluster_size=512"), ("-o", "cluster_size=2M"), ("-o", "compat=0.10"),
                                    ("-o", "extended_l2=on"), ("-o", "extended_l2=on,cluster_size=16k"))):
        chain(dice, options=options, sizes=(SIZE, SIZE - 1024 * turn, SIZE))
        must("qemu-img", "create", "-q", "-f", "qcow2", "other", SIZE + 70000 // 512 * 512 * (turn - 1))
        fill("other", dice, size=SIZE - 70000 // 512 * 512)
        want = bytes_of("top")
        for name, fmt in (("other", "qcow2"), ("base", "qcow2"), ("", None)):
            ours("rebase", "-q", "-b", name, *(("-F", fmt) if fmt else ()), "top")
            info = load_json(must("qemu-img", "info", "--output=json", "top"))
            expect_equal((info.get("backing-filename"), info.get("backing-filename-format")), (name or None, fmt),
                         "the name in the header", options)
            expect_equal(by_qemu("top") == want, True, "top after a rebase to", name, options)
            sound("top")


def noise(seed):
    """A disk of holes, of whole blocks and of single sectors."""
    dice, disk = random.Random(seed), bytearray(SMALL)
    for at in range(0, SMALL, 32768):
        length = dice.choice((0, 512, 32768))
        disk[at:at + length] = bytes([dice.randrange(1, 256)]) * length
    return bytes(disk)


def make(name, fmt, disk, backing=None):
    with open("disk", "wb") as file:
        file.write(disk)
    ours("convert", "-q", "-O", fmt, *(("-b", backing, "-F", fmt) if backing else ()), "disk", name)


def test_vmdk_commit():
    """The base keeps the CID by which its children know it."""
    want = bytearray(noise(1))
    want[SMALL // 2:] = noise(2)[SMALL // 2:]
    make("base.vmdk", "vmdk", noise(1))
    make("top.vmdk", "vmdk", want, "base.vmdk")
    for what in "commit", "commit again":
        ours("commit", "-q", "top.vmdk")
        expect(bytes_of("top.vmdk") == want, "top after", what)
        expect(bytes_of("base.vmdk") == want, "base after", what)
    ours("check", "base.vmdk")
    ours("check", "top.vmdk")


def test_rebase_over_data():
    """What is zero stays so over a parent that has data there."""
    for fmt in FAMILIES:
        base, top = f"base.{fmt}", f"top.{fmt}"
        make(base, fmt, b"b" * SMALL)
        for disk in bytes(SMALL), noise(4)[:SMALL // 2] + bytes(SMALL // 2):
            make(top, fmt, disk)
            ours("rebase", "-q", "-b", base, "-F", fmt, top)
            expect(bytes_of(top) == disk, fmt, "zeroes over data, after a rebase")
            ours("check", top)


def test_rebase_parts():
    """Units that the image has in part: clusters of an extended qcow2, blocks of a vhd with single sectors."""
    extended = ("-o", "extended_l2=on")
    dice = random.Random(9)
    chain(dice, options=extended)
    must("qemu-img", "create", "-q", "-f", "qcow2", "other", SIZE)
    fill("other", dice)
    want = bytes_of("top")
    for name in "base", "other", "":
        ours("rebase", "-q", "-b", name, *(("-F", "qcow2") if name else ()), "top")
        expect(by_qemu("top") == want, "top after a rebase to", name or "nothing")
        sound("top")
    for name in "differencing", "parent-of-windows":
        shutil.copytree(f"{GOLDEN}/vhd/{name}", name)
        top = f"{name}/top.vhd"
        want = bytes_of(top)
        ours("rebase", "-q", "-b", "", top)
        expect(bytes_of(top) == want, name, "after a rebase")
        ours("check", top)


def test_families():
    """Formats that know a parent in ways of their own. Children of what was changed still open."""
    for fmt in FAMILIES:
        base, other, top, child = (f"{name}.{fmt}" for name in ("base", "other", "top", "child"))
        want = bytearray(noise(1))
        want[SMALL // 2:] = noise(2)[SMALL // 2:]
        last = bytearray(want)
        last[:4096] = b"x" * 4096
        make(base, fmt, noise(1))
        make(other, fmt, noise(3))
        make(top, fmt, want, base)
        make(child, fmt, last, top)
        for name in (other, base, "", base):
            ours("rebase", "-q", "-b", name, *(("-F", fmt) if name else ()), top)
            expect(bytes_of(top) == want, fmt, "top after a rebase to", name or "nothing")
            expect(bytes_of(child) == last, fmt, "a child after a rebase to", name or "nothing")
            info = load_json(ours("info", "--json", top))
            expect_equal(info.get("backing-filename"), name or None, fmt, "the name")
            ours("check", top)
        shutil.copy(base, f"moved.{fmt}")
        ours("rebase", "-u", "-b", f"moved.{fmt}", "-F", fmt, top)
        expect(bytes_of(top) == want, fmt, "top over a copy of its parent")
        ours("rebase", "-u", "-b", base, "-F", fmt, top)

        def reads_the_same(*what):
            expect(bytes_of(top) == want, fmt, "top reads differently", *what)

        all_states(("commit", "-q", top), (top, base), reads_the_same, 397, 1)
        expect(bytes_of(base) == want, fmt, "the base after commit")
        expect(bytes_of(child) == last, fmt, "a child after commit")
        ours("check", base)


def test_vmdk_rebase():
    """Descriptors of more than a sector, in the image and beside it; names that have no room; flat ones."""
    make("base.vmdk", "vmdk", noise(1))
    want = noise(2)
    for form in "monolithicSparse", "twoGbMaxExtentSparse,extent_size=64k", "vmfsSparse":
        with open("disk", "wb") as file:
            file.write(want)
        ours("convert", "-q", "-O", "vmdk", "-o", "subformat=" + form, "-b", "base.vmdk", "-F", "vmdk", "disk", "top.vmdk")
        for name in ("./" * 300 + "base.vmdk", "./" * 1000 + "base.vmdk", "base.vmdk", ""):
            ours("rebase", "-q", "-b", name, *(("-F", "vmdk") if name else ()), "top.vmdk")
            expect(bytes_of("top.vmdk") == want, form, "after a rebase to", len(name))
            expect_equal(load_json(ours("info", "--json", "top.vmdk")).get("backing-filename"), name or None)
            ours("check", "top.vmdk")
            if form[0] != "v":  # qemu takes COWD for flat
                must("qemu-img", "check", "-q", "-f", "vmdk", "top.vmdk")
        result = cownbd("rebase", "-u", "-b", "./" * 1800 + "base.vmdk", "-F", "vmdk", "top.vmdk")
        expect_equal(result.returncode, 0, form, result.stderr)
    make("own.vmdk", "vmdk", want)
    ours("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "flat.vmdk", SMALL)
    with open("raw", "wb") as file:
        file.truncate(SMALL)
    expect_refused(cownbd("rebase", "-b", "base.vmdk", "-F", "vmdk", "flat.vmdk"), "flat.vmdk", "flat extents")
    expect_refused(cownbd("rebase", "-b", "raw", "-F", "raw", "own.vmdk"), "must be vmdk")
    expect(bytes_of("own.vmdk") == want, "what was refused changed something")


def test_rebase_shared():
    """Onto the image below the backing: only what lies in between is copied."""
    must("qemu-img", "create", "-q", "-f", "qcow2", "base", SIZE)
    must("qemu-io", "-f", "qcow2", "-c", f"write -P 1 0 {SIZE}", "base")
    for name, below in (("middle", "base"), ("top", "middle")):
        must("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", name)
    must("qemu-io", "-f", "qcow2", "-c", "write -P 2 1M 64k", "middle")
    ours("rebase", "-q", "-b", "base", "-F", "qcow2", "top")
    mine = [(line["start"], line["length"]) for line in load_json(ours("map", "--json", "top")) if line["depth"] == 0]
    expect_equal(mine, [(1 << 20, 65536)], "what the rebase copied")


def test_rebase_unsafe():
    chain(random.Random(8))
    for name in ("gone/away", "x" * 1023, "base", "y" * 700):
        ours("rebase", "-u", "-b", name, "-F", "raw", "top")
        info = load_json(must("qemu-img", "info", "--output=json", "top"))
        expect_equal((info["backing-filename"], info["backing-filename-format"]), (name, "raw"), "the name")
        ours("check", "top")
    ours("rebase", "-u", "-b", "", "top")
    expect("backing-filename" not in load_json(must("qemu-img", "info", "--output=json", "top")), "a name is left")


def test_refusals():
    chain(random.Random(9))
    ours("create", "-q", "-f", "parallels", "image.hds", SIZE)
    ours("create", "-q", "-f", "vhd", "-o", "subformat=fixed", "fixed.vhd", SIZE)
    for arguments, words in (
            (("commit", "base"), ("no backing file",)),
            (("commit", "-b", "contents", "top"), ("no image below",)),
            (("commit", "nothing"), ("No such file",)),
            (("commit",), ("must be one",)),
            (("rebase", "top"), ("-b",)),
            (("rebase", "-b", "base", "top"), ("-F",)),
            (("rebase", "-b", "base", "-F", "cat", "top"), ("cat",)),
            (("rebase", "-b", "none", "-F", "raw", "top"), ("none",)),
            (("rebase", "-b", "top", "-F", "qcow2", "top"), ("its own backing",)),
            (("rebase", "-b", "top", "-F", "qcow2", "base"), ("the same file",)),
            (("rebase", "-u", "-b", "z" * 1024, "-F", "raw", "top"), ("1023",)),
            (("rebase", "-b", "", "image.hds"), ("format parallels",)),
            (("rebase", "-b", "base", "-F", "qcow2", "fixed.vhd"), ("fixed vhd",))):
        expect_refused(cownbd(*arguments), *words)
    must("qemu-img", "create", "-q", "-f", "raw", "plain", SIZE)
    must("qemu-img", "create", "-q", "-f", "qcow2", "guess", SIZE)
    with Qcow2("guess") as image:  # a name, and no format: what qemu no longer writes
        image.write(600, b"plain")
        image.set_u64(8, 600)
        image.write(16, (5).to_bytes(4, "big"))
    expect_refused(cownbd("commit", "guess"), "only a guess")
    ours("snapshot", "create", "top", "old")
    before = bytes_of("top"), bytes_of("middle")
    for arguments in ("commit", "top"), ("rebase", "-b", "base", "-F", "qcow2", "top"), ("rebase", "-b", "", "top"):
        expect_refused(cownbd(*arguments), "top", "1 internal snapshots", "delete them")
    expect((bytes_of("top"), bytes_of("middle")) == before, "a refusal changed something")
    ours("rebase", "-u", "-b", "middle", "-F", "qcow2", "top")


with Workdir():
    for test in (test_commit, test_commit_deep, test_commit_sizes, test_commit_formats, test_cut_off, test_rebase,
                 test_vmdk_commit, test_vmdk_rebase, test_rebase_over_data, test_rebase_parts, test_families,
                 test_rebase_shared, test_rebase_unsafe, test_refusals):
        test()
