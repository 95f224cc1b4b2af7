/*
 * The bound on what all connections hold, see conn-memory.h.
 *
 * Workers take from the total in steps and keep a little for the next request, so that small requests
 * do not meet in one counter. Whoever waits asks again after a while that grows with the number of
 * those who do; nobody wakes anybody up.
 *
 * What must stay true: held is what the requests of all workers hold and what workers keep of it, never
 * less; a connection that waits has nothing in flight, so its timer is the only thing that wakes it.
 */
#include "nbd/conn-memory.h"

#include <event2/event.h>

#include "base/log.h"
#include "nbd/conn.h"

#define STEP        (256u << 10) /* bytes that a worker takes ahead */
#define ALWAYS      (68u << 10)  /* a request of 64 KiB, whatever the others hold */
#define AGAIN_US    20000        /* between two looks, of one that waits */
#define AGAIN_CROWD 64           /* so many more wait as long again */
#define SHED_NS     NBD_SECOND   /* between two searches for those that stall */

void conn_memory_take(NbdLocal *local, uint64_t bytes)
{
    if (bytes > local->memory_kept) {
        uint64_t more = bytes - local->memory_kept + STEP;
        atomic_fetch_add(&local->server->memory.held, more);
        local->memory_kept += more;
    }
    local->memory_kept -= bytes;
}

void conn_memory_give(NbdLocal *local, uint64_t bytes)
{
    local->memory_kept += bytes;
    if (local->memory_kept > 2 * STEP) {
        atomic_fetch_sub(&local->server->memory.held, local->memory_kept - STEP);
        local->memory_kept = STEP;
    }
}

bool conn_memory_admits(const Conn *conn, uint64_t charge)
{
    const NbdServer *server = conn->local->server;
    uint64_t limit = server->limits.total_memory;
    if (limit == 0 || conn->gone != NULL || (conn->in_flight == 0 && charge <= ALWAYS)) {
        return true;
    }
    uint64_t held = atomic_load_explicit(&server->memory.held, memory_order_relaxed);
    return held < limit && conn->in_flight_bytes + charge <= limit - held;
}

/* Clients that stall */

/* It holds memory, and has neither taken nor sent a byte for so many nanoseconds. */
static bool stalls(const Conn *conn, uint64_t now, uint64_t limit)
{
    bool deaf = conn->blocked && now - conn->blocked_since > limit;
    bool mute = conn->payload != NULL && now - conn->heard > limit;
    return conn->phase == CONN_TRANSMISSION && conn->gone == NULL && (deaf || mute);
}

static void shed_local(WorkerMessage *message)
{
    NbdLocal *local = (NbdLocal *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(NbdLocal, shed));
    NbdServer *server = local->server;
    uint64_t now = nbd_clock();
    atomic_store(&local->shedding, false);
    for (Conn *conn = local->conns, *next; conn != NULL && !local->frozen; conn = next) {
        next = conn->next;
        if (stalls(conn, now, server->limits.stall_timeout * NBD_SECOND)) {
            atomic_fetch_add(&server->memory.dropped, 1);
            conn_drop(conn,
                      "client dropped: it holds memory that others wait for, and neither takes "
                      "replies nor sends its payload: see --total-memory");
        }
    }
}

/* Once in a while, whoever asks. */
static void shed(NbdServer *server)
{
    uint64_t now = nbd_clock(), last = atomic_load(&server->memory.shed_at);
    if (server->limits.stall_timeout == 0 || now - last < SHED_NS ||
        !atomic_compare_exchange_strong(&server->memory.shed_at, &last, now)) {
        return;
    }
    for (unsigned i = 0; i < server->local_count; i++) {
        if (!atomic_exchange(&server->locals[i].shedding, true)) {
            worker_post(server->locals[i].worker, &server->locals[i].shed);
        }
    }
}

/* Those that wait */

static void again_cb(evutil_socket_t fd, short what, void *argument)
{
    Conn *conn = argument;
    conn->refs++;
    conn_look_again(conn);
    if (conn->waits) {
        shed(conn->local->server);
    }
    conn_unref(conn);
}

static bool set_timer(Conn *conn)
{
    if (conn->again == NULL) {
        conn->again = evtimer_new(worker_base(conn->local->worker), again_cb, conn);
    }
    uint64_t crowd = atomic_load(&conn->local->server->memory.waiting) / AGAIN_CROWD;
    uint64_t wait = AGAIN_US * (1 + crowd);
    struct timeval time = {.tv_sec = wait / 1000000, .tv_usec = wait % 1000000};
    return conn->again != NULL && event_add(conn->again, &time) == 0;
}

static void set_waits(Conn *conn, bool waits)
{
    if (waits != conn->waits) {
        conn->waits = waits;
        atomic_fetch_add(&conn->local->server->memory.waiting, waits ? 1 : -1);
    }
}

void conn_memory_settle(Conn *conn)
{
    set_waits(conn, conn->paused && conn->phase == CONN_TRANSMISSION && conn->in_flight == 0 &&
                        !conn->draining && !conn->broken && !conn->local->frozen);
    if (conn->waits && !set_timer(conn)) {
        conn_break(conn);
    }
}

void conn_memory_forget(Conn *conn)
{
    set_waits(conn, false);
    if (conn->again != NULL) {
        event_free(conn->again);
        conn->again = NULL;
    }
}

void conn_memory_init_local(NbdLocal *local)
{
    local->shed.run = shed_local;
}
