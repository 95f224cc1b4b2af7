"""What the flags of commands do, and which of them belong to which command."""
import os
import subprocess
import sys

from control import Served
from wire import *

SIZE = 16 << 20


def flushes(server):
    """How often all was brought to stable storage."""
    return server.json("stats")["exports"][0]["flush"]["count"]


def succeeds(client, command, length, flags, payload=b""):
    """Sends a request and takes its replies, of any kind."""
    client.send_request(command, 0, length, flags, payload)
    done = False
    while not done:
        _, done, kind, value = client.chunk()
        assert kind != ERROR, value


def test_flags_that_do_not_belong_are_refused():
    allowed = {READ: FUA | DF, WRITE: FUA, FLUSH: FUA, TRIM: FUA, CACHE: FUA,
               WRITE_ZEROES: FUA | NO_HOLE | FAST_ZERO, BLOCK_STATUS: FUA | REQ_ONE}
    with Server() as server:
        structured, simple = server.connect().go(), server.connect(structured=False).go()
        for command, flags in allowed.items():
            for bit in range(16):
                if flags & 1 << bit:
                    continue
                length = 0 if command == FLUSH else 512
                payload = bytes(512) if command == WRITE else b""
                assert structured.request(command, 0, length, 1 << bit, payload) == EINVAL
                assert structured.text
        assert simple.request(READ, 0, 512, DF) == EINVAL
        assert structured.read(0, 512) == simple.read(0, 512) == bytes(512)


def test_fua_makes_durable():
    """With every command; those that have written something bring it to stable storage before the reply."""
    with Served(image_format="qcow2") as server, server.connect().go() as client:
        for command, length, payload in ((WRITE, 4096, b"f" * 4096), (WRITE_ZEROES, 4096, b""), (TRIM, 65536, b"")):
            succeeds(client, command, length, 0, payload)
            before = flushes(server)
            succeeds(client, command, length, FUA, payload)
            assert flushes(server) > before
        for command, length in ((READ, 4096), (CACHE, 4096), (BLOCK_STATUS, 4096), (FLUSH, 0)):
            succeeds(client, command, length, FUA)


def test_no_hole_keeps_the_space():
    with Server(image_format="qcow2") as server, server.connect().go() as client:
        client.write(0, b"x" * 262144)
        assert client.request(WRITE_ZEROES, 0, 65536) == 0
        assert client.request(WRITE_ZEROES, 131072, 65536, NO_HOLE) == 0
        assert client.status(0, 262144) == [(65536, 3), (65536, 0), (65536, 2), (65536, 0)]
        assert client.read(131072, 65536) == bytes(65536)


def test_fast_zero_is_fast_or_refused():
    def overlay(image):
        """Version 2 of qcow2 cannot say that what its backing has reads as zeroes."""
        with open(image + ".base", "wb") as out:
            out.write(b"b" * 65536)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", image + ".base",
                        "-F", "raw", image, str(SIZE)], check=True)

    with Server(image_format="qcow2", prepare=overlay) as server, server.connect().go() as client:
        assert client.request(WRITE_ZEROES, 0, 65536, FAST_ZERO) == ENOTSUP
        assert client.text == "this disk cannot do that, or not that fast"
        assert client.read(0, 65536) == b"b" * 65536
        assert client.request(WRITE_ZEROES, 0, 65536) == 0
        assert client.read(0, 65536) == bytes(65536)
        assert client.request(WRITE_ZEROES, 1 << 20, 65536, FAST_ZERO) == 0  # reads so already
    with Server(image_format="qcow2") as server, server.connect().go() as client:
        client.write(0, b"x" * 65536)
        assert client.request(WRITE_ZEROES, 0, 65536, FAST_ZERO) == 0
        assert client.read(0, 65536) == bytes(65536)


if __name__ == "__main__":
    main(sys.modules[__name__])
