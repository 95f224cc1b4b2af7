/*
 * vhd: check and repair.
 *
 *     footers        one of the two is missing or damaged .... written anew from the other
 *     table          a block outside the file, or on top of
 *                    header, table, names .................... the block is given up
 *                    two blocks that share space ............. the second gets a copy of its own
 *     space          behind the last block ................... cut off
 *                    between blocks .......................... counted; nothing can be done
 *
 * What is written follows the order of a flush: copies of blocks before the table.
 */
#include "formats/vhd.h"

#include <stdlib.h>

#include "base/errors.h"
#include "formats/check-result.h"
#include "formats/space.h"

typedef struct Place {
    uint32_t sector, block;
} Place;

typedef struct Check {
    Image *image;
    VhdState *s;
    CheckResult *result;
    CheckRepair repair;
    Place *places; /* of the blocks, ascending */
    uint32_t count;
    uint64_t whole;  /* bytes of a block with its bitmap */
    uint64_t copied; /* bytes */
    uint64_t limit;  /* blocks end before it */
} Check;

static int compare_places(const void *a, const void *b)
{
    const Place *x = a, *y = b;
    if (x->sector != y->sector) {
        return x->sector < y->sector ? -1 : 1;
    }
    return x->block < y->block ? -1 : x->block > y->block;
}

static uint64_t offset_of(const Place *place)
{
    return (uint64_t)place->sector * VHD_SECTOR;
}

static bool meets_structure(const Check *check, uint64_t offset)
{
    for (guint i = 0; i < check->s->structures->len; i++) {
        const VhdRange *range = &g_array_index(check->s->structures, VhdRange, i);
        if (ranges_overlap(offset, check->whole, range->offset, range->length)) {
            return true;
        }
    }
    return false;
}

/* Whether there can be a block; else it is given up. */
static bool is_block(Check *check, Place place)
{
    uint64_t offset = offset_of(&place);
    bool outside = offset + check->whole > check->limit;
    if (!outside && !meets_structure(check, offset)) {
        return true;
    }
    check_result_say(check->result, "block %u is at %" PRIu64 ", %s", place.block, offset,
                     outside ? "which is not in the file" : "on top of header, table or names");
    if (check_result_corruption(check->result, check->repair)) {
        block_table_set(check->s->table, place.block, VHD_UNUSED);
    }
    return false;
}

/* What cannot be a block at all takes no memory: a table may be nothing else. */
static void collect_places(Check *check)
{
    const BlockTable *table = check->s->table;
    check->places = g_new(Place, max_u64(block_table_count(table), 1));
    for (uint32_t i = 0; i < block_table_count(table); i++) {
        Place place = {block_table_get(table, i), i};
        if (place.sector == VHD_UNUSED) {
            continue;
        }
        check->result->allocated_clusters++;
        if (is_block(check, place)) {
            check->places[check->count++] = place;
        }
    }
    qsort(check->places, check->count, sizeof *check->places, compare_places);
}

static void find_end(Check *check)
{
    VhdState *s = check->s;
    s->data_end = 0;
    for (guint i = 0; i < s->structures->len; i++) {
        const VhdRange *range = &g_array_index(s->structures, VhdRange, i);
        s->data_end = max_u64(s->data_end, range->offset + range->length);
    }
    if (check->count > 0) {
        uint64_t last = offset_of(&check->places[check->count - 1]) + check->whole;
        s->data_end = max_u64(s->data_end, last);
    }
}

static bool check_footers(Check *check, GError **error)
{
    static const char *const words[] = {
        [VHD_FOOTER_AT_END_BAD] = "the footer at the end of the file is missing or damaged",
        [VHD_FOOTER_COPY_BAD] = "the copy of the footer at offset 0 is missing or damaged",
        [VHD_FOOTER_COPY_DIFFERS] = "the copy of the footer at offset 0 differs from the footer",
    };
    VhdState *s = check->s;
    if (s->footer_state == VHD_FOOTER_GOOD) {
        return true;
    }
    check_result_say(check->result, "%s", words[s->footer_state]);
    if (!check_result_corruption(check->result, check->repair)) {
        return true;
    }
    int r = vhd_footers_mend(check->image);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the footer", check->image->path);
}

/* The bytes of a block to a place of its own. In all no more than the file has: a small file could
 * make a huge one otherwise. */
static int copy_block(Check *check, const Place *place)
{
    Image *image = check->image;
    int r;
    check->copied += check->whole;
    if (check->copied > check->limit) {
        return -EFBIG;
    }
    const VhdReserved *reserved = vhd_space_reserve(image, place->block, &r);
    if (r == 0) {
        r = space_copy(image->store, offset_of(place), reserved->bitmap_offset, check->whole);
    }
    if (r == 0) {
        block_table_set(check->s->table, place->block, reserved->bitmap_offset / VHD_SECTOR);
    }
    return r;
}

static bool check_overlaps(Check *check, GError **error)
{
    uint64_t end = 0;
    for (uint32_t i = 0; i < check->count; i++) {
        const Place *place = &check->places[i];
        uint64_t offset = offset_of(place);
        if (offset >= end) {
            end = offset + check->whole;
            continue;
        }
        check_result_say(check->result, "block %u is at %" PRIu64 ", where another block lies",
                         place->block, offset);
        if (!check_result_corruption(check->result, check->repair)) {
            continue;
        }
        int r = copy_block(check, place);
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot copy block %u", check->image->path,
                                   place->block);
        }
    }
    return true;
}

static void count_gap(const Check *check, uint64_t from, uint64_t to)
{
    uint64_t blocks = to > from ? (to - from) / check->whole : 0;
    if (blocks > 0) {
        check->result->leaks += blocks;
        check_result_say(check->result, "%" PRIu64 " bytes at %" PRIu64 " are not used", to - from,
                         from);
    }
}

/* Room for whole blocks between blocks that no block uses. */
static void count_gaps(Check *check)
{
    uint64_t first = UINT64_MAX, end = 0;
    for (guint i = 0; i < check->s->structures->len; i++) {
        const VhdRange *range = &g_array_index(check->s->structures, VhdRange, i);
        end = max_u64(end, range->offset + range->length);
    }
    for (uint32_t i = 0; i < check->count; i++) {
        uint64_t offset = offset_of(&check->places[i]);
        if (first != UINT64_MAX) {
            count_gap(check, end, offset);
        }
        first = min_u64(first, offset);
        end = max_u64(end, offset + check->whole);
    }
}

/* Room behind the last block. A new image of another program may have it on purpose, so only a
 * repair of leaks that was asked for cuts it off. */
static bool check_tail(Check *check, GError **error)
{
    VhdState *s = check->s;
    uint64_t spare = s->footer_offset > s->data_end ? s->footer_offset - s->data_end : 0;
    uint64_t blocks = spare / check->whole;
    if (blocks == 0) {
        return true;
    }
    check_result_say(check->result, "%" PRIu64 " bytes behind the last block are not used", spare);
    if (check->repair == CHECK_REPORT_ONLY || s->footer_state != VHD_FOOTER_GOOD) {
        check->result->leaks += blocks;
        return true;
    }
    check->result->leaks_fixed += blocks;
    int r = vhd_trim(check->image, align_up(s->data_end, VHD_SECTOR));
    return r == 0 || error_set_errno(error, -r, "%s: cannot cut the file off", check->image->path);
}

static bool check_blocks(Check *check, GError **error)
{
    Image *image = check->image;
    VhdState *s = check->s;
    check->whole = s->bitmap_size + s->block_size;
    check->limit =
        s->footer_state == VHD_FOOTER_AT_END_BAD ? store_size(image->store) : s->footer_offset;
    check->result->total_clusters = div_round_up(image->size, s->block_size);
    collect_places(check);
    find_end(check);
    s->fresh_start = store_size(image->store);
    if (!check_footers(check, error) || !check_overlaps(check, error)) {
        return false;
    }
    if (check->repair != CHECK_REPORT_ONLY) {
        int r = vhd_flush(image);
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot write the table", image->path);
        }
    }
    count_gaps(check);
    return check_tail(check, error);
}

bool vhd_check(Image *image, CheckRepair repair, CheckResult *result, GError **error)
{
    VhdState *s = image->state;
    Check check = {.image = image, .s = s, .result = result, .repair = repair};
    bool good = true;
    if (s->footer.type != VHD_FIXED) {
        good = check_blocks(&check, error);
    }
    g_free(check.places);
    result->image_end_offset = s->footer_offset + VHD_FOOTER_SIZE;
    return good;
}
