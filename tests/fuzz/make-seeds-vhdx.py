#!/usr/bin/python3
"""Makes seeds/vhdx of golden images, as fuzz_vhdx.c takes them: what is not zero. Run it by hand; the results are in
the tree. What lies in blocks does not matter: the first bytes of each page will do."""
import gzip
import pathlib
import struct

PAGE, MIB, BLOCKS = 4096, 1 << 20, 4 << 20
HERE = pathlib.Path(__file__).resolve().parent


def pieces(image):
    for page in range(len(image) // PAGE):
        content = image[page * PAGE:(page + 1) * PAGE].rstrip(b"\0")
        if page * PAGE >= BLOCKS:
            content = content[:16] if page % 64 == 0 else b""
        if content:
            yield struct.pack("<HH", page, len(content)) + content


def main():
    out = HERE / "seeds" / "vhdx"
    out.mkdir(parents=True, exist_ok=True)
    for name in ("differencing", "log", "sectors-of-4096"):
        image = gzip.decompress((HERE.parent / "golden" / "vhdx" / name / "top.vhdx.gz").read_bytes())
        seed = bytes([0, len(image) // MIB]) + b"".join(pieces(image))
        (out / name).write_bytes(seed)
        print(name, len(seed))


if __name__ == "__main__":
    main()
