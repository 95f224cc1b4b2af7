/*
 * The clients of a server: who they are, and how one is sent away.
 */
#ifndef NBD_SERVER_CLIENTS_H
#define NBD_SERVER_CLIENTS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "nbd/server.h"

typedef struct NbdClient {
    uint64_t number; /* never another's, of one process */
    char *peer;      /* "192.0.2.1:40000", "unix:pid=10,uid=0", "kernel" */
    char *export;    /* the name of what it uses; NULL: it has not chosen yet */
    unsigned in_flight;
    const char *tls; /* who makes the records, "server" or "kernel"; NULL: it has not begun TLS */
} NbdClient;

/* NbdClient *, by number; freed with the array. Waits for the workers. [any but a worker] */
GPtrArray *nbd_server_clients(NbdServer *server);

/* Sends away the client of that number (0: any) that uses export (NULL: any) or has chosen contexts of
 * it: no more of its requests are taken, those in flight are finished, then it is closed; by force
 * after a few seconds. Kernel devices stay. How many there were; they may be there for a while. Waits
 * for the workers. [any but a worker] */
unsigned nbd_server_kick(NbdServer *server, uint64_t number, const Export *export);

#endif
