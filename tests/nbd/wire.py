"""NBD spoken byte by byte, for tests that must send what no client library would.

Server runs the program under test ($COWNBD) on a socket in a directory of its own; Client is one connection. Every
receive has a time-out: a server that does not answer is a failure, not a hang.
"""
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback

TIMEOUT = 120  # seconds: a request of gigabytes takes that long under a sanitizer on a busy machine

INIT_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_REPLY_MAGIC = 0x6E8A278C

(OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY,
 OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_EXTENDED_HEADERS) = (1, 2, 3, 5, 6, 7, 8, 9, 10, 11)
REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN, ERR_SHUTDOWN, ERR_TOO_BIG, ERR_EXT_HEADER_REQD = (
    (1 << 31) + n for n in (1, 2, 3, 6, 7, 9, 10))
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, RESIZE = range(9)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
NONE, OFFSET_DATA, OFFSET_HOLE, STATUS, STATUS_EXT, ERROR = 0, 1, 2, 5, 6, 0x8001
EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108


def memory_limit(length):
    """What a server may grow by; a sanitizer's shadow memory counts several times."""
    with open(os.environ["COWNBD"], "rb") as program:
        return length * (8 if b"__tsan_" in (code := program.read()) or b"__asan_" in code else 1)


class Closed(Exception):
    """The server has closed the connection."""


class Client:
    """One connection. structured and extended say what go() negotiates."""

    def __init__(self, address, flags=3, structured=True, extended=False):
        self.socket = self.dial(address)
        self.cookie = 0
        self.structured = self.extended = False
        self.want_structured, self.want_extended = structured, extended
        magic, option_magic, self.server_flags = struct.unpack(">QQH", self.receive(18))
        assert magic == INIT_MAGIC and option_magic == OPTION_MAGIC
        if flags is not None:
            self.send(struct.pack(">I", flags))

    def dial(self, address):
        if isinstance(address, str):
            made = socket.socket(socket.AF_UNIX)
        else:
            made = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        made.settimeout(TIMEOUT)
        made.connect(address)
        return made

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Closed from None

    def receive(self, length):
        parts = []
        while length > 0:
            try:
                part = self.socket.recv(min(length, 1 << 20))
            except ConnectionResetError:
                raise Closed from None
            if not part:
                raise Closed
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    # handshake

    def send_option(self, option, data=b"", length=None):
        self.send(struct.pack(">QII", OPTION_MAGIC, option, len(data) if length is None else length)
                  + data)

    def option_reply(self, option):
        magic, echoed, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == OPTION_REPLY_MAGIC and echoed == option, (hex(magic), echoed)
        return kind, self.receive(length)

    def option(self, option, data=b""):
        """All replies up to the final one, as (type, data)."""
        self.send_option(option, data)
        return self.option_replies(option)

    def option_replies(self, option):
        replies = [self.option_reply(option)]
        while replies[-1][0] in (REP_SERVER, REP_INFO, REP_META_CONTEXT):
            replies.append(self.option_reply(option))
        return replies

    def negotiate_structured(self):
        assert self.option(OPT_STRUCTURED_REPLY) == [(REP_ACK, b"")]
        self.structured = True

    def negotiate_extended(self):
        assert self.option(OPT_EXTENDED_HEADERS) == [(REP_ACK, b"")]
        self.structured = self.extended = True

    def go(self, name=b"", contexts=(b"base:allocation",)):
        if self.want_extended:
            self.negotiate_extended()
        if self.want_structured:
            if not self.structured:
                self.negotiate_structured()
            if contexts:
                replies = self.option(OPT_SET_META_CONTEXT, meta_data(name, contexts))
                assert replies[-1][0] == REP_ACK
                self.context = struct.unpack(">I", replies[0][1][:4])[0]
        replies = self.option(OPT_GO, info_data(name))
        assert replies[-1] == (REP_ACK, b""), replies
        for _, data in replies[:-1]:
            if data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])
        return self

    # transmission

    def send_request(self, command, offset=0, length=0, flags=0, payload=b"", cookie=None):
        self.cookie += 1
        cookie = self.cookie if cookie is None else cookie
        if self.extended:
            flags |= PAYLOAD_LEN if payload else 0
            header = struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)
            self.offset = offset
        else:
            header = struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length)
        self.send(header + payload)
        return cookie

    def chunk(self):
        """One simple reply (type None) or one chunk: (cookie, done, type, error or payload)."""
        magic, = struct.unpack(">I", self.receive(4))
        if self.extended:
            assert magic == EXTENDED_REPLY_MAGIC, hex(magic)
            flags, kind, cookie, self.reply_offset, length = struct.unpack(">HHQQQ", self.receive(28))
            return cookie, bool(flags & 1), kind, self.receive(length)
        if magic == SIMPLE_MAGIC:
            error, cookie = struct.unpack(">IQ", self.receive(12))
            return cookie, True, None, error
        assert magic == STRUCTURED_MAGIC and self.structured, hex(magic)
        flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
        return cookie, bool(flags & 1), kind, self.receive(length)

    def request(self, command, offset=0, length=0, flags=0, payload=b""):
        """Sends and takes the reply: the error, 0 for success."""
        cookie = self.send_request(command, offset, length, flags, payload)
        got, done, kind, value = self.chunk()
        assert got == cookie and done
        assert not self.extended or self.reply_offset == offset
        if kind is None:
            return value
        if kind == NONE:
            return 0
        assert kind == ERROR, kind
        error, text_length = struct.unpack(">IH", value[:6])
        self.text = value[6:].decode()
        assert len(value) == 6 + text_length and error != 0
        return error

    def write(self, offset, data, flags=0):
        return self.request(WRITE, offset, len(data), flags, data)

    def read_chunks(self, offset, length, flags=0):
        """The content chunks of a structured READ as (offset, length, bytes or None for a hole)."""
        cookie = self.send_request(READ, offset, length, flags)
        chunks, done = [], False
        while not done:
            got, done, kind, payload = self.chunk()
            assert got == cookie and kind in (NONE, OFFSET_DATA, OFFSET_HOLE), (kind, payload)
            if kind == OFFSET_DATA:
                start, = struct.unpack(">Q", payload[:8])
                chunks.append((start, len(payload) - 8, payload[8:]))
            elif kind == OFFSET_HOLE:
                chunks.append(struct.unpack(">QI", payload) + (None,))
        return chunks

    def read(self, offset, length, flags=0):
        if not self.structured:
            cookie = self.send_request(READ, offset, length, flags)
            assert self.chunk() == (cookie, True, None, 0)
            return self.receive(length)
        data = bytearray(b"\xee" * length)
        covered = 0
        for start, size, content in self.read_chunks(offset, length, flags):
            assert offset <= start and start + size <= offset + length and size > 0
            data[start - offset:start - offset + size] = bytes(size) if content is None else content
            covered += size
        assert covered == length
        return bytes(data)

    def status(self, offset, length, flags=0):
        cookie = self.send_request(BLOCK_STATUS, offset, length, flags)
        got, done, kind, payload = self.chunk()
        assert got == cookie and done and kind == STATUS, (kind, payload)
        assert struct.unpack(">I", payload[:4])[0] == self.context
        return list(struct.iter_unpack(">II", payload[4:]))

    def statuses(self, offset, length, flags=0, payload=b""):
        """{context number: descriptors} of a BLOCK_STATUS."""
        cookie = self.send_request(BLOCK_STATUS, offset, length, flags, payload)
        found, done = {}, False
        while not done:
            got, done, kind, answer = self.chunk()
            assert got == cookie and kind == (STATUS_EXT if self.extended else STATUS), (kind, answer)
            number, = struct.unpack(">I", answer[:4])
            assert number not in found
            if self.extended:
                assert struct.unpack(">I", answer[4:8])[0] * 16 + 8 == len(answer)
            found[number] = list(struct.iter_unpack(">QQ", answer[8:]) if self.extended
                                 else struct.iter_unpack(">II", answer[4:]))
        return found

    def is_closed(self):
        """The server hangs up without another byte."""
        try:
            return self.receive(1) is None
        except Closed:
            return True


def info_data(name, infos=()):
    return (struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
            + b"".join(struct.pack(">H", info) for info in infos))


def meta_data(name, queries):
    return (struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
            + b"".join(struct.pack(">I", len(query)) + query for query in queries))


class Server:
    """The program under test, serving images of a directory that goes away with it."""

    def __init__(self, *options, size=16 << 20, images=("disk.raw",), listen=(), open_files=None,
                 image_format="raw", control=False, prepare=None, pass_fds=()):
        self.directory = tempfile.mkdtemp(prefix="cownbd-wire.")
        self.address = os.path.join(self.directory, "socket")
        self.images = [os.path.join(self.directory, image) for image in images]
        for image in self.images:
            if image_format == "raw":
                with open(image, "wb") as out:
                    out.truncate(size)
            else:
                subprocess.run(["qemu-img", "create", "-q", "-f", image_format, image, str(size)],
                               check=True)
            if prepare:
                prepare(image)
        command = [os.environ["COWNBD"], "serve", "-f", image_format, "-l", "unix:" + self.address,
                   "--control", os.path.join(self.directory, "control") if control else "none",
                   "--handshake-timeout", "0"]  # a server that hangs up does so for the reason of the test
        for address in listen:
            command += ["-l", address]

        def limit():
            if open_files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))

        self.log = open(os.path.join(self.directory, "log"), "w+b")
        self.process = subprocess.Popen(command + list(options) + self.images, preexec_fn=limit,
                                        pass_fds=pass_fds, stdout=subprocess.PIPE, stderr=self.log)
        self.lines = []
        for _ in range(1 + len(listen)):
            self.lines.append(self.process.stdout.readline().decode().strip())
            assert self.lines[-1].startswith("listening on "), self.errors()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if self.process.poll() is None:
                status = self.stop()
                assert kind or status == 0, f"the server ended with {status}: {self.errors()}"
                assert kind or "sandbox: denied" not in self.errors(), self.errors()
            elif not kind:
                assert self.process.returncode == 0, self.errors()
        finally:
            self.process.stdout.close()
            self.log.close()
            shutil.rmtree(self.directory)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def errors(self):
        self.log.flush()
        with open(self.log.name, "rb") as log:
            return log.read().decode(errors="replace")

    def connect(self, **how):
        return Client(self.address, **how)

    def memory(self, field="VmRSS"):
        """Bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) << 10
        raise KeyError(field)

    def cpu(self):
        """Seconds used."""
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(module):
    """Runs every function test_NAME of a module (those named on the command line only); says which failed."""
    wanted = sys.argv[1:]
    bad = 0
    for name, test in list(vars(module).items()):
        if name.startswith("test_") and (not wanted or name[5:] in wanted):
            try:
                test()
                print(f"ok {name[5:]}", flush=True)
            except Exception:  # whatever it is, it is this test's failure and the next ones still run
                bad += 1
                print(f"not ok {name[5:]}", flush=True)
                traceback.print_exc(file=sys.stdout)
    sys.exit(bad > 0)
