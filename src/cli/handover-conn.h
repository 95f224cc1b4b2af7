/*
 * A connection's state as a message of a handover.
 */
#ifndef CLI_HANDOVER_CONN_H
#define CLI_HANDOVER_CONN_H

#include "cli/handover-channel.h"
#include "nbd/conn-state.h"

/* Sends "connection": the socket, and in memory that is passed along, the bytes. */
bool handover_send_conn(int channel, int fd, const ConnState *state, GError **error);

/* The state that such a message tells; exports has them by the numbers that they had, as
 * handover_open_exports found them. NULL: *error. */
ConnState *handover_take_conn(const ChannelMessage *message, GHashTable *exports, GError **error);

#endif
