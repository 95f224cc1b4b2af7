/*
 * A connection: one client's socket, its input, its send queue, its budget. Belongs to one worker
 * for life. [worker]
 *
 *      FLAGS --client flags--> OPTIONS --GO, EXPORT_NAME--> TRANSMISSION
 *        |                        |ABORT                       |DISC, end of input
 *        +--nonsense, time-out----+----> draining: reads no more, ends what is in flight, closes
 *
 * When the server stops, in each of them: what comes is refused, until nothing comes and nothing is in
 * flight.
 *
 * Input comes as runs of bytes: handshake_consume and transmission_consume each take what they can
 * use and say how much that was; the rest is stashed. The socket is closed in one place, at the end
 * of a callback, never inside a consume or a request's done; so neither of these can find the
 * connection gone.
 */
#ifndef NBD_CONN_H
#define NBD_CONN_H

#include "base/log.h"
#include "control/export.h"
#include "nbd/linger.h"
#include "nbd/meta-context.h"
#include "nbd/conn-state.h"
#include "nbd/reply.h"
#include "nbd/server.h"
#include "nbd/stash.h"

struct event;
typedef struct TlsSession TlsSession;

struct Conn {
    NbdLocal *local;
    Conn *next, **link;    /* of local->conns */
    WorkerMessage message; /* start, then the end of a turn */
    struct event *read_event, *write_event, *timer;
    struct event *again; /* conn-memory.c's; NULL: it never waited */
    uint64_t number;     /* never another's; from 1 */
    LogContext log;      /* of what is logged while it is looked after */
    int fd;
    int refs;         /* open, each request, each callback under way, message */
    ConnState *state; /* to begin with; NULL after the start */
    NbdGone gone;     /* called by the last unref; may be NULL */
    void *gone_argument;
    NbdCounters *counters; /* of its export on its worker; set in TRANSMISSION */
    ConnPhase phase;
    TlsSession *tls;      /* NULL: plain */
    TlsSession *starting; /* will be tls when the queue, which is still plain, is empty */

    bool reading;  /* read_event is added */
    bool blocked;  /* the socket takes no more */
    bool writing;  /* write_event is added; stays so until the queue is empty */
    bool paused;   /* over budget: reads no more until resume_charge fits */
    bool waits;    /* so, for memory that others hold */
    bool draining; /* reads no more for good, closes when nothing is in flight */
    /* The server ends: requests that still come are refused, closes when none are left. */
    bool stopping;
    bool broken; /* closes at the end of the callback */
    bool closed; /* fd is gone; requests in flight may remain */
    bool busy;   /* inside a callback that will flush and settle */
    bool message_queued;

    /* what was negotiated */
    bool fixed_newstyle, no_zeroes;
    bool structured;       /* chunks, structured or extended */
    bool extended;         /* headers of 32 bytes both ways */
    MetaContexts contexts; /* chosen for meta_export; in TRANSMISSION for export */
    Export *meta_export;   /* for which contexts were chosen, pinned; or NULL */
    Export *export;        /* set in TRANSMISSION; pinned */
    NbdSearch *search;     /* for the export of the option in the stash; NULL: none is under way */
    bool searched;         /* it has ended */
    Export *found;         /* what it found, pinned while that option is worked on; or NULL */
    GPtrArray *listing;    /* NbdListed *, likewise; or NULL */
    bool read_only;        /* set in TRANSMISSION */

    /* input */
    Stash stash;
    Linger linger;
    uint8_t header_size;  /* of a request */
    NbdRequest *payload;  /* whose payload is still arriving */
    uint32_t payload_got; /* bytes of it */
    bool expect_large;    /* the last request was a large WRITE: receive just a header next */
    uint64_t skip;        /* bytes to throw away */
    NbdRequest *skipped;  /* its error is sent when skip is 0; may be NULL */

    /* budget and output */
    unsigned in_flight; /* requests and handshake replies that exist */
    uint64_t in_flight_bytes;
    uint64_t resume_charge;
    uint64_t queued_bytes;
    uint64_t blocked_since; /* nbd_clock; when blocked */
    uint64_t stopped_at;    /* nbd_clock; when stopping */
    uint64_t heard;         /* nbd_clock of the last receive that brought something */
    NbdRequest *queue, **queue_last;
};

/* How a connection begins; all zero: a client that is to be greeted. */
typedef struct ConnStart {
    Export *export;   /* not NULL: in transmission, with simple replies; its pin is taken */
    ConnState *state; /* not NULL: another process has come so far with it; taken */
    NbdGone gone;     /* may be NULL */
    void *gone_argument;
} ConnStart;

/* Takes fd. Its life goes on by itself on local's worker. [any] */
void conn_new(NbdLocal *local, int fd, const ConnStart *start);

void conn_unref(Conn *conn);

/* True when a request of charge bytes may start; else the connection is paused until it may. */
bool conn_admit(Conn *conn, uint64_t charge);

/* Queues a request that has its reply. Sent at the end of the callback or turn, or now when much is
 * queued. */
void conn_send(Conn *conn, NbdRequest *request);

/* Queues bytes (handshake). */
void conn_send_bytes(Conn *conn, const void *bytes, size_t length);

/* A reply of these bytes, not queued; NULL, and the connection breaks, when there is no memory. */
NbdRequest *conn_reply_of_bytes(Conn *conn, const void *bytes, uint32_t length);

/* Sends what the socket takes; in a callback of this connection that follows by itself. */
void conn_flush(Conn *conn);

/* TLS has something to send yet; for a connection that is to be closed, the kernel's part of it, too. */
bool conn_owes_tls(const Conn *conn);

/* Sees to it that the end of this turn flushes and settles, where no callback does. */
void conn_schedule(Conn *conn);

/* Reads no more, finishes what is in flight, closes. */
void conn_drain(Conn *conn);

/* Closes, as soon as the callback ends. */
void conn_break(Conn *conn);

/* The next length bytes are thrown away; then request (may be NULL) is sent. */
void conn_skip(Conn *conn, uint64_t length, NbdRequest *request);

/* The handshake is over: no more time-out. Takes the pin of export. */
void conn_start_transmission(Conn *conn, Export *export, bool read_only);

/* What is queued is sent in plain, then all that follows goes through session, which is taken. */
void conn_start_tls(Conn *conn, TlsSession *session);

/* Contexts are chosen for export, whose pin is taken; NULL: there are none. */
void conn_set_meta_export(Conn *conn, Export *export);

/* The handshake has gone on a step: the time-out begins anew. */
void conn_restart_timer(Conn *conn);

/* Does what it can do now. */
void conn_look_again(Conn *conn);

/* Closes without a word to the client; why is logged. */
void conn_drop(Conn *conn, const char *why);

/* The server is being frozen, see server.h: does nothing at all; then goes on as if nothing had been, or
 * closes without a word. */
void conn_hold_still(Conn *conn);
void conn_thaw(Conn *conn);
void conn_abandon(Conn *conn);

/* The server stops: what is in flight is finished, what comes meanwhile is refused, then it closes; by
 * force when the client does not take its replies in time, see --shutdown-timeout. The kernel's requests are not refused but
 * left alone: it asks the next server. */
void conn_stop(Conn *conn);

#endif
