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
 *
 * Subclusters become the same, each for itself, and the cluster loses its place when none is allocated any more,
 * unless somebody is writing to it. Parts of a compressed cluster cannot be dropped; parts of a shared one can, but
 * not get space of their own.
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
static int replace(Unmap *u, const Qcow2Cluster *old, Qcow2Entry entry, bool free_old)
{
    Qcow2State *s = u->image->state;
    int r = qcow2_cursor_set(&u->cursor, u->offset, entry);
    if (r == 0 && free_old) {
        qcow2_free_later(s, qcow2_cluster_run(s, old));
    }
    return r;
}

/* A new cluster, which is not read. */
static int place_anew(Unmap *u, const Qcow2Cluster *cluster, uint64_t flags, uint64_t bitmap)
{
    const Qcow2State *s = u->image->state;
    Qcow2Run run = {align_down(u->offset, s->cluster_size) >> s->cluster_bits, 0};
    bool fresh;
    int r = s->external ? 0 : qcow2_alloc_run(u->image, 1, &run, &fresh);
    if (r < 0) {
        return r;
    }
    uint64_t host = run.first << s->cluster_bits;
    r = replace(u, cluster, (Qcow2Entry){host | QCOW2_COPIED | flags, bitmap}, true);
    if (r < 0) {
        qcow2_alloc_return(u->image, run);
    }
    return r;
}

static int keep_cluster(Unmap *u, const Qcow2Cluster *cluster)
{
    if (cluster->type == QCOW2_CLUSTER_ZERO_ALLOC) {
        return 0;
    }
    if (cluster->type == QCOW2_CLUSTER_DATA && cluster->copied) {
        return replace(u, cluster, (Qcow2Entry){cluster->host | QCOW2_ZERO | QCOW2_COPIED, 0},
                       false);
    }
    return place_anew(u, cluster, QCOW2_ZERO, 0);
}

static int drop_cluster(Unmap *u, const Qcow2Cluster *cluster)
{
    bool over_backing = u->offset < u->backing_end;
    if ((cluster->type == QCOW2_CLUSTER_ZERO && !u->expose) ||
        (cluster->type == QCOW2_CLUSTER_UNALLOCATED && !over_backing)) {
        return 0;
    }
    return replace(u, cluster, (Qcow2Entry){over_backing ? QCOW2_ZERO : 0, 0}, true);
}

/* ---- subclusters ---- */

/* The parts of the cluster at u->offset that the range has, and those of them where a backing could show. */
static uint32_t parts(const Unmap *u, uint64_t end, uint32_t *over_backing)
{
    const Qcow2State *s = u->image->state;
    *over_backing =
        u->offset < u->backing_end
            ? qcow2_subcluster_mask(s, u->offset, min_u64(end, u->backing_end) - u->offset)
            : 0;
    return qcow2_subcluster_mask(s, u->offset, end - u->offset);
}

/* Whether the range has all of a cluster that the disk has, from u->offset to end. */
static bool is_whole(const Unmap *u, uint64_t end)
{
    const Qcow2State *s = u->image->state;
    return u->offset % s->cluster_size == 0 &&
           (end % s->cluster_size == 0 || end >= u->image->size);
}

static int keep_parts(Unmap *u, const Qcow2Cluster *cluster, uint64_t end)
{
    const Qcow2State *s = u->image->state;
    uint32_t over_backing, mask = parts(u, end, &over_backing);
    bool compressed = cluster->type == QCOW2_CLUSTER_COMPRESSED;
    uint32_t allocated = cluster->allocated & ~mask;
    uint64_t bitmap = qcow2_subcluster_bitmap(allocated, cluster->zero | mask), claimed;
    bool own = cluster->placed && cluster->copied;
    bool lost = allocated == 0 && !own && !qcow2_claimed(s, u->offset, &claimed);
    if (compressed || lost) {
        return compressed && !is_whole(u, end) ? 0 : place_anew(u, cluster, 0, bitmap);
    }
    uint64_t copied = cluster->copied ? QCOW2_COPIED : 0;
    return replace(u, cluster, (Qcow2Entry){cluster->host | copied, bitmap}, false);
}

static int drop_parts(Unmap *u, const Qcow2Cluster *cluster, uint64_t end)
{
    const Qcow2State *s = u->image->state;
    uint32_t over_backing, mask = parts(u, end, &over_backing);
    uint64_t claimed;
    bool compressed = cluster->type == QCOW2_CLUSTER_COMPRESSED;
    if (compressed && !is_whole(u, end)) {
        return 0; /* behind the end of the disk; else it was refused */
    }
    uint32_t allocated = cluster->allocated & ~mask;
    uint32_t zero = u->expose ? cluster->zero & ~mask : cluster->zero | (mask & over_backing);
    bool loses =
        compressed || (cluster->placed && allocated == 0 && !qcow2_claimed(s, u->offset, &claimed));
    if (!loses && allocated == cluster->allocated && zero == cluster->zero) {
        return 0;
    }
    uint64_t word = cluster->host | (cluster->copied ? QCOW2_COPIED : 0);
    uint64_t bitmap = qcow2_subcluster_bitmap(allocated, zero);
    return replace(u, cluster, (Qcow2Entry){loses ? 0 : word, bitmap}, loses);
}

/* Whether a cluster of which the range has only a part is compressed. */
static int splits_compressed(Image *image, uint64_t offset, bool *splits)
{
    const Qcow2State *s = image->state;
    if (*splits || offset % s->cluster_size == 0 || offset >= image->size) {
        return 0;
    }
    Qcow2Cursor cursor;
    Qcow2Cluster cluster;
    qcow2_cursor_init(&cursor, image);
    int r = qcow2_cursor_get(&cursor, offset, &cluster);
    qcow2_cursor_release(&cursor);
    *splits = r == 0 && cluster.type == QCOW2_CLUSTER_COMPRESSED;
    return r;
}

/* ---- ranges ---- */

/* The cluster at u->offset, or the part of it that the range has. */
static int unmap_cluster(Unmap *u)
{
    const Qcow2State *s = u->image->state;
    uint64_t next = align_down(u->offset, s->cluster_size) + s->cluster_size;
    uint64_t end = min_u64(next, u->end);
    Qcow2Cluster cluster;
    int r = qcow2_cursor_get(&u->cursor, u->offset, &cluster);
    if (r == 0 && s->extended) {
        r = u->keep ? keep_parts(u, &cluster, end) : drop_parts(u, &cluster, end);
    } else if (r == 0) {
        r = u->keep ? keep_cluster(u, &cluster) : drop_cluster(u, &cluster);
    }
    if (r == 0) {
        u->offset = next;
    }
    return r;
}

/* One piece of an L2 table, or the span of an L1 entry without one. */
static int unmap_piece(Unmap *u)
{
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
        r = unmap_cluster(u);
    }
    return r;
}

static int unmap_all(Unmap *u)
{
    Image *image = u->image;
    uint64_t start = u->offset;
    qcow2_cursor_init(&u->cursor, image);
    int r = qcow2_may_change(image);
    while (r == 0 && u->offset < u->end) {
        r = unmap_piece(u);
        qcow2_cursor_release(&u->cursor);
        qcow2_update_dirty(image->state);
        qcow2_flush_if_full(image);
        r = r < 0 ? r : qcow2_may_change(image);
    }
    if (qcow2_state(image)->external && !u->keep && !u->expose) {
        qcow2_data_free(image, start, min_u64(u->offset, u->end));
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
    if (qcow2_data_is_raw(s)) {
        return qcow2_data_zero(image, offset, length, flags);
    }
    if (s->header.version < 3 && (u.keep || offset < u.backing_end)) {
        return -ENOTSUP;
    }
    bool splits = false;
    int r = splits_compressed(image, u.offset, &splits);
    r = r < 0 ? r : splits_compressed(image, u.end, &splits);
    if (r < 0 || splits) {
        return r < 0 ? r : -ENOTSUP;
    }
    return unmap_all(&u);
}
