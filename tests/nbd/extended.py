"""Extended headers, contexts chosen by a payload, and the context of allocation depth, byte by byte."""
import os
import socket
import struct
import subprocess
import sys
import tempfile

from handover import Relay
from wire import *

SIZE = 16 << 20
MAX = 64 << 20
ALLOCATION, DEPTH = b"base:allocation", b"qemu:allocation-depth"
BOTH = (ALLOCATION, DEPTH)


def extended(server, contexts=(ALLOCATION,), name=b""):
    return server.connect(extended=True).go(name, contexts)


# Negotiation


def test_extended_headers_have_no_data_and_come_once():
    with Server() as server, server.connect() as client:
        assert client.option(OPT_EXTENDED_HEADERS, b"x")[0][0] == ERR_INVALID
        assert client.option(OPT_EXTENDED_HEADERS) == [(REP_ACK, b"")]
        assert client.option(OPT_EXTENDED_HEADERS)[0][0] == ERR_INVALID
        (kind, text), = client.option(OPT_STRUCTURED_REPLY)
        assert kind == ERR_EXT_HEADER_REQD and text
        client.structured = client.extended = True
        client.go()
        assert client.read(0, 512) == bytes(512)


def test_extended_headers_after_structured_replies():
    with Server() as server, server.connect() as client:
        client.negotiate_structured()
        client.negotiate_extended()
        assert client.go().read(0, 512) == bytes(512)


def test_export_name_after_extended_headers_hangs_up():
    with Server() as server, server.connect() as client:
        client.negotiate_extended()
        client.send_option(OPT_EXPORT_NAME, b"disk.raw")
        assert client.is_closed()


def test_the_payload_form_is_advertised_with_contexts_only():
    with Server() as server:
        assert server.connect().go().flags & 1 << 12 == 0
        assert extended(server, ()).flags & 1 << 12 == 0
        assert extended(server).flags & 1 << 12 == 1 << 12
        assert extended(server).flags & 0x80  # DF


def test_a_compact_request_hangs_up():
    with Server() as server:
        with extended(server) as client:
            client.send(struct.pack(">IHHQQIxxxx", REQUEST_MAGIC, 0, READ, 1, 0, 512))
            assert client.is_closed()
        with server.connect().go() as client:
            client.send(struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, 0, READ, 1, 0, 512))
            assert client.is_closed()


# Commands


def test_write_and_read_back():
    with Server() as server, extended(server) as client, server.connect().go() as other:
        for offset, length in ((0, 1), (511, 3), (65535, 70000), (1 << 20, 3 << 20), (SIZE - 1, 1)):
            data = os.urandom(length)
            assert client.write(offset, data) == 0
            assert client.read(offset, length) == other.read(offset, length) == data
            assert client.read(offset, length, DF) == data
            assert client.write(offset, data[::-1], FUA) == 0
            assert other.read(offset, length) == data[::-1]


def test_every_command_is_answered_by_an_extended_reply():
    with Server() as server, extended(server) as client:
        client.write(0, b"x" * 100000)
        for command, length in ((FLUSH, 0), (TRIM, 65536), (CACHE, 65536), (WRITE_ZEROES, 65536),
                                (READ, 0), (WRITE, 0), (TRIM, 0)):
            assert client.request(command, 0, length) == 0, command


def test_requests_in_pieces_of_every_size():
    request = struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, PAYLOAD_LEN, WRITE, 1, 100, 50) + b"p" * 50
    with Server() as server, extended(server) as client:
        for size in (1, 2, 7, 28, 31, 32, 33, 60, 81):
            for start in range(0, len(request), size):
                client.send(request[start:start + size])
            assert client.chunk() == (1, True, NONE, b"")
        assert client.read(99, 52) == b"\0" + b"p" * 50 + b"\0"


def test_large_writes_one_after_another():
    with Server(size=MAX * 2) as server, extended(server) as client:
        data = [os.urandom(1 << 20) * (n + 1) for n in range(6)]
        at = [sum(len(block) + 1 for block in data[:n]) for n in range(6)]
        for n, block in enumerate(data):
            client.send_request(WRITE, at[n], len(block), payload=block, cookie=n)
            client.send_request(FLUSH, cookie=100 + n)
        assert len({client.chunk()[0] for _ in range(12)}) == 12
        for n, block in enumerate(data):
            assert client.read(at[n], len(block)) == block
        assert client.write(MAX, bytes(MAX)) == 0


def test_holes_travel_as_holes():
    with Server(image_format="qcow2") as server, extended(server) as client:
        assert client.read_chunks(0, 1 << 20) == [(0, 1 << 20, None)]
        client.write(256 << 10, b"x" * (64 << 10))
        chunks = client.read_chunks(0, 1 << 20)
        assert [(o, n, d is None) for o, n, d in chunks] == [
            (0, 256 << 10, True), (256 << 10, 64 << 10, False), (320 << 10, 704 << 10, True)]
        assert client.reply_offset == 0
        assert len(client.read_chunks(0, 1 << 20, DF)) == 1


def test_a_write_without_its_flag_has_its_payload():
    """As qemu sends it."""
    def write(client, offset, data, flags=0):
        client.send(struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, flags, WRITE, 7, offset, len(data)) + data)
        cookie, done, kind, value = client.chunk()
        assert (cookie, done) == (7, True)
        return struct.unpack(">I", value[:4])[0] if kind == ERROR else 0

    with Server() as server, extended(server) as client:
        for flags, length in ((0, 1), (FUA, 512), (0, 70000), (FUA, 3 << 20)):
            data = os.urandom(length)
            assert write(client, 4096, data, flags) == 0
            assert client.read(4096, length) == data
        assert write(client, SIZE - 4096, bytes(70000)) == ENOSPC
        assert write(client, 0, bytes(70000), NO_HOLE) == EINVAL
        assert client.read(4096, length) == data


def test_payloads_that_do_not_belong_are_read_past():
    with Server() as server, extended(server, ()) as client:
        for command in (READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, 8, 77, 0xffff):
            for length in (1, 512, 300000):
                assert client.request(command, 0, length, 0, bytes(length)) == EINVAL
                assert client.text
        assert client.read(0, 512) == bytes(512)


def test_payloads_over_the_maximum():
    with Server(size=MAX * 2) as server, extended(server) as client:
        assert client.request(WRITE, 0, MAX + 1, 0, bytes(MAX + 1)) == EINVAL
        assert client.read(0, 5) == bytes(5)
        for length in ((256 << 20) + 1, 1 << 32, 2**64 - 1):
            with extended(server) as other:
                other.send_request(WRITE, 0, length, PAYLOAD_LEN)
                assert other.is_closed()


def test_reads_over_the_maximum():
    with Server(size=8 << 30) as server, extended(server) as client:
        for length in (MAX + 1, 1 << 32, (1 << 32) + 512):
            assert client.request(READ, 0, length) == EINVAL
            assert client.request(READ, 0, length, DF) == EOVERFLOW


def test_lengths_over_4_gib():
    length = 7 << 30
    with Server(size=8 << 30, image_format="qcow2") as server, extended(server) as client:
        client.write(6 << 30, b"x" * 65536)
        client.write((8 << 30) - 512, b"y" * 512)
        assert client.statuses(0, 8 << 30)[1] == [
            (6 << 30, 3), (65536, 0), ((2 << 30) - 65536 * 2, 3), (65536, 0)]
        assert client.request(WRITE_ZEROES, 0, length) == 0
        assert client.read(6 << 30, 65536) == bytes(65536)
        assert client.read((8 << 30) - 512, 512) == b"y" * 512
        assert client.request(TRIM, 512, (8 << 30) - 512) == 0
        assert client.request(CACHE, 0, length) == 0


def test_lengths_are_not_cut_to_32_bits():
    with Server() as server, extended(server) as client:
        client.write(0, b"x" * 4096)
        for length in (1 << 32, (1 << 32) + 512, 1 << 63, 2**64 - 1):
            assert client.request(WRITE_ZEROES, 0, length) == ENOSPC
            assert client.request(TRIM, 0, length) == EINVAL
            assert client.request(CACHE, 0, length) == EINVAL
            assert client.request(BLOCK_STATUS, 0, length) == EINVAL
            assert client.request(READ, 0, length) == EINVAL
            assert client.request(TRIM, 2**64 - 512, length) == EINVAL
        assert client.read(0, 4096) == b"x" * 4096


def test_past_the_end_and_read_only():
    with Server("-r") as server, extended(server) as client:
        assert client.write(0, bytes(512)) == EPERM
        assert client.request(WRITE_ZEROES, 0, 1 << 40) == EPERM
        assert client.request(READ, SIZE - 1, 2) == EINVAL
        assert client.read(SIZE - 1, 1) == b"\0"


# BLOCK_STATUS


def named(effect, *numbers):
    return struct.pack(">Q", effect) + b"".join(struct.pack(">I", number) for number in numbers)


def test_a_payload_chooses_contexts():
    with Server(image_format="qcow2") as server, extended(server, BOTH) as client:
        client.write(0, b"x" * 65536)
        allocation = [(65536, 0), (SIZE - 65536, 3)]
        depth = [(65536, 1), (SIZE - 65536, 0)]
        assert client.statuses(0, SIZE) == {1: allocation, 2: depth}
        for numbers in ((1,), (2,), (1, 2), (2, 1)):
            payload = named(SIZE, *numbers)
            found = client.statuses(0, len(payload), 0, payload)
            assert found == {number: {1: allocation, 2: depth}[number] for number in numbers}
            found = client.statuses(0, len(payload), REQ_ONE, payload)
            assert all(len(descriptors) == 1 for descriptors in found.values())
        payload = named(4096, 2)
        assert client.statuses(SIZE - 4096, len(payload), 0, payload) == {2: [(4096, 0)]}


def test_payloads_that_name_nothing_right_are_invalid():
    with Server() as server, extended(server) as client:
        bad = [named(512), named(512, 2), named(512, 1, 1), named(512, 0), named(512, 3), named(512, 0xffffffff),
               named(0, 1), named(SIZE + 1, 1), named(2**64 - 1, 1), named(512, 1)[:-1], named(512, 1) + b"x",
               b"x", b"1234567", named(512, 1, 2, 3), bytes(4096), bytes(1 << 20)]
        for payload in bad:
            assert client.request(BLOCK_STATUS, 0, len(payload), 0, payload) == EINVAL, payload[:20]
            assert client.text
        assert client.request(BLOCK_STATUS, 0, 0, PAYLOAD_LEN) == EINVAL
        assert client.request(BLOCK_STATUS, SIZE, 12, 0, named(512, 1)) == EINVAL
        assert client.statuses(0, 12, 0, named(512, 1))[1]
    with Server() as server, server.connect().go() as client:
        assert client.request(BLOCK_STATUS, 0, 512, PAYLOAD_LEN) == EINVAL


def test_a_payload_in_pieces():
    payload = named(SIZE, 1)
    request = struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, PAYLOAD_LEN, BLOCK_STATUS, 9, 0, len(payload)) + payload
    with Server() as server, extended(server) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for size in (1, 3, 32, 35, 43):
            for start in range(0, len(request), size):
                client.send(request[start:start + size])
            cookie, done, kind, _ = client.chunk()
            assert (cookie, done, kind) == (9, True, STATUS_EXT)


def test_both_contexts_in_structured_replies():
    with Server(image_format="qcow2") as server, server.connect().go(contexts=BOTH) as client:
        client.write(1 << 20, b"x" * 65536)
        found = client.statuses(0, SIZE)
        assert [n for n, _ in found[1]] == [n for n, _ in found[2]] == [1 << 20, 65536, SIZE - (1 << 20) - 65536]
        assert [flags for _, flags in found[1]] == [3, 0, 3]
        assert [flags for _, flags in found[2]] == [0, 1, 0]
        assert client.statuses(0, SIZE, REQ_ONE) == {1: [(1 << 20, 3)], 2: [(1 << 20, 0)]}


def test_depth_alone():
    with Server() as server, server.connect().go(contexts=(DEPTH,)) as client:
        assert client.statuses(0, SIZE) == {2: [(SIZE, 1)]}


def make_chain(directory):
    """base <- middle <- top, of one size: each has its own pieces and zeroes, and some no image has."""
    paths = [os.path.join(directory, name) for name in ("base", "middle", "top")]
    pieces = (("write -P 3 0 1M", "write -z 1M 512k"),
              ("write -P 1 64k 64k", "write -P 1 256k 128k", "write -z 512k 64k"),
              ("write -P 2 320k 64k", "write -z 768k 64k", "write -P 2 3584k 64k"))
    backing = []
    for path, commands in zip(paths, pieces):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, path, "4M"], check=True)
        backing = ["-b", path, "-F", "qcow2"]
        arguments = [part for command in commands for part in ("-c", command)]
        subprocess.run(["qemu-io", "-f", "qcow2", *arguments, path], check=True, stdout=subprocess.DEVNULL)
    return paths[-1]


def test_depth_of_a_chain_is_what_qemu_says():
    with tempfile.TemporaryDirectory() as directory:
        top = make_chain(directory)
        theirs = os.path.join(directory, "qemu.sock")
        ours = os.path.join(directory, "cownbd.sock")
        subprocess.run(["qemu-nbd", "-r", "-A", "-f", "qcow2", "-k", theirs, "--fork",
                        "--pid-file", theirs + ".pid", top], check=True)
        server = subprocess.Popen([os.environ["COWNBD"], "serve", "-r", "-l", "unix:" + ours, top],
                                  stdout=subprocess.PIPE)
        try:
            assert server.stdout.readline().startswith(b"listening on ")
            found = []
            for address in (theirs, ours):
                with Client(address).go(contexts=(DEPTH,)) as client:
                    found.append(whole_status(client, 4 << 20))
            assert found[0] == found[1] and {depth for _, depth in found[1]} == {0, 1, 2, 3}, found
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()
            with open(theirs + ".pid") as pid:
                os.kill(int(pid.read()), signal.SIGTERM)


def whole_status(client, size):
    """The descriptors of the whole disk, neighbours of one kind joined."""
    at, result = 0, []
    while at < size:
        (descriptors,) = client.statuses(at, size - at).values()
        for length, flags in descriptors:
            if result and result[-1][1] == flags:
                result[-1] = (result[-1][0] + length, flags)
            else:
                result.append((length, flags))
            at += length
    return result


def test_the_status_of_a_torn_disk_is_bounded():
    with Server(image_format="qcow2", size=2 << 30) as server, extended(server, BOTH) as client:
        for n in range(3000):
            client.send_request(WRITE, n << 17, 512, payload=b"t" * 512)
        for _ in range(3000):
            client.chunk()
        before = server.memory()
        for _ in range(200):
            client.send_request(BLOCK_STATUS, 0, 2 << 30)
        for _ in range(200):
            for last in (False, True):
                _, done, kind, answer = client.chunk()
                assert done == last and kind == STATUS_EXT and 1000 * 16 < len(answer) <= 8 + 4096 * 16
        assert server.memory() - before < memory_limit(64 << 20)


# Another process goes on


def test_a_handover_keeps_what_was_negotiated():
    with Relay(image_format="qcow2") as server:
        haggling = server.connect(extended=True)
        haggling.negotiate_extended()
        haggling.want_extended = False
        idle = extended(server, BOTH)
        writing, asking = extended(server), extended(server, BOTH)
        payload = named(SIZE, 2)
        write = struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, PAYLOAD_LEN, WRITE, 5, 0, 65536) + b"h" * 65536
        status = struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, PAYLOAD_LEN, BLOCK_STATUS, 6, 0, len(payload)) + payload
        writing.send(write[:30000])
        asking.send(status[:40])
        server.handover()
        writing.send(write[30000:])
        assert writing.chunk() == (5, True, NONE, b"")
        asking.send(status[40:])
        cookie, done, kind, answer = asking.chunk()
        assert (cookie, done, kind) == (6, True, STATUS_EXT) and answer[:4] == struct.pack(">I", 2)
        haggling.go(contexts=BOTH)
        for client in (haggling, idle):
            assert client.read(0, 65536) == b"h" * 65536
            assert client.statuses(0, SIZE) == {1: [(65536, 0), (SIZE - 65536, 3)], 2: [(65536, 1), (SIZE - 65536, 0)]}


def test_contexts_of_an_export_of_its_own():
    """Two bitmaps of an image beside the contexts that every export has."""
    def add_bitmaps(image):
        for name in ("one", "two"):
            subprocess.run(["qemu-img", "bitmap", "--add", "-g", "65536", image, name], check=True)

    mib, kind = 1 << 20, b"qemu:dirty-bitmap:"
    one, two = kind + b"one", kind + b"two"
    with Server(image_format="qcow2", prepare=add_bitmaps) as server:
        for extended in (False, True):
            with server.connect(extended=extended) as client:
                client.negotiate_extended() if extended else client.negotiate_structured()
                for queries, wanted in (([], [b"base:allocation", b"qemu:allocation-depth", one, two]),
                                        ([kind], [one, two]), ([b"qemu:"], [b"qemu:allocation-depth", one, two]),
                                        ([two], [two]), ([kind + b"t"], [])):
                    replies = client.option(OPT_LIST_META_CONTEXT, meta_data(b"", queries))
                    assert [data[4:] for kind_, data in replies if kind_ == REP_META_CONTEXT] == wanted
                replies = client.option(OPT_SET_META_CONTEXT, meta_data(b"", [two, b"base:allocation", kind]))
                numbers = {data[4:]: struct.unpack(">I", data[:4])[0] for kind_, data in replies[:-1]}
                assert set(numbers) == {two, b"base:allocation"}
                client.option(OPT_GO, info_data(b""))
                assert client.write((1 + extended) * mib, b"w" * 512) == 0
                dirty = [(mib, 0), (65536, 1)] + [(mib - 65536, 0), (65536, 1)] * extended
                dirty += [((15 - extended) * mib - 65536, 0)]
                assert client.statuses(0, 16 * mib)[numbers[two]] == dirty
                assert client.statuses(0, 16 * mib, REQ_ONE)[numbers[two]] == [(mib, 0)]
                if extended:
                    payload = struct.pack(">QI", 16 * mib, numbers[two])
                    assert client.statuses(0, len(payload), 0, payload) == {numbers[two]: dirty}


if __name__ == "__main__":
    main(sys.modules[__name__])
