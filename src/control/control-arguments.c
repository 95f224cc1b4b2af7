/*
 * The arguments of a verb, by type. A number or a truth value may also come as a string: so a caller
 * that knows only names and texts (a shell) need not know the types.
 */
#include <string.h>

#include "base/errors.h"
#include "control/control.h"

static JsonNode *find(JsonObject *arguments, const char *key)
{
    return json_object_get_member(arguments, key);
}

static GType value_type(JsonNode *node)
{
    return JSON_NODE_HOLDS_VALUE(node) ? json_node_get_value_type(node) : G_TYPE_INVALID;
}

bool control_get_string(JsonObject *arguments, const char *key, const char **value, GError **error)
{
    JsonNode *node = find(arguments, key);
    if (node == NULL) {
        return true;
    }
    if (value_type(node) != G_TYPE_STRING) {
        return error_set(error, EINVAL, "argument '%s': must be a string", key);
    }
    *value = json_node_get_string(node);
    return true;
}

static bool are_strings(JsonArray *array)
{
    for (unsigned i = 0; i < json_array_get_length(array); i++) {
        if (value_type(json_array_get_element(array, i)) != G_TYPE_STRING) {
            return false;
        }
    }
    return true;
}

bool control_get_strings(JsonObject *arguments, const char *key, char ***values, GError **error)
{
    JsonNode *node = find(arguments, key);
    if (node == NULL) {
        return true;
    }
    g_autoptr(GPtrArray) list = g_ptr_array_new();
    if (value_type(node) == G_TYPE_STRING) {
        g_ptr_array_add(list, g_strdup(json_node_get_string(node)));
    } else if (!JSON_NODE_HOLDS_ARRAY(node) || !are_strings(json_node_get_array(node))) {
        return error_set(error, EINVAL, "argument '%s': must be a string, or an array of them",
                         key);
    } else {
        JsonArray *array = json_node_get_array(node);
        for (unsigned i = 0; i < json_array_get_length(array); i++) {
            g_ptr_array_add(list, g_strdup(json_array_get_string_element(array, i)));
        }
    }
    g_ptr_array_add(list, NULL);
    *values = (char **)g_ptr_array_free(g_steal_pointer(&list), FALSE);
    return true;
}

bool control_get_bool(JsonObject *arguments, const char *key, bool *value, GError **error)
{
    JsonNode *node = find(arguments, key);
    if (node == NULL) {
        return true;
    }
    GType type = value_type(node);
    const char *text = type == G_TYPE_STRING ? json_node_get_string(node) : "";
    if (type == G_TYPE_BOOLEAN) {
        *value = json_node_get_boolean(node);
        return true;
    }
    *value = strcmp(text, "true") == 0;
    return *value || strcmp(text, "false") == 0 ||
           error_set(error, EINVAL, "argument '%s': must be true or false", key);
}

bool control_get_uint(JsonObject *arguments, const char *key, uint64_t *value, GError **error)
{
    JsonNode *node = find(arguments, key);
    if (node == NULL) {
        return true;
    }
    GType type = value_type(node);
    if (type == G_TYPE_INT64 && json_node_get_int(node) >= 0) {
        *value = json_node_get_int(node);
        return true;
    }
    const char *text = type == G_TYPE_STRING ? json_node_get_string(node) : "";
    guint64 number = 0;
    bool ok = g_ascii_string_to_unsigned(text, 10, 0, G_MAXINT64, &number, NULL);
    *value = number;
    return ok || error_set(error, EINVAL, "argument '%s': must be a whole number from 0", key);
}
