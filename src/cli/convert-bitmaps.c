/*
 * convert --bitmaps: the persistent dirty bitmaps of the source, with their granularity, and enabled or not as they were.
 *
 * They are added when all data is there, so that what convert itself writes is not marked in them.
 */
#include <inttypes.h>
#include <string.h>

#include "base/errors.h"
#include "cli/bitmap-list.h"
#include "cli/convert.h"
#include "cli/output.h"

/* Not saved by its last user: what it says is not true. */
static bool is_broken(JsonObject *bitmap)
{
    return bitmap_has_flag(bitmap, "in-use");
}

static bool refuse_broken(const Convert *convert, JsonObject *bitmap, GError **error)
{
    g_autofree char *name = output_harmless(json_object_get_string_member(bitmap, "name"));
    return error_set(error, EUCLEAN,
                     "%s: bitmap '%s' was not saved by its last user: leave it out by "
                     "--skip-broken-bitmaps, or remove it with 'cownbd bitmap remove'",
                     convert->source->path, name);
}

static JsonObject *find_bitmap(JsonArray *bitmaps, const char *name)
{
    for (guint i = 0; i < json_array_get_length(bitmaps); i++) {
        JsonObject *bitmap = json_array_get_object_element(bitmaps, i);
        if (strcmp(json_object_get_string_member(bitmap, "name"), name) == 0) {
            return bitmap;
        }
    }
    return NULL;
}

static bool check_each(const Convert *convert, const Image *target, GError **error)
{
    g_autoptr(JsonArray) bitmaps = bitmap_list(convert->source);
    if (target && json_array_get_length(bitmaps) > 0 && target->size != convert->source->size) {
        return error_set(error, EINVAL,
                         "--bitmaps: %s has %" PRIu64 " bytes, the source %" PRIu64
                         ": must be as large, for a bitmap says something of each byte",
                         target->path, target->size, convert->source->size);
    }
    g_autoptr(JsonArray) there = target ? bitmap_list(target) : json_array_new();
    for (guint i = 0; i < json_array_get_length(bitmaps); i++) {
        JsonObject *bitmap = json_array_get_object_element(bitmaps, i);
        const char *name = json_object_get_string_member(bitmap, "name");
        if (is_broken(bitmap) && !convert->skip_broken) {
            return refuse_broken(convert, bitmap, error);
        }
        if (!is_broken(bitmap) && find_bitmap(there, name)) {
            g_autofree char *shown = output_harmless(name);
            return error_set(error, EEXIST, "%s: there is a bitmap '%s' already", target->path,
                             shown);
        }
    }
    return true;
}

bool convert_bitmaps_check(const Convert *convert, const Image *target, GError **error)
{
    const Image *source = convert->source;
    const Format *format = target ? target->format : convert->format;
    if (!convert->bitmaps) {
        return true;
    }
    if (!source->format->bitmap_get) {
        return error_set(error, ENOTSUP, "--bitmaps: %s: format %s has no bitmaps: only qcow2 has",
                         source->path, source->format->name);
    }
    if (format && !format->bitmap_change) {
        return error_set(error, ENOTSUP, "--bitmaps: images of format %s have none: use -O qcow2",
                         format->name);
    }
    return check_each(convert, target, error);
}

static bool copy_one(const Convert *convert, Image *target, JsonObject *bitmap, GError **error)
{
    const Format *format = target->format;
    BitmapChange add = {
        .verb = BITMAP_ADD,
        .name = json_object_get_string_member(bitmap, "name"),
        .granularity = json_object_get_int_member(bitmap, "granularity"),
        .disabled = !bitmap_has_flag(bitmap, "auto"),
    };
    BitmapChange merge = {
        .verb = BITMAP_MERGE,
        .name = add.name,
        .source = convert->source,
        .source_name = add.name,
    };
    if (!format->bitmap_change(target, &add, error)) {
        return false;
    }
    bool merged = format->bitmap_change(target, &merge, error);
    if (!merged) { /* an empty one would say that nothing was changed */
        BitmapChange remove = {.verb = BITMAP_REMOVE, .name = add.name};
        (void)format->bitmap_change(target, &remove, NULL);
    }
    return merged;
}

bool convert_bitmaps_copy(const Convert *convert, Image *target, GError **error)
{
    if (!convert->bitmaps) {
        return true;
    }
    g_autoptr(JsonArray) bitmaps = bitmap_list(convert->source);
    bool ok = true;
    for (guint i = 0; ok && i < json_array_get_length(bitmaps); i++) {
        JsonObject *bitmap = json_array_get_object_element(bitmaps, i);
        ok = is_broken(bitmap) || copy_one(convert, target, bitmap, error);
    }
    return ok;
}
