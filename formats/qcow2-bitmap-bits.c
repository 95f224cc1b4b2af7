/*
 * qcow2: the bits of a persistent bitmap.
 *
 *     table entry i  ->  cluster with bytes i * cluster_size on of the serial form (base/dirtymap.h)
 *     0: all of them are 0;  1: all of them are 1
 *
 * While a bitmap is taken, nobody relies on what its clusters hold, so they are written in place.
 */
#include "formats/qcow2-bitmap.h"

#include "base/log.h"

void qcow2_bitmap_unload(Qcow2KeptBitmap *bitmap)
{
    g_clear_pointer(&bitmap->map, dirtymap_free);
    g_clear_pointer(&bitmap->table, g_free);
}

/* ---- reading ---- */

/* No two entries refer to the same cluster, so the file is as large as the bits in memory. */
static bool entry_ok(const Image *image, uint64_t entry, GHashTable *seen)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    if (entry == 0 || entry == QCOW2_BITMAP_ENTRY_ALL_ONES) {
        return true;
    }
    return !(entry & (QCOW2_BITMAP_ENTRY_RESERVED | QCOW2_BITMAP_ENTRY_ALL_ONES)) &&
           qcow2_table_offset_ok(image, offset, 1) &&
           g_hash_table_add(seen, GSIZE_TO_POINTER(offset));
}

int qcow2_bitmap_read_table(Image *image, Qcow2KeptBitmap *bitmap)
{
    uint64_t bytes = (uint64_t)bitmap->is.table_entries * 8;
    uint64_t clusters = div_round_up(bytes, qcow2_state(image)->cluster_size);
    if (bitmap->table) {
        return 0;
    }
    if (!qcow2_table_offset_ok(image, bitmap->is.table_offset, clusters)) {
        return -EUCLEAN;
    }
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    g_autofree uint64_t *table = g_try_malloc(bytes);
    int r = table ? store_read(image->store, table, bytes, bitmap->is.table_offset) : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < bitmap->is.table_entries; i++) {
        table[i] = load_be64(&table[i]);
        r = entry_ok(image, table[i], seen) ? 0 : -EUCLEAN;
    }
    if (r == 0) {
        bitmap->table = g_steal_pointer(&table);
    }
    return r;
}

static int load_entry(Image *image, Qcow2KeptBitmap *bitmap, uint32_t index, uint8_t *bytes)
{
    const Qcow2State *s = image->state;
    uint64_t entry = bitmap->table[index], at = (uint64_t)index << s->cluster_bits;
    if (entry == 0) {
        return 0;
    }
    bool ones = entry == QCOW2_BITMAP_ENTRY_ALL_ONES;
    int r = ones ? 0 : store_read(image->store, bytes, s->cluster_size, entry & QCOW2_OFFSET_MASK);
    if (r == 0) {
        dirtymap_load(bitmap->map, at, s->cluster_size, ones ? NULL : bytes);
    }
    return r;
}

int qcow2_bitmap_load(Image *image, Qcow2KeptBitmap *bitmap)
{
    if (bitmap->map) {
        return 0;
    }
    g_autofree uint8_t *bytes = g_try_malloc(qcow2_state(image)->cluster_size);
    bitmap->map = dirtymap_new(image->size, bitmap->is.granularity_bits);
    int r = bytes && bitmap->map ? qcow2_bitmap_read_table(image, bitmap) : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < bitmap->is.table_entries; i++) {
        r = load_entry(image, bitmap, i, bytes);
    }
    if (r < 0) {
        log_warning("%s: bitmap '%s' cannot be loaded: %s", image->path, bitmap->name,
                    g_strerror(-r));
        qcow2_bitmap_unload(bitmap);
    }
    return r;
}

/* ---- writing ---- */

static int write_cluster(Image *image, uint64_t *entry, const uint8_t *bytes)
{
    Qcow2State *s = image->state;
    uint64_t offset = *entry & QCOW2_OFFSET_MASK;
    Qcow2Run run = {0, 0};
    if (offset == 0) {
        bool fresh;
        int r = qcow2_alloc_run(image, 1, &run, &fresh);
        if (r < 0) {
            return r;
        }
        offset = run.first << s->cluster_bits;
    }
    int r = store_write(image->store, bytes, s->cluster_size, offset);
    if (r == 0) {
        *entry = offset;
    } else {
        qcow2_alloc_return(image, run);
    }
    return r;
}

int qcow2_bitmap_write_bits(Image *image, Qcow2KeptBitmap *bitmap, GArray *superfluous)
{
    Qcow2State *s = image->state;
    g_autofree uint8_t *bytes = g_try_malloc(s->cluster_size);
    int r = bytes ? 0 : -ENOMEM;
    for (uint32_t i = 0; r == 0 && i < bitmap->is.table_entries; i++) {
        uint64_t *entry = &bitmap->table[i], old = *entry & QCOW2_OFFSET_MASK;
        uint64_t at = (uint64_t)i << s->cluster_bits;
        DirtyMapFill fill = dirtymap_save(bitmap->map, at, s->cluster_size, bytes);
        if (fill == DIRTYMAP_SOME) {
            r = write_cluster(image, entry, bytes);
        } else {
            *entry = fill == DIRTYMAP_ALL ? QCOW2_BITMAP_ENTRY_ALL_ONES : 0;
            qcow2_run_append(superfluous, (Qcow2Run){old >> s->cluster_bits, old != 0});
        }
    }
    qcow2_update_dirty(s);
    return r;
}

int qcow2_bitmap_write_table(Image *image, const Qcow2KeptBitmap *bitmap)
{
    uint64_t bytes = (uint64_t)bitmap->is.table_entries * 8;
    g_autofree uint8_t *table = g_try_malloc(bytes);
    if (!table) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < bitmap->is.table_entries; i++) {
        store_be64(table + (uint64_t)i * 8, bitmap->table[i]);
    }
    return store_write(image->store, table, bytes, bitmap->is.table_offset);
}
