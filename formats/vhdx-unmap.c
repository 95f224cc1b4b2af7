/*
 * vhdx: unmap.
 *
 * A whole block loses its place: over a parent it becomes a block of zeroes, which hides the parent, else it is not
 * there any more. A part of a block, and a block whose space must stay, is punched where it lies; its sector bits stay
 * set. Where the parent shows in such a part, zeroes have to be written.
 */
#include "formats/vhdx.h"

#include <errno.h>

typedef struct Unmap {
    Image *image;
    uint64_t offset, length; /* inside one block */
    uint32_t block;
    uint64_t entry;
    bool whole; /* all of the block that is in the disk */
    bool keep;  /* its space */
} Unmap;

/* What of the range is here is punched; *shows: the parent shows in some of it. */
static int look_at_sectors(const Unmap *u, bool punch, bool *shows)
{
    uint64_t at = u->offset, end = u->offset + u->length;
    StorePunch how = u->keep ? STORE_PUNCH_KEEP_SPACE : STORE_PUNCH_FREE;
    ExtentList list;
    extent_list_init(&list);
    int r = 0;
    while (r == 0 && at < end) {
        extent_list_reset(&list);
        r = vhdx_map(u->image, at, end - at, &list);
        for (unsigned i = 0; r == 0 && i < list.count; i++) {
            const Extent *extent = &list.items[i];
            *shows |= extent->type == EXTENT_UNALLOCATED;
            if (punch && extent->type == EXTENT_DATA) {
                r = store_punch(u->image->store, extent->host_offset, extent->length, how);
            }
        }
        at = r == 0 ? extent_list_end(&list) : at;
    }
    extent_list_clear(&list);
    return r;
}

/* Also over the one that it is about to get: the file does not say so yet while its data is compared. */
static bool is_over_parent(const Image *image)
{
    const VhdxState *s = image->state;
    return s->has_parent || image->backing;
}

static bool loses_place(const Unmap *u)
{
    return u->whole && !u->keep && !vhdx_state(u->image)->fixed;
}

/* Whether only zeroes that are written will do. */
static int needs_zeroes(const Unmap *u, bool *needed)
{
    VhdxBlockState state = vhdx_entry_state(u->entry);
    if (!is_over_parent(u->image) || state == VHDX_PRESENT || loses_place(u) ||
        (u->whole && state == VHDX_NOT_PRESENT)) {
        return 0;
    }
    return look_at_sectors(u, false, needed);
}

/* The bytes go at once, which a discard allows at any time; the space may be used again after the
 * next flush. */
static int drop_block(const Unmap *u)
{
    VhdxState *s = u->image->state;
    VhdxRange place = {vhdx_entry_offset(u->entry), s->block_size};
    uint64_t gone = is_over_parent(u->image) ? VHDX_ZERO : VHDX_NOT_PRESENT;
    int r = vhdx_entry_set(u->image, vhdx_block_entry(s, u->block), gone);
    if (r == 0) {
        uint64_t size = store_size(u->image->store);
        vhdx_space_free(s, place);
        if (place.offset < size) {
            (void)store_punch(u->image->store, place.offset,
                              min_u64(place.length, size - place.offset), STORE_PUNCH_FREE);
        }
    }
    return r;
}

static int unmap_block(const Unmap *u)
{
    const VhdxState *s = u->image->state;
    bool ignored = false;
    if (vhdx_has_place(u->entry)) {
        return loses_place(u) ? drop_block(u) : look_at_sectors(u, true, &ignored);
    }
    if (u->whole && is_over_parent(u->image) && vhdx_entry_state(u->entry) == VHDX_NOT_PRESENT) {
        return vhdx_entry_set(u->image, vhdx_block_entry(s, u->block), VHDX_ZERO);
    }
    return 0;
}

/* The part of the range that begins at offset and lies in one block. */
static int describe(Image *image, uint64_t offset, uint64_t end, UnmapFlags flags, Unmap *u)
{
    const VhdxState *s = image->state;
    uint32_t block = vhdx_block_of(s, offset);
    uint64_t start = block * s->block_size;
    uint64_t block_end = min_u64(start + s->block_size, image->size);
    *u = (Unmap){.image = image, .offset = offset, .block = block};
    u->length = min_u64(end, block_end) - offset;
    u->whole = offset == start && offset + u->length == block_end;
    u->keep = flags & UNMAP_KEEP_SPACE;
    return vhdx_entry_get(image, vhdx_block_entry(s, block), &u->entry);
}

int vhdx_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    uint64_t end = offset + length;
    bool needed = false;
    Unmap u;
    int r = 0;
    if (flags & UNMAP_BACKING) {
        return -ENOTSUP; /* sector bits stay set */
    }
    for (uint64_t at = offset; (flags & UNMAP_ZERO) && r == 0 && at < end; at += u.length) {
        r = describe(image, at, end, flags, &u);
        r = r < 0 ? r : needs_zeroes(&u, &needed);
    }
    r = r == 0 && needed ? -ENOTSUP : r;
    for (uint64_t at = offset; r == 0 && at < end; at += u.length) {
        r = describe(image, at, end, flags, &u);
        r = r < 0 ? r : unmap_block(&u);
    }
    vhdx_update_dirty(image->state);
    vhdx_flush_if_full(image);
    if (r == -ENOTSUP && !(flags & UNMAP_ZERO)) {
        return 0; /* a discard is advice: keeping the bytes is a right answer */
    }
    return r;
}
