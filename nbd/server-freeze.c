/*
 * A server held still, so that another process can go on with its connections.
 *
 *      running --freeze--> frozen --the last request has come back, end of that turn--> still
 *         ^                  |                                                            |
 *         +------thaw--------+--------------------------thaw------------------------------+--abandon
 *
 * Each worker goes through this for itself; main waits until all are still. What must stay true: of
 * a worker that is still, nothing is sent and no connection is closed, until thaw or abandon: what
 * was written down of its connections stays so.
 */
#include "nbd/server-freeze.h"

#include <errno.h>
#include <time.h>

#include "base/cleanup.h"
#include "nbd/conn.h"

static void held_free(void *data)
{
    NbdHeld *held = data;
    conn_state_free(held->state);
    g_free(held);
}

static void count_one(NbdServer *server, unsigned *count)
{
    with_mutex(&server->freeze_lock);
    (*count)++;
    pthread_cond_signal(&server->freeze_changed);
}

static void for_each_conn(NbdLocal *local, void (*function)(Conn *conn))
{
    for (Conn *conn = local->conns, *next; conn != NULL; conn = next) {
        next = conn->next;
        function(conn);
    }
}

static void hold_still(NbdLocal *local)
{
    local->still = true;
    local->states = g_ptr_array_new_with_free_func(held_free);
    for (Conn *conn = local->conns; conn != NULL; conn = conn->next) {
        conn_hold_still(conn);
        bool secret = conn->tls != NULL || conn->starting != NULL; /* keys cannot be handed over */
        if (!conn->broken && conn->gone == NULL && !secret) {
            NbdHeld *held = g_new(NbdHeld, 1);
            *held = (NbdHeld){.fd = conn->fd, .state = conn_state_take(conn)};
            g_ptr_array_add(local->states, held);
        }
    }
    count_one(local->server, &local->server->still_count);
}

/* At the end of a turn, so that the replies of this turn are queued. */
static void quiet_local(WorkerMessage *message)
{
    NbdLocal *local = (NbdLocal *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(NbdLocal, quiet));
    if (local->frozen && !local->still && local->submitted == 0) {
        hold_still(local);
    }
}

static void freeze_local(WorkerMessage *message)
{
    NbdLocal *local = (NbdLocal *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(NbdLocal, freeze));
    local->frozen = true;
    for_each_conn(local, conn_look_again);
    if (local->submitted == 0) {
        worker_at_turn_end(local->worker, &local->quiet);
    }
}

static void move_again(NbdLocal *local)
{
    local->frozen = local->still = false;
    g_clear_pointer(&local->states, g_ptr_array_unref);
}

static void thaw_local(WorkerMessage *message)
{
    NbdLocal *local = (NbdLocal *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(NbdLocal, thaw));
    move_again(local);
    for_each_conn(local, conn_thaw);
    count_one(local->server, &local->server->moved_count);
}

static void drop_attached(Conn *conn)
{
    if (conn->gone != NULL) {
        conn_abandon(conn);
    }
}

static void drop_local(WorkerMessage *message)
{
    NbdLocal *local = (NbdLocal *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(NbdLocal, drop));
    bool still = local->still;
    local->still = false;
    for_each_conn(local, drop_attached);
    local->still = still;
    count_one(local->server, &local->server->moved_count);
}

static void abandon_local(WorkerMessage *message)
{
    NbdLocal *local = (NbdLocal *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(NbdLocal, abandon));
    move_again(local);
    for_each_conn(local, conn_abandon);
    count_one(local->server, &local->server->moved_count);
}

void server_freeze_init_local(NbdLocal *local)
{
    local->freeze.run = freeze_local;
    local->quiet.run = quiet_local;
    local->drop.run = drop_local;
    local->thaw.run = thaw_local;
    local->abandon.run = abandon_local;
}

void nbd_local_submitted(NbdLocal *local)
{
    local->submitted++;
}

void nbd_local_returned(NbdLocal *local)
{
    if (--local->submitted == 0 && local->frozen) {
        worker_at_turn_end(local->worker, &local->quiet);
    }
}

static bool wait_for_all(NbdServer *server, const unsigned *count, unsigned seconds)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += seconds;
    with_mutex(&server->freeze_lock);
    int r = 0;
    while (*count < server->local_count && r != ETIMEDOUT) {
        r = seconds > 0
                ? pthread_cond_timedwait(&server->freeze_changed, &server->freeze_lock, &end)
                : pthread_cond_wait(&server->freeze_changed, &server->freeze_lock);
    }
    return *count == server->local_count;
}

bool nbd_server_freeze(NbdServer *server, unsigned seconds)
{
    server->still_count = 0;
    for (unsigned i = 0; i < server->local_count; i++) {
        worker_post(server->locals[i].worker, &server->locals[i].freeze);
    }
    if (wait_for_all(server, &server->still_count, seconds)) {
        return true;
    }
    nbd_server_thaw(server);
    return false;
}

void nbd_server_each_held(const NbdServer *server,
                          void (*function)(const NbdHeld *held, void *argument), void *argument)
{
    for (unsigned i = 0; i < server->local_count; i++) {
        const GPtrArray *states = server->locals[i].states;
        for (unsigned j = 0; j < states->len; j++) {
            function(g_ptr_array_index(states, j), argument);
        }
    }
}

void nbd_server_drop_attached(NbdServer *server)
{
    server->moved_count = 0;
    for (unsigned i = 0; i < server->local_count; i++) {
        worker_post(server->locals[i].worker, &server->locals[i].drop);
    }
    wait_for_all(server, &server->moved_count, 0);
}

void nbd_server_thaw(NbdServer *server)
{
    server->moved_count = 0;
    for (unsigned i = 0; i < server->local_count; i++) {
        worker_post(server->locals[i].worker, &server->locals[i].thaw);
    }
    wait_for_all(server, &server->moved_count, 0);
}

void nbd_server_abandon(NbdServer *server)
{
    server->moved_count = 0;
    for (unsigned i = 0; i < server->local_count; i++) {
        worker_post(server->locals[i].worker, &server->locals[i].abandon);
    }
    wait_for_all(server, &server->moved_count, 0);
}
