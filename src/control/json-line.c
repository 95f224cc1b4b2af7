/*
 * JSON objects, one a line.
 *
 * The library's parser calls itself for each level and takes more than JSON (comments, single
 * quotes, assignments), so a line is looked through before it: outside of strings there may be only
 * what JSON has there. That makes sure that this file and the parser agree on what is a string, and
 * so on the depth.
 */
#include "control/json-line.h"

#include <stdbool.h>
#include <string.h>

#include "base/errors.h"

/* The index behind the string that begins at i, or length when it does not end. */
static size_t skip_string(const char *line, size_t length, size_t i)
{
    for (i++; i < length && line[i] != '"'; i++) {
        if (line[i] == '\\') {
            i++;
        }
    }
    return MIN(i + 1, length);
}

static bool may_stand_outside(char c)
{
    return g_ascii_isalnum(c) || (c != '\0' && strchr(" \t\r+-.,:{}[]", c) != NULL);
}

static bool check_line(const char *line, size_t length, unsigned depth_max, GError **error)
{
    if (!g_utf8_validate(line, length, NULL)) {
        return error_set(error, EINVAL, "request: must be UTF-8 without zero bytes");
    }
    unsigned depth = 0;
    for (size_t i = 0; i < length;) {
        if (line[i] == '"') {
            i = skip_string(line, length, i);
            continue;
        }
        if (!may_stand_outside(line[i])) {
            return error_set(error, EINVAL, "request: byte %zu is none that JSON has there", i);
        }
        if ((line[i] == '{' || line[i] == '[') && ++depth > depth_max) {
            return error_set(error, EINVAL, "request: nested too deeply: at most %u levels",
                             depth_max);
        }
        if ((line[i] == '}' || line[i] == ']') && depth > 0) {
            depth--;
        }
        i++;
    }
    return true;
}

JsonObject *json_line_parse(const char *line, size_t length, unsigned depth_max, GError **error)
{
    if (!check_line(line, length, depth_max, error)) {
        return NULL;
    }
    g_autoptr(JsonParser) parser = json_parser_new_immutable();
    g_autoptr(GError) refusal = NULL;
    if (!json_parser_load_from_data(parser, line, length, &refusal)) {
        error_set(error, EINVAL, "request: no JSON: %s", refusal->message);
        return NULL;
    }
    JsonNode *root = json_parser_get_root(parser);
    if (root == NULL || !JSON_NODE_HOLDS_OBJECT(root)) {
        error_set(error, EINVAL, "request: must be a JSON object such as {\"verb\": \"list\"}");
        return NULL;
    }
    return json_node_dup_object(root);
}

char *json_line_print(JsonObject *object)
{
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), object);
    g_autofree char *text = json_to_string(node, FALSE);
    /* The library passes on what it is given, and there are errors with bytes of files in them. */
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    return g_strconcat(valid, "\n", NULL);
}
