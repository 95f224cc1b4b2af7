/*
 * A connection: its life and its input. Its output is in conn-send.c.
 *
 * One receive a wake-up goes into the worker's scratch memory, where requests are parsed in place.
 * The payload of a WRITE is received straight into the request's buffer, so far as it was not in
 * scratch already. A connection that waits holds no memory but its structure: what is left of the
 * input is at most a partial header, which has a room in it. (Two exceptions, both bounded: an
 * option that is still arriving, and the input that was in hand when the budget was used up.)
 *
 * What must stay true:
 *  1. The stash is empty while a payload is outstanding: the bytes before it were used to find out
 *     that it comes.
 *  2. Parsing happens only at the top of a callback (receive, resume), never inside a request's
 *     done: a done that runs inside node_submit may queue and even send, but never recurses.
 *  3. The socket is closed in conn_settle alone, the last thing of each callback.
 */
#include "nbd/conn.h"

#include <errno.h>
#include <event2/event.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/shield.h"
#include "nbd/conn-memory.h"
#include "nbd/handshake.h"
#include "nbd/tls.h"
#include "nbd/transmission.h"

#define RECEIVE_SIZE        (128u << 10) /* asked of one receive */
#define RECEIVE_TURN_MAX    (1u << 20)   /* taken in one callback, so that others get their turn */
#define HANDSHAKE_QUEUE_MAX (1u << 20)   /* memory of unsent answers: then no options are read */

G_STATIC_ASSERT(NBD_SCRATCH_SIZE >= RECEIVE_SIZE + HANDSHAKE_OPTION_MAX + NBD_OPTION_SIZE);
G_STATIC_ASSERT(STASH_ROOM >= NBD_EXTENDED_REQUEST_SIZE);

static bool owes_output(const Conn *conn)
{
    return conn->in_flight > 0 || conn_owes_tls(conn);
}

static bool may_read(const Conn *conn)
{
    return !conn->paused && !conn->draining && !conn->broken && !conn->local->frozen;
}

/* So much of the handshake's answers is not sent that the next option must wait. */
static bool handshake_is_full(const Conn *conn)
{
    return conn->in_flight_bytes > HANDSHAKE_QUEUE_MAX ||
           (conn->in_flight > 0 && !conn_memory_admits(conn, 0));
}

/* Input */

static size_t skip_some(Conn *conn, size_t length)
{
    size_t used = min_u64(conn->skip, length);
    conn->skip -= used;
    if (conn->skip == 0 && conn->skipped != NULL) {
        NbdRequest *request = conn->skipped;
        conn->skipped = NULL;
        conn_send(conn, request);
    }
    return used;
}

/* Uses up as much of the bytes as it can and stashes the rest. */
static void consume(Conn *conn, const uint8_t *bytes, size_t length)
{
    while (length > 0 && may_read(conn)) {
        size_t used;
        if (conn->skip > 0) {
            used = skip_some(conn, length);
        } else if (conn->phase == CONN_TRANSMISSION) {
            used = transmission_consume(conn, bytes, length);
        } else if (handshake_is_full(conn)) {
            used = 0;
            conn_admit(conn, UINT64_MAX);
        } else {
            used = handshake_consume(conn, bytes, length);
        }
        if (used == 0) {
            break;
        }
        bytes += used;
        length -= used;
    }
    stash_keep(&conn->stash, bytes, conn->draining || conn->broken ? 0 : length);
}

static size_t receive_size(const Conn *conn, size_t held)
{
    if (conn->expect_large && held < conn->header_size && conn->skip == 0) {
        return conn->header_size - held;
    }
    return RECEIVE_SIZE;
}

/* As recvmsg, through TLS where that is. Another error than EAGAIN: there is no more. */
static ssize_t receive_into(Conn *conn, struct iovec *iov, unsigned count)
{
    if (conn->tls != NULL) {
        ssize_t got = tls_receive(conn->tls, iov, count);
        errno = got < 0 ? -got : 0;
        return got;
    }
    if (count == 1) {
        return recv(conn->fd, iov->iov_base, iov->iov_len, MSG_DONTWAIT);
    }
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
    return recvmsg(conn->fd, &message, MSG_DONTWAIT);
}

/* One receive and what follows from it. Returns the bytes received, 0 for none; *more: there may be
 * more. */
static size_t receive_once(Conn *conn, bool *more)
{
    uint8_t *scratch = conn->local->scratch;
    NbdRequest *payload = conn->payload;
    size_t held = stash_move(&conn->stash, scratch);
    size_t room = receive_size(conn, held);
    size_t rest = payload != NULL ? payload->length - conn->payload_got : 0;
    struct iovec iov[2] = {{scratch + held, room}};
    unsigned count = 1;
    if (rest > 0) {
        iov[1] = iov[0];
        iov[0] = (struct iovec){(uint8_t *)payload->buffer + conn->payload_got, rest};
        count = 2;
    }
    ssize_t got = receive_into(conn, iov, count);
    *more = got == (ssize_t)(rest + room);
    if (got <= 0) {
        stash_keep(&conn->stash, scratch, held);
        /* What is in flight may still reach a client that only stopped sending. */
        if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
            conn_drain(conn);
        }
        return 0;
    }
    conn->heard = conn->local->now = nbd_clock();
    size_t to_payload = min_u64(rest, got);
    if (to_payload > 0) {
        conn->payload_got += to_payload;
        if (to_payload == rest) {
            transmission_payload_done(conn);
        }
    }
    consume(conn, scratch, held + got - to_payload);
    return got;
}

/* Returns the bytes received. */
static size_t receive(Conn *conn)
{
    size_t total = 0;
    bool more = true;
    while (more && total < RECEIVE_TURN_MAX && may_read(conn)) {
        total += receive_once(conn, &more);
    }
    if (conn->tls != NULL) {
        tls_rest(conn->tls);
    }
    return total;
}

static bool resumable(const Conn *conn)
{
    if (conn->search != NULL) {
        return false;
    }
    if (conn->starting != NULL) {
        return conn->queue == NULL;
    }
    if (conn->phase != CONN_TRANSMISSION) {
        return !handshake_is_full(conn);
    }
    uint64_t limit = conn->local->server->limits.client_memory;
    bool fits = conn->in_flight == 0 || conn->in_flight_bytes + conn->resume_charge <= limit;
    return fits && (conn->stopping || conn_memory_admits(conn, conn->resume_charge));
}

/* Goes on with what was stashed when the budget was used up. */
static void resume(Conn *conn)
{
    while (conn->paused && !conn->draining && !conn->broken && !conn->local->frozen &&
           resumable(conn)) {
        conn->paused = false;
        conn->local->now = nbd_clock();
        if (conn->starting != NULL) {
            conn->tls = g_steal_pointer(&conn->starting);
        }
        consume(conn, stash_bytes(&conn->stash), conn->stash.length);
        conn_flush(conn);
    }
}

/* Ends and begins of a callback */

static void discard_input(Conn *conn)
{
    stash_clear(&conn->stash);
    NbdRequest *unfinished[] = {conn->payload, conn->skipped};
    conn->payload = conn->skipped = NULL;
    conn->skip = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(unfinished); i++) {
        if (unfinished[i] != NULL) {
            nbd_request_free(unfinished[i]);
        }
    }
}

static void free_event(struct event **event)
{
    if (*event != NULL) {
        event_free(*event);
        *event = NULL;
    }
}

static void conn_close(Conn *conn)
{
    conn->closed = true;
    *conn->link = conn->next;
    if (conn->next != NULL) {
        conn->next->link = conn->link;
    }
    free_event(&conn->read_event);
    free_event(&conn->write_event);
    free_event(&conn->timer);
    conn_memory_forget(conn);
    if (conn->tls != NULL) {
        tls_goodbye(conn->tls);
    }
    g_clear_pointer(&conn->tls, tls_session_free);
    g_clear_pointer(&conn->starting, tls_session_free);
    close(conn->fd);
    discard_input(conn);
    while (conn->queue != NULL) {
        NbdRequest *request = conn->queue;
        conn->queue = request->next;
        nbd_request_free(request);
    }
    if (conn->counters != NULL) {
        nbd_count(&conn->counters->disconnects, 1);
    }
    log_debug("client %d gone", conn->fd);
    conn_unref(conn);
}

/* Nothing has come that was not read. */
static bool is_silent(const Conn *conn)
{
    uint8_t byte;
    if (conn->tls != NULL && tls_has_input(conn->tls)) {
        return false;
    }
    return recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0;
}

static void conn_settle(Conn *conn)
{
    if (conn->closed || conn->local->still) {
        return;
    }
    resume(conn);
    if (conn->stopping && conn->in_flight == 0 && is_silent(conn)) {
        conn_drain(conn);
    }
    conn_memory_settle(conn);
    if (conn->broken || (conn->draining && !owes_output(conn))) {
        conn_close(conn);
        return;
    }
    bool want = may_read(conn);
    if (want != conn->reading) {
        conn->reading = want;
        if ((want ? event_add(conn->read_event, NULL) : event_del(conn->read_event)) != 0) {
            log_limited(LOG_LEVEL_ERROR, "client dropped: cannot watch its socket: %s",
                        g_strerror(errno));
            conn_close(conn);
        }
    }
    if (want && conn->tls != NULL && tls_has_input(conn->tls)) {
        event_active(conn->read_event, EV_READ, 0); /* the socket may have no more to say */
    }
}

static void callback_begin(Conn *conn)
{
    conn->refs++;
    conn->busy = true;
    log_set_context(&conn->log);
}

static void callback_end(Conn *conn)
{
    if (!conn->closed) {
        conn_flush(conn);
    }
    conn_settle(conn);
    conn->busy = false;
    log_set_context(NULL);
    conn_unref(conn);
}

/* The client has sent a single request, has its answer, and is the only one here. */
static bool may_linger(Conn *conn, size_t received)
{
    return received == conn->header_size && !conn->closed && conn->reading && !conn->writing &&
           conn->phase == CONN_TRANSMISSION && conn->in_flight == 0 && conn->local->conns == conn &&
           conn->next == NULL && !conn->local->stopping && linger_is_due(&conn->linger);
}

static void readable_cb(evutil_socket_t fd, short what, void *argument)
{
    Conn *conn = argument;
    conn->refs++;
    size_t got;
    do {
        callback_begin(conn);
        got = receive(conn);
        callback_end(conn);
    } while (may_linger(conn, got) && linger_look(&conn->linger, conn->fd));
    conn_unref(conn);
}

static void writable_cb(evutil_socket_t fd, short what, void *argument)
{
    Conn *conn = argument;
    callback_begin(conn);
    conn->blocked = false;
    callback_end(conn);
}

static void timer_cb(evutil_socket_t fd, short what, void *argument);

static bool set_timer(Conn *conn, uint64_t nanoseconds)
{
    if (conn->timer == NULL) {
        conn->timer = evtimer_new(worker_base(conn->local->worker), timer_cb, conn);
    }
    struct timeval time = {.tv_sec = nanoseconds / NBD_SECOND,
                           .tv_usec = nanoseconds % NBD_SECOND / 1000};
    return conn->timer != NULL && event_add(conn->timer, &time) == 0;
}

/* The server stops. Why the client gets no more time, or NULL: it gets some. Of what a slow one has,
 * one that takes nothing at all has half. */
static const char *outstayed(Conn *conn)
{
    uint64_t now = nbd_clock();
    uint64_t patience = conn->local->server->limits.shutdown_timeout * NBD_SECOND;
    uint64_t idle_since = conn->blocked ? max_u64(conn->blocked_since, conn->stopped_at) : now;
    if (now - idle_since >= patience / 2) {
        return "client dropped: it takes none of its last replies";
    }
    if (now - conn->stopped_at >= patience) {
        return "client dropped: it does not take its last replies in time";
    }
    uint64_t next = min_u64(idle_since + patience / 2, conn->stopped_at + patience);
    return set_timer(conn, next - now) ? NULL : "client dropped: its time cannot be watched";
}

static void timer_cb(evutil_socket_t fd, short what, void *argument)
{
    Conn *conn = argument;
    callback_begin(conn);
    const char *why = conn->stopping ? outstayed(conn) : "client dropped: silent for too long";
    if (why != NULL) {
        log_limited(LOG_LEVEL_INFO, "%s", why);
        conn_break(conn);
    }
    callback_end(conn);
}

static void turn_end(WorkerMessage *message)
{
    Conn *conn = (Conn *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(Conn, message));
    conn->message_queued = false;
    callback_begin(conn);
    callback_end(conn);
    conn_unref(conn);
}

/* Life */

static bool make_events(Conn *conn)
{
    struct event_base *base = worker_base(conn->local->worker);
    conn->read_event = event_new(base, conn->fd, EV_READ | EV_PERSIST, readable_cb, conn);
    conn->write_event = event_new(base, conn->fd, EV_WRITE | EV_PERSIST, writable_cb, conn);
    return conn->read_event != NULL && conn->write_event != NULL;
}

static void conn_start(WorkerMessage *message)
{
    Conn *conn = (Conn *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(Conn, message));
    NbdLocal *local = conn->local;
    conn->message.run = turn_end;
    conn->next = local->conns;
    conn->link = &local->conns;
    conn->heard = nbd_clock();
    if (conn->next != NULL) {
        conn->next->link = &conn->next;
    }
    local->conns = conn;
    if (local->scratch == NULL) {
        local->scratch = g_malloc(NBD_SCRATCH_SIZE);
    }
    if (conn->gone != NULL) {
        shield_reserve();
    }
    callback_begin(conn);
    if (local->stopping || !make_events(conn)) {
        conn_break(conn);
    } else if (conn->state != NULL) {
        conn_state_apply(conn, conn->state);
    } else if (conn->export != NULL) {
        conn_start_transmission(conn, conn->export, conn->export->read_only);
    } else {
        conn_restart_timer(conn);
        handshake_start(conn);
    }
    g_clear_pointer(&conn->state, conn_state_free);
    callback_end(conn);
}

void conn_new(NbdLocal *local, int fd, const ConnStart *start)
{
    Conn *conn = g_new0(Conn, 1);
    conn->local = local;
    conn->number = atomic_fetch_add(&local->server->last_number, 1) + 1;
    conn->log.client = conn->number;
    conn->fd = fd;
    conn->export = start->export;
    conn->state = start->state;
    conn->gone = start->gone;
    conn->gone_argument = start->gone_argument;
    conn->refs = 1;
    conn->queue_last = &conn->queue;
    conn->message.run = conn_start;
    worker_post(local->worker, &conn->message);
}

void conn_unref(Conn *conn)
{
    if (--conn->refs == 0) {
        NbdLocal *local = conn->local;
        if (conn->gone != NULL) {
            conn->export->kernel_clients--;
        }
        g_clear_pointer(&conn->export, export_put);
        conn_set_meta_export(conn, NULL);
        conn_forget_search(conn);
        if (conn->gone != NULL) {
            conn->gone(conn->gone_argument);
        }
        g_free(conn);
        nbd_server_conn_gone(local);
    }
}

void conn_schedule(Conn *conn)
{
    if (!conn->busy && !conn->message_queued && !conn->closed) {
        conn->message_queued = true;
        conn->refs++;
        worker_at_turn_end(conn->local->worker, &conn->message);
    }
}

bool conn_admit(Conn *conn, uint64_t charge)
{
    conn->resume_charge = charge;
    conn->paused = !resumable(conn);
    return !conn->paused;
}

void conn_drain(Conn *conn)
{
    conn->draining = true;
    discard_input(conn);
}

void conn_break(Conn *conn)
{
    conn->broken = true;
}

void conn_skip(Conn *conn, uint64_t length, NbdRequest *request)
{
    conn->skip = length;
    conn->skipped = request;
}

void conn_restart_timer(Conn *conn)
{
    unsigned timeout = conn->local->server->limits.handshake_timeout;
    if (timeout != 0 && !conn->stopping && !set_timer(conn, timeout * NBD_SECOND)) {
        conn_break(conn);
    }
}

void conn_set_meta_export(Conn *conn, Export *export)
{
    g_clear_pointer(&conn->meta_export, export_put);
    conn->meta_export = export;
}

void conn_start_tls(Conn *conn, TlsSession *session)
{
    conn->starting = session;
    conn->paused = true;
}

void conn_start_transmission(Conn *conn, Export *export, bool read_only)
{
    free_event(&conn->timer);
    conn->export = export;
    conn->read_only = read_only;
    conn->log.export = export->name;
    conn->phase = CONN_TRANSMISSION;
    conn->counters = nbd_local_counters(conn->local, export);
    nbd_count(&conn->counters->connects, 1);
    conn->expect_large = false;
    conn->header_size = conn->extended ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE;
    atomic_store(&conn->local->server->served, true);
}

void conn_stop(Conn *conn)
{
    callback_begin(conn);
    if (conn->gone != NULL) {
        conn_drain(conn);
    }
    conn->stopping = true;
    conn->stopped_at = nbd_clock();
    if (!set_timer(conn, conn->local->server->limits.shutdown_timeout * NBD_SECOND / 2)) {
        conn_break(conn);
    }
    callback_end(conn);
}

void conn_look_again(Conn *conn)
{
    callback_begin(conn);
    callback_end(conn);
}

void conn_drop(Conn *conn, const char *why)
{
    callback_begin(conn);
    log_limited(LOG_LEVEL_WARNING, "%s", why);
    conn_break(conn);
    callback_end(conn);
}

void conn_hold_still(Conn *conn)
{
    event_del(conn->write_event);
    conn->writing = conn->blocked = false;
    if (conn->timer != NULL) {
        event_del(conn->timer);
    }
}

void conn_thaw(Conn *conn)
{
    callback_begin(conn);
    if (conn->phase != CONN_TRANSMISSION) {
        conn_restart_timer(conn);
    }
    callback_end(conn);
}

void conn_abandon(Conn *conn)
{
    callback_begin(conn);
    if (conn->tls != NULL) {
        conn_drain(conn); /* nobody else has it: it ends as TLS does, its last replies sent */
    } else {
        conn_break(conn);
    }
    callback_end(conn);
}
