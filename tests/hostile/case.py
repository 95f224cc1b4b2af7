"""What the makers of hostile images share: a case, and bytes that are changed in place."""
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "golden" / "make"))

MIB = 1 << 20


class Case:
    """One malformed image.

    name    of the folder that gets it
    files   file name -> bytes, or (size, {offset: bytes}) for a file that is mostly a hole; the first is opened
    words   that the one line of the refusal must have in it; none: the image may be opened
    at      "open": it is refused by whoever opens it; "chain": by whoever opens what lies below it, too, which some
            commands do not; "read": by whoever reads all of it; "any": it may be refused or read
    """

    def __init__(self, name, files, *words, at=None):
        self.name, self.files, self.words = name, files, words
        self.at = at or ("open" if words else "any")

    @property
    def top(self):
        return next(iter(self.files))


def patched(image, *changes):
    """A copy. A change is (offset, format, values...), or (offset, bytes); offsets below 0 count from the end."""
    copy = bytearray(image)
    for offset, what, *values in changes:
        data = struct.pack(what, *values) if isinstance(what, str) else what
        start = offset if offset >= 0 else len(copy) + offset
        copy[start:start + len(data)] = data
    return bytes(copy)


def with_holes(image, size):
    """The same bytes in a file of that size."""
    return size, {0: image}
