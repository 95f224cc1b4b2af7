"""TLS: how it begins, what is forgotten, who is refused, how it ends; and who may do what.

Certificates are made once, below a directory of this run.
"""
import atexit
import fcntl
import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import termios
import time
import warnings

import pki
import wire
from handover import Relay, until
from wire import (BLOCK_STATUS, DISC, EINVAL, EPERM, ERR_INVALID, ERR_POLICY, ERR_UNKNOWN, FLUSH, OPT_ABORT,
                  OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT,
                  OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, OPTION_MAGIC, READ, REP_ACK,
                  REQUEST_MAGIC, WRITE, Client, Closed, Server, info_data, meta_data)

ERR_TLS_REQD = (1 << 31) + 5
READ_ONLY = 2
MB = 1 << 20

TOP = tempfile.mkdtemp(prefix="cownbd-tls.")
atexit.register(shutil.rmtree, TOP)
PKI = os.path.join(TOP, "pki")
KEYS = os.path.join(PKI, "keys.psk")


def make_everything():
    authority = pki.Authority(PKI)
    authority.sign("server", pki.SERVER)
    authority.sign("client", pki.CLIENT + ('dns_name = "client.example.org"', 'uri = "test:client"'))
    authority.sign("expired", dates=pki.EXPIRED)
    authority.sign("notyet", dates=pki.NOT_YET)
    authority.sign("purpose", pki.SERVER)
    authority.revoke(authority.sign("revoked")[0])
    pki.Authority(os.path.join(TOP, "other"), "Other Authority").sign("stranger")
    pki.write_keys(KEYS, alice="00112233445566778899aabbccddeeff", bob="ffeeddccbbaa99887766554433221100")
    return authority


AUTHORITY = make_everything()
CERTIFICATES = ("--tls-certificates", PKI)
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


def context(version=None, certificate=None, directory=PKI):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(os.path.join(PKI, "ca-cert.pem"))
    if version:
        made.minimum_version = made.maximum_version = version
    if certificate:
        made.load_cert_chain(*(os.path.join(directory, f"{certificate}-{what}.pem") for what in ("cert", "key")))
    return made


class TlsClient(Client):
    """A client that can begin TLS."""

    def start_tls(self, how=None):
        assert self.option(OPT_STARTTLS) == [(REP_ACK, b"")]
        self.structured = self.extended = False
        self.socket = (how or context()).wrap_socket(self.socket, server_hostname="localhost",
                                                     suppress_ragged_eofs=False)
        return self

    def receive(self, length):
        try:
            return super().receive(length)
        except ssl.SSLEOFError:
            raise AssertionError("the connection ended without close_notify") from None


class Pump(Client):
    """TLS whose records pass through our hands: out() gives what is to be sent, to be cut and changed."""

    def begin(self, how=None):
        assert self.option(OPT_STARTTLS) == [(REP_ACK, b"")]
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = (how or context()).wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        return self

    def out(self):
        return self.outgoing.read()

    def handshake(self, step):
        """Sends by step bytes."""
        while True:
            try:
                self.tls.do_handshake()
                return self.send_records(step)
            except ssl.SSLWantReadError:
                self.send_records(step)
                self.take()

    def send_records(self, step=1 << 20):
        data = self.out()
        for i in range(0, len(data), step):
            Client.send(self, data[i:i + step])

    def take(self):
        data = self.socket.recv(1 << 16)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    def encrypt(self, data):
        self.tls.write(data)
        return self.out()

    def use_tls(self):
        """From now on all goes through TLS as with any client."""
        self.send = lambda data: Client.send(self, self.encrypt(data))
        self.receive = self.receive_tls
        return self

    def receive_tls(self, length):
        parts = b""
        while len(parts) < length:
            try:
                part = self.tls.read(length - len(parts))
                if not part:
                    raise Closed
                parts += part
            except ssl.SSLWantReadError:
                self.take()
            except ssl.SSLZeroReturnError:
                raise Closed from None
        return parts


def serve(*options, **how):
    return Server("--tls=on", *CERTIFICATES, *options, **how)


def tls_client(server, how=None, **more):
    return TlsClient(server.address, **more).start_tls(how)


def test_everything_goes_through_tls():
    data = os.urandom(8 * MB + 77)
    with serve() as server:
        for version in VERSIONS:
            for extended in (False, True):
                with tls_client(server, context(version), extended=extended) as client:
                    assert client.socket.version().replace(".", "_") == version.name
                    client.go(b"disk.raw")
                    assert client.write(1, data) == 0
                    assert client.read(1, len(data)) == data
                    for length in (1, 511, 4095, 16383, 16384, 16385, 65537):
                        assert client.read(3, length) == data[2:2 + length]
                    assert client.request(FLUSH) == 0
                    client.send_request(DISC)
                    assert client.is_closed()


def test_many_requests_in_flight():
    with serve() as server, tls_client(server, structured=False) as client:
        client.go(b"disk.raw")
        data = os.urandom(MB)
        cookies = [client.send_request(WRITE, i * 40000, 40000, payload=data[:40000]) for i in range(50)]
        assert sorted(client.chunk()[0] for _ in cookies) == cookies
        sent = [client.send_request(READ, i * 20000, 20000) for i in range(100)]
        got = set()
        for _ in sent:
            cookie, done, kind, error = client.chunk()
            assert done and kind is None and error == 0
            start = sent.index(cookie) * 20000
            assert client.receive(20000) == data[start % 40000:start % 40000 + 20000]
            got.add(cookie)
        assert got == set(sent)


def test_a_client_that_reads_late_gets_all():
    with serve() as server, tls_client(server, structured=False) as client:
        client.go(b"disk.raw")
        data = os.urandom(MB)
        assert client.write(0, data) == 0
        sent = [client.send_request(READ, 0, MB) for _ in range(40)]
        with tls_client(server) as other:
            other.go(b"disk.raw")  # goes on meanwhile
        for _ in sent:
            assert client.chunk()[3] == 0 and client.receive(MB) == data


def test_old_versions_are_refused():
    with serve() as server:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            old = context(ssl.TLSVersion.TLSv1_1)
        old.set_ciphers("ALL:@SECLEVEL=0")
        try:
            tls_client(server, old)
            raise AssertionError("TLS 1.1 was taken")
        except ssl.SSLError:
            pass
        with tls_client(server) as client:
            client.go(b"disk.raw")


def test_starttls_has_no_data_and_comes_once():
    with serve() as server, TlsClient(server.address) as client:
        assert client.option(OPT_STARTTLS, b"x")[0][0] == ERR_INVALID
        client.start_tls()
        (kind, text), = client.option(OPT_STARTTLS)
        assert kind == ERR_INVALID and b"already" in text
        client.go(b"disk.raw")


def test_without_tls_starttls_is_refused():
    with Server() as server, server.connect() as client:
        (kind, text), = client.option(OPT_STARTTLS)
        assert kind == ERR_POLICY and b"TLS is off" in text
        client.go(b"disk.raw")


def test_what_was_negotiated_in_plain_is_forgotten():
    context_set = meta_data(b"disk.raw", (b"base:allocation",))
    with serve() as server:
        for negotiate in (Client.negotiate_structured, Client.negotiate_extended):
            with TlsClient(server.address, structured=False) as client:
                negotiate(client)
                assert client.option(OPT_SET_META_CONTEXT, context_set)[-1][0] == REP_ACK
                client.start_tls()
                assert client.option(OPT_SET_META_CONTEXT, context_set)[-1][0] == ERR_INVALID
                client.go(b"disk.raw")
                assert client.request(READ, 0, 0) == 0  # a simple reply, or this fails
                assert client.request(BLOCK_STATUS, 0, 512) == EINVAL
            with TlsClient(server.address) as client:
                negotiate(client)
                assert client.option(OPT_SET_META_CONTEXT, context_set)[-1][0] == REP_ACK
                client.start_tls()
                client.go(b"disk.raw", contexts=())  # structured replies again, and no context
                assert client.request(BLOCK_STATUS, 0, 512) == EINVAL
        with TlsClient(server.address) as client:
            client.negotiate_extended()
            client.start_tls()
            client.negotiate_extended()  # not "negotiated already"
            client.go(b"disk.raw")


def test_bytes_behind_starttls_are_never_taken_as_secret():
    """CVE-2021-3716: who sits between client and server puts options behind the client's STARTTLS."""
    option = struct.pack(">QII", OPTION_MAGIC, OPT_LIST, 0)
    starttls = struct.pack(">QII", OPTION_MAGIC, OPT_STARTTLS, 0)
    with serve(images=("secret.raw",)) as server:
        for behind in (option, option[:1], option[:15], option * 100, bytes(5), b"\x16\x03\x01\x00\x00"):
            with Client(server.address) as client:
                client.send(starttls + behind)
                got = drain(client)
                assert b"secret" not in got and len(got) <= 20 + 64, got
        with Pump(server.address) as client:  # in a later piece: taken for TLS, which it is not
            assert client.option(OPT_STARTTLS) == [(REP_ACK, b"")]
            client.send(option)
            got = drain(client)
            assert b"secret" not in got, got
        with Pump(server.address) as client:  # in front of a real handshake
            client.begin()
            client.send(option)
            try:
                client.handshake(1 << 20)
                raise AssertionError("the handshake went on behind plain bytes")
            except (ssl.SSLError, Closed, OSError):
                pass
        assert "plain bytes came behind STARTTLS" in server.errors()
        with tls_client(server) as client:
            assert client.go(b"secret.raw")


def drain(client):
    got = b""
    try:
        while True:
            got += client.receive(1)
    except Closed:
        return got


def test_require_says_nothing_before_tls():
    with Server("--tls=require", *CERTIFICATES, images=("secret.raw",)) as server:
        with TlsClient(server.address) as client:
            for option, data in ((OPT_LIST, b""), (OPT_INFO, info_data(b"secret.raw")),
                                 (OPT_GO, info_data(b"secret.raw")), (OPT_GO, info_data(b"none")),
                                 (OPT_GO, b"bad"), (OPT_STRUCTURED_REPLY, b""), (OPT_EXTENDED_HEADERS, b""),
                                 (OPT_LIST_META_CONTEXT, meta_data(b"secret.raw", ())),
                                 (OPT_SET_META_CONTEXT, meta_data(b"", ())), (77, b""), (4, b"x" * 100)):
                (kind, text), = client.option(option, data)
                assert kind == ERR_TLS_REQD and b"secret" not in text, (option, kind)
            client.start_tls()
            client.go(b"secret.raw")
        with Client(server.address) as client:
            client.send_option(OPT_EXPORT_NAME, b"secret.raw")
            assert client.is_closed()
        with Client(server.address) as client:
            assert client.option(OPT_ABORT) == [(REP_ACK, b"")]
            assert client.is_closed()


def refused(server, how):
    """The handshake fails, or what follows it (in TLS 1.3 a client ends before the server has looked)."""
    try:
        with tls_client(server, how) as client:
            client.go(b"disk.raw")
    except (ssl.SSLError, Closed, OSError, AssertionError):
        return
    raise AssertionError("a bad certificate was taken")


def test_every_wrong_certificate_is_refused_and_named():
    other = os.path.join(TOP, "other")
    for version in VERSIONS:
        with serve("--tls-verify-peer") as server:  # each: the log leaves out what comes too often
            for certificate, directory, text in (
                    (None, PKI, "has sent no certificate"),
                    ("expired", PKI, "'CN=expired,O=Example' has expired"),
                    ("notyet", PKI, "'CN=notyet,O=Example' is not valid yet"),
                    ("revoked", PKI, "'CN=revoked,O=Example' is revoked"),
                    ("purpose", PKI, "'CN=purpose,O=Example' is not for TLS clients"),
                    ("stranger", other, "'CN=stranger,O=Example' is not signed by an authority in ca-cert.pem")):
                refused(server, context(version, certificate, directory))
                until(lambda: text in server.errors())
            with tls_client(server, context(version, "client")) as client:
                client.go(b"disk.raw")


def test_a_handshake_byte_by_byte():
    with serve() as server:
        for version in VERSIONS:
            for step in (1, 2, 5, 6, 100):
                with Pump(server.address) as client:
                    client.begin(context(version)).handshake(step)
                    client.use_tls().go(b"disk.raw")
                    assert client.write(0, b"x" * 100) == 0


def test_records_byte_by_byte():
    with serve() as server, Pump(server.address) as client:
        client.begin().handshake(1 << 20)
        client.use_tls()
        client.send = lambda data: [Client.send(client, bytes([byte])) for byte in client.encrypt(data)]
        client.go(b"disk.raw")
        data = os.urandom(3000)
        assert client.write(17, data) == 0 and client.read(17, 3000) == data


def is_dropped(server, say=lambda client: None):
    """Begins TLS, says something and waits for the end; which may come at any time, on a slow machine early."""
    try:
        with Pump(server.address) as client:
            client.begin()
            say(client)
            return client.is_closed()
    except Closed:
        return True


def waiting(client):
    """Bytes that the server has sent and nobody has read."""
    return struct.unpack("i", fcntl.ioctl(client.socket, termios.FIONREAD, bytes(4)))[0]


def test_output_that_leaves_while_a_request_comes_is_followed_by_the_rest():
    """What the socket did not take may leave when the next request is received, not by an event of its own."""
    length = 16 << 10

    def reader(count):
        client = Pump(server.address, structured=False).begin()
        client.handshake(1 << 20)
        client.use_tls().go()
        client.send(read * count)
        other.read(0, 1)  # the one worker has done what came before
        return client

    read = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 1, 0, length)
    with serve("-t", "1") as server, tls_client(server) as other:
        other.go()
        assert other.write(0, b"x" * length) == 0
        with reader(8 * MB // length) as client:
            full = waiting(client) // length
        for count in range(full - 1, full + 6):  # some fill the socket, and what is left is TLS's: nothing is queued
            with reader(count) as client:
                client.incoming.write(client.socket.recv(waiting(client) // 2))
                client.send(read[:1])
                other.read(0, 1)
                client.send(read[1:])
                for _ in range(count + 1):
                    assert client.chunk() == (1, True, None, 0) and client.receive(length) == b"x" * length


def test_a_silent_handshake_is_dropped():
    def dribble(client):
        """Steps, but no end."""
        try:
            client.tls.do_handshake()
        except ssl.SSLWantReadError:
            hello = client.out()
        for i in range(len(hello) - 1):
            client.send(hello[i:i + 1])
            time.sleep(0.1)
        raise AssertionError("the server waits for ever")

    with serve("--handshake-timeout", "1") as server:
        assert is_dropped(server)
        assert is_dropped(server, dribble)


def test_truncated_and_changed_records():
    with serve() as server:
        request = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, 1, 0, 20000) + b"z" * 20000
        for cut in (1, 4, 5, 6, 20, 45, 60, 1000, 16000, 16440, 20000, -2, -1):
            with Pump(server.address, structured=False) as client:
                client.begin().handshake(1 << 20)
                client.use_tls().go(b"disk.raw")
                Client.send(client, client.encrypt(request)[:cut])
        for place in (0, 1, 3, 5, 30, 1000, -1):
            with Pump(server.address, structured=False) as client:
                client.begin().handshake(1 << 20)
                client.use_tls().go(b"disk.raw")
                records = bytearray(client.encrypt(request))
                records[place] ^= 0x41
                Client.send(client, bytes(records))
                try:
                    while True:
                        client.receive(1)
                except (Closed, ssl.SSLError, OSError):
                    pass
        with tls_client(server) as client:
            client.go(b"disk.raw")
            assert client.read(0, 20000) == bytes(20000)


def test_both_ends_say_goodbye():
    with serve() as server:
        for version in VERSIONS:
            with tls_client(server, context(version)) as client:
                client.go(b"disk.raw")
                client.send_request(DISC)
                assert client.socket.recv(1) == b""  # close_notify; else an error
            with tls_client(server, context(version)) as client:
                assert client.option(OPT_ABORT) == [(REP_ACK, b"")]
                assert client.socket.recv(1) == b""
            with Pump(server.address) as client:
                client.begin(context(version)).handshake(1 << 20)
                client.use_tls().go(b"disk.raw")
                try:
                    client.tls.unwrap()
                except ssl.SSLWantReadError:
                    Client.send(client, client.out())
                while True:  # until the server's own has come
                    try:
                        client.take()
                        client.tls.unwrap()
                        break
                    except ssl.SSLWantReadError:
                        pass
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(wire.TIMEOUT) == 0


def test_a_server_that_stops_says_goodbye():
    with serve() as server, tls_client(server) as client:
        client.go(b"disk.raw")
        server.process.send_signal(signal.SIGTERM)
        assert client.socket.recv(1) == b""
        assert server.process.wait(wire.TIMEOUT) == 0


def certificate_of(client):
    return client.socket.getpeercert(binary_form=True)


def test_certificates_are_read_again():
    directory = os.path.join(TOP, "reload")
    shutil.copytree(PKI, directory)
    with Server("--tls=on", "--tls-certificates", directory, "-v") as server:
        def reload(text):
            before = server.errors().count(text)
            server.process.send_signal(signal.SIGHUP)
            until(lambda: server.errors().count(text) > before)

        with tls_client(server) as first:
            first.go(b"disk.raw")
            for name in ("server-cert.pem", "server-key.pem"):
                os.rename(os.path.join(directory, name), os.path.join(directory, "old-" + name))
            reload("server-cert.pem")  # there is none: the old one stays
            with tls_client(server) as client:
                assert certificate_of(client) == certificate_of(first)
            for what in ("cert", "key"):
                shutil.copy(os.path.join(PKI, f"purpose-{what}.pem"), os.path.join(directory, f"server-{what}.pem"))
            with open(os.path.join(directory, "ca-crl.pem"), "w") as out:
                out.write("nonsense")
            reload("ca-crl.pem")
            with tls_client(server) as client:
                assert certificate_of(client) == certificate_of(first)
            os.unlink(os.path.join(directory, "ca-crl.pem"))
            shutil.copy(os.path.join(PKI, "client-key.pem"), os.path.join(directory, "server-key.pem"))
            reload("must be the key of")
            shutil.copy(os.path.join(PKI, "purpose-key.pem"), os.path.join(directory, "server-key.pem"))
            reload("are read again")
            with tls_client(server) as client:
                assert certificate_of(client) != certificate_of(first)
                client.go(b"disk.raw")
            assert first.write(0, b"still here") == 0


def test_a_handover_ends_tls_in_order_and_keeps_the_rest():
    with Relay("--tls=on", *CERTIFICATES, "--handshake-timeout", "0") as server:
        with tls_client(server) as secret, Client(server.address) as plain, TlsClient(server.address) as half, \
                tls_client(server) as early:
            secret.go(b"disk.raw")
            plain.go(b"disk.raw")
            assert secret.write(0, b"secret") == 0
            server.handover()
            assert secret.socket.recv(1) == b"" and early.socket.recv(1) == b""
            assert plain.read(0, 6) == b"secret"
            half.start_tls().go(b"disk.raw")  # with the new process
            assert half.read(0, 6) == b"secret"
        with tls_client(server) as client:
            client.go(b"disk.raw")
            assert server.refused_handover(server.script("exit 1"))
            assert client.read(0, 6) == b"secret"  # nothing has happened to it
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: not os.path.exists(server.control))


# Who may do what


def view(client, name=b"disk.raw"):
    """(is listed, may be read, may be written)"""
    listed = any(name in data for kind, data in client.option(OPT_LIST))
    kind = client.option(OPT_INFO, info_data(name))[-1][0]
    if kind != REP_ACK:
        assert kind == (ERR_POLICY if listed else ERR_UNKNOWN), kind
        unknown = client.option(OPT_INFO, info_data(b"x" * len(name)))[-1]
        text = client.option(OPT_INFO, info_data(name))[-1][1]
        assert listed or unknown[1].replace(b"x" * len(name), name) == text  # not to be told apart
        (bad, _), = client.option(OPT_LIST_META_CONTEXT, meta_data(name, ())) if client.structured else ((0, 0),)
        assert bad in (0, kind)
        return listed, False, False
    client.go(name)
    assert client.read(0, 4) is not None
    error = client.write(0, b"test")
    assert error == (EPERM if client.flags & READ_ONLY else 0)
    return listed, True, error == 0


NOTHING, ALL = (False, False, False), (True, True, True)


def keys_of_the_kernel():
    """How many keys a socket takes here, one after another: 0, 1 or 2."""
    key = struct.pack("=HH", 0x0304, 51) + bytes(36)  # TLS 1.3, AES-128-GCM
    with socket.create_server(("127.0.0.1", 0)) as listener, \
            socket.create_connection(listener.getsockname()), listener.accept()[0] as one:
        for taken in range(2):
            try:
                if taken == 0:
                    one.setsockopt(socket.IPPROTO_TCP, 31, b"tls")
                one.setsockopt(282, 1, key)
            except OSError:
                return taken
        return 2


def makes_records(server):
    """Who makes them, by client."""
    answer = run(os.environ["COWNBD"], "list", "--json", "--control", os.path.join(server.directory, "control"))
    return [client.get("tls") for client in json.loads(answer.stdout)["clients"]]


def test_records_are_made_by_the_kernel_where_it_can():
    keys, data = keys_of_the_kernel(), os.urandom(3 * MB + 77)
    for mode, needed in (("on", 1), ("auto", 2), ("off", 3)):
        with serve(f"--ktls={mode}", "--log-level=debug", control=True, listen=("127.0.0.1:0",)) as server:
            port = int(server.lines[1].rsplit(":", 1)[1].strip("/"))
            by = "kernel" if keys >= needed else "server"
            for version in VERSIONS:
                with tls_client(server, context(version)) as local, \
                        TlsClient(("127.0.0.1", port)).start_tls(context(version)) as remote, \
                        Client(server.address) as plain:
                    for client in (local, remote, plain):
                        client.go(b"disk.raw")
                    assert remote.write(1, data) == 0
                    for length in (1, 511, 16384, 16385, len(data)):
                        assert remote.read(1, length) == data[:length]
                    assert remote.request(FLUSH) == 0
                    assert makes_records(server) == ["server", by, None], (mode, keys)
                    remote.send_request(DISC)
                    assert remote.is_closed()  # which asserts close_notify
            assert ("this kernel has no TLS" in server.errors()) == (mode == "on" and keys == 0)


def test_rules_by_user_and_address():
    me = os.getuid()
    for rules, local, remote in (
            ((), ALL, ALL),
            ((f"uid:{me}=all",), ALL, NOTHING),
            ((f"uid:{me + 1}=all",), NOTHING, NOTHING),
            (("ip:127.0.0.0/8=list,read",), NOTHING, (True, True, False)),
            (("ip:127.0.0.1=write", f"uid:{me}=list"), (True, False, False), (False, True, True)),
            (("ip:10.0.0.0/8=all", "any=read"), (False, True, False), (False, True, False)),
            (("ip:::1=all",), NOTHING, NOTHING),
            (("any=none",), NOTHING, NOTHING)):
        options = [f"--allow={rule}" for rule in rules]
        with Server(*options, listen=("127.0.0.1:0",)) as server:
            port = int(server.lines[1].rsplit(":", 1)[1].strip("/"))
            for address, expected in ((server.address, local), (("127.0.0.1", port), remote)):
                with Client(address) as client:
                    client.negotiate_structured()
                    assert view(client) == expected, (rules, address)


def test_an_export_that_may_not_be_read_hangs_up_export_name():
    with Server("--allow=any=list") as server, server.connect() as client:
        client.send_option(OPT_EXPORT_NAME, b"disk.raw")
        assert client.is_closed()


def test_an_export_for_tls_clients_is_not_there_in_plain():
    with serve("--allow=tls=all") as server:
        with TlsClient(server.address) as client:
            client.negotiate_structured()
            assert view(client) == NOTHING
        with TlsClient(server.address) as client:
            assert client.option(OPT_GO, info_data(b""))[-1][0] == ERR_UNKNOWN  # nor as the default
            client.start_tls()
            assert view(client) == ALL


def test_rules_by_certificate():
    rules = ("dn:CN=client,O=Example=all", "any=list")
    with serve("--tls-verify-peer", *(f"--allow={rule}" for rule in rules)) as server:
        with Client(server.address) as client:
            assert view(client) == (True, False, False)
        with TlsClient(server.address) as client:
            assert client.option(OPT_INFO, info_data(b"disk.raw"))[-1][0] == ERR_POLICY
            client.start_tls(context(certificate="client"))
            assert view(client) == ALL
        with tls_client(server, context(certificate="client")) as client:
            client.send_option(OPT_EXPORT_NAME, b"disk.raw")
            size, flags = struct.unpack(">QH", client.receive(10))
            assert not flags & READ_ONLY
    for name, expected in (("client.example.org", (False, True, False)), ("test:client", (False, True, False)),
                           ("example.org", NOTHING)):
        with serve("--tls-verify-peer", f"--allow=san:{name}=read") as server:
            with tls_client(server, context(certificate="client")) as client:
                assert view(client) == expected, name
            with Client(server.address) as client:
                assert view(client) == NOTHING


# Other programs


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=wire.TIMEOUT)


def psk_uri(server, user, keys, name="disk.raw"):
    return f"nbds+unix://{user}@localhost/{name}?socket={server.address}&tls-psk-file={keys}"


def test_pre_shared_keys_and_rules_by_user():
    wrong = os.path.join(TOP, "wrong.psk")
    pki.write_keys(wrong, alice="0" * 32, carol="00112233445566778899aabbccddeeff")
    with Server("--tls=require", "--tls-psk", KEYS, "--allow=psk:alice=all", "--allow=psk:bob=read") as server:
        for user, read_only in (("alice", "2"), ("bob", "0")):
            assert run("nbdinfo", "--size", psk_uri(server, user, KEYS)).stdout == f"{16 * MB}\n"
            assert str(run("nbdinfo", "--is", "read-only", psk_uri(server, user, KEYS)).returncode) == read_only
        assert "disk.raw" in run("nbdinfo", "--list", psk_uri(server, "alice", KEYS, "")).stdout
        assert "disk.raw\"" not in run("nbdinfo", "--list", psk_uri(server, "bob", KEYS, "")).stdout
        for user, text in (("alice", "the client has another key for user 'alice'"),
                           ("carol", "there is no user 'carol' in the file of keys")):
            assert run("nbdinfo", "--size", psk_uri(server, user, wrong)).returncode != 0
            until(lambda: text in server.errors())


def test_libnbd_and_qemu_with_certificates():
    with serve("--tls-verify-peer", size=64 * MB) as server:
        source, copy = os.path.join(server.directory, "source"), os.path.join(server.directory, "copy")
        with open(source, "wb") as out:
            for i in range(32):
                out.write(os.urandom(MB) + bytes(MB))
        uri = f"nbds+unix://localhost/disk.raw?socket={server.address}&tls-certificates={PKI}"
        shown = run("nbdinfo", uri)
        assert "newstyle-fixed with TLS" in shown.stdout, shown
        for connections in ("1", "4"):
            for where in ((source, uri), (uri, copy)):
                done = run("nbdcopy", "-C", connections, *where)
                assert done.returncode == 0, done
            assert run("cmp", source, copy).returncode == 0
            os.unlink(copy)
        objects = ("--object", f"tls-creds-x509,id=t,endpoint=client,dir={PKI},verify-peer=on")
        image = (f"driver=nbd,server.type=unix,server.path={server.address},export=disk.raw,"
                 "tls-creds=t,tls-hostname=localhost")
        done = run("qemu-img", "convert", *objects, "--image-opts", image, "-O", "raw", copy)
        assert done.returncode == 0, done
        assert run("cmp", source, copy).returncode == 0
        done = run("qemu-img", "convert", *objects, "-n", "--target-image-opts", "-f", "raw", source, image)
        assert done.returncode == 0, done


def test_what_cannot_work_is_refused_at_the_start():
    empty = os.path.join(TOP, "empty")
    os.makedirs(empty, exist_ok=True)
    bad = os.path.join(TOP, "bad.psk")
    image = os.path.join(TOP, "image")
    with open(image, "wb") as out:
        out.truncate(MB)
    for options, text in (
            (("--tls=maybe",), "must be off, on or require"),
            (("--tls=on",), "nothing to prove who this server is"),
            (("--tls-psk", KEYS), "certificates or keys without TLS"),
            (("--tls=on", "--tls-psk", KEYS, "--tls-verify-peer"), "needs ca-cert.pem"),
            (("--tls=on", "--tls-certificates", empty), "server-cert.pem"),
            (("--tls=on", "--tls-psk", empty), "empty"),
            (("--tls=on", "--tls-psk", KEYS, "--ktls=maybe"), "must be auto, on or off"),
            (("--ktls=on",), "without TLS"),
            (("--allow=nonsense",), "must be WHO=RIGHTS"),
            (("--allow=psk:alice=read",), "needs keys"),
            (("--allow=tls=read",), "need TLS"),
            (("--allow=dn:CN=a=read",), "need verified certificates"),
            (("--tls=on", *CERTIFICATES, "--allow=san:a=read"), "need verified certificates")):
        result = run(os.environ["COWNBD"], "serve", *options, image)
        assert result.returncode == 1 and text in result.stderr and result.stderr.count("\n") == 1, result
    for content in ("alice\n", "alice:\n", ":00\n", "alice:xyz\n", "alice:0\n", "alice:00\nalice:01\n",
                    "alice:" + "00" * 513 + "\n", "ok:00\n\0", "#zz:00\n"):
        with open(bad, "w") as out:
            out.write(content)
        result = run(os.environ["COWNBD"], "serve", "--tls=on", "--tls-psk", bad, image)
        assert result.returncode == 1 and bad in result.stderr and result.stderr.count("\n") == 1, (content, result)


if __name__ == "__main__":
    wire.main(sys.modules[__name__])
