/*
 * Two levels of tables: entries, space, allocate, commit, abandon, flush, finish.
 *
 *     allocate   L2 tables made, space at the end of the file
 *     (the engine writes the data)
 *     commit     L2 entries, in memory
 *     flush      new L2 tables, data -> sync -> entries of old tables, L1 -> sync
 *
 * Nothing in the file records what is free, so space is only ever taken from its end: no cluster's bytes can turn up in
 * another. A new table lies on space that reads as zeroes, so only those pieces of it are written that get entries.
 */
#include "formats/tabletree.h"

#include <inttypes.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/log.h"
#include "formats/allocation.h"
#include "formats/space.h"

#define CACHE_MIN (16u * TABLE_TREE_PIECE)

/* ---- opening ---- */

static uint64_t load_entry(const void *bytes, bool little)
{
    return little ? load_le64(bytes) : load_be64(bytes);
}

static void store_entry(void *bytes, uint64_t entry, bool little)
{
    if (little) {
        store_le64(bytes, entry);
    } else {
        store_be64(bytes, entry);
    }
}

bool table_tree_open(TableTree *tree, const Image *image, GError **error)
{
    size_t bytes = tree->l1_size * UINT64_C(8);
    tree->cluster_size = UINT64_C(1) << tree->cluster_bits;
    tree->l2_bytes = UINT64_C(8) << tree->l2_bits;
    tree->l1 = g_try_malloc(max_u64(bytes, 8));
    int r = tree->l1 ? 0 : -ENOMEM;
    if (r == 0 && bytes > 0) {
        r = store_read(image->store, tree->l1, bytes, tree->l1_offset);
    }
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the L1 table", image->path);
    }
    for (uint32_t i = 0; i < tree->l1_size; i++) {
        tree->l1[i] = load_entry(&tree->l1[i], tree->l1_little);
    }
    tree->meta =
        metacache_new(image->store, TABLE_TREE_PIECE, max_u64(image->metadata_cache, CACHE_MIN));
    tree->l1_dirty = g_hash_table_new(NULL, NULL);
    tree->l1_new = g_hash_table_new(NULL, NULL);
    return true;
}

void table_tree_clear(TableTree *tree)
{
    metacache_free(tree->meta);
    g_clear_pointer(&tree->l1_dirty, g_hash_table_destroy);
    g_clear_pointer(&tree->l1_new, g_hash_table_destroy);
    g_free(tree->l1);
}

/* ---- entries ---- */

bool table_tree_place_ok(const Image *image, uint64_t offset, uint64_t length)
{
    return offset >= table_tree(image)->head_end && offset % 8 == 0 &&
           range_within(offset, length, store_size(image->store));
}

bool table_tree_cluster_ok(const Image *image, uint64_t offset)
{
    return offset >= table_tree(image)->head_end && offset < store_size(image->store);
}

int table_tree_find(const Image *image, uint64_t offset, uint64_t *place)
{
    const TableTree *tree = table_tree(image);
    uint64_t cluster = offset >> tree->cluster_bits;
    uint64_t l2 = tree->l1[cluster >> tree->l2_bits];
    *place = 0;
    if (l2 == 0) {
        return 0;
    }
    if (!table_tree_place_ok(image, l2, tree->l2_bytes)) {
        log_limited(LOG_LEVEL_ERROR,
                    "%s: the L2 table of offset %" PRIu64 " is at %" PRIu64
                    ", which is not in the file",
                    image->path, offset, l2);
        return -EIO;
    }
    *place = l2 + (cluster & ((UINT64_C(1) << tree->l2_bits) - 1)) * 8;
    return 0;
}

int table_tree_get(TableTree *tree, uint64_t place, uint64_t *entry)
{
    MetaBlock *piece;
    int r = metacache_get(tree->meta, align_down(place, TABLE_TREE_PIECE), &piece);
    if (r == 0) {
        *entry = load_entry(piece->data + place % TABLE_TREE_PIECE, tree->l2_little);
        metacache_put(tree->meta, piece);
    }
    return r;
}

int table_tree_set(TableTree *tree, uint64_t place, uint64_t entry, MetaOrder order)
{
    MetaBlock *piece;
    int r = metacache_get(tree->meta, align_down(place, TABLE_TREE_PIECE), &piece);
    if (r == 0) {
        store_entry(piece->data + place % TABLE_TREE_PIECE, entry, tree->l2_little);
        metacache_dirty(tree->meta, piece, order);
        metacache_put(tree->meta, piece);
    }
    return r;
}

static void update_dirty(TableTree *tree)
{
    tree->dirty = metacache_has_dirty(tree->meta, META_FIRST) ||
                  metacache_has_dirty(tree->meta, META_SECOND) ||
                  g_hash_table_size(tree->l1_dirty) > 0 || tree->second_pending;
}

bool table_tree_is_dirty(const Image *image)
{
    return table_tree(image)->dirty;
}

int table_tree_may_change(Image *image)
{
    TableTree *tree = table_tree(image);
    if (tree->write_error < 0) { /* there may be space again */
        tree->write_error = table_tree_flush(image);
    }
    if (tree->write_error < 0) {
        return tree->write_error;
    }
    return tree->before_change ? tree->before_change(image) : 0;
}

void table_tree_changed(Image *image)
{
    TableTree *tree = table_tree(image);
    update_dirty(tree);
    if (metacache_is_full(tree->meta)) {
        tree->write_error = table_tree_flush(image);
    }
}

/* ---- space ---- */

int table_tree_space_take(Image *image, uint64_t length, uint64_t *offset, bool *fresh)
{
    TableTree *tree = table_tree(image);
    uint64_t end = tree->used_end + length;
    if (end > INT64_MAX / 2) {
        return -EFBIG;
    }
    int r = space_grow(image->store, end, tree->cluster_size);
    if (r < 0) {
        return r;
    }
    *offset = tree->used_end;
    *fresh = tree->used_end >= tree->fresh_start;
    tree->used_end = end;
    return 0;
}

void table_tree_space_return(TableTree *tree, uint64_t offset, uint64_t length)
{
    if (align_up(offset + length, tree->cluster_size) == tree->used_end) {
        tree->fresh_start = max_u64(tree->fresh_start, tree->used_end);
        tree->used_end = offset;
    }
}

/* ---- tables ---- */

void table_tree_l1_set(TableTree *tree, uint64_t index, uint64_t offset)
{
    tree->l1[index] = offset;
    g_hash_table_add(tree->l1_dirty, GSIZE_TO_POINTER(index / TABLE_TREE_PIECE_ENTRIES));
}

static int make_table(Image *image, uint64_t index)
{
    TableTree *tree = table_tree(image);
    uint64_t offset, length = align_up(tree->l2_bytes, tree->cluster_size);
    bool fresh;
    int r = table_tree_space_take(image, length, &offset, &fresh);
    if (r == 0 && !fresh) {
        r = space_make_fresh(image->store, offset, length, tree->fresh_start);
    }
    if (r == 0) {
        table_tree_l1_set(tree, index, offset);
        g_hash_table_add(tree->l1_new, GSIZE_TO_POINTER(index));
    }
    return r;
}

int table_tree_make_tables(Image *image, uint64_t offset, uint64_t length)
{
    TableTree *tree = table_tree(image);
    uint32_t span_bits = tree->cluster_bits + tree->l2_bits;
    uint64_t last = (offset + length - 1) >> span_bits;
    int r = 0;
    for (uint64_t i = offset >> span_bits; r == 0 && i <= last; i++) {
        r = tree->l1[i] == 0 ? make_table(image, i) : 0;
    }
    return r;
}

MetaOrder table_tree_order(const TableTree *tree, uint64_t offset)
{
    gpointer index = GSIZE_TO_POINTER(offset >> (tree->cluster_bits + tree->l2_bits));
    return g_hash_table_contains(tree->l1_new, index) ? META_FIRST : META_SECOND;
}

/* ---- allocate, commit, abandon ---- */

static int reserve_clusters(Image *image, Allocation *a)
{
    uint64_t length = align_up(a->length, table_tree(image)->cluster_size), host_offset;
    bool fresh;
    int r = table_tree_space_take(image, length, &host_offset, &fresh);
    if (r == 0) {
        allocation_add(image, a, image->store, host_offset, a->length, fresh);
    }
    return r;
}

static int reserve(Image *image, Allocation *a)
{
    int r = table_tree_make_tables(image, a->offset, a->length);
    if (r < 0) {
        return r;
    }
    return a->stored_length > 0 ? table_tree_packed_reserve(image, a) : reserve_clusters(image, a);
}

int table_tree_allocate(Image *image, Allocation **list, unsigned count)
{
    int r = allocation_reserve_all(image, list, count, table_tree_may_change(image), reserve);
    table_tree_changed(image);
    return r;
}

static int commit_extent(Image *image, const Extent *extent)
{
    TableTree *tree = table_tree(image);
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < extent->length; at += tree->cluster_size) {
        uint64_t offset = extent->offset + at, place, entry = extent->host_offset + at;
        if (extent->type == EXTENT_ENCODED) {
            entry = tree->encode(tree, extent->host_offset, extent->stored_length);
        }
        r = table_tree_find(image, offset, &place);
        r = r < 0 ? r : table_tree_set(tree, place, entry, table_tree_order(tree, offset));
    }
    return r;
}

static int commit_one(Image *image, Allocation *a)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < a->extents.count; i++) {
        r = commit_extent(image, &a->extents.items[i]);
    }
    return r;
}

int table_tree_commit(Image *image, Allocation **list, unsigned count)
{
    int r = allocation_commit_all(image, list, count, commit_one);
    table_tree_changed(image);
    return r;
}

void table_tree_abandon(Image *image, Allocation **list, unsigned count)
{
    for (unsigned i = count; i > 0; i--) {
        ExtentList *extents = &list[i - 1]->extents;
        for (unsigned j = extents->count; j > 0; j--) {
            const Extent *extent = &extents->items[j - 1];
            if (extent->type == EXTENT_ENCODED) {
                table_tree_packed_return(table_tree(image), extent);
            } else {
                table_tree_space_return(table_tree(image), extent->host_offset, extent->length);
            }
        }
        extent_list_reset(extents);
    }
}

/* ---- discard ---- */

uint64_t table_tree_backing_end(const Image *image)
{
    if (image->backing) {
        return image->backing->size;
    }
    return image->backing_name ? UINT64_MAX : 0;
}

int table_tree_punch(Image *image, uint64_t offset, uint64_t length, StorePunch how)
{
    TableTree *tree = table_tree(image);
    int r = 0;
    for (uint64_t end = offset + length; r == 0 && offset < end; offset += tree->cluster_size) {
        uint64_t place, entry = 0;
        r = table_tree_find(image, offset, &place);
        if (r == 0 && place != 0) {
            r = table_tree_get(tree, place, &entry);
        }
        TreeCluster cluster = tree->decode(tree, entry);
        if (r == 0 && cluster.host != 0 && !cluster.compressed) {
            uint64_t part = min_u64(tree->cluster_size, end - offset);
            r = store_punch(image->store, cluster.host, part, how);
        }
    }
    return r;
}

/* ---- flush ---- */

static int write_l1(Image *image)
{
    TableTree *tree = table_tree(image);
    GHashTableIter iter;
    gpointer key;
    int r = 0;
    g_hash_table_iter_init(&iter, tree->l1_dirty);
    while (r == 0 && g_hash_table_iter_next(&iter, &key, NULL)) {
        uint64_t first = GPOINTER_TO_SIZE(key) * TABLE_TREE_PIECE_ENTRIES;
        uint64_t n = min_u64(TABLE_TREE_PIECE_ENTRIES, tree->l1_size - first);
        uint8_t piece[TABLE_TREE_PIECE];
        for (uint64_t i = 0; i < n; i++) {
            store_entry(piece + i * 8, tree->l1[first + i], tree->l1_little);
        }
        r = store_write(image->store, piece, n * 8, tree->l1_offset + first * 8);
    }
    return r;
}

static int phase_two(Image *image)
{
    TableTree *tree = table_tree(image);
    if (!metacache_has_dirty(tree->meta, META_SECOND) && g_hash_table_size(tree->l1_dirty) == 0 &&
        !tree->second_pending) {
        return 0;
    }
    /* From the first write on the disk may point to the new tables, also when this fails. */
    tree->second_pending = true;
    g_hash_table_remove_all(tree->l1_new);
    int r = metacache_write(tree->meta, META_SECOND);
    r = r < 0 ? r : write_l1(image);
    r = r < 0 ? r : store_sync(image->store);
    if (r == 0) {
        tree->second_pending = false;
        g_hash_table_remove_all(tree->l1_dirty);
    }
    return r;
}

int table_tree_flush(Image *image)
{
    TableTree *tree = table_tree(image);
    int r = metacache_write(tree->meta, META_FIRST);
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : phase_two(image);
    if (r == 0) {
        tree->write_error = 0;
    } else {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot write metadata: %s", image->path, g_strerror(-r));
    }
    update_dirty(tree);
    return r;
}

/* ---- start and end ---- */

bool table_tree_start_writing(Image *image, GError **error)
{
    TableTree *tree = table_tree(image);
    if (image->repair) {
        return true; /* check looks at everything itself, and mends it */
    }
    if (!table_tree_scan(image, error)) {
        return false;
    }
    /* A cluster that the file's end cuts short becomes whole: extents never pass the end. */
    uint64_t size = align_up(store_size(image->store), tree->cluster_size);
    if (size != store_size(image->store)) {
        (void)store_truncate(image->store, size); /* a block device stays as it is */
    }
    tree->size_at_open = tree->used_end = tree->fresh_start = size;
    return true;
}

/* Cuts off what was grown ahead of need. What the file had when it was opened is left alone. */
int table_tree_finish(Image *image)
{
    TableTree *tree = table_tree(image);
    if (image->repair) {
        return 0;
    }
    int r = table_tree_is_dirty(image) ? table_tree_flush(image) : 0;
    uint64_t end = max_u64(tree->used_end, tree->size_at_open);
    if (r < 0 || end >= store_size(image->store)) {
        return r;
    }
    r = store_truncate(image->store, end);
    return r < 0 ? r : store_sync(image->store);
}
