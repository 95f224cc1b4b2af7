/*
 * qcow2: another size of the disk.
 *
 *     grow     room in the L1 table -> the new part reads as zeroes -> sync -> size in the header
 *     shrink   size in the header -> L2 and L1 entries gone -> sync -> refcounts drop   (qcow2-flush.c)
 *
 * So what lies behind the end of the disk never shows: a cut while it shrinks may leave entries there,
 * and the next growth drops whatever it finds, ours or not.
 *
 * The L1 table grows where it is as long as its last cluster has room (4 TiB with clusters of 64 KiB);
 * else a copy of it is made, durable before the header points there, and the old one is freed.
 *
 * A write of the header that fails leaves unknown what the disk says: then nothing is written any more.
 */
#include "formats/qcow2.h"

#include <errno.h>

#include "base/errors.h"
#include "base/log.h"
#include "formats/copyup.h"

#define SECTOR 512

/* Snapshots that do not say their own size have the disk's, bitmaps describe all of it. */
static bool check_parts(const Image *image, GError **error)
{
    const Qcow2State *s = image->state;
    if (s->bitmap_count > 0) {
        return error_set(error, ENOTSUP,
                         "%s: has %u persistent bitmaps, which are as long as the disk: remove "
                         "them before",
                         image->path, s->bitmap_count);
    }
    for (guint i = 0; i < s->snapshots->len; i++) {
        const Qcow2Snapshot *snapshot = &g_array_index(s->snapshots, Qcow2Snapshot, i);
        if (s->header.version < 3 || snapshot->extra_size < 16) {
            return error_set(error, ENOTSUP,
                             "%s: snapshot '%s' does not say its own size: delete it before",
                             image->path, snapshot->name);
        }
    }
    return true;
}

static uint64_t table_span(const Qcow2State *s)
{
    return UINT64_C(1) << (s->cluster_bits + s->l2_bits);
}

/* Entries that the clusters of the L1 table have room for. */
static uint64_t l1_room(const Qcow2State *s)
{
    return align_up((uint64_t)s->header.l1_size * 8, s->cluster_size) / 8;
}

static int extend_l1(Image *image, uint64_t entries)
{
    Qcow2State *s = image->state;
    uint64_t old = s->header.l1_size, offset = s->header.l1_table_offset;
    g_autofree uint8_t *zeroes = g_try_malloc0((entries - old) * 8);
    if (zeroes == NULL) {
        return -ENOMEM;
    }
    int r = store_write(image->store, zeroes, (entries - old) * 8, offset + old * 8);
    r = r < 0 ? r : store_sync(image->store);
    return r < 0 ? r : qcow2_header_set_l1(image, offset, entries);
}

/* All of the table in memory, and zeroes up to the end of the run. */
static int write_l1(Image *image, Qcow2Run run)
{
    const Qcow2State *s = image->state;
    uint64_t bytes = run.count << s->cluster_bits;
    g_autofree uint8_t *table = g_try_malloc0(bytes);
    if (table == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < s->l1_size; i++) {
        store_be64(table + (uint64_t)i * 8, s->l1[i]);
    }
    return store_write(image->store, table, bytes, run.first << s->cluster_bits);
}

static int move_l1(Image *image, uint64_t entries)
{
    Qcow2State *s = image->state;
    Qcow2Run run,
        old = {s->header.l1_table_offset >> s->cluster_bits, l1_room(s) * 8 >> s->cluster_bits};
    int r = qcow2_alloc_table(image, div_round_up(entries * 8, s->cluster_size), &run);
    if (r < 0) {
        return r;
    }
    r = write_l1(image, run);
    r = r < 0 ? r : qcow2_flush(image);
    if (r < 0) {
        qcow2_alloc_return(image, run);
        return r;
    }
    r = qcow2_header_set_l1(image, run.first << s->cluster_bits, entries);
    if (r == 0) {
        qcow2_run_append(s->unmapped, old);
    }
    return r;
}

/* The L1 table has that many entries, on the disk and here. */
static int need_l1(Image *image, uint64_t entries)
{
    Qcow2State *s = image->state;
    if (entries <= s->l1_size) {
        return 0;
    }
    uint64_t *l1 = g_try_realloc_n(s->l1, entries, 8);
    if (l1 == NULL) {
        return -ENOMEM;
    }
    memset(l1 + s->l1_size, 0, (entries - s->l1_size) * 8);
    s->l1 = l1;
    int r = entries <= l1_room(s) ? extend_l1(image, entries) : move_l1(image, entries);
    if (r == 0) {
        s->l1_size = entries;
    }
    return r;
}

static int zero_in_place(Image *image, const Qcow2Cluster *cluster)
{
    const Qcow2State *s = image->state;
    if (!s->external && (qcow2_overlaps_metadata(image, qcow2_cluster_run(s, cluster)) ||
                         !range_within(cluster->host, s->cluster_size, store_size(image->store)))) {
        return qcow2_corrupt(image, "the last cluster lies at %" PRIu64 ", on metadata or nowhere",
                             cluster->host);
    }
    uint64_t used = image->size % s->cluster_size, rest = s->cluster_size - used;
    g_autofree uint8_t *zeroes = g_try_malloc0(rest);
    Extent end = {.offset = image->size, .length = rest, .host_offset = cluster->host + used};
    return zeroes != NULL ? qcow2_write_data(image, end, zeroes) : -ENOMEM;
}

/* What the cluster that the end of the disk cuts holds behind the end; of subclusters, the one that the end cuts: drop
 * takes the rest. A new one gets zeroes there from allocate. */
static int zero_last(Image *image)
{
    const Qcow2State *s = image->state;
    if (image->size % s->cluster_size == 0) {
        return 0;
    }
    Qcow2Cursor cursor;
    Qcow2Cluster cluster;
    qcow2_cursor_init(&cursor, image);
    int r = qcow2_cursor_get(&cursor, image->size, &cluster);
    qcow2_cursor_release(&cursor);
    if (r < 0) {
        return r;
    }
    if (qcow2_is_indivisible(s, &cluster)) {
        uint64_t used = image->size % s->cluster_size;
        return copy_up(image, image->size - used, used);
    }
    uint64_t used = image->size % s->unit, offset = image->size - used;
    if (used == 0) {
        return 0;
    }
    switch (qcow2_subcluster_type(s, &cluster, offset % s->cluster_size / s->unit)) {
    case QCOW2_CLUSTER_ZERO:
    case QCOW2_CLUSTER_ZERO_ALLOC:
        return 0;
    case QCOW2_CLUSTER_UNALLOCATED:
        return qcow2_backing_end(image) > image->size ? copy_up(image, offset, used) : 0;
    case QCOW2_CLUSTER_DATA:
        return cluster.copied ? zero_in_place(image, &cluster) : copy_up(image, offset, used);
    default:
        return copy_up(image, offset, used);
    }
}

static int set_size(Image *image, uint64_t size)
{
    int r = qcow2_header_set_size(image, size);
    if (r == 0) {
        image->size = size;
    }
    return r;
}

static int grow(Image *image, uint64_t size)
{
    const Qcow2State *s = image->state;
    uint64_t from = align_up(image->size, s->unit), to = align_up(size, s->cluster_size);
    int r = need_l1(image, div_round_up(size, table_span(s)));
    r = r < 0 ? r : zero_last(image);
    if (s->external) { /* its end is where the disk ends: nothing may be left behind it */
        to = s->l1_size * table_span(s);
    }
    r = r < 0 ? r : qcow2_drop(image, from, to, min_u64(size, qcow2_backing_end(image)));
    r = r < 0 ? r : qcow2_data_grow(image, size);
    r = r < 0 ? r : qcow2_flush(image);
    return r < 0 ? r : set_size(image, size);
}

static bool check_growth(const Image *image, uint64_t size, GError **error)
{
    const Qcow2State *s = image->state;
    uint64_t most = QCOW2_MAX_L1_BYTES / 8 * table_span(s);
    if (size > most) {
        return error_set(error, EFBIG,
                         "%s: size is %" PRIu64 ": must be at most %" PRIu64
                         " with clusters of %" PRIu64 " bytes",
                         image->path, size, most, s->cluster_size);
    }
    if (s->header.version < 3 && qcow2_backing_end(image) > image->size) {
        return error_set(error, ENOTSUP,
                         "%s: its backing file is longer than the disk and would show: version 2 "
                         "cannot hide it",
                         image->path);
    }
    return true;
}

/* Everything that the table refers to, as a list of runs. */
static int list_table(Image *image, uint64_t l1_index, GArray *runs)
{
    const Qcow2State *s = image->state;
    uint64_t start = l1_index * table_span(s), end = start + table_span(s);
    Qcow2Cursor cursor;
    qcow2_cursor_init(&cursor, image);
    int r = 0;
    for (uint64_t at = start; r == 0 && at < end; at += s->cluster_size) {
        Qcow2Cluster cluster;
        r = qcow2_cursor_get(&cursor, at, &cluster);
        if (r == 0) {
            qcow2_run_append(runs, qcow2_cluster_run(s, &cluster));
        }
    }
    qcow2_cursor_release(&cursor);
    return r;
}

/* The L1 entry goes, with the table and all that it refers to; one that a snapshot shares loses a reference. */
static int drop_table(Image *image, uint64_t l1_index)
{
    Qcow2State *s = image->state;
    uint64_t offset;
    int r = qcow2_l2_offset(image, l1_index, &offset);
    if (r < 0 || offset == 0) {
        return r;
    }
    g_autoptr(GArray) runs = g_array_new(false, false, sizeof(Qcow2Run));
    r = list_table(image, l1_index, runs);
    if (r < 0) {
        return r;
    }
    for (guint i = 0; i < runs->len; i++) {
        qcow2_free_later(s, g_array_index(runs, Qcow2Run, i));
    }
    s->l1[l1_index] = 0;
    g_hash_table_add(s->l1_dirty, GSIZE_TO_POINTER(l1_index / QCOW2_SECTOR_ENTRIES));
    g_hash_table_remove(s->l1_new, GSIZE_TO_POINTER(l1_index));
    qcow2_metadata_remove(s, offset >> s->cluster_bits);
    metacache_forget(s->meta, offset, s->cluster_size);
    qcow2_free_later(s, (Qcow2Run){offset >> s->cluster_bits, 1});
    qcow2_update_dirty(s);
    qcow2_flush_if_full(image);
    return qcow2_may_change(image);
}

/* Frees what lies behind the end of the disk, which was at `end`. */
static int drop_rest(Image *image, uint64_t end)
{
    Qcow2State *s = image->state;
    uint64_t span = table_span(s), from = align_up(image->size, s->unit);
    uint64_t first = div_round_up(image->size, span);
    int r = 0;
    for (uint64_t i = first; r == 0 && i < div_round_up(end, span); i++) {
        r = drop_table(image, i);
    }
    uint64_t to = min_u64(align_up(end, s->cluster_size), first * span);
    r = r < 0 || from >= to ? r : qcow2_drop(image, from, to, 0);
    s->size_at_open = 0; /* also the end of the file goes */
    r = r < 0 ? r : qcow2_settle(image);
    r = r < 0 ? r : qcow2_data_cut(image);
    return r < 0 ? r : qcow2_trim(image);
}

static int shrink(Image *image, uint64_t size)
{
    uint64_t end = image->size;
    int r = set_size(image, size);
    if (r < 0) {
        return r;
    }
    r = drop_rest(image, end);
    if (r < 0) {
        log_warning("%s: is smaller now, but keeps space that it does not need: %s", image->path,
                    g_strerror(-r));
    }
    return 0;
}

bool qcow2_resize(Image *image, uint64_t size, GError **error)
{
    size = align_up(size, SECTOR); /* others count the disk in sectors and drop the rest */
    bool grows = size > image->size;
    if (!check_parts(image, error) || (grows && !check_growth(image, size, error))) {
        return false;
    }
    int r = qcow2_may_change(image);
    r = r < 0 ? r : qcow2_flush(image);
    if (r == 0 && size != image->size) {
        r = grows ? grow(image, size) : shrink(image, size);
    }
    return r == 0 || error_set_errno(error, -r, "%s: cannot make the disk %" PRIu64 " bytes",
                                     image->path, size);
}
