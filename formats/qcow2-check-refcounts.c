/*
 * qcow2 check: refcounts as they lie in the file.
 *
 *     refcount table entry -> refcount block: numbers of (cluster size * 8 / width) clusters
 *
 * A check looks at the numbers of clusters that exist. What a block says about clusters behind the
 * end of the file does no harm before the file grows; a repair sets that right, too.
 */
#include "formats/qcow2-check.h"

#include "base/errors.h"

static uint64_t counts_per_block(const Qcow2Check *check)
{
    return check->cluster_size * 8 >> check->s->refcount_order;
}

/* Where the block of a table entry lies; 0: there is none that can be used. */
static uint64_t block_offset(const Qcow2Check *check, uint64_t index)
{
    uint64_t entry = index < check->block_count ? check->blocks[index] : 0;
    uint64_t offset = entry & ~QCOW2_TABLE_RESERVED;
    bool usable = offset != 0 && offset % check->cluster_size == 0 &&
                  offset >> check->s->cluster_bits < check->file_clusters;
    return usable ? offset : 0;
}

static bool load_table(Qcow2Check *check, GError **error)
{
    const Qcow2Header *header = &check->s->header;
    uint64_t length = header->refcount_table_clusters * check->cluster_size;
    check->blocks = g_try_malloc(length);
    if (!check->blocks) {
        return error_set(error, ENOMEM, "%s: no memory for the refcount table, %" PRIu64 " bytes",
                         check->image->path, length);
    }
    int result = store_read(check->store, check->blocks, length, header->refcount_table_offset);
    if (result < 0) {
        return error_set_errno(error, -result, "%s: cannot read the refcount table",
                               check->image->path);
    }
    check->block_count = length / 8;
    while (check->block_count > 0 && check->blocks[check->block_count - 1] == 0) {
        check->block_count--;
    }
    for (uint64_t i = 0; i < check->block_count; i++) {
        check->blocks[i] = be64toh(check->blocks[i]);
    }
    return true;
}

/* The numbers of one block, as far as the file goes. */
static void load_block(Qcow2Check *check, uint64_t index, uint8_t *buffer)
{
    uint64_t per_block = counts_per_block(check), first = index * per_block;
    /* A compressed cluster may end one behind the end. More costs time, and is wanted by repairs
     * alone. */
    uint64_t end = check->whole_blocks ? UINT64_MAX : check->file_clusters + 1;
    uint64_t offset = block_offset(check, index);
    if (offset == 0 || first >= end) {
        return;
    }
    uint64_t n = min_u64(per_block, end - first);
    unsigned order = check->s->refcount_order;
    int result = store_read(check->store, buffer, div_round_up(n << order, 8), offset);
    if (result < 0) {
        check_error(check, "ERROR refcount block at %" PRIu64 ": %s", offset, g_strerror(-result));
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint64_t count = qcow2_refcount_load(buffer, i, order);
        if (count != 0) {
            counts_set_found(&check->counts, first + i, count);
        }
    }
}

bool check_load_refcounts(Qcow2Check *check, GError **error)
{
    if (!load_table(check, error)) {
        return false;
    }
    g_autofree uint8_t *buffer = g_malloc(check->cluster_size);
    for (uint64_t i = 0; i < check->block_count; i++) {
        load_block(check, i, buffer);
    }
    return true;
}

uint64_t check_wanted(Qcow2Check *check, uint64_t cluster)
{
    return min_u64(counts_wanted(&check->counts, cluster), check->s->refcount_max);
}

uint64_t check_found(Qcow2Check *check, uint64_t cluster)
{
    if (check->whole_blocks || cluster <= check->file_clusters) {
        return counts_found(&check->counts, cluster);
    }
    /* Only entries that point behind the end of the file lead here. */
    uint64_t index = cluster % counts_per_block(check);
    uint64_t offset = block_offset(check, cluster / counts_per_block(check));
    unsigned order = check->s->refcount_order;
    uint8_t bytes[8];
    uint64_t at = order < 3 ? index >> (3 - order) : index << (order - 3);
    if (offset == 0 || store_read(check->store, bytes, sizeof bytes, offset + at) < 0) {
        return 0;
    }
    return qcow2_refcount_load(bytes, order < 3 ? index % (8 >> order) : 0, order);
}

static void refer_block(Qcow2Check *check, uint64_t index)
{
    uint64_t entry = check->blocks[index], offset = entry & ~QCOW2_TABLE_RESERVED;
    uint64_t cluster = offset >> check->s->cluster_bits;
    const char *reason = NULL;
    if (entry & QCOW2_TABLE_RESERVED) {
        reason = "has reserved bits set";
    } else if (offset % check->cluster_size != 0) {
        reason = "points into the middle of a cluster";
    } else if (cluster >= check->file_clusters) {
        reason = "points behind the end of the file";
    }
    if (reason) {
        check->refcounts_damaged = true;
        check_corruption(check, 1, "ERROR refcount table entry %" PRIu64 " is 0x%" PRIx64 ": %s",
                         index, entry, reason);
        return;
    }
    if (offset == 0) {
        return;
    }
    check_count(check, offset, check->cluster_size, 1);
    if (counts_wanted(&check->counts, cluster) != 1) {
        check->refcounts_damaged = true;
        check_corruption(check, 1, "ERROR refcount block %" PRIu64 " refcount=%" PRIu64, index,
                         counts_wanted(&check->counts, cluster));
    }
}

void check_refer_refcounts(Qcow2Check *check)
{
    const Qcow2Header *header = &check->s->header;
    check_own(check, header->refcount_table_offset,
              header->refcount_table_clusters * check->cluster_size, "the refcount table");
    for (uint64_t i = 0; i < check->block_count; i++) {
        refer_block(check, i);
    }
}

static void compare_cluster(Qcow2Check *check, uint64_t cluster)
{
    uint64_t wanted = check_wanted(check, cluster);
    uint64_t found = counts_found(&check->counts, cluster);
    if (found > wanted && cluster < check->file_clusters) {
        check_leak(check, cluster, found, wanted);
    } else if (found > wanted) {
        check->stale++;
    } else if (found < wanted) {
        check->overused += wanted > 1;
        check_corruption(check, 1,
                         "ERROR cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
                         cluster, found, wanted);
    }
}

void check_compare(Qcow2Check *check)
{
    g_autoptr(GPtrArray) chunks = counts_sorted(&check->counts);
    uint64_t end = 0;
    for (unsigned n = 0; n < chunks->len; n++) {
        const CountChunk *chunk = chunks->pdata[n];
        for (unsigned i = 0; i < COUNT_CHUNK; i++) {
            if ((chunk->wanted[i] | chunk->found[i]) == 0) {
                continue;
            }
            uint64_t cluster = chunk->first + i;
            if (cluster < check->file_clusters || chunk->wanted[i] != 0) {
                end = cluster + 1;
            }
            if (chunk->wanted[i] != chunk->found[i] || chunk->wanted[i] == UINT16_MAX) {
                compare_cluster(check, cluster);
            }
        }
    }
    check->result->image_end_offset = end << check->s->cluster_bits;
}

/* ---- writing ---- */

static bool must_write(Qcow2Check *check, uint64_t cluster, CheckDirection direction)
{
    uint64_t wanted = check_wanted(check, cluster);
    uint64_t found = counts_found(&check->counts, cluster);
    return direction == CHECK_RAISE ? wanted > found : wanted < found;
}

bool check_needs_rebuild(Qcow2Check *check)
{
    if (check->refcounts_damaged) {
        return true;
    }
    g_autoptr(GPtrArray) chunks = counts_sorted(&check->counts);
    for (unsigned n = 0; n < chunks->len; n++) {
        const CountChunk *chunk = chunks->pdata[n];
        for (unsigned i = 0; i < COUNT_CHUNK; i++) {
            uint64_t cluster = chunk->first + i;
            if (chunk->wanted[i] > chunk->found[i] &&
                check_wanted(check, cluster) > chunk->found[i] &&
                block_offset(check, cluster / counts_per_block(check)) == 0) {
                return true;
            }
        }
    }
    return false;
}

/* One block in memory while its numbers are changed. */
typedef struct BlockEdit {
    Qcow2Check *check;
    uint8_t *data;
    uint64_t offset; /* 0: none */
} BlockEdit;

static int edit_finish(BlockEdit *edit)
{
    return edit->offset == 0 ? 0
                             : store_write(edit->check->store, edit->data,
                                           edit->check->cluster_size, edit->offset);
}

static int edit_cluster(BlockEdit *edit, uint64_t cluster)
{
    Qcow2Check *check = edit->check;
    uint64_t per_block = counts_per_block(check);
    uint64_t offset = block_offset(check, cluster / per_block);
    if (offset == 0) {
        return -EIO;
    }
    if (offset != edit->offset) {
        int result = edit_finish(edit);
        edit->offset = 0;
        if (result == 0) {
            result = store_read(check->store, edit->data, check->cluster_size, offset);
        }
        if (result < 0) {
            return result;
        }
        edit->offset = offset;
    }
    qcow2_refcount_store(edit->data, cluster % per_block, check->s->refcount_order,
                         check_wanted(check, cluster));
    return 0;
}

int check_write_refcounts(Qcow2Check *check, CheckDirection direction)
{
    g_autoptr(GPtrArray) chunks = counts_sorted(&check->counts);
    g_autofree uint8_t *data = g_malloc(check->cluster_size);
    BlockEdit edit = {.check = check, .data = data};
    for (unsigned n = 0; n < chunks->len; n++) {
        const CountChunk *chunk = chunks->pdata[n];
        for (unsigned i = 0; i < COUNT_CHUNK; i++) {
            if ((chunk->wanted[i] | chunk->found[i]) == 0 ||
                !must_write(check, chunk->first + i, direction)) {
                continue;
            }
            int result = edit_cluster(&edit, chunk->first + i);
            if (result < 0) {
                return result;
            }
        }
    }
    return edit_finish(&edit);
}
