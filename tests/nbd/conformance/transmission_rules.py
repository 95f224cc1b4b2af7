"""Rules of the transmission phase, in simple and in structured replies."""
import os
import struct

from protocol import *
from rules import Missing, Untried, expect, rule

MIB = 1 << 20
STYLES = ("simple", "structured")


def styles(probe):
    """A session of each style that the server has; simple ones are the baseline."""
    for style in STYLES:
        try:
            session = probe.begin(style)
        except Missing:
            continue
        with session:
            yield session


@rule("must", "READ gives the bytes of the range, all of them once, with the request's cookie.")
def read(probe):
    probe.room(MIB)
    for session in styles(probe):
        whole = session.read(0, MIB)
        for offset, length in ((0, 512), (4096, 65536), (MIB - 512, 512)):
            expect(session.read(offset, length) == whole[offset:offset + length], "not the same bytes twice")


@rule("must", "READ of single bytes works where the minimum block size is 1.")
def read_unaligned(probe):
    probe.room(MIB)
    if probe.minimum > 1:
        raise Untried(f"the minimum block size is {probe.minimum}")
    for session in styles(probe):
        whole = session.read(0, 8192)
        for offset, length in ((0, 1), (511, 2), (4095, 2), (1, 8000)):
            expect(session.read(offset, length) == whole[offset:offset + length], f"{length} bytes at {offset}")


@rule("must", "Requests sent all at once are each answered once.")
def many_requests(probe):
    probe.room(MIB)
    for session in styles(probe):
        wanted = session.read(0, 64 * 4096)
        cookies = {session.send(READ, n * 4096, 4096): n for n in range(64)}
        for cookie, reply in session.collect().items():
            data = b"".join(content for _, _, content in sorted(reply.chunks))
            at = cookies[cookie] * 4096
            expect(reply.error == 0 and data == wanted[at:at + 4096], f"the READ at {at} gave other bytes")


@rule("must", "A request that arrives byte by byte is the same request.")
def request_in_pieces(probe):
    with probe.begin() as session:
        session.cookie += 1
        session.sent[session.cookie] = (READ, 0, 512)
        for byte in session.pack(READ, 0, 512, 0, session.cookie):
            session.connection.send(bytes([byte]))
        expect(session.collect()[session.cookie].error == 0, "READ failed")


@rule("should", "READ past the end gets EINVAL, and the connection goes on.")
def read_past_the_end(probe):
    for session in styles(probe):
        unit = max(512, probe.minimum)
        for offset, length in ((probe.size, unit), (probe.size - unit, 2 * unit), (2**64 - unit, unit),
                               (2**63, unit)):
            session.fails(EINVAL, READ, offset, length)


@rule("should", "READ longer than the maximum is refused or answered, and the connection goes on.")
def read_too_long(probe):
    if probe.maximum >= 1 << 30:
        raise Untried(f"the maximum is {probe.maximum} bytes")
    with probe.begin() as session:
        length = (probe.maximum + 1 + 65535) // 65536 * 65536
        reply = session.request(READ, 0, length)
        expect(reply.error in (0, EINVAL, EOVERFLOW, ENOMEM), f"READ of {length} bytes: {error_name(reply.error)}")
        session.goes_on()


@rule("must", "With DF, a READ of 64 KiB is one content chunk.")
def read_df(probe):
    probe.room(MIB)
    with probe.begin("structured") as session:
        if not session.has(SEND_DF):
            raise Missing("SEND_DF is not set")
        for offset in range(0, MIB, 65536):
            reply = session.request(READ, offset, 65536, DF)
            expect(reply.error == 0, f"READ with DF: {error_name(reply.error)}")
            expect(len(reply.chunks) == 1, f"{len(reply.chunks)} content chunks")
            expect(sum(size for _, size, _ in reply.chunks) == 65536, "not all bytes")


@rule("should", "DF where it was not advertised gets EINVAL.")
def read_df_unadvertised(probe):
    with probe.begin() as session:
        session.fails(EINVAL, READ, 0, 512, DF)


@rule("should", "Requests of no bytes do not end the connection.")
def no_bytes(probe):
    for session in styles(probe):
        commands = [READ]
        if probe.may_write and not probe.read_only:
            commands += [WRITE] + [TRIM] * session.has(SEND_TRIM) + [WRITE_ZEROES] * session.has(SEND_WRITE_ZEROES)
        for command in commands:
            session.request(command, 0, 0)
        session.goes_on()


@rule("must", "FUA is accepted with every command, where it is advertised.")
def fua_everywhere(probe):
    with probe.begin() as session:
        if not session.has(SEND_FUA):
            raise Missing("SEND_FUA is not set")
        session.do(READ, 0, 512, FUA)
        if session.has(SEND_FLUSH):
            session.do(FLUSH, flags=FUA)


@rule("should", "Command flags that do not belong to a command get EINVAL, and the connection goes on.")
def flags_unknown(probe):
    for session in styles(probe):
        for bit in (1, 3, 4, 6, 9, 15):
            session.fails(EINVAL, READ, 0, 512, 1 << bit)


@rule("should", "An unknown command gets EINVAL, and the connection goes on.")
def command_unknown(probe):
    for session in styles(probe):
        for command in (9, 100, 0xFFFF):
            error = session.request(command, 0, 512).error
            expect(error == EINVAL, f"command {command}: {error_name(error)}")
        session.goes_on()


@rule("may", "Errors are told with a text, where replies are structured.")
def error_text(probe):
    with probe.begin("structured") as session:
        if not session.request(READ, session.size, 512).text:
            raise Missing("no text")


@rule("should", "Errors of every command are structured replies, where these were negotiated.")
def error_structured(probe):
    with probe.begin("structured") as session:
        for command in (READ, BLOCK_STATUS, 99):
            reply = session.request(command, session.size, 512)
            expect(reply.error and not reply.simple, f"command {command}: a simple reply")


@rule("must", "DISC is not answered; what is in flight is, and the connection closes.")
def disconnect(probe):
    with probe.begin() as session:
        cookie = session.send(READ, 0, 512)
        session.connection.send(session.pack(DISC, 0, 0, 0, 99))
        expect(session.collect()[cookie].error == 0, "the READ before it failed")
        expect(session.connection.is_closed(), "the connection is open")


@rule("must", "FLUSH succeeds, where it is advertised.")
def flush(probe):
    for session in styles(probe):
        if not session.has(SEND_FLUSH):
            raise Missing("SEND_FLUSH is not set")
        session.do(FLUSH)


@rule("must", "CACHE, where it is advertised, is answered and changes nothing.")
def cache(probe):
    with probe.begin() as session:
        if not session.has(SEND_CACHE):
            raise Missing("SEND_CACHE is not set")
        before = session.read(0, 4096)
        session.request(CACHE, 0, 65536)
        expect(session.read(0, 4096) == before, "other bytes after it")


@rule("must", "Writes to a read-only export fail.")
def read_only_fails(probe):
    if not probe.read_only:
        raise Untried("the export is not read-only")
    for session in styles(probe):
        for command, payload in ((WRITE, bytes(512)), (TRIM, b""), (WRITE_ZEROES, b"")):
            expect(session.request(command, 0, 512, 0, payload).error, f"{COMMAND_NAMES[command]} succeeded")
        session.goes_on()


@rule("should", "Writes to a read-only export get EPERM.")
def read_only_eperm(probe):
    if not probe.read_only:
        raise Untried("the export is not read-only")
    with probe.begin() as session:
        for command, payload in ((WRITE, bytes(512)), (TRIM, b""), (WRITE_ZEROES, b"")):
            session.fails(EPERM, command, 0, 512, 0, payload)


# Writes. Each puts its bytes into the first MiB.


@rule("must", "WRITE is read back, by this connection and by the next.")
def write(probe):
    probe.writing(MIB)
    for session in styles(probe):
        data = os.urandom(65536)
        session.do(WRITE, 4096, 65536, 0, data)
        expect(session.read(4096, 65536) == data, "other bytes were read")
        session.connection.socket.close()
        with probe.begin() as other:
            expect(other.read(4096, 65536) == data, "other bytes were read by another connection")


@rule("must", "WRITE of single bytes changes only these, where the minimum block size is 1.")
def write_unaligned(probe):
    probe.writing(MIB)
    if probe.minimum > 1:
        raise Untried(f"the minimum block size is {probe.minimum}")
    with probe.begin() as session:
        session.do(WRITE, 0, 8192, 0, b"a" * 8192)
        session.do(WRITE, 4095, 3, 0, b"xyz")
        expect(session.read(0, 8192) == b"a" * 4095 + b"xyz" + b"a" * 4094, "other bytes changed too")


@rule("must", "WRITE with FUA succeeds, where it is advertised.")
def write_fua(probe):
    probe.writing(MIB)
    with probe.begin() as session:
        if not session.has(SEND_FUA):
            raise Missing("SEND_FUA is not set")
        session.do(WRITE, 0, 512, FUA, b"f" * 512)


@rule("should", "WRITE past the end gets ENOSPC, its payload is skipped, and the connection goes on.")
def write_past_the_end(probe):
    probe.writing()
    for session in styles(probe):
        unit = max(512, probe.minimum)
        for offset, length in ((probe.size, unit), (probe.size - unit, 2 * unit), (2**64 - unit, unit)):
            session.fails(ENOSPC, WRITE, offset, length, 0, bytes(length))


@rule("should", "WRITE with a flag that is none of its own gets EINVAL, its payload is skipped.")
def write_flags_unknown(probe):
    probe.writing(MIB)
    for session in styles(probe):
        before = session.read(0, 512)
        for bit in (1, 2, 3, 4, 6, 15):
            session.fails(EINVAL, WRITE, 0, 512, 1 << bit, b"w" * 512)
        expect(session.read(0, 512) == before, "it was written all the same")


@rule("must", "WRITE and READ of the maximum block size work, and one byte more does not end the connection.")
def write_maximum(probe):
    probe.writing(6 << 30)
    at, length = 1 << 30, min(probe.maximum, 64 * MIB)
    with probe.begin() as session:
        data = os.urandom(MIB) * (length // MIB) + bytes(length % MIB)
        session.do(WRITE, at, length, 0, data)
        expect(session.read(at, length) == data, "other bytes were read")
        if probe.minimum == 1 and length == probe.maximum:
            error = session.request(WRITE, at, length + 1, 0, data + b"+").error
            expect(error in (0, EINVAL, EOVERFLOW), error_name(error))
            session.goes_on()


@rule("must", "Requests and payloads sent all at once keep their places.")
def write_many(probe):
    probe.writing(MIB)
    with probe.begin() as session:
        data = [os.urandom(4096) for _ in range(64)]
        for n, block in enumerate(data):
            session.send(WRITE, n * 4096, 4096, 0, block)
        expect(all(reply.error == 0 for reply in session.collect().values()), "a WRITE failed")
        expect(session.read(0, 64 * 4096) == b"".join(data), "other bytes were read")


@rule("should", "TRIM succeeds, and past the end gets EINVAL.")
def trim(probe):
    probe.writing(MIB)
    with probe.begin() as session:
        if not session.has(SEND_TRIM):
            raise Missing("SEND_TRIM is not set")
        session.do(TRIM, 0, 65536)
        session.read(0, 65536)
        session.fails(EINVAL, TRIM, probe.size, max(512, probe.minimum))


@rule("must", "WRITE_ZEROES leaves zeroes, with and without NO_HOLE.")
def write_zeroes(probe):
    probe.writing(MIB)
    with probe.begin() as session:
        if not session.has(SEND_WRITE_ZEROES):
            raise Missing("SEND_WRITE_ZEROES is not set")
        for flags in (0, NO_HOLE, FUA if session.has(SEND_FUA) else 0):
            session.do(WRITE, 0, 131072, 0, b"z" * 131072)
            session.do(WRITE_ZEROES, 4096, 65536, flags)
            wanted = b"z" * 4096 + bytes(65536) + b"z" * 61440
            expect(session.read(0, 131072) == wanted, f"other bytes after WRITE_ZEROES with flags {flags}")


@rule("should", "WRITE_ZEROES past the end gets ENOSPC.")
def write_zeroes_past_the_end(probe):
    probe.writing(MIB)
    with probe.begin() as session:
        if not session.has(SEND_WRITE_ZEROES):
            raise Missing("SEND_WRITE_ZEROES is not set")
        session.fails(ENOSPC, WRITE_ZEROES, probe.size, max(512, probe.minimum))


@rule("must", "FAST_ZERO zeroes or gets ENOTSUP and changes nothing; unadvertised it gets EINVAL.")
def fast_zero(probe):
    probe.writing(MIB)
    with probe.begin() as session:
        if not session.has(SEND_WRITE_ZEROES):
            raise Missing("SEND_WRITE_ZEROES is not set")
        session.do(WRITE, 0, 65536, 0, b"q" * 65536)
        error = session.request(WRITE_ZEROES, 0, 65536, FAST_ZERO).error
        allowed = (0, ENOTSUP) if session.has(SEND_FAST_ZERO) else (EINVAL,)
        expect(error in allowed, error_name(error))
        wanted = b"q" * 65536 if error else bytes(65536)
        expect(session.read(0, 65536) == wanted, f"other bytes after {error_name(error)}")


@rule("may", "RESIZE, an experimental extension, is offered.")
def resize_offered(probe):
    with probe.begin() as session:
        if not session.has(SEND_RESIZE):
            raise Missing("SEND_RESIZE is not set")


@rule("should", "RESIZE gets EINVAL where it is not offered, and the connection goes on.")
def resize_unadvertised(probe):
    for session in styles(probe):
        if session.has(SEND_RESIZE):
            raise Untried("RESIZE is offered")
        error = session.request(RESIZE, probe.size, 0).error
        expect(error in (EINVAL, ENOTSUP), error_name(error))
        session.goes_on()


@rule("must", "RESIZE to the size that the export has changes nothing; with a length it gets EINVAL.")
def resize_to_the_same(probe):
    probe.writing(MIB)
    for session in styles(probe):
        if not session.has(SEND_RESIZE):
            raise Missing("SEND_RESIZE is not set")
        before = session.read(0, MIB)
        session.do(RESIZE, probe.size, 0)
        session.fails(EINVAL, RESIZE, probe.size, 512)
        expect(session.read(0, MIB) == before, "other bytes after it")
    with probe.begin() as session:
        expect(session.size == probe.size, "the export has another size after it")


@rule("must", "With CAN_MULTI_CONN, what one connection wrote and flushed all others read.")
def multi_conn(probe):
    probe.writing(MIB)
    with probe.begin() as one, probe.begin() as two:
        if not one.has(CAN_MULTI_CONN):
            raise Missing("CAN_MULTI_CONN is not set")
        two.read(0, 4096)
        data = os.urandom(4096)
        one.do(WRITE, 0, 4096, 0, data)
        if one.has(SEND_FLUSH):
            one.do(FLUSH)
        expect(two.read(0, 4096) == data, "the other connection reads old bytes")


@rule("must", "A client killed in the middle of a payload has written nothing that it did not send.")
def write_cut_off(probe):
    probe.writing(MIB)
    with probe.begin() as session:
        session.do(WRITE, 0, 65536, 0, b"o" * 65536)
        session.connection.send(session.pack(WRITE, 0, 65536, 0, 5) + b"n" * 30000)
    with probe.begin() as session:
        data = session.read(0, 65536)
        expect(data[30000:] == b"o" * 35536 and not data.strip(b"on"), "bytes that nobody sent")
