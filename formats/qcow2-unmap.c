/*
 * qcow2: unmap. What a cluster becomes:
 *
 *     is                         without KEEP_SPACE                       with KEEP_SPACE
 *     unallocated                the same, or zero over a backing         zero with a new cluster
 *     zero                       the same                                 zero with a new cluster
 *     zero with a host cluster   unallocated, or zero over a backing      the same
 *     data, its own              unallocated, or zero over a backing      zero with its cluster
 *     data, shared; compressed   unallocated, or zero over a backing      zero with a new cluster
 *
 * "Over a backing": where the backing (as long as it is) could show through. Version 2 has no zero
 * clusters; there -ENOTSUP says that zeroes must be written. What is in the wanted state already is
 * not touched, and no L2 table is made for it.
 */
#include "formats/qcow2.h"

typedef struct Unmap {
    Image *image;
    Qcow2Cursor cursor;
    uint64_t offset, end; /* what is still to be done */
    uint64_t backing_end; /* below it, unallocated may not read as zeroes */
    bool keep;
    bool expose; /* unallocated, whatever a backing holds */
} Unmap;

/* An image whose backing was not opened may have one of any length. */
uint64_t qcow2_backing_end(const Image *image)
{
    if (image->backing != NULL) {
        return image->backing->size;
    }
    return image->backing_name != NULL ? UINT64_MAX : 0;
}

/* The entry is replaced; what it referred to is freed once that is durable. */
static int replace(Unmap *u, const Qcow2Cluster *old, uint64_t entry, bool free_old)
{
    Qcow2State *s = u->image->state;
    int r = qcow2_cursor_set(&u->cursor, u->offset, entry);
    if (r == 0 && free_old) {
        qcow2_free_later(s, qcow2_cluster_run(s, old));
    }
    return r;
}

static int keep_cluster(Unmap *u, const Qcow2Cluster *cluster)
{
    const Qcow2State *s = u->image->state;
    if (cluster->type == QCOW2_CLUSTER_ZERO_ALLOC) {
        return 0;
    }
    if (cluster->type == QCOW2_CLUSTER_DATA && cluster->copied) {
        return replace(u, cluster, cluster->host | QCOW2_ZERO | QCOW2_COPIED, false);
    }
    Qcow2Run run;
    bool fresh;
    int r = qcow2_alloc_run(u->image, 1, &run, &fresh);
    if (r < 0) {
        return r;
    }
    uint64_t host = run.first << s->cluster_bits;
    r = replace(u, cluster, host | QCOW2_ZERO | QCOW2_COPIED, true);
    if (r < 0) {
        qcow2_alloc_return(u->image, run);
    }
    return r;
}

static int drop_cluster(Unmap *u, const Qcow2Cluster *cluster)
{
    bool over_backing = u->offset < u->backing_end;
    if ((cluster->type == QCOW2_CLUSTER_ZERO && !u->expose) ||
        (cluster->type == QCOW2_CLUSTER_UNALLOCATED && !over_backing)) {
        return 0;
    }
    return replace(u, cluster, over_backing ? QCOW2_ZERO : 0, true);
}

/* One piece of an L2 table, or the span of an L1 entry without one. */
static int unmap_piece(Unmap *u)
{
    const Qcow2State *s = u->image->state;
    int r = qcow2_cursor_seek(&u->cursor, u->offset);
    if (r < 0) {
        return r;
    }
    uint64_t piece_end = min_u64(u->end, u->cursor.end);
    if (u->cursor.block == NULL && !u->keep && u->offset >= u->backing_end) {
        u->offset = piece_end;
        return 0;
    }
    while (r == 0 && u->offset < piece_end) {
        Qcow2Cluster cluster;
        r = qcow2_cursor_get(&u->cursor, u->offset, &cluster);
        if (r == 0) {
            r = u->keep ? keep_cluster(u, &cluster) : drop_cluster(u, &cluster);
        }
        if (r == 0) {
            u->offset += s->cluster_size;
        }
    }
    return r;
}

static int unmap_all(Unmap *u)
{
    Image *image = u->image;
    qcow2_cursor_init(&u->cursor, image);
    int r = qcow2_may_change(image);
    while (r == 0 && u->offset < u->end) {
        r = unmap_piece(u);
        qcow2_cursor_release(&u->cursor);
        qcow2_update_dirty(image->state);
        qcow2_flush_if_full(image);
        r = r < 0 ? r : qcow2_may_change(image);
    }
    return r;
}

int qcow2_drop(Image *image, uint64_t offset, uint64_t end, uint64_t zero_end)
{
    Unmap u = {.image = image, .offset = offset, .end = end, .backing_end = zero_end};
    return unmap_all(&u);
}

int qcow2_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    const Qcow2State *s = image->state;
    Unmap u = {
        .image = image,
        .offset = offset,
        .end = offset + length,
        .backing_end = qcow2_backing_end(image),
        .keep = flags & UNMAP_KEEP_SPACE,
        .expose = flags & UNMAP_BACKING,
    };
    if (u.expose) {
        u.backing_end = 0;
    }
    if (s->header.version < 3 && (u.keep || offset < u.backing_end)) {
        return -ENOTSUP;
    }
    return unmap_all(&u);
}
