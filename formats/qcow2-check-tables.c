/*
 * qcow2 check: L1 and L2 tables.
 *
 * L1 entries of all snapshots are gathered first; most point to the same L2 tables. Each L2 table
 * is then read once, in the order of the file, and what it refers to is counted as often as L1
 * entries point to it. So the work is bounded by the tables that exist, not by snapshots times
 * tables.
 */
#include "formats/qcow2-check.h"

#define READ_AT_ONCE (1u << 20)
#define L1_PIECE     (1u << 16)

/* ---- one entry ---- */

CheckVerdict check_l1_entry(const Qcow2Check *check, uint64_t entry)
{
    CheckVerdict verdict = {.mended.word = entry & ~QCOW2_L1_RESERVED};
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    if (entry == 0) {
        return verdict;
    }
    if (offset == 0) {
        verdict.reason = "points to no table";
    } else if (offset % check->cluster_size != 0) {
        verdict.reason = "points into the middle of a cluster";
    } else if (!check_range_ok(check, offset, check->cluster_size)) {
        verdict.reason = "points behind the end of the file";
    }
    if (verdict.reason) {
        verdict.mended.word = 0;
        verdict.lost = offset != 0;
    } else if (entry & QCOW2_L1_RESERVED) {
        verdict.reason = "has reserved bits set";
    }
    return verdict;
}

/* What cannot be found reads as zeroes, not as what a backing has. */
static CheckVerdict lost_entry(const Qcow2Check *check, const char *reason)
{
    const Qcow2State *s = check->s;
    Qcow2Entry zero = {.word = s->header.version >= 3 ? QCOW2_ZERO : 0};
    if (s->extended) {
        zero = (Qcow2Entry){.bitmap = qcow2_subcluster_bitmap(0, QCOW2_SUBCLUSTERS_ALL)};
    }
    return (CheckVerdict){.mended = zero, .reason = reason, .lost = true};
}

static CheckVerdict compressed_entry(const Qcow2Check *check, Qcow2Entry entry)
{
    CheckVerdict verdict = {.mended.word = entry.word & ~QCOW2_COPIED};
    Qcow2Cluster cluster = qcow2_l2_decode(check->s, verdict.mended);
    if (check->s->external) {
        return lost_entry(check, "is compressed, in an image with a data file");
    }
    if (cluster.type != QCOW2_CLUSTER_COMPRESSED) {
        return lost_entry(check, "is compressed, at an impossible offset");
    }
    if (!check_range_ok(check, cluster.host, cluster.stored_length)) {
        return lost_entry(check, "is compressed, behind the end of the file");
    }
    if (entry.word & QCOW2_COPIED) {
        verdict.reason = "is compressed and says COPIED";
    } else if (entry.bitmap != 0) {
        verdict.reason = "is compressed and has subclusters";
    }
    return verdict;
}

static bool is_placed(const Qcow2Check *check, uint64_t word)
{
    return (word & QCOW2_OFFSET_MASK) != 0 || (check->s->external && (word & QCOW2_COPIED));
}

/* Both bits of a part: its data is there, so it is not given up. */
static void check_bitmap(CheckVerdict *verdict, bool placed)
{
    uint32_t allocated = verdict->mended.bitmap;
    uint32_t zero = verdict->mended.bitmap >> QCOW2_SUBCLUSTERS;
    if (allocated != 0 && !placed) {
        verdict->reason = "has allocated subclusters, but no cluster";
        verdict->mended.bitmap = qcow2_subcluster_bitmap(0, zero | allocated);
        verdict->lost = true;
    } else if (allocated & zero) {
        verdict->reason = "has subclusters that are both allocated and zero";
        verdict->mended.bitmap = qcow2_subcluster_bitmap(allocated, zero & ~allocated);
    }
}

/* Where a standard entry points to: NULL, or what is wrong with that. */
static const char *check_place(const Qcow2Check *check, const CheckTable *table, uint64_t index,
                               uint64_t word)
{
    const Qcow2State *s = check->s;
    uint64_t offset = word & QCOW2_OFFSET_MASK;
    if (offset % check->cluster_size != 0) {
        return "points into the middle of a cluster";
    }
    if (!s->external) {
        bool good = offset == 0 || check_range_ok(check, offset, check->cluster_size);
        return good ? NULL : "points behind the end of the file";
    }
    if (offset == 0 && !(word & QCOW2_COPIED)) {
        return NULL;
    }
    if (offset >> s->cluster_bits != check_guest_cluster(check, table, index)) {
        return "is not at its guest offset in the data file";
    }
    /* What a cut left behind the end of the disk is dropped when that grows: the file need not have it. */
    bool is_there = offset < store_size(s->data) || offset >= check->image->size;
    return is_there ? NULL : "points behind the end of the data file";
}

CheckVerdict check_l2_entry(const Qcow2Check *check, const CheckTable *table, uint64_t index,
                            Qcow2Entry entry)
{
    if (entry.word & QCOW2_COMPRESSED) {
        return compressed_entry(check, entry);
    }
    const char *misplaced = check_place(check, table, index, entry.word);
    if (misplaced) {
        return lost_entry(check, misplaced);
    }
    CheckVerdict verdict = {
        .mended = {entry.word & ~qcow2_l2_reserved(check->s), entry.bitmap},
    };
    if (entry.word & qcow2_l2_reserved(check->s)) {
        verdict.reason = "has reserved bits set";
    }
    check_bitmap(&verdict, is_placed(check, entry.word));
    return verdict;
}

char *check_entry_text(const Qcow2Check *check, Qcow2Entry entry)
{
    return check->s->extended
               ? g_strdup_printf("0x%" PRIx64 " with bitmap 0x%" PRIx64, entry.word, entry.bitmap)
               : g_strdup_printf("0x%" PRIx64, entry.word);
}

/* ---- L1 ---- */

/* A flag that says "refcount is exactly one" where it is not, or the other way round. */
static void check_copied(Qcow2Check *check, const char *what, uint64_t entry, uint64_t refcount,
                         uint64_t times)
{
    if ((refcount == 1) != ((entry & QCOW2_COPIED) != 0)) {
        check->bad_copied += times;
        check_corruption(check, times,
                         "ERROR OFLAG_COPIED %s: entry=0x%" PRIx64 " refcount=%" PRIu64, what,
                         entry, refcount);
    }
}

static void scan_l1_entry(Qcow2Check *check, uint64_t at, uint32_t index, uint64_t entry,
                          bool active)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    CheckVerdict verdict = check_l1_entry(check, entry);
    if (verdict.reason) {
        check->bad_entries++;
        check_corruption(check, 1, "ERROR L1 entry at %" PRIu64 " is 0x%" PRIx64 ": %s", at, entry,
                         verdict.reason);
    }
    if (active && offset != 0) {
        check_copied(check, "L2 table", entry, check_found(check, offset >> check->s->cluster_bits),
                     1);
    }
    if (verdict.mended.word != 0) {
        CheckTable table = {
            .offset = offset,
            .l1_index = index,
            .references = 1,
            .active = active,
        };
        g_array_append_val(check->tables, table);
    }
}

void check_collect_l1(Qcow2Check *check, uint64_t offset, uint32_t entries, bool active)
{
    uint64_t length = (uint64_t)entries * 8;
    check->table_bytes += length;
    if (check->table_bytes > check->counts.limit) { /* tables that lie on top of each other */
        check_error(check,
                    "ERROR L1 table at %" PRIu64 ": the L1 tables are too large for the file",
                    offset);
        return;
    }
    g_autofree uint8_t *piece = g_malloc(min_u64(length, L1_PIECE));
    for (uint64_t done = 0; done < length; done += L1_PIECE) {
        uint64_t n = min_u64(length - done, L1_PIECE);
        int result = store_read(check->store, piece, n, offset + done);
        if (result < 0) {
            check_error(check, "ERROR L1 table at %" PRIu64 ": %s", offset, g_strerror(-result));
            return;
        }
        for (uint64_t i = 0; i < n; i += 8) {
            uint64_t entry = load_be64(piece + i);
            if (entry != 0) {
                scan_l1_entry(check, offset + done + i, (done + i) / 8, entry, active);
            }
        }
    }
}

static int compare_tables(gconstpointer a, gconstpointer b)
{
    const CheckTable *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Each table once, with the sum of its references. */
void check_sort_tables(Qcow2Check *check)
{
    GArray *tables = check->tables;
    g_array_sort(tables, compare_tables);
    unsigned kept = 0;
    for (unsigned i = 0; i < tables->len; i++) {
        const CheckTable *table = &g_array_index(tables, CheckTable, i);
        CheckTable *last = kept ? &g_array_index(tables, CheckTable, kept - 1) : NULL;
        if (last && last->offset == table->offset) {
            last->references += table->references;
            last->active += table->active;
        } else {
            g_array_index(tables, CheckTable, kept++) = *table;
        }
    }
    g_array_set_size(tables, kept);
}

/* ---- L2 ---- */

bool check_only_table(Qcow2Check *check, const CheckTable *table)
{
    return counts_wanted(&check->counts, table->offset >> check->s->cluster_bits) ==
           table->references;
}

static void scan_compressed(Qcow2Check *check, const CheckTable *table, uint64_t word)
{
    Qcow2Cluster cluster = qcow2_l2_decode(check->s, (Qcow2Entry){.word = word});
    if (cluster.type != QCOW2_CLUSTER_COMPRESSED) {
        return;
    }
    if (check_range_ok(check, cluster.host, cluster.stored_length)) {
        check_count(check, cluster.host, cluster.stored_length, table->references);
    }
    check->result->allocated_clusters += table->active;
    check->result->compressed_clusters += table->active;
    check->result->fragmented_clusters += table->active; /* by nature */
}

/* *next: where the cluster after the last one would lie, if data were in one piece; 0: not known. */
static void scan_standard(Qcow2Check *check, const CheckTable *table, uint64_t entry,
                          uint64_t *next)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    if (!is_placed(check, entry)) {
        return;
    }
    check->result->allocated_clusters += table->active;
    if (*next != 0 && *next != offset) {
        check->result->fragmented_clusters += table->active;
    }
    *next = offset + check->cluster_size;
    if (!check->s->external && check_range_ok(check, offset, check->cluster_size)) {
        check_count(check, offset, check->cluster_size, table->references);
    }
    if (table->active > 0) {
        /* Nothing counts what lies in a data file: it is the disk's alone. */
        uint64_t refcount =
            check->s->external ? 1 : check_found(check, offset >> check->s->cluster_bits);
        check_copied(check, "data cluster", entry, refcount, table->active);
    }
}

static bool scan_table(Qcow2Check *check, const CheckTable *table, uint8_t *entries, void *opaque)
{
    uint64_t next = 0;
    for (uint64_t i = 0; i < check_table_entries(check); i++) {
        Qcow2Entry entry = qcow2_entry_load(check->s, entries, i);
        if (entry.word == 0 && entry.bitmap == 0) {
            continue;
        }
        CheckVerdict verdict = check_l2_entry(check, table, i, entry);
        if (verdict.reason) {
            g_autofree char *text = check_entry_text(check, entry);
            check->bad_entries++;
            check_corruption(check, table->references, "ERROR L2 entry at %" PRIu64 " is %s: %s",
                             table->offset + i * check->s->entry_size, text, verdict.reason);
        }
        if (entry.word & QCOW2_COMPRESSED) {
            scan_compressed(check, table, entry.word);
        } else {
            scan_standard(check, table, entry.word, &next);
        }
    }
    return false;
}

void check_scan_tables(Qcow2Check *check)
{
    for (unsigned i = 0; i < check->tables->len; i++) {
        const CheckTable *table = &g_array_index(check->tables, CheckTable, i);
        check_count(check, table->offset, check->cluster_size, table->references);
    }
    check_visit_tables(check, scan_table, NULL);
}

/* How many tables from index on lie one behind the other, and fit one read. */
static unsigned tables_together(const Qcow2Check *check, unsigned index)
{
    const CheckTable *tables = (const CheckTable *)check->tables->data;
    uint64_t most = max_u64(1, READ_AT_ONCE >> check->s->cluster_bits);
    unsigned n = 1;
    while (n < most && index + n < check->tables->len &&
           tables[index + n].offset == tables[index].offset + (n << check->s->cluster_bits)) {
        n++;
    }
    return n;
}

static int visit_run(Qcow2Check *check, CheckVisit visit, void *opaque, unsigned index,
                     unsigned count, uint8_t *buffer)
{
    const CheckTable *tables = &g_array_index(check->tables, CheckTable, index);
    uint64_t length = (uint64_t)count << check->s->cluster_bits;
    int result = store_read(check->store, buffer, length, tables->offset);
    if (result < 0) {
        check_error(check, "ERROR L2 tables at %" PRIu64 ": %s", tables->offset,
                    g_strerror(-result));
        return result;
    }
    for (unsigned i = 0; i < count && result == 0; i++) {
        uint8_t *entries = buffer + ((uint64_t)i << check->s->cluster_bits);
        if (visit(check, &tables[i], entries, opaque)) {
            result = store_write(check->store, entries, check->cluster_size, tables[i].offset);
        }
    }
    return result;
}

int check_visit_tables(Qcow2Check *check, CheckVisit visit, void *opaque)
{
    g_autofree uint8_t *buffer = NULL;
    unsigned room = 0;
    int first_error = 0;
    for (unsigned i = 0, count; i < check->tables->len; i += count) {
        count = tables_together(check, i);
        if (count > room) {
            g_free(buffer);
            buffer = g_malloc((uint64_t)count << check->s->cluster_bits);
            room = count;
        }
        int result = visit_run(check, visit, opaque, i, count, buffer);
        first_error = first_error ? first_error : result;
    }
    return first_error;
}
