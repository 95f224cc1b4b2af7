/*
 * Two levels of tables: compressed clusters that are written.
 *
 *     file:  |AAAAABBBCCCCCCC|CCCDDDD........|plain|EEE...      A to E: one cluster of the disk each
 *
 * Their bytes lie one behind the other, at any byte. What does not fit into the rest of a cluster of the file goes on in
 * the next one, where that is the one that was just taken; else the rest stays empty.
 *
 * What must stay true: only compressed clusters have bytes in a cluster of the file in which one of them begins or ends.
 */
#include <errno.h>

#include "base/bytes.h"
#include "formats/allocation.h"
#include "formats/tabletree.h"

/* Bytes that are left in the cluster of the file where the last one ends. */
static uint64_t packed_room(const TableTree *tree)
{
    return align_up(tree->packed_end, tree->cluster_size) - tree->packed_end;
}

/* An entry has few bits for the place. */
static bool can_be_said(const TableTree *tree, uint64_t host, uint32_t stored_length)
{
    TreeCluster cluster = tree->decode(tree, tree->encode(tree, host, stored_length));
    return cluster.compressed && cluster.host == host && cluster.stored_length == stored_length;
}

int table_tree_packed_reserve(Image *image, Allocation *a)
{
    TableTree *tree = table_tree(image);
    uint64_t host = tree->packed_end, room = packed_room(tree), next = 0;
    if (a->stored_length > room) { /* one more is enough: it is smaller than a cluster */
        bool fresh;
        int r = table_tree_space_take(image, tree->cluster_size, &next, &fresh);
        if (r < 0) {
            return r;
        }
        host = room > 0 && host + room == next ? host : next;
    }
    if (!can_be_said(tree, host, a->stored_length)) {
        if (next > 0) {
            table_tree_space_return(tree, next, tree->cluster_size);
        }
        return -EFBIG;
    }
    tree->packed_end = host + a->stored_length;
    allocation_add_encoded(image, a, host);
    return 0;
}

void table_tree_packed_return(TableTree *tree, const Extent *extent)
{
    if (extent->host_offset + extent->stored_length != tree->packed_end) {
        return; /* others lie behind it */
    }
    uint64_t kept = align_up(extent->host_offset, tree->cluster_size);
    uint64_t end = align_up(tree->packed_end, tree->cluster_size);
    tree->packed_end = extent->host_offset;
    if (kept < end) {
        table_tree_space_return(tree, kept, end - kept);
    }
}
