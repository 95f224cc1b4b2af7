/*
 * Two levels of tables: check and repair.
 *
 *     an L2 table or cluster that is not in the file .......... its entry is cleared
 *     one that is not aligned, or lies on top of another ...... it gets a copy of its own
 *     a cluster in which the file ends, within the disk ....... the file is made whole; zeroes
 *     clusters that nobody uses: at the end of the file ....... cut off
 *                                elsewhere .................... counted; nothing can be done
 *
 * Blktap's qcow images have clusters that overlap. Tables come first, so that where a table and data
 * meet the data moves. What is written follows the order of a flush: copies before what points to
 * them.
 */
#include "formats/tabletree.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/check-result.h"
#include "formats/space.h"

typedef struct Check {
    Image *image;
    TableTree *tree;
    CheckResult *result;
    CheckRepair repair;
    ClusterUse use;
    uint64_t size;       /* of the file at the start: copies lie behind it */
    uint64_t copied;     /* bytes */
    GHashTable *skipped; /* set: indices in L1 whose tables are not looked into */
    int error;           /* that ended the check, or 0 */
} Check;

/* A copy of length bytes at the end of the file, as far as the file has them. In all no more than the file has: a small
 * file could make a huge one otherwise. */
static int copy_to_end(Check *check, uint64_t from, uint64_t length, uint64_t *to)
{
    Image *image = check->image;
    uint64_t there = min_u64(length, check->size - from);
    bool fresh;
    check->copied += there;
    if (check->copied > check->size) {
        return -EFBIG;
    }
    int r = table_tree_space_take(image, align_up(length, check->tree->cluster_size), to, &fresh);
    return r < 0 ? r : space_copy(image->store, from, *to, there);
}

/* Tables are read and copied as they are on the disk: nothing of them has been changed yet. */
static void check_table(Check *check, uint32_t index)
{
    TableTree *tree = check->tree;
    uint64_t l2 = tree->l1[index], place = 0;
    bool inside = table_tree_place_ok(check->image, l2, tree->l2_bytes) &&
                  range_within(l2, tree->l2_bytes, check->size);
    if (inside && l2 % tree->cluster_size == 0 &&
        cluster_use_take(&check->use, l2, tree->l2_bytes, false)) {
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
        check->error = copy_to_end(check, l2, tree->l2_bytes, &place);
    }
    table_tree_l1_set(tree, index, place);
}

/* What a bad entry becomes. */
static uint64_t mend_entry(Check *check, uint64_t entry)
{
    const TableTree *tree = check->tree;
    TreeCluster cluster = tree->decode(tree, entry);
    uint64_t to = 0;
    uint64_t length = cluster.compressed ? cluster.stored_length : tree->cluster_size;
    if (cluster.host < tree->head_end || cluster.host >= check->size || length == 0) {
        return 0;
    }
    check->error = copy_to_end(check, cluster.host, length, &to);
    return check->error < 0 ? entry : entry - cluster.host + to;
}

/* The file was cut off inside a cluster, within what the disk has of it. */
static void check_whole(Check *check, uint64_t guest, const TreeCluster *cluster)
{
    uint64_t size = check->tree->cluster_size;
    uint64_t there = check->size - cluster->host;
    if (there >= size || guest + there >= check->image->size) {
        return;
    }
    check_result_say(check->result,
                     "the cluster of offset %" PRIu64 " is at %" PRIu64
                     ": the file ends inside of it",
                     guest, cluster->host);
    if (check_result_corruption(check->result, check->repair) &&
        store_size(check->image->store) < cluster->host + size) {
        check->error = store_truncate(check->image->store, cluster->host + size);
    }
}

static void check_entry(Check *check, uint64_t guest, uint64_t place, uint64_t entry)
{
    TableTree *tree = check->tree;
    TreeCluster cluster = tree->decode(tree, entry);
    check->result->allocated_clusters += cluster.host != 0;
    check->result->compressed_clusters += cluster.compressed;
    if (table_tree_scan_entry(check->image, &check->use, entry)) {
        if (cluster.host != 0 && !cluster.compressed) {
            check_whole(check, guest, &cluster);
        }
        return;
    }
    check_result_say(check->result,
                     "the cluster of offset %" PRIu64 " is at %" PRIu64
                     ": not in the file, not aligned or on top of something else",
                     guest, cluster.host);
    if (check_result_corruption(check->result, check->repair)) {
        entry = mend_entry(check, entry);
        check->error =
            check->error < 0 ? check->error : table_tree_set(tree, place, entry, META_SECOND);
    }
}

static void check_piece(Check *check, uint64_t guest, uint64_t place, const uint64_t *entries)
{
    const TableTree *tree = check->tree;
    for (unsigned i = 0; i < TABLE_TREE_PIECE_ENTRIES && check->error == 0; i++) {
        check_entry(check, guest + ((uint64_t)i << tree->cluster_bits), place + i * 8, entries[i]);
        if (metacache_is_full(tree->meta)) {
            check->error = table_tree_flush(check->image);
        }
    }
}

static void check_entries(Check *check, uint32_t index)
{
    TableTree *tree = check->tree;
    uint64_t guest = (uint64_t)index << (tree->cluster_bits + tree->l2_bits);
    uint64_t entries[TABLE_TREE_PIECE_ENTRIES];
    uint64_t l2 = tree->l1[index], end = l2 + tree->l2_bytes;
    if (l2 == 0 || g_hash_table_contains(check->skipped, GUINT_TO_POINTER(index))) {
        return;
    }
    uint64_t place = table_tree_skip_hole(check->image, l2, end);
    while (place < end && check->error == 0) {
        if (table_tree_read_piece(tree, place, entries) == 0) {
            check_piece(check, guest + ((place - l2) / 8 << tree->cluster_bits), place, entries);
        } else {
            check->result->check_errors++;
            memset(entries, 0xff, sizeof entries); /* the next piece may be there */
        }
        place = table_tree_next_piece(check->image, place, end, entries);
    }
}

/* Clusters behind the last that is used. */
static int check_tail(Check *check)
{
    const TableTree *tree = check->tree;
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
    int r = store_truncate(check->image->store, end << tree->cluster_bits);
    return r < 0 ? r : store_sync(check->image->store);
}

/* qcow: qemu-img writes L1 in whole sectors, and begins clusters behind them. */
static void take_padding_of_l1(Check *check)
{
    const TableTree *tree = check->tree;
    uint64_t bytes = tree->l1_size * UINT64_C(8);
    uint64_t from = align_up(tree->l1_offset + bytes, tree->cluster_size);
    uint64_t to = tree->l1_offset + align_up(bytes, TABLE_TREE_PIECE);
    if (from < to) {
        (void)cluster_use_take(&check->use, from, to - from, false);
    }
}

static void run(Check *check)
{
    TableTree *tree = check->tree;
    for (uint32_t i = 0; i < tree->l1_size && check->error == 0; i++) {
        if (tree->l1[i] != 0) {
            check_table(check, i);
        }
    }
    for (uint32_t i = 0; i < tree->l1_size && check->error == 0; i++) {
        check_entries(check, i);
    }
    if (check->error == 0 && check->repair != CHECK_REPORT_ONLY) {
        check->error = table_tree_flush(check->image);
    }
    take_padding_of_l1(check);
    uint64_t unused = cluster_use_unused(&check->use);
    if (unused > 0) {
        check_result_say(check->result, "%" PRIu64 " clusters of the file are not used", unused);
    }
    check->result->leaks += unused;
    if (check->error == 0) {
        check->error = check_tail(check);
    }
}

bool table_tree_check(Image *image, CheckRepair repair, CheckResult *result, GError **error)
{
    TableTree *tree = table_tree(image);
    Check check = {.image = image, .tree = tree, .result = result, .repair = repair};
    if (!cluster_use_init(&check.use, image->store, tree->cluster_bits, error)) {
        return false;
    }
    tree->take_head(image, &check.use);
    check.size = store_size(image->store);
    check.skipped = g_hash_table_new(NULL, NULL);
    if (repair != CHECK_REPORT_ONLY) {
        tree->used_end = tree->fresh_start = align_up(store_size(image->store), tree->cluster_size);
    }
    result->total_clusters = div_round_up(image->size, tree->cluster_size);
    run(&check);
    result->image_end_offset = check.use.end << tree->cluster_bits;
    cluster_use_clear(&check.use);
    g_hash_table_destroy(check.skipped);
    return check.error == 0 ||
           error_set_errno(error, -check.error, "%s: cannot check", image->path);
}
