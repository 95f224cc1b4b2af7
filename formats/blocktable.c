/*
 * The table of blocks in memory.
 *
 * Entries are kept in the machine's order. A byte a sector of the table says whether it was changed
 * since it was written last; neighbours that were are written together.
 *
 * What must stay true: a write touches the table's own bytes only; what follows it in its last
 * sector is somebody else's.
 */
#include "formats/blocktable.h"

#include <stdlib.h>

#include "base/bytes.h"
#include "base/errors.h"

#define MAP_EXTENTS_MAX 256 /* of an answer */
#define SECTOR_ENTRIES  128u
#define WRITE_SECTORS   64u /* in one write at most */

struct BlockTable {
    Store *store;
    uint64_t offset;
    uint32_t count;
    BlockTableOrder order;
    uint32_t *entries;
    uint8_t *dirty; /* by sector */
    uint32_t sectors, dirty_count;
    bool unsynced; /* was written by a flush, and no sync has covered it */
};

static uint32_t load_entry(const BlockTable *table, const void *bytes)
{
    return table->order == BLOCK_TABLE_BIG_ENDIAN ? load_be32(bytes) : load_le32(bytes);
}

static void store_entry(const BlockTable *table, void *bytes, uint32_t value)
{
    if (table->order == BLOCK_TABLE_BIG_ENDIAN) {
        store_be32(bytes, value);
    } else {
        store_le32(bytes, value);
    }
}

BlockTable *block_table_read(Store *store, uint64_t offset, uint32_t count, BlockTableOrder order,
                             GError **error)
{
    g_assert(count <= BLOCK_TABLE_MAX);
    BlockTable *table = g_new0(BlockTable, 1);
    *table = (BlockTable){.store = store, .offset = offset, .count = count, .order = order};
    table->sectors = div_round_up(count, SECTOR_ENTRIES);
    table->dirty = g_malloc0(table->sectors);
    table->entries = g_try_new(uint32_t, count);
    int r = table->entries || count == 0 ? 0 : -ENOMEM;
    if (r == 0 && count > 0) {
        r = store_read(store, table->entries, (size_t)count * 4, offset);
    }
    if (r < 0) {
        error_set_errno(error, -r, "%s: cannot read the table of blocks", store->name);
        block_table_free(table);
        return NULL;
    }
    for (uint32_t i = 0; i < count; i++) {
        table->entries[i] = load_entry(table, &table->entries[i]);
    }
    return table;
}

BlockTable *block_table_resized(const BlockTable *table, uint64_t offset, uint32_t count,
                                uint32_t fill)
{
    g_assert(count <= BLOCK_TABLE_MAX);
    uint32_t sectors = div_round_up(count, SECTOR_ENTRIES);
    BlockTable *resized = g_new0(BlockTable, 1);
    *resized = *table;
    resized->offset = offset;
    resized->count = count;
    resized->sectors = resized->dirty_count = sectors;
    resized->entries = g_try_new(uint32_t, count);
    resized->dirty = g_malloc(sectors);
    memset(resized->dirty, 1, sectors);
    if (!resized->entries && count > 0) {
        block_table_free(resized);
        return NULL;
    }
    for (uint32_t i = 0; i < count; i++) {
        resized->entries[i] = i < table->count ? table->entries[i] : fill;
    }
    return resized;
}

void block_table_free(BlockTable *table)
{
    if (table) {
        g_free(table->entries);
        g_free(table->dirty);
        g_free(table);
    }
}

uint32_t block_table_count(const BlockTable *table)
{
    return table->count;
}

uint32_t block_table_get(const BlockTable *table, uint32_t index)
{
    return table->entries[index];
}

void block_table_set(BlockTable *table, uint32_t index, uint32_t value)
{
    uint8_t *dirty = &table->dirty[index / SECTOR_ENTRIES];
    table->entries[index] = value;
    table->dirty_count += !*dirty;
    *dirty = 1;
}

bool block_table_is_dirty(const BlockTable *table)
{
    return table->dirty_count > 0 || table->unsynced;
}

static int write_run(const BlockTable *table, uint32_t first_sector, uint32_t sectors)
{
    uint8_t bytes[WRITE_SECTORS * SECTOR_ENTRIES * 4];
    uint32_t first = first_sector * SECTOR_ENTRIES;
    uint32_t count = min_u64(sectors * SECTOR_ENTRIES, table->count - first);
    for (uint32_t i = 0; i < count; i++) {
        store_entry(table, bytes + i * 4, table->entries[first + i]);
    }
    return store_write(table->store, bytes, (size_t)count * 4, table->offset + first * 4ull);
}

int block_table_write(BlockTable *table)
{
    uint32_t at = 0;
    while (at < table->sectors && table->dirty_count > 0) {
        uint32_t run = 0;
        while (run < WRITE_SECTORS && at + run < table->sectors && table->dirty[at + run]) {
            run++;
        }
        int r = run > 0 ? write_run(table, at, run) : 0;
        if (r < 0) {
            return r;
        }
        at += run > 0 ? run : 1;
    }
    memset(table->dirty, 0, table->sectors);
    table->dirty_count = 0;
    return 0;
}

int block_table_flush(BlockTable *table)
{
    if (!block_table_is_dirty(table)) {
        return 0;
    }
    table->unsynced = true;
    int r = block_table_write(table);
    r = r < 0 ? r : store_sync(table->store);
    if (r == 0) {
        table->unsynced = false;
    }
    return r;
}

int block_table_map(Image *image, uint64_t block_size, BlockAdd add, uint64_t offset,
                    uint64_t length, ExtentList *list)
{
    uint64_t end = offset + length;
    while (offset < end && list->count < MAP_EXTENTS_MAX) {
        uint32_t block = offset / block_size;
        uint64_t block_end = min_u64(end, (block + UINT64_C(1)) * block_size);
        int r = add(image, block, offset, block_end - offset, list);
        if (r < 0) {
            return list->count > 0 ? 0 : r; /* the bad block is refused when it comes first */
        }
        offset = block_end;
    }
    return 0;
}

static int compare_entries(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

uint32_t *block_table_sorted(const BlockTable *table, uint32_t without, uint32_t or_without,
                             uint32_t *count)
{
    uint32_t *sorted = g_new(uint32_t, max_u64(table->count, 1));
    *count = 0;
    for (uint32_t i = 0; i < table->count; i++) {
        if (table->entries[i] != without && table->entries[i] != or_without) {
            sorted[(*count)++] = table->entries[i];
        }
    }
    qsort(sorted, *count, sizeof *sorted, compare_entries);
    return sorted;
}
