#!/usr/bin/python3
"""Looks at every golden image: tests/golden/FORMAT/NAME/ is one, dropping a folder in is a new test.

    run.py READ-IMAGE [FORMAT/NAME...]      READ-IMAGE: the program made of read-image.c; COWNBD: the program

In a folder:
    top.*            the image that is opened; what else lies there is below it or part of it; *.gz are unpacked
    secret           the passphrase of an encrypted image
    snapshot         the internal snapshot of it that is looked at, by its name
    expect.sha256    of the contents as a guest sees them
    expect.map       what `cownbd map --json` answers, one entry a line (make/golden.py, map_lines)
    expect.error     instead: words in the one line with which the image is refused
    how.md           how it was made
"""
import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(TOP / "make"))
from golden import map_lines  # noqa: E402  (the folder above must be known first)

COWNBD = os.environ["COWNBD"]


class Wrong(Exception):
    pass


def run(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=120)


def must_run(*words):
    done = run(*words)
    if done.returncode != 0 or done.stderr:
        raise Wrong("%s: exit %d: %s" % (words[0], done.returncode, done.stderr.strip()))
    return done.stdout


def expect(what, got, wanted):
    if got != wanted:
        raise Wrong("%s is\n%s\nbut should be\n%s" % (what, got, wanted))


def expect_map(entries, wanted):
    """A line of expect.map that does not name the file fits any."""
    got = map_lines(entries)
    short = [line if line in wanted else line.split(" in ")[0] for line in got]
    if short != wanted:
        raise Wrong("map is\n%s\nbut should be\n%s" % ("\n".join(got), "\n".join(wanted)))


def check_refused(read_image, top, words):
    for command in ([read_image, top], [COWNBD, "map", "--json", top]):
        done = run(*command)
        expect("exit status of " + " ".join(map(str, command)), done.returncode, 1)
        lines = done.stderr.splitlines()
        if len(lines) != 1 or words not in lines[0]:
            raise Wrong("'%s' is not the one line of: %s" % (words, done.stderr))


def check_opens(read_image, top, folder):
    digest = (folder / "expect.sha256").read_text()
    secret, snapshot = top.with_name("secret"), top.with_name("snapshot")
    which = ["--snapshot", snapshot.read_text().strip()] if snapshot.exists() else []
    expect("sha256", must_run(read_image, *(["--secret", secret] if secret.exists() else []), *which, top), digest)
    entries = json.loads(must_run(COWNBD, "map", "--json", *which, top))
    expect_map(entries, (folder / "expect.map").read_text().splitlines())
    info = json.loads(must_run(COWNBD, "info", "--json", *which, top))
    expect("format", info["format"], folder.parent.name)
    last = entries[-1]
    expect("virtual-size", info["virtual-size"], last["start"] + last["length"])


def copy_images(folder, to):
    """Byte by byte: git makes holes of zeroes when it checks large files out, and a map shows holes."""
    for file in folder.iterdir():
        if file.is_file():
            if file.suffix == ".gz":
                (to / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
            else:
                (to / file.name).write_bytes(file.read_bytes())


def check(read_image, folder):
    with tempfile.TemporaryDirectory(prefix="cownbd-golden-") as name:
        copies = pathlib.Path(name)
        copy_images(folder, copies)
        tops = sorted(copies.glob("top.*"))
        expect("number of files called top.*", len(tops), 1)
        error = folder / "expect.error"
        if error.exists():
            check_refused(read_image, tops[0], error.read_text().strip())
        else:
            check_opens(read_image, tops[0], folder)


def main():
    read_image, wanted = sys.argv[1], sys.argv[2:]
    failed, count = 0, 0
    for how in sorted(TOP.glob("*/*/how.md")):
        name = str(how.parent.relative_to(TOP))
        if wanted and name not in wanted:
            continue
        count += 1
        try:
            check(read_image, how.parent)
            print("ok   " + name)
        except Wrong as wrong:
            failed += 1
            print("FAIL %s: %s" % (name, wrong))
    print("%d images, %d failed" % (count, failed))
    return 1 if failed or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
