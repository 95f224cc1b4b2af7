/*
 * qcow2: the search for free clusters.
 *
 *     0        gap_hint                        used_end
 *     | all used | used and free, to be searched | all free ...
 *
 * Gaps are taken in the order in which they lie, then the end of the file. So the hint only moves
 * forward, except when space is freed below it, and the search costs O(1) for each cluster over
 * time. One search reads at most GAP_BUDGET bytes of refcounts: on a large full image the first
 * writes go to the end while the hint catches up.
 *
 * A cluster that waits for its unmapping to be durable still has its refcount (qcow2-flush.c), so
 * it is never found here: that is the quarantine (ARCHITECTURE, what a crash may do, rule 3).
 *
 * Whatever refcounts say, clusters where metadata lies are never handed out: an image whose
 * refcounts are wrong must not lose its tables, too.
 */
#include "formats/qcow2.h"

#include "base/log.h"

#define GAP_BUDGET    (256u << 10)
#define FREE_FLUSHES  2 /* from "freed" to "free" (qcow2-flush.c) */
#define GROW_STEP_MIN (UINT64_C(1) << 20)
#define GROW_STEP_MAX (UINT64_C(16) << 20)

/* ---- where metadata lies ---- */

static bool runs_meet(Qcow2Run run, uint64_t offset, uint64_t bytes, uint32_t cluster_bits)
{
    if (bytes == 0) {
        return false;
    }
    uint64_t first = offset >> cluster_bits, last = (offset + bytes - 1) >> cluster_bits;
    return run.first <= last && first < run.first + run.count;
}

/* The first place in the sorted index whose cluster is not below `cluster`. */
static guint lower_bound(const GArray *index, uint64_t cluster)
{
    guint low = 0, high = index->len;
    while (low < high) {
        guint middle = low + (high - low) / 2;
        if (g_array_index(index, uint64_t, middle) < cluster) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

bool qcow2_overlaps_metadata(const Image *image, Qcow2Run run)
{
    const Qcow2State *s = image->state;
    const Qcow2Header *h = &s->header;
    uint32_t bits = s->cluster_bits;
    if (run.first == 0 || runs_meet(run, h->l1_table_offset, (uint64_t)s->l1_size * 8, bits) ||
        runs_meet(run, s->table_offset, s->table_entries * 8, bits) ||
        runs_meet(run, h->snapshots_offset, s->snapshot_table_bytes, bits) ||
        runs_meet(run, s->luks_offset, s->luks_length, bits)) {
        return true;
    }
    for (guint i = 0; i < s->snapshots->len; i++) {
        const Qcow2Snapshot *snapshot = &g_array_index(s->snapshots, Qcow2Snapshot, i);
        if (runs_meet(run, snapshot->l1_table_offset, (uint64_t)snapshot->l1_size * 8, bits)) {
            return true;
        }
    }
    guint at = lower_bound(s->metadata, run.first);
    return at < s->metadata->len &&
           g_array_index(s->metadata, uint64_t, at) < run.first + run.count;
}

void qcow2_metadata_add(Qcow2State *s, uint64_t cluster)
{
    g_array_insert_val(s->metadata, lower_bound(s->metadata, cluster), cluster);
}

void qcow2_metadata_remove(Qcow2State *s, uint64_t cluster)
{
    guint at = lower_bound(s->metadata, cluster);
    if (at < s->metadata->len && g_array_index(s->metadata, uint64_t, at) == cluster) {
        g_array_remove_index(s->metadata, at);
    }
}

static gint compare_clusters(gconstpointer a, gconstpointer b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

void qcow2_metadata_index(Image *image)
{
    Qcow2State *s = image->state;
    g_array_set_size(s->metadata, 0);
    for (uint64_t i = 0; i < s->l1_size; i++) {
        uint64_t cluster = (s->l1[i] & QCOW2_OFFSET_MASK) >> s->cluster_bits;
        if (cluster != 0) {
            g_array_append_val(s->metadata, cluster);
        }
    }
    for (uint64_t i = 0; i < s->table_count; i++) {
        uint64_t cluster = s->table[i] >> s->cluster_bits;
        if (cluster != 0) {
            g_array_append_val(s->metadata, cluster);
        }
    }
    g_array_sort(s->metadata, compare_clusters);
}

bool qcow2_metadata_is_shared(const Qcow2State *s, uint64_t *cluster)
{
    for (guint i = 1; i < s->metadata->len; i++) {
        *cluster = g_array_index(s->metadata, uint64_t, i);
        if (*cluster == g_array_index(s->metadata, uint64_t, i - 1)) {
            return true;
        }
    }
    return false;
}

/* ---- the state of space ---- */

/* One past the last cluster that a refcount block says is in use. 0 when it describes none. */
static int last_used(Image *image, uint64_t region, uint64_t *end)
{
    Qcow2State *s = image->state;
    uint64_t first = region << s->block_bits, at = (region + 1) << s->block_bits;
    *end = 0;
    while (at > first && *end == 0) {
        Qcow2Piece piece;
        int r = qcow2_piece_get(image, at - 1, &piece);
        if (r < 0) {
            return r;
        }
        while (at > piece.first && qcow2_piece_load(s, &piece, at - 1) == 0) {
            at--;
        }
        *end = at > piece.first ? at : 0;
        at = piece.first;
        qcow2_piece_put(s, &piece);
    }
    return 0;
}

int qcow2_space_scan(Image *image)
{
    Qcow2State *s = image->state;
    uint64_t end = 0;
    for (uint64_t region = s->table_count; region > 0 && end == 0; region--) {
        int r = s->table[region - 1] != 0 ? last_used(image, region - 1, &end) : 0;
        if (r < 0) {
            return r;
        }
    }
    s->used_end = max_u64(end, 1);
    if (s->gap_hint > s->used_end) {
        s->gap_hint = s->used_end;
    }
    s->space_known = true;
    return 0;
}

void qcow2_space_freed(Qcow2State *s, uint64_t cluster)
{
    s->gap_hint = min_u64(s->gap_hint, cluster);
    if (s->packed_end >> s->cluster_bits == cluster) {
        s->packed_end = 0;
    }
}

void qcow2_space_used(Qcow2State *s, Qcow2Run run)
{
    uint64_t end = run.first + run.count;
    if (s->gap_hint >= run.first && s->gap_hint < end) {
        s->gap_hint = end;
    }
    s->used_end = max_u64(s->used_end, end);
    s->fresh_start = max_u64(s->fresh_start, end << s->cluster_bits);
}

void qcow2_run_append(GArray *runs, Qcow2Run run)
{
    if (runs->len > 0) {
        Qcow2Run *last = &g_array_index(runs, Qcow2Run, runs->len - 1);
        if (last->first + last->count == run.first) {
            last->count += run.count;
            return;
        }
    }
    if (run.count > 0) {
        g_array_append_val(runs, run);
    }
}

int qcow2_write_zeroes(Image *image, uint64_t offset)
{
    Qcow2State *s = image->state;
    uint64_t length = s->cluster_size;
    metacache_forget(s->meta, offset, length);
    g_autofree uint8_t *zeroes = g_try_malloc0(length);
    return zeroes != NULL ? store_write(image->store, zeroes, length, offset) : -ENOMEM;
}

/* Grows in steps, so that a file is not grown for each cluster; what is too much is cut off by
 * finish. */
static int grow_store(Image *image, uint64_t end)
{
    uint64_t size = store_size(image->store), step = GROW_STEP_MIN;
    if (end <= size) {
        return 0;
    }
    while (step < GROW_STEP_MAX && step * 16 < size) {
        step *= 2;
    }
    int r = store_truncate(image->store, align_up(end, step));
    if (r < 0) {
        r = store_truncate(image->store, end);
    }
    return r == -ENOTSUP || r == -EINVAL ? -ENOSPC : r; /* a block device has the size it has */
}

/* Nothing was ever written beyond fresh_start; before it, the store may know of a hole. */
static bool is_fresh(const Image *image, Qcow2Run run)
{
    const Qcow2State *s = image->state;
    uint64_t offset = run.first << s->cluster_bits, length = run.count << s->cluster_bits, hole;
    bool data;
    return offset >= s->fresh_start ||
           (store_next_data(image->store, offset, length, &data, &hole) == 0 && !data &&
            hole >= length);
}

int qcow2_space_prepare(Image *image, Qcow2Run run, bool *fresh)
{
    const Qcow2State *s = image->state;
    uint64_t end;
    if (!add_u64(run.first, run.count, &end) || end > QCOW2_MAX_HOST_OFFSET >> s->cluster_bits) {
        return -EFBIG;
    }
    if (qcow2_overlaps_metadata(image, run)) {
        return qcow2_corrupt(image,
                             "clusters %" PRIu64 " to %" PRIu64
                             " hold metadata, but their refcounts say that they are free",
                             run.first, end - 1);
    }
    int r = grow_store(image, end << s->cluster_bits);
    if (r == 0) {
        *fresh = is_fresh(image, run);
    }
    return r;
}

/* ---- the search ---- */

/* Looks through one piece from *cluster on; true when the run is complete. */
static bool search_piece(const Qcow2State *s, const Qcow2Piece *piece, uint64_t *cluster,
                         uint64_t want, Qcow2Run *run)
{
    uint64_t end = min_u64(piece->end, s->used_end);
    for (; *cluster < end; (*cluster)++) {
        bool is_free = qcow2_piece_load(s, piece, *cluster) == 0;
        if (is_free && run->count++ == 0) {
            run->first = *cluster;
        }
        if ((!is_free && run->count > 0) || run->count == want) {
            return true;
        }
    }
    /* Where no block describes the clusters, the run ends: each block is made on its own. */
    return piece->block == NULL;
}

/* The first gap, at most `want` clusters of it; count 0 when there is none within the budget. */
static int find_gap(Image *image, uint64_t want, uint64_t budget, Qcow2Run *run)
{
    Qcow2State *s = image->state;
    uint64_t cluster = s->gap_hint;
    bool complete = false;
    *run = (Qcow2Run){0, 0};
    for (uint64_t read = 0; !complete && cluster < s->used_end && read < budget;
         read += s->meta_size) {
        Qcow2Piece piece;
        int r = qcow2_piece_get(image, cluster, &piece);
        if (r < 0) {
            return r;
        }
        if (piece.block != NULL || run->count == 0) {
            complete = search_piece(s, &piece, &cluster, want, run);
        } else {
            complete = true;
        }
        qcow2_piece_put(s, &piece);
        if (run->count == 0) {
            s->gap_hint = cluster;
        }
    }
    return 0;
}

/* Takes a run of free clusters; *made: not yet, a refcount block was made first, perhaps in it. */
static int take(Image *image, Qcow2Run run, bool *fresh, bool *made)
{
    Qcow2State *s = image->state;
    int r = qcow2_refcount_need_block(image, run.first, made);
    if (r < 0 || *made) {
        return r;
    }
    r = qcow2_space_prepare(image, run, fresh);
    if (r == 0) {
        r = qcow2_refcount_raise(image, run);
    }
    if (r == 0) {
        qcow2_space_used(s, run);
    }
    return r;
}

/* The run at the end of the file, as far as one refcount block reaches. */
static Qcow2Run end_run(const Qcow2State *s, uint64_t want)
{
    uint64_t region_end = ((s->used_end >> s->block_bits) + 1) << s->block_bits;
    return (Qcow2Run){s->used_end, min_u64(want, region_end - s->used_end)};
}

/* The file cannot grow: is it worth to look again? With all of the file in the budget, or after a
 * flush that brings freed clusters nearer to their next use. 0: look again; or the -errno to
 * report. */
static int look_harder(Image *image, int r, uint64_t *budget, unsigned *flushes)
{
    const Qcow2State *s = image->state;
    if (r != -ENOSPC && r != -EFBIG) {
        return r;
    }
    if (*budget != UINT64_MAX && s->gap_hint < s->used_end) {
        *budget = UINT64_MAX;
        return 0;
    }
    if (*flushes > 0 && (s->freed->len > 0 || s->unmapped->len > 0)) {
        (*flushes)--;
        return qcow2_flush(image);
    }
    return r;
}

int qcow2_alloc_run(Image *image, uint64_t want, Qcow2Run *run, bool *fresh)
{
    Qcow2State *s = image->state;
    uint64_t budget = GAP_BUDGET;
    unsigned flushes = FREE_FLUSHES;
    int r = s->space_known ? 0 : qcow2_space_scan(image);
    bool made = true;
    while (r == 0 && made) {
        r = find_gap(image, want, budget, run);
        if (r < 0) {
            break;
        }
        bool at_end = run->count == 0;
        if (at_end) {
            *run = end_run(s, want);
        }
        r = take(image, *run, fresh, &made);
        if (at_end && r < 0) {
            r = look_harder(image, r, &budget, &flushes);
            made = true;
        }
    }
    return r < 0 ? r : s->broken;
}

void qcow2_alloc_return(Image *image, Qcow2Run run)
{
    if (run.count == 0) {
        return;
    }
    Qcow2State *s = image->state;
    g_autoptr(GArray) zeroed = g_array_new(false, false, sizeof(Qcow2Run));
    uint64_t done;
    int r = qcow2_refcount_drop(image, run, &done, zeroed);
    if (r < 0) {
        log_limited(LOG_LEVEL_WARNING, "%s: %" PRIu64 " clusters at cluster %" PRIu64 " leak: %s",
                    image->path, run.count - done, run.first + done, g_strerror(-r));
    }
    qcow2_update_dirty(s);
}
