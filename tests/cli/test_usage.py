#!/usr/bin/python3
"""Help, version, and every refusal of the command line that is not about one command's work."""

import os
import subprocess

from cli import COWNBD, Workdir, cownbd, expect, expect_refused, ours

COMMANDS = ("serve", "info", "map", "check", "create", "list", "stats", "ctl")


def helps():
    top = ours("--help")
    for command in COMMANDS:
        expect(command in top, command, "is not in --help")
        for text in (ours(command, "--help"), ours("help", command)):
            expect("Example:" in text and f"cownbd {command}" in text, command, text)
    expect(ours("--version").startswith("cownbd "), "version")


def unknown():
    expect_refused(cownbd(), "no command", "--help")
    expect_refused(cownbd("serv"), "'serv'", "did you mean 'serve'")
    expect_refused(cownbd("ifno"), "did you mean 'info'")
    expect_refused(cownbd("chekc"), "did you mean 'check'")
    expect_refused(cownbd("defragment"), "'defragment'", "--help")
    expect_refused(cownbd("dd"), "'dd' is not a command", "--range")
    expect_refused(cownbd("x" * 5000), "not a command")
    expect_refused(cownbd("help", "mapp"), "did you mean 'map'")
    expect_refused(cownbd(""), "not a command")


def arguments():
    for command in ("info", "map", "check"):
        expect_refused(cownbd(command), command, "must be one", "--help")
        expect_refused(cownbd(command, "a", "b"), command, "must be one")
        expect_refused(cownbd(command, "--frobnicate", "a"), "frobnicate", "--help")
        expect_refused(cownbd(command, "-f", "qcow3", "a"), "'qcow3' is not known", "raw")
        expect_refused(cownbd(command, "--output=xml", "a"), "'xml'", "human or json")
        expect_refused(cownbd(command, "none.img"), "none.img", "No such file")
        expect_refused(cownbd(command, "."), "directory")
    expect_refused(cownbd("check", "--repair=some", "a"), "'some'", "leaks or all")
    expect_refused(cownbd("check", "--repair=all", "-U", "a"), "force-share")


def bad_images():
    with open("short.qcow2", "wb") as f:
        f.write(b"QFI\xfb\0\0\0\3")
    with open("noise.qcow2", "wb") as f:
        f.write(b"QFI\xfb" + os.urandom(4096))
    ours("create", "-q", "-f", "raw", "plain.raw", "1M")
    ours("create", "-q", "-f", "qcow2", "lost.qcow2", "-u", "-b", "gone.raw", "-F", "raw", "1M")
    ours("create", "-q", "-f", "qcow2", "outside.qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", "1M")
    for command in ("info", "map", "check"):
        expect_refused(cownbd(command, "short.qcow2"), "short.qcow2")
        expect_refused(cownbd(command, "noise.qcow2"), "noise.qcow2")
        expect_refused(cownbd(command, "-f", "qcow2", "plain.raw"), "plain.raw", "magic")
    expect_refused(cownbd("check", "plain.raw"), "plain.raw", "cannot be checked", "qcow2")
    expect_refused(cownbd("map", "lost.qcow2"), "gone.raw")
    expect_refused(cownbd("info", "--chain", "lost.qcow2"), "gone.raw")
    expect_refused(cownbd("map", "outside.qcow2"), "/etc/passwd", "--allow-path")
    expect(cownbd("info", "lost.qcow2").returncode == 0, "info needs no backing file")
    expect(cownbd("check", "lost.qcow2").returncode == 0, "check needs no backing file")


def allowed():
    os.makedirs("elsewhere")
    os.makedirs("images")
    ours("create", "-q", "-f", "raw", "elsewhere/base.raw", "1M")
    here = os.getcwd()
    ours("create", "-q", "-f", "qcow2", "images/top.qcow2", "-u", "-b", f"{here}/elsewhere/base.raw", "-F", "raw",
         "1M")
    expect_refused(cownbd("map", "images/top.qcow2"), "base.raw", "--allow-path")
    ours("map", "--allow-path", "elsewhere", "images/top.qcow2")
    ours("info", "--chain", "--allow-path", "/nonexistent", "--allow-path", f"{here}/elsewhere", "images/top.qcow2")


def read_only():
    """A repair of a file that must not be written is refused; a check is not."""
    ours("create", "-q", "-f", "qcow2", "fixed.qcow2", "1M")
    os.chmod("fixed.qcow2", 0o444)
    expect(cownbd("check", "fixed.qcow2").returncode == 0, "check of a read-only file")
    if os.geteuid() != 0:
        expect_refused(cownbd("check", "--repair=all", "fixed.qcow2"), "fixed.qcow2")


def full_stdout():
    """Output that cannot be written is a failure."""
    with open("/dev/full", "w") as full:
        result = subprocess.run([COWNBD, "info", "plain.raw"], stdout=full, stderr=subprocess.PIPE, text=True)
    expect(result.returncode == 1 and "No space" in result.stderr, result)


with Workdir():
    helps()
    unknown()
    arguments()
    bad_images()
    allowed()
    read_only()
    full_stdout()
