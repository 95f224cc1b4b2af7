/*
 * vhd: another size of the disk.
 *
 *     dynamic
 *     grow     entries behind the end are dropped, the rest of the last block is cleared -> flush
 *              -> a longer table, where it is or behind the blocks -> sync -> the header's first sector -> sync
 *              -> footer at the end -> sync -> its copy -> sync
 *     shrink   footer at the end -> sync -> its copy -> sync -> entries behind the end are dropped -> flush
 *              -> a shorter table in the header -> sync -> their space goes
 *
 *     fixed
 *     grow     footer of the old size at the new end -> sync -> where the old one was is cleared -> sync
 *              -> footer of the new size in its place -> sync
 *     shrink   footer of the new size where it is -> sync -> and at the new end -> sync -> the file is cut off
 *
 * What is behind the end of the disk never shows: a cut while it shrinks may leave entries there, and the next growth
 * drops whatever it finds, ours or not.
 *
 * A write of header or footers that fails leaves unknown what the disk has: then nothing is written any more.
 */
#include "formats/vhd.h"

#include <errno.h>

#include "base/errors.h"
#include "base/log.h"
#include "formats/space.h"

/* The footer, and its copy where there is one, say the size from now on. */
static int set_size(Image *image, uint64_t size)
{
    VhdState *s = image->state;
    uint8_t bytes[VHD_FOOTER_SIZE];
    memcpy(bytes, s->footer.bytes, sizeof bytes);
    vhd_footer_set_size(bytes, size);
    int r = vhd_footers_replace(image, bytes);
    if (r == 0) {
        s->footer.size = image->size = size;
    }
    return r;
}

/* ---- dynamic ---- */

static uint64_t whole_block(const VhdState *s)
{
    return s->bitmap_size + s->block_size;
}

/* Bytes of the file that a table takes. */
static uint64_t table_length(uint64_t entries)
{
    return align_up(entries * 4, VHD_SECTOR);
}

/* Whether the table may become that long where it is. */
static bool has_room(const VhdState *s, uint32_t entries)
{
    uint64_t start = s->header.table_offset, length = table_length(entries);
    bool room = start + length <= s->footer_offset;
    for (guint i = 0; i < s->structures->len; i++) {
        const VhdRange *other = &g_array_index(s->structures, VhdRange, i);
        room &=
            other->offset == start || !ranges_overlap(start, length, other->offset, other->length);
    }
    for (uint32_t i = 0; room && i < block_table_count(s->table); i++) {
        uint32_t sector = block_table_get(s->table, i);
        room = sector == VHD_UNUSED ||
               !ranges_overlap(start, length, (uint64_t)sector * VHD_SECTOR, whole_block(s));
    }
    return room;
}

/* The bytes behind the last entry, up to the end of its sector. */
static int write_padding(Store *store, uint64_t offset, uint32_t entries)
{
    uint8_t bytes[VHD_SECTOR];
    uint64_t end = entries * UINT64_C(4);
    memset(bytes, 0xff, sizeof bytes);
    return end % VHD_SECTOR == 0
               ? 0
               : store_write(store, bytes, VHD_SECTOR - end % VHD_SECTOR, offset + end);
}

static int write_header(Image *image, uint64_t table_offset, uint32_t entries)
{
    VhdState *s = image->state;
    VhdHeader header = s->header;
    header.table_offset = table_offset;
    header.entries = entries;
    store_be64(header.bytes + VHD_H_TABLE_OFFSET, table_offset);
    store_be32(header.bytes + VHD_H_ENTRIES, entries);
    vhd_checksum_set(header.bytes, VHD_HEADER_SIZE, VHD_H_CHECKSUM);
    int r = vhd_written(s, vhd_write_durably(image->store, header.bytes, s->footer.data_offset));
    if (r == 0) {
        s->header = header;
    }
    return r;
}

static void replace_table(VhdState *s, BlockTable *table, uint64_t old_offset)
{
    block_table_free(s->table);
    s->table = table;
    for (guint i = 0; i < s->structures->len; i++) {
        VhdRange *range = &g_array_index(s->structures, VhdRange, i);
        if (range->offset == old_offset) {
            *range = (VhdRange){s->header.table_offset, s->header.entries * UINT64_C(4)};
        }
    }
}

/* A table of that many entries, where it is or, if there is no room, behind the blocks. */
static int set_entries(Image *image, uint32_t entries)
{
    VhdState *s = image->state;
    uint64_t old_offset = s->header.table_offset, offset = old_offset;
    int r = has_room(s, entries) ? 0 : vhd_space_take(image, table_length(entries), &offset);
    if (r < 0) {
        return r;
    }
    BlockTable *table = block_table_resized(s->table, offset, entries, VHD_UNUSED);
    r = table ? block_table_write(table) : -ENOMEM;
    r = r < 0 ? r : write_padding(image->store, offset, entries);
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : write_header(image, offset, entries);
    if (r < 0) {
        block_table_free(table);
        return r;
    }
    replace_table(s, table, old_offset);
    s->data_end = max_u64(s->data_end, offset + table_length(entries));
    s->footer_needed = max_u64(s->footer_needed, offset + table_length(entries));
    return 0;
}

/* What the block that the end of the disk cuts holds behind the end. */
static int clear_last(Image *image)
{
    const VhdState *s = image->state;
    uint64_t used = image->size % s->block_size, bitmap_offset;
    if (used == 0) {
        return 0;
    }
    int r = vhd_block_find(image, vhd_block_of(s, image->size), &bitmap_offset);
    return r < 0 || bitmap_offset == 0
               ? r
               : space_make_fresh(image->store, bitmap_offset + s->bitmap_size + used,
                                  s->block_size - used, UINT64_MAX);
}

/* What the table has behind the end of the disk goes; durable. dropped: where the blocks were. */
static int drop_entries(Image *image, GArray *dropped)
{
    VhdState *s = image->state;
    uint32_t first = div_round_up(image->size, s->block_size);
    for (uint32_t block = first; block < block_table_count(s->table); block++) {
        uint32_t sector = block_table_get(s->table, block);
        if (sector != VHD_UNUSED) {
            g_array_append_val(dropped, sector);
            block_table_set(s->table, block, VHD_UNUSED);
        }
    }
    vhd_update_dirty(s);
    return vhd_flush(image);
}

static int grow(Image *image, uint64_t size)
{
    VhdState *s = image->state;
    g_autoptr(GArray) dropped = g_array_new(false, false, sizeof(uint32_t));
    uint32_t entries = div_round_up(size, s->block_size);
    int r = clear_last(image);
    r = r < 0 ? r : drop_entries(image, dropped);
    if (r == 0 && entries > s->header.entries) {
        r = set_entries(image, entries);
    }
    return r < 0 ? r : set_size(image, size);
}

/* The end of the file goes, too, as far as nothing lies there. */
static void allow_trim(VhdState *s)
{
    s->footer_needed = 0;
    for (guint i = 0; i < s->structures->len; i++) {
        const VhdRange *range = &g_array_index(s->structures, VhdRange, i);
        s->footer_needed =
            max_u64(s->footer_needed, align_up(range->offset + range->length, VHD_SECTOR));
    }
}

static int drop_rest(Image *image)
{
    VhdState *s = image->state;
    g_autoptr(GArray) dropped = g_array_new(false, false, sizeof(uint32_t));
    int r = drop_entries(image, dropped);
    if (r == 0 && !s->has_batmap) {
        r = set_entries(image, div_round_up(image->size, s->block_size));
    }
    for (guint i = 0; r == 0 && i < dropped->len; i++) {
        uint64_t offset = g_array_index(dropped, uint32_t, i) * (uint64_t)VHD_SECTOR;
        (void)store_punch(image->store, offset, whole_block(s), STORE_PUNCH_FREE);
    }
    allow_trim(s);
    return r;
}

/* ---- fixed ---- */

static int move_fixed_footer(Image *image, uint64_t offset)
{
    VhdState *s = image->state;
    int r = vhd_write_durably(image->store, s->footer.bytes, offset);
    if (r < 0) { /* a block device has the size it has */
        int settled = vhd_footer_settle(image);
        r = r == -EINVAL || r == -EFBIG || r == -ENOTSUP ? -ENOSPC : r;
        return settled < 0 ? settled : r;
    }
    s->footer_offset = offset;
    return 0;
}

static int grow_fixed(Image *image, uint64_t size)
{
    const VhdState *s = image->state;
    uint64_t old_end = store_size(image->store), old_footer = s->footer_offset;
    int r = size > old_footer ? move_fixed_footer(image, size) : 0;
    uint64_t end = min_u64(size, size > old_footer ? old_end : old_footer);
    if (r == 0 && end > image->size) {
        r = space_make_fresh(image->store, image->size, end - image->size, UINT64_MAX);
        r = r < 0 ? r : store_sync(image->store);
    }
    return r < 0 ? r : set_size(image, size);
}

static int cut_fixed(Image *image)
{
    VhdState *s = image->state;
    int r = vhd_write_durably(image->store, s->footer.bytes, image->size);
    r = r < 0 ? r : store_truncate(image->store, image->size + VHD_FOOTER_SIZE);
    if (r == -EINVAL || r == -ENOTSUP) {
        return 0; /* a block device: the footer stays at its end */
    }
    if (r == 0) {
        s->footer_offset = image->size;
        r = store_sync(image->store);
    }
    return r;
}

/* ---- both ---- */

static int shrink(Image *image, uint64_t size)
{
    int r = set_size(image, size);
    if (r < 0) {
        return r;
    }
    r = vhd_state(image)->footer.type == VHD_FIXED ? cut_fixed(image) : drop_rest(image);
    if (r < 0) {
        log_warning("%s: is smaller now, but keeps space that it does not need: %s", image->path,
                    g_strerror(-r));
    }
    return 0;
}

static bool check_resize(const Image *image, uint64_t size, GError **error)
{
    const VhdState *s = image->state;
    if (s->footer.type == VHD_DIFFERENCING) {
        return error_set(error, ENOTSUP,
                         "%s: is a differencing vhd, which has the size of its parent: make a new "
                         "image of all of it with cownbd convert",
                         image->path);
    }
    if (size > VHD_DISK_SIZE_MAX) {
        return error_set(error, EFBIG, "%s: size is %" PRIu64 ": must be at most 2040G for vhd",
                         image->path, size);
    }
    if (s->footer.type == VHD_FIXED) {
        return true;
    }
    uint64_t entries = div_round_up(size, s->block_size);
    if (entries > BLOCK_TABLE_MAX) {
        return error_set(error, EFBIG,
                         "%s: size is %" PRIu64 ": must be at most %" PRIu64
                         " with blocks of %" PRIu64 " bytes",
                         image->path, size, s->block_size * BLOCK_TABLE_MAX, s->block_size);
    }
    if (entries > s->header.entries && s->has_batmap) {
        return error_set(error, ENOTSUP,
                         "%s: has a batmap behind its table, which has room for %u blocks: at most "
                         "%" PRIu64 " bytes",
                         image->path, s->header.entries, s->header.entries * s->block_size);
    }
    if (s->footer.data_offset % VHD_SECTOR != 0) {
        return error_set(error, ENOTSUP,
                         "%s: data offset of the footer is %" PRIu64
                         ": must be a multiple of 512 for another size",
                         image->path, s->footer.data_offset);
    }
    return true;
}

bool vhd_resize(Image *image, uint64_t size, GError **error)
{
    const VhdState *s = image->state;
    size = align_up(size, VHD_SECTOR);
    if (!check_resize(image, size, error)) {
        return false;
    }
    int r = vhd_flush(image);
    if (r == 0 && size > image->size) {
        r = s->footer.type == VHD_FIXED ? grow_fixed(image, size) : grow(image, size);
    } else if (r == 0 && size < image->size) {
        r = shrink(image, size);
    }
    return r == 0 || error_set_errno(error, -r, "%s: cannot make the disk %" PRIu64 " bytes",
                                     image->path, size);
}
