/*
 * qcow2 check: all refcounts anew, in new space behind the end of the file.
 *
 *     | file as it is | refcount table | refcount blocks |
 *
 * The old table and blocks are not touched until the header points to the new ones, so a cut leaves
 * the one or the other. The new clusters must be counted, too, which may need further blocks: the
 * set of blocks grows until it covers itself.
 */
#include "formats/qcow2-check.h"

#include <string.h>

typedef struct Rebuild {
    Qcow2Check *check;
    uint64_t per_block;
    GHashTable *needed; /* set of block indices */
    GArray *blocks;     /* the same, ascending */
    uint64_t start;     /* cluster: the table, then the blocks */
    uint64_t table_clusters;
} Rebuild;

static void need_block(Rebuild *rebuild, uint64_t index)
{
    if (!g_hash_table_contains(rebuild->needed, &index)) {
        g_hash_table_add(rebuild->needed, g_memdup2(&index, sizeof index));
    }
}

static void want_leaks(Qcow2Check *check)
{
    g_autoptr(GPtrArray) chunks = counts_sorted(&check->counts);
    for (unsigned n = 0; n < chunks->len; n++) {
        CountChunk *chunk = chunks->pdata[n];
        for (unsigned i = 0; i < COUNT_CHUNK; i++) {
            if (chunk->wanted[i] == 0 && chunk->found[i] != 0) {
                chunk->wanted[i] = 1;
            }
        }
    }
}

static void need_counted_blocks(Rebuild *rebuild)
{
    g_autoptr(GPtrArray) chunks = counts_sorted(&rebuild->check->counts);
    for (unsigned n = 0; n < chunks->len; n++) {
        const CountChunk *chunk = chunks->pdata[n];
        for (unsigned i = 0; i < COUNT_CHUNK; i++) {
            if (chunk->wanted[i] != 0) {
                need_block(rebuild, (chunk->first + i) / rebuild->per_block);
            }
        }
    }
}

static uint64_t new_clusters(const Rebuild *rebuild)
{
    return rebuild->table_clusters + g_hash_table_size(rebuild->needed);
}

/* False: the table would be larger than a header can say. */
static bool plan_space(Rebuild *rebuild)
{
    for (uint64_t planned = 0; planned != new_clusters(rebuild);) {
        planned = new_clusters(rebuild);
        uint64_t last = rebuild->start + planned; /* one more than is needed, at most */
        for (uint64_t i = rebuild->start / rebuild->per_block; i <= last / rebuild->per_block;
             i++) {
            need_block(rebuild, i);
        }
        uint64_t table_bytes = (last / rebuild->per_block + 1) * 8;
        if (table_bytes > QCOW2_MAX_REFCOUNT_TABLE_BYTES) {
            return false;
        }
        rebuild->table_clusters = div_round_up(table_bytes, rebuild->check->cluster_size);
    }
    return true;
}

static int compare_indices(gconstpointer a, gconstpointer b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void list_blocks(Rebuild *rebuild)
{
    GHashTableIter iter;
    gpointer index;
    g_hash_table_iter_init(&iter, rebuild->needed);
    while (g_hash_table_iter_next(&iter, &index, NULL)) {
        g_array_append_vals(rebuild->blocks, index, 1);
    }
    g_array_sort(rebuild->blocks, compare_indices);
}

static uint64_t new_block_offset(const Rebuild *rebuild, unsigned i)
{
    return (rebuild->start + rebuild->table_clusters + i) << rebuild->check->s->cluster_bits;
}

static int write_blocks(const Rebuild *rebuild)
{
    Qcow2Check *check = rebuild->check;
    g_autofree uint8_t *block = g_malloc(check->cluster_size);
    int result = 0;
    for (unsigned i = 0; i < rebuild->blocks->len && result == 0; i++) {
        uint64_t first = g_array_index(rebuild->blocks, uint64_t, i) * rebuild->per_block;
        memset(block, 0, check->cluster_size);
        for (uint64_t n = 0; n < rebuild->per_block; n++) {
            uint64_t count = check_wanted(check, first + n);
            if (count != 0) {
                qcow2_refcount_store(block, n, check->s->refcount_order, count);
            }
        }
        result =
            store_write(check->store, block, check->cluster_size, new_block_offset(rebuild, i));
    }
    return result;
}

static int write_table(const Rebuild *rebuild)
{
    Qcow2Check *check = rebuild->check;
    uint64_t length = rebuild->table_clusters << check->s->cluster_bits;
    g_autofree uint8_t *table = g_malloc0(length);
    for (unsigned i = 0; i < rebuild->blocks->len; i++) {
        uint64_t index = g_array_index(rebuild->blocks, uint64_t, i);
        store_be64(table + index * 8, new_block_offset(rebuild, i));
    }
    return store_write(check->store, table, length, rebuild->start << check->s->cluster_bits);
}

static int write_all(Rebuild *rebuild)
{
    Qcow2Check *check = rebuild->check;
    uint64_t bytes = new_clusters(rebuild) << check->s->cluster_bits;
    uint64_t offset = rebuild->start << check->s->cluster_bits;
    for (uint64_t i = 0; i < new_clusters(rebuild); i++) {
        counts_set_wanted(&check->counts, rebuild->start + i, 1);
    }
    int result = store_truncate(check->store, offset + bytes);
    if (result == 0) {
        result = write_blocks(rebuild);
    }
    if (result == 0) {
        result = write_table(rebuild);
    }
    if (result == 0) {
        result = store_sync(check->store);
    }
    if (result == 0) {
        result = qcow2_header_set_refcount_table(check->image, offset, rebuild->table_clusters);
    }
    return result ? result : store_sync(check->store);
}

int check_rebuild(Qcow2Check *check, bool keep_leaks)
{
    Rebuild rebuild = {
        .check = check,
        .per_block = check->cluster_size * 8 >> check->s->refcount_order,
        .needed = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL),
        .blocks = g_array_new(FALSE, FALSE, sizeof(uint64_t)),
        .start = check->file_clusters + 1, /* behind what a compressed cluster may end in */
        .table_clusters = 1,
    };
    int result = -EFBIG;
    if (keep_leaks) {
        want_leaks(check);
    }
    need_counted_blocks(&rebuild);
    if (plan_space(&rebuild)) {
        list_blocks(&rebuild);
        check_say(check, "Rebuilding refcount structure at %" PRIu64,
                  rebuild.start << check->s->cluster_bits);
        result = write_all(&rebuild);
    }
    g_hash_table_unref(rebuild.needed);
    g_array_unref(rebuild.blocks);
    return result;
}
