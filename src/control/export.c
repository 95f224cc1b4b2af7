/*
 * The table of exports: names to nodes.
 *
 * A plain array, looked through from the start: a server has a few exports, or some hundred, and a
 * name is looked up once a connection. What must stay true: names in the table are unique, so that
 * the order of adding decides nothing but which export is the default; an export that is removed is
 * never pinned by its name again, so that its pins only become fewer.
 */
#include "control/export.h"

#include <pthread.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/errors.h"

struct ExportTable {
    pthread_mutex_t lock;
    GPtrArray *exports;   /* lock */
    uint64_t last_number; /* lock */
    AccessRules *access;  /* of new exports; may be NULL */
    ExportIdle idle;      /* may be NULL */
    void *context;
};

struct ExportPins {
    ExportTable *table;
    unsigned count; /* lock of the table, as the next */
    bool removed;
    unsigned place; /* in the table, when it was removed */
};

static void free_export(Export *export)
{
    g_free(export->name);
    g_free(export->description);
    g_clear_pointer(&export->access, access_rules_unref);
    g_free(export->pins);
    g_free(atomic_load(&export->counters));
    for (unsigned i = 0; i < export->context_count; i++) {
        g_free(export->contexts[i].name);
    }
    g_free(export);
}

ExportTable *export_table_new(void)
{
    ExportTable *table = g_new0(ExportTable, 1);
    pthread_mutex_init(&table->lock, NULL);
    table->exports = g_ptr_array_new();
    return table;
}

void export_table_set_idle(ExportTable *table, ExportIdle idle, void *context)
{
    table->idle = idle;
    table->context = context;
}

void export_table_free(ExportTable *table)
{
    if (table == NULL) {
        return;
    }
    for (unsigned i = 0; i < table->exports->len; i++) {
        free_export(g_ptr_array_index(table->exports, i));
    }
    g_ptr_array_unref(table->exports);
    g_clear_pointer(&table->access, access_rules_unref);
    pthread_mutex_destroy(&table->lock);
    g_free(table);
}

/* lock is held */
static Export *find(const ExportTable *table, const char *name, size_t length)
{
    for (unsigned i = 0; i < table->exports->len; i++) {
        Export *export = g_ptr_array_index(table->exports, i);
        if (strlen(export->name) == length && memcmp(export->name, name, length) == 0) {
            return export;
        }
    }
    return NULL;
}

static bool check_texts(const char *name, const char *description, GError **error)
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
    return description == NULL ||
           (strlen(description) <= EXPORT_NAME_MAX && g_utf8_validate(description, -1, NULL)) ||
           error_set(error, EINVAL, "description of export '%s': must be UTF-8 of at most %d bytes",
                     name, EXPORT_NAME_MAX);
}

Export *export_table_add(ExportTable *table, const char *name, const char *description, Node *node,
                         bool read_only, GError **error)
{
    if (!check_texts(name, description, error)) {
        return NULL;
    }
    with_mutex(&table->lock);
    if (find(table, name, strlen(name)) != NULL) {
        error_set(error, EEXIST,
                  "export name '%s' is given twice: give each image its own with --name", name);
        return NULL;
    }
    Export *export = g_new0(Export, 1);
    export->number = ++table->last_number;
    export->name = g_strdup(name);
    export->description = g_strdup(description);
    export->node = node;
    export->read_only = read_only || node->read_only;
    export->access = table->access != NULL ? access_rules_ref(table->access) : NULL;
    export->pins = g_new0(ExportPins, 1);
    export->pins->table = table;
    g_ptr_array_add(table->exports, export);
    return export;
}

/* lock is held */
static void take_out(ExportTable *table, Export *export)
{
    g_ptr_array_find(table->exports, export, &export->pins->place);
    g_ptr_array_remove_index(table->exports, export->pins->place);
    export->pins->removed = true;
}

void export_table_remove(ExportTable *table, Export *export)
{
    with_mutex(&table->lock);
    take_out(table, export);
}

bool export_table_remove_unused(ExportTable *table, Export *export)
{
    with_mutex(&table->lock);
    if (export->pins->count > 0) {
        return false;
    }
    take_out(table, export);
    return true;
}

void export_table_restore(ExportTable *table, Export *export)
{
    with_mutex(&table->lock);
    g_assert(find(table, export->name, strlen(export->name)) == NULL);
    export->pins->removed = false;
    g_ptr_array_insert(table->exports, MIN(export->pins->place, table->exports->len), export);
}

static Export *pin(Export *export)
{
    export->pins->count++;
    return export;
}

Export *export_table_get(ExportTable *table, const char *name, size_t length)
{
    with_mutex(&table->lock);
    Export *export = find(table, name, length);
    if (export == NULL && length == 0 && table->exports->len > 0) {
        export = g_ptr_array_index(table->exports, 0);
    }
    return export != NULL ? pin(export) : NULL;
}

static void put_one(void *export)
{
    export_put(export);
}

GPtrArray *export_table_get_all(ExportTable *table)
{
    GPtrArray *all = g_ptr_array_new_with_free_func(put_one);
    with_mutex(&table->lock);
    for (unsigned i = 0; i < table->exports->len; i++) {
        g_ptr_array_add(all, pin(g_ptr_array_index(table->exports, i)));
    }
    return all;
}

Export *export_get(Export *export)
{
    with_mutex(&export->pins->table->lock);
    return pin(export);
}

void export_put(Export *export)
{
    ExportTable *table = export->pins->table;
    with_mutex(&table->lock);
    g_assert(export->pins->count > 0);
    if (--export->pins->count == 0 && table->idle != NULL) {
        table->idle(table->context);
    }
}

unsigned export_users(const Export *export)
{
    with_mutex(&export->pins->table->lock);
    return export->pins->count;
}

static void replace_rules(AccessRules **place, AccessRules *rules)
{
    g_clear_pointer(place, access_rules_unref);
    *place = rules != NULL ? access_rules_ref(rules) : NULL;
}

void export_table_set_access(ExportTable *table, AccessRules *rules)
{
    with_mutex(&table->lock);
    replace_rules(&table->access, rules);
}

void export_set_access(Export *export, AccessRules *rules)
{
    with_mutex(&export->pins->table->lock);
    replace_rules(&export->access, rules);
}

unsigned export_rights(const Export *export, const AccessPeer *peer)
{
    with_mutex(&export->pins->table->lock);
    unsigned rights = access_rights(export->access, peer);
    return export->read_only ? rights & ~ACCESS_WRITE : rights;
}

void export_free(Export *export)
{
    g_assert(export->pins->removed && export->pins->count == 0);
    free_export(export);
}

static ExportContext *find_context(Export *export, const char *name)
{
    for (unsigned i = 0; i < export->context_count; i++) {
        if (strcmp(export->contexts[i].name, name) == 0) {
            return &export->contexts[i];
        }
    }
    return NULL;
}

bool export_add_context(Export *export, const char *name, ExportStatus status, void *data,
                        GError **error)
{
    if (strchr(name, ':') == NULL || strlen(name) > EXPORT_NAME_MAX ||
        !g_utf8_validate(name, -1, NULL)) {
        g_autofree char *shown = g_strescape(name, NULL);
        return error_set(error, EINVAL,
                         "meta context '%s': must be SPACE:NAME, UTF-8 of at most %d bytes", shown,
                         EXPORT_NAME_MAX);
    }
    ExportContext *context = find_context(export, name);
    unsigned count = export->context_count;
    if (context != NULL) {
        context->status = status;
        context->data = data;
        return true;
    }
    if (count == EXPORT_CONTEXTS_MAX) {
        return error_set(error, ENOSPC, "meta context '%s': export '%s' has %d already, the most",
                         name, export->name, EXPORT_CONTEXTS_MAX);
    }
    export->contexts[count] = (ExportContext){g_strdup(name), status, data};
    export->context_count = count + 1; /* who sees it sees the entry too */
    return true;
}
