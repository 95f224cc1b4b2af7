"""The log: its levels, its places, and that an event says which client of which export it is of."""
import os
import re
import socket
import subprocess
import sys
import tempfile
import unittest.mock

import wire
from wire import Server

# In name spaces of its own a directory takes the place of /run, where the journal's socket is.
ALONE = ["unshare", "-m" if os.getuid() == 0 else "-Urm", "sh", "-ec",
         'mount --bind "$1" /run; shift; exec "$@"', "sh"]
NONSENSE = b"nonsense, but as long as a request"


def provoke(server):
    """The server drops a client that uses the first export: a warning."""
    with server.connect() as client:
        client.go()
        client.send(NONSENSE)
        assert client.is_closed()


def refused(*options):
    result = subprocess.run([os.environ["COWNBD"], "serve", "--control", "none", *options, "/nonexistent"],
                            capture_output=True, text=True, timeout=wire.TIMEOUT)
    assert result.returncode == 1 and result.stderr.count("\n") == 1, result
    return result.stderr


def test_a_line_says_whose_event_it_is():
    with Server("--name", "a\nb") as server:
        provoke(server)
        lines = server.errors().splitlines()
        assert re.fullmatch(r"cownbd: warning: client dropped: .* \[client 1, export 'a\?b'\]", lines[0]), lines


def test_levels():
    for options, seen in ((["--log-level=error"], set()), ([], {"warning"}), (["--log-level=debug"], {"warning", "debug"}),
                          (["-vv"], {"warning", "debug"})):
        with Server(*options) as server:
            provoke(server)
            server.stop()
            levels = {line.split(": ")[1] for line in server.errors().splitlines()}
            assert levels & {"warning", "debug"} == seen, (options, levels)


def test_a_file_has_the_time():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "log")
        with Server("--log", path) as server:
            provoke(server)
            assert server.errors() == ""
        with open(path) as log:
            text = log.read()
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4} cownbd: warning: client dropped", text), text
        assert os.stat(path).st_mode & 0o007 == 0


def fields_of(datagram):
    """The fields of an entry in the journal's own form."""
    fields = {}
    while datagram:
        line, datagram = datagram.split(b"\n", 1)
        name, equals, text = line.partition(b"=")
        if not equals:  # a length of 8 bytes, so many bytes
            length = int.from_bytes(datagram[:8], "little")
            text, datagram = datagram[8:8 + length], datagram[9 + length:]
        fields[name.decode()] = text.decode()
    return fields


class Journal:
    """A directory with a socket where the journal would listen, to stand in for /run."""

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory()
        os.makedirs(os.path.join(self.directory.name, "systemd/journal"))
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(os.path.join(self.directory.name, "systemd/journal/socket"))
        self.socket.settimeout(wire.TIMEOUT)
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.directory.cleanup()

    def serve(self, *options, **how):
        """A server that finds this journal."""
        run = subprocess.Popen
        with unittest.mock.patch("subprocess.Popen", lambda command, **rest: run(
                ALONE + [self.directory.name] + command, **rest, **how)):
            return Server(*options)

    def entry(self):
        return fields_of(self.socket.recv(65536))


def check_entry(fields):
    assert fields["MESSAGE"].startswith("client dropped: ") and fields["PRIORITY"] == "4", fields
    assert fields["SYSLOG_IDENTIFIER"] == "cownbd" and fields["COWNBD_CLIENT"] == "1", fields


def test_journal_has_fields():
    name = "two\nlines"
    with Journal() as journal, journal.serve("--log=journal", "--name", name) as server:
        provoke(server)
        fields = journal.entry()
        check_entry(fields)
        assert fields["COWNBD_EXPORT"] == name and server.errors() == ""


def test_journal_is_found_where_stderr_is_its():
    with Journal() as journal:
        # The log file of the test stands in for the stream that a service manager makes.
        script = ['sh', '-c', 'JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr) exec "$@"', 'sh']
        with unittest.mock.patch.dict(globals(), ALONE=script + ALONE), journal.serve() as server:
            provoke(server)
            check_entry(journal.entry())
        with journal.serve(env=dict(os.environ, JOURNAL_STREAM="1:2")) as server:
            provoke(server)
            assert "client dropped" in server.errors()


def test_refused():
    assert "--log-level is 'loud': must be error, warning, info or debug" in refused("--log-level", "loud")
    assert "choose one" in refused("--log-level", "info", "-v")
    assert "with a slash in it" in refused("--log", "somewhere")
    assert "syslog facility 'x' is not known" in refused("--log", "syslog:x")
    assert "cannot open /nonexistent/log" in refused("--log", "/nonexistent/log")


if __name__ == "__main__":
    wire.main(sys.modules[__name__])
