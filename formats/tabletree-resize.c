/*
 * Two levels of tables: what a disk that becomes larger must not show of what lies behind its end.
 */
#include "formats/tabletree.h"

#include <errno.h>

#include "base/bytes.h"
#include "formats/copyup.h"
#include "formats/space.h"
#include "map/encryption.h"

static int cluster_at(Image *image, uint64_t offset, TreeCluster *cluster)
{
    TableTree *tree = table_tree(image);
    uint64_t place, entry = 0;
    int r = table_tree_find(image, offset, &place);
    r = r < 0 || place == 0 ? r : table_tree_get(tree, place, &entry);
    *cluster = tree->decode(tree, entry);
    return r;
}

/* Encrypted zeroes are no zeroes of the file. */
static int write_zeroes(Image *image, uint64_t host, uint64_t length)
{
    g_autofree uint8_t *zeroes = g_try_malloc0(length);
    Extent extent = {.type = EXTENT_DATA,
                     .image = image,
                     .store = image->store,
                     .offset = image->size,
                     .length = length,
                     .host_offset = host};
    return zeroes ? extent_write(&extent, &(struct iovec){zeroes, length}, 1) : -ENOMEM;
}

int table_tree_zero_last(Image *image)
{
    const TableTree *tree = table_tree(image);
    uint64_t used = image->size % tree->cluster_size, offset = image->size - used;
    uint64_t rest = tree->cluster_size - used;
    TreeCluster cluster = {0};
    int r = used == 0 ? 0 : cluster_at(image, offset, &cluster);
    if (r < 0 || used == 0 || cluster.zero) {
        return r;
    }
    bool shows = cluster.host == 0 && table_tree_backing_end(image) > image->size;
    if (shows || cluster.compressed) {
        r = copy_up(image, offset, used);
        r = r < 0 ? r : cluster_at(image, offset, &cluster);
    }
    if (r < 0 || cluster.host == 0) {
        return r;
    }
    return image->encryption
               ? write_zeroes(image, cluster.host + used, rest)
               : space_make_fresh(image->store, cluster.host + used, rest, UINT64_MAX);
}

int table_tree_clear_behind(Image *image)
{
    TableTree *tree = table_tree(image);
    uint64_t span = UINT64_C(1) << (tree->cluster_bits + tree->l2_bits);
    uint64_t end = align_up(image->size, span);
    int r = 0;
    for (uint64_t at = align_up(image->size, tree->cluster_size); r == 0 && at < end;
         at += tree->cluster_size) {
        uint64_t place, entry = 0;
        r = table_tree_find(image, at, &place);
        if (r == 0 && place == 0) {
            return 0; /* one table has all of them */
        }
        r = r < 0 ? r : table_tree_get(tree, place, &entry);
        if (r == 0 && entry != 0) {
            r = table_tree_set(tree, place, 0, table_tree_order(tree, at));
        }
    }
    table_tree_changed(image);
    return r;
}
