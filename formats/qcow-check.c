/*
 * qcow, version 1: check and repair.
 *
 *     an L2 table or cluster that is not in the file .......... its entry is cleared
 *     one that is not aligned, or lies on top of another ...... it gets a copy of its own
 *     clusters that nobody uses: at the end of the file ....... cut off
 *                                elsewhere .................... counted; nothing can be done
 *
 * Blktap's images have clusters that overlap. Tables come first, so that where a table and data
 * meet the data moves. What is written follows the order of a flush: copies before what points to
 * them.
 */
#include "formats/qcow.h"

#include "base/errors.h"
#include "formats/check-result.h"

typedef struct Check {
    Image *image;
    QcowState *s;
    CheckResult *result;
    CheckRepair repair;
    QcowUse use;
    uint64_t size;       /* of the file at the start: copies lie behind it */
    uint64_t copied;     /* bytes */
    GHashTable *skipped; /* set: indices in L1 whose tables are not looked into */
    uint8_t *copy;       /* room for a table or a cluster */
    int error;           /* that ended the check, or 0 */
} Check;

/* A copy of length bytes at the end of the file. In all no more than the file has: a small file
 * could make a huge one otherwise. */
static int copy_to_end(Check *check, uint64_t from, uint64_t length, uint64_t *to)
{
    const QcowState *s = check->s;
    Image *image = check->image;
    bool fresh;
    check->copied += length;
    if (check->copied > check->size) {
        return -EFBIG;
    }
    int r = store_read(image->store, check->copy, length, from);
    r = r < 0 ? r : qcow_space_take(image, align_up(length, s->cluster_size), to, &fresh);
    return r < 0 ? r : store_write(image->store, check->copy, length, *to);
}

/* Tables are read and copied as they are on the disk: nothing of them has been changed yet. */
static void check_table(Check *check, uint32_t index)
{
    QcowState *s = check->s;
    uint64_t l2 = s->l1[index], place = 0;
    bool inside =
        qcow_place_ok(check->image, l2, s->l2_bytes) && range_within(l2, s->l2_bytes, check->size);
    if (inside && l2 % s->cluster_size == 0 && qcow_use_take(&check->use, l2, s->l2_bytes, false)) {
        return;
    }
    check_result_say(check->result, "L1 entry %u points to %" PRIu64 ", %s", index, l2,
                     inside ? "not aligned or on top of something else"
                            : "which is not in the file");
    if (!check_result_corruption(check->result, check->repair)) {
        g_hash_table_add(check->skipped, GUINT_TO_POINTER(index));
        return;
    }
    if (inside) {
        check->error = copy_to_end(check, l2, s->l2_bytes, &place);
    }
    qcow_l1_set(s, index, place);
}

/* What a bad entry becomes. */
static uint64_t mend_entry(Check *check, uint64_t entry)
{
    const QcowState *s = check->s;
    QcowCluster cluster = qcow_entry_decode(s, entry);
    uint64_t to = 0;
    uint64_t length = cluster.compressed ? cluster.stored_length : s->cluster_size;
    if (cluster.host < QCOW_HEADER_SIZE || cluster.host >= check->size || length == 0) {
        return 0;
    }
    check->error = copy_to_end(check, cluster.host, length, &to);
    uint64_t above =
        cluster.compressed ? entry & ~((UINT64_C(1) << (63 - s->header.cluster_bits)) - 1) : 0;
    return check->error < 0 ? entry : above | to;
}

static void check_entry(Check *check, uint64_t guest, uint64_t place)
{
    QcowState *s = check->s;
    uint64_t entry;
    int r = qcow_entry_get(s, place, &entry);
    if (r < 0) {
        check->result->check_errors++;
        return;
    }
    check->result->allocated_clusters += entry != 0;
    check->result->compressed_clusters += (entry & QCOW_COMPRESSED) != 0;
    if (qcow_scan_entry(check->image, &check->use, entry)) {
        return;
    }
    check_result_say(check->result,
                     "the cluster of offset %" PRIu64 " is at %" PRIu64
                     ": not in the file, not aligned or on top of something else",
                     guest, qcow_entry_decode(s, entry).host);
    if (check_result_corruption(check->result, check->repair)) {
        entry = mend_entry(check, entry);
        r = check->error < 0 ? check->error : qcow_entry_set(s, place, entry, META_SECOND);
        check->error = r;
    }
}

static void check_entries(Check *check, uint32_t index)
{
    const QcowState *s = check->s;
    uint64_t guest = (uint64_t)index << (s->header.cluster_bits + s->header.l2_bits);
    uint64_t l2 = s->l1[index];
    if (l2 == 0 || g_hash_table_contains(check->skipped, GUINT_TO_POINTER(index)) ||
        qcow_table_is_hole(check->image, l2)) {
        return;
    }
    for (uint64_t at = 0; at < s->l2_bytes && check->error == 0; at += 8) {
        check_entry(check, guest + (at / 8 << s->header.cluster_bits), l2 + at);
        if (metacache_is_full(s->meta)) {
            check->error = qcow_flush(check->image);
        }
    }
}

/* Clusters behind the last that is used. */
static int check_tail(Check *check)
{
    const QcowState *s = check->s;
    uint64_t end = check->use.end, clusters = check->use.clusters;
    if (end >= clusters) {
        return 0;
    }
    check_result_say(check->result, "%" PRIu64 " clusters at the end of the file are not used",
                     clusters - end);
    /* What was copied lies behind them. */
    if (check->repair == CHECK_REPORT_ONLY || check->result->corruptions_fixed > 0) {
        check->result->leaks += clusters - end;
        return 0;
    }
    check->result->leaks_fixed += clusters - end;
    int r = store_truncate(check->image->store, end << s->header.cluster_bits);
    return r < 0 ? r : store_sync(check->image->store);
}

/* qemu-img writes L1 in whole sectors, and begins clusters behind them. */
static void take_padding_of_l1(Check *check)
{
    const QcowState *s = check->s;
    uint64_t bytes = s->header.l1_size * UINT64_C(8);
    uint64_t from = align_up(s->header.l1_offset + bytes, s->cluster_size);
    uint64_t to = s->header.l1_offset + align_up(bytes, QCOW_PIECE);
    if (from < to) {
        (void)qcow_use_take(&check->use, from, to - from, false);
    }
}

static void run(Check *check)
{
    QcowState *s = check->s;
    for (uint32_t i = 0; i < s->header.l1_size && check->error == 0; i++) {
        if (s->l1[i] != 0) {
            check_table(check, i);
        }
    }
    for (uint32_t i = 0; i < s->header.l1_size && check->error == 0; i++) {
        check_entries(check, i);
    }
    if (check->error == 0 && check->repair != CHECK_REPORT_ONLY) {
        check->error = qcow_flush(check->image);
    }
    take_padding_of_l1(check);
    uint64_t unused = qcow_use_unused(&check->use);
    if (unused > 0) {
        check_result_say(check->result, "%" PRIu64 " clusters of the file are not used", unused);
    }
    check->result->leaks += unused;
    if (check->error == 0) {
        check->error = check_tail(check);
    }
}

bool qcow_check(Image *image, CheckRepair repair, CheckResult *result, GError **error)
{
    QcowState *s = image->state;
    Check check = {.image = image, .s = s, .result = result, .repair = repair};
    if (!qcow_scan_head(image, &check.use, error)) {
        return false;
    }
    check.size = store_size(image->store);
    check.skipped = g_hash_table_new(NULL, NULL);
    check.copy = g_malloc(max_u64(s->l2_bytes, s->cluster_size));
    if (repair != CHECK_REPORT_ONLY) {
        s->used_end = s->fresh_start = align_up(store_size(image->store), s->cluster_size);
    }
    result->total_clusters = div_round_up(image->size, s->cluster_size);
    run(&check);
    result->image_end_offset = check.use.end << s->header.cluster_bits;
    qcow_use_clear(&check.use);
    g_hash_table_destroy(check.skipped);
    g_free(check.copy);
    return check.error == 0 ||
           error_set_errno(error, -check.error, "%s: cannot check", image->path);
}
