/*
 * Meta contexts: LIST_META_CONTEXT and SET_META_CONTEXT. [worker]
 *
 *      base:allocation         HOLE and ZERO
 *      qemu:allocation-depth   which image of the chain: 0 none, 1 the top one, 2 its backing ...
 */
#ifndef NBD_META_CONTEXT_H
#define NBD_META_CONTEXT_H

#include <glib.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Conn Conn;

typedef enum { META_ALLOCATION, META_DEPTH, META_CONTEXTS } MetaContext;

/* Sets of them have a bit for each: 1 << META_DEPTH. */

/* By which number client and server call a context. */
static inline uint32_t meta_context_number(MetaContext context)
{
    return context + 1;
}

/* Appends the replies to out. SET chooses for its export; a later SET, even one that fails, takes
 * that back. */
void meta_context_answer(Conn *conn, uint32_t option, const uint8_t *data, size_t length,
                         GByteArray *out);

/* The set that the payload of a BLOCK_STATUS names: numbers of 32 bits, count of them. 0: there are
 * none, or one is not of the set allowed, or one comes twice. */
uint8_t meta_context_unpack(const uint8_t *numbers, unsigned count, uint8_t allowed);

#endif
