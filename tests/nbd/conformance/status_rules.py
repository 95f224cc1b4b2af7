"""Rules of BLOCK_STATUS, in structured replies."""
from protocol import *
from rules import Missing, Untried, expect, rule
from wire import meta_data

MIB = 1 << 20
ALLOCATION = b"base:allocation"
DEPTH = b"qemu:allocation-depth"


def status(session, offset, length, flags=0):
    """{context name: descriptors}, for a request that has to succeed."""
    reply = session.request(BLOCK_STATUS, offset, length, flags)
    expect(reply.error == 0, f"BLOCK_STATUS: {error_name(reply.error)}")
    missing = set(session.contexts) - set(reply.status)
    expect(not missing, f"no chunk of {[session.contexts[number] for number in missing]}")
    return {session.contexts[number]: found for number, found in reply.status.items()}


@rule("may", "base:allocation is offered.")
def status_offered(probe):
    with probe.begin("structured", [ALLOCATION]):
        pass


@rule("must", "BLOCK_STATUS has one chunk for each context, with at least one descriptor.")
def status_chunks(probe):
    probe.room(MIB)
    with probe.begin("structured", [ALLOCATION]) as session:
        for offset, length in ((0, MIB), (65536, 65536), (0, min(probe.size, 0xFFFF0000))):
            found = status(session, offset, length)[ALLOCATION]
            inside = sum(size for size, _ in found[:-1])
            expect(inside < length, f"{len(found)} descriptors go on after the range")


@rule("must", "Descriptors do not go past the end of the export.")
def status_in_export(probe):
    probe.room(MIB)
    with probe.begin("structured", [ALLOCATION]) as session:
        at = probe.size // 65536 * 65536 - 65536
        found = status(session, at, 65536)[ALLOCATION]
        total = sum(size for size, _ in found)
        expect(at + total <= probe.size, f"{total} bytes at {at} of {probe.size}")


@rule("must", "Descriptors are multiples of the minimum block size.")
def status_in_blocks(probe):
    probe.room(MIB)
    with probe.begin("structured", [ALLOCATION]) as session:
        for size, _ in status(session, 0, MIB)[ALLOCATION]:
            expect(size % probe.minimum == 0, f"a descriptor of {size} bytes")


@rule("should", "Descriptors side by side have different flags.")
def status_merged(probe):
    probe.room(MIB)
    with probe.begin("structured", [ALLOCATION]) as session:
        found = status(session, 0, MIB)[ALLOCATION]
        expect(all(a[1] != b[1] for a, b in zip(found, found[1:])), f"{found[:4]} ...")


@rule("must", "With REQ_ONE there is one descriptor, no longer than the range.")
def status_req_one(probe):
    probe.room(MIB)
    with probe.begin("structured", [ALLOCATION]) as session:
        for length in (512, 65536, MIB):
            found = status(session, 0, length, REQ_ONE)[ALLOCATION]
            expect(len(found) == 1 and found[0][0] <= length, f"{found[:4]} for {length} bytes")


@rule("should", "base:allocation uses the flags HOLE and ZERO alone.")
def status_flags(probe):
    probe.room(MIB)
    with probe.begin("structured", [ALLOCATION]) as session:
        for _, flags in status(session, 0, MIB)[ALLOCATION]:
            expect(not flags & ~(STATE_HOLE | STATE_ZERO), f"flags {flags:#x}")


@rule("must", "What is called ZERO reads as zeroes.")
def status_zero(probe):
    probe.room(MIB)
    with probe.begin("structured", [ALLOCATION]) as session:
        at = 0
        for size, flags in status(session, 0, MIB)[ALLOCATION]:
            size = min(size, MIB - at)
            if flags & STATE_ZERO and size > 0:
                expect(not any(session.read(at, size)), f"{size} bytes at {at} are not zeroes")
            at += size


@rule("must", "What was just written is called neither ZERO nor a hole.")
def status_after_writes(probe):
    probe.writing(MIB)
    with probe.begin("structured", [ALLOCATION]) as session:
        session.do(WRITE, 0, 131072, 0, b"s" * 131072)
        (size, flags), *_ = status(session, 0, 131072)[ALLOCATION]
        expect(size >= 131072 and flags == 0, f"written: {size} bytes with flags {flags}")


@rule("should", "BLOCK_STATUS without a context gets EINVAL, and the connection goes on.")
def status_without_context(probe):
    for style in ("simple", "structured"):
        with probe.begin(style) as session:
            session.fails(EINVAL, BLOCK_STATUS, 0, 512)


@rule("should", "A SET_META_CONTEXT that fails, or for another export, takes the choice back.")
def status_choice_taken_back(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        if not probe.choose(connection, [ALLOCATION]):
            raise Missing("no base:allocation")
        bad = meta_data(probe.target.export, [ALLOCATION])[:-1]
        expect(connection.outcome(OPT_SET_META_CONTEXT, bad) & 1 << 31, "a malformed option was taken")
        flags = session_flags(connection)
        connection.send(pack_status(0, 512))
        expect(simple_or_error(connection) == EINVAL, f"BLOCK_STATUS was answered (flags {flags:#x})")


@rule("should", "BLOCK_STATUS past the end gets EINVAL, and the connection goes on.")
def status_past_the_end(probe):
    with probe.begin("structured", [ALLOCATION]) as session:
        unit = max(512, probe.minimum)
        session.fails(EINVAL, BLOCK_STATUS, probe.size, unit)
        session.fails(EINVAL, BLOCK_STATUS, 2**64 - unit, unit)


@rule("should", "BLOCK_STATUS of no bytes does not end the connection.")
def status_no_bytes(probe):
    with probe.begin("structured", [ALLOCATION]) as session:
        session.request(BLOCK_STATUS, 0, 0)
        session.goes_on()


@rule("should", "BLOCK_STATUS with a flag that is none of its own gets EINVAL.")
def status_flags_unknown(probe):
    with probe.begin("structured", [ALLOCATION]) as session:
        for bit in (1, 2, 4, 5, 15):
            session.fails(EINVAL, BLOCK_STATUS, 0, 512, 1 << bit)


@rule("may", "qemu:allocation-depth is offered: 0 unallocated, 1 in the image itself, 2 and more below it.")
def status_depth(probe):
    probe.room(MIB)
    with probe.begin("structured", [DEPTH]) as session:
        status(session, 0, MIB)


@rule("must", "With several contexts each has its chunk.")
def status_two_contexts(probe):
    probe.room(MIB)
    with probe.begin("structured", [ALLOCATION, DEPTH]) as session:
        if len(session.contexts) < 2:
            raise Missing("only " + " ".join(name.decode() for name in session.contexts.values()))
        for flags in (0, REQ_ONE):
            expect(len(status(session, 0, MIB, flags)) == 2, "not two chunks")


@rule("must", "SET_META_CONTEXT gives each chosen context once, however often it was asked for.")
def context_many_queries(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        probe.choose(connection, [])
        replies = connection.option(OPT_SET_META_CONTEXT, meta_data(probe.target.export, [ALLOCATION] * 500))
        numbers = [data[:4] for kind, data in replies if kind == REP_META_CONTEXT]
        expect(len(numbers) == len(set(numbers)), f"{len(numbers)} contexts, {len(set(numbers))} numbers")
        connection.is_alive()


def session_flags(connection):
    outcome, infos = connection.info(OPT_GO, infos=(INFO_BLOCK_SIZE,))
    if outcome != REP_ACK:
        raise Untried(reply_name(outcome))
    return int.from_bytes(infos[INFO_EXPORT][8:], "big")


def pack_status(offset, length):
    return (REQUEST_MAGIC.to_bytes(4, "big") + bytes((0, 0, 0, BLOCK_STATUS)) + (7).to_bytes(8, "big")
            + offset.to_bytes(8, "big") + length.to_bytes(4, "big"))


def simple_or_error(connection):
    """The error of a simple reply or of an error chunk; 0 for any other chunk."""
    if int.from_bytes(connection.receive(4), "big") == SIMPLE_REPLY_MAGIC:
        return int.from_bytes(connection.receive(12)[:4], "big")
    head = connection.receive(16)
    payload = connection.receive(int.from_bytes(head[12:], "big"))
    return int.from_bytes(payload[:4], "big") if head[2] & 0x80 else 0
