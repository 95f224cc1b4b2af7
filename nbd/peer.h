/*
 * Who the client of a connection is, and what it may do. [worker]
 */
#ifndef NBD_PEER_H
#define NBD_PEER_H

#include "control/export.h"

typedef struct Conn Conn;

/* What is known of the client now: TLS may tell more. Valid as long as the connection's TLS session. */
void peer_describe(const Conn *conn, AccessPeer *peer);

/* The AccessRights that the client has of an export now. */
unsigned peer_rights(const Conn *conn, const Export *export);

#endif
