/*
 * vdi: another size of the disk.
 *
 *     grow     entries behind the end are dropped, the rest of the last block is cleared -> flush
 *              -> room in the table -> size and number of blocks, in the header's sector -> sync
 *     shrink   size in the header -> sync -> entries behind the end are dropped -> flush
 *              -> the last blocks are copied to where those were -> flush -> the end of the file goes (vdi_finish)
 *
 * The table lies before the blocks. When it needs the room of the first of them, these are copied behind the last one,
 * as blocks are at any time: copies, then the table. A new table goes to where they were, which nobody uses any more;
 * it counts blocks of the file from the first that stays. Then the header's sector changes to all of it at once:
 *
 *     header | table | 0 | 1 | 2 | 3 |     -->     header | ..... | table | 0 | 1 | 2 | 3 |
 *                      A   B   C   D                                  C   D   A   B
 *
 * What is behind the end of the disk never shows: a cut while it shrinks may leave entries there, and the next growth
 * drops whatever it finds, ours or not.
 *
 * A write of the header that fails leaves unknown what the disk has: then nothing is written any more.
 */
#include "formats/vdi.h"

#include <errno.h>

#include "base/errors.h"
#include "base/log.h"
#include "formats/copyup.h"
#include "formats/space.h"

/* The header that is to be: all in one sector. */
static int write_header(Image *image, const VdiHeader *header)
{
    VdiState *s = image->state;
    uint8_t sector[VDI_SECTOR];
    int r = store_read(image->store, sector, sizeof sector, 0);
    if (r < 0) {
        return r;
    }
    store_le32(sector + VDI_H_TABLE, header->table_offset);
    store_le32(sector + VDI_H_DATA, header->data_offset);
    store_le64(sector + VDI_H_DISK_SIZE, header->size);
    store_le32(sector + VDI_H_BLOCKS, header->blocks);
    store_le32(sector + VDI_H_ALLOCATED, header->allocated);
    r = store_write(image->store, sector, sizeof sector, 0);
    r = r < 0 ? r : store_sync(image->store);
    if (r < 0) {
        s->broken = -EIO;
        return r;
    }
    s->header = *header;
    s->allocated_on_disk = header->allocated;
    image->size = header->size;
    return 0;
}

/* What the block that the end of the disk cuts holds behind the end. */
static int clear_last(Image *image)
{
    VdiState *s = image->state;
    uint64_t used = image->size % s->header.block_size;
    uint32_t block = image->size / s->header.block_size;
    if (used == 0) {
        return 0;
    }
    int r = 0;
    if (block_table_get(s->table, block) == VDI_UNALLOCATED && space_backing_is_longer(image)) {
        r = copy_up(image, image->size - used, used);
    }
    uint32_t entry = block_table_get(s->table, block);
    if (r == 0 && vdi_is_place(entry)) {
        r = space_make_fresh(image->store, vdi_host_offset(s, entry) + used,
                             s->header.block_size - used, UINT64_MAX);
    }
    return r;
}

/* What a block that the disk gains is: a longer backing must not show. */
static uint32_t gained(const Image *image)
{
    return space_backing_is_longer(image) ? VDI_ZERO : VDI_UNALLOCATED;
}

/* Blocks of the file from which on the table of so many entries may begin to count. */
static uint64_t blocks_in_the_way(const VdiState *s, uint32_t count)
{
    const VdiHeader *header = &s->header;
    if (header->table_offset + count * UINT64_C(4) <= header->data_offset) {
        return 0;
    }
    uint64_t table = align_up(header->data_offset, VDI_SECTOR);
    return div_round_up(table + count * UINT64_C(4) - header->data_offset, s->stride);
}

/* Copies the file's first blocks behind the last one; durable. */
static int move_blocks(Image *image, uint32_t first_to_stay)
{
    VdiState *s = image->state;
    int r = 0;
    g_hash_table_remove_all(s->reserved);
    s->fresh_start = store_size(image->store);
    s->next_place = max_u64(s->next_place, first_to_stay);
    for (uint32_t block = 0; r == 0 && block < block_table_count(s->table); block++) {
        uint32_t from = block_table_get(s->table, block), to;
        bool fresh;
        if (!vdi_is_place(from) || from >= first_to_stay) {
            continue;
        }
        r = vdi_reserve(image, block, &to, &fresh);
        r = r < 0 ? r
                  : space_copy(image->store, s->header.data_offset + from * s->stride,
                               s->header.data_offset + to * s->stride, s->stride);
        if (r == 0) {
            vdi_link(s, block, to);
        }
    }
    atomic_store(&s->dirty, true);
    return r < 0 ? r : vdi_flush(image);
}

/* Writes a table of so many entries, which counts from block `first` of the file on, where nobody looks. */
static int write_table(Image *image, uint32_t count, uint32_t first, VdiHeader *header,
                       BlockTable **result)
{
    const VdiState *s = image->state;
    if (first > 0) {
        header->table_offset = align_up(header->data_offset, VDI_SECTOR);
        header->data_offset += first * s->stride;
        header->allocated = s->next_place - first;
    }
    BlockTable *table = block_table_resized(s->table, header->table_offset, count, gained(image));
    if (!table) {
        return -ENOMEM;
    }
    for (uint32_t block = 0; first > 0 && block < block_table_count(s->table); block++) {
        uint32_t entry = block_table_get(table, block);
        if (vdi_is_place(entry)) {
            block_table_set(table, block, entry - first);
        }
    }
    int r = block_table_write(table);
    r = r < 0 ? r : store_sync(image->store);
    *result = table;
    return r;
}

/* All that the new size needs but the blocks of a fixed image is written at once with it. */
static int change_table(Image *image, uint64_t size, uint32_t count)
{
    VdiState *s = image->state;
    VdiHeader header = s->header;
    BlockTable *table = NULL;
    uint32_t first = blocks_in_the_way(s, count);
    header.size = size;
    header.blocks = count;
    header.allocated = s->allocated_on_disk;
    if (header.data_offset + first * s->stride > UINT32_MAX) {
        return -EFBIG;
    }
    int r = first > 0 ? move_blocks(image, first) : 0;
    r = r < 0 ? r : write_table(image, count, first, &header, &table);
    r = r < 0 ? r : write_header(image, &header);
    if (r < 0) {
        block_table_free(table);
        return r;
    }
    block_table_free(s->table);
    s->table = table;
    s->next_place -= first;
    return 0;
}

static int fill_fixed(Image *image, uint32_t from)
{
    VdiState *s = image->state;
    int r = 0;
    for (uint32_t block = from; r == 0 && block < block_table_count(s->table); block++) {
        uint32_t place;
        bool fresh;
        if (!vdi_is_place(block_table_get(s->table, block))) {
            r = vdi_reserve(image, block, &place, &fresh);
            if (r == 0) {
                vdi_link(s, block, place);
            }
        }
    }
    atomic_store(&s->dirty, true);
    return r < 0 ? r : vdi_flush(image);
}

static int grow(Image *image, uint64_t size)
{
    VdiState *s = image->state;
    uint32_t from = div_round_up(image->size, s->header.block_size);
    uint32_t count = max_u64(div_round_up(size, s->header.block_size), s->header.blocks);
    int r = clear_last(image);
    for (uint32_t block = from; r == 0 && block < s->header.blocks; block++) {
        block_table_set(s->table, block, gained(image));
    }
    atomic_store(&s->dirty, true);
    r = r < 0 ? r : vdi_flush(image);
    r = r < 0 ? r : change_table(image, size, count);
    return r == 0 && s->header.type == VDI_FIXED ? fill_fixed(image, from) : r;
}

/* The blocks of the file that the table does not show, below `count`, ascending. */
static GArray *free_places(const BlockTable *table, uint32_t *count)
{
    g_autofree uint32_t *used = block_table_sorted(table, VDI_UNALLOCATED, VDI_ZERO, count);
    GArray *free = g_array_new(false, false, sizeof(uint32_t));
    uint32_t at = 0;
    for (uint32_t place = 0; place < *count; place++) {
        if (used[at] == place) {
            at++;
        } else {
            g_array_append_val(free, place);
        }
    }
    return free;
}

/* Leaves no gap between blocks: other programs count what lies behind the last one, and nothing else, as free. What
 * the table does not show has been durable, so any block may have it. */
static int pack(Image *image)
{
    VdiState *s = image->state;
    uint32_t count, moved = 0;
    g_autoptr(GArray) free = free_places(s->table, &count);
    int r = 0;
    for (uint32_t block = 0; r == 0 && block < block_table_count(s->table); block++) {
        uint32_t place = block_table_get(s->table, block);
        if (!vdi_is_place(place) || place < count) {
            continue;
        }
        uint32_t to = g_array_index(free, uint32_t, moved++);
        r = space_copy(image->store, s->header.data_offset + place * s->stride,
                       s->header.data_offset + to * s->stride, s->stride);
        if (r == 0) {
            block_table_set(s->table, block, to);
        }
    }
    atomic_store(&s->dirty, true);
    r = r < 0 ? r : vdi_flush(image);
    s->next_place = r == 0 ? count : s->next_place;
    return r;
}

/* Frees what lies behind the end of the disk. */
static int drop_rest(Image *image)
{
    VdiState *s = image->state;
    uint32_t first = div_round_up(image->size, s->header.block_size);
    for (uint32_t block = first; block < block_table_count(s->table); block++) {
        block_table_set(s->table, block, VDI_UNALLOCATED);
    }
    g_hash_table_remove_all(s->reserved); /* of failed writes: nobody's now */
    s->fresh_start = store_size(image->store);
    s->size_at_open = 0; /* also the end of the file goes */
    atomic_store(&s->dirty, true);
    int r = vdi_flush(image);
    return r < 0 ? r : pack(image);
}

static int shrink(Image *image, uint64_t size)
{
    VdiHeader header = vdi_state(image)->header;
    header.size = size;
    header.allocated = vdi_state(image)->allocated_on_disk;
    int r = write_header(image, &header);
    if (r < 0) {
        return r;
    }
    r = drop_rest(image);
    if (r < 0) {
        log_warning("%s: is smaller now, but keeps space that it does not need: %s", image->path,
                    g_strerror(-r));
    }
    return 0;
}

bool vdi_resize(Image *image, uint64_t size, GError **error)
{
    VdiState *s = image->state;
    uint64_t most = (uint64_t)s->header.block_size * BLOCK_TABLE_MAX;
    size = align_up(size, VDI_SECTOR);
    if (size > most) {
        return error_set(error, EFBIG,
                         "%s: size is %" PRIu64 ": must be at most %" PRIu64
                         " with blocks of %u bytes",
                         image->path, size, most, s->header.block_size);
    }
    int r = vdi_flush(image);
    if (r == 0 && size != image->size) {
        r = size > image->size ? grow(image, size) : shrink(image, size);
    }
    return r == 0 || error_set_errno(error, -r, "%s: cannot make the disk %" PRIu64 " bytes",
                                     image->path, size);
}
