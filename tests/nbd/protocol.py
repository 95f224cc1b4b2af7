"""The protocol, byte by byte: every option, command, flag and error, and what is malformed."""
import os
import socket
import struct
import subprocess
import sys
import tempfile

from wire import *

SIZE = 16 << 20
MAX = 64 << 20

# Greeting and client flags


def test_greeting_offers_fixed_newstyle_and_no_zeroes():
    with Server() as server, server.connect() as client:
        assert client.server_flags == 3


def test_unknown_client_flags_drop_the_connection():
    with Server() as server:
        for flags in (4, 7, 1 << 31 | 3):
            with server.connect(flags=flags) as client:
                try:
                    client.send_option(OPT_LIST)
                except Closed:
                    continue
                assert client.is_closed()


def test_without_fixed_newstyle_only_export_name():
    with Server() as server:
        with server.connect(flags=0) as client:
            client.send_option(OPT_LIST)
            assert client.is_closed()
        with server.connect(flags=0) as client:
            client.send_option(OPT_EXPORT_NAME)
            assert struct.unpack(">QH", client.receive(134)[:10])[0] == SIZE


# Options


def test_export_name():
    for flags, zeroes in ((1, 124), (3, 0)):
        with Server() as server, server.connect(flags=flags, structured=False) as client:
            client.send_option(OPT_EXPORT_NAME, b"disk.raw")
            reply = client.receive(10 + zeroes)
            size, transmission = struct.unpack(">QH", reply[:10])
            assert size == SIZE and transmission & 1 and reply[10:] == bytes(zeroes)
            assert not transmission & 0x80  # DF without structured replies
            assert client.read(0, 512) == bytes(512)


def test_export_name_unknown_or_too_long_hangs_up():
    with Server() as server:
        for name in (b"nothing", b"x" * 5000, b"x" * 100000):
            with server.connect() as client:
                try:
                    client.send_option(OPT_EXPORT_NAME, name)
                except Closed:
                    continue
                assert client.is_closed()


def test_go_and_info_describe_the_export():
    with Server() as server:
        with server.connect() as client:
            client.negotiate_structured()
            data = info_data(b"", (INFO_BLOCK_SIZE, INFO_NAME, INFO_DESCRIPTION, 999, INFO_NAME))
            for option in (OPT_INFO, OPT_INFO, OPT_GO):
                replies = client.option(option, data)
                assert replies[-1] == (REP_ACK, b"")
                infos = {struct.unpack(">H", d[:2])[0]: d[2:] for _, d in replies[:-1]}
                size, flags = struct.unpack(">QH", infos[INFO_EXPORT])
                assert size == SIZE
                # all but READ_ONLY and ROTATIONAL
                assert flags == 0b110111101101, bin(flags)
                assert struct.unpack(">III", infos[INFO_BLOCK_SIZE]) == (1, 4096, MAX)
                assert infos[INFO_NAME] == b"disk.raw"
                assert len(infos) == len(replies) - 1
            assert client.read(0, 100) == bytes(100)


def test_info_without_wishes_gives_the_export_only():
    with Server() as server, server.connect() as client:
        replies = client.option(OPT_INFO, info_data(b"disk.raw"))
        assert [kind for kind, _ in replies] == [REP_INFO, REP_ACK]
        assert not struct.unpack(">HQH", replies[0][1])[2] & 0x80


def test_unknown_export_is_refused_with_a_text():
    with Server() as server, server.connect() as client:
        for option in (OPT_INFO, OPT_GO):
            (kind, text), = client.option(option, info_data(b"nothing"))
            assert kind == ERR_UNKNOWN and b"nothing" in text
        client.go()


def test_malformed_info_is_invalid_and_keeps_the_connection():
    with Server() as server, server.connect() as client:
        good = info_data(b"disk.raw", (INFO_NAME,))
        bad = [b"", b"\0\0\0", good[:-1], good + b"x", b"\xff\xff\xff\xff", good[:5],
               struct.pack(">I", 4097) + b"x" * 4097 + b"\0\0", info_data(b"", ())[:4]]
        for data in bad:
            for option in (OPT_INFO, OPT_GO):
                (kind, _), = client.option(option, data)
                assert kind == ERR_INVALID, (data, kind)
        client.go()


def test_list():
    with Server(images=("b.raw", "a.raw", "c.raw")) as server, server.connect() as client:
        replies = client.option(OPT_LIST)
        assert replies[-1] == (REP_ACK, b"")
        names = [data[4:4 + struct.unpack(">I", data[:4])[0]] for _, data in replies[:-1]]
        assert names == [b"b.raw", b"a.raw", b"c.raw"]
        assert client.option(OPT_LIST, b"x")[0][0] == ERR_INVALID
        client.go(b"c.raw")


def test_names_given_with_name():
    with Server("-n", "eins", "-n", "zwei", images=("a.raw", "b.raw")) as server:
        for name in (b"eins", b"zwei", b""):
            with server.connect() as client:
                client.go(name)


def test_abort_is_acknowledged():
    with Server() as server, server.connect() as client:
        assert client.option(OPT_ABORT) == [(REP_ACK, b"")]
        assert client.is_closed()


def test_starttls_is_refused():
    with Server() as server, server.connect() as client:
        assert client.option(OPT_STARTTLS)[0][0] in (ERR_POLICY, ERR_UNSUP)
        client.go()


def test_structured_reply_has_no_data_and_comes_once():
    with Server() as server, server.connect() as client:
        assert client.option(OPT_STRUCTURED_REPLY, b"x")[0][0] == ERR_INVALID
        assert client.option(OPT_STRUCTURED_REPLY)[0][0] == REP_ACK
        assert client.option(OPT_STRUCTURED_REPLY)[0][0] == ERR_INVALID


def test_unknown_options_are_unsupported():
    with Server() as server, server.connect() as client:
        for option in (0, 4, 12, 13, 0x7fffffff, 0xffffffff):
            for data in (b"", b"abc" * 1000):
                (kind, text), = client.option(option, data)
                assert kind == ERR_UNSUP and text
        client.go()


def test_option_too_big_is_read_past():
    with Server() as server, server.connect() as client:
        for option in (OPT_LIST, OPT_GO, OPT_SET_META_CONTEXT, 77):
            for length in ((32 << 10) + 1, 1 << 20):
                (kind, text), = client.option(option, bytes(length))
                assert kind == ERR_TOO_BIG and text
        client.go()
        assert client.read(0, 10) == bytes(10)


def test_option_magic_wrong_hangs_up():
    with Server() as server, server.connect() as client:
        client.send(struct.pack(">QII", OPTION_MAGIC + 1, OPT_LIST, 0))
        assert client.is_closed()


def test_options_byte_by_byte_and_all_at_once():
    option = struct.pack(">QII", OPTION_MAGIC, OPT_LIST, 0)
    go = struct.pack(">QII", OPTION_MAGIC, OPT_GO, 6) + info_data(b"")
    read = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 5, 0, 16)
    with Server() as server:
        for pieces in ([struct.pack(">I", 3) + option + go + read],
                       [bytes([b]) for b in struct.pack(">I", 3) + option + go + read]):
            with server.connect(flags=None) as client:
                for piece in pieces:
                    client.send(piece)
                assert [k for k, _ in client.option_replies(OPT_LIST)] == [REP_SERVER, REP_ACK]
                assert client.option_replies(OPT_GO)[-1][0] == REP_ACK
                assert client.chunk() == (5, True, None, 0) and client.receive(16) == bytes(16)


# Meta contexts


def contexts(replies, chosen=False):
    """The names; a context that was chosen has a number, one that is listed none."""
    assert replies[-1] == (REP_ACK, b""), replies
    assert all((data[:4] != bytes(4)) == chosen for _, data in replies[:-1]), replies
    return [data[4:] for _, data in replies[:-1]]


def test_meta_contexts():
    base, depth = b"base:allocation", b"qemu:allocation-depth"
    with Server() as server, server.connect() as client:
        for option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
            assert client.option(option, meta_data(b"", [base]))[0][0] == ERR_INVALID
        client.negotiate_structured()
        for queries, listed, chosen in (([], [base, depth], []), ([b"base:"], [base], []),
                                        ([base], [base], [base]), ([b"qemu:"], [depth], []),
                                        ([depth, base], [base, depth], [base, depth]),
                                        ([b"qemu:dirty-bitmap:x", b"qemu"], [], []),
                                        ([b"x", b"", b"base:allocationx", b"base"], [], []),
                                        ([b"y:z", base, base, b"base:"], [base], [base])):
            data = meta_data(b"disk.raw", queries)
            assert contexts(client.option(OPT_LIST_META_CONTEXT, data)) == listed
            assert contexts(client.option(OPT_SET_META_CONTEXT, data), chosen=True) == chosen
        for option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
            assert client.option(option, meta_data(b"nothing", [base]))[0][0] == ERR_UNKNOWN


def test_malformed_meta_contexts_are_invalid():
    good = meta_data(b"disk.raw", [b"base:allocation", b"x"])
    with Server() as server, server.connect() as client:
        client.negotiate_structured()
        bad = [good[:n] for n in range(len(good))] + [good + b"x"]
        bad.append(struct.pack(">I", 0) + struct.pack(">I", 0xffffffff))
        bad.append(meta_data(b"", [b"x" * 4097]))
        for option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
            for data in bad:
                (kind, _), = client.option(option, data)
                assert kind == ERR_INVALID, data
        client.go()


def test_a_failed_set_takes_the_choice_back():
    with Server() as server, server.connect() as client:
        client.negotiate_structured()
        data = meta_data(b"", [b"base:allocation"])
        assert client.option(OPT_SET_META_CONTEXT, data)[-1][0] == REP_ACK
        assert client.option(OPT_SET_META_CONTEXT, data[:-1])[-1][0] == ERR_INVALID
        assert client.option(OPT_GO, info_data(b""))[-1][0] == REP_ACK
        assert client.request(BLOCK_STATUS, 0, 4096) == EINVAL


def test_contexts_are_for_the_export_that_was_named():
    with Server(images=("a.raw", "b.raw")) as server, server.connect() as client:
        client.negotiate_structured()
        client.option(OPT_SET_META_CONTEXT, meta_data(b"a.raw", [b"base:allocation"]))
        assert client.option(OPT_GO, info_data(b"b.raw"))[-1][0] == REP_ACK
        assert client.request(BLOCK_STATUS, 0, 4096) == EINVAL


# Commands


def both(server):
    """A client with structured replies and one without."""
    return server.connect().go(), server.connect(structured=False).go()


def test_write_and_read_back():
    with Server() as server:
        structured, simple = both(server)
        for offset, length in ((0, 1), (511, 3), (4096, 4096), (65535, 70000), (1 << 20, 3 << 20),
                               (SIZE - 1, 1)):
            data = os.urandom(length)
            assert structured.write(offset, data) == 0
            assert simple.read(offset, length) == data
            assert structured.read(offset, length) == data
            data = os.urandom(length)
            assert simple.write(offset, data, FUA) == 0
            assert structured.read(offset, length, DF) == data


def test_many_requests_in_one_send_and_replies_by_cookie():
    with Server() as server, server.connect() as client:
        client.go()
        stream, data = b"", {}
        for i in range(500):
            data[i] = os.urandom(3000)
            stream += struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, i, i * 3000, 3000) + data[i]
        client.send(stream)
        assert {client.chunk()[0] for _ in range(500)} == set(range(500))
        for i in range(500):
            client.send_request(READ, i * 3000, 3000, cookie=i + 2**63)
        parts = {}
        done = 0
        while done < 500:
            cookie, last, kind, payload = client.chunk()
            done += last
            parts.setdefault(cookie - 2**63, []).append(payload[8:])
        assert all(b"".join(parts[i]) == data[i] for i in range(500))


def test_requests_in_pieces_of_every_size():
    request = struct.pack(">IHHQQI", REQUEST_MAGIC, 0, WRITE, 1, 100, 50) + b"p" * 50
    with Server() as server, server.connect() as client:
        client.go()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for size in (1, 2, 7, 27, 28, 29, 60, 77):
            for start in range(0, len(request), size):
                client.send(request[start:start + size])
            assert client.chunk() == (1, True, None, 0)
        assert client.read(99, 52) == b"\0" + b"p" * 50 + b"\0"


def test_large_writes_one_after_another():
    with Server(size=MAX * 3) as server, server.connect() as client:
        client.go()
        data = [os.urandom(1 << 20) * (n + 1) for n in range(8)]
        offset, offsets = 5, []
        for n, block in enumerate(data):
            offsets.append(offset)
            client.send_request(WRITE, offset, len(block), payload=block, cookie=n)
            client.send_request(FLUSH, cookie=1000 + n)
            offset += len(block) + 1
        assert len({client.chunk()[0] for _ in range(16)}) == 16
        for n, block in enumerate(data):
            assert client.read(offsets[n], len(block)) == block
        assert client.write(MAX, bytes(MAX)) == 0
        assert client.read(MAX, MAX) == bytes(MAX)


def test_holes_travel_as_holes():
    with Server(image_format="qcow2") as server, server.connect() as client:
        client.go()
        assert client.read_chunks(0, 1 << 20) == [(0, 1 << 20, None)]
        assert client.read_chunks(5, 1000) == [(5, 1000, None)]
        client.write(256 << 10, b"x" * (64 << 10))
        chunks = client.read_chunks(0, 1 << 20)
        assert [(o, n, d is None) for o, n, d in chunks] == [
            (0, 256 << 10, True), (256 << 10, 64 << 10, False), (320 << 10, 704 << 10, True)]


def test_df_gives_one_chunk():
    with Server(image_format="qcow2") as server, server.connect() as client:
        client.go()
        assert client.read_chunks(0, 1 << 20, DF) == [(0, 1 << 20, None)]
        client.write(256 << 10, b"x" * (64 << 10))
        (offset, length, data), = client.read_chunks(0, 1 << 20, DF)
        assert data == bytes(256 << 10) + b"x" * (64 << 10) + bytes(704 << 10)


def test_many_holes_are_a_bounded_number_of_chunks():
    with Server(image_format="qcow2") as server, server.connect() as client:
        client.go()
        wanted = bytearray(8 << 20)
        for n in range(64):  # every other cluster
            client.write(n << 17, bytes([n + 1]) * 4096)
            wanted[n << 17:(n << 17) + 4096] = bytes([n + 1]) * 4096
        chunks = client.read_chunks(0, 8 << 20)
        assert 2 < len(chunks) <= 32
        assert client.read(0, 8 << 20) == wanted
        assert client.read(100, (8 << 20) - 5000) == wanted[100:-4900]


def test_recycled_buffers_show_no_old_bytes():
    with Server(image_format="qcow2") as server:
        structured, simple = both(server)
        structured.write(0, b"secret" * 100000)
        assert structured.request(WRITE_ZEROES, 0, 1 << 20) == 0
        structured.write(8192, b"y" * 10)
        wanted = bytearray(1 << 20)
        wanted[8192:8202] = b"y" * 10
        for client in (structured, simple):
            for flags in (0, DF) if client.structured else (0,):
                assert client.read(0, 1 << 20, flags) == wanted


def test_zero_length_requests_succeed_and_do_nothing():
    with Server() as server:
        for client in both(server):
            assert client.read(0, 0) == b"" and client.read(SIZE, 0) == b""
            for command in (WRITE, TRIM, CACHE, WRITE_ZEROES):
                assert client.request(command, 0, 0) == 0
                assert client.request(command, SIZE, 0) == 0
            assert client.request(FLUSH) == 0


def test_flush_trim_zeroes_cache():
    with Server() as server:
        for client in both(server):
            client.write(0, b"x" * 100000)
            assert client.request(FLUSH) == 0
            assert client.request(CACHE, 0, SIZE) == 0
            assert client.request(TRIM, 0, 100, FUA) == 0
            assert client.request(WRITE_ZEROES, 4096, 8192) == 0
            assert client.request(WRITE_ZEROES, 20000, 5, NO_HOLE | FUA) == 0
            assert client.request(WRITE_ZEROES, 65536, 4096, FAST_ZERO) in (0, ENOTSUP)
            data = client.read(0, 30000)
            assert data[200:4096] == b"x" * 3896 and data[4096:12288] == bytes(8192)
            assert data[20000:20006] == bytes(5) + b"x"


def test_lengths_of_gigabytes_where_no_payload_travels():
    length = (4 << 30) - 512
    with Server(size=8 << 30) as server, server.connect() as client:
        client.go()
        client.write(5 << 30, b"end")
        assert client.request(TRIM, 1 << 30, length) == 0
        assert client.request(WRITE_ZEROES, 1 << 30, length) == 0
        assert sum(n for n, _ in client.status(0, length)) <= length
        assert client.read(5 << 30, 3) in (bytes(3), b"end")
        assert client.read(4 << 30, 3) == bytes(3)
    with Server(size=8 << 30, image_format="qcow2") as server, server.connect() as client:
        client.go()  # of a raw file, gigabytes of zeroes would be read
        assert client.request(CACHE, 1 << 30, length) == 0


def test_block_status():
    with Server() as server, server.connect() as client:
        client.go()
        client.write(1 << 20, b"x" * (1 << 20))
        assert client.status(0, SIZE) == [(1 << 20, 3), (1 << 20, 0), (14 << 20, 3)]
        assert client.status(0, SIZE, REQ_ONE) == [(1 << 20, 3)]
        assert client.status((1 << 20) + 5, 10) == [(10, 0)]
        assert client.request(BLOCK_STATUS, 0, 0) == EINVAL
        assert client.request(BLOCK_STATUS, 0, SIZE + 1) == EINVAL
    with Server() as server, server.connect(structured=False) as client:
        client.go()
        assert client.request(BLOCK_STATUS, 0, 4096) == EINVAL


def test_unknown_commands_are_invalid():
    with Server() as server:
        for client in both(server):
            for command in (8, 9, 255, 0xffff):
                assert client.request(command, 0, 512) == EINVAL
            assert client.read(0, 5) == bytes(5)


def test_past_the_end():
    with Server() as server:
        for client in both(server):
            for offset, length in ((SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (2**64 - 1, 1),
                                   (2**64 - 512, 1024), (2**63, 512)):
                assert client.request(READ, offset, length) == EINVAL
                assert client.request(WRITE, offset, length, 0, bytes(length)) == ENOSPC
                assert client.request(WRITE_ZEROES, offset, length) == ENOSPC
                assert client.request(TRIM, offset, length) == EINVAL
                assert client.request(CACHE, offset, length) == EINVAL
            assert client.read(SIZE - 5, 5) == bytes(5)


def test_too_long():
    with Server(size=MAX * 2) as server:
        structured, simple = both(server)
        for client in (structured, simple):
            assert client.request(READ, 0, MAX + 1) == EINVAL
            assert client.request(READ, 0, 0xffffffff) == EINVAL
            assert client.request(WRITE, 0, MAX + 1, 0, bytes(MAX + 1)) == EINVAL
            assert client.read(0, 5) == bytes(5)
        assert structured.request(READ, 0, MAX + 1, DF) == EOVERFLOW
        simple.send_request(WRITE, 0, 0xffffffff)
        assert simple.is_closed()


def test_read_only():
    """The export is, or this client has no right to write."""
    for options in (("-r",), ("--allow", "any=list,read")):
        with Server(*options) as server:
            for client in both(server):
                assert client.flags & 2
                assert client.write(0, b"x" * 100000) == EPERM
                assert client.request(TRIM, 0, 512) == EPERM
                assert client.request(WRITE_ZEROES, 0, 512) == EPERM
                assert client.request(FLUSH) == 0
                assert client.request(CACHE, 0, 512) == 0
                assert client.read(0, 512) == bytes(512)


def test_flush_with_a_range_is_invalid():
    with Server() as server, server.connect() as client:
        client.go()
        assert client.request(FLUSH, 0, 512) == EINVAL
        assert client.request(FLUSH, 512, 0) == EINVAL


def test_request_magic_wrong_hangs_up():
    with Server() as server, server.connect() as client:
        client.go()
        client.send(struct.pack(">IHHQQI", REQUEST_MAGIC + 1, 0, READ, 1, 0, 512))
        assert client.is_closed()


def test_disc_answers_what_is_in_flight_and_closes():
    with Server() as server, server.connect() as client:
        client.go()
        client.write(0, b"x" * (1 << 20))
        stream = b"".join(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, n, 0, 1 << 20)
                          for n in range(20))
        client.send(stream + struct.pack(">IHHQQI", REQUEST_MAGIC, 0, DISC, 99, 0, 0))
        assert sorted(client.chunk()[0] for _ in range(20)) == list(range(20))
        assert client.is_closed()


def test_end_of_input_answers_what_is_in_flight():
    with Server() as server, server.connect() as client:
        client.go()
        for n in range(20):
            client.send_request(READ, 0, 4096, cookie=n)
        client.socket.shutdown(socket.SHUT_WR)
        assert sorted(client.chunk()[0] for _ in range(20)) == list(range(20))
        assert client.is_closed()


# Listening


def test_listens_on_ipv4_ipv6_and_unix_at_once():
    with Server(listen=("127.0.0.1:0", "[::1]:0")) as server:
        assert server.lines[0] == "listening on nbd+unix:///?socket=" + server.address
        ports = [int(line.rsplit(":", 1)[1].rstrip("/")) for line in server.lines[1:]]
        assert server.lines[1] == f"listening on nbd://127.0.0.1:{ports[0]}/"
        assert server.lines[2] == f"listening on nbd://[::1]:{ports[1]}/"
        for address in (server.address, ("127.0.0.1", ports[0]), ("::1", ports[1])):
            with Client(address) as client:
                client.go()
                assert client.read(0, 5) == bytes(5)


def run(*arguments):
    return subprocess.run([os.environ["COWNBD"], "serve", "-f", "raw", *arguments], timeout=TIMEOUT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refused(*arguments):
    result = run(*arguments)
    assert result.returncode == 1 and result.stdout == "", result
    assert result.stderr.startswith("cownbd: ") and result.stderr.count("\n") == 1, result
    return result.stderr


def test_addresses_that_cannot_be_used_are_refused_in_one_line():
    with Server(listen=("127.0.0.1:0",)) as server, tempfile.TemporaryDirectory() as other:
        image = os.path.join(other, "image")
        with open(image, "wb") as out:
            out.truncate(4096)
        port = server.lines[1].rsplit(":", 1)[1].rstrip("/")
        assert "in use" in refused("-l", f"127.0.0.1:{port}", image)
        assert "another server" in refused("-l", "unix:" + server.address, image)
        assert "not a socket" in refused("-l", "unix:" + image, image)
        assert "HOST:PORT" in refused("-l", "::1:80", image)
        for bad in ("[::1", "unix:", "unix:" + "x" * 200, "127.0.0.1:notaport", "127.0.0.1:99999", "256.1.1.1.1:5"):
            assert bad.split(":")[0] in refused("-l", bad, image)
        with server.connect() as client:  # the one that was there goes on
            client.go()


def test_stale_socket_file_is_replaced_and_removed_at_the_end():
    with tempfile.TemporaryDirectory() as directory:
        stale = os.path.join(directory, "stale")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(stale)
        with Server(listen=("unix:" + stale,)) as server:
            with Client(stale) as client:
                client.go()
            address = server.address
            server.stop()
            assert not os.path.exists(stale) and not os.path.exists(address)


# Serving


def test_options_of_serve_are_checked():
    with tempfile.TemporaryDirectory() as directory:
        image = os.path.join(directory, "image")
        with open(image, "wb") as out:
            out.truncate(4096)
        assert "no image" in refused()
        assert "--threads" in refused("-t", "0", image)
        assert "--client-memory" in refused("--client-memory", "x", image)
        assert "--total-memory" in refused("--total-memory", "127M", image)
        assert "--stall-timeout" in refused("--stall-timeout=-1", image)
        assert "--max-clients" in refused("--max-clients", "0", image)
        assert "names" in refused("-n", "a", "-n", "b", image)


def test_a_name_twice_is_refused():
    with tempfile.TemporaryDirectory() as directory:
        images = []
        for name in ("a", "b"):
            os.mkdir(os.path.join(directory, name))
            images.append(os.path.join(directory, name, "disk"))
            with open(images[-1], "wb") as out:
                out.truncate(4096)
        assert "twice" in refused("-l", "127.0.0.1:0", *images)


def test_once_leaves_after_the_last_client():
    with Server("--once") as server:
        with server.connect():
            pass  # never came as far as an export: does not count
        first, second = both(server)
        assert first.write(0, b"x") == 0
        first.close()
        assert second.read(0, 1) == b"x"
        second.close()
        assert server.process.wait(TIMEOUT) == 0


def test_pid_file():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "pid")
        with Server("--pid-file", path) as server:
            with open(path) as text:
                assert text.read() == f"{server.process.pid}\n"
            server.stop()
            assert not os.path.exists(path)


def test_readiness_is_notified():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(path)
            manager.settimeout(TIMEOUT)
            os.environ["NOTIFY_SOCKET"] = path
            try:
                with Server():
                    assert manager.recv(100).startswith(b"READY=1\n")
            finally:
                del os.environ["NOTIFY_SOCKET"]


if __name__ == "__main__":
    main(sys.modules[__name__])
