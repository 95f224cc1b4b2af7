/*
 * qcow2 check: one look at everything.
 *
 * Every structure is walked, and each reference to a host cluster counted; then the counts are
 * compared with the refcounts. Refcounts are read before the tables, so that the COPIED flags can
 * be judged in the same walk.
 *
 * A reference may end less than a cluster behind the end of the file: the last cluster may be cut
 * short.
 */
#include "formats/qcow2-check.h"

#include <stdarg.h>

#include "base/errors.h"
#include "formats/check-result.h"

#define MEMORY_BASE \
    (UINT64_C(128) << 20) /* more only for files that have the blocks to show for it */

/* ---- findings ---- */

static void say(Qcow2Check *check, const char *format, va_list arguments)
{
    if (!check->quiet) {
        check_result_say_va(check->result, format, arguments);
    }
}

void check_say(Qcow2Check *check, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say(check, format, arguments);
    va_end(arguments);
}

void check_corruption(Qcow2Check *check, uint64_t times, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    check->result->corruptions += times;
    say(check, format, arguments);
    va_end(arguments);
}

void check_error(Qcow2Check *check, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    check->result->check_errors++;
    say(check, format, arguments);
    va_end(arguments);
}

void check_leak(Qcow2Check *check, uint64_t cluster, uint64_t found, uint64_t wanted)
{
    check->result->leaks++;
    check_say(check, "Leaked cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64, cluster,
              found, wanted);
}

/* ---- references ---- */

bool check_range_ok(const Qcow2Check *check, uint64_t offset, uint64_t length)
{
    uint64_t end;
    return add_u64(offset, length, &end) &&
           (end <= check->file_size ||
            (offset < check->file_size && end - check->file_size < check->cluster_size));
}

void check_count(Qcow2Check *check, uint64_t offset, uint64_t length, uint64_t times)
{
    uint64_t last = (offset + length - 1) >> check->s->cluster_bits;
    for (uint64_t cluster = offset >> check->s->cluster_bits; cluster <= last; cluster++) {
        uint64_t count = counts_wanted(&check->counts, cluster) + times;
        if (count > check->s->refcount_max) {
            check->overused++;
            check_corruption(check, min_u64(times, count - check->s->refcount_max),
                             "ERROR cluster %" PRIu64 " has %" PRIu64
                             " references: refcounts of this image end at %" PRIu64,
                             cluster, count, check->s->refcount_max);
        }
        counts_set_wanted(&check->counts, cluster, count);
    }
}

bool check_refer(Qcow2Check *check, uint64_t offset, uint64_t length, uint64_t times,
                 const char *what)
{
    if (length == 0) {
        return true;
    }
    if (!check_range_ok(check, offset, length)) {
        check_corruption(check, times,
                         "ERROR %s: offset %" PRIu64 " size %" PRIu64
                         " lies behind the end of the file",
                         what, offset, length);
        return false;
    }
    check_count(check, offset, length, times);
    return true;
}

void check_own(Qcow2Check *check, uint64_t offset, uint64_t length, const char *what)
{
    if (check_refer(check, offset, length, 1, what) && length > 0) {
        CheckOwned owned = {.offset = offset, .length = length, .what = what};
        g_array_append_val(check->owned, owned);
    }
}

static void refuse_overlap(Qcow2Check *check, uint64_t cluster, uint64_t expected, const char *what)
{
    uint64_t wanted = counts_wanted(&check->counts, cluster);
    /* Where the refcount differs, the comparison has said it. */
    if (wanted > expected && wanted == counts_found(&check->counts, cluster)) {
        check->overused++;
        check_corruption(check, 1,
                         "ERROR cluster %" PRIu64 " is %s, and %" PRIu64 " others refer to it",
                         cluster, what, wanted - expected);
    }
}

/* Metadata that something else refers to, although the refcounts agree. */
static void scan_overlaps(Qcow2Check *check)
{
    for (unsigned i = 0; i < check->owned->len; i++) {
        const CheckOwned *owned = &g_array_index(check->owned, CheckOwned, i);
        uint64_t last = (owned->offset + owned->length - 1) >> check->s->cluster_bits;
        for (uint64_t c = owned->offset >> check->s->cluster_bits; c <= last; c++) {
            refuse_overlap(check, c, 1, owned->what);
        }
    }
    for (unsigned i = 0; i < check->tables->len; i++) {
        const CheckTable *table = &g_array_index(check->tables, CheckTable, i);
        refuse_overlap(check, table->offset >> check->s->cluster_bits, table->references,
                       "an L2 table");
    }
}

static void scan_snapshots(Qcow2Check *check)
{
    const GArray *snapshots = check->s->snapshots;
    for (unsigned i = 0; snapshots && i < snapshots->len; i++) {
        const Qcow2Snapshot *snapshot = &g_array_index(snapshots, Qcow2Snapshot, i);
        check_own(check, snapshot->l1_table_offset, (uint64_t)snapshot->l1_size * 8,
                  "the L1 table of a snapshot");
        check_collect_l1(check, snapshot->l1_table_offset, snapshot->l1_size, false);
        if (check->s->header.version >= 3 && snapshot->extra_size < 16) {
            check_corruption(check, 1, "ERROR snapshot table entry %u is incomplete", i);
        }
    }
    check_own(check, check->s->header.snapshots_offset, check->s->snapshot_table_bytes,
              "the snapshot table");
}

/* ---- the scan ---- */

static uint64_t memory_limit(Store *store)
{
    return MEMORY_BASE + store_allocated_bytes(store);
}

static void check_init(Qcow2Check *check, Image *image, CheckResult *result)
{
    check->image = image;
    check->s = qcow2_state(image);
    check->store = image->store;
    check->result = result;
    check->cluster_size = check->s->cluster_size;
    check->file_size = store_size(image->store);
    check->file_clusters = div_round_up(check->file_size, check->cluster_size);
    counts_init(&check->counts, memory_limit(image->store));
    check->tables = g_array_new(FALSE, FALSE, sizeof(CheckTable));
    check->owned = g_array_new(FALSE, FALSE, sizeof(CheckOwned));
    result->total_clusters = div_round_up(image->size, check->cluster_size);
}

bool check_scan(Qcow2Check *check, Image *image, CheckResult *result, GError **error)
{
    check_init(check, image, result);
    const Qcow2Header *header = &check->s->header;
    if (!check_load_refcounts(check, error)) {
        return false;
    }
    check_own(check, 0, check->cluster_size, "the header");
    check_own(check, header->l1_table_offset, (uint64_t)header->l1_size * 8, "the L1 table");
    check_own(check, check->s->luks_offset, check->s->luks_length, "the encryption header");
    check_collect_l1(check, header->l1_table_offset, header->l1_size, true);
    scan_snapshots(check);
    check_sort_tables(check);
    check_scan_tables(check);
    check_scan_bitmaps(check);
    if (!check->skip_refcounts) {
        check_refer_refcounts(check);
        check_compare(check);
        scan_overlaps(check);
    }
    if (check->counts.full) {
        check_error(check,
                    "ERROR %s: its tables refer to more clusters than its blocks can explain",
                    image->path);
    }
    return true;
}

void check_clear(Qcow2Check *check)
{
    counts_clear(&check->counts);
    g_clear_pointer(&check->tables, g_array_unref);
    g_clear_pointer(&check->owned, g_array_unref);
    g_clear_pointer(&check->blocks, g_free);
}
