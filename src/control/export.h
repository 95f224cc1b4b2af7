/*
 * An export: a node with an NBD name, a description and limits; and the table of all exports.
 *
 * Exports come and go while clients are served. Who uses one (a client in transmission, an option
 * that asks for it) has it pinned; a removed export is found by nobody new, and stays as it is, node
 * included, until the last pin is given back:
 *
 *      add --> in the table --remove--> pinned by those who have it --the last put--> idle --> free
 *
 * Pinning and putting are rare (once a client), so one mutex serves the whole table. [any]
 */
#ifndef CONTROL_EXPORT_H
#define CONTROL_EXPORT_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/access.h"
#include "graph/node.h"

#define EXPORT_NAME_MAX     4096 /* bytes, by the protocol */
#define EXPORT_CONTEXTS_MAX 30   /* beside those that every export has */

/* A meta context's answer: the state at offset, and in *run how many bytes from there on have it, 1 to
 * length; the longest run that costs nothing more. Never blocks. [any] */
typedef uint32_t (*ExportStatus)(void *data, uint64_t offset, uint64_t length, uint64_t *run);

/* A meta context that this export has and others have not, as qemu:dirty-bitmap:NAME. */
typedef struct ExportContext {
    char *name;
    ExportStatus status;
    void *data; /* not owned; lives as long as the node */
} ExportContext;

typedef struct ExportTable ExportTable;
typedef struct ExportPins ExportPins;

typedef struct Export {
    char *name;
    char *description; /* may be NULL */
    Node *node;        /* not owned */
    uint64_t number;   /* never another's of the table; from 1 */
    bool read_only;
    AccessRules *access; /* see export_rights; NULL: everybody may do everything */
    ExportPins *pins;    /* the table's own */
    /* The NBD server's own: g_malloc, freed with the export; may be NULL. */
    _Atomic(void *) counters;
    atomic_uint kernel_clients; /* connections of block devices of this machine */
    ExportContext contexts[EXPORT_CONTEXTS_MAX];
    atomic_uint context_count;
} Export;

/* Told, under the table's lock, that nobody has an export pinned any more, be it removed or not. */
typedef void (*ExportIdle)(void *context);

ExportTable *export_table_new(void);
void export_table_set_idle(ExportTable *table, ExportIdle idle, void *context);
/* Frees what is in the table; nothing is pinned. NULL is fine. */
void export_table_free(ExportTable *table);

/* Takes copies of the strings. A name twice, over EXPORT_NAME_MAX or not UTF-8 is refused: NULL. It
 * stays until export_free, or as long as the table. */
Export *export_table_add(ExportTable *table, const char *name, const char *description, Node *node,
                         bool read_only, GError **error);

/* Nobody finds it any more. Only those that nobody has pinned: false when somebody has. */
void export_table_remove(ExportTable *table, Export *export);
bool export_table_remove_unused(ExportTable *table, Export *export);
/* Takes a removed one back, under the name that it had and nobody has meanwhile, to its place: the last
 * that was removed first. */
void export_table_restore(ExportTable *table, Export *export);

/* Pins the export called name; "" is the first one unless one has that name. NULL when there is none. */
Export *export_table_get(ExportTable *table, const char *name, size_t length);
/* All of them, pinned, in the order in which they were added; given back with the array. */
GPtrArray *export_table_get_all(ExportTable *table);

/* Pins once more what is pinned, or in the table as long as the caller knows that. */
Export *export_get(Export *export);
void export_put(Export *export);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Export, export_put)

/* Offers a meta context, to those who look from now on. One of that name is there already: it has another
 * status and data, as it must when the node is replaced; then nobody uses the export meanwhile. A name
 * without a colon, over EXPORT_NAME_MAX or not UTF-8 is refused, and more than EXPORT_CONTEXTS_MAX.
 * [main] */
bool export_add_context(Export *export, const char *name, ExportStatus status, void *data,
                        GError **error);

/* So many have it pinned. */
unsigned export_users(const Export *export);

/* Rules for the exports that are added from now on. Takes a reference of its own. */
void export_table_set_access(ExportTable *table, AccessRules *rules);

/* Who may do what with it from now on; rules may be NULL. Takes a reference of its own. */
void export_set_access(Export *export, AccessRules *rules);

/* The AccessRights of a client: what the rules give, as far as the export can be written at all. */
unsigned export_rights(const Export *export, const AccessPeer *peer);

/* Removed and not pinned: it goes. */
void export_free(Export *export);

#endif
