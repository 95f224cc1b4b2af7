/*
 * vhdx: allocate, commit, abandon.
 *
 *     allocate   space for a block, and for sector bits, kept in `reserved` until a unit of it is committed
 *     (the engine writes the data)
 *     commit     the table's entries and sector bits, in memory
 *     flush      data -> sync -> log -> sync -> table and sector bits in place (vhdx-flush.c)
 *
 * What a block was before says what becomes of the rest of it: the parent's goes on showing (state 7, and its bits are
 * cleared, for whatever they were, nobody looked at them), anything else were zeroes and still are (state 6, on space
 * that was cleared).
 *
 * What must stay true: reserved space reads as zeroes wherever no unit was committed. What a failed write left is
 * cleared at once; where that fails, the block cannot be allocated any more.
 */
#include "formats/vhdx.h"

#include "base/log.h"
#include "formats/allocation.h"
#include "formats/space.h"

static int may_change(Image *image)
{
    VhdxState *s = image->state;
    if (s->write_error < 0) { /* there may be space again */
        s->write_error = vhdx_flush(image);
    }
    return s->write_error;
}

/* The part of a range that lies in one block. */
typedef struct Part {
    uint32_t block;
    uint64_t offset, length; /* of the guest */
    uint64_t inside;         /* of the block */
} Part;

/* False at the end. */
static bool next_part(const VhdxState *s, const Allocation *a, Part *part)
{
    uint64_t offset = part->length == 0 ? a->offset : part->offset + part->length;
    uint64_t end = a->offset + a->length;
    if (offset >= end) {
        return false;
    }
    part->block = vhdx_block_of(s, offset);
    part->offset = offset;
    part->inside = offset - part->block * s->block_size;
    part->length = min_u64(end - offset, s->block_size - part->inside);
    return true;
}

/* ---- allocate ---- */

/* Space for an entry; the entry is added to made when it had none. */
static VhdxReserved *reserve_entry(Image *image, uint32_t index, uint64_t length, GArray *made,
                                   int *result)
{
    const VhdxState *s = image->state;
    bool was_there = g_hash_table_contains(s->reserved, GUINT_TO_POINTER(index));
    VhdxReserved *reserved = vhdx_space_reserve(image, index, length, result);
    if (reserved && !was_there) {
        g_array_append_val(made, index);
    }
    return reserved;
}

/* Sector bits must have a place before a unit of a block that the parent shines through is committed. */
static int reserve_bits(Image *image, uint32_t block, GArray *made)
{
    const VhdxState *s = image->state;
    uint32_t index = vhdx_bits_entry(s, block);
    uint64_t entry;
    int r = vhdx_entry_get(image, index, &entry);
    if (r == 0 && vhdx_entry_state(entry) != VHDX_PRESENT) {
        reserve_entry(image, index, VHDX_MIB, made, &r);
    }
    return r;
}

static void add_part(Image *image, Allocation *a, const Part *part, uint64_t host, bool fresh)
{
    allocation_add(image, a, image->store, host + part->inside, part->length, fresh);
}

static int reserve_part(Image *image, Allocation *a, const Part *part, GArray *made)
{
    const VhdxState *s = image->state;
    uint32_t index = vhdx_block_entry(s, part->block);
    uint64_t entry;
    int r = vhdx_entry_get(image, index, &entry);
    if (r == 0 && vhdx_has_place(entry)) {
        add_part(image, a, part, vhdx_entry_offset(entry), false);
        return 0;
    }
    if (r == 0 && s->has_parent && vhdx_entry_state(entry) == VHDX_NOT_PRESENT) {
        r = reserve_bits(image, part->block, made);
    }
    const VhdxReserved *reserved =
        r == 0 ? reserve_entry(image, index, s->block_size, made, &r) : NULL;
    if (reserved) {
        add_part(image, a, part, reserved->place.offset, true);
    }
    return r;
}

/* All of it or nothing. */
static int reserve(Image *image, Allocation *a)
{
    VhdxState *s = image->state;
    g_autoptr(GArray) made = g_array_new(false, false, sizeof(uint32_t));
    Part part = {0};
    int r = 0;
    while (r == 0 && next_part(s, a, &part)) {
        r = reserve_part(image, a, &part, made);
    }
    for (guint i = 0; r < 0 && i < made->len; i++) {
        vhdx_space_give_back(s, g_array_index(made, uint32_t, i));
    }
    return r;
}

int vhdx_allocate(Image *image, Allocation **list, unsigned count)
{
    return allocation_reserve_all(image, list, count, may_change(image), reserve);
}

/* ---- commit ---- */

/* Now the table has what was reserved for the entry. */
static int link_entry(Image *image, uint32_t index, VhdxBlockState state)
{
    VhdxState *s = image->state;
    const VhdxReserved *reserved = g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(index));
    int r = vhdx_entry_set(image, index, reserved->place.offset | state);
    if (r == 0) {
        g_hash_table_remove(s->reserved, GUINT_TO_POINTER(index));
    }
    return r;
}

/* Bits of one page: from the first on so many are set or cleared. */
static void change_bits(uint8_t *bytes, uint64_t first, uint64_t count, bool set)
{
    for (uint64_t bit = first; bit < first + count;) {
        if (bit % 8 == 0 && first + count - bit >= 8) {
            bytes[bit / 8] = set ? 0xff : 0;
            bit += 8;
            continue;
        }
        uint8_t mask = 1u << bit % 8;
        bytes[bit / 8] = set ? bytes[bit / 8] | mask : bytes[bit / 8] & ~mask;
        bit++;
    }
}

/* Sector bits of the bytes [inside, inside + length) of a block. */
static int write_bits(Image *image, uint32_t block, uint64_t inside, uint64_t length, bool set)
{
    const VhdxState *s = image->state;
    uint64_t offset;
    int r = vhdx_bits_find(image, block, &offset);
    uint64_t bit = offset * 8 + inside / s->sector_size, page_bits = VHDX_PAGE * 8;
    uint64_t end = bit + length / s->sector_size;
    while (r == 0 && bit < end) {
        MetaBlock *page;
        uint64_t count = min_u64(end - bit, page_bits - bit % page_bits);
        r = metacache_get(s->tables, align_down(bit, page_bits) / 8, &page);
        if (r == 0) {
            change_bits(page->data, bit % page_bits, count, set);
            metacache_dirty(s->tables, page, META_FIRST);
            metacache_put(s->tables, page);
        }
        bit += count;
    }
    return r;
}

/* A block of which the parent showed everything. */
static int link_partial(Image *image, uint32_t block)
{
    const VhdxState *s = image->state;
    uint32_t bits = vhdx_bits_entry(s, block);
    int r = 0;
    if (g_hash_table_contains(s->reserved, GUINT_TO_POINTER(bits))) {
        r = link_entry(image, bits, VHDX_PRESENT);
    }
    r = r < 0 ? r : write_bits(image, block, 0, s->block_size, false);
    return r < 0 ? r : link_entry(image, vhdx_block_entry(s, block), VHDX_PARTIAL);
}

static int commit_part(Image *image, const Part *part)
{
    const VhdxState *s = image->state;
    uint32_t index = vhdx_block_entry(s, part->block);
    uint64_t entry;
    int r = vhdx_entry_get(image, index, &entry);
    if (r < 0 || vhdx_entry_state(entry) == VHDX_PRESENT) {
        return r;
    }
    bool shows_parent = s->has_parent && vhdx_entry_state(entry) == VHDX_NOT_PRESENT;
    if (!vhdx_has_place(entry) && !shows_parent) {
        return link_entry(image, index, VHDX_PRESENT);
    }
    if (shows_parent) {
        r = link_partial(image, part->block);
    }
    return r < 0 ? r : write_bits(image, part->block, part->inside, part->length, true);
}

static int commit_one(Image *image, Allocation *a)
{
    Part part = {0};
    int r = 0;
    while (r == 0 && next_part(image->state, a, &part)) {
        r = commit_part(image, &part);
    }
    return r;
}

int vhdx_commit(Image *image, Allocation **list, unsigned count)
{
    int r = allocation_commit_all(image, list, count, commit_one);
    vhdx_update_dirty(image->state);
    vhdx_flush_if_full(image);
    return r;
}

/* The space stays with its block, for other units of it may be under way. */
void vhdx_abandon(Image *image, Allocation **list, unsigned count)
{
    VhdxState *s = image->state;
    for (unsigned i = 0; i < count; i++) {
        Part part = {0};
        while (next_part(s, list[i], &part)) {
            VhdxReserved *reserved =
                g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(vhdx_block_entry(s, part.block)));
            if (reserved && space_make_fresh(image->store, reserved->place.offset + part.inside,
                                             part.length, s->fresh_start) < 0) {
                log_limited(LOG_LEVEL_ERROR,
                            "%s: cannot clear what a failed write left at %" PRIu64, image->path,
                            reserved->place.offset + part.inside);
                reserved->spoiled = true;
            }
        }
        extent_list_reset(&list[i]->extents);
    }
}
