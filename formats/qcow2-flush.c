/*
 * qcow2: flush, in the order that a crash needs, and the end of writing.
 *
 *     lower the refcounts of what the last flush unmapped, punch those clusters
 *     phase 1   refcount blocks, new L2 tables ..................... sync (also the guest's data)
 *               a changed refcount table (rare) .................... sync
 *     phase 2   L2 entries, L1 entries ............................. sync
 *               what these replaced is now unmapped on the disk
 *
 * So a cluster that is freed goes through two flushes, and has its refcount until the second one
 * lowers it:
 *
 *     in use --commit, unmap--> freed --flush--> unmapped
 *            --next flush, before phase 1--> refcount 0 --its first sync--> free
 *
 * No change runs beside a flush, so nobody can take the cluster between "refcount 0" and the sync.
 * It was punched before that sync, so whoever takes it finds zeroes.
 *
 * A failure leaves all that was not written as dirty as it was, and a flush begins again from the
 * start: the sync of phase 1 comes before anything of phase 2, so a retry keeps the order, too.
 *
 * We never set the dirty bit, also where lazy refcounts are on: it would allow refcounts to be
 * wrong on the disk, and with refcounts written once a flush there is nothing to gain.
 */
#include "formats/qcow2-bitmap.h"

#include "base/log.h"

#define FREED_RUNS_MAX 65536 /* 1 MiB of runs: then the queue is flushed */
#define SETTLE_FLUSHES 4     /* a free needs two, a moved table three */
#define SECTOR         512

void qcow2_update_dirty(Qcow2State *s)
{
    s->dirty = metacache_has_dirty(s->meta, META_FIRST) ||
               metacache_has_dirty(s->meta, META_SECOND) || g_hash_table_size(s->l1_dirty) > 0 ||
               g_hash_table_size(s->table_dirty) > 0 ||
               s->table_offset != s->header.refcount_table_offset || s->freed->len > 0 ||
               s->unmapped->len > 0 || s->second_pending;
}

bool qcow2_is_dirty(const Image *image)
{
    return qcow2_state(image)->dirty;
}

void qcow2_free_later(Qcow2State *s, Qcow2Run run)
{
    qcow2_run_append(s->freed, run);
}

static void punch(Image *image, const GArray *runs)
{
    const Qcow2State *s = image->state;
    for (guint i = 0; i < runs->len; i++) {
        Qcow2Run run = g_array_index(runs, Qcow2Run, i);
        int r = store_punch(image->store, run.first << s->cluster_bits,
                            run.count << s->cluster_bits, STORE_PUNCH_FREE);
        if (r < 0 && r != -ENOTSUP) { /* it only costs space */
            log_limited(LOG_LEVEL_WARNING, "%s: cannot punch a hole: %s", image->path,
                        g_strerror(-r));
        }
    }
}

static gint compare_runs_downwards(gconstpointer a, gconstpointer b)
{
    const Qcow2Run *x = a, *y = b;
    return x->first > y->first ? -1 : x->first < y->first;
}

/* Lowers the refcounts of what no table on the disk refers to any more. */
static int drop_unmapped(Image *image)
{
    Qcow2State *s = image->state;
    g_autoptr(GArray) zeroed = g_array_new(false, false, sizeof(Qcow2Run));
    int r = 0;
    /* Taken from its end, so in the order of the file: neighbours are punched together. */
    g_array_sort(s->unmapped, compare_runs_downwards);
    while (r == 0 && s->unmapped->len > 0) {
        Qcow2Run *run = &g_array_index(s->unmapped, Qcow2Run, s->unmapped->len - 1);
        uint64_t done;
        r = qcow2_refcount_drop(image, *run, &done, zeroed);
        run->first += done;
        run->count -= done;
        if (run->count == 0) {
            g_array_set_size(s->unmapped, s->unmapped->len - 1);
        }
    }
    punch(image, zeroed);
    return r;
}

/* Writes the given sectors of a table whose first `count` entries are in memory and whose space
 * holds `size`. */
static int write_sectors(Image *image, GHashTable *sectors, const uint64_t *table, uint64_t count,
                         uint64_t size, uint64_t table_offset)
{
    GHashTableIter iter;
    gpointer key;
    int r = 0;
    g_hash_table_iter_init(&iter, sectors);
    while (r == 0 && g_hash_table_iter_next(&iter, &key, NULL)) {
        uint64_t first = GPOINTER_TO_SIZE(key) * QCOW2_SECTOR_ENTRIES;
        uint64_t n = min_u64(QCOW2_SECTOR_ENTRIES, size - first);
        uint8_t sector[SECTOR] = {0};
        for (uint64_t i = 0; i < n && first + i < count; i++) {
            store_be64(sector + i * 8, table[first + i]);
        }
        r = store_write(image->store, sector, n * 8, table_offset + first * 8);
    }
    return r;
}

static bool table_moved(const Qcow2State *s)
{
    return s->table_offset != s->header.refcount_table_offset;
}

/* The whole refcount table to its new place, where nothing points to yet. */
static int write_whole_table(Image *image)
{
    Qcow2State *s = image->state;
    uint64_t bytes = s->table_entries * 8;
    g_autofree uint8_t *table = g_try_malloc0(bytes);
    if (table == NULL) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < s->table_count; i++) {
        store_be64(table + i * 8, s->table[i]);
    }
    return store_write(image->store, table, bytes, s->table_offset);
}

/* Points the header to the new table; the old one is then unmapped. */
static int move_table(Image *image)
{
    Qcow2State *s = image->state;
    uint64_t old = s->header.refcount_table_offset >> s->cluster_bits;
    uint64_t old_clusters = s->header.refcount_table_clusters;
    uint64_t clusters = s->table_entries * 8 >> s->cluster_bits;
    int r = qcow2_header_set_refcount_table(image, s->table_offset, clusters);
    if (r == 0) {
        qcow2_run_append(s->unmapped, (Qcow2Run){old, old_clusters});
    }
    return r;
}

static int phase_one(Image *image)
{
    Qcow2State *s = image->state;
    int r = metacache_write(s->meta, META_FIRST);
    if (r == 0 && table_moved(s)) {
        r = write_whole_table(image);
    }
    if (r == 0) {
        r = qcow2_sync(image);
    }
    if (r < 0 || (!table_moved(s) && g_hash_table_size(s->table_dirty) == 0)) {
        return r;
    }
    /* Blocks are durable: the table may point to them. It must, before an L2 entry needs them. */
    if (table_moved(s)) {
        r = move_table(image);
    } else {
        r = write_sectors(image, s->table_dirty, s->table, s->table_count, s->table_entries,
                          s->table_offset);
        r = r < 0 ? r : store_sync(image->store);
    }
    if (r == 0) {
        g_hash_table_remove_all(s->table_dirty);
    }
    return r;
}

static int phase_two(Image *image)
{
    Qcow2State *s = image->state;
    if (!metacache_has_dirty(s->meta, META_SECOND) && g_hash_table_size(s->l1_dirty) == 0 &&
        s->freed->len == 0 && !s->second_pending) {
        return 0;
    }
    /* From the first write on the disk may point to the new tables, also when this fails. */
    s->second_pending = true;
    g_hash_table_remove_all(s->l1_new);
    int r = metacache_write(s->meta, META_SECOND);
    if (r == 0) {
        r = write_sectors(image, s->l1_dirty, s->l1, s->l1_size, s->l1_size,
                          s->header.l1_table_offset);
    }
    if (r == 0) {
        r = store_sync(image->store);
    }
    if (r < 0) {
        return r;
    }
    s->second_pending = false;
    g_hash_table_remove_all(s->l1_dirty);
    for (guint i = 0; i < s->freed->len; i++) {
        qcow2_run_append(s->unmapped, g_array_index(s->freed, Qcow2Run, i));
    }
    g_array_set_size(s->freed, 0);
    return 0;
}

int qcow2_flush(Image *image)
{
    Qcow2State *s = image->state;
    if (s->corrupt && !image->repair) {
        return -EIO;
    }
    int r = s->broken;
    if (r == 0) {
        r = drop_unmapped(image);
    }
    if (r == 0) {
        r = phase_one(image);
    }
    if (r == 0) {
        r = phase_two(image);
    }
    if (r == 0) {
        s->write_error = 0;
    } else {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot write metadata: %s", image->path, g_strerror(-r));
    }
    qcow2_update_dirty(s);
    return r;
}

static bool is_full(const Qcow2State *s)
{
    return metacache_is_full(s->meta) || s->freed->len > FREED_RUNS_MAX ||
           s->unmapped->len > FREED_RUNS_MAX;
}

void qcow2_flush_if_full(Image *image)
{
    Qcow2State *s = image->state;
    if (is_full(s)) {
        s->write_error = qcow2_flush(image);
    }
}

int qcow2_make_room(Image *image)
{
    return is_full(image->state) ? qcow2_flush(image) : 0;
}

/* What was grown ahead of need. What the file had when it was opened is left alone. */
int qcow2_trim(Image *image)
{
    Qcow2State *s = image->state;
    if (store_size(image->store) <= s->size_at_open) {
        return 0;
    }
    int r = qcow2_space_scan(image);
    uint64_t end = max_u64(s->size_at_open, s->used_end << s->cluster_bits);
    if (r < 0 || end >= store_size(image->store)) {
        return r;
    }
    r = store_truncate(image->store, end);
    return r < 0 ? r : store_sync(image->store);
}

int qcow2_settle(Image *image)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < SETTLE_FLUSHES && qcow2_is_dirty(image); i++) {
        r = qcow2_flush(image);
    }
    return r;
}

int qcow2_finish(Image *image)
{
    int r = qcow2_settle(image);
    r = r < 0 ? r : qcow2_bitmaps_store(image);
    return r < 0 ? r : qcow2_trim(image);
}
