#!/usr/bin/python3
"""Makes the hostile images: bytes after the specifications, with one thing wrong in each.

    make.py DIRECTORY [CASE-GLOB...]

Each gets a folder; what must become of it is in cases.json (case.py). To try one by hand:

    tests/hostile/make.py /tmp/hostile 'vhdx-log-*' && cownbd check /tmp/hostile/vhdx-log-loop/top.vhdx
"""
import fnmatch
import importlib
import json
import os
import sys

sys.dont_write_bytecode = True

FORMATS = ["qcow2", "qcow2_data", "qcow", "vmdk", "vhd", "vhdx", "vdi", "qed", "parallels", "dmg", "esx", "luks", "others"]
PAGE = 4096


def write_file(path, content):
    """Zeroes stay a hole."""
    size, pieces = content if isinstance(content, tuple) else (len(content), {0: content})
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            for start in range(0, len(data), PAGE):
                page = data[start:start + PAGE]
                if page.strip(b"\0"):
                    os.pwrite(file.fileno(), page, offset + start)


def cases(wanted):
    for name in FORMATS:
        for case in importlib.import_module("cases_" + name).cases():
            if not wanted or any(fnmatch.fnmatch(case.name, glob) for glob in wanted):
                yield case


def main():
    directory, wanted = sys.argv[1], sys.argv[2:]
    made = []
    for case in cases(wanted):
        folder = os.path.join(directory, case.name)
        os.makedirs(folder)
        for name, content in case.files.items():
            write_file(os.path.join(folder, name), content)
        made.append({"name": case.name, "top": case.top, "words": case.words, "at": case.at})
    with open(os.path.join(directory, "cases.json"), "w") as file:
        json.dump(made, file, indent=1)


if __name__ == "__main__":
    main()
