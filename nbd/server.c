/*
 * The shared part of the server: which worker gets a connection, how many there are, how all of
 * them end.
 *
 * What must stay true: conn_count counts every Conn that exists, so that 0 means that no request is
 * in flight and the workers may end. A connection accepted while the server stops is closed by its
 * own start.
 */
#include "nbd/server.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "nbd/conn.h"
#include "nbd/conn-memory.h"
#include "nbd/reply.h"
#include "nbd/server-freeze.h"

static void stop_local(WorkerMessage *message)
{
    NbdLocal *local = (NbdLocal *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(NbdLocal, stop));
    local->stopping = true;
    for (Conn *conn = local->conns, *next; conn != NULL; conn = next) {
        next = conn->next;
        conn_stop(conn);
    }
}

NbdServer *nbd_server_new(ExportTable *exports, const NbdLimits *limits, Worker *const *workers,
                          unsigned worker_count)
{
    NbdServer *server = g_new0(NbdServer, 1);
    server->exports = exports;
    server->limits = *limits;
    server->idle_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    g_assert(server->idle_fd >= 0);
    pthread_mutex_init(&server->freeze_lock, NULL);
    pthread_cond_init(&server->freeze_changed, NULL);
    server->locals = g_new0(NbdLocal, worker_count);
    server->local_count = worker_count;
    for (unsigned i = 0; i < worker_count; i++) {
        server->locals[i].server = server;
        server->locals[i].worker = workers[i];
        server->locals[i].stop.run = stop_local;
        server_freeze_init_local(&server->locals[i]);
        conn_memory_init_local(&server->locals[i]);
    }
    return server;
}

void nbd_server_set_tls(NbdServer *server, TlsCredentials *credentials, bool required)
{
    server->tls = credentials;
    server->tls_required = required;
}

void nbd_server_set_finder(NbdServer *server, NbdFinder finder, void *context)
{
    server->finder = finder;
    server->finder_context = context;
}

/* Says so when it was the last one, refused or served. */
static void count_gone(NbdServer *server)
{
    if (atomic_fetch_sub(&server->conn_count, 1) == 1) {
        eventfd_write(server->idle_fd, 1);
    }
}

/* The worker with the fewest connections; among equals each in turn. */
static NbdLocal *least_loaded(NbdServer *server)
{
    unsigned start = atomic_fetch_add(&server->next_local, 1);
    NbdLocal *best = NULL;
    unsigned best_count = 0;
    for (unsigned i = 0; i < server->local_count; i++) {
        NbdLocal *local = &server->locals[(start + i) % server->local_count];
        unsigned count = atomic_load(&local->conn_count);
        if (best == NULL || count < best_count) {
            best = local;
            best_count = count;
        }
    }
    return best;
}

void nbd_server_accept(NbdServer *server, int fd)
{
    if (atomic_fetch_add(&server->conn_count, 1) >= server->limits.max_clients) {
        log_limited(LOG_LEVEL_WARNING, "client refused: %u are connected: see --max-clients",
                    server->limits.max_clients);
        close(fd);
        count_gone(server);
        return;
    }
    NbdLocal *local = least_loaded(server);
    atomic_fetch_add(&local->conn_count, 1);
    conn_new(local, fd, &(ConnStart){0});
}

void nbd_server_adopt(NbdServer *server, int fd, ConnState *state)
{
    NbdLocal *local = least_loaded(server);
    atomic_fetch_add(&server->conn_count, 1);
    atomic_fetch_add(&local->conn_count, 1);
    conn_new(local, fd, &(ConnStart){.state = state});
}

void nbd_server_attach(NbdServer *server, Export *export, int fd, NbdGone gone, void *gone_argument)
{
    NbdLocal *local = least_loaded(server);
    atomic_fetch_add(&server->conn_count, 1);
    atomic_fetch_add(&local->conn_count, 1);
    export->kernel_clients++;
    ConnStart start = {.export = export_get(export), .gone = gone, .gone_argument = gone_argument};
    conn_new(local, fd, &start);
}

void nbd_server_conn_gone(NbdLocal *local)
{
    atomic_fetch_sub(&local->conn_count, 1);
    count_gone(local->server);
}

/* An export gets its counters, one set a worker, from the worker that needs them first. */
NbdCounters *nbd_local_counters(NbdLocal *local, Export *export)
{
    NbdServer *server = local->server;
    void *counters = atomic_load(&export->counters);
    if (counters == NULL) {
        void *fresh = g_new0(NbdCounters, server->local_count);
        if (atomic_compare_exchange_strong(&export->counters, &counters, fresh)) {
            counters = fresh;
        } else {
            g_free(fresh);
        }
    }
    return (NbdCounters *)counters + (local - server->locals);
}

void nbd_server_get_counts(const NbdServer *server, const Export *export, NbdCounts *counts)
{
    const NbdCounters *counters = atomic_load(&export->counters);
    *counts = (NbdCounts){0};
    for (unsigned i = 0; counters != NULL && i < server->local_count; i++) {
        nbd_counters_add(&counters[i], counts);
    }
}

void nbd_server_get_memory(const NbdServer *server, NbdMemoryCounts *counts)
{
    *counts = (NbdMemoryCounts){.held = atomic_load(&server->memory.held),
                                .limit = server->limits.total_memory,
                                .waiting = atomic_load(&server->memory.waiting),
                                .dropped = atomic_load(&server->memory.dropped)};
}

void nbd_server_stop(NbdServer *server)
{
    for (unsigned i = 0; i < server->local_count; i++) {
        worker_post(server->locals[i].worker, &server->locals[i].stop);
    }
}

int nbd_server_idle_fd(const NbdServer *server)
{
    return server->idle_fd;
}

unsigned nbd_server_connections(const NbdServer *server)
{
    return atomic_load(&server->conn_count);
}

bool nbd_server_has_served(const NbdServer *server)
{
    return atomic_load(&server->served);
}

void nbd_server_set_served(NbdServer *server)
{
    atomic_store(&server->served, true);
}

void nbd_server_free(NbdServer *server)
{
    for (unsigned i = 0; i < server->local_count; i++) {
        NbdLocal *local = &server->locals[i];
        nbd_request_free_spare(local);
        buffers_clear(&local->buffers);
        g_free(local->scratch);
    }
    pthread_mutex_destroy(&server->freeze_lock);
    pthread_cond_destroy(&server->freeze_changed);
    close(server->idle_fd);
    g_free(server->locals);
    g_free(server);
}
