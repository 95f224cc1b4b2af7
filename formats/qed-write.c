/*
 * qed: unmap, start and end of writing. The rest of writing is that of every tree of tables (tabletree.c).
 *
 * The bit "needs a check" is on the disk before the first change of a session that allocates, and gone when the last
 * flush is. It promises others what they expect of a writer that was cut off; we leave leaked clusters at worst.
 *
 * A discard gives the bytes of a cluster back to the host and leaves it where it is. What is not there becomes an entry
 * of zeroes where a backing would show.
 */
#include "formats/qed.h"

#include "base/errors.h"

int qed_before_change(Image *image)
{
    uint64_t features = qed_state(image)->header.features;
    return features & QED_NEED_CHECK ? 0 : qed_set_features(image, features | QED_NEED_CHECK);
}

/* ---- unmap ---- */

static int set_zero(Image *image, uint64_t offset)
{
    TableTree *tree = table_tree(image);
    uint64_t place;
    int r = table_tree_make_tables(image, offset, 1);
    r = r < 0 ? r : table_tree_find(image, offset, &place);
    return r < 0 ? r : table_tree_set(tree, place, QED_ZERO, table_tree_order(tree, offset));
}

int qed_zero(Image *image, uint64_t offset, uint64_t end, uint64_t below, StorePunch how)
{
    TableTree *tree = table_tree(image);
    int r = 0;
    while (r == 0 && offset < end) {
        uint64_t place, entry = 0, part = min_u64(tree->cluster_size, end - offset);
        r = table_tree_find(image, offset, &place);
        if (r == 0 && place != 0) {
            r = table_tree_get(tree, place, &entry);
        }
        if (r == 0 && entry == 0 && offset < below) {
            r = set_zero(image, offset);
            table_tree_changed(image);
            r = r < 0 ? r : tree->write_error;
        } else if (r == 0 && entry > QED_ZERO) {
            r = store_punch(image->store, entry, part, how);
        }
        offset += part;
    }
    return r;
}

int qed_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    StorePunch how = flags & UNMAP_KEEP_SPACE ? STORE_PUNCH_KEEP_SPACE : STORE_PUNCH_FREE;
    uint64_t below = table_tree_backing_end(image);
    if (flags & UNMAP_BACKING) {
        return -ENOTSUP;
    }
    int r = offset < below ? table_tree_may_change(image) : 0;
    r = r < 0 ? r : qed_zero(image, offset, offset + length, below, how);
    if (r == -ENOTSUP && !(flags & UNMAP_ZERO)) {
        return 0; /* a discard is advice: keeping the bytes is a right answer */
    }
    return r;
}

/* ---- start and end ---- */

bool qed_start_writing(Image *image, GError **error)
{
    uint8_t cleared[8] = {0};
    if (!table_tree_start_writing(image, error)) {
        return false;
    }
    if (qed_state(image)->header.autoclear == 0) {
        return true;
    }
    int r = store_write(image->store, cleared, sizeof cleared, QED_H_AUTOCLEAR);
    r = r < 0 ? r : store_sync(image->store);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the header", image->path);
}

int qed_finish(Image *image)
{
    uint64_t features = qed_state(image)->header.features;
    int r = table_tree_finish(image);
    if (r < 0 || image->repair || !(features & QED_NEED_CHECK)) {
        return r;
    }
    return qed_set_features(image, features & ~(uint64_t)QED_NEED_CHECK);
}
