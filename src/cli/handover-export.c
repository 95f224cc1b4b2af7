/*
 * What is served, as messages of a handover.
 *
 * Connections name their export by the number that it had, since a name may be that of one that is
 * leaving and of one that has come. What must stay true: an export that is leaving is in the table
 * for a moment only, before any client is.
 */
#include "cli/handover-export.h"

#include "base/errors.h"

static JsonArray *strings(char *const *list)
{
    JsonArray *array = json_array_new();
    for (; *list != NULL; list++) {
        json_array_add_string_element(array, *list);
    }
    return array;
}

static bool send_one(int channel, const ServedImage *image, GError **error)
{
    const ServedHow *how = &image->how;
    JsonObject *object = channel_object("export");
    json_object_set_int_member(object, "number", image->export->number);
    json_object_set_string_member(object, "name", how->name);
    channel_put_path(object, "path", how->path);
    if (how->format != NULL) {
        json_object_set_string_member(object, "format", how->format);
    }
    if (how->description != NULL) {
        json_object_set_string_member(object, "description", how->description);
    }
    if (how->snapshot != NULL) {
        json_object_set_string_member(object, "snapshot", how->snapshot);
    }
    if (how->secret_files != NULL) {
        json_object_set_array_member(object, "secret-file", strings(how->secret_files));
    }
    if (how->access.allow != NULL) {
        json_object_set_array_member(object, "allow", strings(how->access.allow));
    }
    json_object_set_boolean_member(object, "require-tls", how->access.require_tls);
    json_object_set_boolean_member(object, "read-only", how->read_only);
    json_object_set_int_member(object, "origin", how->origin);
    json_object_set_boolean_member(object, "leaving", image->leaving);
    return channel_send(channel, object, -1, -1, error);
}

bool handover_send_exports(int channel, const Serve *serve, GError **error)
{
    for (int leaving = 1; leaving >= 0; leaving--) {
        for (unsigned i = 0; i < serve->images->len; i++) {
            const ServedImage *image = g_ptr_array_index(serve->images, i);
            if (image->leaving == leaving && !send_one(channel, image, error)) {
                return false;
            }
        }
    }
    return true;
}

static const char *text(const ChannelMessage *message, const char *key)
{
    return json_object_get_string_member_with_default(message->object, key, NULL);
}

static bool flag(const ChannelMessage *message, const char *key)
{
    return json_object_get_boolean_member_with_default(message->object, key, FALSE);
}

static char **take_strings(const ChannelMessage *message, const char *key)
{
    if (!json_object_has_member(message->object, key)) {
        return NULL;
    }
    JsonArray *array = json_object_get_array_member(message->object, key);
    unsigned count = json_array_get_length(array);
    char **list = g_new0(char *, count + 1);
    for (unsigned i = 0; i < count; i++) {
        list[i] = g_strdup(json_array_get_string_element(array, i));
    }
    return list;
}

static bool open_one(Serve *serve, const ChannelMessage *message, GHashTable *numbers,
                     GError **error)
{
    g_autofree char *path = channel_take_path(message, "path");
    g_auto(GStrv) allow = take_strings(message, "allow");
    g_auto(GStrv) secret_files = take_strings(message, "secret-file");
    ServedHow how = {
        .name = (char *)text(message, "name"),
        .path = path,
        .format = (char *)text(message, "format"),
        .description = (char *)text(message, "description"),
        .snapshot = (char *)text(message, "snapshot"),
        .secret_files = secret_files,
        .access = {allow, flag(message, "require-tls")},
        .read_only = flag(message, "read-only"),
        .origin = json_object_get_int_member_with_default(message->object, "origin", SERVED_GIVEN),
    };
    if (how.name == NULL || path == NULL) {
        return error_set(error, EPROTO, "handover: an export does not make sense");
    }
    ServedImage *image = serve_images_add(serve, &how, error);
    if (image == NULL) {
        return false;
    }
    uint64_t *number = g_new(uint64_t, 1);
    *number = json_object_get_int_member_with_default(message->object, "number", 0);
    g_hash_table_insert(numbers, number, image->export);
    if (flag(message, "leaving")) {
        export_table_remove(serve->exports, image->export);
        image->leaving = true;
    }
    return true;
}

bool handover_open_exports(Serve *serve, const GPtrArray *messages, GHashTable *numbers,
                           GError **error)
{
    for (unsigned i = 0; i < messages->len; i++) {
        if (!open_one(serve, g_ptr_array_index(messages, i), numbers, error)) {
            return false;
        }
    }
    return true;
}
