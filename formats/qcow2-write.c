/*
 * qcow2: allocate, commit, abandon.
 *
 *     allocate   refcounts 0 -> 1 in memory, L2 tables made, the file grown: a crash leaks at worst
 *     (the engine writes the data)
 *     commit     L2 entries in memory; what they replaced is queued to be freed
 *     flush      refcounts and data -> sync -> L2, L1 -> sync                    (qcow2-flush.c)
 *
 * Nothing is kept about reserved clusters between the calls but the extents of the Allocation:
 * abandon looks at the L2 entry to tell what was reserved (gives it back) from what a table refers
 * to (leaves it).
 */
#include "formats/qcow2.h"

#include "formats/allocation.h"
#include "map/encryption.h"

int qcow2_may_change(Image *image)
{
    Qcow2State *s = image->state;
    if (s->corrupt && !image->repair) {
        return -EIO;
    }
    if (s->broken == 0 && s->write_error < 0) { /* there may be space again */
        s->write_error = qcow2_flush(image);
    }
    return s->broken < 0 ? s->broken : s->write_error;
}

/* A cluster that keeps host space of its own, for itself alone: data can go there. Of subclusters, all that is asked
 * for here can: the rest of the cluster stays as it is. */
static bool keeps_space(const Image *image, const Qcow2Cluster *cluster)
{
    const Qcow2State *s = image->state;
    bool usable = cluster->type == QCOW2_CLUSTER_ZERO_ALLOC ||
                  (s->extended && cluster->type == QCOW2_CLUSTER_DATA);
    return usable && cluster->copied &&
           range_within(cluster->host, s->cluster_size, store_size(image->store));
}

/* The next clusters of the range, from host on; of the first and the last one, the range may want a part. */
static void add_new(Image *image, Allocation *a, uint64_t host, uint64_t length, bool fresh)
{
    Qcow2State *s = image->state;
    uint64_t done = a->extents.count > 0 ? extent_list_end(&a->extents) - a->offset : 0;
    uint64_t offset = a->offset + done, in = offset % s->cluster_size;
    uint64_t wanted = min_u64(length - in, a->length - done);
    allocation_add(image, a, image->store, host + in, wanted, fresh);
    for (uint64_t at = 0; s->extended && at < length; at += s->cluster_size) {
        qcow2_claim(s, offset - in + at, host + at);
    }
}

/* Reserves space for count clusters, in as few runs as there are. */
static int add_runs(Image *image, Allocation *a, uint64_t count)
{
    const Qcow2State *s = image->state;
    while (count > 0) {
        Qcow2Run run;
        bool fresh;
        int r = qcow2_alloc_run(image, count, &run, &fresh);
        if (r < 0) {
            return r;
        }
        add_new(image, a, run.first << s->cluster_bits, run.count << s->cluster_bits, fresh);
        count -= run.count;
    }
    return 0;
}

static int check_own_space(Image *image, const Qcow2Cluster *cluster)
{
    if (qcow2_overlaps_metadata(image, qcow2_cluster_run(image->state, cluster))) {
        return qcow2_corrupt(
            image, "a preallocated cluster lies at %" PRIu64 ", on top of metadata", cluster->host);
    }
    return 0;
}

/* Where the cluster of a guest offset has a place already that is its own, or is about to get one. */
static int find_place(Image *image, Qcow2Cursor *cursor, const Allocation *a, uint64_t offset,
                      bool *found, uint64_t *host)
{
    const Qcow2State *s = image->state;
    uint64_t end = min_u64(offset + s->cluster_size, image->size);
    Qcow2Cluster cluster;
    int r = qcow2_cursor_get(cursor, offset, &cluster);
    if (r == 0 && qcow2_is_indivisible(s, &cluster) &&
        (offset < a->offset || end > a->offset + a->length)) {
        r = -EINVAL; /* against Format.unit_at: the rest of the cluster would be lost */
    }
    *found = r == 0 && keeps_space(image, &cluster);
    if (*found) {
        *host = cluster.host;
        return check_own_space(image, &cluster);
    }
    *found = r == 0 && s->extended && qcow2_claimed(s, offset, host);
    return r;
}

/* Reserves space for the range, whose L2 tables are there. */
static int reserve(Image *image, Allocation *a, Qcow2Cursor *cursor)
{
    const Qcow2State *s = image->state;
    uint64_t end = a->offset + a->length, pending = 0; /* clusters that need space */
    if (s->external) {
        return qcow2_data_reserve(image, a);
    }
    if (a->stored_length > 0) {
        return qcow2_compressed_reserve(image, a);
    }
    for (uint64_t offset = align_down(a->offset, s->cluster_size); offset < end;
         offset += s->cluster_size) {
        bool found;
        uint64_t host;
        int r = find_place(image, cursor, a, offset, &found, &host);
        if (r == 0 && found) {
            r = add_runs(image, a, pending);
            pending = 0;
            if (r == 0) {
                add_new(image, a, host, s->cluster_size, false);
            }
        } else {
            pending++;
        }
        if (r < 0) {
            return r;
        }
    }
    return add_runs(image, a, pending);
}

int qcow2_write_data(Image *image, Extent extent, const uint8_t *bytes)
{
    extent.type = EXTENT_DATA;
    extent.image = image;
    extent.store = qcow2_data_store(image);
    return extent_write(&extent, &(struct iovec){(void *)bytes, extent.length}, 1);
}

/* What the last cluster, or the part of it that was allocated, holds behind the end of the disk would show if the disk
 * grew. */
static int zero_behind_the_end(Image *image, const Allocation *a)
{
    const Qcow2State *s = image->state;
    const Extent *last = &a->extents.items[a->extents.count - 1];
    uint64_t used = extent_end(last) % s->unit, rest = s->unit - used;
    bool reads_zero = (last->flags & EXTENT_FRESH) && !image->encryption;
    bool nothing = s->external && last->host_offset + last->length >= store_size(s->data);
    if (used == 0 || reads_zero || nothing || last->type == EXTENT_ENCODED) {
        return 0;
    }
    if (s->external) { /* whose end may be fixed, of a device */
        rest = min_u64(rest, store_size(s->data) - (last->host_offset + last->length));
    }
    g_autofree uint8_t *zeroes = g_try_malloc0(rest);
    Extent end = {.offset = extent_end(last),
                  .length = rest,
                  .host_offset = last->host_offset + last->length};
    return zeroes != NULL ? qcow2_write_data(image, end, zeroes) : -ENOMEM;
}

static int make_tables(Image *image, const Allocation *a)
{
    const Qcow2State *s = image->state;
    uint32_t span_bits = s->cluster_bits + s->l2_bits;
    uint64_t last = (a->offset + a->length - 1) >> span_bits;
    int r = 0;
    for (uint64_t i = a->offset >> span_bits; r == 0 && i <= last; i++) {
        r = qcow2_l2_prepare(image, i);
    }
    return r;
}

/* Whether the L2 entry of a guest offset refers to the host cluster; true also when that cannot be
 * told. */
static bool is_referred_to(Qcow2Cursor *cursor, uint64_t offset, uint64_t host)
{
    Qcow2Cluster cluster;
    if (qcow2_cursor_get(cursor, offset, &cluster) < 0) {
        return true;
    }
    return cluster.host == host &&
           (cluster.type == QCOW2_CLUSTER_DATA || cluster.type == QCOW2_CLUSTER_ZERO_ALLOC ||
            cluster.type == QCOW2_CLUSTER_COMPRESSED);
}

/* The host clusters of one guest cluster of an extent, `at` bytes into it. */
static Qcow2Run reserved_run(const Qcow2State *s, const Extent *e, uint64_t at)
{
    uint64_t host = e->host_offset + at;
    uint64_t length = e->type == EXTENT_ENCODED ? e->stored_length : 1;
    uint64_t first = host >> s->cluster_bits, last = (host + length - 1) >> s->cluster_bits;
    return (Qcow2Run){first, last - first + 1};
}

/* The next guest cluster of an extent, from offset on: how much of it the extent has. */
static uint64_t cluster_part(const Qcow2State *s, const Extent *e, uint64_t offset)
{
    uint64_t next = align_down(offset, s->cluster_size) + s->cluster_size;
    return min_u64(next, extent_end(e)) - offset;
}

/* Of subclusters, the place is given back with its last claim. */
static bool is_still_wanted(Image *image, Qcow2Cursor *cursor, const Extent *e, uint64_t at)
{
    Qcow2State *s = image->state;
    uint64_t in = (e->offset + at) % s->cluster_size;
    bool claimed = s->extended && e->type == EXTENT_DATA && qcow2_unclaim(s, e->offset + at);
    return claimed || is_referred_to(cursor, e->offset + at, e->host_offset + at - in);
}

static void give_back(Image *image, Allocation *a)
{
    const Qcow2State *s = image->state;
    g_autoptr(GArray) runs = g_array_new(false, false, sizeof(Qcow2Run));
    Qcow2Cursor cursor;
    qcow2_cursor_init(&cursor, image);
    for (unsigned i = 0; i < a->extents.count; i++) {
        const Extent *e = &a->extents.items[i];
        for (uint64_t at = 0; at < e->length; at += cluster_part(s, e, e->offset + at)) {
            if (!s->external && !is_still_wanted(image, &cursor, e, at)) {
                qcow2_run_append(runs, reserved_run(s, e, at));
            }
        }
    }
    qcow2_cursor_release(&cursor);
    for (guint i = 0; i < runs->len; i++) {
        qcow2_alloc_return(image, g_array_index(runs, Qcow2Run, i));
    }
    extent_list_reset(&a->extents);
}

int qcow2_allocate(Image *image, Allocation **list, unsigned count)
{
    int refused = qcow2_may_change(image), first_error = 0;
    Qcow2Cursor cursor;
    qcow2_cursor_init(&cursor, image);
    /* All tables first: then the data of all ranges lies together. */
    for (unsigned i = 0; i < count; i++) {
        extent_list_reset(&list[i]->extents);
        list[i]->result = refused < 0 ? refused : make_tables(image, list[i]);
    }
    for (unsigned i = 0; i < count; i++) {
        Allocation *a = list[i];
        if (a->result == 0) {
            a->result = reserve(image, a, &cursor);
            a->result = a->result < 0 ? a->result : zero_behind_the_end(image, a);
            if (a->result < 0) {
                give_back(image, a);
            }
        }
        first_error = first_error < 0 ? first_error : a->result;
    }
    qcow2_cursor_release(&cursor);
    qcow2_update_dirty(image->state);
    qcow2_flush_if_full(image);
    return first_error;
}

/* What the entry of a guest cluster becomes when `length` bytes at `at` of an extent are in it. False: it cannot be said. */
static bool new_entry(const Qcow2State *s, const Qcow2Cluster *old, const Extent *e, uint64_t at,
                      uint64_t length, Qcow2Entry *entry)
{
    *entry = (Qcow2Entry){.bitmap = 0};
    if (e->type == EXTENT_ENCODED) {
        return qcow2_compressed_entry(s, e, &entry->word);
    }
    uint64_t in = (e->offset + at) % s->cluster_size, host = e->host_offset + at - in;
    entry->word = host | QCOW2_COPIED;
    if (s->extended) {
        uint32_t mask = qcow2_subcluster_mask(s, e->offset + at, length);
        bool stays = old->placed && old->host == host;
        entry->bitmap =
            qcow2_subcluster_bitmap((stays ? old->allocated : 0) | mask, old->zero & ~mask);
    }
    return true;
}

static int commit_cluster(Qcow2Cursor *cursor, const Extent *e, uint64_t at, uint64_t length)
{
    Qcow2State *s = cursor->image->state;
    Qcow2Cluster old;
    Qcow2Entry entry;
    int r = qcow2_cursor_get(cursor, e->offset + at, &old);
    if (r == 0 && !new_entry(s, &old, e, at, length, &entry)) {
        r = -EFBIG;
    }
    if (r == 0) {
        r = qcow2_cursor_set(cursor, e->offset + at, entry);
    }
    if (r < 0) {
        return r;
    }
    bool keeps_its_place =
        old.placed && old.host == (entry.word & QCOW2_OFFSET_MASK) && e->type == EXTENT_DATA;
    if (!keeps_its_place) {
        qcow2_free_later(s, qcow2_cluster_run(s, &old));
    }
    return 0;
}

static int commit_one(Qcow2Cursor *cursor, const Allocation *a)
{
    Qcow2State *s = cursor->image->state;
    int r = 0;
    for (unsigned i = 0; i < a->extents.count; i++) {
        const Extent *e = &a->extents.items[i];
        for (uint64_t at = 0, part; at < e->length; at += part) {
            part = cluster_part(s, e, e->offset + at);
            r = r < 0 ? r : commit_cluster(cursor, e, at, part);
            if (s->extended && e->type == EXTENT_DATA) {
                qcow2_unclaim(s, e->offset + at);
            }
        }
    }
    return r;
}

int qcow2_commit(Image *image, Allocation **list, unsigned count)
{
    const Qcow2State *s = image->state;
    /* Not write_error: what was reserved before it may still become visible, the next flush says
     * what is wrong. */
    int refused = s->corrupt && !image->repair ? -EIO : s->broken, first_error = 0;
    Qcow2Cursor cursor;
    qcow2_cursor_init(&cursor, image);
    for (unsigned i = 0; i < count; i++) {
        list[i]->result = refused < 0 ? refused : commit_one(&cursor, list[i]);
        first_error = first_error < 0 ? first_error : list[i]->result;
    }
    qcow2_cursor_release(&cursor);
    qcow2_update_dirty(image->state);
    qcow2_flush_if_full(image);
    return first_error;
}

void qcow2_abandon(Image *image, Allocation **list, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        give_back(image, list[i]);
    }
    qcow2_update_dirty(image->state);
}
