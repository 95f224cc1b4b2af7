"""What a service manager sees of a server: states, signs of life; and that the units are sound."""
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import unittest.mock

import wire
from handover import Relay

UNITS = ("cownbd.service", "cownbd.socket", "cownbd-attach@.service")


class Manager:
    """The socket of a service manager."""

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.directory.name, "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(wire.TIMEOUT)
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.directory.cleanup()

    def environment(self, **more):
        return unittest.mock.patch.dict(os.environ, NOTIFY_SOCKET=self.path, **more)

    def until(self, beginning):
        """The next state that begins so; others are thrown away."""
        while True:
            state = self.socket.recv(4096).decode()
            if state.startswith(beginning):
                return state


def test_states():
    with Manager() as manager, manager.environment(), tempfile.TemporaryDirectory() as directory:
        log = os.path.join(directory, "log")
        with Relay("--log", log) as server:
            assert manager.until("READY=1") == "READY=1\nSTATUS=1 image is served"
            os.rename(log, log + ".1")
            os.kill(server.pid, signal.SIGHUP)
            assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", manager.until("RELOADING=1"))
            manager.until("READY=1")
            assert os.path.exists(log), "the log was not opened again"
        manager.until("STOPPING=1")


def test_signs_of_life():
    with Manager() as manager, manager.environment(WATCHDOG_USEC="200000"):
        with Relay() as server:
            for _ in range(5):
                assert manager.until("WATCHDOG=1") == "WATCHDOG=1"
            server.handover()
            assert manager.until("MAINPID=") == f"MAINPID={server.pid}"
            for _ in range(5):
                manager.until("WATCHDOG=1")


def test_no_signs_for_somebody_else():
    for wanted in ({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}):
        with Manager() as manager, manager.environment(**wanted):
            with Relay() as server:
                manager.until("READY=1")
                with server.connect() as client:
                    client.go().read(0, 512)
            seen = []
            with contextlib.suppress(BlockingIOError):
                manager.socket.setblocking(False)
                while True:
                    seen.append(manager.socket.recv(4096))
            assert b"WATCHDOG=1" not in seen, seen


def test_units():
    built = os.path.join(os.environ["COWNBD_BUILD"], "contrib/systemd")
    with tempfile.TemporaryDirectory() as directory:
        for unit in UNITS:
            source = os.path.join(built, unit)
            if not os.path.exists(source):
                source = os.path.join(os.environ["COWNBD_SOURCE"], "contrib/systemd", unit)
            with open(source) as text, open(os.path.join(directory, unit), "w") as out:
                out.write(re.sub(r"(?m)^(Exec\w+=)\S+/cownbd ", r"\1" + os.environ["COWNBD"] + " ", text.read()))
        instances = [unit.replace("@", "@image") for unit in UNITS]
        result = subprocess.run(["systemd-analyze", "verify", "--man=no", *(os.path.join(directory, unit) for unit in instances)],
                                capture_output=True, text=True, timeout=wire.TIMEOUT, env=dict(os.environ, SYSTEMD_UNIT_PATH=directory + ":"))
        assert result.returncode == 0 and "cownbd" not in result.stderr, result


if __name__ == "__main__":
    wire.main(sys.modules[__name__])
