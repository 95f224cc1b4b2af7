/*
 * vdi: check and repair.
 *
 *     a block that is not in the file ......................... the block is given up
 *     two blocks that are one block of the file ............... the second gets a copy of its own
 *     the header's number of blocks is too small .............. written
 *     blocks of the file that nobody uses: the last ones ...... cut off
 *                                          others ............. counted; nothing can be done
 *
 * What is written follows the order of a flush: copies of blocks and the number before the table.
 */
#include "formats/vdi.h"

#include <stdlib.h>

#include "base/errors.h"
#include "formats/check-result.h"
#include "formats/space.h"

typedef struct Check {
    Image *image;
    VdiState *s;
    CheckResult *result;
    CheckRepair repair;
    uint8_t *used;   /* by block of the file: somebody has it */
    uint32_t copied; /* blocks */
    uint32_t limit;  /* whole blocks that the file holds */
    uint32_t end;    /* one past the last that is used */
} Check;

/* A place cannot be larger than the table is long, or somebody has left out blocks: at most a bit
 * of memory for each block that the file has room for. */
static uint32_t places_in_file(const Check *check)
{
    uint64_t size = store_size(check->image->store), start = check->s->header.data_offset;
    uint64_t places = size > start ? (size - start) / check->s->stride : 0;
    return min_u64(places, 2 * (uint64_t)BLOCK_TABLE_MAX);
}

static void check_outside(Check *check)
{
    BlockTable *table = check->s->table;
    for (uint32_t block = 0; block < block_table_count(table); block++) {
        uint32_t place = block_table_get(table, block);
        if (!vdi_is_place(place)) {
            continue;
        }
        check->result->allocated_clusters++;
        if (place < check->limit) {
            check->end = max_u64(check->end, place + 1);
            continue;
        }
        check_result_say(check->result, "block %u is block %u of the file, which is not there",
                         block, place);
        if (check_result_corruption(check->result, check->repair)) {
            block_table_set(table, block, VDI_UNALLOCATED);
        }
    }
}

/* The bytes of a block to a place of its own. In all no more than the file has: a small file could
 * make a huge one otherwise. */
static int copy_block(Check *check, uint32_t block, uint32_t place)
{
    Image *image = check->image;
    VdiState *s = check->s;
    if (++check->copied > check->limit) {
        return -EFBIG;
    }
    uint32_t copy;
    bool fresh;
    int r = vdi_reserve(image, block, &copy, &fresh);
    if (r == 0) {
        r = space_copy(image->store, vdi_host_offset(s, place) - s->header.extra,
                       vdi_host_offset(s, copy) - s->header.extra, s->stride);
    }
    if (r == 0) {
        vdi_link(s, block, copy);
    }
    return r;
}

static bool check_shared(Check *check, GError **error)
{
    BlockTable *table = check->s->table;
    for (uint32_t block = 0; block < block_table_count(table); block++) {
        uint32_t place = block_table_get(table, block);
        if (!vdi_is_place(place) || place >= check->limit) {
            continue;
        }
        if (!check->used[place]) {
            check->used[place] = 1;
            continue;
        }
        check_result_say(check->result,
                         "block %u is block %u of the file, which another block is already", block,
                         place);
        int r = check_result_corruption(check->result, check->repair)
                    ? copy_block(check, block, place)
                    : 0;
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot copy block %u", check->image->path,
                                   block);
        }
    }
    return true;
}

static void check_number(Check *check)
{
    VdiState *s = check->s;
    if (s->header.allocated < check->end) {
        check_result_say(check->result, "the header says that the file has %u blocks: it has %u",
                         s->header.allocated, check->end);
        if (check_result_corruption(check->result, check->repair)) {
            s->allocated_on_disk = s->header.allocated;
        }
    }
}

static uint64_t count_unused(const Check *check)
{
    uint64_t unused = 0;
    for (uint32_t place = 0; place < check->end; place++) {
        unused += !check->used[place];
    }
    if (unused > 0) {
        check_result_say(check->result, "%" PRIu64 " blocks of the file are not used", unused);
    }
    return unused;
}

/* Blocks behind the last that is used. A fixed image has none. */
static bool check_tail(Check *check, GError **error)
{
    VdiState *s = check->s;
    Image *image = check->image;
    uint64_t tail = check->limit > check->end ? check->limit - check->end : 0;
    if (tail == 0) {
        return true;
    }
    check_result_say(check->result, "%" PRIu64 " blocks behind the last one are not used", tail);
    if (check->repair == CHECK_REPORT_ONLY || s->next_place != check->end) {
        check->result->leaks += tail;
        return true;
    }
    int r = store_truncate(image->store, s->header.data_offset + check->end * s->stride);
    r = r < 0 ? r : store_sync(image->store);
    check->result->leaks_fixed += tail;
    return r == 0 || error_set_errno(error, -r, "%s: cannot cut the file off", image->path);
}

static bool write_repairs(Check *check, GError **error)
{
    VdiState *s = check->s;
    if (check->repair == CHECK_REPORT_ONLY) {
        return true;
    }
    s->header.allocated = s->next_place;
    atomic_store(&s->dirty, true);
    int r = vdi_flush(check->image);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the table", check->image->path);
}

static uint32_t count_linked(BlockTable *table)
{
    uint32_t linked = 0;
    for (uint32_t block = 0; block < block_table_count(table); block++) {
        linked += vdi_is_place(block_table_get(table, block));
    }
    return linked;
}

/* Where the data begins behind the end of the file, the header is more likely wrong than every block gone. A repair would
 * give all of them up. */
static bool may_repair(const Image *image, const VdiState *s, GError **error)
{
    uint64_t size = store_size(image->store);
    uint32_t linked = s->header.data_offset > size ? count_linked(s->table) : 0;
    return linked == 0 ||
           error_set(error, EUCLEAN,
                     "%s: offset of the data is %" PRIu64 ", and the file ends at %" PRIu64
                     ": a repair would give up all %u blocks; the offset must be mended first",
                     image->path, s->header.data_offset, size, linked);
}

bool vdi_check(Image *image, CheckRepair repair, CheckResult *result, GError **error)
{
    VdiState *s = image->state;
    if (repair != CHECK_REPORT_ONLY && !may_repair(image, s, error)) {
        return false;
    }
    Check check = {.image = image, .s = s, .result = result, .repair = repair};
    check.limit = places_in_file(&check);
    check.used = g_try_malloc0(max_u64(check.limit, 1));
    if (!check.used) {
        return error_set_errno(error, ENOMEM, "%s: cannot check", image->path);
    }
    result->total_clusters = div_round_up(image->size, s->header.block_size);
    check_outside(&check);
    s->next_place = check.end;
    s->allocated_on_disk = s->header.allocated;
    s->fresh_start = store_size(image->store);
    check_number(&check);
    bool good = check_shared(&check, error) && write_repairs(&check, error);
    if (good) {
        result->leaks += count_unused(&check);
        good = check_tail(&check, error);
    }
    result->image_end_offset = s->header.data_offset + s->next_place * s->stride;
    g_free(check.used);
    return good;
}
