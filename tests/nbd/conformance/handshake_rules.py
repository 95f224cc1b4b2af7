"""Rules of the handshake: the greeting and every option, but those of extended headers."""
import struct

from protocol import *
from rules import Missing, Untried, Wrong, expect, rule
from wire import Closed, info_data, meta_data

STRANGE = b"there is hardly an export with this name"
ALLOCATION = b"base:allocation"


def is_error(kind):
    return bool(kind & 1 << 31)


@rule("must", "The greeting begins with NBDMAGIC and IHAVEOPT.")
def greeting_magic(probe):
    with probe.connect(client_flags=None) as connection:
        expect(connection.magic == INIT_MAGIC, f"the magic is {connection.magic:#x}")
        expect(connection.option_magic == OPTION_MAGIC, f"the option magic is {connection.option_magic:#x}")


@rule("must", "Fixed newstyle is offered (the baseline of the document).")
def greeting_fixed_newstyle(probe):
    with probe.connect(client_flags=None) as connection:
        expect(connection.server_flags & FIXED_NEWSTYLE, f"the handshake flags are {connection.server_flags:#x}")


@rule("must", "The greeting has no handshake flags but FIXED_NEWSTYLE and NO_ZEROES.")
def greeting_no_other_flags(probe):
    with probe.connect(client_flags=None) as connection:
        other = connection.server_flags & ~(FIXED_NEWSTYLE | NO_ZEROES)
        expect(not other, f"the handshake flags are {connection.server_flags:#x}")


@rule("may", "NO_ZEROES is offered.")
def greeting_no_zeroes(probe):
    with probe.connect(client_flags=None) as connection:
        if not connection.server_flags & NO_ZEROES:
            raise Missing("not offered")


@rule("must", "A client flag that the server does not know ends the connection.")
def client_flags_unknown(probe):
    for flag in (1 << 2, 1 << 31):
        with probe.connect(FIXED_NEWSTYLE | flag) as connection:
            try:
                connection.send_option(OPT_LIST)
            except Closed:
                continue
            expect(connection.is_closed(), f"client flags {FIXED_NEWSTYLE | flag:#x} were accepted")


@rule("must", "EXPORT_NAME gives size, flags and 124 zeroes, and begins transmission.")
def export_name_with_zeroes(probe):
    with probe.connect(FIXED_NEWSTYLE) as connection:
        connection.send_option(OPT_EXPORT_NAME, probe.target.export)
        size, flags = struct.unpack(">QH", connection.receive(10))
        expect(size == probe.size, f"the size is {size}, by GO it is {probe.size}")
        expect(flags & HAS_FLAGS, "HAS_FLAGS is not set")
        expect(connection.receive(124) == bytes(124), "124 bytes that are not zeroes")
        connection.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 77, 0, min(512, size)))
        reply = struct.unpack(">IIQ", connection.receive(16))
        expect(reply == (SIMPLE_REPLY_MAGIC, 0, 77), f"READ was answered with {reply}")


@rule("must", "EXPORT_NAME sends no zeroes after NO_ZEROES was agreed upon.")
def export_name_without_zeroes(probe):
    with probe.connect() as connection:
        if not connection.server_flags & NO_ZEROES:
            raise Missing("NO_ZEROES is not offered")
        connection.send_option(OPT_EXPORT_NAME, probe.target.export)
        connection.receive(10)
        connection.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 77, 0, 0))
        magic, = struct.unpack(">I", connection.receive(4))
        expect(magic == SIMPLE_REPLY_MAGIC, f"{magic:#x} in the place of a reply")


@rule("must", "EXPORT_NAME with a name that does not exist ends the session.")
def export_name_unknown(probe):
    with probe.connect() as connection:
        connection.send_option(OPT_EXPORT_NAME, STRANGE)
        if not connection.is_closed():
            with probe.connect() as other:
                if other.info(name=STRANGE)[0] == REP_ACK:
                    raise Untried("this server has every name")
            raise Wrong("the session went on")


@rule("may", "A client that is not fixed newstyle can use EXPORT_NAME.")
def export_name_newstyle(probe):
    with probe.connect(0) as connection:
        try:
            connection.send_option(OPT_EXPORT_NAME, probe.target.export)
            connection.receive(134)
        except Closed:
            raise Missing("the session ended") from None


@rule("must", "An unknown option gets ERR_UNSUP, its data is skipped, and the handshake goes on.")
def option_unknown(probe):
    with probe.connect() as connection:
        for option in (4, 12, 0x7FFFFFFF, 0xFFFFFFFF):
            for data in (b"", b"some data of no meaning" * 40):
                outcome = connection.outcome(option, data)
                expect(outcome == ERR_UNSUP, f"option {option}: {reply_name(outcome)}")
        connection.is_alive()


@rule("must", "An option with 128 KiB of data is refused, its data is skipped, and the handshake goes on.")
def option_too_big(probe):
    with probe.connect() as connection:
        for option in (OPT_INFO, 0x7FFFFFFF):
            outcome = connection.outcome(option, bytes(128 << 10))
            expect(outcome in (ERR_TOO_BIG, ERR_INVALID, ERR_UNSUP), f"option {option}: {reply_name(outcome)}")
        connection.is_alive()


@rule("must", "An option that arrives byte by byte is the same option.")
def option_in_pieces(probe):
    with probe.connect() as connection:
        data = info_data(probe.target.export)
        for byte in struct.pack(">QII", OPTION_MAGIC, OPT_INFO, len(data)) + data:
            connection.send(bytes([byte]))
        kind, _ = connection.option_reply(OPT_INFO)
        expect(kind == REP_INFO, reply_name(kind))


@rule("must", "ABORT is acknowledged.")
def abort_acknowledged(probe):
    with probe.connect() as connection:
        outcome = connection.outcome(OPT_ABORT)
        expect(outcome == REP_ACK, reply_name(outcome))


@rule("should", "A client that sends ABORT and leaves without the answer disturbs nobody.")
def abort_without_waiting(probe):
    with probe.connect() as connection:
        connection.send_option(OPT_ABORT)
    with probe.connect() as connection:
        connection.is_alive()


@rule("must", "LIST gives SERVER replies with names of at most 4096 bytes in UTF-8, then ACK without data.")
def list_exports(probe):
    with probe.connect() as connection:
        replies = connection.option(OPT_LIST)
    kind, rest = replies[-1]
    if kind == ERR_POLICY:
        raise Missing("ERR_POLICY: the server does not tell")
    expect(kind == REP_ACK and not rest, f"ends with {reply_name(kind)} and {len(rest)} bytes")
    for kind, data in replies[:-1]:
        expect(kind == REP_SERVER and len(data) >= 4, reply_name(kind))
        length, = struct.unpack(">I", data[:4])
        expect(length <= min(4096, len(data) - 4), f"a name of {length} bytes in {len(data)}")
        try:
            data[4:].decode()
        except UnicodeDecodeError:
            raise Wrong("a name or description that is not UTF-8") from None


@rule("should", "LIST with data gets ERR_INVALID, and the handshake goes on.")
def list_with_data(probe):
    with probe.connect() as connection:
        outcome = connection.outcome(OPT_LIST, b"data")
        expect(outcome == ERR_INVALID, reply_name(outcome))
        connection.is_alive()


@rule("must", "INFO of the export gives INFO_EXPORT and ACK, and the handshake goes on.")
def info_export(probe):
    with probe.connect() as connection:
        outcome, infos = connection.info()
        expect(outcome == REP_ACK, reply_name(outcome))
        expect(len(infos.get(INFO_EXPORT, b"")) == 10, "no INFO_EXPORT of 12 bytes")
        size, flags = struct.unpack(">QH", infos[INFO_EXPORT])
        expect(size == probe.size, f"the size is {size}, by GO it is {probe.size}")
        expect(flags & HAS_FLAGS, "HAS_FLAGS is not set")
        connection.is_alive()


@rule("must", "INFO and a GO after it with the same wishes say the same.")
def info_then_go(probe):
    with probe.connect() as connection:
        wishes = (INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE)
        asked, infos = connection.info(OPT_INFO, infos=wishes)
        went, again = connection.info(OPT_GO, infos=wishes)
        expect(asked == went and infos == again, f"{infos} and then {again}")


@rule("must", "INFO and GO of a name that does not exist get an error, and the handshake goes on.")
def info_unknown(probe):
    for option in (OPT_INFO, OPT_GO):
        with probe.connect() as connection:
            outcome, infos = connection.info(option, STRANGE)
            if outcome == REP_ACK:
                raise Untried("this server has every name")
            expect(is_error(outcome) and connection.is_alive(), reply_name(outcome))
            expect(outcome in (ERR_UNKNOWN, ERR_TLS_REQD, ERR_POLICY), f"{reply_name(outcome)}, wanted ERR_UNKNOWN")
            expect(not infos, "infos of an export that does not exist")


@rule("must", "Wishes that the server does not know are passed over.")
def info_unknown_wishes(probe):
    with probe.connect() as connection:
        outcome, infos = connection.info(infos=(999, 0x8000, INFO_NAME))
        expect(outcome == REP_ACK and INFO_EXPORT in infos, reply_name(outcome))


@rule("should", "INFO and GO whose lengths do not add up get ERR_INVALID, and the handshake goes on.")
def info_malformed(probe):
    good = info_data(probe.target.export, (INFO_NAME,))
    with probe.connect() as connection:
        for bad in (b"", b"\0\0\0", good[:-1], good + b"x", struct.pack(">I", 0xFFFFFFFF) + b"\0\0"):
            for option in (OPT_INFO, OPT_GO):
                outcome = connection.outcome(option, bad)
                expect(outcome == ERR_INVALID, f"{len(bad)} bytes: {reply_name(outcome)}")
        connection.is_alive()


@rule("must", "Block sizes keep to the document's bounds.")
def info_block_size(probe):
    with probe.connect() as connection:
        _, infos = connection.info(infos=(INFO_BLOCK_SIZE,))
    if INFO_BLOCK_SIZE not in infos:
        raise Missing("not offered")
    expect(len(infos[INFO_BLOCK_SIZE]) == 12, f"{len(infos[INFO_BLOCK_SIZE]) + 2} bytes")
    minimum, preferred, maximum = struct.unpack(">III", infos[INFO_BLOCK_SIZE])
    expect(minimum and not minimum & minimum - 1 and minimum <= 65536, f"the minimum is {minimum}")
    expect(preferred and not preferred & preferred - 1 and preferred >= max(minimum, 512),
           f"the preferred size is {preferred}")
    expect(maximum == 0xFFFFFFFF or maximum % minimum == 0, f"the maximum is {maximum}")
    expect(maximum >= min(preferred, probe.size), f"the maximum is {maximum}")


@rule("should", "The size of the export is a multiple of the minimum block size.")
def info_size_in_blocks(probe):
    expect(probe.size % probe.minimum == 0, f"{probe.size} bytes in blocks of {probe.minimum}")


def wished_text(probe, info):
    with probe.connect() as connection:
        _, infos = connection.info(infos=(info,))
    if info not in infos:
        raise Missing("not offered")
    expect(len(infos[info]) <= 4096, f"{len(infos[info])} bytes")
    try:
        infos[info].decode()
    except UnicodeDecodeError:
        raise Wrong("not UTF-8") from None
    return infos[info]


@rule("may", "INFO_NAME tells the name of the export, by which it can be asked for again.")
def info_name(probe):
    name = wished_text(probe, INFO_NAME)
    with probe.connect() as connection:
        outcome, _ = connection.info(name=name)
        expect(outcome == REP_ACK, f"{name}: {reply_name(outcome)}")


@rule("may", "INFO_DESCRIPTION tells a description.")
def info_description(probe):
    wished_text(probe, INFO_DESCRIPTION)


@rule("must", "DF is not advertised before structured replies are negotiated, nor the status payload.")
def flags_before_structured(probe):
    with probe.begin() as session:
        expect(not session.has(SEND_DF), "SEND_DF is set")
        expect(not session.has(BLOCK_STATUS_PAYLOAD), "BLOCK_STATUS_PAYLOAD is set")


@rule("must", "Transmission flags have HAS_FLAGS and none that the document does not know.")
def flags_known(probe):
    known = sum(1 << n for n in range(13))
    with probe.begin() as session:
        expect(session.has(HAS_FLAGS) and not session.flags & ~known, f"{session.flags:#x}")


@rule("may", "Structured replies are offered.")
def structured_offered(probe):
    with probe.begin("structured"):
        pass


@rule("should", "STRUCTURED_REPLY with data gets ERR_INVALID, and the handshake goes on.")
def structured_with_data(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
    with probe.connect() as connection:
        outcome = connection.outcome(OPT_STRUCTURED_REPLY, b"data")
        expect(outcome == ERR_INVALID, reply_name(outcome))
        connection.is_alive()


def listed(connection, name, queries):
    replies = connection.option(OPT_LIST_META_CONTEXT, meta_data(name, queries))
    if replies[-1][0] == ERR_UNSUP:
        raise Missing("ERR_UNSUP")
    expect(replies[-1] == (REP_ACK, b""), f"ends with {reply_name(replies[-1][0])}")
    for kind, data in replies[:-1]:
        expect(kind == REP_META_CONTEXT and b":" in data[4:], "a context without a name space")
        data[4:].decode()
    return [data[4:] for _, data in replies[:-1]]


@rule("should", "SET_META_CONTEXT before structured replies gets ERR_INVALID.")
def context_before_structured(probe):
    with probe.begin("structured", [ALLOCATION]):
        pass
    with probe.connect() as connection:
        outcome = connection.outcome(OPT_SET_META_CONTEXT, meta_data(probe.target.export, [ALLOCATION]))
        expect(outcome in (ERR_INVALID, ERR_EXT_HEADER_REQD), reply_name(outcome))
        connection.is_alive()


@rule("must", "LIST_META_CONTEXT without queries gives all contexts, each of which can be listed by name.")
def context_list_all(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        name = probe.target.export
        for context in listed(connection, name, []):
            if not context.endswith(b":"):
                expect(context in listed(connection, name, [context]), f"{context} is not found by its name")


@rule("must", "The query base: lists base:allocation, and selects nothing.")
def context_wildcard(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        if ALLOCATION not in listed(connection, probe.target.export, []):
            raise Missing("no base:allocation")
        found = listed(connection, probe.target.export, [b"base:"])
        expect(found == [ALLOCATION], f"LIST found {found}")
        chosen = probe.choose(connection, [b"base:"])
        expect(not chosen, f"SET chose {list(chosen.values())}")


@rule("must", "A query that names a kind of contexts, as qemu:dirty-bitmap:, lists these alone, and selects nothing.")
def context_wildcard_kind(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        everything = listed(connection, probe.target.export, [])
        for kind in {name[:name.index(b":", name.index(b":") + 1) + 1] for name in everything if name.count(b":") > 1}:
            wanted = [name for name in everything if name.startswith(kind)]
            found = listed(connection, probe.target.export, [kind])
            expect(found == wanted, f"LIST of {kind.decode()} found {found}")
            expect(not probe.choose(connection, [kind]), f"SET of {kind.decode()} chose something")


@rule("must", "Queries of unknown name spaces and unknown base: names are passed over.")
def context_unknown(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        queries = [b"x-nobody:anything", b"base:nothing-that-exists"]
        found = listed(connection, probe.target.export, queries)
        expect(not found, f"LIST found {found}")
        chosen = probe.choose(connection, queries)
        expect(not chosen, f"SET chose {list(chosen.values())}")


@rule("must", "SET_META_CONTEXT without queries selects nothing.")
def context_set_nothing(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        chosen = probe.choose(connection, [])
        expect(not chosen, f"SET chose {list(chosen.values())}")


@rule("must", "Contexts whose lengths do not add up get ERR_INVALID, and the handshake goes on.")
def context_malformed(probe):
    good = meta_data(probe.target.export, [ALLOCATION])
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        probe.choose(connection, [])
        for bad in (good[:3], good[:-1], struct.pack(">II", 0, 0xFFFFFFFF)):
            for option in (OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT):
                outcome = connection.outcome(option, bad)
                expect(outcome == ERR_INVALID, f"{len(bad)} bytes: {reply_name(outcome)}")
        connection.is_alive()


@rule("should", "Bytes after the last query of SET_META_CONTEXT get ERR_INVALID, and the handshake goes on.")
def context_bytes_left(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        probe.choose(connection, [])
        outcome = connection.outcome(OPT_SET_META_CONTEXT, meta_data(probe.target.export, [ALLOCATION]) + b"x")
        expect(outcome == ERR_INVALID, reply_name(outcome))
        connection.is_alive()


@rule("must", "Contexts of an export that does not exist get an error, and the handshake goes on.")
def context_unknown_export(probe):
    with probe.connect() as connection:
        probe.negotiate(connection, "structured")
        probe.choose(connection, [])
        if connection.info(name=STRANGE)[0] == REP_ACK:
            raise Untried("this server has every name")
        outcome = connection.outcome(OPT_SET_META_CONTEXT, meta_data(STRANGE, [ALLOCATION]))
        expect(is_error(outcome), reply_name(outcome))
        connection.is_alive()
