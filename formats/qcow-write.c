/*
 * qcow, version 1: allocate, commit, abandon, unmap, flush, finish.
 *
 *     allocate   L2 tables made, space at the end of the file
 *     (the engine writes the data)
 *     commit     L2 entries, in memory
 *     flush      new L2 tables, data -> sync -> entries of old tables, L1 -> sync
 *
 * Nothing in the file records what is free, so space is only ever taken from its end. A discard
 * gives the bytes of a cluster back to the host and leaves it where it is. What a write of a
 * compressed cluster replaces is lost until the image is copied. So no cluster's bytes can turn up
 * in another.
 *
 * There are no zero clusters: zeroes over a backing must be written.
 */
#include "formats/qcow.h"

#include "base/errors.h"
#include "base/log.h"

#define GROW_MAX (UINT64_C(16) << 20) /* bytes ahead of need */

static void update_dirty(QcowState *s)
{
    s->dirty = metacache_has_dirty(s->meta, META_FIRST) ||
               metacache_has_dirty(s->meta, META_SECOND) || g_hash_table_size(s->l1_dirty) > 0 ||
               s->second_pending;
}

bool qcow_is_dirty(const Image *image)
{
    return qcow_state(image)->dirty;
}

static int may_change(Image *image)
{
    QcowState *s = image->state;
    if (s->write_error < 0) { /* there may be space again */
        s->write_error = qcow_flush(image);
    }
    return s->write_error;
}

static void flush_if_full(Image *image)
{
    QcowState *s = image->state;
    if (metacache_is_full(s->meta)) {
        s->write_error = qcow_flush(image);
    }
}

/* ---- space ---- */

int qcow_space_take(Image *image, uint64_t length, uint64_t *offset, bool *fresh)
{
    QcowState *s = image->state;
    uint64_t size = store_size(image->store), end = s->used_end + length;
    if (end > INT64_MAX / 2) {
        return -EFBIG;
    }
    if (end > size) {
        uint64_t ahead = align_down(min_u64(size / 16, GROW_MAX), s->cluster_size);
        int r = store_truncate(image->store, end + ahead);
        if (r < 0 && ahead > 0) {
            r = store_truncate(image->store, end);
        }
        if (r < 0) { /* a block device has the size it has */
            return r == -ENOTSUP || r == -EINVAL ? -ENOSPC : r;
        }
    }
    *offset = s->used_end;
    *fresh = s->used_end >= s->fresh_start;
    s->used_end = end;
    return 0;
}

/* Gives back what was taken last; it may have been written to. */
static void give_back(QcowState *s, uint64_t offset, uint64_t length)
{
    if (align_up(offset + length, s->cluster_size) == s->used_end) {
        s->fresh_start = max_u64(s->fresh_start, s->used_end);
        s->used_end = offset;
    }
}

/* ---- tables ---- */

void qcow_l1_set(QcowState *s, uint64_t index, uint64_t offset)
{
    s->l1[index] = offset;
    g_hash_table_add(s->l1_dirty, GSIZE_TO_POINTER(index / QCOW_PIECE_ENTRIES));
}

static int make_table(Image *image, uint64_t index)
{
    QcowState *s = image->state;
    uint64_t offset;
    bool fresh;
    int r = qcow_space_take(image, align_up(s->l2_bytes, s->cluster_size), &offset, &fresh);
    for (uint64_t at = 0; r == 0 && at < s->l2_bytes; at += QCOW_PIECE) {
        MetaBlock *piece;
        r = metacache_create(s->meta, offset + at, &piece);
        if (r == 0) {
            metacache_dirty(s->meta, piece, META_FIRST);
            metacache_put(s->meta, piece);
        }
    }
    if (r == 0) {
        qcow_l1_set(s, index, offset);
        g_hash_table_add(s->l1_new, GSIZE_TO_POINTER(index));
    }
    return r;
}

static int make_tables(Image *image, const Allocation *a)
{
    QcowState *s = image->state;
    uint32_t span_bits = s->header.cluster_bits + s->header.l2_bits;
    uint64_t last = (a->offset + a->length - 1) >> span_bits;
    int r = 0;
    for (uint64_t i = a->offset >> span_bits; r == 0 && i <= last; i++) {
        r = s->l1[i] == 0 ? make_table(image, i) : 0;
    }
    return r;
}

/* ---- allocate, commit, abandon ---- */

static int reserve(Image *image, Allocation *a)
{
    const QcowState *s = image->state;
    Extent extent = {
        .offset = a->offset,
        .length = a->length,
        .store = image->store,
        .image = image,
        .type = EXTENT_DATA,
    };
    bool fresh;
    int r =
        qcow_space_take(image, align_up(a->length, s->cluster_size), &extent.host_offset, &fresh);
    if (r == 0) {
        extent.flags = EXTENT_NEW | (fresh ? EXTENT_FRESH : 0);
        extent_list_add(&a->extents, &extent);
    }
    return r;
}

int qcow_allocate(Image *image, Allocation **list, unsigned count)
{
    int refused = may_change(image), first_error = 0;
    for (unsigned i = 0; i < count; i++) {
        Allocation *a = list[i];
        extent_list_reset(&a->extents);
        a->result = refused < 0 ? refused : make_tables(image, a);
        if (a->result == 0) {
            a->result = reserve(image, a);
        }
        first_error = first_error < 0 ? first_error : a->result;
    }
    update_dirty(image->state);
    flush_if_full(image);
    return first_error;
}

static int commit_extent(Image *image, const Extent *extent)
{
    QcowState *s = image->state;
    uint32_t span_bits = s->header.cluster_bits + s->header.l2_bits;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < extent->length; at += s->cluster_size) {
        uint64_t offset = extent->offset + at, place;
        gpointer index = GSIZE_TO_POINTER(offset >> span_bits);
        /* As long as no L1 on the disk shows the table its entries may go there before the sync. */
        MetaOrder order = g_hash_table_contains(s->l1_new, index) ? META_FIRST : META_SECOND;
        r = qcow_entry_find(image, offset, &place);
        r = r < 0 ? r : qcow_entry_set(s, place, extent->host_offset + at, order);
    }
    return r;
}

int qcow_commit(Image *image, Allocation **list, unsigned count)
{
    int first_error = 0;
    for (unsigned i = 0; i < count; i++) {
        list[i]->result = 0;
        for (unsigned j = 0; list[i]->result == 0 && j < list[i]->extents.count; j++) {
            list[i]->result = commit_extent(image, &list[i]->extents.items[j]);
        }
        first_error = first_error < 0 ? first_error : list[i]->result;
    }
    update_dirty(image->state);
    flush_if_full(image);
    return first_error;
}

void qcow_abandon(Image *image, Allocation **list, unsigned count)
{
    for (unsigned i = count; i > 0; i--) {
        ExtentList *extents = &list[i - 1]->extents;
        for (unsigned j = extents->count; j > 0; j--) {
            const Extent *extent = &extents->items[j - 1];
            give_back(image->state, extent->host_offset, extent->length);
        }
        extent_list_reset(extents);
    }
}

/* ---- unmap ---- */

/* An image whose backing was not opened may have one of any length. */
static uint64_t backing_end(const Image *image)
{
    if (image->backing) {
        return image->backing->size;
    }
    return image->backing_name ? UINT64_MAX : 0;
}

/* Whether a part of the range can only become zeroes by writing them. */
static int must_be_written(Image *image, uint64_t offset, uint64_t length, bool *must)
{
    QcowState *s = image->state;
    uint64_t below = backing_end(image);
    int r = 0;
    *must = false;
    for (uint64_t end = offset + length; r == 0 && !*must && offset < end;
         offset += s->cluster_size) {
        uint64_t place, entry = 0;
        r = qcow_entry_find(image, offset, &place);
        if (r == 0 && place != 0) {
            r = qcow_entry_get(s, place, &entry);
        }
        *must = r == 0 && (entry == 0 ? offset < below : (entry & QCOW_COMPRESSED) != 0);
    }
    return r;
}

static int punch_range(Image *image, uint64_t offset, uint64_t length, StorePunch how)
{
    QcowState *s = image->state;
    int r = 0;
    for (uint64_t end = offset + length; r == 0 && offset < end; offset += s->cluster_size) {
        uint64_t place, entry = 0;
        r = qcow_entry_find(image, offset, &place);
        if (r == 0 && place != 0) {
            r = qcow_entry_get(s, place, &entry);
        }
        if (r == 0 && entry != 0 && !(entry & QCOW_COMPRESSED)) {
            r = store_punch(image->store, entry, min_u64(s->cluster_size, end - offset), how);
        }
    }
    return r;
}

int qcow_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    bool must = false;
    int r = flags & UNMAP_ZERO ? must_be_written(image, offset, length, &must) : 0;
    if (r == 0 && must) {
        return -ENOTSUP;
    }
    if (r == 0) {
        r = punch_range(image, offset, length,
                        flags & UNMAP_KEEP_SPACE ? STORE_PUNCH_KEEP_SPACE : STORE_PUNCH_FREE);
    }
    if (r == -ENOTSUP && !(flags & UNMAP_ZERO)) {
        return 0; /* a discard is advice: keeping the bytes is a right answer */
    }
    return r;
}

/* ---- flush ---- */

static int write_l1(Image *image)
{
    QcowState *s = image->state;
    GHashTableIter iter;
    gpointer key;
    int r = 0;
    g_hash_table_iter_init(&iter, s->l1_dirty);
    while (r == 0 && g_hash_table_iter_next(&iter, &key, NULL)) {
        uint64_t first = GPOINTER_TO_SIZE(key) * QCOW_PIECE_ENTRIES;
        uint64_t n = min_u64(QCOW_PIECE_ENTRIES, s->header.l1_size - first);
        uint8_t piece[QCOW_PIECE];
        for (uint64_t i = 0; i < n; i++) {
            uint64_t entry = s->l1[first + i];
            if (s->header.l1_little) {
                store_le64(piece + i * 8, entry);
            } else {
                store_be64(piece + i * 8, entry);
            }
        }
        r = store_write(image->store, piece, n * 8, s->header.l1_offset + first * 8);
    }
    return r;
}

static int phase_two(Image *image)
{
    QcowState *s = image->state;
    if (!metacache_has_dirty(s->meta, META_SECOND) && g_hash_table_size(s->l1_dirty) == 0 &&
        !s->second_pending) {
        return 0;
    }
    /* From the first write on the disk may point to the new tables, also when this fails. */
    s->second_pending = true;
    g_hash_table_remove_all(s->l1_new);
    int r = metacache_write(s->meta, META_SECOND);
    r = r < 0 ? r : write_l1(image);
    r = r < 0 ? r : store_sync(image->store);
    if (r == 0) {
        s->second_pending = false;
        g_hash_table_remove_all(s->l1_dirty);
    }
    return r;
}

int qcow_flush(Image *image)
{
    QcowState *s = image->state;
    int r = metacache_write(s->meta, META_FIRST);
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : phase_two(image);
    if (r == 0) {
        s->write_error = 0;
    } else {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot write metadata: %s", image->path, g_strerror(-r));
    }
    update_dirty(s);
    return r;
}

/* ---- start and end ---- */

bool qcow_start_writing(Image *image, GError **error)
{
    QcowState *s = image->state;
    if (image->repair) {
        return true; /* check looks at everything itself, and mends it */
    }
    if (!qcow_scan(image, error)) {
        return false;
    }
    /* A cluster that the file's end cuts short becomes whole: extents never pass the end. */
    uint64_t size = align_up(store_size(image->store), s->cluster_size);
    if (size != store_size(image->store)) {
        (void)store_truncate(image->store, size); /* a block device stays as it is */
    }
    s->size_at_open = s->used_end = s->fresh_start = size;
    return true;
}

/* Cuts off what was grown ahead of need. What the file had when it was opened is left alone. */
int qcow_finish(Image *image)
{
    QcowState *s = image->state;
    if (image->repair) {
        return 0;
    }
    int r = qcow_is_dirty(image) ? qcow_flush(image) : 0;
    uint64_t end = max_u64(s->used_end, s->size_at_open);
    if (r < 0 || end >= store_size(image->store)) {
        return r;
    }
    r = store_truncate(image->store, end);
    return r < 0 ? r : store_sync(image->store);
}
