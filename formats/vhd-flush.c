/*
 * vhd: the start of writing, flush in the order that a crash needs, and the end.
 *
 *     phase 1   bitmaps of blocks that no table on the disk shows ... sync (also data and footer)
 *     phase 2   table, bits of the other blocks, the old footer's
 *               place cleared ...................................... sync
 *
 * So a block's data, its bitmap and the footer behind it are durable before the table shows it, and
 * a sector's data before its bit.
 *
 * A failure leaves all that was not written as dirty as it was, and a flush begins again from the
 * start. Once phase 2 has begun, the disk may show the new blocks; from then on their bits belong
 * to phase 2.
 */
#include "formats/vhd.h"

#include <errno.h>
#include <string.h>

#include "base/errors.h"
#include "base/log.h"

void vhd_update_dirty(VhdState *s)
{
    s->dirty =
        s->bitmaps && (metacache_has_dirty(s->bitmaps, META_FIRST) ||
                       metacache_has_dirty(s->bitmaps, META_SECOND) ||
                       block_table_is_dirty(s->table) || s->stale_footer != 0 || s->second_pending);
}

bool vhd_is_dirty(const Image *image)
{
    return vhd_state(image)->dirty;
}

static int clear_stale_footer(Image *image)
{
    static const uint8_t zeroes[VHD_FOOTER_SIZE];
    VhdState *s = image->state;
    return s->stale_footer == 0 ? 0
                                : store_write(image->store, zeroes, sizeof zeroes, s->stale_footer);
}

static int phase_two(Image *image)
{
    VhdState *s = image->state;
    if (!metacache_has_dirty(s->bitmaps, META_SECOND) && !block_table_is_dirty(s->table) &&
        s->stale_footer == 0 && !s->second_pending) {
        return 0;
    }
    s->second_pending = true;
    g_hash_table_remove_all(s->unlinked);
    int r = metacache_write(s->bitmaps, META_SECOND);
    r = r < 0 ? r : block_table_write(s->table);
    r = r < 0 ? r : clear_stale_footer(image);
    r = r < 0 ? r : store_sync(image->store);
    if (r == 0) {
        s->second_pending = false;
        s->stale_footer = 0;
    }
    return r;
}

int vhd_flush(Image *image)
{
    VhdState *s = image->state;
    if (s->broken < 0) {
        return s->broken;
    }
    if (s->footer.type == VHD_FIXED) {
        return store_sync(image->store);
    }
    int r = metacache_write(s->bitmaps, META_FIRST);
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : phase_two(image);
    if (r == 0) {
        s->write_error = 0;
    } else {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot write metadata: %s", image->path, g_strerror(-r));
    }
    vhd_update_dirty(s);
    return r;
}

void vhd_flush_if_full(Image *image)
{
    VhdState *s = image->state;
    if (metacache_is_full(s->bitmaps)) {
        s->write_error = vhd_flush(image);
    }
}

/* Where a footer goes when the file has none at its end. */
static uint64_t place_for_footer(const Image *image)
{
    const VhdState *s = image->state;
    uint64_t size = store_size(image->store);
    if (size % VHD_SECTOR == 0 && size >= s->data_end + VHD_FOOTER_SIZE) {
        return size - VHD_FOOTER_SIZE;
    }
    return align_up(max_u64(size, s->data_end), VHD_SECTOR);
}

int vhd_footers_mend(Image *image)
{
    VhdState *s = image->state;
    bool short_footer = store_size(image->store) < s->footer_offset + VHD_FOOTER_SIZE;
    if (s->footer_state == VHD_FOOTER_GOOD && !short_footer) {
        return 0;
    }
    log_info("%s: restores the footer", image->path);
    if (s->footer_state == VHD_FOOTER_AT_END_BAD) {
        s->footer_offset = place_for_footer(image);
    }
    int r = vhd_footer_write(image, s->footer_offset);
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : vhd_footer_write(image, 0);
    r = r < 0 ? r : store_sync(image->store);
    if (r == 0) {
        s->footer_state = VHD_FOOTER_GOOD;
    }
    return r;
}

int vhd_write_durably(Store *store, const uint8_t *bytes, uint64_t offset)
{
    int r = store_write(store, bytes, VHD_SECTOR, offset);
    return r < 0 ? r : store_sync(store);
}

int vhd_written(VhdState *s, int r)
{
    if (r < 0) {
        s->broken = -EIO;
    }
    return r;
}

int vhd_footers_replace(Image *image, const uint8_t *bytes)
{
    VhdState *s = image->state;
    int r = vhd_write_durably(image->store, bytes, s->footer_offset);
    if (r == 0 && s->footer.type != VHD_FIXED) {
        r = vhd_write_durably(image->store, bytes, 0);
    }
    if (vhd_written(s, r) == 0) {
        memcpy(s->footer.bytes, bytes, VHD_FOOTER_SIZE);
    }
    return r;
}

bool vhd_start_writing(Image *image, GError **error)
{
    VhdState *s = image->state;
    if (s->footer.type == VHD_FIXED || image->repair) {
        return true; /* check looks at everything itself, and mends it */
    }
    if (!vhd_space_scan(image, error)) {
        return false;
    }
    s->fresh_start = store_size(image->store);
    int r = vhd_footers_mend(image);
    s->footer_needed = s->footer_offset;
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the footer", image->path);
}

/* One past the last block that the table has. */
static uint64_t end_of_blocks(const VhdState *s)
{
    uint64_t end = 0;
    for (uint32_t i = 0; i < block_table_count(s->table); i++) {
        uint32_t sector = block_table_get(s->table, i);
        if (sector != VHD_UNUSED) {
            end = max_u64(end, (uint64_t)sector * VHD_SECTOR + s->bitmap_size + s->block_size);
        }
    }
    return align_up(end, VHD_SECTOR);
}

int vhd_trim(Image *image, uint64_t target)
{
    VhdState *s = image->state;
    int r = vhd_footer_write(image, target);
    r = r < 0 ? r : store_sync(image->store);
    if (r < 0) {
        return r;
    }
    s->footer_offset = s->data_end = target;
    g_hash_table_remove_all(s->reserved);
    g_array_set_size(s->spare, 0);
    r = store_truncate(image->store, target + VHD_FOOTER_SIZE);
    return r < 0 ? r : store_sync(image->store);
}

/* What was grown ahead of need is cut off. What the file had when it was opened is left alone. */
int vhd_finish(Image *image)
{
    const VhdState *s = image->state;
    if (s->footer.type == VHD_FIXED || image->repair) {
        return 0;
    }
    int r = vhd_is_dirty(image) || s->broken ? vhd_flush(image) : 0;
    uint64_t target = max_u64(s->footer_needed, end_of_blocks(s));
    return r < 0 || target >= s->footer_offset ? r : vhd_trim(image, target);
}
