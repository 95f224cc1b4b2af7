/*
 * cownbd stats: what a running server has done.
 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/remote.h"

static const CliUsage usage = {
    .command = "stats",
    .arguments = "[DEVICE|IMAGE]",
    .summary =
        "Shows what a running server has done since it was started, an export at a time: the one "
        "at the default\ncontrol socket, or the one that serves the image (cownbd attach).",
    .example = "  cownbd stats\n"
               "  cownbd stats /dev/mapper/disk.qcow2\n"
               "  cownbd stats --json | jq '.exports[].requests'",
    .flags = CLI_FLAG_JSON,
};

static int64_t number_of(JsonObject *object, const char *member)
{
    return object != NULL ? json_object_get_int_member_with_default(object, member, 0) : 0;
}

static JsonObject *object_of(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);
    return node != NULL && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

/* The commands that came at all. */
static void print_commands(JsonObject *requests, JsonObject *bytes)
{
    JsonObjectIter iter;
    const char *command;
    json_object_iter_init_ordered(&iter, requests);
    while (json_object_iter_next_ordered(&iter, &command, NULL)) {
        int64_t count = number_of(requests, command);
        if (count == 0) {
            continue;
        }
        printf("  %-14s %12" G_GINT64_FORMAT, command, count);
        if (bytes != NULL && json_object_has_member(bytes, command)) {
            g_autofree char *size = output_size(number_of(bytes, command));
            printf("  %s", size);
        }
        putchar('\n');
    }
}

/* The kinds that came at all. */
static void print_errors(JsonObject *kinds)
{
    JsonObjectIter iter;
    const char *kind;
    json_object_iter_init_ordered(&iter, kinds);
    while (json_object_iter_next_ordered(&iter, &kind, NULL)) {
        if (number_of(kinds, kind) > 0) {
            printf("  %-14s %12" G_GINT64_FORMAT "\n", kind, number_of(kinds, kind));
        }
    }
}

/* Strings without their quotes, and no more digits of a fraction than anybody reads. */
static char *value_text(JsonNode *value)
{
    if (JSON_NODE_HOLDS_VALUE(value) && json_node_get_value_type(value) == G_TYPE_STRING) {
        return json_node_dup_string(value);
    }
    if (JSON_NODE_HOLDS_VALUE(value) && json_node_get_value_type(value) == G_TYPE_DOUBLE) {
        return g_strdup_printf("%.2f", json_node_get_double(value));
    }
    return json_to_string(value, FALSE);
}

/* A few fit on the line of their name. */
static void print_members(const char *name, JsonObject *object)
{
    JsonObjectIter iter;
    const char *key, *separator = "";
    JsonNode *value;
    bool is_short = json_object_get_size(object) <= 2;
    printf(is_short ? "  %-14s " : "  %s\n", name);
    json_object_iter_init_ordered(&iter, object);
    while (json_object_iter_next_ordered(&iter, &key, &value)) {
        g_autofree char *text = value_text(value);
        if (is_short) {
            printf("%s%s %s", separator, key, text);
            separator = ", ";
        } else {
            printf("    %-18s %12s\n", key, text);
        }
    }
    if (is_short) {
        putchar('\n');
    }
}

static void print_rest(JsonObject *export)
{
    static const char *const known[] = {"name",  "mode",    "connections",    "errors", "requests",
                                        "bytes", "latency", "errors-by-kind", NULL};
    JsonObjectIter iter;
    const char *key;
    JsonNode *value;
    json_object_iter_init_ordered(&iter, export);
    while (json_object_iter_next_ordered(&iter, &key, &value)) {
        if (g_strv_contains(known, key)) {
            continue;
        }
        if (JSON_NODE_HOLDS_OBJECT(value)) {
            print_members(key, json_node_get_object(value));
        } else {
            g_autofree char *text = value_text(value);
            printf("  %-14s %12s\n", key, text);
        }
    }
}

static void print_export(JsonObject *export)
{
    printf("%s (%s): %" G_GINT64_FORMAT " connections, %" G_GINT64_FORMAT " errors\n",
           json_object_get_string_member_with_default(export, "name", "?"),
           json_object_get_string_member_with_default(export, "mode", "?"),
           number_of(export, "connections"), number_of(export, "errors"));
    JsonObject *requests = object_of(export, "requests");
    if (requests != NULL) {
        print_commands(requests, object_of(export, "bytes"));
    }
    JsonObject *kinds = object_of(export, "errors-by-kind");
    if (kinds != NULL) {
        print_errors(kinds);
    }
    print_rest(export);
}

static void print_memory(JsonObject *memory)
{
    if (memory != NULL) {
        g_autofree char *held = output_size(number_of(memory, "held"));
        g_autofree char *limit = output_size(number_of(memory, "limit"));
        printf("requests hold %s of %s, %" G_GINT64_FORMAT
               " clients wait for memory, %" G_GINT64_FORMAT " were dropped for it\n",
               held, limit, number_of(memory, "waiting"), number_of(memory, "dropped"));
    }
}

static int print_human(JsonObject *answer)
{
    printf("up for %" G_GINT64_FORMAT " s, %" G_GINT64_FORMAT " clients\n",
           number_of(answer, "seconds"), number_of(answer, "clients"));
    print_memory(object_of(answer, "memory"));
    JsonArray *exports = json_object_get_array_member(answer, "exports");
    for (unsigned i = 0; exports != NULL && i < json_array_get_length(exports); i++) {
        print_export(json_array_get_object_element(exports, i));
    }
    return output_finish(0);
}

int cli_stats(int argc, char **argv)
{
    return remote_show(&usage, argc, argv, "stats", print_human);
}
