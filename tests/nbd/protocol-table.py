"""Holds docs/protocol.md to the truth: the tests that it names are there, and each number of the wire has its row."""
import os
import pathlib
import re
import sys

TOP = pathlib.Path(os.environ["COWNBD_SOURCE"])
TESTS = TOP / "tests" / "nbd"
NUMBER = re.compile(r"\b(NBD_(?:OPT|REP|INFO|FLAG|CMD|REPLY_TYPE|REPLY_FLAG|STATE)_[A-Z_]*[A-Z]|NBD_E[A-Z]+)\b")
# Not items of the document: the kinds of sizes and magics that begin like one.
OTHER = re.compile(r"_(SIZE|MAGIC|ZEROES_SIZE)$|^NBD_(EXPORT|EXTENDED|ERROR)|_REPLY_ZEROES$")


def tests():
    """Every name that a row may say."""
    found = set()
    for path in TESTS.glob("*.py"):
        found |= {f"{path.stem}:{name}" for name in re.findall(r"^def test_(\w+)", path.read_text(), re.M)}
    for path in TESTS.glob("*.sh"):
        found |= {f"{path.stem}:{name}" for name in re.findall(r"^test_(\w+)", path.read_text(), re.M)}
    for path in (TESTS / "conformance").glob("*.py"):
        names = re.findall(r"^@rule.*\ndef (\w+)", path.read_text(), re.M)
        found |= {"rule:" + name.replace("_", "-") for name in names}
    return found


def main():
    text = (TOP / "docs" / "protocol.md").read_text()
    rows = [line.split("|") for line in text.split("\n") if line.startswith("| ") and line.count("|") == 5]
    named = {name for row in rows for name in row[4].split() if ":" in name}
    known = tests()
    findings = [f"{name}: there is no such test" for name in sorted(named - known)]
    wire = (TOP / "nbd" / "nbd-wire.h").read_text()
    numbers = {n for n in re.findall(r"(?:#define|^   ) (NBD_\w+)", wire, re.M) if NUMBER.fullmatch(n)}
    items = set(NUMBER.findall("\n".join(row[1] for row in rows)))
    findings += [f"{n}: has no row" for n in sorted(numbers - items) if not OTHER.search(n)]
    print("\n".join(findings) if findings else f"{len(rows)} rows name {len(named)} tests, all of them there")
    return bool(findings or not named)


sys.exit(main())
