/*
 * The state of a connection, apart from the connection: what a process needs to go on with a socket
 * that another one has served so far.
 *
 * Taken while nothing of the connection is in the engine, so that it is: what was negotiated, bytes
 * received and not used, bytes not yet sent.
 */
#ifndef NBD_CONN_STATE_H
#define NBD_CONN_STATE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/export.h"
#include "nbd/meta-context.h"

typedef struct Conn Conn;

typedef enum { CONN_FLAGS, CONN_OPTIONS, CONN_TRANSMISSION } ConnPhase;

typedef struct ConnState {
    ConnPhase phase;
    bool fixed_newstyle, no_zeroes, structured, extended;
    MetaContexts contexts; /* as in Conn */
    bool draining;         /* the client has ended; output is still to be sent */
    Export *meta_export;   /* pinned, or NULL */
    Export *export;        /* set in TRANSMISSION; pinned */
    GByteArray *input;     /* never NULL */
    GByteArray *output;    /* never NULL */
    uint64_t skip;         /* bytes after input to throw away */
    GByteArray *skipped;   /* to send when that is done; NULL: nothing */
} ConnState;

/* A state without input and output. [any] */
ConnState *conn_state_new(void);
void conn_state_free(ConnState *state);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ConnState, conn_state_free)

/* What conn's state is; conn is as before. Nothing of it is in the engine. [worker] */
ConnState *conn_state_take(const Conn *conn);

/* Makes a fresh connection be in that state, whose pins it takes. [worker] */
void conn_state_apply(Conn *conn, ConnState *state);

#endif
