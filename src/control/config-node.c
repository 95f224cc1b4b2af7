/*
 * Nodes of a configuration: boxes of the graph, each a section, with edges that are keys.
 *
 *      [export vm1] --node=--> [node limit] --child=--> [node disk] --file=--> an image
 *
 * One driver is there so far, image, which has no edges. Edges are followed in any node all the
 * same, so that a cycle or a missing node is told beside a driver that is not known.
 */
#include <string.h>

#include "base/errors.h"
#include "control/config-impl.h"

typedef struct Driver {
    const char *name;
    const char *const *keys;
} Driver;

static const char *const image_keys[] = {"driver", "file", "format", "read-only", NULL};

static const Driver drivers[] = {
    {"image", image_keys},
};

#define DEPTH_MAX 64 /* nodes one below the other */

static const char *const edge_keys[] = {"child", "children", NULL};

static const Driver *find_driver(const char *name)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(drivers); i++) {
        if (strcmp(drivers[i].name, name) == 0) {
            return &drivers[i];
        }
    }
    return NULL;
}

static char *driver_names(void)
{
    GString *names = g_string_new(NULL);
    for (unsigned i = 0; i < G_N_ELEMENTS(drivers); i++) {
        g_string_append_printf(names, "%s%s", i > 0 ? ", " : "", drivers[i].name);
    }
    return g_string_free(names, FALSE);
}

static void check_file(Config *config, const ConfigSection *node)
{
    if (config_section_find(node, "file") == NULL) {
        config_errors_add(&config->errors, node->place, "node '%s' has no file: say file=PATH",
                          node->name);
    }
}

static void check_node(Config *config, const ConfigSection *node)
{
    const ConfigEntry *entry = config_section_find(node, "driver");
    if (entry == NULL) {
        config_errors_add(&config->errors, node->place, "node '%s' has no driver: say driver=image",
                          node->name);
        return;
    }
    g_autofree char *name = config_take_text(config, node, "driver");
    const Driver *driver = name != NULL ? find_driver(name) : NULL;
    if (driver != NULL) {
        config_check_keys(config, node, driver->keys);
        check_file(config, node);
    } else if (name != NULL) {
        g_autofree char *names = driver_names();
        config_errors_add(&config->errors, entry->place,
                          "driver '%s' is not known: must be one of %s", name, names);
    }
}

/* Edges */

typedef enum { UNSEEN, ON_THE_WAY, DONE } Mark;

typedef struct Walk {
    Config *config;
    GHashTable *marks; /* ConfigSection * -> Mark */
    unsigned depth;
} Walk;

static void walk_node(Walk *walk, const ConfigSection *node);

static void walk_edge(Walk *walk, const ConfigEntry *entry, const char *name)
{
    const ConfigSection *node = config_find_section(walk->config, "node", name);
    if (node == NULL) {
        config_errors_add(&walk->config->errors, entry->place,
                          "there is no node '%s': declare [node %s]", name, name);
        return;
    }
    switch (GPOINTER_TO_INT(g_hash_table_lookup(walk->marks, node))) {
    case ON_THE_WAY:
        config_errors_add(&walk->config->errors, entry->place,
                          "node '%s' is part of a cycle: a node must not lead back to itself",
                          name);
        break;
    case UNSEEN:
        walk_node(walk, node);
        break;
    default:
        break;
    }
}

static void walk_node(Walk *walk, const ConfigSection *node)
{
    if (walk->depth == DEPTH_MAX) {
        config_errors_add(&walk->config->errors, node->place,
                          "node '%s' is too deep: at most %d below each other", node->name,
                          DEPTH_MAX);
        return;
    }
    walk->depth++;
    g_hash_table_insert(walk->marks, (void *)node, GINT_TO_POINTER(ON_THE_WAY));
    for (unsigned i = 0; edge_keys[i] != NULL; i++) {
        const ConfigEntry *entry = config_section_find(node, edge_keys[i]);
        g_auto(GStrv) names =
            entry != NULL ? config_entry_list(entry, &walk->config->errors) : NULL;
        for (unsigned j = 0; names != NULL && names[j] != NULL; j++) {
            walk_edge(walk, entry, names[j]);
        }
    }
    g_hash_table_insert(walk->marks, (void *)node, GINT_TO_POINTER(DONE));
    walk->depth--;
}

void config_check_nodes(Config *config)
{
    g_autoptr(GHashTable) marks = g_hash_table_new(g_direct_hash, g_direct_equal);
    Walk walk = {.config = config, .marks = marks};
    for (unsigned i = 0; i < config->sections->len; i++) {
        const ConfigSection *section = g_ptr_array_index(config->sections, i);
        if (strcmp(section->kind, "node") != 0) {
            continue;
        }
        check_node(config, section);
        if (g_hash_table_lookup(marks, section) == NULL) {
            walk_node(&walk, section);
        }
    }
}

void config_resolve_node(Config *config, const ConfigEntry *entry, ConfigExport *export)
{
    g_autofree char *name = config_entry_text(entry, &config->errors);
    if (name == NULL) {
        return;
    }
    const ConfigSection *node = config_find_section(config, "node", name);
    if (node == NULL) {
        config_errors_add(&config->errors, entry->place, "there is no node '%s': declare [node %s]",
                          name, name);
        return;
    }
    export->image = config_take_path(config, node, "file");
    export->format = config_take_format(config, node, "format");
    config_take_flag(config, node, "read-only", &export->read_only);
}
