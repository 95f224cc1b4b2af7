/*
 * An export: a node with an NBD name, a description and limits; and the table of all exports.
 *
 * The table is filled by [main] before the first connection; after that it is read only. [any]
 */
#ifndef CONTROL_EXPORT_H
#define CONTROL_EXPORT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "graph/node.h"

#define EXPORT_NAME_MAX 4096 /* bytes, by the protocol */

typedef struct Export {
    char *name;
    char *description; /* may be NULL */
    Node *node;        /* not owned */
    unsigned index;    /* in the table */
    bool read_only;
} Export;

typedef struct ExportTable ExportTable;

ExportTable *export_table_new(void);
void export_table_free(ExportTable *table);

/* Takes copies of the strings. A name twice, over EXPORT_NAME_MAX or not UTF-8 is refused. */
bool export_table_add(ExportTable *table, const char *name, const char *description, Node *node,
                      bool read_only, GError **error);

/* The export called name; "" is the first one unless one has that name. NULL when there is none. */
const Export *export_table_find(const ExportTable *table, const char *name, size_t length);

/* Another node takes the place of the export's, of the same size. Nobody uses the export meanwhile.
 * [main] */
void export_table_set_node(ExportTable *table, const Export *export, Node *node);

unsigned export_table_count(const ExportTable *table);
const Export *export_table_get(const ExportTable *table, unsigned index);

#endif
