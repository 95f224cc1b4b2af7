/*
 * qed: a larger disk.
 *
 *     the new part reads as zeroes -> sync -> size in the header -> sync
 *
 * The table L1 has its full length from the start; what it holds behind the disk's end means nothing, so it is cleared.
 * There are no smaller disks: nothing records what would be free then.
 */
#include "formats/qed.h"

#include "base/errors.h"

static int need_l1(Image *image, uint64_t entries)
{
    TableTree *tree = table_tree(image);
    if (entries <= tree->l1_size) {
        return 0;
    }
    uint64_t *l1 = g_try_realloc_n(tree->l1, entries, sizeof *l1);
    if (!l1) {
        return -ENOMEM;
    }
    tree->l1 = l1;
    for (uint64_t i = tree->l1_size; i < entries; i++) {
        table_tree_l1_set(tree, i, 0);
    }
    tree->l1_size = entries;
    return 0;
}

/* Whole clusters of the new part: what the backing has there, and what a table of before may have. */
static int zero_rest(Image *image, uint64_t size)
{
    uint64_t cluster = table_tree(image)->cluster_size;
    uint64_t span = qed_table_span(&qed_state(image)->header);
    uint64_t below = table_tree_backing_end(image);
    uint64_t end = min_u64(size, max_u64(below, align_up(image->size, span)));
    return qed_zero(image, align_up(image->size, cluster), end, below, STORE_PUNCH_FREE);
}

static int grow(Image *image, uint64_t size)
{
    int r = table_tree_may_change(image);
    r = r < 0 ? r : need_l1(image, div_round_up(size, qed_table_span(&qed_state(image)->header)));
    r = r < 0 ? r : table_tree_zero_last(image);
    r = r < 0 ? r : zero_rest(image, size);
    r = r < 0 ? r : table_tree_flush(image);
    r = r < 0 ? r : qed_set_size(image, size);
    if (r == 0) {
        image->size = size;
    }
    return r;
}

bool qed_resize(Image *image, uint64_t size, GError **error)
{
    uint64_t largest = qed_largest_size(&qed_state(image)->header);
    if (size < image->size) {
        return error_set(error, ENOTSUP,
                         "%s: a qed image cannot become smaller: must be at least %" PRIu64,
                         image->path, image->size);
    }
    size = align_up(size, QED_SECTOR);
    if (size > largest) {
        return error_set(error, EFBIG,
                         "%s: size is %" PRIu64 ": must be at most %" PRIu64 " with such tables",
                         image->path, size, largest);
    }
    int r = grow(image, size);
    return r == 0 || error_set_errno(error, -r, "%s: cannot make the disk %" PRIu64 " bytes",
                                     image->path, size);
}
