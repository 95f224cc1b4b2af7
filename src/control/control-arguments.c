/*
 * The arguments of a verb, by type.
 */
#include "base/errors.h"
#include "control/control.h"

/* The member's node when it is a value of that type; NULL and true in *ok when it is absent. */
static JsonNode *find(JsonObject *arguments, const char *key, GType type, const char *wanted,
                      bool *ok, GError **error)
{
    JsonNode *node = json_object_get_member(arguments, key);
    *ok = node == NULL || (JSON_NODE_HOLDS_VALUE(node) && json_node_get_value_type(node) == type);
    if (!*ok) {
        error_set(error, EINVAL, "argument '%s': must be %s", key, wanted);
    }
    return *ok ? node : NULL;
}

bool control_get_string(JsonObject *arguments, const char *key, const char **value, GError **error)
{
    bool ok;
    JsonNode *node = find(arguments, key, G_TYPE_STRING, "a string", &ok, error);
    if (node != NULL) {
        *value = json_node_get_string(node);
    }
    return ok;
}

bool control_get_bool(JsonObject *arguments, const char *key, bool *value, GError **error)
{
    bool ok;
    JsonNode *node = find(arguments, key, G_TYPE_BOOLEAN, "true or false", &ok, error);
    if (node != NULL) {
        *value = json_node_get_boolean(node);
    }
    return ok;
}

bool control_get_uint(JsonObject *arguments, const char *key, uint64_t *value, GError **error)
{
    bool ok;
    JsonNode *node = find(arguments, key, G_TYPE_INT64, "a whole number", &ok, error);
    if (node != NULL && json_node_get_int(node) < 0) {
        return error_set(error, EINVAL, "argument '%s': must not be negative", key);
    }
    if (node != NULL) {
        *value = json_node_get_int(node);
    }
    return ok;
}
