/*
 * vhd: space for new blocks, and the footer that must stay behind them.
 *
 *     ... blocks | data_end ... free ... footer_offset | footer | end of file
 *
 * Blocks are taken from the free part. When it is used up the file grows by many blocks at once: a
 * new footer is written at the new end, and the next block lies behind where the old footer was,
 * which keeps its bytes until the new one is durable. finish brings the footer back to the last
 * block. A power cut may leave a file that has grown without its footer; then the copy at offset 0
 * counts (vhd-header.c).
 *
 * The data of a new block begins at a multiple of 4096 bytes: the disk below wants it, and the
 * kernel, which may read and write the block without us.
 *
 * Space that may have been written to is handed out once. A block whose allocation was abandoned
 * keeps it in `reserved` for its next allocation, so no block's bytes can turn up in another.
 */
#include "formats/vhd.h"

#include "base/errors.h"
#include "formats/space.h"

#define DATA_ALIGNMENT 4096u
#define GROW_MAX       (UINT64_C(16) << 20) /* bytes ahead of need */

int vhd_footer_write(Image *image, uint64_t offset)
{
    return store_write(image->store, vhd_state(image)->footer.bytes, VHD_FOOTER_SIZE, offset);
}

int vhd_footer_settle(Image *image)
{
    VhdState *s = image->state;
    uint64_t end = s->footer_offset + VHD_FOOTER_SIZE;
    return store_size(image->store) > end ? vhd_written(s, store_truncate(image->store, end)) : 0;
}

/* Where something lies when space is free from `from` on; what is behind its first `lead` bytes is aligned. */
static uint64_t place_from(uint64_t from, uint64_t lead)
{
    return align_up(from + lead, DATA_ALIGNMENT) - lead;
}

/* Bytes of bitmap and data. */
static uint64_t whole_block(const VhdState *s)
{
    return s->bitmap_size + s->block_size;
}

/* Puts a footer at `offset` or, when that is too far, where just one block fits. */
static int move_footer(Image *image, uint64_t offset, uint64_t at_least)
{
    VhdState *s = image->state;
    int r = vhd_footer_write(image, offset);
    if (r < 0 && offset > at_least) {
        offset = at_least;
        r = vhd_footer_write(image, offset);
    }
    if (r < 0) { /* a block device has the size it has */
        int settled = vhd_footer_settle(image);
        r = r == -EINVAL || r == -EFBIG || r == -ENOTSUP ? -ENOSPC : r;
        return settled < 0 ? settled : r;
    }
    s->stale_footer = s->footer_offset;
    s->footer_offset = offset;
    return vhd_footer_settle(image);
}

/* Makes room before the footer; *place is where. */
static int make_room(Image *image, uint64_t lead, uint64_t length, uint64_t *place)
{
    VhdState *s = image->state;
    *place = place_from(s->data_end, lead);
    if (*place + length <= s->footer_offset) {
        return 0;
    }
    /* Only one old footer is remembered. Clear it now, when it is durable that there is a new one. */
    if (s->stale_footer != 0) {
        int r = vhd_flush(image);
        if (r < 0) {
            return r;
        }
    }
    *place = place_from(max_u64(s->data_end, s->footer_offset + VHD_FOOTER_SIZE), lead);
    uint64_t one = align_up(*place + length, VHD_SECTOR);
    uint64_t stride = align_up(whole_block(s), DATA_ALIGNMENT);
    uint64_t ahead = min_u64(store_size(image->store) / 16, GROW_MAX);
    if (*place / VHD_SECTOR >= VHD_UNUSED) {
        return -EFBIG;
    }
    return move_footer(image, one + ahead / stride * stride, one);
}

VhdReserved *vhd_space_reserve(Image *image, uint32_t block, int *result)
{
    VhdState *s = image->state;
    VhdReserved *reserved = g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(block));
    uint64_t place;
    *result = 0;
    if (reserved) {
        return reserved;
    }
    if (s->spare->len > 0) {
        place = g_array_index(s->spare, uint64_t, s->spare->len - 1);
        g_array_set_size(s->spare, s->spare->len - 1);
    } else {
        *result = make_room(image, s->bitmap_size, whole_block(s), &place);
        if (*result == 0) {
            *result = space_make_fresh(image->store, place, whole_block(s), s->fresh_start);
        }
        if (*result < 0) {
            return NULL;
        }
        s->data_end = place + whole_block(s);
    }
    reserved = g_new0(VhdReserved, 1);
    reserved->bitmap_offset = place;
    g_hash_table_insert(s->reserved, GUINT_TO_POINTER(block), reserved);
    return reserved;
}

int vhd_space_take(Image *image, uint64_t length, uint64_t *place)
{
    VhdState *s = image->state;
    int r = make_room(image, 0, length, place);
    if (r == 0) {
        s->data_end = *place + length;
        s->footer_needed = max_u64(s->footer_needed, align_up(s->data_end, VHD_SECTOR));
    }
    return r;
}

void vhd_space_give_back(VhdState *s, uint32_t block)
{
    const VhdReserved *reserved = g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(block));
    if (reserved && !reserved->touched) {
        g_array_append_val(s->spare, reserved->bitmap_offset);
        g_hash_table_remove(s->reserved, GUINT_TO_POINTER(block));
    }
}

/* The first of the ascending block sectors whose block ends behind offset. */
static uint32_t first_behind(const VhdState *s, const uint32_t *sectors, uint32_t count,
                             uint64_t offset)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if ((uint64_t)sectors[middle] * VHD_SECTOR + whole_block(s) <= offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static bool check_structures(const Image *image, const uint32_t *sectors, uint32_t count,
                             GError **error)
{
    VhdState *s = image->state;
    for (guint i = 0; i < s->structures->len; i++) {
        const VhdRange *range = &g_array_index(s->structures, VhdRange, i);
        uint32_t at = first_behind(s, sectors, count, range->offset);
        uint64_t start = at < count ? (uint64_t)sectors[at] * VHD_SECTOR : UINT64_MAX;
        if (start < range->offset + range->length) {
            return error_set(error, EUCLEAN,
                             "%s: a block at %" PRIu64 " lies on what is at %" PRIu64
                             ": open it read-only, or run check --repair=all",
                             image->path, start, range->offset);
        }
        s->data_end = max_u64(s->data_end, range->offset + range->length);
    }
    return true;
}

bool vhd_space_scan(const Image *image, GError **error)
{
    VhdState *s = image->state;
    uint32_t count;
    g_autofree uint32_t *sectors = block_table_sorted(s->table, VHD_UNUSED, VHD_UNUSED, &count);
    uint64_t limit =
        s->footer_state == VHD_FOOTER_AT_END_BAD ? store_size(image->store) : s->footer_offset;
    s->data_end = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t offset = (uint64_t)sectors[i] * VHD_SECTOR;
        if (offset < s->data_end) {
            return error_set(error, EUCLEAN,
                             "%s: two blocks lie at %" PRIu64
                             ": open it read-only, or run check --repair=all",
                             image->path, offset);
        }
        s->data_end = offset + whole_block(s);
    }
    if (s->data_end > limit) {
        return error_set(error, EUCLEAN,
                         "%s: a block ends at %" PRIu64 ", behind the end of what the file has "
                         "(%" PRIu64 "): open it read-only, or run check --repair=all",
                         image->path, s->data_end, limit);
    }
    return check_structures(image, sectors, count, error);
}
