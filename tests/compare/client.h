/*
 * Connections to the server and the commands in flight on them. One thread, libnbd's asynchronous
 * calls.
 */
#ifndef COMPARE_CLIENT_H
#define COMPARE_CLIENT_H

#include <libnbd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/lib/random.h"

#define CLIENTS_MAX   64
#define OP_STATUS_MAX 512

typedef enum {
    OP_READ,
    OP_WRITE,
    OP_TRIM,
    OP_ZERO,
    OP_FLUSH,
    OP_CACHE,
    OP_STATUS,
    OP_KINDS
} OpKind;

/* One command. The buffer is malloc'ed, of length bytes, for OP_READ and OP_WRITE. */
typedef struct Op {
    OpKind kind;
    uint64_t offset, length;
    uint32_t flags; /* LIBNBD_CMD_FLAG_* */
    unsigned connection;
    uint8_t *buffer;
    bool reads_back; /* OP_READ: shows what a trim left */

    bool in_flight, finished;
    int error;                      /* 0 or an errno */
    uint32_t status[OP_STATUS_MAX]; /* OP_STATUS: length, flags, length, flags ... */
    size_t status_count;
} Op;

typedef struct Clients {
    struct nbd_handle *handles[CLIENTS_MAX];
    bool structured[CLIENTS_MAX];
    bool lost
        [CLIENTS_MAX]; /* the server has closed it; what was in flight has finished with an error */
    unsigned count;
    bool may_be_lost; /* else a lost connection is a failure */
} Clients;

/* Connects count times; each connection has structured or simple replies as chance wants. */
void clients_connect(Clients *clients, const char *socket, const char *export, unsigned count,
                     Random *random);
void clients_disconnect(Clients *clients);

/* Starts op on its connection, which is not lost. It must stay where it is until it has finished. */
void clients_submit(Clients *clients, Op *op);

/* Waits until something has been sent or received. Dies when nothing happens for a long time. */
void clients_poll(Clients *clients);

/* Submits op and waits until it has finished; others may finish meanwhile. */
void clients_run(Clients *clients, Op *op);

/* "WRITE 0x200+0x1000 flags 1 on connection 3"; valid until the next call. */
const char *op_text(const Op *op);

#endif
