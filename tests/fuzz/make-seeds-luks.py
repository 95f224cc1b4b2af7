#!/usr/bin/python3
"""Makes seeds/luks: headers of both versions as the hostile cases begin with, and some of those. Run it by hand; the
results are in the tree. What is zero at the end is left out: fuzz_luks.c puts it there."""
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent / "hostile"))
from cases_luks import cases  # noqa: E402  (the folder above must be known first)

WANTED = ("1-good", "1-all-slots-all-rounds", "2-good", "2-json-deep", "2-argon2-1")


def main():
    out = HERE / "seeds" / "luks"
    out.mkdir(parents=True, exist_ok=True)
    for case in cases():
        name = case.name.removeprefix("luks-")
        if name in WANTED:
            content = case.files["top.luks"].rstrip(b"\0")
            (out / name).write_bytes(content)
            print(name, len(content))


if __name__ == "__main__":
    main()
