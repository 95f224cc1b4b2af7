#!/usr/bin/python3
"""compare and diff: the verdicts of qemu-img compare, and the ranges that a plain comparison of bytes finds."""
import random
import re

from cli import Workdir, cownbd, expect_equal, expect_refused, load_json, must, ours, run

SIZE = 5 << 20


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def differences(a, b, grain):
    """The model: (start, length, zero in b) of the blocks that differ, neighbours joined."""
    size = max(len(a), len(b))
    a, b = a.ljust(size, b"\0"), b.ljust(size, b"\0")
    found = []
    for start in range(0, size, grain):
        block = b[start:start + grain]
        if a[start:start + grain] == block:
            continue
        zero = not block.strip(b"\0")
        if found and found[-1][0] + found[-1][1] == start and found[-1][2] == zero:
            found[-1][1] += len(block)
        else:
            found.append([start, len(block), zero])
    return found


def mutate(data, dice):
    """A few small changes, zeroes among them."""
    data = bytearray(data)
    for _ in range(dice.randrange(1, 6)):
        start = dice.randrange(len(data))
        length = min(dice.choice((1, 511, 4096, 100000)), len(data) - start)
        data[start:start + length] = dice.randbytes(length) if dice.random() < 0.6 else bytes(length)
    return bytes(data)


def by_sector(text):
    """qemu tells the sector of the first byte that differs."""
    return re.sub(r"offset (\d+)", lambda found: f"offset {int(found[1]) // 512 * 512}", text)


def both_verdicts(*arguments):
    """Ours must be qemu's, in words and in exit status."""
    got, want = cownbd("compare", *arguments), run("qemu-img", "compare", *arguments)
    expect_equal((got.returncode, by_sector(got.stdout)), (want.returncode, want.stdout), "compare", arguments,
                 got.stderr)


def test_pairs():
    dice = random.Random(5)
    base = dice.randbytes(1 << 20) + bytes(2 << 20) + dice.randbytes(SIZE - (3 << 20))
    for turn in range(8):
        a = mutate(base, dice)
        b = mutate(a, dice) if turn % 3 else a
        b = b[:dice.randrange(SIZE // 512) * 512] if turn % 4 == 3 else b
        write("a", a)
        write("b", b)
        ours("convert", "-q", "-O", "qcow2", "-o", f"cluster_size={dice.choice(('512', '64k', '2M'))}", "b", "b.qcow2")
        both_verdicts("-f", "raw", "-F", "raw", "a", "b")
        both_verdicts("-f", "raw", "-F", "qcow2", "a", "b.qcow2")
        first = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
        if first is not None:
            report = load_json(cownbd("compare", "--json", "a", "b.qcow2").stdout)
            expect_equal(report["offset"], first, "the first offset")
        for grain in (512, 4096, 65536, 4 << 20):
            ranges = load_json(ours("diff", "--json", "-g", grain, "a", "b.qcow2"))
            expect_equal([[r["start"], r["length"], r["zero"]] for r in ranges], differences(a, b, grain), "diff", turn,
                         grain)


def test_backing():
    """Two overlays of one base: what both have from it need not be read, and is equal."""
    write("base", random.Random(6).randbytes(SIZE))
    for name in ("one", "two"):
        ours("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", name)
    must("qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 64k", "two")
    must("qemu-io", "-f", "qcow2", "-c", "write -z 3M 128k", "one")
    expect_equal(ours("diff", "one", "two").splitlines()[1:],
                 ["0x100000        0x10000         data", "0x300000        0x20000         data"], "diff")
    both_verdicts("-f", "qcow2", "-F", "qcow2", "one", "two")


def test_sizes():
    write("short", b"x" * 4096)
    write("long", b"x" * 4096 + bytes(4096))
    both_verdicts("short", "long")
    both_verdicts("-s", "short", "long")
    expect_equal(cownbd("compare", "-q", "short", "long").stdout, "", "-q prints")
    report = load_json(cownbd("compare", "-s", "--json", "short", "long").stdout)
    expect_equal(report, {"equal": False, "sizes-equal": False}, "strict")


def test_refusals():
    expect_refused(cownbd("compare", "short"), "two images", status=2)
    expect_refused(cownbd("compare", "short", "none"), "none", "No such file", status=2)
    expect_refused(cownbd("compare", "-F", "dog", "short", "long"), "dog", status=2)
    expect_refused(cownbd("diff", "short", "none"), "none", "No such file")
    for grain in ("0", "1", "1000", "1G", "x"):
        expect_refused(cownbd("diff", "-g", grain, "short", "long"), "--granularity", "512 to 64M")
    must("qemu-img", "create", "-q", "-f", "qcow2", "cut", SIZE)
    must("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 5M", "cut")
    with open("cut", "r+b") as file:
        file.truncate(3 << 20)
    result = cownbd("compare", "cut", "base")
    expect_equal(result.returncode, 1, "a difference before the damage", result.stderr)
    must("qemu-io", "-f", "raw", "-c", f"write -P 1 0 {SIZE}", "base")
    result = cownbd("compare", "cut", "base")
    expect_equal((result.returncode, "cut: cannot read near offset" in result.stderr), (2, True), result.stderr)


with Workdir():
    test_pairs()
    test_backing()
    test_sizes()
    test_refusals()
