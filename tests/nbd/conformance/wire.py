"""One connection, spoken byte by byte: Connection is the handshake, Session the transmission phase.

Every receive has a time-out. What the document demands of any reply's form is checked here, whichever rule is being
tried; a server that breaks it is Wrong in that rule.
"""
import os
import socket
import ssl
import struct
import urllib.parse

from protocol import *
from rules import Missing, Untried, Wrong, expect

PAYLOAD_MAX = 96 << 20  # a longer reply is nonsense: nothing here asks for so much


class Closed(Wrong):
    """The server has closed the connection where the rule did not expect it."""

    def __init__(self):
        super().__init__("the server closed the connection")


class Target:
    """Where the server is, from a URI of https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md."""

    def __init__(self, uri):
        parts = urllib.parse.urlsplit(uri)
        query = urllib.parse.parse_qs(parts.query)
        path = urllib.parse.unquote(parts.path)
        self.export = (path[1:] if path.startswith("/") else path).encode()
        scheme = parts.scheme.replace("nbds", "nbd")
        self.tls = scheme != parts.scheme
        self.certificates = query.get("tls-certificates", [None])[0]
        self.host = parts.hostname or "localhost"
        if scheme == "nbd":
            self.family, self.address = None, (self.host, parts.port or 10809)
        elif scheme == "nbd+unix" and "socket" in query:
            self.family, self.address = socket.AF_UNIX, query["socket"][0]
        elif scheme == "nbd+vsock":
            self.family, self.address = socket.AF_VSOCK, (int(parts.hostname or 1), parts.port or 10809)
        else:
            raise ValueError(f"{uri}: must be nbd://HOST:PORT/NAME, nbd+unix:///NAME?socket=PATH or "
                             "nbd+vsock://CID:PORT/NAME, or the same with nbds")

    def tls_context(self):
        """The server's certificate is verified where there is an authority to ask."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if self.certificates:
            files = {name: os.path.join(self.certificates, f"{name}.pem")
                     for name in ("ca-cert", "client-cert", "client-key")}
            context.load_verify_locations(files["ca-cert"])
            context.verify_mode = ssl.CERT_REQUIRED
            if os.path.exists(files["client-cert"]):
                context.load_cert_chain(files["client-cert"], files["client-key"])
        return context

    def connect(self, timeout):
        if self.family is None:
            return socket.create_connection(self.address, timeout)
        connected = socket.socket(self.family)
        connected.settimeout(timeout)
        connected.connect(self.address)
        return connected


class Connection:
    """The handshake. client_flags None: they are not sent. tls: TLS begins behind client flags that allow it."""

    def __init__(self, target, timeout, client_flags=FIXED_NEWSTYLE | NO_ZEROES, tls=False):
        self.target = target
        self.socket = target.connect(timeout)
        self.export = target.export
        self.magic, self.option_magic, self.server_flags = struct.unpack(">QQH", self.receive(18))
        if client_flags is not None:
            self.send(struct.pack(">I", client_flags))
        if tls and client_flags in (FIXED_NEWSTYLE, FIXED_NEWSTYLE | NO_ZEROES):
            self.start_tls()

    def start_tls(self):
        outcome = self.outcome(OPT_STARTTLS)
        if outcome != REP_ACK:
            raise Missing(f"no TLS: {reply_name(outcome)}")
        self.handshake()

    def handshake(self):
        try:
            self.socket = self.target.tls_context().wrap_socket(self.socket)
        except ssl.SSLError as error:
            raise Wrong(f"TLS does not begin: {error.reason or error}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            raise Closed from None
        except TimeoutError:
            raise Wrong("the server stopped reading") from None

    def receive(self, length):
        data = bytearray()
        while len(data) < length:
            try:
                part = self.socket.recv(min(length - len(data), 1 << 20))
            except TimeoutError:
                raise Wrong("no answer") from None
            except (ConnectionResetError, ssl.SSLError):
                raise Closed from None
            if not part:
                raise Closed
            data += part
        return bytes(data)

    def is_closed(self):
        """The server hangs up without another byte."""
        try:
            self.receive(1)
        except Closed:
            return True
        except Wrong:
            pass
        return False

    def send_option(self, option, data=b""):
        self.send(struct.pack(">QII", OPTION_MAGIC, option, len(data)) + data)

    def option_reply(self, option):
        magic, echoed, kind, length = struct.unpack(">QIII", self.receive(20))
        expect(magic == OPTION_REPLY_MAGIC, f"an option reply with the magic {magic:#x}")
        expect(echoed == option, f"the reply to option {option} says option {echoed}")
        expect(length <= PAYLOAD_MAX, f"an option reply of {length} bytes")
        return kind, self.receive(length)

    def option(self, option, data=b""):
        """All replies up to the final one, as (type, data)."""
        self.send_option(option, data)
        replies = [self.option_reply(option)]
        while replies[-1][0] in (REP_SERVER, REP_INFO, REP_META_CONTEXT):
            replies.append(self.option_reply(option))
        return replies

    def outcome(self, option, data=b""):
        """The type of the final reply."""
        return self.option(option, data)[-1][0]

    def info(self, option=OPT_INFO, name=None, infos=()):
        """The final reply's type, and the infos as {type: data}."""
        replies = self.option(option, info_data(self.export if name is None else name, infos))
        found = {}
        for kind, data in replies[:-1]:
            expect(kind == REP_INFO and len(data) >= 2, f"{reply_name(kind)} in answer to INFO or GO")
            found[struct.unpack(">H", data[:2])[0]] = data[2:]
        return replies[-1][0], found

    def is_alive(self):
        """The handshake goes on: an option gets its answer."""
        return self.outcome(OPT_LIST, b"") is not None


def info_data(name, infos=()):
    return (struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
            + b"".join(struct.pack(">H", info) for info in infos))


def meta_data(name, queries):
    return (struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
            + b"".join(struct.pack(">I", len(query)) + query for query in queries))


class Reply:
    """A whole reply: error 0 or the first error; data of a READ; status as {context id: [(length, flags)]}."""

    def __init__(self):
        self.error, self.text, self.chunks, self.status = 0, "", [], {}
        self.simple = False
        self.kinds = []


class Session:
    """The transmission phase, over a Connection that GO has been answered on. style: simple, structured, extended."""

    def __init__(self, connection, style, size, flags, contexts):
        self.connection, self.style, self.size, self.flags = connection, style, size, flags
        self.contexts = contexts  # {id: name}
        self.cookie = 0x1122334455667700
        self.sent = {}  # cookie: (command, offset, length)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.socket.close()

    def has(self, flag):
        return bool(self.flags & flag)

    def pack(self, command, offset, length, flags, cookie):
        if self.style == "extended":
            return struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)
        return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length)

    def send(self, command, offset=0, length=0, flags=0, payload=b""):
        """Sends a request; returns its cookie. An extended WRITE gets its flag."""
        if self.style == "extended" and command == WRITE:
            flags ^= PAYLOAD_LEN  # who wants none of it gives it
        self.cookie += 1
        self.sent[self.cookie] = (command, offset, length)
        self.connection.send(self.pack(command, offset, length, flags, self.cookie) + payload)
        return self.cookie

    def request(self, command, offset=0, length=0, flags=0, payload=b""):
        cookie = self.send(command, offset, length, flags, payload)
        return self.collect()[cookie]

    def collect(self):
        """Receives until every request is answered: {cookie: Reply}."""
        replies, done = {}, {}
        while self.sent:
            cookie, last = self.take(replies)
            if last:
                done[cookie] = replies.pop(cookie)
                del self.sent[cookie]
        return done

    def take(self, replies):
        """One message. Returns its cookie and whether the reply is complete."""
        magic, = struct.unpack(">I", self.connection.receive(4))
        if magic == SIMPLE_REPLY_MAGIC:
            return self.take_simple(replies)
        if magic == STRUCTURED_REPLY_MAGIC:
            expect(self.style == "structured", f"a structured reply where {self.style} ones were negotiated")
            flags, kind, cookie, length = struct.unpack(">HHQI", self.connection.receive(16))
        elif magic == EXTENDED_REPLY_MAGIC:
            expect(self.style == "extended", f"an extended reply where {self.style} ones were negotiated")
            flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.connection.receive(28))
            expect(cookie in self.sent, f"a reply with the cookie {cookie:#x}, which no request had")
            expect(offset == self.sent[cookie][1], f"a reply header with the offset {offset}: not the request's")
        else:
            raise Wrong(f"a reply with the magic {magic:#x}")
        expect(cookie in self.sent, f"a reply with the cookie {cookie:#x}, which no request had")
        expect(length <= PAYLOAD_MAX, f"a reply of {length} bytes")
        reply = replies.setdefault(cookie, Reply())
        reply.kinds.append(kind)
        self.take_chunk(reply, cookie, kind, bool(flags & REPLY_DONE), self.connection.receive(length))
        return cookie, bool(flags & REPLY_DONE)

    def take_simple(self, replies):
        error, cookie = struct.unpack(">IQ", self.connection.receive(12))
        expect(cookie in self.sent, f"a reply with the cookie {cookie:#x}, which no request had")
        expect(self.style != "extended", "a simple reply after extended headers were negotiated")
        command, offset, length = self.sent[cookie]
        expect(self.style == "simple" or command != READ, "a simple reply to READ with structured replies")
        expect(self.style == "simple" or command != BLOCK_STATUS or error, "a simple reply to BLOCK_STATUS")
        expect(error in ERROR_NAMES, f"the error {error}, which is not one of the protocol's")
        reply = replies.setdefault(cookie, Reply())
        reply.simple, reply.error = True, error
        if command == READ and error == 0:
            reply.chunks.append((offset, length, self.connection.receive(length)))
        return cookie, True

    def take_chunk(self, reply, cookie, kind, done, payload):
        command, offset, length = self.sent[cookie]
        if kind == NONE:
            expect(done and not payload, "a NONE chunk that is not the last one or has a payload")
        elif kind in (OFFSET_DATA, OFFSET_HOLE):
            self.take_content(reply, (command, offset, length), kind, payload)
        elif kind in (STATUS, STATUS_EXT):
            expect(command == BLOCK_STATUS, f"a status chunk in answer to {COMMAND_NAMES[command]}")
            self.take_status(reply, kind, payload)
        elif kind & 0x8000:
            expect(len(payload) >= 6, f"an error chunk of {len(payload)} bytes")
            error, text_length = struct.unpack(">IH", payload[:6])
            expect(error != 0, "an error chunk with the error 0")
            expect(error in ERROR_NAMES, f"the error {error}, which is not one of the protocol's")
            expect(text_length <= min(4096, len(payload) - 6), f"an error text of {text_length} bytes")
            reply.error = reply.error or error
            reply.text = payload[6:6 + text_length].decode(errors="replace")
            expect("\0" not in reply.text and "\ufffd" not in reply.text, "an error text that is not UTF-8")
        else:
            raise Wrong(f"a chunk of the unknown type {kind}")

    @staticmethod
    def take_content(reply, sent, kind, payload):
        command, offset, length = sent
        expect(command == READ, f"content in answer to command {command}")
        if kind == OFFSET_DATA:
            expect(len(payload) > 8, "an OFFSET_DATA chunk without data")
            start, size = struct.unpack(">Q", payload[:8])[0], len(payload) - 8
            data = payload[8:]
        else:
            expect(len(payload) == 12, f"an OFFSET_HOLE chunk of {len(payload)} bytes")
            start, size = struct.unpack(">QI", payload)
            data = bytes(size) if size <= length else b""
        expect(size > 0 and start >= offset and start + size <= offset + length, "content outside the request")
        for other, other_size, _ in reply.chunks:
            expect(start + size <= other or other + other_size <= start, "two chunks with the same bytes")
        reply.chunks.append((start, size, data))

    def take_status(self, reply, kind, payload):
        if kind == STATUS_EXT:
            expect(self.style == "extended", "BLOCK_STATUS_EXT without extended headers")
            expect(len(payload) >= 24 and len(payload) % 16 == 8, f"a BLOCK_STATUS_EXT chunk of {len(payload)} bytes")
            context, count = struct.unpack(">II", payload[:8])
            expect(count in (0, len(payload) // 16), f"a count of {count} before {len(payload) // 16} descriptors")
            found = list(struct.iter_unpack(">QQ", payload[8:]))
        else:
            expect(len(payload) >= 12 and len(payload) % 8 == 4, f"a BLOCK_STATUS chunk of {len(payload)} bytes")
            context, = struct.unpack(">I", payload[:4])
            found = list(struct.iter_unpack(">II", payload[4:]))
        expect(context in self.contexts, f"status of the context {context}, which was not chosen")
        expect(context not in reply.status, f"status of the context {context} twice")
        expect(all(length > 0 for length, _ in found), "a descriptor of no bytes")
        reply.status[context] = found

    # What most rules need.

    def read(self, offset, length, flags=0):
        reply = self.request(READ, offset, length, flags)
        expect(reply.error == 0, f"READ of {length} bytes at {offset}: {error_name(reply.error)}")
        data = b"".join(content for _, _, content in sorted(reply.chunks))
        expect(len(data) == length, f"READ of {length} bytes gave {len(data)}")
        return data

    def do(self, command, offset=0, length=0, flags=0, payload=b""):
        """A request that has to succeed."""
        error = self.request(command, offset, length, flags, payload).error
        expect(error == 0, f"{COMMAND_NAMES[command]} of {length} bytes at {offset}: {error_name(error)}")

    def fails(self, wanted, command, offset=0, length=0, flags=0, payload=b""):
        """A request that has to fail with the error wanted, after which the connection goes on."""
        reply = self.request(command, offset, length, flags, payload)
        expect(reply.error == wanted,
               f"{COMMAND_NAMES[command]} gave {error_name(reply.error)}, wanted {error_name(wanted)}")
        self.goes_on()

    def goes_on(self):
        self.read(0, min(512, self.size))


class Probe:
    """The server under test: how to reach it, and what was found out about its export."""

    def __init__(self, target, timeout, may_write):
        self.target, self.timeout, self.may_write = target, timeout, may_write
        with self.connect() as connection:
            outcome, infos = connection.info(infos=(INFO_BLOCK_SIZE,))
        self.minimum, self.maximum = 1, 32 << 20
        if outcome == REP_ACK and len(infos.get(INFO_BLOCK_SIZE, b"")) == 12:
            self.minimum, _, self.maximum = struct.unpack(">III", infos[INFO_BLOCK_SIZE])
        with self.begin() as session:
            self.size, self.read_only = session.size, session.has(READ_ONLY)

    def connect(self, client_flags=FIXED_NEWSTYLE | NO_ZEROES):
        return Connection(self.target, self.timeout, client_flags, self.target.tls)

    def connect_plain(self):
        return Connection(self.target, self.timeout)

    def negotiate(self, connection, style):
        option = {"structured": OPT_STRUCTURED_REPLY, "extended": OPT_EXTENDED_HEADERS}.get(style)
        if option is not None and (outcome := connection.outcome(option)) != REP_ACK:
            expect(outcome & 1 << 31, f"{reply_name(outcome)} in answer to the option for {style} replies")
            raise Missing(f"no {style} replies: {reply_name(outcome)}")

    def choose(self, connection, queries, name=None):
        """SET_META_CONTEXT: {id: name}."""
        name = self.target.export if name is None else name
        replies = connection.option(OPT_SET_META_CONTEXT, meta_data(name, queries))
        if replies[-1][0] != REP_ACK:
            raise Missing(f"SET_META_CONTEXT: {reply_name(replies[-1][0])}")
        found = {}
        for kind, data in replies[:-1]:
            expect(kind == REP_META_CONTEXT and len(data) > 4, f"{reply_name(kind)} in answer to SET_META_CONTEXT")
            number, = struct.unpack(">I", data[:4])
            expect(number not in found, "two contexts with the same number")
            found[number] = data[4:]
        return found

    def begin(self, style="simple", contexts=()):
        """A Session on the export."""
        connection = self.connect()
        self.negotiate(connection, style)
        chosen = self.choose(connection, contexts) if contexts else {}
        if contexts and not chosen:
            raise Missing("the server has not the context " + contexts[0].decode())
        # Block sizes are asked for, so that a server that insists on them does not refuse.
        outcome, infos = connection.info(OPT_GO, infos=(INFO_BLOCK_SIZE,))
        expect(outcome == REP_ACK, f"GO: {reply_name(outcome)}")
        expect(len(infos.get(INFO_EXPORT, b"")) == 10, "GO without INFO_EXPORT of 12 bytes")
        return Session(connection, style, *struct.unpack(">QH", infos[INFO_EXPORT]), chosen)

    def room(self, length):
        if self.size < length:
            raise Untried(f"the export has only {self.size} bytes")

    def writing(self, length=0):
        """For rules that write: asks for the permission."""
        if self.read_only:
            raise Untried("the export is read-only")
        if not self.may_write:
            raise Untried("needs --write")
        self.room(length)
