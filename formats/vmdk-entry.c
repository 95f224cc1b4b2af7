/*
 * vmdk: directory, tables and space of a sparse extent that is written.
 *
 *     directory ----> table ------> entry        both are changed together; the directory counts,
 *     its copy -----> its copy ---> its copy     the copy is for repairs
 *
 * Tables may share a sector with nothing, but a page with grains, so the cache has blocks of a sector.
 *
 * Space is only ever taken from the end of the file. A hosted extent does not record what is free; COWD does. A table that is not there is made
 * when it is needed; as long as no directory on the disk shows it, its entries may be written before the sync.
 */
#include <errno.h>

#include "base/bytes.h"
#include "formats/space.h"
#include "formats/vmdk-impl.h"

int vmdk_entry_get(const VmdkSparse *sparse, uint64_t place, uint32_t *entry)
{
    uint64_t start = align_down(place, sparse->cache_block);
    MetaBlock *block;
    *entry = 0;
    if (place == 0) {
        return 0;
    }
    int r = metacache_get(sparse->cache, start, &block);
    if (r == 0) {
        *entry = load_le32(block->data + (place - start));
        metacache_put(sparse->cache, block);
    }
    return r;
}

int vmdk_entry_set(VmdkSparse *sparse, uint64_t place, uint32_t entry, MetaOrder order)
{
    uint64_t start = align_down(place, sparse->cache_block);
    MetaBlock *block;
    if (place == 0) {
        return 0;
    }
    int r = metacache_get(sparse->cache, start, &block);
    if (r == 0) {
        store_le32(block->data + (place - start), entry);
        metacache_dirty(sparse->cache, block, order);
        metacache_put(sparse->cache, block);
    }
    return r;
}

/* Where the table lies that entry `index` of a directory names; 0: none. */
static int find_table(const VmdkSparse *sparse, uint64_t directory, uint64_t index, uint64_t *table)
{
    uint32_t sector;
    *table = 0;
    int r = directory == 0 ? 0 : vmdk_entry_get(sparse, directory + index * 4, &sector);
    if (r < 0 || directory == 0 || sector == 0) {
        return r;
    }
    *table = (uint64_t)sector * VMDK_SECTOR;
    uint64_t length = sparse->entries_per_table * UINT64_C(4);
    return range_within(*table, length, store_size(sparse->store)) ? 0 : -EIO;
}

int vmdk_entry_find(const VmdkSparse *sparse, uint64_t grain, VmdkPlace *place)
{
    uint64_t index = grain / sparse->entries_per_table;
    uint64_t inside = grain % sparse->entries_per_table * 4, table, copy = 0;
    int r = find_table(sparse, sparse->directory_offset, index, &table);
    r = r < 0 ? r : find_table(sparse, sparse->redundant_offset, index, &copy);
    *place = (VmdkPlace){table ? table + inside : 0, copy ? copy + inside : 0};
    return r;
}

int vmdk_entry_look(const VmdkSparse *sparse, uint64_t grain, VmdkPlace *place, uint32_t *entry)
{
    int r = vmdk_entry_find(sparse, grain, place);
    return r < 0 ? r : vmdk_entry_get(sparse, place->entry, entry);
}

int vmdk_grain_set(VmdkSparse *sparse, uint64_t grain, const VmdkPlace *place, uint32_t entry)
{
    gpointer index = GSIZE_TO_POINTER(grain / sparse->entries_per_table);
    bool is_new = g_hash_table_contains(sparse->new_tables, index);
    int r = vmdk_entry_set(sparse, place->entry, entry, is_new ? META_FIRST : META_SECOND);
    return r < 0 ? r : vmdk_entry_set(sparse, place->copy, entry, META_SECOND);
}

/* ---- space ---------------------------------------------------------------------------------- */

int vmdk_space_take(VmdkSparse *sparse, uint64_t length, uint64_t *offset, bool *fresh)
{
    uint64_t end = sparse->used_end + length;
    if (end / VMDK_SECTOR > UINT32_MAX) {
        return -ENOSPC; /* an entry cannot say it */
    }
    int r = space_grow(sparse->store, end, sparse->grain);
    if (r == 0) {
        *offset = sparse->used_end;
        *fresh = sparse->used_end >= sparse->fresh_start;
        sparse->used_end = end;
    }
    return r;
}

void vmdk_space_give_back(VmdkSparse *sparse, uint64_t offset, uint64_t length)
{
    if (offset + length == sparse->used_end) {
        sparse->fresh_start = max_u64(sparse->fresh_start, sparse->used_end);
        sparse->used_end = offset;
    }
}

int vmdk_space_record(VmdkSparse *sparse)
{
    uint32_t recorded, begin = sparse->used_end / VMDK_SECTOR;
    if (sparse->free_offset == 0 || begin == 0) {
        return 0;
    }
    int r = vmdk_entry_get(sparse, sparse->free_offset, &recorded);
    return r < 0 || recorded == begin
               ? r
               : vmdk_entry_set(sparse, sparse->free_offset, begin, META_FIRST);
}

/* ---- tables --------------------------------------------------------------------------------- */

int vmdk_table_make(VmdkSparse *sparse, uint64_t directory, uint64_t index, uint64_t *table)
{
    uint64_t length = align_up(sparse->entries_per_table * UINT64_C(4), VMDK_SECTOR);
    bool fresh;
    /* Grains stay where they are aligned. */
    int r = vmdk_space_take(sparse, align_up(length, sparse->grain), table, &fresh);
    for (uint64_t at = 0; r == 0 && at < length; at += VMDK_SECTOR) {
        MetaBlock *block;
        r = metacache_create(sparse->cache, *table + at, &block);
        if (r == 0) {
            metacache_dirty(sparse->cache, block, META_FIRST);
            metacache_put(sparse->cache, block);
        }
    }
    return r < 0 ? r
                 : vmdk_entry_set(sparse, directory + index * 4, *table / VMDK_SECTOR, META_SECOND);
}

/* With its copy, where the extent has copies. */
static int make_tables(VmdkSparse *sparse, uint64_t index)
{
    uint64_t table;
    int r = vmdk_table_make(sparse, sparse->directory_offset, index, &table);
    if (r == 0 && sparse->redundant_offset != 0) {
        r = vmdk_table_make(sparse, sparse->redundant_offset, index, &table);
    }
    if (r == 0) {
        g_hash_table_add(sparse->new_tables, GSIZE_TO_POINTER(index));
    }
    return r;
}

int vmdk_tables_make(VmdkSparse *sparse, uint64_t first, uint64_t last)
{
    int r = 0;
    for (uint64_t i = first / sparse->entries_per_table;
         r == 0 && i <= last / sparse->entries_per_table; i++) {
        uint64_t table;
        r = find_table(sparse, sparse->directory_offset, i, &table);
        r = r < 0 || table != 0 ? r : make_tables(sparse, i);
    }
    return r;
}

/* ---- copies --------------------------------------------------------------------------------- */

static int copy_entries(VmdkSparse *sparse, uint64_t from, uint64_t to)
{
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < sparse->entries_per_table * UINT64_C(4); at += 4) {
        uint32_t entry, old;
        r = vmdk_entry_get(sparse, from + at, &entry);
        r = r < 0 ? r : vmdk_entry_get(sparse, to + at, &old);
        if (r == 0 && entry != old) {
            r = vmdk_entry_set(sparse, to + at, entry, META_SECOND);
        }
    }
    return r;
}

int vmdk_table_renew(VmdkSparse *sparse, uint64_t index)
{
    uint64_t table, copy;
    int r = find_table(sparse, sparse->redundant_offset, index, &copy);
    r = r < 0 || copy == 0 ? r : vmdk_table_make(sparse, sparse->directory_offset, index, &table);
    return r < 0 || copy == 0 ? r : copy_entries(sparse, copy, table);
}

int vmdk_copy_renew(VmdkSparse *sparse, uint64_t index)
{
    uint64_t table, copy;
    int r = find_table(sparse, sparse->directory_offset, index, &table);
    r = r < 0 ? r : find_table(sparse, sparse->redundant_offset, index, &copy);
    if (r == 0 && table == 0 && copy != 0) {
        return vmdk_entry_set(sparse, sparse->redundant_offset + index * 4, 0, META_SECOND);
    }
    if (r == 0 && table != 0 && copy == 0) {
        r = vmdk_table_make(sparse, sparse->redundant_offset, index, &copy);
    }
    return r < 0 || table == 0 ? r : copy_entries(sparse, table, copy);
}
