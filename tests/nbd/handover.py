"""One server process hands its sockets over to another: no client may notice more than a pause.

Runs `cownbd ctl handover` at every point of a connection's life, under load, and where the new process fails.
"""
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import wire
from wire import (DISC, ERROR, FLUSH, OPT_GO, OPTION_MAGIC, READ, REP_ACK, REQUEST_MAGIC, TRIM,
                  WRITE, WRITE_ZEROES, Client, Server, info_data)

MB = 1 << 20


def scaled(full):
    return max(full // 4, full * int(os.environ.get("COWNBD_TEST_SCALE", "100")) // 100)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds=wire.TIMEOUT):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class Relay(Server):
    """A server that is handed over now and then; pid is that of the process that serves."""

    def __init__(self, *options, **how):
        super().__init__(*options, control=True, **how)
        self.control = os.path.join(self.directory, "control")
        self.pid = self.process.pid

    def ctl(self, *arguments):
        return subprocess.run([os.environ["COWNBD"], "ctl", "--json", "--control", self.control, *arguments],
                              capture_output=True, text=True, timeout=wire.TIMEOUT)

    def stats(self):
        return subprocess.run([os.environ["COWNBD"], "stats", "--json", "--control", self.control], check=True,
                              capture_output=True, text=True, timeout=wire.TIMEOUT).stdout

    def handover(self):
        """Hands over. Returns the microseconds of the pause."""
        result = self.ctl("handover")
        assert result.returncode == 0, result.stderr + self.errors()
        answer, old = json.loads(result.stdout), self.pid
        self.pid = answer["pid"]
        if old == self.process.pid:
            assert self.process.wait(wire.TIMEOUT) == 0, self.errors()
        else:
            until(lambda: not is_running(old))
        return answer["pause-us"]

    def refused_handover(self, binary):
        """The server says no, and goes on. Returns what it says."""
        result = self.ctl("handover", "binary=" + binary)
        assert result.returncode == 1 and result.stderr.count("\n") == 1, (result.stdout, result.stderr)
        assert is_running(self.pid)
        return result.stderr

    def script(self, text):
        path = os.path.join(self.directory, "script")
        with open(path, "w") as out:
            out.write("#!/bin/sh\n" + text + "\n")
        os.chmod(path, 0o755)
        return path

    def __exit__(self, kind, *rest):
        if self.pid != self.process.pid and is_running(self.pid):
            os.kill(self.pid, signal.SIGTERM)
            until(lambda: not is_running(self.pid))
        sane = "Sanitizer" not in self.errors()
        errors = self.errors()
        super().__exit__(kind, *rest)
        assert sane, errors


def number_in(path):
    with open(path) as text:
        return int(text.read() or 0)


def header(command, offset, length, flags=0, cookie=7):
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length)


def test_idle_connections_in_every_phase():
    with Relay() as server:
        greeted = server.connect(flags=None)
        flagged = server.connect(structured=False)
        negotiated = server.connect()
        negotiated.negotiate_structured()
        plain = server.connect(structured=False).go()
        extended = server.connect(extended=True).go()
        structured = server.connect().go()
        assert structured.write(0, b"a" * 5000) == 0
        server.handover()
        greeted.send(struct.pack(">I", 3))
        greeted.go()
        flagged.go()
        negotiated.go()
        for client in (greeted, flagged, negotiated, plain, extended, structured):
            assert client.read(0, 5000) == b"a" * 5000
        assert structured.status(0, 4 * MB)
        assert greeted.status(0, 4 * MB)
        with server.connect() as late:
            assert late.go().read(0, 5000) == b"a" * 5000


def test_half_an_option():
    with Relay() as server:
        data = info_data(b"disk.raw")
        whole = struct.pack(">QII", OPTION_MAGIC, OPT_GO, len(data)) + data
        for cut in (1, 15, 16, 20, len(whole) - 1):
            with server.connect(structured=False) as client:
                client.send(whole[:cut])
                time.sleep(0.05)
                server.handover()
                client.send(whole[cut:])
                assert client.option_replies(OPT_GO)[-1] == (REP_ACK, b"")
                assert client.read(0, 512) == bytes(512)


def test_half_a_request_header_and_half_a_payload():
    with Relay() as server, server.connect(structured=False).go() as client:
        data = bytes(range(256)) * 1024
        whole = header(WRITE, 4096, len(data)) + data
        for cut in (1, 27, 28, 29, 5000, 70000, 200000, len(whole) - 1):
            client.send(whole[:cut])
            time.sleep(0.05)
            server.handover()
            client.send(whole[cut:])
            assert client.chunk() == (7, True, None, 0)
            assert client.read(4096, len(data)) == data


def test_half_an_extended_request():
    with Relay() as server, server.connect(extended=True).go() as client:
        data = bytes(range(256)) * 64
        whole = struct.pack(">IHHQQQ", wire.EXTENDED_REQUEST_MAGIC, wire.PAYLOAD_LEN, WRITE, 7, 512, len(data)) + data
        for cut in (31, 32, 33, 9000):
            client.send(whole[:cut])
            time.sleep(0.05)
            server.handover()
            client.send(whole[cut:])
            cookie, done, kind, _ = client.chunk()
            assert (cookie, done, kind) == (7, True, wire.NONE)
            assert client.read(512, len(data)) == data


def test_half_a_payload_that_is_refused():
    with Relay() as server, server.connect().go() as client:
        payload = bytes(100000)
        whole = header(WRITE, server_size := 16 * MB, len(payload)) + payload
        for cut in (28, 29, 50000):
            client.send(whole[:cut])
            time.sleep(0.05)
            server.handover()
            client.send(whole[cut:])
            cookie, done, kind, value = client.chunk()
            assert (cookie, done, kind) == (7, True, ERROR) and value, (cookie, kind)
            assert client.read(server_size - 512, 512) == bytes(512)


def test_replies_that_nobody_has_taken_yet():
    with Relay("--client-memory", "4M") as server:
        clients = [server.connect(structured=n % 2 == 1).go() for n in range(4)]
        content = random.Random(1).randbytes(MB)
        assert clients[0].write(0, content) == 0
        for client in clients:
            client.send(b"".join(header(READ, 4096 * n, MB // 2, cookie=n) for n in range(20)))
        time.sleep(0.3)
        for _ in range(3):
            server.handover()
        for client in clients:
            left = set(range(20))
            while left:
                cookie, done, kind, value = client.chunk()
                assert done and cookie in left
                data = client.receive(MB // 2) if kind is None else value[8:]
                assert data == content[4096 * cookie:4096 * cookie + MB // 2]
                left.remove(cookie)
            assert client.read(0, 512) == content[:512]


def test_a_client_that_has_said_goodbye_gets_its_replies():
    with Relay() as server, server.connect(structured=False).go() as client:
        client.send(b"".join(header(READ, 0, MB, cookie=n) for n in range(8)) + header(DISC, 0, 0))
        time.sleep(0.3)
        server.handover()
        for _ in range(8):
            assert client.chunk()[1:] == (True, None, 0)
            assert client.receive(MB) == bytes(MB)
        try:
            client.receive(1)
            assert False, "more than was asked for"
        except wire.Closed:
            pass


class Load(threading.Thread):
    """Random requests on a region of its own, checked against a model, until stop; error is what went wrong."""

    UNIT = 4096
    UNITS = 512

    def __init__(self, server, number):
        super().__init__()
        self.client = server.connect(structured=number % 2 == 0).go()
        self.start_at = number * self.UNIT * self.UNITS
        self.random = random.Random(number)
        self.model = [0] * self.UNITS
        self.stopped, self.error, self.count = False, None, 0

    def content(self, unit, count):
        return b"".join(bytes([value]) * self.UNIT for value in self.model[unit:unit + count])

    def step(self):
        unit = self.random.randrange(self.UNITS)
        count = self.random.randint(1, min(40, self.UNITS - unit))
        offset, length = self.start_at + unit * self.UNIT, count * self.UNIT
        command = self.random.choice((READ, READ, WRITE, WRITE, FLUSH, TRIM, WRITE_ZEROES))
        if command == READ:
            assert self.client.read(offset, length) == self.content(unit, count), f"wrong bytes at {offset}"
            return
        value = self.random.randrange(1, 256) if command == WRITE else 0
        if command == FLUSH:
            offset = length = 0
        else:
            self.model[unit:unit + count] = [value] * count
        payload = bytes([value]) * length if command == WRITE else b""
        assert self.client.request(command, offset, length, 0, payload) == 0
        if command == TRIM:  # what a trimmed range reads as is not said
            assert self.client.request(WRITE_ZEROES, offset, length) == 0

    def run(self):
        try:
            while not self.stopped:
                self.step()
                self.count += 1
            self.client.send_request(DISC)
        except Exception as problem:  # told by the thread that waits for this one
            self.error = f"after {self.count} requests: {problem!r}"


def test_twenty_in_a_row_under_load():
    with Relay("--threads", "3", size=64 * MB, images=("disk.qcow2",), image_format="qcow2") as server:
        loads = [Load(server, number) for number in range(8)]
        for load in loads:
            load.start()
        pauses = []
        for _ in range(20):
            time.sleep(random.random() / 5)
            pauses.append(server.handover())
        for load in loads:
            load.stopped = True
        for load in loads:
            load.join(wire.TIMEOUT)
            assert load.error is None and load.count > 0, load.error
        pauses.sort()
        print(f"# {sum(load.count for load in loads)} requests; pause: median {pauses[len(pauses) // 2] / 1000:.1f} ms, "
              f"longest {pauses[-1] / 1000:.1f} ms", flush=True)
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: not is_running(server.pid))
        checked = subprocess.run(["qemu-img", "check", server.images[0]], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


def test_a_new_process_that_fails_changes_nothing():
    program = os.environ["COWNBD"]
    with Relay(size=64 * MB, images=("disk.qcow2",), image_format="qcow2") as server:
        loads = [Load(server, number) for number in range(4)]
        half = server.connect(structured=False).go()
        whole = header(WRITE, 60 * MB, 8192) + b"h" * 8192
        half.send(whole[:1000])
        for load in loads:
            load.start()
        relative = os.path.relpath(server.script("exit 1"))
        assert "gone" in server.ctl("handover", "--binary", relative).stderr
        assert "absolute" in server.refused_handover("cownbd")
        assert "cannot start" in server.refused_handover("/nonexistent/cownbd")
        assert "gone" in server.refused_handover("/bin/false")
        assert "gone" in server.refused_handover(server.script("exit 0"))
        # It cannot open an image; when it tries, this one has closed its own.
        assert "disk.qcow2: " in server.refused_handover(server.script(f'exec {program} "$@" --format=vdi'))
        half.send(whole[1000:])
        assert half.chunk() == (7, True, None, 0)
        assert half.read(60 * MB, 8192) == b"h" * 8192
        server.handover()  # and then one that works
        assert half.read(60 * MB, 8192) == b"h" * 8192
        for load in loads:
            load.stopped = True
        for load in loads:
            load.join(wire.TIMEOUT)
            assert load.error is None, load.error


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as text:
            return int(text.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0


def children(pid):
    """By everybody's parent: not every kernel has the files that list the children of a task."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and parent(entry) == pid]


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def kill_the_new_process(server, delay):
    """Hands over and kills the new process after a while. True when the old one goes on.

    The new process is looked for without a pause: one that is killed when it is first seen has taken nothing over yet.
    """
    asked = subprocess.Popen([os.environ["COWNBD"], "ctl", "--json", "--control", server.control, "handover"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    new = []
    while not new and asked.poll() is None:
        new = children(server.pid)
    time.sleep(delay)
    for pid in new:
        kill(pid)
    output = asked.communicate(timeout=wire.TIMEOUT)[0]
    if asked.returncode == 0:  # too late: there was only the new one
        pid = json.loads(output)["pid"]
        kill(pid)
        server.process.wait(wire.TIMEOUT)
        until(lambda: not is_running(pid))
    return asked.returncode != 0


def time_of_a_handover():
    """Seconds, of the command that asks for it too."""
    with Relay(size=64 * MB, images=("disk.qcow2",), image_format="qcow2") as server:
        start = time.monotonic()
        server.handover()
        return time.monotonic() - start


def test_the_new_process_is_killed_at_random():
    kept, tries, delays, longest = 0, 0, random.Random(3), time_of_a_handover()
    while kept < scaled(12) and tries < scaled(60):
        with Relay(size=64 * MB, images=("disk.qcow2",), image_format="qcow2") as server:
            loads = [Load(server, number) for number in range(3)]
            for load in loads:
                load.start()
            lives = True
            while lives and kept < scaled(12):
                delay = delays.random() * longest if tries % 4 else 0
                lives = kill_the_new_process(server, delay)
                kept += lives
                tries += 1
                time.sleep(0.1)
                assert not lives or all(load.error is None for load in loads), [load.error for load in loads]
            for load in loads:
                load.stopped = True
            for load in loads:
                load.join(wire.TIMEOUT)
    print(f"# the old process went on {kept} times of {tries}", flush=True)
    assert kept > 0


def test_many_connections():
    with Relay(open_files=4096) as server:
        clients = [server.connect(structured=n % 2 == 0).go() for n in range(500)]
        for n, client in enumerate(clients):
            client.send(header(WRITE, 4096 * n, 4096) + bytes([n % 256]) * 1000)
        server.handover()
        for n, client in enumerate(clients):
            client.send(bytes([n % 256]) * 3096)
            assert client.chunk()[1] is True
        assert clients[7].read(0, 500 * 4096) == b"".join(bytes([n % 256]) * 4096 for n in range(500))


def test_what_a_server_is_stays():
    odd = os.fsdecode(b"so\xff%41 cket")
    with Relay("--read-only", "--pid-file", "pid", "--name", "x", listen=("127.0.0.1:0", "unix:" + odd)) as server:
        uri = server.lines[1].split()[-1]
        port = int(uri.split(":")[-1].strip("/"))
        server.handover()
        until(lambda: number_in("pid") == server.pid)
        assert os.path.exists(server.address) and os.path.exists(odd) and os.path.exists(server.control)
        with Client(("127.0.0.1", port)) as client:
            client.go(b"x")
            assert client.write(0, b"x") == wire.EPERM
        listing = json.loads(server.ctl("list").stdout)
        assert uri in listing["listen"] and listing["exports"][0]["name"] == "x"
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: not is_running(server.pid))
        assert not os.path.exists("pid") and not os.path.exists(server.address) and not os.path.exists(odd)
        assert not os.path.exists(server.control)


def test_a_secret_from_a_descriptor_cannot_be_handed_over():
    with tempfile.TemporaryFile() as secret:
        secret.write(b"secret")
        secret.seek(0)
        number = secret.fileno()
        with Relay("--secret-fd", str(number), pass_fds=(number,)) as server, server.connect().go() as client:
            result = server.ctl("handover")
            assert result.returncode == 1 and "from --secret-fd" in result.stderr, result
            assert client.read(0, 512) == bytes(512)


def test_the_service_manager_is_told():
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.path.join(directory, "notify"))
        manager.settimeout(wire.TIMEOUT)
        os.environ["NOTIFY_SOCKET"] = manager.getsockname()
        try:
            with Relay() as server:
                assert manager.recv(100).startswith(b"READY=1\n")
                server.handover()
                assert manager.recv(100) == b"MAINPID=%d" % server.pid
                assert manager.recv(100).startswith(b"READY=1\n")
            assert manager.recv(100) == b"STOPPING=1"
        finally:
            del os.environ["NOTIFY_SOCKET"]


def test_the_option_is_not_for_users():
    for value in ("-1", "99"):
        result = subprocess.run([os.environ["COWNBD"], "serve", "--take-over", value, "/nonexistent"],
                                capture_output=True, text=True, timeout=wire.TIMEOUT)
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr


if __name__ == "__main__":
    wire.main(sys.modules[__name__])
