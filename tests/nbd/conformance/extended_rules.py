"""Rules of extended headers (64-bit lengths) and of BLOCK_STATUS with a payload."""
import os
import struct

from protocol import *
from rules import Missing, Untried, Wrong, expect, rule
from status_rules import ALLOCATION, DEPTH, status
from wire import Closed

MIB, GIB = 1 << 20, 1 << 30


def payload_session(probe, contexts):
    session = probe.begin("extended", contexts)
    if not session.has(BLOCK_STATUS_PAYLOAD):
        raise Missing("BLOCK_STATUS_PAYLOAD is not set")
    return session


def ids(session, effect, *numbers):
    payload = struct.pack(">Q", effect) + b"".join(struct.pack(">I", number) for number in numbers)
    return session.request(BLOCK_STATUS, 0, len(payload), PAYLOAD_LEN, payload)


@rule("may", "Extended headers are offered.")
def extended_offered(probe):
    with probe.begin("extended"):
        pass


@rule("should", "EXTENDED_HEADERS with data gets ERR_INVALID, and the handshake goes on.")
def extended_with_data(probe):
    with probe.begin("extended"):
        pass
    with probe.connect() as connection:
        outcome = connection.outcome(OPT_EXTENDED_HEADERS, b"data")
        expect(outcome == ERR_INVALID, reply_name(outcome))
        connection.is_alive()


@rule("must", "After extended headers, STRUCTURED_REPLY gets ERR_EXT_HEADER_REQD.")
def extended_then_structured(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "extended")
        outcome = connection.outcome(OPT_STRUCTURED_REPLY)
        expect(outcome == ERR_EXT_HEADER_REQD, reply_name(outcome))
        connection.is_alive()


@rule("should", "Extended headers can be had after structured replies.")
def extended_after_structured(probe):
    with probe.begin("extended"):
        pass
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        outcome = connection.outcome(OPT_EXTENDED_HEADERS)
        expect(outcome == REP_ACK, reply_name(outcome))


@rule("must", "Every reply is an extended one, with the request's cookie and offset.")
def extended_replies(probe):
    probe.room(MIB)
    with probe.begin("extended") as session, probe.begin() as simple:
        for offset, length in ((0, 512), (65536, 65536), (0, MIB)):
            expect(session.read(offset, length) == simple.read(offset, length), "other bytes than a simple reply")
        if session.has(SEND_FLUSH):
            session.do(FLUSH)
        session.fails(EINVAL, READ, session.size, 512)


@rule("should", "READ and BLOCK_STATUS of 2^63 bytes get an error, and the connection goes on.")
def extended_read_too_long(probe):
    with probe.begin("extended") as session:
        for offset, length in ((0, 1 << 63), (0, (1 << 32) + 512), (512, 2**64 - 512)):
            if length > session.size:
                session.fails(EINVAL, READ, offset, length)


@rule("must", "WRITE with PAYLOAD_LEN is read back.")
def extended_write(probe):
    probe.writing(MIB)
    with probe.begin("extended") as session:
        data = os.urandom(65536)
        session.do(WRITE, 4096, 65536, 0, data)
        expect(session.read(4096, 65536) == data, "other bytes were read")


@rule("should", "WRITE past the end gets ENOSPC, its payload is skipped.")
def extended_write_past_the_end(probe):
    probe.writing(MIB)
    with probe.begin("extended") as session:
        session.fails(ENOSPC, WRITE, session.size, 4096, 0, bytes(4096))


@rule("may", "A WRITE that lacks PAYLOAD_LEN, as qemu sends it, has its payload.")
def extended_write_without_flag(probe):
    probe.writing(MIB)
    data = os.urandom(4096)
    with probe.begin("extended") as session:
        try:
            session.do(WRITE, 0, 4096, PAYLOAD_LEN, data)
        except (Closed, Wrong) as other:
            raise Missing("the payload is not taken for one") from other
        expect(session.read(0, 4096) == data, "other bytes were read")


@rule("must", "PAYLOAD_LEN on a command that takes no payload gets EINVAL, the payload is skipped.")
def extended_payload_unexpected(probe):
    with probe.begin("extended") as session:
        for command in (READ, FLUSH, TRIM, 99):
            reply = session.request(command, 0, 4096, PAYLOAD_LEN, bytes(4096))
            expect(reply.error == EINVAL, f"command {command}: {error_name(reply.error)}")
            session.goes_on()


@rule("should", "TRIM and WRITE_ZEROES take lengths over 4 GiB, where the export is so large.")
def extended_long_zeroes(probe):
    probe.writing(6 * GIB)
    with probe.begin("extended") as session:
        if not session.has(SEND_WRITE_ZEROES):
            raise Missing("SEND_WRITE_ZEROES is not set")
        session.do(WRITE, 5 * GIB, 512, 0, b"l" * 512)
        session.do(WRITE_ZEROES, GIB, 5 * GIB - 65536)
        expect(session.read(5 * GIB, 512) == bytes(512), "not zeroed")
        if session.has(SEND_TRIM):
            session.do(TRIM, GIB, 5 * GIB - 65536)


@rule("must", "A length over 4 GiB that goes past the end is refused, not cut to 32 bits.")
def extended_not_cut(probe):
    with probe.begin("extended") as session:
        if not probe.may_write or probe.read_only or not session.has(SEND_WRITE_ZEROES):
            raise Untried("needs --write")
        if session.size > GIB:
            raise Untried("the export is too large")
        before = session.read(0, 512)
        expect(session.request(WRITE_ZEROES, 0, (1 << 32) + 512).error != 0, "WRITE_ZEROES of it was done")
        expect(session.read(0, 512) == before, "the lower 32 bits of the length were zeroed")


@rule("must", "BLOCK_STATUS is answered with 64-bit descriptors alone.")
def extended_status(probe):
    probe.room(MIB)
    with probe.begin("extended", [ALLOCATION]) as session:
        reply = session.request(BLOCK_STATUS, 0, MIB)
        expect(reply.error == 0, error_name(reply.error))
        expect(STATUS not in reply.kinds and STATUS_EXT in reply.kinds, f"chunk types {reply.kinds}")
        expect(list(reply.status) == list(session.contexts), "not one chunk of the context")
        (size, _), *more = status(session, 0, MIB, REQ_ONE)[ALLOCATION]
        expect(size <= MIB and not more, "REQ_ONE: more than one descriptor, or a longer one")


@rule("must", "64-bit and 32-bit descriptors say the same.")
def extended_status_same(probe):
    probe.room(MIB)
    with probe.begin("extended", [ALLOCATION]) as wide, probe.begin("structured", [ALLOCATION]) as narrow:
        one, other = (cut(status(session, 0, MIB)[ALLOCATION], MIB) for session in (wide, narrow))
        length = min(sum(size for size, _ in one), sum(size for size, _ in other))
        expect(cut(one, length) == cut(other, length), f"{one[:4]} and {other[:4]}")


def cut(found, length):
    """The descriptors of the first length bytes, neighbours of one kind joined."""
    result = []
    for size, flags in found:
        size = min(size, length)
        length -= size
        if size and result and result[-1][1] == flags:
            result[-1] = (result[-1][0] + size, flags)
        elif size:
            result.append((size, flags))
    return result


@rule("may", "BLOCK_STATUS takes a payload that names contexts.")
def payload_offered(probe):
    with payload_session(probe, [ALLOCATION]):
        pass


@rule("must", "A payload chooses which of the contexts are answered.")
def payload_chooses(probe):
    probe.room(MIB)
    with payload_session(probe, [ALLOCATION, DEPTH]) as session:
        if len(session.contexts) < 2:
            raise Missing("only one context")
        for number in session.contexts:
            reply = ids(session, MIB, number)
            expect(reply.error == 0 and list(reply.status) == [number], f"{error_name(reply.error)}: {reply.status}")
        reply = ids(session, MIB, *session.contexts)
        expect(reply.error == 0 and len(reply.status) == 2, f"{error_name(reply.error)}: {reply.status}")


@rule("must", "A payload with an unknown or doubled context, or of a wrong length, gets EINVAL and is skipped.")
def payload_malformed(probe):
    with payload_session(probe, [ALLOCATION]) as session:
        number, = session.contexts
        expect(ids(session, 512, number ^ 0x5555).error == EINVAL, "an unknown context was taken")
        expect(ids(session, 512, number, number).error == EINVAL, "a context twice was taken")
        for length in (1, 7, 9, 13, 4096):
            reply = session.request(BLOCK_STATUS, 0, length, PAYLOAD_LEN, bytes(length))
            expect(reply.error == EINVAL, f"a payload of {length} bytes: {error_name(reply.error)}")
        session.goes_on()


@rule("should", "The payload form is not offered without a context; who sends it all the same harms nobody else.")
def payload_without_context(probe):
    with probe.begin("extended") as session:
        expect(not session.has(BLOCK_STATUS_PAYLOAD), "BLOCK_STATUS_PAYLOAD is set without a context")
        try:
            ids(session, 512)
        except Closed:
            with probe.begin():  # the server is still there
                raise Missing("the connection was closed") from None
