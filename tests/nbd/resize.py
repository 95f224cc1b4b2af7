"""NBD_CMD_RESIZE: who may, what the others see, what becomes of requests beyond the end."""
import os
import random
import subprocess
import sys
import threading

from wire import *

MB = 1 << 20
SEND_RESIZE = 1 << 9
EVERY_FORM = ({"structured": False}, {}, {"extended": True})


def size_now(server):
    """What a new client is told."""
    with server.connect() as client:
        return client.go().size


def info_size(client):
    """What INFO tells a client that is still in the handshake."""
    replies = client.option(OPT_INFO, info_data(b""))
    return next(struct.unpack(">Q", data[2:10])[0] for kind, data in replies if kind == REP_INFO and data[:2] == b"\0\0")


def test_resize_is_not_there_unless_allowed():
    for options in ((), ("-r",)):
        with Server(*options) as server:
            for form in EVERY_FORM:
                with server.connect(**form) as client:
                    client.go()
                    assert not client.flags & SEND_RESIZE
                    assert client.request(RESIZE, 32 * MB) == EINVAL
                    assert client.read(0, 512) == bytes(512)
            assert size_now(server) == 16 * MB


def test_resize_of_a_read_only_export_is_not_permitted():
    for option in (("-r",), ("--allow", "any=list,read")):
        with Server("--allow-resize", *option) as server, server.connect() as client:
            client.go()
            assert not client.flags & SEND_RESIZE
            assert client.request(RESIZE, 32 * MB) == EPERM
            assert size_now(server) == 16 * MB


def test_resize_has_no_length_and_no_strange_flags():
    with Server("--allow-resize") as server:
        for form in EVERY_FORM:
            with server.connect(**form) as client:
                client.go()
                assert client.flags & SEND_RESIZE
                assert client.request(RESIZE, 32 * MB, 512) == EINVAL
                for flag in (NO_HOLE, DF, REQ_ONE, FAST_ZERO, 1 << 9):
                    assert client.request(RESIZE, 32 * MB, 0, flag) == EINVAL
        assert size_now(server) == 16 * MB


def test_everybody_uses_the_new_part():
    for image_format in ("raw", "qcow2"):
        with Server("--allow-resize", image_format=image_format) as server:
            for n, form in enumerate(EVERY_FORM):
                old, new = (16 + n) * MB, (17 + n) * MB
                with server.connect() as other, server.connect() as waiting, server.connect(**form) as client:
                    other.go()
                    waiting.negotiate_structured()
                    assert info_size(waiting) == old
                    assert client.go().size == old
                    assert client.request(WRITE, old, 512, 0, bytes(512)) == ENOSPC
                    assert client.request(RESIZE, new, 0, FUA) == 0
                    assert client.read(old, MB) == bytes(MB)
                    assert client.write(new - 5, b"tail!") == 0
                    assert other.read(new - 5, 5) == b"tail!"
                    assert other.request(READ, new - 5, 6) == EINVAL
                    assert info_size(waiting) == new
            assert size_now(server) == 19 * MB


def test_what_was_cut_off_is_gone():
    for image_format in ("raw", "qcow2"):
        with Server("--allow-resize", image_format=image_format) as server:
            with server.connect() as client, server.connect() as other:
                client.go()
                other.go()
                assert client.write(0, b"x" * 4 * MB) == 0
                assert client.request(RESIZE, MB + 65536) == 0
                for command, error in ((READ, EINVAL), (TRIM, EINVAL), (WRITE_ZEROES, ENOSPC), (BLOCK_STATUS, EINVAL)):
                    assert other.request(command, MB, MB) == error
                assert other.write(MB, bytes(MB)) == ENOSPC
                assert other.read(MB, 65536) == b"x" * 65536
                assert other.request(RESIZE, 4 * MB) == 0
                assert client.read(MB + 65536, 3 * MB - 65536) == bytes(3 * MB - 65536)
                assert client.read(0, MB) == b"x" * MB


def test_sizes_of_64_bits_and_those_that_cannot_be():
    with Server("--allow-resize", image_format="qcow2") as server:
        with server.connect(extended=True) as client:
            client.go()
            assert client.request(RESIZE, 6 << 30) == 0
            assert client.write((6 << 30) - 512, b"z" * 512) == 0
            for size in (2**64 - 1, 2**63, 2**64 - 512):
                assert client.request(RESIZE, size) != 0
            assert client.read((6 << 30) - 512, 512) == b"z" * 512
        assert size_now(server) == 6 << 30
        assert server.stop() == 0
        subprocess.run(["qemu-img", "check", "-q", server.images[0]], check=True)
        out = subprocess.run(["qemu-img", "info", server.images[0]], check=True, capture_output=True).stdout
        assert b"(6442450944 bytes)" in out


def test_an_image_that_keeps_its_size_says_so():
    def add_bitmap(image):
        subprocess.run(["qemu-img", "bitmap", "--add", image, "changes"], check=True)

    with Server("--allow-resize", image_format="qcow2", prepare=add_bitmap) as server:
        with server.connect() as client:
            client.go()
            assert client.request(RESIZE, 32 * MB) == ENOTSUP
            assert client.text == "this disk cannot do that, or not that fast"
            assert client.read(0, 512) == bytes(512)
        assert size_now(server) == 16 * MB


def test_resizes_at_once_beside_other_requests():
    """Several clients resize, others write where the disk always is and where it sometimes is."""
    sizes = (2 * MB, 3 * MB + 512, 5 * MB, 9 * MB)
    rounds = 20 if memory_limit(1) == 1 else 5
    with Server("--allow-resize", image_format="qcow2") as server:
        problems = []

        def resize(seed):
            rng = random.Random(seed)
            with server.connect() as client:
                client.go()
                for _ in range(rounds):
                    if client.request(RESIZE, rng.choice(sizes)) != 0:
                        problems.append("a resize failed")

        def write(seed):
            rng = random.Random(seed)
            with server.connect() as client:
                client.go()
                for _ in range(rounds * 4):
                    at = rng.randrange(9) * MB
                    error = client.write(at, bytes([seed]) * 4096)
                    if error != 0 and (error != ENOSPC or at < 2 * MB):
                        problems.append(f"a write at {at} got {error}")
                client.write(seed * 4096, bytes([seed]) * 4096)

        threads = [threading.Thread(target=work, args=(n,)) for n, work in enumerate((resize, resize, write, write))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        with server.connect() as client:
            assert client.go().size in sizes
            for seed in (2, 3):
                assert client.read(seed * 4096, 4096) == bytes([seed]) * 4096
        assert server.stop() == 0
        subprocess.run(["qemu-img", "check", "-q", server.images[0]], check=True)


def test_a_resize_by_the_control_socket_is_seen_by_clients():
    with Server(control=True) as server:
        with server.connect() as client, server.connect() as waiting:
            client.go()
            waiting.negotiate_structured()
            subprocess.run([os.environ["COWNBD"], "resize", "--control", os.path.join(server.directory, "control"),
                            server.images[0], "+1M"], check=True, stdout=subprocess.DEVNULL)
            assert info_size(waiting) == size_now(server) == 17 * MB
            assert client.write(16 * MB, b"new") == 0
            assert client.read(16 * MB, 3) == b"new"


if __name__ == "__main__":
    main(sys.modules[__name__])
