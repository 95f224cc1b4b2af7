"""Exports that come and go, by hand and by configuration, while others are served."""
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

import wire
from control import Control
from handover import is_running
from wire import ERR_UNKNOWN, FLUSH, OPT_INFO, OPT_LIST, REP_ACK, REP_SERVER, WRITE, info_data

SIZE = 8 << 20
ADDS = 10 * int(os.environ.get("COWNBD_TEST_SCALE", 100))  # what is left behind each time would add up


def wait_for(what, *args):
    end = time.monotonic() + wire.TIMEOUT
    while not (found := what(*args)):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


class Configured:
    """A server with a configuration of its own, in a directory of its own."""

    def __init__(self, *options, declared="", images="ab"):
        self.directory = os.path.realpath(tempfile.mkdtemp(prefix="cownbd-exports-"))
        self.socket = os.path.join(self.directory, "sock")
        self.control = os.path.join(self.directory, "control")
        self.file = os.path.join(self.directory, "x.conf")
        os.mkdir(self.path("images"))
        for name in images:
            self.image(name)
        self.declare(declared)
        self.log = open(os.path.join(self.directory, "log"), "w+b")
        self.successor = None
        self.process = subprocess.Popen([os.environ["COWNBD"], "serve", "--config", self.file, *options],
                                        stdout=subprocess.PIPE, stderr=self.log)
        line = self.process.stdout.readline().decode()
        assert line.startswith("listening on "), (line, self.errors())

    def image(self, name):
        with open(self.path(name), "wb") as out:
            out.truncate(SIZE)
        return self.path(name)

    def path(self, name):
        return os.path.join(self.directory, name)

    def declare(self, text, server=""):
        with open(self.file + "~", "w") as out:
            out.write(f"[server]\nlisten=unix:{self.socket}\ncontrol={self.control}\n{server}\n{text}")
        os.rename(self.file + "~", self.file)

    def errors(self):
        with open(self.log.name, "rb") as log:
            return log.read().decode()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if self.successor:
                os.kill(self.successor, signal.SIGTERM)
                wait_for(lambda: not is_running(self.successor))
            else:
                self.process.send_signal(signal.SIGTERM)
            status = self.process.wait(wire.TIMEOUT)
            assert kind or status == 0, f"the server ended with {status}: {self.errors()}"
        finally:
            self.process.stdout.close()
            self.log.close()
            shutil.rmtree(self.directory)

    def connect(self, **how):
        return wire.Client(self.socket, **how)

    def ctl(self, *arguments, ok=True):
        """The answer, or the error where ok is false."""
        command = [os.environ["COWNBD"], "ctl", "--json", "--control", self.control, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=wire.TIMEOUT)
        assert (result.returncode == 0) == ok, f"{result} {self.errors()}"
        return json.loads(result.stdout) if ok else result.stderr

    def hand_over(self):
        self.successor = self.ctl("handover")["pid"]
        assert self.process.wait(wire.TIMEOUT) == 0, self.errors()

    def refuses(self, text, *arguments):
        error = self.ctl(*arguments, ok=False)
        assert text in error, error

    def by_image(self):
        return {os.path.basename(export["image"]): export for export in self.ctl("list")["exports"]}

    def names(self):
        """As a client sees them."""
        with self.connect() as client:
            replies = client.option(OPT_LIST)
            return [data[4:4 + struct.unpack(">I", data[:4])[0]].decode() for kind, data in replies if kind == REP_SERVER]

    def listed(self):
        return {export["name"]: export for export in self.ctl("list")["exports"]}

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Load:
    """A client that writes, reads and flushes all the time; its requests must never fail."""

    def __init__(self, server, name):
        self.server, self.name = server, name
        self.rounds, self.failure, self.stopping = 0, None, False
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            with self.server.connect().go(self.name) as client:
                while not self.stopping:
                    data = struct.pack(">Q", self.rounds) * 512
                    assert client.write(self.rounds % 1000 * 4096, data) == 0
                    assert client.read(self.rounds % 1000 * 4096, 4096) == data
                    if self.rounds % 16 == 0:
                        assert client.request(FLUSH) == 0
                    self.rounds += 1
        except Exception as failure:  # told by the thread that waits
            self.failure = failure

    def __enter__(self):
        self.thread.start()
        wait_for(lambda: self.rounds or self.failure)
        return self

    def __exit__(self, *_):
        before = self.rounds
        wait_for(lambda: self.rounds > before or self.failure)  # it still runs
        self.stopping = True
        self.thread.join(wire.TIMEOUT)
        assert self.failure is None, self.failure


def declare(name, image, *more):
    return "\n".join([f"[export {name}]", f"image={image}", "format=raw", *more, ""])


def is_gone(client):
    """The server has closed the connection."""
    try:
        client.receive(1)
    except wire.Closed:
        return True
    return False


def test_add_and_remove_under_load():
    with Configured(declared=declare("a", "a")) as server, Load(server, b"a"):
        with Control(server.control) as control:
            before = server.descriptors()
            for n in range(ADDS):
                add_use_remove(server, control, f"b{n}", used=n % 50 == 0)
            assert server.descriptors() < before + ADDS // 4  # workers open some when first used
        assert server.names() == ["a"]


def add_use_remove(server, control, name, used):
    answer = control.ask({"verb": "add", "image": server.path("b"), "name": name, "format": "raw"})
    assert answer["ok"] and answer["name"] == name and answer["size"] == SIZE, answer
    remove = {"verb": "remove", "name": name}
    if used:
        with server.connect().go(name.encode()) as client:
            assert client.write(0, b"x" * 4096) == 0
            assert "has clients" in control.ask(remove)["error"]
        # the server may be a moment later than the client in seeing that it has gone
        wait_for(lambda: (last := control.ask(remove))["ok"] and last["closed"])
    else:
        answer = control.ask(remove)
        assert answer["ok"] and answer["closed"] and answer["clients"] == 0, answer


def test_what_add_refuses():
    with Configured(declared=declare("a", "a")) as server:
        b = server.path("b")
        server.refuses("is served as 'a' already", "add", server.path("a"), "-f", "raw")
        server.refuses("given twice", "add", b, "--name", "a", "-f", "raw")
        server.refuses("No such file", "add", server.path("none"))
        server.refuses("format 'x' is not known", "add", b, "-f", "x")
        server.refuses("must be true or false", "add", b, "read-only=1")
        server.refuses("absolute path", "add")
        server.refuses("'size' is no argument", "add", b, "size=1")
        assert server.names() == ["a"]
        for name in ("one", "two"):  # nobody writes it
            server.ctl("add", b, "--name", name, "-r", "-f", "raw")
        server.refuses("is served as 'one' already", "add", b, "--name", "three", "-f", "raw")
        assert server.names() == ["a", "one", "two"] and server.listed()["one"]["read-only"]


def test_remove_hide_lets_clients_finish():
    with Configured(declared=declare("a", "a") + declare("b", "b")) as server, Load(server, b"a"):
        with server.connect().go(b"b") as client:
            answer = server.ctl("remove", "b", "--mode=hide")
            assert answer["clients"] == 1 and answer["closed"] is False
            assert server.names() == ["a"] and server.listed()["b"]["leaving"]
            server.refuses("until its last client has gone", "add", server.path("b"), "-f", "raw")
            server.refuses("no export is called 'b'", "remove", "b")
            server.ctl("add", server.image("c"), "--name", "b", "-f", "raw")  # the name is free
            assert client.write(0, b"y" * 4096) == 0 and client.request(FLUSH) == 0
        wait_for(lambda: server.listed()["b"]["image"] == server.path("c") and
                 len(server.ctl("list")["exports"]) == 2)
        with open(server.path("b"), "rb") as image:
            assert image.read(4096) == b"y" * 4096
        server.ctl("add", server.path("b"), "--name", "again", "-f", "raw")


def test_remove_hard_sends_clients_away():
    with Configured(declared=declare("a", "a") + declare("b", "b")) as server, Load(server, b"a"):
        with server.connect().go(b"b") as idle, server.connect().go(b"b") as middle:
            middle.send(struct.pack(">IHHQQI", wire.REQUEST_MAGIC, 0, WRITE, 1, 0, 8192) + b"z" * 4096)
            answer = server.ctl("remove", "b", "--mode=hard")
            assert answer["clients"] == 2 and answer["closed"]
            assert is_gone(idle) and is_gone(middle)
        with open(server.path("b"), "rb") as image:  # half a payload is no write
            assert image.read(8192) == bytes(8192)
        assert server.names() == ["a"]
        server.refuses("mode is 'x'", "remove", "a", "--mode=x")
        server.refuses("name is missing", "remove")


def test_kick():
    with Configured(declared=declare("a", "a") + declare("b", "b")) as server, Load(server, b"a"):
        with server.connect().go(b"b") as one, server.connect().go(b"b") as two, server.connect() as waiting:
            assert waiting.option(OPT_LIST)[-1][0] == REP_ACK
            clients = server.ctl("list")["clients"]
            assert [client.get("export") for client in clients] == ["a", "b", "b", None], clients
            assert all(client["peer"] == f"unix:pid={os.getpid()},uid={os.getuid()}" for client in clients)
            assert server.ctl("kick", str(clients[1]["client"]))["clients"] == 1 and is_gone(one)
            assert two.read(0, 512) == bytes(512)
            server.refuses("no client has number", "kick", str(clients[1]["client"]))
            server.refuses("no client has number", "kick", str(clients[2]["client"]), "--export", "a")
            assert server.ctl("kick", "--export", "b")["clients"] == 1 and is_gone(two)
            assert server.ctl("kick", str(clients[3]["client"]))["clients"] == 1 and is_gone(waiting)
            assert server.ctl("kick", "--export", "b")["clients"] == 0
            server.refuses("no export is called", "kick", "--export", "c")
            server.refuses("name a client", "kick")
        assert server.names() == ["a", "b"]


def test_reload_applies_the_difference():
    with Configured(declared=declare("a", "a") + declare("b", "b")) as server, Load(server, b"a"):
        c = server.image("c")
        server.ctl("add", c, "--name", "by-hand", "-f", "raw")
        nothing = {"added": [], "changed": [], "removed": [], "need-restart": []}
        assert server.ctl("reload") == nothing
        server.declare(declare("a", "a") + declare("b", "b", "read-only=true") + declare("d", server.image("d")),
                       server="threads=1")
        assert server.ctl("reload") == {"added": ["d"], "changed": ["b"], "removed": [], "need-restart": ["threads"]}
        assert sorted(server.names()) == ["a", "b", "by-hand", "d"] and server.listed()["b"]["read-only"]
        with server.connect().go(b"d") as client:
            server.declare(declare("a", "a") + declare("e", "b"))  # another name for the same file
            assert server.ctl("reload") == {"added": ["e"], "changed": [], "removed": ["b", "d"], "need-restart": []}
            assert client.write(0, b"d" * 512) == 0  # hidden, not gone
        wait_for(lambda: sorted(server.listed()) == ["a", "by-hand", "e"])
        with server.connect() as client:
            assert client.option(OPT_INFO, info_data(b"b"))[-1][0] == ERR_UNKNOWN


def test_who_comes_after_a_reload_gets_the_other_image():
    with Configured(declared=declare("a", "a") + declare("b", "b", "read-only=true")) as server:
        with server.connect().go(b"a") as old, server.connect().go(b"b") as reader:
            assert old.write(0, b"old" * 512) == 0
            server.declare(declare("a", server.image("c")) + declare("b", "b", "read-only=true", "description=new"))
            assert server.ctl("reload")["changed"] == ["a", "b"]
            with server.connect().go(b"a") as new:
                assert new.read(0, 1536) == bytes(1536) and new.write(0, b"new") == 0
            assert old.read(0, 1536) == b"old" * 512 and old.write(512, b"x") == 0
            assert reader.read(0, 512) == bytes(512)
            server.declare(declare("a", "a"))  # the old image, which the old client still has
            assert "is served as 'a' already" in server.ctl("reload", ok=False)
        wait_for(lambda: not any(export.get("leaving") for export in server.ctl("list")["exports"]))
        assert server.ctl("reload")["removed"] == ["b"]
        with server.connect().go(b"a") as client:
            assert client.read(0, 3) == b"old"


def test_snapshots_beside_the_image():
    with Configured(declared=declare("a", "a")) as server:
        image = server.path("y.qcow2")
        for command in (["create", "-f", "qcow2", image, "1M"], ["snapshot", "--create", "before", image]):
            subprocess.run([os.environ["COWNBD"], *command], check=True, capture_output=True)
        server.ctl("add", image, "--name", "now")
        with server.connect().go(b"now") as client:
            assert client.write(0, b"x" * 512) == 0
        wait_for(lambda: server.listed()["now"]["connections"] == 0)
        server.ctl("remove", "now")
        server.declare(declare("a", "a") + f"[export now]\nimage={image}\nread-only=true\n"
                       f"[export then]\nimage={image}\nsnapshot=before\n")
        server.ctl("reload")
        server.ctl("add", image, "--name", "by-hand", "--snapshot", "before")
        server.refuses("snapshot", "add", image, "--name", "none", "--snapshot", "nothing")
        with server.connect().go(b"then") as client:
            assert client.read(0, 512) == bytes(512) and client.write(0, b"y" * 512) == wire.EPERM
            server.hand_over()
            assert client.read(0, 512) == bytes(512)
        for name, content in (("now", b"x"), ("then", b"\0"), ("by-hand", b"\0")):
            with server.connect().go(name.encode()) as client:
                assert client.read(0, 512) == content * 512, name


def test_a_reload_that_is_wrong_changes_nothing():
    good = declare("a", "a") + declare("b", "b")
    with Configured(declared=good) as server, Load(server, b"a"):
        server.ctl("add", server.image("c"), "-f", "raw")
        before = server.listed()
        for text, words in (
                (declare("a", "a", "nonsense=1"), f"{server.file}:8: key 'nonsense'"),
                (good + declare("d", "none"), f"{server.file}:11: {server.path('none')}: cannot be read"),
                (declare("a", "a", "read-only=true"), "export 'a' changes how its image is opened and has clients"),
                (good + declare("c", "a"), "is export 'a'"),
                (good + declare("c", server.image("d")), "export 'c' is served already"),
                # b is closed and c2 opened before what is no qcow2 is found out
                (declare("a", "a") + declare("b2", "b") + declare("d", "d") + "[export e]\nimage=b\nformat=qcow2\n"
                 "read-only=true\n", "is export 'b2'"),
                (declare("a", "a") + declare("b2", "b") + "[export e]\nimage=d\nformat=qcow2\n", ":11: ")):
            server.declare(text)
            error = server.ctl("reload", ok=False)
            assert words in error, error
            assert server.listed() | {"a": None} == before | {"a": None}
            assert server.names() == ["a", "b", "c"]
        with server.connect().go(b"b") as client:
            assert client.write(0, b"b" * 512) == 0 and client.request(FLUSH) == 0


def test_hangup_reloads():
    with Configured(declared=declare("a", "a")) as server, Load(server, b"a"):
        server.declare(declare("a", "a") + declare("b", "b"))
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: server.names() == ["a", "b"])
        server.declare("nonsense")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "'nonsense' is no entry" in server.errors())
        assert server.names() == ["a", "b"]


def test_serve_without_configuration():
    with wire.Server(control=True) as server:
        server.process.send_signal(signal.SIGHUP)
        result = subprocess.run([os.environ["COWNBD"], "ctl", "--control", server.directory + "/control", "reload"],
                                capture_output=True, text=True, timeout=wire.TIMEOUT)
        assert result.returncode == 1 and "neither a configuration nor certificates" in result.stderr, result


def test_once_with_many_exports():
    with Configured("--once", declared=declare("a", "a") + declare("b", "b")) as server:
        with server.connect().go(b"a"), server.connect().go(b"b") as client:
            server.ctl("remove", "a", "--mode=hard")
            assert client.read(0, 512) == bytes(512)
        assert server.process.wait(wire.TIMEOUT) == 0


def test_a_handover_keeps_what_came_and_went():
    with Configured(declared=declare("a", "a") + declare("b", "b") + declare("c", "c"), images="abcd") as server:
        server.ctl("add", server.path("d"), "--name", "by-hand", "--description", "added", "-r", "-f", "raw")
        with server.connect().go(b"c") as client:
            server.ctl("remove", "c", "--mode=hide")
            server.ctl("add", server.image("e"), "--name", "c", "-f", "raw")  # another one of that name
            server.ctl("remove", "b")
            server.declare(declare("a", "a") + declare("b", "b"))
            wait_for(lambda: server.by_image()["c"]["connections"] == 1)
            before = server.by_image()
            server.hand_over()
            wait_for(lambda: server.by_image() == before)  # a worker counts a connection when it takes it up
            assert sum(export["leaving"] for export in before.values()) == 1
            assert server.names() == ["a", "by-hand", "c"]
            assert client.write(0, b"c" * 4096) == 0 and client.request(FLUSH) == 0
            with open(server.path("c"), "rb") as image:
                assert image.read(4096) == b"c" * 4096
        assert server.ctl("reload") == {"added": ["b"], "changed": [], "removed": [], "need-restart": []}
        wait_for(lambda: not any(export["leaving"] for export in server.ctl("list")["exports"]))
        assert sorted(server.names()) == ["a", "b", "by-hand", "c"]


def encrypted(server, name, passphrase, *options, fmt="luks", prefix=""):
    """A small image, its passphrase in the file name.key."""
    key = server.path(name + ".key")
    with open(key, "w") as out:
        out.write(passphrase)
    command = [os.environ["COWNBD"], "create", "-q", "-f", fmt, "-o", prefix + "iterations=1000", "--secret-file", key,
               *options, server.path(name), "1M"]
    subprocess.run(command, check=True, timeout=wire.TIMEOUT)


def declare_encrypted(name, *more):
    return "\n".join([f"[export {name}]", f"image={name}", *more, ""])


def write_and_read(server, name):
    with server.connect().go(name) as client:
        assert client.write(512, name * 512) == 0 and client.read(512, 512) == (name * 512)[:512]


def test_encrypted_images_have_secrets_of_their_own():
    layered = {"fmt": "qcow2", "prefix": "encrypt.format=luks,encrypt."}
    with Configured(images="") as server:
        encrypted(server, "a", "first")
        encrypted(server, "b", "second")
        encrypted(server, "base", "third", **layered)
        encrypted(server, "top", "fourth", "-b", "base", "-F", "qcow2", **layered)
        one = declare_encrypted("a", "secret-file=a.key")
        server.declare(one)
        assert server.ctl("reload")["added"] == ["a"]
        write_and_read(server, b"a")
        chain = declare_encrypted("top", "secret-file=top=top.key;base.key")
        before = server.listed()
        for text, words in ((declare_encrypted("top"), "is encrypted: needs its secret"),
                            (declare_encrypted("top", "secret-file=top.key"), "base: the secret opens none of its 1 key slots"),
                            (declare_encrypted("top", "secret-file=none"), f"{server.path('none')}: cannot be read: No such file"),
                            (declare_encrypted("top", "secret-file=images"), "must be a secret, not a directory")):
            server.declare(one + text)
            server.refuses(words, "reload")
            assert server.listed() == before
        server.declare(one + chain)
        assert server.ctl("reload")["added"] == ["top"]
        write_and_read(server, b"top")
        server.refuses("needs its secret", "add", server.path("b"))
        server.refuses("opens none of its 1 key slots", "add", server.path("b"), "--secret-file", server.path("a.key"))
        server.refuses("must be [IMAGE=]FILE", "add", server.path("b"), "secret-file=b.key")
        server.ctl("add", server.path("b"), "--secret-file", server.path("a.key"), "--secret-file",
                   f"{server.path('images/../b')}={server.path('b.key')}")
        write_and_read(server, b"b")
        server.hand_over()
        for name in (b"a", b"top", b"b"):
            write_and_read(server, name)
        server.declare(declare_encrypted("a", f"secret-file=b.key;a={server.path('a.key')}"))
        assert server.ctl("reload")["changed"] == ["a"]
        server.declare("[directory d]\npath=.\nformats=luks\nsecret-file=b=b.key;a=a.key\n")
        server.ctl("reload")
        write_and_read(server, b"d/a")
        assert not any(word in server.errors() for word in ("first", "second", "third", "fourth"))


def test_a_directory_is_served_when_asked_for():
    with Configured(declared=declare("a", "a") + "[directory d]\npath=images\nformats=raw\n"
                    "[directory q]\npath=images\nread-only=true\n") as server, Load(server, b"a"):
        os.makedirs(server.path("images/deep/er"))
        os.symlink(server.path("b"), server.path("images/link"))
        os.symlink(server.directory, server.path("images/up"))
        os.mkfifo(server.path("images/fifo"))
        server.image("images/x")
        with server.connect().go(b"d/x") as one, server.connect().go(b"d/x") as two:
            assert one.write(0, b"x" * 4096) == 0 and two.read(0, 4096) == b"x" * 4096
            assert list(server.listed()) == ["a", "d/x"] and server.listed()["d/x"]["image"] == server.path("images/x")
            server.image("images/deep/er/new disk")
            with server.connect(structured=False).go("d/deep/er/new disk".encode()) as three:
                assert three.read(0, 512) == bytes(512)
        wait_for(lambda: list(server.listed()) == ["a"])
        with open(server.path("images/x"), "rb") as image:
            assert image.read(4096) == b"x" * 4096
        with server.connect() as client:
            for name in (b"d/none", b"d/link", b"d/up/b", b"d/fifo", b"d/deep", b"d/", b"d", b"d/../b", b"d/deep/../x",
                         b"d//x", b"d/./x", b"d/x/", b"d/x\0y", b"/" + server.path("b").encode(), b"e/x", b"q/x",
                         b"d/" + b"x" * 4000, b"d/\xff"):
                assert client.option(OPT_INFO, info_data(name))[-1][0] == ERR_UNKNOWN, name[:20]
            replies = client.option(OPT_INFO, info_data(b"d/x"))
            assert replies[-1][0] == REP_ACK
        subprocess.run([os.environ["COWNBD"], "create", "-f", "qcow2", server.path("images/y"), "1M"], check=True,
                       capture_output=True)
        with server.connect().go(b"q/y") as client:
            assert client.write(0, b"x" * 512) == wire.EPERM
            server.declare(declare("a", "a"))
            server.ctl("reload")
            assert client.read(0, 512) == bytes(512)  # the directory is gone, not its clients
        wait_for(lambda: list(server.listed()) == ["a"])
        with server.connect() as client:
            assert client.option(OPT_INFO, info_data(b"d/x"))[-1][0] == ERR_UNKNOWN


def test_a_directory_that_is_an_image_is_one_export():
    with Configured(declared="[directory d]\npath=images\nread-only=true\n") as server:
        golden = os.path.join(os.environ["COWNBD_SOURCE"], "tests/golden/parallels/split")
        shutil.copytree(golden, server.path("images/disk.hdd"))
        os.rename(server.path("images/disk.hdd/top.xml"), server.path("images/disk.hdd/DiskDescriptor.xml"))
        assert server.names() == ["d/disk.hdd"]
        with server.connect().go(b"d/disk.hdd") as client:
            with open(os.path.join(golden, "expect.sha256")) as digest:
                assert hashlib.sha256(client.read(0, client.size)).hexdigest() == digest.read().strip()


def test_list_shows_what_is_in_directories():
    text = (declare("a", "a") + "[directory raw]\npath=images\nformats=raw\n[directory any]\npath=images\nread-only=true\n"
            "[directory hidden]\npath=images\nallow=any=read\n")
    with Configured(declared=text) as server:
        os.makedirs(server.path("images/deep/er"))
        os.symlink(server.path("b"), server.path("images/link"))
        os.symlink(server.directory, server.path("images/up"))
        os.mkfifo(server.path("images/fifo"))
        server.image("images/x")
        subprocess.run([os.environ["COWNBD"], "create", "-f", "qcow2", server.path("images/deep/er/y"), "1M"],
                       check=True, capture_output=True)
        wanted = ["a", "raw/deep/er/y", "raw/x", "any/deep/er/y"]
        wait_for(lambda: server.names() == wanted)  # what LIST says may be a second old
        with server.connect().go(b"any/deep/er/y"):
            assert sorted(server.names()) == sorted(wanted)  # each once
        for n in range(1200):
            open(server.path(f"images/deep/{n}"), "w").close()
        wait_for(lambda: len(server.names()) == 1001)
        server.declare(declare("a", "a"))
        server.ctl("reload")
        assert server.names() == ["a"]


def test_many_ask_for_the_same_file_at_once():
    with Configured(declared="[directory d]\npath=.\nformats=raw\n") as server:
        clients = [server.connect() for _ in range(20)]
        for client in clients:
            client.send_option(wire.OPT_GO, info_data(b"d/a"))
        gone, clients = clients[::4], [client for n, client in enumerate(clients) if n % 4]
        for client in gone:
            client.close()
        for client in clients:
            assert client.option_replies(wire.OPT_GO)[-1][0] == REP_ACK
        assert list(server.listed()) == ["d/a"]
        for client in clients:
            client.close()
        wait_for(lambda: server.listed() == {})


def test_config_check():
    def check(text, *options):
        with open(path, "w") as out:
            out.write(text)
        return subprocess.run([os.environ["COWNBD"], "config", "check", path, *options], capture_output=True, text=True,
                              timeout=wire.TIMEOUT)

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "x.conf")
        result = check("[server]\nthreads=2\n[directory d]\npath=.\n")
        assert result.returncode == 0 and result.stdout == "1 settings, 0 exports, 1 directories: no errors\n", result
        for rules, words in (("allow=psk:bob=all", "psk: needs keys"), ("tls=require", "need TLS"),
                             ("allow=nonsense", "allow: "), ("tls=off", "must be on (as the server) or require")):
            result = check(f"[directory d]\npath=.\n{rules}\n")
            assert result.returncode == 1 and words in result.stderr and result.stderr.count("\n") == 1, result
        wrong = ("[server]\nthreads=0\nsocket-mode=9\nread-only=true\nallow-paths=/\nclient-memory=x\n"
                 "[export a]\nimage=none\n[directory b]\npath=x.conf\n")
        for address in ("127.0.0.1:65536", "::1:9", "[::1", "unix:", "vsock:x", "unix:/" + 107 * "x"):
            result = check(f"[server]\nthreads=1\nlisten={address}\n")
            assert result.returncode == 1 and result.stderr.startswith(
                f"cownbd: {path}:3: listen is '{address}': must be "), result
        result = check(wrong)
        lines = result.stderr.splitlines()
        assert result.returncode == 1 and result.stdout == ""
        for line, (number, words) in zip(lines, (
                (2, ": threads is 0: must be 1 to"), (3, "must be an octal number"), (4, "'read-only' is not known"),
                (6, "must be a size"), (7, "No such file"), (9, "must be a directory")), strict=True):
            assert line.startswith(f"cownbd: {path}:{number}: ") and words in line, line
        result = check(wrong, "--json")
        errors = json.loads(result.stdout)["errors"]
        assert result.returncode == 1 and [error["line"] for error in errors] == [2, 3, 4, 6, 7, 9]
        command = [os.environ["COWNBD"], "serve", "--config", path]
        started = subprocess.run(command, capture_output=True, text=True, timeout=wire.TIMEOUT)
        assert started.returncode == 1 and started.stderr.splitlines() == lines, started


if __name__ == "__main__":
    wire.main(sys.modules[__name__])
