"""Where clients come from: inherited sockets, one client on standard input, vsock, access to unix sockets."""
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile

from wire import *

SIZE = 4 << 20


class Directory(tempfile.TemporaryDirectory):
    """With an image in it."""

    def __init__(self):
        super().__init__(prefix="cownbd-listen.")
        self.image = self.path("disk.raw")
        with open(self.image, "wb") as out:
            out.truncate(SIZE)

    def path(self, name):
        return os.path.join(self.name, name)


def serve(directory, *options, **how):
    return subprocess.Popen([os.environ["COWNBD"], "serve", "-f", "raw", "--control=none", *options, directory.image],
                            **how)


def end(process):
    process.terminate()
    assert process.wait(TIMEOUT) == 0


def refused(directory, *options, **how):
    process = serve(directory, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)
    out, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1 and out == "", (process.returncode, out, errors)
    assert errors.startswith("cownbd: ") and errors.count("\n") == 1, errors
    return errors


# Socket activation


def activated(directory, sockets, *options, pid="$$", **how):
    """A server that finds the sockets as descriptors 3 and following."""
    # High ones first, so that none is in the way of another.
    descriptors = [os.dup2(one.fileno(), 50 + n) for n, one in enumerate(sockets)]
    moves = " ".join(f"{3 + n}<&{d}" for n, d in enumerate(descriptors))
    script = f'LISTEN_PID={pid} LISTEN_FDS={len(sockets)} exec "$@" {moves}'
    return subprocess.Popen(["bash", "-c", script, "sh", os.environ["COWNBD"], "serve", "-f", "raw", "--control=none",
                             *options, directory.image], pass_fds=descriptors, stdout=subprocess.PIPE, **how)


def listening(path=None):
    made = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    made.bind(path or ("127.0.0.1", 0))
    made.listen()
    return made


def test_inherited_sockets_are_served():
    directory = Directory()
    path = directory.path("socket")
    with listening(path) as unix, listening() as tcp:
        port = tcp.getsockname()[1]
        process = activated(directory, [unix, tcp])
        for address in (path, ("127.0.0.1", port)):
            with Client(address).go() as client:
                assert client.size == SIZE and client.read(0, 5) == bytes(5)
        end(process)
        assert os.path.exists(path)  # it is not the server's to remove
        assert process.stdout.read() == b""  # who made the sockets knows where they are
        process.stdout.close()
    directory.cleanup()


def test_inherited_sockets_beside_an_address():
    directory = Directory()
    own = directory.path("own")
    with listening() as tcp:
        process = activated(directory, [tcp], "--listen", "unix:" + own)
        assert b"nbd+unix" in process.stdout.readline()
        for address in (own, tcp.getsockname()):
            with Client(address).go() as client:
                assert client.read(0, 5) == bytes(5)
        end(process)
        process.stdout.close()
    directory.cleanup()


def test_sockets_for_another_process_are_left_alone():
    directory = Directory()
    own = directory.path("own")
    with listening() as tcp:
        process = activated(directory, [tcp], "--listen", "unix:" + own, pid="1")
        assert process.stdout.readline().startswith(b"listening on nbd+unix")
        end(process)
        assert process.stdout.read() == b""
        process.stdout.close()
    directory.cleanup()


def test_an_inherited_descriptor_must_listen():
    directory = Directory()
    with socket.socket() as deaf, open(directory.image, "rb") as image:
        for wrong in (deaf, image):
            process = activated(directory, [wrong], stderr=subprocess.PIPE)
            out, errors = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 1 and not out and b"LISTEN_FDS: descriptor 3" in errors, errors
    directory.cleanup()


def test_libnbd_starts_a_server_by_socket_activation():
    directory = Directory()
    out = subprocess.run(["nbdinfo", "--size", "--", "[", os.environ["COWNBD"], "serve", "-f", "raw", "--control=none",
                          directory.image, "]"], check=True, stdout=subprocess.PIPE, timeout=TIMEOUT).stdout
    assert int(out) == SIZE
    directory.cleanup()


# Standard input


def test_stdio_serves_one_client_and_leaves():
    directory = Directory()
    ours, theirs = socket.socketpair()
    with theirs:  # as inetd does it: input, output and errors
        process = serve(directory, "--stdio", "-v", "-v", stdin=theirs, stdout=theirs, stderr=theirs)
    with Connected(ours).go() as client:
        assert client.write(100, b"inetd") == 0 and client.read(99, 7) == b"\0inetd\0"
    assert process.wait(TIMEOUT) == 0
    with open(directory.image, "rb") as image:
        assert image.read(106)[99:] == b"\0inetd\0"
    directory.cleanup()


def test_a_tcp_client_gets_replies_without_delay_and_is_looked_after():
    """The socket is ours, too: so we see what the server has said of it before its greeting."""
    directory = Directory()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), TIMEOUT)
        theirs, _ = listener.accept()
    with theirs:
        process = serve(directory, "--stdio", stdin=theirs)
        with Connected(ours).go() as client:
            assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert client.read(0, 1) == b"\0"
        assert process.wait(TIMEOUT) == 0
    directory.cleanup()


def test_stdio_leaves_when_the_client_goes_early():
    directory = Directory()
    ours, theirs = socket.socketpair()
    with theirs:
        process = serve(directory, "--stdio", stdin=theirs)
    ours.close()
    assert process.wait(TIMEOUT) == 0
    directory.cleanup()


def test_stdio_by_libnbd():
    directory = Directory()
    command = [os.environ["COWNBD"], "serve", "-f", "raw", "--stdio", directory.image]
    # Debian's Python, which has libnbd's module, whatever python3 comes first in PATH.
    subprocess.run(["/usr/bin/python3", "-m", "nbd", "-c", f"h.connect_command({command!r})",
                    "-c", f"assert h.get_size() == {SIZE}",
                    "-c", "h.pwrite(b'x' * 512, 0); assert h.pread(512, 0) == bytearray(b'x' * 512)"],
                   check=True, timeout=TIMEOUT)
    directory.cleanup()


def test_stdio_needs_a_socket():
    directory = Directory()
    assert "--stdio" in refused(directory, "--stdio", stdin=subprocess.DEVNULL)
    with listening() as deaf:
        assert "--stdio" in refused(directory, "--stdio", stdin=deaf)
    assert "--listen" in refused(directory, "--stdio", "--listen", "127.0.0.1:0", stdin=subprocess.DEVNULL)
    directory.cleanup()


# Unix sockets


def test_mode_and_owner_of_unix_sockets():
    directory = Directory()
    path = directory.path("socket")
    owner = (os.getuid(), os.getgid()) if os.getuid() else (65534, 65533)
    for mode, option in ((0o600, "0600"), (0o666, "666"), (0o660, "0660")):
        process = serve(directory, "-l", "unix:" + path, "--socket-mode", option,
                        "--socket-owner", f"{owner[0]}:{owner[1]}", stdout=subprocess.PIPE)
        process.stdout.readline()
        found = os.stat(path)
        assert stat.S_IMODE(found.st_mode) == mode and (found.st_uid, found.st_gid) == owner, found
        with Client(path).go() as client:
            assert client.read(0, 1) == b"\0"
        end(process)
        process.stdout.close()
        assert not os.path.exists(path)
    directory.cleanup()


def test_mode_and_owner_are_checked():
    directory = Directory()
    for option, bad in (("--socket-mode", "8"), ("--socket-mode", "1000"), ("--socket-mode", ""),
                        ("--socket-owner", ""), ("--socket-owner", "nobody-here"), ("--socket-owner", "root:no-such"),
                        ("--socket-owner", "0:4294967295")):
        assert option in refused(directory, option, bad)
    directory.cleanup()


# Vsock


def test_vsock():
    directory = Directory()
    try:
        with socket.socket(socket.AF_VSOCK):
            pass
    except OSError:
        assert "vsock:1" in refused(directory, "-l", "vsock:1")
        directory.cleanup()
        return
    process = serve(directory, "-l", "vsock:0", stdout=subprocess.PIPE)
    line = process.stdout.readline().decode().strip()
    assert line.startswith("listening on nbd+vsock://"), line
    port = int(line.rsplit(":", 1)[1].rstrip("/"))
    assert port > 0
    with socket.socket(socket.AF_VSOCK) as client:
        client.settimeout(1)
        try:
            client.connect((1, port))  # where the kernel has a loop of it
        except OSError:
            client.close()
        else:
            with Connected(client).go() as other:
                assert other.read(0, 5) == bytes(5)
    end(process)
    process.stdout.close()
    for bad in ("vsock:", "vsock:x", "vsock:4294967296"):
        assert "vsock" in refused(directory, "-l", bad)
    directory.cleanup()


# Descriptions


def test_descriptions_are_listed():
    with Server("--description", "the first, für Leute", images=("a.raw", "b.raw")) as server:
        with server.connect() as client:
            found = {}
            for _, data in client.option(OPT_LIST)[:-1]:
                length, = struct.unpack(">I", data[:4])
                found[data[4:4 + length]] = data[4 + length:].decode()
            assert found == {b"a.raw": "the first, für Leute", b"b.raw": ""}
            infos = [data[2:].decode() for _, data in client.option(OPT_INFO, info_data(b"", (INFO_DESCRIPTION,)))[:-1]
                     if data[:2] == b"\0\2"]
            assert infos == ["the first, für Leute"]
            assert len(client.option(OPT_INFO, info_data(b"b.raw", (INFO_DESCRIPTION,)))) == 2


def test_descriptions_are_checked():
    directory = Directory()
    assert "descriptions" in refused(directory, "--description", "a", "--description", "b")
    assert "description" in refused(directory, "--description", "x" * 4097)
    directory.cleanup()


class Connected(Client):
    """A client on a socket that is connected already."""

    def __init__(self, connected):
        connected.settimeout(TIMEOUT)
        self.connected = connected
        super().__init__(None)

    def dial(self, _):
        return self.connected


if __name__ == "__main__":
    main(sys.modules[__name__])
