/*
 * vhdx: another size of the disk.
 *
 *     grow     the rest of the last block is cleared, entries behind the end are dropped, a fixed disk's blocks get
 *              their space -> flush -> where the table has no room, a longer one elsewhere -> sync
 *              -> size, and place of the table in both region tables: one entry of the log, then the pages
 *     shrink   size -> entries behind the end are dropped -> flush -> their space is free, the end of the file goes
 *
 * Metadata and region tables are changed through the log, as all that a sound file must keep together: one entry has
 * all pages, so that a cut leaves the old size and table or the new ones.
 *
 * What is behind the end of the disk never shows: a cut while it shrinks may leave entries there, and the next growth
 * drops whatever it finds, ours or not. Over a parent that is longer than the disk, blocks of the new part are zero.
 *
 * When the entry cannot be written, what the disk has is unknown: then no table is written any more.
 */
#include "formats/vhdx.h"

#include "base/errors.h"
#include "base/log.h"
#include "formats/copyup.h"
#include "formats/space.h"

#define NO_ENTRY UINT32_MAX /* space for a table is kept under this number */

/* ---- pages that change together ---- */

/* Changes bytes that lie in one page of the file, in memory. */
static int put(Image *image, uint64_t offset, const void *bytes, size_t length)
{
    VhdxState *s = image->state;
    MetaBlock *page;
    int r = metacache_get(s->tables, align_down(offset, VHDX_PAGE), &page);
    if (r == 0) {
        memcpy(page->data + offset % VHDX_PAGE, bytes, length);
        metacache_dirty(s->tables, page, META_SECOND);
        metacache_put(s->tables, page);
    }
    return r;
}

/* Both region tables say where the table of blocks lies. */
static int put_regions(Image *image, VhdxRange table)
{
    g_autofree uint8_t *wanted = g_try_malloc(2 * VHDX_TABLE_SIZE);
    uint8_t *there = wanted + VHDX_TABLE_SIZE;
    int r = wanted ? vhdx_regions_move_table(image, table, wanted) : -ENOMEM;
    for (unsigned i = 0; r == 0 && i < 2; i++) {
        uint64_t start = VHDX_REGIONS_1 + i * (uint64_t)VHDX_TABLE_SIZE;
        r = store_read(image->store, there, VHDX_TABLE_SIZE, start);
        for (uint32_t at = 0; r == 0 && at < VHDX_TABLE_SIZE; at += VHDX_PAGE) {
            bool same = memcmp(wanted + at, there + at, VHDX_PAGE) == 0;
            r = same ? 0 : put(image, start + at, wanted + at, VHDX_PAGE);
        }
    }
    return r;
}

static int put_size(Image *image, uint64_t size)
{
    uint8_t bytes[8];
    store_le64(bytes, size);
    uint64_t at = vhdx_state(image)->size_offset, first = VHDX_PAGE - at % VHDX_PAGE;
    first = min_u64(first, sizeof bytes);
    int r = put(image, at, bytes, first);
    return r < 0 || first == sizeof bytes
               ? r
               : put(image, at + first, bytes + first, sizeof bytes - first);
}

/* All that was put, which one entry of the log has room for, and the size. r: whether that went well so far. */
static int set_size(Image *image, uint64_t size, int r)
{
    VhdxState *s = image->state;
    r = r < 0 ? r : put_size(image, size);
    r = r < 0 ? r : vhdx_flush(image);
    if (r < 0) {
        s->broken = s->write_error = -EIO; /* pages in memory must not be written later */
        return r;
    }
    image->size = size;
    s->blocks = div_round_up(size, s->block_size);
    return 0;
}

/* ---- grow ---- */

/* What the block that the end of the disk cuts holds behind the end. Where a longer parent would show, the block is
 * made whole: all that the disk has of it is copied, the rest is clear, and sector bits do not count any more. */
static int clear_last(Image *image)
{
    const VhdxState *s = image->state;
    uint64_t used = image->size % s->block_size, entry = 0;
    uint32_t index = vhdx_block_entry(s, vhdx_block_of(s, image->size));
    int r = used == 0 ? 0 : vhdx_entry_get(image, index, &entry);
    if (r < 0 || used == 0) {
        return r;
    }
    VhdxBlockState state = vhdx_entry_state(entry);
    bool shows =
        space_backing_is_longer(image) && (state == VHDX_NOT_PRESENT || state == VHDX_PARTIAL);
    if (shows) {
        r = copy_up(image, image->size - used, used);
        r = r < 0 ? r : vhdx_entry_get(image, index, &entry);
    }
    if (r == 0 && vhdx_has_place(entry)) {
        r = space_make_fresh(image->store, vhdx_entry_offset(entry) + used, s->block_size - used,
                             UINT64_MAX);
    }
    return r == 0 && shows ? vhdx_entry_set(image, index, vhdx_entry_offset(entry) | VHDX_PRESENT)
                           : r;
}

static int set_entry(Image *image, uint32_t index, uint64_t value)
{
    uint64_t old;
    int r = vhdx_entry_get(image, index, &old);
    r = r < 0 || old == value ? r : vhdx_entry_set(image, index, value);
    vhdx_flush_if_full(image);
    return r < 0 ? r : vhdx_state(image)->write_error;
}

/* A block that the disk gains: of a fixed one with space. */
static int gain_block(Image *image, uint32_t block)
{
    const VhdxState *s = image->state;
    uint32_t index = vhdx_block_entry(s, block);
    bool hidden = image->backing && block * s->block_size < image->backing->size;
    int r;
    if (!s->fixed) {
        return set_entry(image, index, hidden ? VHDX_ZERO : VHDX_NOT_PRESENT);
    }
    const VhdxReserved *reserved = vhdx_space_reserve(image, index, s->block_size, &r);
    if (!reserved) {
        return r;
    }
    uint64_t place = reserved->place.offset;
    g_hash_table_remove(s->reserved, GUINT_TO_POINTER(index));
    return set_entry(image, index, place | VHDX_PRESENT);
}

/* Entries of blocks [from, to), of which the table has room for all, and of sector bits that only they need. */
static int gain_blocks(Image *image, uint32_t from, uint32_t to)
{
    const VhdxState *s = image->state;
    int r = 0;
    for (uint32_t block = from; r == 0 && block < to; block++) {
        r = gain_block(image, block);
        if (r == 0 && block % s->chunk_ratio == 0 &&
            vhdx_bits_entry(s, block) < s->table.length / 8) {
            r = set_entry(image, vhdx_bits_entry(s, block), VHDX_NOT_PRESENT);
        }
    }
    vhdx_update_dirty(image->state);
    return r < 0 ? r : vhdx_flush(image);
}

/* A copy of the table where there is room for so many entries, durable; nothing points to it yet. */
static int copy_table(Image *image, uint64_t entries, VhdxRange *copy)
{
    VhdxState *s = image->state;
    int r;
    VhdxReserved *reserved =
        vhdx_space_reserve(image, NO_ENTRY, align_up(entries * 8, VHDX_MIB), &r);
    if (!reserved) {
        return r;
    }
    *copy = reserved->place;
    metacache_forget(s->tables, copy->offset, copy->length);
    r = space_copy(image->store, s->table.offset, copy->offset, s->table.length);
    r = r < 0 ? r : store_sync(image->store);
    if (r < 0) {
        vhdx_space_give_back(s, NO_ENTRY);
    }
    return r;
}

static void replace_table(VhdxState *s, VhdxRange table)
{
    for (guint i = 0; i < s->regions->len; i++) {
        VhdxRange *region = &g_array_index(s->regions, VhdxRange, i);
        if (region->offset == s->table.offset) {
            *region = table;
        }
    }
    vhdx_space_free(s, s->table);
    metacache_forget(s->tables, s->table.offset, s->table.length);
    s->table = table;
    s->regions_bad = 0;
    g_hash_table_remove(s->reserved, GUINT_TO_POINTER(NO_ENTRY));
    vhdx_update_dirty(s);
}

/* The table has room for the entries of a disk of that size. *table: where; nothing points there yet. */
static int make_room(Image *image, uint64_t size, VhdxRange *table)
{
    VhdxState *s = image->state;
    VhdxState larger = {.has_parent = s->has_parent, .chunk_ratio = s->chunk_ratio};
    larger.blocks = div_round_up(size, s->block_size);
    uint64_t entries = vhdx_entries_needed(&larger);
    *table = s->table;
    return entries * 8 <= s->table.length ? 0 : copy_table(image, entries, table);
}

/* Entries behind the end, in the table that is to be. */
static int fill_table(Image *image, uint64_t size, VhdxRange table)
{
    VhdxState *s = image->state;
    VhdxRange old = s->table;
    s->table = table;
    int r = gain_blocks(image, s->blocks, div_round_up(size, s->block_size));
    s->table = old;
    if (r < 0 &&
        table.offset != old.offset) { /* nobody gets its place: the log may still write there */
        metacache_forget(s->tables, table.offset, table.length);
        g_hash_table_remove(s->reserved, GUINT_TO_POINTER(NO_ENTRY));
    }
    return r;
}

static int grow(Image *image, uint64_t size)
{
    VhdxState *s = image->state;
    VhdxRange table;
    int r = clear_last(image);
    r = r < 0 ? r : vhdx_flush(image);
    r = r < 0 ? r : make_room(image, size, &table);
    r = r < 0 ? r : fill_table(image, size, table);
    if (r < 0) {
        return r;
    }
    bool moves = table.offset != s->table.offset;
    r = set_size(image, size, moves ? put_regions(image, table) : 0);
    if (r == 0 && moves) {
        replace_table(s, table);
    }
    if (r == 0 && s->fixed) { /* the file grew ahead of need, and its end leaves that alone */
        (void)vhdx_trim(image);
    }
    return r;
}

/* ---- shrink ---- */

static int drop_entry(Image *image, uint32_t index, uint64_t length)
{
    VhdxState *s = image->state;
    uint64_t entry;
    int r = vhdx_entry_get(image, index, &entry);
    if (r == 0 && vhdx_has_place(entry)) {
        VhdxRange place = {vhdx_entry_offset(entry), length};
        vhdx_space_free(s, place);
        metacache_forget(s->tables, place.offset, place.length); /* sector bits */
        (void)store_punch(image->store, place.offset, place.length, STORE_PUNCH_FREE);
    }
    vhdx_space_give_back(s, index); /* what a failed write left */
    return r < 0 ? r : set_entry(image, index, VHDX_NOT_PRESENT);
}

/* Frees blocks [s->blocks, end), and sector bits that only they need. */
static int drop_rest(Image *image, uint32_t end)
{
    const VhdxState *s = image->state;
    int r = 0;
    for (uint32_t block = s->blocks; r == 0 && block < end; block++) {
        r = drop_entry(image, vhdx_block_entry(s, block), s->block_size);
        if (r == 0 && s->has_parent && block % s->chunk_ratio == 0) {
            r = drop_entry(image, vhdx_bits_entry(s, block), VHDX_MIB);
        }
    }
    vhdx_update_dirty(image->state);
    r = r < 0 ? r : vhdx_flush(image);
    return r < 0 ? r : vhdx_trim(image);
}

static int shrink(Image *image, uint64_t size)
{
    const VhdxState *s = image->state;
    uint32_t end = s->blocks;
    int r = set_size(image, size, 0);
    if (r < 0) {
        return r;
    }
    r = drop_rest(image, end);
    if (r < 0) {
        log_warning("%s: is smaller now, but keeps space that it does not need: %s", image->path,
                    g_strerror(-r));
    }
    return 0;
}

bool vhdx_resize(Image *image, uint64_t size, GError **error)
{
    const VhdxState *s = image->state;
    size = align_up(size, s->sector_size);
    if (size > VHDX_DISK_MAX) {
        return error_set(error, EFBIG, "%s: size is %" PRIu64 ": must be at most 64T for vhdx",
                         image->path, size);
    }
    int r = vhdx_flush(image);
    if (r == 0 && size != image->size) {
        r = size > image->size ? grow(image, size) : shrink(image, size);
    }
    return r == 0 || error_set_errno(error, -r, "%s: cannot make the disk %" PRIu64 " bytes",
                                     image->path, size);
}
