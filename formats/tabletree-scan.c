/*
 * Two levels of tables: who uses which cluster of the file.
 */
#include "formats/tabletree.h"

#include <inttypes.h>

#include "base/bytes.h"
#include "base/errors.h"

static bool refuse(const Image *image, const char *what, uint64_t offset, GError **error)
{
    return error_set(error, EUCLEAN,
                     "%s: the %s at %" PRIu64
                     " is not in the file, not aligned or on top of something else: open it "
                     "read-only, or run check --repair=all",
                     image->path, what, offset);
}

static bool take_tables(ClusterUse *use, const Image *image, GError **error)
{
    const TableTree *tree = table_tree(image);
    for (uint32_t i = 0; i < tree->l1_size; i++) {
        uint64_t l2 = tree->l1[i];
        if (l2 != 0 &&
            (l2 % tree->cluster_size != 0 || !table_tree_place_ok(image, l2, tree->l2_bytes) ||
             !cluster_use_take(use, l2, tree->l2_bytes, false))) {
            return refuse(image, "L2 table", l2, error);
        }
    }
    return true;
}

bool table_tree_scan_entry(const Image *image, ClusterUse *use, uint64_t entry)
{
    const TableTree *tree = table_tree(image);
    TreeCluster cluster = tree->decode(tree, entry);
    if (cluster.host == 0) {
        return !cluster.compressed;
    }
    if (!table_tree_cluster_ok(image, cluster.host)) {
        return false;
    }
    if (cluster.compressed) {
        uint64_t size = store_size(image->store);
        uint64_t length = min_u64(cluster.stored_length, size - cluster.host);
        return length > 0 && cluster_use_take(use, cluster.host, length, true);
    }
    return cluster.host % tree->cluster_size == 0 &&
           cluster_use_take(use, cluster.host, tree->cluster_size, false);
}

/* What is a hole of the host has no entries: a sparse file may claim many such tables. */
uint64_t table_tree_skip_hole(const Image *image, uint64_t place, uint64_t end)
{
    uint64_t run;
    bool data;
    if (place < end && store_next_data(image->store, place, end - place, &data, &run) == 0 &&
        !data) {
        place += run >= end - place ? end - place : align_down(run, TABLE_TREE_PIECE);
    }
    return place;
}

int table_tree_read_piece(TableTree *tree, uint64_t place, uint64_t *entries)
{
    MetaBlock *piece;
    int r = metacache_get(tree->meta, place, &piece);
    if (r < 0) {
        return r;
    }
    for (unsigned i = 0; i < TABLE_TREE_PIECE_ENTRIES; i++) {
        const uint8_t *bytes = piece->data + i * 8;
        entries[i] = tree->l2_little ? load_le64(bytes) : load_be64(bytes);
    }
    metacache_put(tree->meta, piece);
    return 0;
}

uint64_t table_tree_next_piece(const Image *image, uint64_t place, uint64_t end,
                               const uint64_t *entries)
{
    place += TABLE_TREE_PIECE;
    bool empty = bytes_are_zero(entries, TABLE_TREE_PIECE_ENTRIES * sizeof *entries);
    return empty ? table_tree_skip_hole(image, place, end) : place;
}

static bool take_clusters(ClusterUse *use, Image *image, uint64_t l2, GError **error)
{
    TableTree *tree = table_tree(image);
    uint64_t entries[TABLE_TREE_PIECE_ENTRIES], end = l2 + tree->l2_bytes;
    uint64_t place = table_tree_skip_hole(image, l2, end);
    while (place < end) {
        int r = table_tree_read_piece(tree, place, entries);
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot read an L2 table", image->path);
        }
        for (unsigned i = 0; i < TABLE_TREE_PIECE_ENTRIES; i++) {
            if (!table_tree_scan_entry(image, use, entries[i])) {
                return refuse(image, "cluster", tree->decode(tree, entries[i]).host, error);
            }
        }
        place = table_tree_next_piece(image, place, end, entries);
    }
    return true;
}

bool table_tree_scan(Image *image, GError **error)
{
    TableTree *tree = table_tree(image);
    ClusterUse use;
    if (!cluster_use_init(&use, image->store, tree->cluster_bits, error)) {
        return false;
    }
    tree->take_head(image, &use);
    bool good = take_tables(&use, image, error);
    for (uint32_t i = 0; good && i < tree->l1_size; i++) {
        good = tree->l1[i] == 0 || take_clusters(&use, image, tree->l1[i], error);
    }
    cluster_use_clear(&use);
    return good;
}
