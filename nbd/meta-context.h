/*
 * Meta contexts: LIST_META_CONTEXT and SET_META_CONTEXT. We have one, base:allocation. [worker]
 */
#ifndef NBD_META_CONTEXT_H
#define NBD_META_CONTEXT_H

#include <glib.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Conn Conn;

/* Appends the replies to out. SET chooses for its export; a later SET, even one that fails, takes
 * that back. */
void meta_context_answer(Conn *conn, uint32_t option, const uint8_t *data, size_t length,
                         GByteArray *out);

#endif
