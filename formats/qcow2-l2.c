/*
 * qcow2: L2 entries one by one, for changes, and L2 tables made or copied.
 *
 * An L2 table that the L1 table on the disk does not point to yet ("new") is written in order
 * META_FIRST, before the L1 entry; a table that is in use is written in order META_SECOND, after
 * the refcounts and the data that its entries need.
 *
 * An L1 entry without COPIED shares its table with a snapshot: the table is copied before the first
 * change.
 */
#include "formats/qcow2.h"

#include "base/log.h"

int qcow2_entry_damaged(Image *image, uint64_t offset, Qcow2Entry entry)
{
    const Qcow2State *s = image->state;
    g_autofree char *bitmap =
        s->extended ? g_strdup_printf(" with bitmap 0x%" PRIx64, entry.bitmap) : g_strdup("");
    return qcow2_corrupt(image,
                         "the L2 entry of guest offset %" PRIu64 " is 0x%" PRIx64 "%s"
                         ": reserved bits, a host offset that is not %s%s",
                         offset, entry.word, bitmap,
                         s->external ? "the guest's, as in a data file" : "aligned",
                         s->extended ? ", or an impossible bitmap" : "");
}

void qcow2_cursor_init(Qcow2Cursor *cursor, Image *image)
{
    *cursor = (Qcow2Cursor){.image = image};
}

void qcow2_cursor_release(Qcow2Cursor *cursor)
{
    Qcow2State *s = cursor->image->state;
    if (cursor->block != NULL) {
        metacache_put(s->meta, cursor->block);
        cursor->block = NULL;
    }
    cursor->start = cursor->end = 0;
}

int qcow2_cursor_seek(Qcow2Cursor *cursor, uint64_t offset)
{
    Qcow2State *s = cursor->image->state;
    if (offset >= cursor->start && offset < cursor->end) {
        return 0;
    }
    qcow2_cursor_release(cursor);
    uint32_t span_bits = s->cluster_bits + s->l2_bits;
    uint64_t l1_index = offset >> span_bits, l2_offset, first = 0;
    int r = qcow2_l2_offset(cursor->image, l1_index, &l2_offset);
    if (r < 0) {
        return r;
    }
    uint64_t entries = UINT64_C(1) << s->l2_bits;
    if (l2_offset != 0) {
        uint64_t index = (offset >> s->cluster_bits) & (entries - 1);
        r = qcow2_l2_get(cursor->image, l2_offset, index, &cursor->block, &first);
        entries = qcow2_entries_per_piece(s);
    }
    if (r == 0) {
        cursor->l1_index = l1_index;
        cursor->start = (l1_index << span_bits) + (first << s->cluster_bits);
        cursor->end = cursor->start + (entries << s->cluster_bits);
    }
    return r;
}

int qcow2_cursor_get(Qcow2Cursor *cursor, uint64_t offset, Qcow2Cluster *cluster)
{
    const Qcow2State *s = cursor->image->state;
    int r = qcow2_cursor_seek(cursor, offset);
    if (r < 0) {
        return r;
    }
    Qcow2Entry entry = {0};
    if (cursor->block != NULL) {
        entry =
            qcow2_entry_load(s, cursor->block->data, (offset - cursor->start) >> s->cluster_bits);
    }
    *cluster = qcow2_l2_decode(s, entry);
    if (cluster->type == QCOW2_CLUSTER_DAMAGED || qcow2_is_misplaced(s, cluster, offset)) {
        return qcow2_entry_damaged(cursor->image, offset, entry);
    }
    return 0;
}

int qcow2_cursor_set(Qcow2Cursor *cursor, uint64_t offset, Qcow2Entry entry)
{
    Qcow2State *s = cursor->image->state;
    uint64_t l1_index = offset >> (s->cluster_bits + s->l2_bits);
    uint64_t l1_entry = s->l1[l1_index];
    if (!(l1_entry & QCOW2_COPIED) || (l1_entry & QCOW2_OFFSET_MASK) == 0) {
        qcow2_cursor_release(cursor);
        int r = qcow2_l2_prepare(cursor->image, l1_index);
        if (r < 0) {
            return r;
        }
    }
    int r = qcow2_cursor_seek(cursor, offset);
    if (r < 0) {
        return r;
    }
    qcow2_entry_store(s, cursor->block->data, (offset - cursor->start) >> s->cluster_bits, entry);
    bool is_new = g_hash_table_contains(s->l1_new, GSIZE_TO_POINTER(l1_index));
    metacache_dirty(s->meta, cursor->block, is_new ? META_FIRST : META_SECOND);
    return 0;
}

/* Fills a new table with what an old one holds. */
static int copy_table(Image *image, uint64_t from, uint64_t to)
{
    Qcow2State *s = image->state;
    g_autofree uint8_t *table = g_try_malloc(s->cluster_size);
    if (table == NULL) {
        return -ENOMEM;
    }
    int r = store_read(image->store, table, s->cluster_size, from);
    if (r == 0) {
        metacache_forget(s->meta, to, s->cluster_size);
        r = store_write(image->store, table, s->cluster_size, to);
    }
    return r;
}

int qcow2_l2_prepare(Image *image, uint64_t l1_index)
{
    Qcow2State *s = image->state;
    uint64_t old;
    int r = qcow2_l2_offset(image, l1_index, &old);
    if (r < 0 || (old != 0 && (s->l1[l1_index] & QCOW2_COPIED))) {
        return r;
    }
    Qcow2Run run;
    bool fresh;
    r = qcow2_alloc_run(image, 1, &run, &fresh);
    if (r < 0) {
        return r;
    }
    uint64_t offset = run.first << s->cluster_bits;
    if (old != 0) {
        r = copy_table(image, old, offset);
    } else if (!fresh) {
        r = qcow2_write_zeroes(image, offset);
    }
    if (r < 0) {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot write a new L2 table: %s", image->path,
                    g_strerror(-r));
        qcow2_alloc_return(image, run);
        return r;
    }
    s->l1[l1_index] = offset | QCOW2_COPIED;
    g_hash_table_add(s->l1_new, GSIZE_TO_POINTER(l1_index));
    g_hash_table_add(s->l1_dirty, GSIZE_TO_POINTER(l1_index / QCOW2_SECTOR_ENTRIES));
    qcow2_metadata_add(s, run.first);
    if (old != 0) {
        uint64_t cluster = old >> s->cluster_bits;
        qcow2_metadata_remove(s, cluster);
        metacache_forget(s->meta, old, s->cluster_size);
        qcow2_free_later(s, (Qcow2Run){cluster, 1});
    }
    return 0;
}
