/*
 * For server.c: what a worker's part of the server needs to be held still.
 */
#ifndef NBD_SERVER_FREEZE_H
#define NBD_SERVER_FREEZE_H

#include "nbd/server.h"

void server_freeze_init_local(NbdLocal *local); /* [main] */

#endif
