/*
 * qcow2: references to all that hangs on an L1 table.
 *
 *     L1 table -> L2 tables -> data
 *
 * A cluster has one reference for each way that leads to it from an L1 table, the active one's or a
 * snapshot's. A snapshot is a second L1 table with the same entries, so each L2 table below it and
 * everything below those gets one reference more; without the snapshot, one less.
 *
 * L2 tables are read from the store, whole, past the metadata cache: nothing in the cache is dirty.
 */
#include "formats/qcow2.h"

#include <stdarg.h>

#include "base/log.h"

typedef struct Walk Walk;
struct Walk {
    Image *image;
    const uint64_t *l1;
    uint32_t entries;
    int (*visit)(Walk *walk, Qcow2Run run); /* 0: go on; else the walk's answer */
    uint64_t steps;                         /* visits so far that went well */
    uint64_t limit;                         /* lowering again: where raising ended */
};

/* ---- the walk ---- */

static int damaged(const Image *image, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Not qcow2_corrupt: the damage may be a snapshot's, and the disk itself in order. */
static int damaged(const Image *image, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    log_limited(LOG_LEVEL_ERROR, "%s: %s: run check --repair=all", image->path, text);
    return -EUCLEAN;
}

/* The runs of host clusters that an L2 table refers to. */
static int table_runs(Image *image, uint64_t offset, GArray *runs)
{
    const Qcow2State *s = image->state;
    g_autofree uint8_t *table = g_try_malloc(s->cluster_size);
    int r = table != NULL ? store_read(image->store, table, s->cluster_size, offset) : -ENOMEM;
    for (uint64_t i = 0; r == 0 && i < UINT64_C(1) << s->l2_bits; i++) {
        Qcow2Entry entry = qcow2_entry_load(s, table, i);
        Qcow2Cluster cluster = qcow2_l2_decode(s, entry);
        if (cluster.type == QCOW2_CLUSTER_DAMAGED) {
            return damaged(image,
                           "entry %" PRIu64 " of the L2 table at %" PRIu64 " is 0x%" PRIx64
                           ": reserved bits, or a host offset that is not aligned",
                           i, offset, entry.word);
        }
        qcow2_run_append(runs, qcow2_cluster_run(s, &cluster));
    }
    return r;
}

/* What one L1 entry refers to: data first, for the table is needed to find it. */
static int walk_table(Walk *walk, uint64_t offset)
{
    const Qcow2State *s = walk->image->state;
    g_autoptr(GArray) runs = g_array_new(false, false, sizeof(Qcow2Run));
    int r = table_runs(walk->image, offset, runs);
    if (r == 0) {
        Qcow2Run table = {offset >> s->cluster_bits, 1};
        g_array_append_val(runs, table);
    }
    for (guint i = 0; r == 0 && i < runs->len; i++) {
        r = walk->visit(walk, g_array_index(runs, Qcow2Run, i));
        walk->steps += r == 0;
    }
    return r < 0 ? r : qcow2_make_room(walk->image);
}

static int walk_tree(Walk *walk)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < walk->entries; i++) {
        uint64_t offset = walk->l1[i] & QCOW2_OFFSET_MASK;
        if (walk->l1[i] == 0) {
            continue;
        }
        if ((walk->l1[i] & QCOW2_L1_RESERVED) || !qcow2_table_offset_ok(walk->image, offset, 1) ||
            !g_hash_table_add(seen, GSIZE_TO_POINTER(offset))) {
            return damaged(walk->image,
                           "L1 entry %u is 0x%" PRIx64
                           ": must be the aligned offset of a table inside the file, of which no "
                           "other entry makes use",
                           i, walk->l1[i]);
        }
        r = walk_table(walk, offset);
    }
    qcow2_update_dirty(walk->image->state);
    return r;
}

/* ---- what is done on the way ---- */

/* All that is referred to is in use. */
static int look(Walk *walk, Qcow2Run run)
{
    Qcow2State *s = walk->image->state;
    for (uint64_t cluster = run.first; cluster < run.first + run.count;) {
        Qcow2Piece piece;
        int r = qcow2_piece_get(walk->image, cluster, &piece);
        uint64_t end = min_u64(run.first + run.count, piece.end);
        for (; r == 0 && cluster < end; cluster++) {
            if (qcow2_piece_load(s, &piece, cluster) == 0) {
                r = damaged(walk->image, "cluster %" PRIu64 " is in use with a refcount of 0",
                            cluster);
            }
        }
        qcow2_piece_put(s, &piece);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

int qcow2_tree_look(Image *image, const uint64_t *l1, uint32_t entries)
{
    Walk walk = {.image = image, .l1 = l1, .entries = entries, .visit = look};
    return walk_tree(&walk);
}

/* Takes back what a failed step raised. */
static void lower(Image *image, Qcow2Run run)
{
    g_autoptr(GArray) zeroed = g_array_new(false, false, sizeof(Qcow2Run));
    uint64_t done;
    (void)qcow2_refcount_drop(image, run, &done, zeroed); /* at worst it leaks */
}

static int add_reference(Walk *walk, Qcow2Run run)
{
    uint64_t done;
    int r = qcow2_refcount_add(walk->image, run, &done);
    if (r < 0) {
        lower(walk->image, (Qcow2Run){run.first, done});
    }
    return r;
}

static int lower_again(Walk *walk, Qcow2Run run)
{
    if (walk->steps == walk->limit) {
        return -ECANCELED;
    }
    lower(walk->image, run);
    return 0;
}

int qcow2_tree_reference(Image *image, const uint64_t *l1, uint32_t entries)
{
    Walk walk = {.image = image, .l1 = l1, .entries = entries, .visit = add_reference};
    int r = walk_tree(&walk);
    if (r < 0) {
        Walk back = {.image = image,
                     .l1 = l1,
                     .entries = entries,
                     .visit = lower_again,
                     .limit = walk.steps};
        (void)walk_tree(&back);
    }
    return r;
}

static int release(Walk *walk, Qcow2Run run)
{
    Qcow2State *s = walk->image->state;
    /* The cache may hold an L2 table; its space will have another use. */
    metacache_forget(s->meta, run.first << s->cluster_bits, run.count << s->cluster_bits);
    qcow2_run_append(s->unmapped, run);
    return 0;
}

int qcow2_tree_release(Image *image, const uint64_t *l1, uint32_t entries)
{
    Walk walk = {.image = image, .l1 = l1, .entries = entries, .visit = release};
    return walk_tree(&walk);
}

/* ---- COPIED ---- */

/* Refcounts are asked for in the order of the file, mostly: the last block is kept pinned. */
typedef struct Mend {
    Image *image;
    Qcow2Piece piece;
} Mend;

/* The entry with COPIED as the refcount of its cluster says. */
static int mended_entry(Mend *mend, uint64_t entry, uint64_t *mended)
{
    Qcow2State *s = mend->image->state;
    uint64_t cluster = (entry & QCOW2_OFFSET_MASK) >> s->cluster_bits;
    if (cluster < mend->piece.first || cluster >= mend->piece.end) {
        qcow2_piece_put(s, &mend->piece);
        int r = qcow2_piece_get(mend->image, cluster, &mend->piece);
        if (r < 0) {
            return r;
        }
    }
    bool own = qcow2_piece_load(s, &mend->piece, cluster) == 1;
    *mended = own ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED;
    return 0;
}

static int mend_piece(Mend *mend, uint64_t l2_offset, uint64_t index)
{
    Qcow2State *s = mend->image->state;
    MetaBlock *block;
    uint64_t first;
    bool changed = false;
    int r = qcow2_l2_get(mend->image, l2_offset, index, &block, &first);
    if (r < 0) {
        return r;
    }
    for (uint64_t i = 0; r == 0 && i < s->meta_size; i += s->entry_size) {
        uint64_t entry = load_be64(block->data + i), mended = entry;
        if (!(entry & QCOW2_COMPRESSED) && (entry & QCOW2_OFFSET_MASK) != 0) {
            r = mended_entry(mend, entry, &mended);
        }
        if (mended != entry) {
            store_be64(block->data + i, mended);
            changed = true;
        }
    }
    if (changed) {
        metacache_dirty(s->meta, block, META_SECOND);
    }
    metacache_put(s->meta, block);
    return r;
}

static int mend_table(Mend *mend, uint64_t l1_index, uint64_t l2_offset)
{
    Qcow2State *s = mend->image->state;
    uint64_t entries = UINT64_C(1) << s->l2_bits, per_piece = qcow2_entries_per_piece(s), mended;
    int r = mended_entry(mend, s->l1[l1_index], &mended);
    if (r == 0 && mended != s->l1[l1_index]) {
        s->l1[l1_index] = mended;
        g_hash_table_add(s->l1_dirty, GSIZE_TO_POINTER(l1_index / QCOW2_SECTOR_ENTRIES));
    }
    for (uint64_t index = 0; r == 0 && index < entries; index += per_piece) {
        r = mend_piece(mend, l2_offset, index);
    }
    qcow2_piece_put(s, &mend->piece); /* a flush may come */
    mend->piece = (Qcow2Piece){.block = NULL};
    return r < 0 ? r : qcow2_make_room(mend->image);
}

int qcow2_tree_mend_copied(Image *image)
{
    Qcow2State *s = image->state;
    Mend mend = {.image = image};
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < s->l1_size; i++) {
        uint64_t offset;
        r = qcow2_l2_offset(image, i, &offset);
        if (r == 0 && offset != 0) {
            r = mend_table(&mend, i, offset);
        }
    }
    qcow2_piece_put(s, &mend.piece);
    qcow2_update_dirty(s);
    return r;
}
