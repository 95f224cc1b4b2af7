/*
 * vhd: allocate, commit, abandon, unmap.
 *
 *     allocate   space before the footer, kept in `reserved` until a unit of the block is committed
 *     (the engine writes the data)
 *     commit     sector bits and the table's entry, in memory
 *     flush      bitmaps of new blocks, data -> sync -> table, bits of old blocks -> sync
 *
 * A unit that lies in a block which is there is allocated where it lies: nothing but its cleared
 * bits hides it.
 *
 * unmap makes what is there read as zeroes and gives its space back to the host; blocks stay where
 * they are, and bits stay set. So no block's space is ever used for another one.
 */
#include "formats/vhd.h"

#include <errno.h>

#include "formats/allocation.h"

static int may_change(Image *image)
{
    VhdState *s = image->state;
    if (s->broken < 0) {
        return s->broken;
    }
    if (s->write_error < 0) { /* there may be space again */
        s->write_error = vhd_flush(image);
    }
    return s->write_error;
}

/* The part of a that lies in one block, from offset on. A block that was reserved for it is added
 * to made. */
static int reserve_in_block(Image *image, Allocation *a, uint64_t offset, uint64_t length,
                            GArray *made)
{
    const VhdState *s = image->state;
    uint32_t block = vhd_block_of(s, offset);
    uint64_t bitmap_offset;
    bool fresh = false;
    int r = vhd_block_find(image, block, &bitmap_offset);
    if (r == 0 && bitmap_offset == 0) {
        bool was_there = g_hash_table_contains(s->reserved, GUINT_TO_POINTER(block));
        const VhdReserved *reserved = vhd_space_reserve(image, block, &r);
        if (reserved) {
            if (!was_there) {
                g_array_append_val(made, block);
            }
            bitmap_offset = reserved->bitmap_offset;
            fresh = !reserved->touched;
        }
    }
    if (r == 0) {
        uint64_t inside = offset - block * s->block_size;
        uint64_t host_offset = bitmap_offset + s->bitmap_size + inside;
        allocation_add(image, a, image->store, host_offset, length, fresh);
    }
    return r;
}

/* All of it or nothing. */
static int reserve(Image *image, Allocation *a)
{
    VhdState *s = image->state;
    g_autoptr(GArray) made = g_array_new(false, false, sizeof(uint32_t));
    uint64_t offset = a->offset, end = a->offset + a->length;
    int r = 0;
    while (r == 0 && offset < end) {
        uint64_t block_end = (vhd_block_of(s, offset) + UINT64_C(1)) * s->block_size;
        uint64_t length = min_u64(end, block_end) - offset;
        r = reserve_in_block(image, a, offset, length, made);
        offset += length;
    }
    for (guint i = 0; r < 0 && i < made->len; i++) {
        vhd_space_give_back(s, g_array_index(made, uint32_t, i));
    }
    return r;
}

int vhd_allocate(Image *image, Allocation **list, unsigned count)
{
    int r = allocation_reserve_all(image, list, count, may_change(image), reserve);
    vhd_update_dirty(image->state);
    return r;
}

/* Sets the bits of sectors [first, end) in the pieces of a bitmap. created: it was not there. */
static int set_bits(Image *image, uint64_t bitmap_offset, uint64_t first, uint64_t end,
                    MetaOrder order, bool created)
{
    VhdState *s = image->state;
    uint64_t piece_bits = VHD_SECTOR * 8;
    for (uint64_t at = 0; at < s->bitmap_size * 8; at += piece_bits) {
        uint64_t from = max_u64(first, at), to = min_u64(end, at + piece_bits);
        if (from >= to && !created) {
            continue;
        }
        MetaBlock *piece;
        int r = created ? metacache_create(s->bitmaps, bitmap_offset + at / 8, &piece)
                        : metacache_get(s->bitmaps, bitmap_offset + at / 8, &piece);
        if (r < 0) {
            return r;
        }
        for (uint64_t bit = from; bit < to; bit++) {
            piece->data[(bit - at) / 8] |= 0x80 >> bit % 8;
        }
        metacache_dirty(s->bitmaps, piece, order);
        metacache_put(s->bitmaps, piece);
    }
    return 0;
}

/* The first unit of a block: now the table has it. */
static void link_block(VhdState *s, uint32_t block, uint64_t bitmap_offset)
{
    block_table_set(s->table, block, bitmap_offset / VHD_SECTOR);
    g_hash_table_add(s->unlinked, GUINT_TO_POINTER(block));
    g_hash_table_remove(s->reserved, GUINT_TO_POINTER(block));
}

/* Without a parent all bits of a block are set at once, those behind the end of the disk too. */
static int commit_in_block(Image *image, uint64_t offset, uint64_t length)
{
    VhdState *s = image->state;
    uint32_t block = vhd_block_of(s, offset);
    uint64_t first = (offset - block * s->block_size) / VHD_SECTOR;
    uint64_t end = first + length / VHD_SECTOR, bitmap_offset;
    if (s->footer.type == VHD_DYNAMIC) {
        first = 0;
        end = s->block_size / VHD_SECTOR;
    }
    int r = vhd_block_find(image, block, &bitmap_offset);
    if (r < 0) {
        return r;
    }
    bool created = bitmap_offset == 0;
    if (created) {
        const VhdReserved *reserved = g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(block));
        bitmap_offset = reserved->bitmap_offset;
    }
    /* As long as no table on the disk shows the block its bits may go there before the sync. */
    bool unlinked = created || g_hash_table_contains(s->unlinked, GUINT_TO_POINTER(block));
    r = set_bits(image, bitmap_offset, first, end, unlinked ? META_FIRST : META_SECOND, created);
    if (r == 0 && created) {
        link_block(s, block, bitmap_offset);
    }
    return r;
}

static int commit_one(Image *image, Allocation *a)
{
    const VhdState *s = image->state;
    uint64_t offset = a->offset, end = a->offset + a->length;
    int r = 0;
    while (r == 0 && offset < end) {
        uint64_t block_end = (vhd_block_of(s, offset) + UINT64_C(1)) * s->block_size;
        uint64_t length = min_u64(end, block_end) - offset;
        r = commit_in_block(image, offset, length);
        offset += length;
    }
    return r;
}

int vhd_commit(Image *image, Allocation **list, unsigned count)
{
    int r = allocation_commit_all(image, list, count, commit_one);
    vhd_update_dirty(image->state);
    vhd_flush_if_full(image);
    return r;
}

/* The space stays with its block: whatever a failed write left there was meant for that place. */
void vhd_abandon(Image *image, Allocation **list, unsigned count)
{
    VhdState *s = image->state;
    for (unsigned i = 0; i < count; i++) {
        const Allocation *a = list[i];
        for (uint64_t at = align_down(a->offset, s->block_size); at < a->offset + a->length;
             at += s->block_size) {
            VhdReserved *reserved =
                g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(vhd_block_of(s, at)));
            if (reserved) {
                reserved->touched = true;
            }
        }
        extent_list_reset(&list[i]->extents);
    }
}

/* Whether the parent shows in the range. */
static int parent_shows(Image *image, uint64_t offset, uint64_t length, bool *shows)
{
    uint64_t end = offset + length;
    ExtentList list;
    extent_list_init(&list);
    int r = 0;
    *shows = false;
    while (r == 0 && !*shows && offset < end) {
        extent_list_reset(&list);
        r = vhd_map(image, offset, end - offset, &list);
        for (unsigned i = 0; r == 0 && i < list.count; i++) {
            *shows |= list.items[i].type == EXTENT_UNALLOCATED;
        }
        offset = r == 0 ? extent_list_end(&list) : offset;
    }
    extent_list_clear(&list);
    return r;
}

static int punch_range(Image *image, uint64_t offset, uint64_t length, StorePunch how)
{
    uint64_t end = offset + length;
    ExtentList list;
    extent_list_init(&list);
    int r = 0;
    while (r == 0 && offset < end) {
        extent_list_reset(&list);
        r = vhd_map(image, offset, end - offset, &list);
        for (unsigned i = 0; r == 0 && i < list.count; i++) {
            const Extent *extent = &list.items[i];
            if (extent->type == EXTENT_DATA) {
                r = store_punch(image->store, extent->host_offset, extent->length, how);
            }
        }
        offset = r == 0 ? extent_list_end(&list) : offset;
    }
    extent_list_clear(&list);
    return r;
}

int vhd_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    const VhdState *s = image->state;
    bool shows = false;
    int r = 0;
    if (flags & UNMAP_BACKING) {
        return -ENOTSUP; /* bits stay set */
    }
    /* A backing is there before the file names it, while a new one's data is compared. */
    if ((flags & UNMAP_ZERO) && (s->footer.type == VHD_DIFFERENCING || image->backing)) {
        r = parent_shows(image, offset, length, &shows);
    }
    if (r == 0) {
        r = shows
                ? -ENOTSUP
                : punch_range(image, offset, length,
                              flags & UNMAP_KEEP_SPACE ? STORE_PUNCH_KEEP_SPACE : STORE_PUNCH_FREE);
    }
    if (r == -ENOTSUP && !(flags & UNMAP_ZERO)) {
        return 0; /* a discard is advice: keeping the bytes is a right answer */
    }
    return r;
}
