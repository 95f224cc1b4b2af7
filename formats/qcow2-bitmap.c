/*
 * qcow2: the directory of persistent bitmaps.
 *
 *     0 table offset  8 table entries  12 flags  16 type  17 granularity  18 name size
 *     20 extra size  24 extra, name, padding to 8
 *
 * Reading is enough for info and for the check, which must know their clusters, or it would call them
 * leaked.
 */
#include "formats/qcow2-bitmap.h"

#include <string.h>

#include "base/errors.h"
#include "base/log.h"
#include "formats/info.h"

#define ENTRY_HEAD  QCOW2_BITMAP_HEAD
#define KNOWN_FLAGS (QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO | QCOW2_BITMAP_COMPATIBLE)

int qcow2_bitmap_directory_read(const Image *image, uint8_t **directory)
{
    const Qcow2State *s = qcow2_state(image);
    uint64_t length = s->bitmap_directory_size;
    if (!range_within(s->bitmap_directory_offset, length, store_size(image->store))) {
        return -EUCLEAN;
    }
    *directory = g_try_malloc(length);
    if (!*directory) {
        return -ENOMEM;
    }
    int result = store_read(image->store, *directory, length, s->bitmap_directory_offset);
    if (result < 0) {
        g_clear_pointer(directory, g_free);
    }
    return result;
}

bool qcow2_bitmap_unpack(const Qcow2State *s, const uint8_t *entry, uint64_t room,
                         Qcow2Bitmap *bitmap)
{
    if (room < ENTRY_HEAD) {
        return false;
    }
    uint64_t extra = load_be32(entry + 20);
    *bitmap = (Qcow2Bitmap){
        .table_offset = load_be64(entry),
        .table_entries = load_be32(entry + 8),
        .flags = load_be32(entry + 12),
        .type = entry[16],
        .granularity_bits = entry[17],
        .extra_size = extra,
        .name_length = load_be16(entry + 18),
        .length = align_up(ENTRY_HEAD + extra + load_be16(entry + 18), 8),
    };
    if (bitmap->length > room || bitmap->table_entries == 0 || bitmap->table_offset == 0 ||
        bitmap->table_offset % s->cluster_size != 0 ||
        bitmap->granularity_bits > DIRTYMAP_GRANULARITY_MAX) {
        return false;
    }
    bitmap->name = (const char *)entry + ENTRY_HEAD + extra;
    return true;
}

void qcow2_bitmaps_free(Qcow2State *s)
{
    g_clear_pointer(&s->bitmaps, g_ptr_array_unref);
}

void qcow2_bitmap_free(gpointer data)
{
    Qcow2KeptBitmap *bitmap = data;
    qcow2_bitmap_unload(bitmap);
    g_free(bitmap->name);
    g_free(bitmap->entry);
    g_free(bitmap);
}

Qcow2KeptBitmap *qcow2_bitmap_new(const uint8_t *entry, uint64_t at, const Qcow2Bitmap *is)
{
    Qcow2KeptBitmap *bitmap = g_new0(Qcow2KeptBitmap, 1);
    bitmap->is = *is;
    bitmap->name = g_strndup(is->name, is->name_length);
    bitmap->is.name = bitmap->name;
    bitmap->entry = g_memdup2(entry, is->length);
    bitmap->at = at;
    bitmap->flags = is->flags & ~QCOW2_BITMAP_IN_USE;
    return bitmap;
}

bool qcow2_bitmaps_read(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    g_autofree uint8_t *directory = NULL;
    g_autoptr(GPtrArray) bitmaps = g_ptr_array_new_with_free_func(qcow2_bitmap_free);
    int r = s->bitmap_count > 0 ? qcow2_bitmap_directory_read(image, &directory) : 0;
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the directory of bitmaps", image->path);
    }
    uint64_t at = 0;
    for (uint32_t i = 0; i < s->bitmap_count; i++) {
        Qcow2Bitmap bitmap;
        if (!qcow2_bitmap_unpack(s, directory + at, s->bitmap_directory_size - at, &bitmap)) {
            return error_set(error, EUCLEAN, "%s: the directory entry of bitmap %u is damaged",
                             image->path, i);
        }
        g_ptr_array_add(bitmaps,
                        qcow2_bitmap_new(directory + at, s->bitmap_directory_offset + at, &bitmap));
        at += bitmap.length;
    }
    qcow2_bitmaps_free(s);
    s->bitmaps = g_steal_pointer(&bitmaps);
    return true;
}

Qcow2KeptBitmap *qcow2_bitmap_find(Image *image, const char *name, GError **error)
{
    Qcow2State *s = image->state;
    if (!s->bitmaps && !qcow2_bitmaps_read(image, error)) {
        return NULL;
    }
    for (guint i = 0; i < s->bitmaps->len; i++) {
        Qcow2KeptBitmap *bitmap = g_ptr_array_index(s->bitmaps, i);
        if (strcmp(bitmap->name, name) == 0) {
            return bitmap;
        }
    }
    error_set(error, ENOENT, "%s: there is no bitmap '%s': cownbd info shows them", image->path,
              name);
    return NULL;
}

const char *qcow2_bitmap_unusable(const Image *image, const Qcow2KeptBitmap *bitmap)
{
    const Qcow2State *s = qcow2_state(image);
    const Qcow2Bitmap *is = &bitmap->is;
    if (bitmap->taken) {
        return NULL;
    }
    if (is->flags & QCOW2_BITMAP_IN_USE) {
        return "it was not saved by its last user, so it does not know all that was written";
    }
    if (is->type != QCOW2_BITMAP_TYPE || (is->flags & ~KNOWN_FLAGS) ||
        (is->extra_size > 0 && !(is->flags & QCOW2_BITMAP_COMPATIBLE))) {
        return "its type, flags or extra data are not known here";
    }
    if (is->granularity_bits < DIRTYMAP_GRANULARITY_MIN) {
        return "its granularity is below 512 bytes";
    }
    uint64_t bytes = dirtymap_serial_size(image->size, is->granularity_bits);
    if (bytes > DIRTYMAP_BYTES_MAX || is->table_entries != div_round_up(bytes, s->cluster_size)) {
        return "its table does not fit the size of the disk";
    }
    return NULL;
}

static GVariant *describe(const Qcow2Bitmap *bitmap)
{
    GVariantBuilder flags, entry;
    g_variant_builder_init(&flags, G_VARIANT_TYPE("as"));
    if (bitmap->flags & QCOW2_BITMAP_IN_USE) {
        g_variant_builder_add(&flags, "s", "in-use");
    }
    if (bitmap->flags & QCOW2_BITMAP_AUTO) {
        g_variant_builder_add(&flags, "s", "auto");
    }
    g_variant_builder_init(&entry, G_VARIANT_TYPE("a{sv}"));
    g_variant_builder_add(&entry, "{sv}", "flags", g_variant_builder_end(&flags));
    info_add_text(&entry, "name", bitmap->name, bitmap->name_length);
    g_variant_builder_add(&entry, "{sv}", "granularity",
                          g_variant_new_int64(INT64_C(1) << bitmap->granularity_bits));
    return g_variant_builder_end(&entry);
}

void qcow2_bitmap_info(const Image *image, GVariantBuilder *data)
{
    const Qcow2State *s = qcow2_state(image);
    g_autofree uint8_t *directory = NULL;
    if (s->bitmap_count == 0) {
        return;
    }
    if (qcow2_bitmap_directory_read(image, &directory) < 0) {
        log_warning("%s: the directory of bitmaps cannot be read", image->path);
        return;
    }
    GVariantBuilder list;
    g_variant_builder_init(&list, G_VARIANT_TYPE("aa{sv}"));
    uint64_t at = 0;
    for (uint32_t i = 0; i < s->bitmap_count; i++) {
        Qcow2Bitmap bitmap;
        if (!qcow2_bitmap_unpack(s, directory + at, s->bitmap_directory_size - at, &bitmap)) {
            log_warning("%s: the directory entry of bitmap %u is damaged", image->path, i);
            break;
        }
        g_variant_builder_add_value(&list, describe(&bitmap));
        at += bitmap.length;
    }
    g_variant_builder_add(data, "{sv}", "bitmaps", g_variant_builder_end(&list));
}
