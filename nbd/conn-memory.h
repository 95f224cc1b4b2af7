/*
 * What the requests of all connections together hold in memory, bounded (--total-memory).
 *
 * A connection may hold as much as is left for the others: one client may take half of all, a second
 * one half of the rest, N that take what they can 1/(N + 1) each, and as much is left for the next
 * one. So those pause who hold most. A client without a request may always have a small one.
 *
 *      room --too little--> paused, goes on when its own requests end
 *                             |none is left: it waits
 *                             +--> asks again and again; clients that hold memory and neither take
 *                                  nor send anything are dropped after --stall-timeout
 *
 * Requests of the kernel's own devices are counted and never wait.
 */
#ifndef NBD_CONN_MEMORY_H
#define NBD_CONN_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "nbd/server.h"

/* A request holds so many bytes more, or fewer. [worker] */
void conn_memory_take(NbdLocal *local, uint64_t bytes);
void conn_memory_give(NbdLocal *local, uint64_t bytes);

/* A request that holds charge bytes may begin. [worker] */
bool conn_memory_admits(const Conn *conn, uint64_t charge);

/* At the end of a callback: sees to it that a connection that waits for others is looked at again.
 * [worker] */
void conn_memory_settle(Conn *conn);

/* The connection is closed. [worker] */
void conn_memory_forget(Conn *conn);

void conn_memory_init_local(NbdLocal *local); /* [main] */

#endif
