/*
 * qcow, version 1: unmap. The rest of writing is that of every tree of tables (tabletree.c).
 *
 * A discard gives the bytes of a cluster back to the host and leaves it where it is. What a write of a compressed
 * cluster replaces is lost until the image is copied.
 *
 * There are no zero clusters: zeroes over a backing must be written.
 */
#include "formats/qcow.h"

#include <errno.h>

/* Whether a part of the range can only become zeroes by writing them. */
static int must_be_written(Image *image, uint64_t offset, uint64_t length, bool *must)
{
    TableTree *tree = table_tree(image);
    uint64_t below = table_tree_backing_end(image);
    int r = 0;
    *must = false;
    for (uint64_t end = offset + length; r == 0 && !*must && offset < end;
         offset += tree->cluster_size) {
        uint64_t place, entry = 0;
        r = table_tree_find(image, offset, &place);
        if (r == 0 && place != 0) {
            r = table_tree_get(tree, place, &entry);
        }
        *must = r == 0 && (entry == 0 ? offset < below : (entry & QCOW_COMPRESSED) != 0);
    }
    return r;
}

int qcow_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    bool must = false;
    if (flags & UNMAP_BACKING) {
        return -ENOTSUP; /* clusters stay where they are */
    }
    if (image->encryption) { /* a hole would read as noise */
        return flags & UNMAP_ZERO ? -ENOTSUP : 0;
    }
    int r = flags & UNMAP_ZERO ? must_be_written(image, offset, length, &must) : 0;
    if (r == 0 && must) {
        return -ENOTSUP;
    }
    if (r == 0) {
        r = table_tree_punch(image, offset, length,
                             flags & UNMAP_KEEP_SPACE ? STORE_PUNCH_KEEP_SPACE : STORE_PUNCH_FREE);
    }
    if (r == -ENOTSUP && !(flags & UNMAP_ZERO)) {
        return 0; /* a discard is advice: keeping the bytes is a right answer */
    }
    return r;
}
