/*
 * What subcommands print on stdout: sizes for people, JSON for programs.
 */
#include "cli/output.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/log-sink.h"

char *output_size(uint64_t bytes)
{
    static const char *const prefixes[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
    unsigned unit = 0;
    double value = bytes;
    /* At 1000 the next unit begins: three digits are always enough. */
    for (; value >= 1000 && unit + 1 < G_N_ELEMENTS(prefixes); unit++) {
        value /= 1024;
    }
    return g_strdup_printf("%0.3g %sB", value, prefixes[unit]);
}

char *output_json_string(const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    g_autoptr(JsonNode) node = json_node_init_string(json_node_alloc(), valid);
    return json_to_string(node, FALSE);
}

char *output_harmless(const char *text)
{
    char *copy = g_strdup(text);
    log_make_harmless(copy);
    return copy;
}

void output_json(JsonNode *root)
{
    g_autoptr(JsonGenerator) generator = json_generator_new();
    json_generator_set_pretty(generator, TRUE);
    json_generator_set_indent(generator, 4);
    json_generator_set_root(generator, root);
    g_autofree char *text = json_generator_to_data(generator, NULL);
    puts(text);
    json_node_unref(root);
}

void output_add_string(JsonObject *object, const char *name, const char *text)
{
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    json_object_set_string_member(object, name, valid);
}

int output_finish(int status)
{
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "cownbd: stdout: cannot write: %s\n", strerror(errno));
        return 1;
    }
    return status;
}
