/*
 * vhdx: another parent, or none.
 *
 * Who has a parent says so in three places of the metadata: a flag, an entry of their table, and the locator. They go
 * through the log together, so that a cut leaves the old parent or the new one.
 *
 *     a parent goes     blocks of which it shows a part are filled up -> they are called whole, and the sector bits
 *                       given up -> flush -> metadata -> flush
 *     the first comes   entries for sector bits are cleared -> flush -> metadata -> flush
 *
 * Locators that are not used any more stay in the region until a new one lies over them or behind them.
 */
#include "formats/vhdx.h"

#include "base/errors.h"
#include "formats/copyup.h"

bool vhdx_parent_check(uint64_t sector_size, const char *format, const Image *backing,
                       GError **error)
{
    if (format_find(format) != &format_vhdx) {
        return error_set(error, EINVAL, "the backing format is %s: must be vhdx", format);
    }
    if (!backing) {
        return error_set(error, EINVAL,
                         "the GUID of the backing file is needed: it must be looked at (without "
                         "-u)");
    }
    const VhdxState *below = backing->state;
    return below->sector_size == sector_size ||
           error_set(error, EINVAL,
                     "logical_sector_size is %" PRIu64 ": must be that of the backing file, "
                     "%" PRIu64,
                     sector_size, below->sector_size);
}

/* Entries of the table when there is a parent: each chunk has one for sector bits. */
static uint64_t entries_with_parent(const VhdxState *s)
{
    return div_round_up(s->blocks, s->chunk_ratio) * (s->chunk_ratio + UINT64_C(1));
}

/* What the parent shows of a block becomes the image's own. */
static int fill_block(Image *image, uint32_t block)
{
    const VhdxState *s = image->state;
    uint64_t entry, start = block * s->block_size;
    int r = vhdx_entry_get(image, vhdx_block_entry(s, block), &entry);
    return r < 0 || vhdx_entry_state(entry) != VHDX_PARTIAL
               ? r
               : copy_up_all(image, start, min_u64(s->block_size, image->size - start));
}

/* A block of which all sectors are here needs no bits. */
static int call_whole(Image *image, uint32_t block)
{
    const VhdxState *s = image->state;
    uint64_t entry;
    uint32_t index = vhdx_block_entry(s, block);
    int r = vhdx_entry_get(image, index, &entry);
    return r < 0 || vhdx_entry_state(entry) != VHDX_PARTIAL
               ? r
               : vhdx_entry_set(image, index, vhdx_entry_offset(entry) | VHDX_PRESENT);
}

/* The entry for the sector bits of the chunk that begins with this block. */
static int drop_bits(Image *image, uint32_t first_block)
{
    VhdxState *s = image->state;
    uint64_t entry;
    uint32_t index = vhdx_bits_entry(s, first_block);
    int r = vhdx_entry_get(image, index, &entry);
    if (r < 0 || entry == VHDX_NOT_PRESENT) {
        return r;
    }
    if (s->has_parent && vhdx_has_place(entry)) {
        vhdx_space_free(s, (VhdxRange){vhdx_entry_offset(entry), VHDX_MIB});
    }
    return vhdx_entry_set(image, index, VHDX_NOT_PRESENT);
}

static int each_block(Image *image, int (*visit)(Image *image, uint32_t block), uint32_t step)
{
    int r = 0;
    for (uint64_t block = 0; r == 0 && block < vhdx_state(image)->blocks; block += step) {
        r = visit(image, block);
    }
    vhdx_update_dirty(image->state);
    return r;
}

/* No block needs sector bits, and no entry says where they are. */
static int make_whole(Image *image)
{
    const VhdxState *s = image->state;
    int r = each_block(image, fill_block, 1);
    r = r < 0 ? r : vhdx_flush(image);
    r = r < 0 ? r : each_block(image, call_whole, 1);
    r = r < 0 ? r : vhdx_flush(image);
    r = r < 0 ? r : each_block(image, drop_bits, s->chunk_ratio);
    return r < 0 ? r : vhdx_flush(image);
}

/* An image without a parent may have anything where entries for sector bits will be. */
static int make_room_for_bits(Image *image)
{
    int r = each_block(image, drop_bits, vhdx_state(image)->chunk_ratio);
    return r < 0 ? r : vhdx_flush(image);
}

static bool check_request(const Image *image, const char *name, const char *format,
                          const Image *backing, GError **error)
{
    const VhdxState *s = image->state;
    if (name && s->fixed) {
        return error_set(error, EINVAL, "%s: is a fixed vhdx, which has no backing file",
                         image->path);
    }
    if (name && entries_with_parent(s) * 8 > s->table.length) {
        return error_set(error, ENOSPC,
                         "%s: the block allocation table has %" PRIu64
                         " bytes: with a backing file the disk needs %" PRIu64,
                         image->path, s->table.length, entries_with_parent(s) * 8);
    }
    return !name || vhdx_parent_check(s->sector_size, format, backing, error);
}

bool vhdx_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                      GError **error)
{
    VhdxState *s = image->state;
    if (!check_request(image, name, format, backing, error)) {
        return false;
    }
    VhdxParent parent = {.name = name};
    int r = 0;
    if (!name && s->has_parent) {
        r = make_whole(image);
    } else if (name && !s->has_parent) {
        r = make_room_for_bits(image);
    }
    if (r == 0) {
        parent.guid = name ? vhdx_state(backing)->header.data_guid : NULL;
        if (!vhdx_metadata_set_parent(image, name ? &parent : NULL, error)) {
            return false;
        }
        r = vhdx_finish(image);
    }
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the metadata", image->path);
    }
    image_name_backing(image, name, format);
    return true;
}
