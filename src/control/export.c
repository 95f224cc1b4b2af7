/*
 * The table of exports: names to nodes.
 *
 * A plain array, looked through from the start: a server has a few exports, and a name is looked up
 * once a connection. What must stay true: names are unique, so that the order of adding decides
 * nothing but which export is the default.
 */
#include "control/export.h"

#include <string.h>

#include "base/errors.h"

struct ExportTable {
    GPtrArray *exports;
};

static void export_free(void *data)
{
    Export *export = data;
    g_free(export->name);
    g_free(export->description);
    g_free(export);
}

ExportTable *export_table_new(void)
{
    ExportTable *table = g_new0(ExportTable, 1);
    table->exports = g_ptr_array_new_with_free_func(export_free);
    return table;
}

void export_table_free(ExportTable *table)
{
    if (table != NULL) {
        g_ptr_array_unref(table->exports);
        g_free(table);
    }
}

static const Export *find_exact(const ExportTable *table, const char *name, size_t length)
{
    for (unsigned i = 0; i < table->exports->len; i++) {
        const Export *export = g_ptr_array_index(table->exports, i);
        if (strlen(export->name) == length && memcmp(export->name, name, length) == 0) {
            return export;
        }
    }
    return NULL;
}

bool export_table_add(ExportTable *table, const char *name, const char *description, Node *node,
                      bool read_only, GError **error)
{
    size_t length = strlen(name);
    if (length > EXPORT_NAME_MAX) {
        return error_set(error, EINVAL, "export name of %zu bytes: must be at most %d", length,
                         EXPORT_NAME_MAX);
    }
    if (!g_utf8_validate(name, length, NULL)) {
        g_autofree char *shown = g_strescape(name, NULL);
        return error_set(error, EINVAL, "export name '%s': must be UTF-8: name it with --name",
                         shown);
    }
    if (description != NULL &&
        (strlen(description) > EXPORT_NAME_MAX || !g_utf8_validate(description, -1, NULL))) {
        return error_set(error, EINVAL,
                         "description of export '%s': must be UTF-8 of at most %d bytes", name,
                         EXPORT_NAME_MAX);
    }
    if (find_exact(table, name, length) != NULL) {
        return error_set(error, EEXIST,
                         "export name '%s' is given twice: give each image its own with --name",
                         name);
    }
    Export *export = g_new0(Export, 1);
    export->name = g_strdup(name);
    export->description = g_strdup(description);
    export->node = node;
    export->index = table->exports->len;
    export->read_only = read_only || node->read_only;
    g_ptr_array_add(table->exports, export);
    return true;
}

const Export *export_table_find(const ExportTable *table, const char *name, size_t length)
{
    const Export *export = find_exact(table, name, length);
    if (export == NULL && length == 0 && table->exports->len > 0) {
        return g_ptr_array_index(table->exports, 0);
    }
    return export;
}

void export_table_set_node(ExportTable *table, const Export *export, Node *node)
{
    Export *own = g_ptr_array_index(table->exports, export->index);
    own->node = node;
}

unsigned export_table_count(const ExportTable *table)
{
    return table->exports->len;
}

const Export *export_table_get(const ExportTable *table, unsigned index)
{
    return g_ptr_array_index(table->exports, index);
}
