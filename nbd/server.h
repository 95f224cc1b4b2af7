/*
 * The server: what all connections share, and for each worker what its connections share.
 *
 * Connections are spread over the workers, each to the one with the fewest; it stays there for
 * life.
 */
#ifndef NBD_SERVER_H
#define NBD_SERVER_H

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/worker.h"
#include "control/export.h"
#include "nbd/buffers.h"
#include "nbd/conn-state.h"
#include "nbd/counters.h"
#include "nbd/search.h"

typedef struct Conn Conn;
typedef struct NbdRequest NbdRequest;
typedef struct NbdServer NbdServer;
typedef struct TlsCredentials TlsCredentials;

/* Called once, on a worker, when a connection is closed and none of its requests is in flight. */
typedef void (*NbdGone)(void *argument);

typedef struct NbdLimits {
    unsigned max_clients;   /* connections at once; one more is closed unanswered */
    uint64_t client_memory; /* bytes in flight a connection; a single request may always go */
    uint64_t total_memory;  /* of all connections, see conn-memory.h; 0: no bound */
    /* Seconds of a client that stalls while others wait for memory; 0: for ever. */
    unsigned stall_timeout;
    unsigned handshake_timeout; /* seconds of silence before transmission; 0: for ever */
    bool allow_resize;          /* clients that may write may change the size of a disk */
    unsigned shutdown_timeout;  /* seconds to take the last replies when the server stops; half
                                   of that for a client that takes none */
} NbdLimits;

/* What all connections hold, see conn-memory.h. [any] */
typedef struct NbdMemory {
    _Atomic uint64_t held;    /* bytes */
    atomic_uint waiting;      /* connections */
    _Atomic uint64_t dropped; /* clients, since the start */
    _Atomic uint64_t shed_at; /* nbd_clock of the last search for clients that stall */
} NbdMemory;

#define NBD_SCRATCH_SIZE (192u << 10)
#define NBD_SPARE_MAX    1024 /* request structures kept by a worker */

/* What the connections of one worker share; touched by that worker alone but for what says [any]. */
typedef struct NbdLocal {
    NbdServer *server;
    Worker *worker;
    Conn *conns;      /* all open ones */
    uint8_t *scratch; /* where a receive goes; nothing stays in it from one callback to the next */
    Buffers buffers;
    NbdRequest *spare; /* free list */
    unsigned spare_count;
    uint64_t now;         /* nbd_clock at the last receive */
    uint64_t memory_kept; /* bytes of the total that no request of this worker holds now */
    bool stopping;
    unsigned submitted; /* requests that are the node's */
    bool frozen;        /* nothing is read */
    bool still;         /* nothing is sent either, submitted is 0, states holds all there is */
    GPtrArray *states;  /* NbdHeld *, when still */
    WorkerMessage stop, freeze, quiet, drop, thaw, abandon, shed;
    atomic_bool shedding;   /* shed is on its way [any] */
    atomic_uint conn_count; /* [any] */
} NbdLocal;

struct NbdServer {
    ExportTable *exports;
    NbdFinder finder; /* may be NULL */
    void *finder_context;
    NbdLimits limits;
    TlsCredentials *tls; /* NULL: there is no TLS */
    bool tls_required;
    NbdMemory memory;
    NbdLocal *locals;
    unsigned local_count;
    _Atomic uint64_t last_number; /* of a connection */
    atomic_uint next_local;       /* where the search for the least loaded worker begins */
    /* Connections that exist, closed ones with requests in flight included. */
    atomic_uint conn_count;
    atomic_bool served; /* a client has come as far as transmission */
    int idle_fd;        /* eventfd, written when conn_count becomes 0 */

    pthread_mutex_t freeze_lock;
    pthread_cond_t freeze_changed;
    unsigned still_count; /* freeze_lock; workers that are still */
    unsigned moved_count; /* freeze_lock; workers that have left that again */
};

/* The workers and the exports must outlive the server. [main] */
NbdServer *nbd_server_new(ExportTable *exports, const NbdLimits *limits, Worker *const *workers,
                          unsigned worker_count);

/* Clients may begin TLS with these credentials, which must outlive the server; required: they must.
 * Before the first connection. [main] */
void nbd_server_set_tls(NbdServer *server, TlsCredentials *credentials, bool required);

/* Who is asked for exports that are not in the table. Before the first connection. [main] */
void nbd_server_set_finder(NbdServer *server, NbdFinder finder, void *context);

/* Serves a connected socket (non-blocking, options set). Takes fd; closes it when there are too
 * many. [any] */
void nbd_server_accept(NbdServer *server, int fd);

/* Serves export over a connected socket whose other end begins with requests at once and takes simple
 * replies: the kernel's nbd. Takes fd; never refused for max_clients. gone may be NULL. [any] */
void nbd_server_attach(NbdServer *server, Export *export, int fd, NbdGone gone,
                       void *gone_argument);

/* What was counted for an export since the start, all workers together. Numbers of one moment need
 * not fit each other exactly. [any] */
void nbd_server_get_counts(const NbdServer *server, const Export *export, NbdCounts *counts);

/* What all connections hold and may hold. [any] */
typedef struct NbdMemoryCounts {
    uint64_t held, limit; /* bytes; held by a little more than by requests alone */
    unsigned waiting;     /* connections */
    uint64_t dropped;     /* clients, since the start */
} NbdMemoryCounts;

void nbd_server_get_memory(const NbdServer *server, NbdMemoryCounts *counts);

/* Every connection finishes what is in flight, refuses what comes meanwhile, and closes; one that does
 * not take its replies is closed after shutdown_timeout. Returns at once: wait for idle_fd. [main] */
void nbd_server_stop(NbdServer *server);

/* Readable (read 8 bytes to clear) after the last connection has gone. [any] */
int nbd_server_idle_fd(const NbdServer *server);
unsigned nbd_server_connections(const NbdServer *server); /* [any] */
bool nbd_server_has_served(const NbdServer *server);      /* [any] */
void nbd_server_set_served(NbdServer *server);            /* by another process, before [any] */

/* A connection that is held still: its socket, which stays the server's, and its state. */
typedef struct NbdHeld {
    int fd;
    ConnState *state;
} NbdHeld;

/* Holds the server still, to hand it over to another process: all connections read no more, what is
 * in flight is finished, replies not yet sent stay. Nobody connects meanwhile (listeners are paused),
 * nobody calls nbd_server_attach. True: it is still, no request is in flight, the nodes of exports
 * may go away and be replaced. False: not after so many seconds; it goes on. [main] */
bool nbd_server_freeze(NbdServer *server, unsigned seconds);

/* Of a server that is held still: calls function for each connection of a client; those of kernel
 * devices are not among them: the kernel takes a new one. [main] */
void nbd_server_each_held(const NbdServer *server,
                          void (*function)(const NbdHeld *held, void *argument), void *argument);

/* Closes the connections of kernel devices, also of a server that is held still. [main] */
void nbd_server_drop_attached(NbdServer *server);

/* It goes on as if nothing had been; or every connection is closed (sockets that another process has
 * are still open there). [main] */
void nbd_server_thaw(NbdServer *server);
void nbd_server_abandon(NbdServer *server);

/* Goes on with a connection of another process. Takes fd and state. [any] */
void nbd_server_adopt(NbdServer *server, int fd, ConnState *state);

/* For conn.c: where its worker counts for export. [worker] */
NbdCounters *nbd_local_counters(NbdLocal *local, Export *export);

/* For transmission.c: a request goes to its node, comes back. [worker] */
void nbd_local_submitted(NbdLocal *local);
void nbd_local_returned(NbdLocal *local);

/* No connection is left and the workers have ended. [main] */
void nbd_server_free(NbdServer *server);

/* For conn.c: one connection more or less. */
void nbd_server_conn_gone(NbdLocal *local); /* [worker] */

#endif
