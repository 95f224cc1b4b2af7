"""The control socket: what it tells, and what it must bear."""
import json
import os
import socket
import subprocess
import sys
import time

import wire
from wire import FLUSH, READ, TRIM, WRITE, Server

LINE_MAX = 64 << 10
CLIENTS_MAX = 64
NOBODY = 65534


class Control:
    """A client of the control socket, line by line."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(wire.TIMEOUT)
        self.socket.connect(path)
        self.input = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def line(self):
        while b"\n" not in self.input:
            try:
                part = self.socket.recv(1 << 20)
            except ConnectionResetError:  # closed before it had read all that was sent
                return None
            if not part:
                return None
            self.input += part
        line, self.input = self.input.split(b"\n", 1)
        return json.loads(line)

    def ask(self, request):
        self.send(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
        return self.line()


class Served(Server):
    def __init__(self, *options, **how):
        super().__init__(*options, control=True, **how)
        self.path = os.path.join(self.directory, "control")

    def control(self):
        return Control(self.path)

    def run(self, *arguments, command="ctl"):
        return subprocess.run([os.environ["COWNBD"], command, "--control", self.path, *arguments],
                              capture_output=True, text=True, timeout=wire.TIMEOUT)

    def json(self, command, *arguments):
        result = self.run("--json", *arguments, command=command)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


def refused(answer, text, code=22):
    assert answer is not None and answer["ok"] is False and text in answer["error"], answer
    assert answer["code"] == code, answer


def test_hello():
    with Served() as server, server.control() as client:
        answer = client.ask({"verb": "hello"})
        assert answer["ok"] is True and answer["program"] == "cownbd" and answer["protocol"] == 1
        assert answer["pid"] == server.process.pid
        text = server.run("hello").stdout
        assert f"pid: {server.process.pid}\n" in text and "ok" not in text


def test_list():
    with Served("--name", "first", size=32 << 20, images=("a.raw", "b.raw"), listen=("127.0.0.1:0",)) as server:
        with server.connect().go(b"first"):
            answer = server.json("list")
        assert len(answer["listen"]) == 2 and all(uri.startswith("nbd") for uri in answer["listen"])
        first, second = answer["exports"]
        assert (first["name"], second["name"]) == ("first", "b.raw")
        assert first["image"] == os.path.realpath(server.images[0])
        assert first["format"] == "raw" and first["size"] == 32 << 20 and first["mode"] == "normal"
        assert first["read-only"] is False and first["connections"] == 1 and second["connections"] == 0
        text = server.run(command="list").stdout
        assert "first" in text and "b.raw" in text and "32 MiB" in text and "listening on" in text


def test_stats():
    with Served() as server:
        with server.connect(structured=False).go() as client:
            for n in range(3):
                assert client.write(n * 4096, b"x" * 4096) == 0
            client.read(0, 1000)
            assert client.request(FLUSH) == 0 and client.request(TRIM, 0, 4096) == 0
            assert client.request(READ, 1 << 40, 4096) != 0
            answer = server.json("stats")
        export, = answer["exports"]
        requests, volume = export["requests"], export["bytes"]
        assert requests["write"] == 3 and volume["write"] == 3 * 4096
        assert requests["read"] == 1 and volume["read"] == 1000
        assert requests["flush"] == 1 and requests["trim"] == 1 and volume["trim"] == 4096
        assert export["errors"] == 1 and export["connections"] == 1 and answer["clients"] == 1
        text = server.run(command="stats").stdout
        assert "write" in text and "12 KiB" in text and "\n  cache" not in text


def test_what_is_no_request():
    with Served() as server, server.control() as client:
        for line, text in ((b"\n", "JSON object"), (b"[]\n", "JSON object"), (b"7\n", "JSON object"),
                           (b"{}\n", "no verb"), (b'{"verb": 1}\n', "must be a string"),
                           (b'{"verb": "list"\n', "no JSON"), (b"{'verb': 'list'}\n", "none that JSON has"),
                           (b"/* x */ {}\n", "none that JSON has"), (b'{"verb": "list\xff"}\n', "UTF-8"),
                           (b'{"verb": "li\0st"}\n', "UTF-8"), (b'{"verb": "li\\u0000st"}\n', "does not know"),
                           (b"var x = 1\n", "none that JSON has"),
                           (b"[" * 60000 + b"\n", "nested"), (b'{"a":' * 12000 + b"1" + b"}" * 12 + b"\n", "nested"),
                           (b'{"verb": "list", "a": 1, "verb": "none"}\n', "does not know"),
                           (b'{"verb": "nonsense"}\n', "does not know"), (b'{"verb": ""}\n', "does not know"),
                           (b'{"verb": "list", "name": 1}\n', "'name'"),
                           (b'{"verb": "hello", "x": [[]]}\n', "'x'"),
                           (b'{"verb": "handover", "binary": 3}\n', "must be a string"),
                           (b'{"verb": "handover", "binary": "x"}\n', "absolute")):
            refused(client.ask(line), text)
        assert client.ask({"verb": "hello"})["ok"]


def test_lines_that_are_too_long():
    with Served() as server:
        padding = b" " * (LINE_MAX - len(b'{"verb":"hello"}\n'))
        with server.control() as client:
            assert client.ask(b'{"verb":"hello"}' + padding + b"\n")["ok"]
            refused(client.ask(b'{"verb":"hello"}' + padding + b" \n"), "longer than", 7)
            assert client.line() is None
        with server.control() as client:
            try:
                client.send(b"x" * (LINE_MAX * 100))
                refused(client.line(), "longer than", 7)
            except (BrokenPipeError, ConnectionResetError):
                pass
        with server.control() as client:
            assert client.ask({"verb": "hello"})["ok"]


def test_many_lines_in_one_send_and_a_line_in_pieces():
    with Served() as server, server.control() as client:
        client.send(b'{"verb": "hello"}\n{"verb": "stats"}\n' * 200)
        for _ in range(200):
            assert "pid" in client.line() and "exports" in client.line()
        for byte in b'{"verb": "list"}\n':
            client.send(bytes([byte]))
        assert "exports" in client.line()
        client.send(b'{"verb": "li')
        client.socket.shutdown(socket.SHUT_WR)
        assert client.line() is None


def test_a_client_that_does_not_read_is_nobody_elses_trouble():
    with Served() as server, server.control() as deaf, server.control() as client:
        before = server.memory()
        deaf.socket.settimeout(0.5)
        try:
            while True:
                deaf.send(b'{"verb": "list"}\n' * 1000)
        except TimeoutError:
            pass
        for _ in range(20):
            assert client.ask({"verb": "list"})["ok"]
        assert server.memory() - before < wire.memory_limit(8 << 20)


def test_a_slow_verb_is_nobody_elses_trouble():
    with Served() as server, server.control() as slow, server.control() as client:
        program = os.path.join(server.directory, "slow")
        with open(program, "w") as out:
            out.write("#!/bin/sh\nsleep 2\n")
        os.chmod(program, 0o755)
        slow.send(json.dumps({"verb": "handover", "binary": program}).encode() + b"\n")
        time.sleep(0.2)
        begun = time.monotonic()
        assert client.ask({"verb": "hello"})["ok"]
        client.send(b'{"verb": "list"}\n')  # waits for its turn
        assert server.connect().go().read(0, 512) == bytes(512)
        quick = time.monotonic() - begun
        refused(slow.line(), "handover", 32)
        assert client.line()["ok"] and quick < time.monotonic() - begun


def test_more_clients_than_there_is_room_for():
    with Served() as server:
        clients = [server.control() for _ in range(CLIENTS_MAX)]
        assert clients[-1].ask({"verb": "hello"})["ok"]
        with server.control() as late:
            assert late.line() is None
        for client in clients:
            client.socket.close()
        until_room(server)


def until_room(server):
    end = time.monotonic() + wire.TIMEOUT
    while True:
        with server.control() as client:
            try:
                if client.ask({"verb": "hello"}) is not None:
                    return
            except (BrokenPipeError, ConnectionResetError):
                pass
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_clients_that_go_in_the_middle():
    with Served() as server:
        for data in (b"", b'{"verb"', b'{"verb": "list"}\n', b'{"verb": "stats"}\n' * 500):
            for _ in range(30):
                with server.control() as client:
                    client.send(data)
        until_room(server)


def test_who_may_ask():
    with Served() as server:
        assert os.stat(server.path).st_mode & 0o777 == 0o600
        if os.geteuid() != 0:
            return
        os.chmod(server.directory, 0o755)
        os.chmod(server.path, 0o666)
        program = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{server.path}'); print(s.recv(9))"
        result = subprocess.run(["/usr/bin/python3", "-c", program], user=NOBODY, group=NOBODY, extra_groups=[],
                                capture_output=True, text=True, timeout=wire.TIMEOUT)
        assert result.stdout == "b''\n", result
        assert "another user" in server.errors()


def start(*options):
    return subprocess.run([os.environ["COWNBD"], "serve", "-f", "raw", "--listen=none", *options],
                          capture_output=True, text=True, timeout=wire.TIMEOUT)


def test_where_the_socket_may_be():
    with Served(images=("a.raw", "b.raw")) as server:
        other = os.path.join(server.directory, "other.raw")
        with open(other, "wb") as out:
            out.truncate(4096)
        for path, text in ((server.path, "in use by another server"), ("/nonexistent/x", "cannot listen"),
                           ("x" * 200, "must have 1 to"), ("", "must have 1 to"), (other, "is not a socket")):
            result = start("--control", path, other)
            assert result.returncode == 1 and result.stderr.count("\n") == 1 and text in result.stderr, result
        assert os.path.getsize(other) == 4096
        stale = os.path.join(server.directory, "stale")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(stale)
        with subprocess.Popen([os.environ["COWNBD"], "serve", "-f", "raw", "-l", "127.0.0.1:0", "--control", stale,
                               other], stdout=subprocess.PIPE, text=True) as second:
            assert "listening" in second.stdout.readline()
            with Control(stale) as client:
                assert client.ask({"verb": "hello"})["pid"] == second.pid
            second.terminate()
            assert second.wait(wire.TIMEOUT) == 0 and not os.path.exists(stale)


def test_the_commands_say_what_is_wrong():
    def says(text, *command):
        result = subprocess.run([os.environ["COWNBD"], *command], capture_output=True, text=True,
                                timeout=wire.TIMEOUT, env={**os.environ, "XDG_RUNTIME_DIR": "/nonexistent"})
        assert result.returncode == 1 and result.stderr.count("\n") == 1 and text in result.stderr, result
    for command in (["list"], ["stats"], ["ctl", "hello"]):
        says("no server listens there", *command, "--control", "/nonexistent/socket")
    says("one server at a time", "list", "x", "y")
    says("one server at a time", "stats", "--control", "c", "x")
    says("no verb given", "ctl")
    with Served() as server:
        for argument, text in (("x", "KEY=VALUE"), ("=x", "KEY=VALUE"), ("verb=x", "given twice"),
                               ("a=1", "'a' is no argument")):
            says(text, "ctl", "--control", server.path, "list", argument)
        says("does not know", "ctl", "--control", server.path, "nonsense")


if __name__ == "__main__":
    wire.main(sys.modules[__name__])
