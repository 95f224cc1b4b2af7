/*
 * The handshake: fixed newstyle negotiation, from the greeting to EXPORT_NAME or GO. [worker]
 */
#ifndef NBD_HANDSHAKE_H
#define NBD_HANDSHAKE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control/export.h"

typedef struct Conn Conn;

#define HANDSHAKE_OPTION_MAX (32u << 10) /* bytes of an option's data; more: TOO_BIG */

/* Sends the greeting. */
void handshake_start(Conn *conn);

/* Takes the client's flags or one option off the front of the bytes. Returns how much it used; 0:
 * too little to go on, or the connection is draining or broken. */
size_t handshake_consume(Conn *conn, const uint8_t *bytes, size_t length);

/* The export of that name, pinned, if the client may read it. NULL: it may not, or there is none, and
 * out (if not NULL) has the error. */
Export *handshake_find_export(Conn *conn, uint32_t option, const char *name, size_t length,
                              GByteArray *out);

/* Parts of an answer, appended to out; for the options of other files. */
void handshake_put_reply(GByteArray *out, uint32_t option, uint32_t type, const void *data,
                         size_t length);
void handshake_put_error(GByteArray *out, uint32_t option, uint32_t type, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

#endif
