"""What the makers of golden images share: a folder for each image, and what is expected of it."""
import gzip
import hashlib
import inspect
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent


def qemu(*words):
    """Runs a qemu tool, quietly."""
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def map_lines(entries):
    """One line for each entry of `map --output=json`: what run.py compares. qemu 7.2 does not say the file."""
    lines = []
    for entry in entries:
        line = "%d %d depth=%d %s %s%s at %s" % (
            entry["start"], entry["length"], entry["depth"],
            "present" if entry["present"] else "absent",
            "data" if entry["data"] else "", "zero" if entry["zero"] else "",
            entry.get("offset", "-"))
        if "filename" in entry:
            line += " in " + os.path.basename(entry["filename"])
        lines.append(line)
    return lines


def without_places(entries):
    """qemu says where a subcluster that is absent would lie. That is no part of the map: neighbours become one."""
    joined = []
    for entry in entries:
        if not entry["present"]:
            entry = {key: value for key, value in entry.items() if key != "offset"}
            last = joined[-1] if joined else None
            if last and not last["present"] and last["depth"] == entry["depth"]:
                last["length"] += entry["length"]
                continue
        joined.append(entry)
    return joined


class Golden:
    """One folder, made in a scratch directory and put in place when all of it is there."""

    def __init__(self, name):
        self.name = name
        self.folder = TOP / name
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="golden-"))

    def path(self, name):
        return self.scratch / name

    def write(self, name, content):
        self.path(name).write_bytes(content.encode() if isinstance(content, str) else content)

    def pack(self):
        """Of formats whose smallest images are large and empty: vhdx, and headers of LUKS."""
        encrypted = self.path("secret").exists()
        for path in self.scratch.glob("top.*" if encrypted else "*.vhdx"):
            content = path.read_bytes()
            path.unlink()
            self.write(path.name + ".gz", gzip.compress(content, mtime=0))

    def fill_holes(self):
        """As git will put the files there: qemu's map shows the holes of flat and preallocated ones."""
        for path in self.scratch.iterdir():
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)

    def expect_as_qemu(self, top):
        """The map and the contents that qemu sees."""
        self.fill_holes()
        found = subprocess.run(["qemu-img", "map", "--output=json", top], cwd=self.scratch,
                               check=True, capture_output=True).stdout
        raw = self.path("contents")
        subprocess.run(["qemu-img", "convert", "-O", "raw", top, raw], cwd=self.scratch, check=True)
        self.expect(raw.read_bytes(), without_places(json.loads(found)))
        raw.unlink()

    def expect(self, contents, entries):
        self.write("expect.map", "".join(line + "\n" for line in map_lines(entries)))
        self.write("expect.sha256", hashlib.sha256(contents).hexdigest() + "\n")

    def expect_error(self, words):
        """The image is refused with a line that has these words in it."""
        self.write("expect.error", words + "\n")

    def finish(self, how):
        self.write("how.md", "# %s\n\n%s\n" % (self.name, inspect.cleandoc(how)))
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.pack()
        for path in sorted(self.scratch.iterdir()):
            (self.folder / path.name).write_bytes(path.read_bytes())
        shutil.rmtree(self.scratch)


def make_all(namespace, wanted):
    """Calls each function called make_FORMAT__NAME_OF_IMAGE; its docstring becomes how.md."""
    for key, function in sorted(namespace.items()):
        if not key.startswith("make_") or not inspect.isfunction(function) or "__" not in key:
            continue
        name = key[len("make_"):].replace("__", "/").replace("_", "-")
        if wanted and name not in wanted:
            continue
        golden = Golden(name)
        function(golden)
        golden.finish(function.__doc__)
        print(name)
