/*
 * Meta contexts: LIST_META_CONTEXT and SET_META_CONTEXT. [worker]
 *
 *      base:allocation         HOLE and ZERO
 *      qemu:allocation-depth   which image of the chain: 0 none, 1 the top one, 2 its backing ...
 *
 * Every export has these; after them come those that an export has for itself (ExportContext).
 */
#ifndef NBD_META_CONTEXT_H
#define NBD_META_CONTEXT_H

#include <glib.h>
#include <stddef.h>
#include <stdint.h>

#include "control/export.h"

typedef struct Conn Conn;

/* META_EXPORT and on: the export's own. */
typedef enum { META_ALLOCATION, META_DEPTH, META_EXPORT } MetaContext;

#define META_CONTEXTS_MAX (META_EXPORT + EXPORT_CONTEXTS_MAX)

/* A bit for each: 1 << META_DEPTH. */
typedef uint32_t MetaContexts;

#define META_OF_MAP (1u << META_ALLOCATION | 1u << META_DEPTH) /* those that the node answers */

/* By which number client and server call a context. */
static inline uint32_t meta_context_number(unsigned context)
{
    return context + 1;
}

/* How many contexts an export has, and what they are called. */
unsigned meta_context_count(const Export *export);
const char *meta_context_name(const Export *export, unsigned context);

/* The context called so; false: there is none. */
bool meta_context_find(const Export *export, const char *name, unsigned *context);

/* Appends the replies to out. SET chooses for its export; a later SET, even one that fails, takes
 * that back. */
void meta_context_answer(Conn *conn, uint32_t option, const uint8_t *data, size_t length,
                         GByteArray *out);

/* The set that the payload of a BLOCK_STATUS names: numbers of 32 bits, count of them. 0: there are
 * none, or one is not of the set allowed, or one comes twice. */
MetaContexts meta_context_unpack(const uint8_t *numbers, unsigned count, MetaContexts allowed);

#endif
