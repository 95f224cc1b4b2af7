/*
 * qcow2: bitmaps added, removed, cleared, enabled, disabled and merged.
 *
 * What changes bits or flags takes the bitmap and changes it in memory; the orderly end stores it, as it
 * does after guest writes. Only adding and removing write the directory anew:
 *
 *     add      a table of zeroes -> directory -> header
 *     remove   directory -> header -> table and clusters freed
 */
#include "formats/qcow2-bitmap.h"

#include <string.h>

#include "base/errors.h"

#define GRANULARITY_LEAST_DEFAULT 65536 /* for small clusters */

/* ---- add ---- */

static bool check_add(Image *image, const BitmapChange *change, uint64_t granularity,
                      GError **error)
{
    Qcow2State *s = image->state;
    size_t length = strlen(change->name);
    g_autoptr(GError) ignored = NULL;
    if (s->header.version < 3) {
        return error_set(error, ENOTSUP, "%s: version 2 has no bitmaps: compat=1.1 has",
                         image->path);
    }
    if (length == 0 || length > QCOW2_BITMAP_NAME_MAX) {
        return error_set(error, EINVAL, "%s: the name of a bitmap has %zu bytes: must have 1 to %d",
                         image->path, length, QCOW2_BITMAP_NAME_MAX);
    }
    if (qcow2_bitmap_find(image, change->name, &ignored)) {
        return error_set(error, EEXIST, "%s: there is a bitmap '%s' already", image->path,
                         change->name);
    }
    if (s->bitmaps->len >= QCOW2_MAX_BITMAPS) {
        return error_set(error, EFBIG, "%s: has %u bitmaps: must be at most %u", image->path,
                         s->bitmaps->len, QCOW2_MAX_BITMAPS);
    }
    if (!is_power_of_two(granularity) || granularity < UINT64_C(1) << DIRTYMAP_GRANULARITY_MIN ||
        granularity > UINT64_C(1) << DIRTYMAP_GRANULARITY_MAX) {
        return error_set(error, EINVAL,
                         "granularity is %" PRIu64 ": must be a power of two, 512 to 2 GiB",
                         granularity);
    }
    if (dirtymap_serial_size(image->size, __builtin_ctzll(granularity)) > DIRTYMAP_BYTES_MAX) {
        return error_set(error, EFBIG,
                         "%s: a granularity of %" PRIu64
                         " makes a bitmap of over 512 MiB: must be larger for a disk of this size",
                         image->path, granularity);
    }
    return true;
}

static Qcow2KeptBitmap *make_entry(const BitmapChange *change, uint64_t granularity,
                                   uint64_t table_offset, uint32_t table_entries)
{
    size_t name = strlen(change->name);
    uint64_t length = align_up(QCOW2_BITMAP_HEAD + name, 8);
    g_autofree uint8_t *entry = g_malloc0(length);
    Qcow2Bitmap is = {
        .table_offset = table_offset,
        .table_entries = table_entries,
        .flags = change->disabled ? 0 : QCOW2_BITMAP_AUTO,
        .type = QCOW2_BITMAP_TYPE,
        .granularity_bits = __builtin_ctzll(granularity),
        .name = change->name,
        .name_length = name,
        .length = length,
    };
    store_be64(entry, is.table_offset);
    store_be32(entry + 8, is.table_entries);
    store_be32(entry + 12, is.flags);
    entry[16] = is.type;
    entry[17] = is.granularity_bits;
    store_be16(entry + 18, is.name_length);
    memcpy(entry + QCOW2_BITMAP_HEAD, change->name, name);
    return qcow2_bitmap_new(entry, 0, &is);
}

/* The table of a bitmap in which nothing is marked. */
static bool write_empty_table(Image *image, uint32_t entries, Qcow2Run *run, GError **error)
{
    const Qcow2State *s = image->state;
    uint64_t bytes = align_up((uint64_t)entries * 8, s->cluster_size);
    g_autofree uint8_t *zeroes = g_try_malloc0(bytes);
    int r = zeroes ? qcow2_alloc_table(image, bytes >> s->cluster_bits, run) : -ENOMEM;
    if (r == 0) {
        r = store_write(image->store, zeroes, bytes, run->first << s->cluster_bits);
        if (r < 0) {
            qcow2_alloc_return(image, *run);
        }
    }
    return r == 0 || error_set_errno(error, -r, "%s: cannot write a bitmap's table", image->path);
}

static bool add_bitmap(Image *image, const BitmapChange *change, GError **error)
{
    Qcow2State *s = image->state;
    uint64_t granularity = change->granularity
                               ? change->granularity
                               : max_u64(s->cluster_size, GRANULARITY_LEAST_DEFAULT);
    Qcow2Run run;
    if (!check_add(image, change, granularity, error)) {
        return false;
    }
    uint64_t bytes = dirtymap_serial_size(image->size, __builtin_ctzll(granularity));
    uint32_t entries = max_u64(1, div_round_up(bytes, s->cluster_size));
    if (!write_empty_table(image, entries, &run, error)) {
        return false;
    }
    g_ptr_array_add(s->bitmaps,
                    make_entry(change, granularity, run.first << s->cluster_bits, entries));
    if (!qcow2_bitmap_directory_write(image, error)) {
        g_ptr_array_remove_index(s->bitmaps, s->bitmaps->len - 1);
        qcow2_alloc_return(image, run);
        return false;
    }
    return true;
}

/* ---- remove ---- */

/* What the bitmap took; nothing refers to it any more. */
static void free_space(Image *image, const Qcow2KeptBitmap *bitmap)
{
    Qcow2State *s = image->state;
    uint64_t bytes = (uint64_t)bitmap->is.table_entries * 8;
    for (uint32_t i = 0; i < bitmap->is.table_entries; i++) {
        uint64_t offset = bitmap->table[i] & QCOW2_OFFSET_MASK;
        qcow2_run_append(s->unmapped, (Qcow2Run){offset >> s->cluster_bits, offset != 0});
    }
    qcow2_run_append(s->unmapped, (Qcow2Run){bitmap->is.table_offset >> s->cluster_bits,
                                             div_round_up(bytes, s->cluster_size)});
    qcow2_update_dirty(s);
}

static bool remove_bitmap(Image *image, Qcow2KeptBitmap *bitmap, GError **error)
{
    Qcow2State *s = image->state;
    /* A table that cannot be true leaks: what it refers to may be somebody else's. */
    bool sound = qcow2_bitmap_read_table(image, bitmap) == 0;
    guint index;
    g_ptr_array_find(s->bitmaps, bitmap, &index);
    g_ptr_array_steal_index(s->bitmaps, index);
    if (!qcow2_bitmap_directory_write(image, error)) {
        g_ptr_array_insert(s->bitmaps, (int)index, bitmap);
        return false;
    }
    if (sound) {
        free_space(image, bitmap);
    }
    qcow2_bitmap_free(bitmap);
    return true;
}

/* ---- bits and flags ---- */

static bool take(Image *image, Qcow2KeptBitmap *bitmap, GError **error)
{
    const char *unusable = qcow2_bitmap_unusable(image, bitmap);
    if (unusable) {
        return error_set(error, EUCLEAN, "%s: bitmap '%s': %s: it can only be removed", image->path,
                         bitmap->name, unusable);
    }
    int r = qcow2_bitmap_take(image, bitmap);
    return r == 0 || error_set_errno(error, -r, "%s: bitmap '%s'", image->path, bitmap->name);
}

static bool merge_bitmap(Image *image, Qcow2KeptBitmap *bitmap, const BitmapChange *change,
                         GError **error)
{
    Image *source = change->source ? change->source : image;
    if (!source->format->bitmap_get) {
        return error_set(error, ENOTSUP, "%s: format %s has no bitmaps: only qcow2 has",
                         source->path, source->format->name);
    }
    if (source->size != image->size) {
        return error_set(error, EINVAL,
                         "%s: has %" PRIu64 " bytes, %s has %" PRIu64
                         ": bitmaps of disks of one size can be merged",
                         source->path, source->size, image->path, image->size);
    }
    const DirtyMap *from = source->format->bitmap_get(source, change->source_name, error);
    if (!from) {
        return false;
    }
    for (uint64_t at = 0, run; at < image->size; at += run) {
        if (dirtymap_get(from, at, image->size - at, &run)) {
            dirtymap_mark(bitmap->map, at, run);
        }
    }
    return true;
}

static bool change_taken(Image *image, Qcow2KeptBitmap *bitmap, const BitmapChange *change,
                         GError **error)
{
    switch (change->verb) {
    case BITMAP_CLEAR:
        dirtymap_clear(bitmap->map);
        return true;
    case BITMAP_ENABLE:
        bitmap->flags |= QCOW2_BITMAP_AUTO;
        return true;
    case BITMAP_DISABLE:
        bitmap->flags &= ~QCOW2_BITMAP_AUTO;
        return true;
    default:
        return merge_bitmap(image, bitmap, change, error);
    }
}

bool qcow2_bitmap_change(Image *image, const BitmapChange *change, GError **error)
{
    int r = qcow2_may_change(image);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot be changed", image->path);
    }
    if (change->verb == BITMAP_ADD) {
        return add_bitmap(image, change, error);
    }
    Qcow2KeptBitmap *bitmap = qcow2_bitmap_find(image, change->name, error);
    if (!bitmap) {
        return false;
    }
    if (change->verb == BITMAP_REMOVE) {
        return remove_bitmap(image, bitmap, error);
    }
    return take(image, bitmap, error) && change_taken(image, bitmap, change, error);
}

DirtyMap *qcow2_bitmap_get(Image *image, const char *name, GError **error)
{
    Qcow2KeptBitmap *bitmap = qcow2_bitmap_find(image, name, error);
    if (!bitmap) {
        return NULL;
    }
    const char *unusable = qcow2_bitmap_unusable(image, bitmap);
    if (unusable) {
        error_set(error, EUCLEAN, "%s: bitmap '%s': %s", image->path, name, unusable);
        return NULL;
    }
    int r = qcow2_bitmap_load(image, bitmap);
    if (r < 0) {
        error_set_errno(error, -r, "%s: bitmap '%s'", image->path, name);
        return NULL;
    }
    return bitmap->map;
}

/* Whether there are some, which can be read. */
static bool has_bitmaps(Image *image)
{
    Qcow2State *s = image->state;
    return s->bitmap_count > 0 && (s->bitmaps || qcow2_bitmaps_read(image, NULL));
}

uint64_t qcow2_bitmaps_measure(Image *image, uint64_t cluster_size)
{
    const Qcow2State *s = image->state;
    uint64_t sum = 0, directory = 0;
    for (guint i = 0; has_bitmaps(image) && i < s->bitmaps->len; i++) {
        const Qcow2KeptBitmap *bitmap = g_ptr_array_index(s->bitmaps, i);
        if (qcow2_bitmap_unusable(image, bitmap)) {
            continue;
        }
        uint64_t bytes = dirtymap_serial_size(image->size, bitmap->is.granularity_bits);
        uint64_t clusters = div_round_up(bytes, cluster_size);
        sum += clusters * cluster_size + align_up(clusters * 8, cluster_size);
        directory += align_up(QCOW2_BITMAP_HEAD + bitmap->is.name_length, 8);
    }
    return sum + align_up(directory, cluster_size);
}

char **qcow2_bitmap_names(Image *image)
{
    Qcow2State *s = image->state;
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    if (has_bitmaps(image)) {
        for (guint i = 0; i < s->bitmaps->len; i++) {
            const Qcow2KeptBitmap *bitmap = g_ptr_array_index(s->bitmaps, i);
            g_ptr_array_add(names, g_strdup(bitmap->name));
        }
    }
    g_ptr_array_add(names, NULL);
    return (char **)g_ptr_array_free(g_steal_pointer(&names), false);
}
