/*
 * qcow2: the directory of persistent bitmaps.
 *
 *     0 table offset  8 table entries  12 flags  16 type  17 granularity  18 name size
 *     20 extra size  24 extra, name, padding to 8
 *
 * The server keeps no bitmaps. The check must know their clusters, or it would call them leaked,
 * and info shows that they are there.
 */
#include "formats/qcow2-bitmap.h"

#include "base/log.h"

#define ENTRY_HEAD           24
#define GRANULARITY_BITS_MAX 31

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
        .granularity_bits = entry[17],
        .name_length = load_be16(entry + 18),
        .length = align_up(ENTRY_HEAD + extra + load_be16(entry + 18), 8),
    };
    if (bitmap->length > room || bitmap->table_entries == 0 || bitmap->table_offset == 0 ||
        bitmap->table_offset % s->cluster_size != 0 ||
        bitmap->granularity_bits > GRANULARITY_BITS_MAX) {
        return false;
    }
    bitmap->name = (const char *)entry + ENTRY_HEAD + extra;
    return true;
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
    g_autofree char *name = g_utf8_make_valid(bitmap->name, bitmap->name_length);
    g_variant_builder_init(&entry, G_VARIANT_TYPE("a{sv}"));
    g_variant_builder_add(&entry, "{sv}", "flags", g_variant_builder_end(&flags));
    g_variant_builder_add(&entry, "{sv}", "name", g_variant_new_string(name));
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
