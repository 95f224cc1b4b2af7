/*
 * A command as JSON, on one line.
 */
#include "cli/describe.h"

#include <json-glib/json-glib.h>
#include <stdio.h>

/* What an argument may be, where that is a table of the program: formats. */
static JsonArray *values_of(const GOptionEntry *entry)
{
    JsonArray *values = json_array_new();
    if (g_strcmp0(entry->arg_description, "FMT") == 0) {
        g_autofree char *names = format_names();
        g_auto(GStrv) each = g_strsplit(names, ", ", -1);
        for (char **name = each; *name != NULL; name++) {
            json_array_add_string_element(values, *name);
        }
    }
    return values;
}

static void add_options(JsonArray *array, const GOptionEntry *entries)
{
    for (; entries != NULL && entries->long_name != NULL; entries++) {
        const char letter[] = {entries->short_name, '\0'};
        if (entries->flags & G_OPTION_FLAG_HIDDEN) {
            continue;
        }
        JsonObject *option = json_object_new();
        json_object_set_string_member(option, "name", entries->long_name);
        json_object_set_string_member(option, "letter", letter);
        json_object_set_string_member(
            option, "argument", entries->arg_description != NULL ? entries->arg_description : "");
        json_object_set_boolean_member(option, "file",
                                       entries->arg == G_OPTION_ARG_FILENAME ||
                                           entries->arg == G_OPTION_ARG_FILENAME_ARRAY);
        json_object_set_string_member(option, "text",
                                      entries->description != NULL ? entries->description : "");
        json_object_set_array_member(option, "values", values_of(entries));
        json_array_add_object_element(array, option);
    }
}

void cli_describe(const CliUsage *usage, const GOptionEntry *own, const GOptionEntry *common)
{
    g_autoptr(JsonObject) object = json_object_new();
    JsonArray *options = json_array_new();
    add_options(options, own);
    add_options(options, common);
    json_object_set_string_member(object, "command", usage->command);
    json_object_set_string_member(object, "arguments", usage->arguments);
    json_object_set_string_member(object, "summary", usage->summary);
    json_object_set_string_member(object, "example", usage->example);
    json_object_set_array_member(object, "options", options);
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_OBJECT);
    json_node_set_object(node, object);
    g_autofree char *text = json_to_string(node, FALSE);
    puts(text);
}
