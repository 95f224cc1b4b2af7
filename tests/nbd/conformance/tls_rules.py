"""Rules of STARTTLS. What needs a handshake of TLS is tried where the server takes one from us."""
import struct

from handshake_rules import is_error
from protocol import *
from rules import Missing, Untried, Wrong, expect, rule
from wire import Closed, info_data, meta_data


@rule("must", "STARTTLS is acknowledged or refused by a permitted error, and refused it changes nothing.")
def starttls(probe):
    with probe.connect_plain() as connection:
        outcome = connection.outcome(OPT_STARTTLS)
        if outcome == REP_ACK:
            return
        expect(is_error(outcome) and outcome != ERR_TLS_REQD, reply_name(outcome))
        connection.is_alive()


@rule("may", "STARTTLS: the server offers TLS.")
def starttls_offered(probe):
    with probe.connect_plain() as connection:
        outcome = connection.outcome(OPT_STARTTLS)
        if outcome != REP_ACK:
            raise Missing(reply_name(outcome))


def offered(connection):
    """The connection, TLS begun, where a URI of nbds says how."""
    if not connection.target.tls:
        raise Untried("say nbds in the URI")
    connection.start_tls()
    return connection


@rule("must", "STARTTLS with data gets an error, and the handshake goes on.")
def starttls_with_data(probe):
    with probe.connect_plain() as connection:
        outcome = connection.outcome(OPT_STARTTLS, b"data")
        expect(is_error(outcome), reply_name(outcome))
        connection.outcome(OPT_LIST)


@rule("must", "A server that insists on TLS says ERR_TLS_REQD to every option but STARTTLS and ABORT.")
def tls_required(probe):
    with probe.connect_plain() as connection:
        if connection.outcome(OPT_LIST) != ERR_TLS_REQD:
            raise Missing("the server does not insist on TLS")
        name = probe.target.export
        for option, data in ((OPT_INFO, info_data(name)), (OPT_GO, info_data(name)), (OPT_GO, info_data(b"no such")),
                             (OPT_STRUCTURED_REPLY, b""), (OPT_EXTENDED_HEADERS, b""),
                             (OPT_LIST_META_CONTEXT, meta_data(name, ())), (OPT_SET_META_CONTEXT, meta_data(name, ()))):
            outcome = connection.outcome(option, data)
            expect(outcome in (ERR_TLS_REQD, ERR_UNSUP), f"option {option}: {reply_name(outcome)}")
    with probe.connect_plain() as connection:
        connection.send_option(OPT_EXPORT_NAME, name)
        expect(connection.is_closed(), "EXPORT_NAME did not end the session")
    with probe.connect_plain() as connection:
        expect(connection.outcome(OPT_ABORT) == REP_ACK, "ABORT was not acknowledged")


@rule("must", "A second STARTTLS gets an error, and the handshake goes on.")
def starttls_twice(probe):
    with probe.connect_plain() as connection:
        offered(connection)
        outcome = connection.outcome(OPT_STARTTLS)
        expect(is_error(outcome), reply_name(outcome))
        expect(connection.info()[0] == REP_ACK, "INFO of the export is refused after it")


@rule("must", "What was negotiated before STARTTLS is forgotten.")
def starttls_forgets(probe):
    with probe.connect_plain() as connection:
        outcome = connection.outcome(OPT_STRUCTURED_REPLY)
        if outcome != REP_ACK:
            raise Untried(f"nothing can be negotiated before TLS: {reply_name(outcome)}")
        offered(connection)
        expect(connection.info(OPT_GO)[0] == REP_ACK, "GO is refused")
        connection.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, READ, 77, 0, min(512, probe.size)))
        magic, = struct.unpack(">I", connection.receive(4))
        expect(magic == SIMPLE_REPLY_MAGIC, f"{magic:#x} in the place of a simple reply: replies are still structured")


@rule("must", "An option that comes in plain behind STARTTLS is not answered through TLS (CVE-2021-3716).")
def starttls_injection(probe):
    with probe.connect_plain() as connection:
        if not connection.target.tls:
            raise Untried("say nbds in the URI")
        option = struct.pack(">QII", OPTION_MAGIC, OPT_LIST, 0)
        connection.send(struct.pack(">QII", OPTION_MAGIC, OPT_STARTTLS, 0) + option)
        try:
            expect(connection.option_reply(OPT_STARTTLS)[0] == REP_ACK, "STARTTLS is refused")
            connection.handshake()
            connection.receive(1)
        except (Closed, Wrong, OSError):
            return
        raise Wrong("something was sent through TLS that nobody had asked for there")
