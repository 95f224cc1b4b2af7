"""Clients that die, lie, flood or never read: the server goes on, in bounded memory, for everybody else."""
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import time

from handover import Relay
from wire import *

MB = 1 << 20


def request(command, cookie, offset, length, flags=0):
    return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length)


def still_serves(server):
    with server.connect() as client:
        client.go()
        assert client.read(0, 4096) is not None


def until(true, seconds=TIMEOUT):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_killed_in_the_middle_of_a_payload_writes_nothing():
    with Server() as server:
        for length, sent in ((4096, 4095), (MB, 1), (MB, MB - 1), (4 * MB, 3 * MB), (100, 0)):
            client = server.connect().go()
            client.send(request(WRITE, 1, 0, length) + b"x" * sent)
            time.sleep(0.05)
            client.close()
            with server.connect() as other:
                other.go()
                assert other.read(0, 4 * MB) == bytes(4 * MB)
        # The same with whole writes before it: these count.
        client = server.connect().go()
        client.send(request(WRITE, 1, 0, 5) + b"whole" + request(WRITE, 2, 5, 100000) + b"half" * 100)
        assert client.chunk()[0] == 1
        client.close()
        with server.connect() as other:
            other.go()
            assert other.read(0, 100) == b"whole" + bytes(95)


def test_reset_with_requests_in_flight():
    with Server() as server:
        for n in range(100):
            client = server.connect().go()
            client.send(b"".join(request(READ, i, 0, MB) for i in range(20)))
            if n % 2:
                client.send(request(WRITE, 99, 8 * MB, 4096) + b"y" * 4096)
            client.close()
        until(lambda: server_connections(server) == 0)
        still_serves(server)


def server_connections(server):
    """Sockets that the server has beside its listener."""
    count = -1
    directory = f"/proc/{server.process.pid}/fd"
    for fd in os.listdir(directory):
        try:
            count += os.readlink(os.path.join(directory, fd)).startswith("socket:")
        except FileNotFoundError:
            pass
    return count


def push(client, stream, seconds):
    """Sends stream again and again, as much as the server takes in that time. Returns the bytes sent."""
    client.socket.setblocking(False)
    sent = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            sent += client.socket.send(stream[sent % len(stream):])
        except BlockingIOError:
            time.sleep(0.02)
    return sent


def test_a_client_that_never_reads_holds_bounded_memory():
    with Server("--client-memory", "8M", size=64 * MB) as server:
        with server.connect() as warm:
            warm.go()
            warm.write(0, os.urandom(32 * MB))
        before = server.memory()
        client = server.connect().go()
        push(client, b"".join(request(READ, i, 0, 4 * MB) for i in range(2000)), 2)
        grown = server.memory() - before
        assert grown < memory_limit(24 * MB), f"{grown >> 20} MB more"
        used = server.cpu()
        time.sleep(1)
        assert server.cpu() - used < 0.2, "busy although nothing can be done"
        still_serves(server)
        client.close()
        until(lambda: server_connections(server) == 0)


class Crowd(Relay):
    """A server with 128 MiB for all clients, and many of these who hold what they can."""

    def __init__(self, *options, clients, stream):
        super().__init__("--total-memory", "128M", *options, size=64 * MB)
        with self.connect() as writer:
            writer.go().write(0, os.urandom(32 * MB))
        self.clients = [self.connect().go() for _ in range(clients)]
        for client in self.clients:
            client.send(stream)
        until(lambda: self.numbers()["held"] > 100 * MB)

    def numbers(self):
        return json.loads(self.stats())["memory"]

    def __exit__(self, *how):
        for client in self.clients:
            client.close()
        super().__exit__(*how)


READS = b"".join(request(READ, i, 0, 4 * MB) for i in range(100))  # nobody reads the answers


def test_all_clients_together_hold_bounded_memory():
    with Crowd("--stall-timeout", "0", clients=40, stream=READS) as server:
        until(lambda: server.numbers()["waiting"] > 0)
        for _ in range(20):
            still_serves(server)
            assert server.numbers()["held"] <= (128 + 2) * MB
        assert server.memory() < memory_limit(200 * MB)
        with server.connect() as reader:  # waits, and gets it when those go who hold it
            cookie = reader.go().send_request(READ, 0, 32 * MB, DF)
            for client in server.clients:
                client.close()
            got, done, kind, payload = reader.chunk()
            assert (got, done, kind, len(payload)) == (cookie, True, OFFSET_DATA, 8 + 32 * MB)
        until(lambda: server.numbers()["held"] < 4 * MB)
        assert server.numbers()["waiting"] == 0 and server.numbers()["dropped"] == 0


def test_who_takes_nothing_is_dropped_when_others_wait():
    with Crowd("--stall-timeout", "1", clients=8, stream=READS) as server, server.connect() as reader:
        assert server.numbers()["dropped"] == 0
        assert len(reader.go().read(0, 64 * MB)) == 64 * MB
        assert 1 <= server.numbers()["dropped"] <= 8
        assert "client dropped: it holds memory that others wait for" in server.errors()


def test_who_sends_nothing_is_dropped_when_others_wait():
    half_a_write = request(WRITE, 1, 0, 24 * MB) + b"half"
    with Crowd("--stall-timeout", "1", clients=5, stream=half_a_write) as server, server.connect() as reader:
        assert len(reader.go().read(0, 64 * MB)) == 64 * MB
        assert 1 <= server.numbers()["dropped"] <= 5
        assert reader.read(32 * MB, 4) == bytes(4)


def test_small_requests_go_on_whatever_others_hold():
    with Crowd("--stall-timeout", "0", clients=40, stream=READS) as server:
        until(lambda: server.numbers()["waiting"] > 0)
        readers = [server.connect().go() for _ in range(8)]
        for reader in readers:
            reader.send(b"".join(request(READ, i, 0, 65536) for i in range(100)))
        for reader in readers:
            answers = [reader.chunk() for _ in range(100)]
            assert sorted(answer[0] for answer in answers) == list(range(100))
            assert {len(answer[3]) for answer in answers} == {8 + 65536}
            reader.close()


def test_a_client_over_its_budget_gets_every_reply():
    with Server("--client-memory", "1M") as server, server.connect() as client:
        client.go()
        data = os.urandom(4 * MB)
        assert client.write(0, data) == 0
        count = 400
        offsets = [random.Random(n).randrange(3 * MB) for n in range(count)]
        stream = b"".join(request(READ, n, offsets[n], 100000) for n in range(count))
        threading.Thread(target=client.send, args=(stream,)).start()
        time.sleep(0.3)
        for _ in range(count):
            cookie, done, kind, payload = client.chunk()
            assert done and kind == OFFSET_DATA
            assert payload[8:] == data[offsets[cookie]:offsets[cookie] + 100000]


def test_tiny_requests_without_end_and_no_reading():
    with Server("--client-memory", "4M") as server:
        before = server.memory()
        client = server.connect().go()
        push(client, b"".join(request(CACHE, i, 0, 0) for i in range(30000)), 2)
        grown = server.memory() - before
        assert grown < memory_limit(16 * MB), f"{grown >> 20} MB more"
        client.close()
        still_serves(server)


def test_tiny_reads_without_end_and_no_reading():
    with Server("--client-memory", "4M") as server:
        before = server.memory()
        client = server.connect().go()
        push(client, b"".join(request(READ, i, i, 1) for i in range(30000)), 2)
        grown = server.memory() - before
        assert grown < memory_limit(16 * MB), f"{grown >> 20} MB more"
        client.close()
        still_serves(server)


def test_option_answers_that_nobody_reads_are_bounded():
    with Server() as server:
        before = server.memory()
        client = server.connect()
        push(client, struct.pack(">QII", OPTION_MAGIC, OPT_LIST, 0) * 10000, 2)
        grown = server.memory() - before
        assert grown < memory_limit(16 * MB), f"{grown >> 20} MB more"
        client.close()
        still_serves(server)


def test_a_thousand_silent_clients():
    with Server("--handshake-timeout", "2", open_files=4096) as server:
        still_serves(server)
        before = server.memory()
        clients = []
        for n in range(1000):
            client = server.connect(flags=None if n % 2 else 3)
            if n % 4 == 0:
                client.send_option(OPT_GO, b"", length=1000)
            clients.append(client)
        grown = server.memory() - before
        assert grown < memory_limit(16 * MB), f"{grown >> 10} KiB more"
        still_serves(server)
        until(lambda: server_connections(server) == 0)
        for client in clients:
            client.close()
        still_serves(server)


def test_a_thousand_idle_clients_hold_little():
    with Server("--handshake-timeout", "60", open_files=4096) as server:
        still_serves(server)
        before = server.memory()
        clients = [server.connect().go() for _ in range(1000)]
        for client in clients:
            client.write(0, b"x" * 100000)
        grown = server.memory() - before
        assert grown < memory_limit(8 * MB), f"{grown >> 10} KiB more for 1000 clients"
        still_serves(server)
        for client in clients:
            client.close()
        until(lambda: server_connections(server) == 0)


def test_slow_handshake_is_cut_off_but_not_one_that_goes_on():
    with Server("--handshake-timeout", "1") as server:
        with server.connect() as slow, server.connect() as steady:
            option = struct.pack(">QII", OPTION_MAGIC, OPT_LIST, 0)
            start = time.monotonic()
            try:
                while time.monotonic() - start < 3:
                    assert len(steady.option(OPT_LIST)) == 2
                    slow.send(option[:1])
                    option = option[1:] + option[:1]
                    time.sleep(0.25)
                assert False, "a handshake in drops was never cut off"
            except Closed:
                assert len(steady.option(OPT_LIST)) == 2
            steady.go()
            time.sleep(1.5)
            assert steady.read(0, 5) == bytes(5)  # no time-out in transmission


def test_more_than_max_clients_are_turned_away():
    with Server("--max-clients", "3") as server:
        clients = [server.connect().go() for _ in range(3)]
        start = time.monotonic()
        for _ in range(500):
            try:
                server.connect()
                assert False, "a fourth client"
            except Closed:
                pass
        said = server.errors().count("client refused: 3 are connected: see --max-clients")
        assert 1 <= said <= 10 * (time.monotonic() - start + 2), f"{said} lines of log"
        clients.pop().close()
        until(lambda: server_connections(server) == 2)
        still_serves(server)


def test_out_of_descriptors_waits_and_goes_on():
    with Server(open_files=40, size=MB) as server:
        clients = []
        while len(clients) < 60:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(TIMEOUT)
            client.connect(server.address)
            clients.append(client)
        until(lambda: "clients must wait" in server.errors())
        start, said, used = time.monotonic(), server.errors().count("clients must wait"), server.cpu()
        time.sleep(2)
        assert server.cpu() - used < 0.3, "spins on accept"
        said = server.errors().count("clients must wait") - said
        assert said <= time.monotonic() - start + 1, f"{said} lines of log"
        for client in clients[:40]:
            client.close()
        assert clients[-1].recv(18)[:8] == b"NBDMAGIC"
        for client in clients:
            client.close()
        still_serves(server)


def test_garbage():
    with Server() as server:
        rng = random.Random(1)
        for n in range(300):
            with server.connect(flags=rng.choice((None, 3, 1, 0))) as client:
                data = bytearray(rng.randbytes(rng.randrange(1, 3000)))
                if n % 3 == 0:
                    data[:0] = struct.pack(">QII", OPTION_MAGIC, rng.randrange(12),
                                           rng.choice((0, 5, 100, 40000, 0xffffffff)))
                try:
                    client.send(bytes(data))
                except Closed:
                    pass
        for n in range(300):
            client = server.connect().go()
            stream = b"".join(
                request(rng.randrange(10), i, rng.choice((0, 4096, 2**64 - 1, rng.randrange(32 * MB))),
                        rng.choice((0, 1, 512, 65536, rng.randrange(2**32))),
                        rng.choice((0, 0, 0, rng.randrange(65536))))
                + rng.randbytes(rng.choice((0, 0, 0, 512))) for i in range(20))
            try:
                client.send(stream)
            except Closed:
                pass
            client.close()
        still_serves(server)


def test_many_clients_come_and_go():
    with Server() as server:
        def visit(seed):
            rng = random.Random(seed)
            for _ in range(30):
                with server.connect() as client:
                    if rng.random() < 0.8:
                        client.go()
                        offset = rng.randrange(8 * MB)
                        client.write(offset, b"z" * 5000)
                        client.send_request(READ, offset, 70000)
                        if rng.random() < 0.5:
                            client.send_request(DISC)

        threads = [threading.Thread(target=visit, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: server_connections(server) == 0)
        still_serves(server)


def begin_stop(server, sleeper):
    """The server has begun to stop, on its only worker, when this returns. sleeper is a client without requests."""
    server.process.send_signal(signal.SIGTERM)
    assert sleeper.is_closed()


def end_stop(server, client):
    assert client.is_closed()
    assert server.process.wait(TIMEOUT) == 0


def test_stop_refuses_requests_that_were_not_begun():
    with Server("-t", "1", "--client-memory", "1M", "--shutdown-timeout", str(TIMEOUT)) as server:
        client, sleeper = server.connect().go(), server.connect().go()
        client.write(0, b"x" * MB)
        count = 200  # their answers fit neither in the client's budget nor in the socket
        client.send(request(READ, 7, 0, 100000) * count)
        begin_stop(server, sleeper)
        answers = []
        while not answers or len(answers) < count:
            cookie, done, kind, payload = client.chunk()
            assert cookie == 7 and done and kind in (OFFSET_DATA, ERROR), kind
            answers.append(kind)
            if kind == OFFSET_DATA:
                assert payload[8:] == b"x" * 100000
            else:
                assert struct.unpack(">I", payload[:4])[0] == ESHUTDOWN
                assert payload[6:] == b"the server is shutting down"
        end_stop(server, client)
        assert answers[0] == OFFSET_DATA and answers[-1] == ERROR


def test_two_signals_at_once_are_one():
    """timeout(1) sends it to the process, and to its group."""
    with Server() as server:
        with server.connect() as client:
            client.go().write(0, b"x" * MB)
            server.process.send_signal(signal.SIGSTOP)
            server.process.send_signal(signal.SIGTERM)
            server.process.send_signal(signal.SIGINT)
            server.process.send_signal(signal.SIGCONT)
            assert server.process.wait(TIMEOUT) == 0


def test_stop_refuses_options_that_were_not_begun():
    with Server("-t", "1", "--shutdown-timeout", str(TIMEOUT), "--description", 4000 * "x") as server:
        client, sleeper = server.connect(), server.connect()
        count = 2000  # their answers fit neither in the queue nor in the socket
        client.send(struct.pack(">QII", OPTION_MAGIC, OPT_LIST, 0) * count)
        begin_stop(server, sleeper)
        answers = [client.option_replies(OPT_LIST)[-1][0] for _ in range(count)]
        end_stop(server, client)
        assert answers[0] == REP_ACK and answers[-1] == ERR_SHUTDOWN
        assert answers == sorted(answers)


def test_stop_does_not_wait_for_clients_that_read_nothing():
    with Server("--log-level=info") as server:
        clients = [server.connect().go() for _ in range(8)]
        for client in clients:
            client.write(0, b"x" * MB)
            client.send(request(READ, 7, 0, MB) * 100)
        for client in clients:
            client.socket.recv(1, socket.MSG_PEEK)  # the socket is full now, for ever
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < TIMEOUT / 2, "it waited for them to the end"
        assert server.errors().count("client dropped: it takes none of its last replies") == 8


def test_stop_with_a_thousand_clients_keeps_what_was_answered():
    """Each has one write answered, and one whose answer nobody waits for: that may be there whole, or not at all."""
    with Server(size=64 * MB, open_files=4096) as server:
        clients = [server.connect().go() for _ in range(1000)]
        for n, client in enumerate(clients):
            client.send(request(WRITE, 1, n * 65536, 4096) + bytes([1 + n % 200]) * 4096)
        for client in clients:
            assert client.chunk()[0] == 1
        for n, client in enumerate(clients):
            client.send(request(WRITE, 2, n * 65536 + 32768, 4096) + bytes([1 + n % 200]) * 4096)
        assert server.stop() == 0
        with open(server.images[0], "rb") as image:
            data = image.read()
        for n, client in enumerate(clients):
            block, at = bytes([1 + n % 200]) * 4096, n * 65536
            assert data[at:at + 4096] == block
            try:
                done = client.chunk()[3] == 0
            except Closed:
                done = False
            assert data[at + 32768:at + 36864] in ((block,) if done else (block, bytes(4096)))
            client.close()


def test_stop_keeps_what_was_answered_and_does_not_wait_for_sleepers():
    with Server("--shutdown-timeout", str(TIMEOUT)) as server:
        sleeper, handshake, half = server.connect().go(), server.connect(), server.connect(flags=None)
        writer = server.connect().go()
        assert writer.write(0, b"kept") == 0
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < TIMEOUT / 2, "it waited for clients that have nothing to come"
        for client in (sleeper, handshake, half, writer):
            assert client.is_closed()
        with open(server.images[0], "rb") as image:
            assert image.read(4) == b"kept"


if __name__ == "__main__":
    main(sys.modules[__name__])
