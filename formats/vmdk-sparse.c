/*
 * A sparse vmdk extent: which grains it has, and where. The headers of its kinds are read by vmdk-hosted.c, vmdk-cowd.c
 * and vmdk-sesparse.c.
 *
 *     grain directory           grain tables                   grains
 *     [sector of table] ------> [sector of grain]  ----------> grainSize sectors of data, or
 *     [0: none]                 [0: not here, ask the parent]  sector (8), bytes (4), zlib stream
 *                               [1: zeroes, with flag 4]
 *
 * Directory and tables are read through the metadata cache, so that opening costs no memory, whatever capacity the
 * header claims. A compressed grain's marker is read when the grain is mapped: only it says how long the stream is.
 *
 * What must stay true: no entry is read from beyond the end of the file (a store would give zeroes there, which say
 * "not here", and old data of the parent would show).
 */
#include "formats/vmdk.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/log.h"

#define GRAIN_MARKER_SIZE  12u /* sector, length of the stream */

#define CACHE_BLOCK        4096u
#define CACHE_BLOCK_WRITER VMDK_SECTOR /* a page may hold guest data, too */
#define MARKERS_READ       16u         /* in one answer: each costs a read */
#define DIRECTORY_RUN      4096u       /* empty directory entries in one answer */

bool vmdk_sparse_probe(const uint8_t *head, size_t n)
{
    uint32_t magic = n >= 4 ? load_le32(head) : 0;
    return magic == VMDK_MAGIC || magic == VMDK_COWD_MAGIC ||
           (n >= 8 && load_le64(head) == VMDK_SESPARSE_MAGIC);
}

bool vmdk_sparse_read(Store *store, uint64_t offset, const char *what, void *bytes, size_t size,
                      GError **error)
{
    if (!range_within(offset, size, store_size(store))) {
        return error_set(error, EUCLEAN,
                         "%s: image is truncated: it ends at %" G_GUINT64_FORMAT
                         ", inside the %s at %" G_GUINT64_FORMAT,
                         store->name, store_size(store), what, offset);
    }
    int r = store_read(store, bytes, size, offset);
    return r == 0 || error_set_errno(error, -r, "%s: cannot read the %s", store->name, what);
}

bool vmdk_sparse_capacity(VmdkSparse *sparse, const char *field, uint64_t sectors, GError **error)
{
    sparse->size = sectors * VMDK_SECTOR;
    return (sectors > 0 && sectors <= INT64_MAX / VMDK_SECTOR) ||
           error_set(error, EUCLEAN,
                     "%s: %s is %" G_GUINT64_FORMAT " sectors: must be 1 to 2^54 - 1",
                     sparse->store->name, field, sectors);
}

bool vmdk_sparse_grain(VmdkSparse *sparse, uint64_t sectors, uint32_t least, GError **error)
{
    sparse->grain = sectors * VMDK_SECTOR;
    return (is_power_of_two(sectors) && sectors >= least / VMDK_SECTOR &&
            sectors <= VMDK_GRAIN_MAX / VMDK_SECTOR) ||
           error_set(error, EUCLEAN,
                     "%s: grainSize is %" G_GUINT64_FORMAT
                     " sectors: must be a power of two from %u to %u",
                     sparse->store->name, sectors, least / VMDK_SECTOR,
                     VMDK_GRAIN_MAX / VMDK_SECTOR);
}

bool vmdk_sparse_range(const VmdkSparse *sparse, const char *field, uint64_t sector,
                       uint64_t length, uint64_t *offset, GError **error)
{
    uint64_t size = store_size(sparse->store);
    if (!mul_u64(sector, VMDK_SECTOR, offset) || !range_within(*offset, length, size)) {
        return error_set(error, EUCLEAN,
                         "%s: %s is sector %" G_GUINT64_FORMAT ", with %" G_GUINT64_FORMAT
                         " bytes: must end within the file, which has %" G_GUINT64_FORMAT " bytes",
                         sparse->store->name, field, sector, length, size);
    }
    return true;
}

uint64_t vmdk_sparse_table_covers(const VmdkSparse *sparse)
{
    return sparse->grain * sparse->entries_per_table;
}

static uint64_t table_size(const VmdkSparse *sparse)
{
    return (uint64_t)sparse->entries_per_table * sparse->entry_size;
}

uint64_t vmdk_sparse_tables(const VmdkSparse *sparse)
{
    return div_round_up(sparse->size, vmdk_sparse_table_covers(sparse));
}

bool vmdk_sparse_directory(VmdkSparse *sparse, const char *field, uint64_t sector, GError **error)
{
    if (sector == 0) {
        return error_set(error, EUCLEAN, "%s: %s is 0: must be behind the header",
                         sparse->store->name, field);
    }
    sparse->directory_length = vmdk_sparse_tables(sparse) * sparse->entry_size;
    return vmdk_sparse_range(sparse, field, sector, sparse->directory_length,
                             &sparse->directory_offset, error);
}

static int find_sector_table(const VmdkSparse *sparse, uint64_t entry, uint64_t *offset)
{
    *offset = entry * VMDK_SECTOR;
    return 0;
}

static int find_sector_grain(const VmdkSparse *sparse, uint64_t entry, VmdkGrain *grain)
{
    if (entry == 0) {
        *grain = (VmdkGrain){.type = EXTENT_UNALLOCATED};
    } else if (entry == 1 && sparse->has_zero_grains) {
        *grain = (VmdkGrain){.type = EXTENT_ZERO};
    } else {
        *grain = (VmdkGrain){.type = EXTENT_DATA, .host_offset = entry * VMDK_SECTOR};
    }
    return 0;
}

void vmdk_sparse_set_sectors(VmdkSparse *sparse)
{
    sparse->entry_size = 4;
    sparse->find_table = find_sector_table;
    sparse->find_grain = find_sector_grain;
}

/* The kind is known by the magic, whatever the descriptor calls it. */
static bool open_kind(VmdkSparse *sparse, bool write, GError **error)
{
    uint8_t magic[8];
    if (!vmdk_sparse_read(sparse->store, 0, "header", magic, sizeof magic, error)) {
        return false;
    }
    if (load_le32(magic) == VMDK_COWD_MAGIC) {
        return vmdk_cowd_open(sparse, write, error);
    }
    if (load_le64(magic) == VMDK_SESPARSE_MAGIC) {
        return vmdk_sesparse_open(sparse, error);
    }
    return vmdk_hosted_open(sparse, error);
}

VmdkSparse *vmdk_sparse_open(Store *store, uint64_t cache_limit, bool write, GError **error)
{
    g_autoptr(VmdkSparse) sparse = g_new0(VmdkSparse, 1);
    sparse->store = store;
    if (!open_kind(sparse, write, error)) {
        return NULL;
    }
    sparse->cache_block = write ? CACHE_BLOCK_WRITER : CACHE_BLOCK;
    sparse->cache =
        metacache_new(store, sparse->cache_block, max_u64(cache_limit, 16 * sparse->cache_block));
    sparse->new_tables = g_hash_table_new(NULL, NULL);
    return g_steal_pointer(&sparse);
}

void vmdk_sparse_close(VmdkSparse *sparse)
{
    if (sparse) {
        g_clear_pointer(&sparse->cache, metacache_free);
        g_clear_pointer(&sparse->new_tables, g_hash_table_unref);
        g_clear_error(&sparse->copy_error);
        g_free(sparse);
    }
}

/* Reads entries that lie side by side with one look into the cache. */
typedef struct Entries {
    const VmdkSparse *sparse;
    MetaBlock *block; /* pinned, or NULL */
} Entries;

static void entries_end(Entries *entries)
{
    if (entries->block) {
        metacache_put(entries->sparse->cache, entries->block);
    }
}

/* The entry with this number of the directory or table at `table`. */
static int entries_read(Entries *entries, uint64_t table, uint64_t index, uint64_t *value)
{
    unsigned size = entries->sparse->entry_size;
    uint64_t offset = table + index * size;
    uint64_t start = align_down(offset, entries->sparse->cache_block);
    if (!entries->block || entries->block->offset != start) {
        entries_end(entries);
        entries->block = NULL;
        int r = metacache_get(entries->sparse->cache, start, &entries->block);
        if (r < 0) {
            return r;
        }
    }
    const uint8_t *bytes = entries->block->data + (offset - start);
    *value = size == 8 ? load_le64(bytes) : load_le32(bytes);
    return 0;
}

/* A map call: the range that is still to be answered, in offsets of the extent. */
typedef struct SparseMap {
    const VmdkSparse *sparse;
    uint64_t guest_base, offset, end;
    unsigned markers_read;
    ExtentList *list;
} SparseMap;

static void add_extent(SparseMap *map, Extent extent, uint64_t end)
{
    extent.offset = map->guest_base + map->offset;
    extent.length = end - map->offset;
    extent_list_add(map->list, &extent);
    map->offset = end;
}

static int refuse_grain(const SparseMap *map, uint64_t host_offset, const char *what)
{
    log_limited(
        LOG_LEVEL_ERROR,
        "%s: the grain at offset %" G_GUINT64_FORMAT ", host offset %" G_GUINT64_FORMAT ": %s",
        map->sparse->store->name, align_down(map->offset, map->sparse->grain), host_offset, what);
    return -EIO;
}

/* Where the stream of the grain at host_offset begins and how long it is. */
static int find_stream(SparseMap *map, uint64_t host_offset, Extent *extent)
{
    const VmdkSparse *sparse = map->sparse;
    uint64_t size = store_size(sparse->store);
    uint64_t longest = 2 * sparse->grain; /* nothing that was worth compressing is longer */
    if (!range_within(host_offset, GRAIN_MARKER_SIZE, size)) {
        return refuse_grain(map, host_offset, "image is truncated: it lies beyond the end of file");
    }
    if (!sparse->has_markers) {
        extent->host_offset = host_offset;
        extent->stored_length = min_u64(longest, size - host_offset);
        return 0;
    }
    uint8_t marker[GRAIN_MARKER_SIZE];
    int r = store_read(sparse->store, marker, sizeof marker, host_offset);
    if (r < 0) {
        return r;
    }
    if (load_le64(marker) != align_down(map->offset, sparse->grain) / VMDK_SECTOR) {
        return refuse_grain(map, host_offset, "its marker belongs to another grain");
    }
    uint32_t length = load_le32(marker + 8);
    if (length == 0 || length > longest ||
        !range_within(host_offset + GRAIN_MARKER_SIZE, length, size)) {
        return refuse_grain(map, host_offset, "the length in its marker cannot be true");
    }
    extent->host_offset = host_offset + GRAIN_MARKER_SIZE;
    extent->stored_length = length;
    return 0;
}

static int map_grain(SparseMap *map, uint64_t entry, uint64_t end)
{
    const VmdkSparse *sparse = map->sparse;
    VmdkGrain grain;
    int r = sparse->find_grain(sparse, entry, &grain);
    if (r < 0) {
        return refuse_grain(map, entry, "its entry cannot be true");
    }
    if (grain.type != EXTENT_DATA) {
        add_extent(map, (Extent){.type = grain.type}, end);
        return 0;
    }
    uint64_t inside = map->offset & (sparse->grain - 1);
    Extent extent = {
        .type = EXTENT_DATA,
        .store = sparse->store,
        .host_offset = grain.host_offset + inside,
        .flags = sparse->writable ? EXTENT_WRITABLE : 0,
    };
    if (sparse->compressed) {
        extent.type = EXTENT_ENCODED;
        extent.unit_offset = inside;
        extent.unit_length = sparse->grain;
        map->markers_read++;
        r = find_stream(map, grain.host_offset, &extent);
        if (r < 0) {
            return r;
        }
    }
    add_extent(map, extent, end);
    return 0;
}

/* The grains of the table that this entry of the directory names. */
static int map_table(SparseMap *map, uint64_t directory_entry)
{
    const VmdkSparse *sparse = map->sparse;
    uint64_t first = map->offset - map->offset % vmdk_sparse_table_covers(sparse);
    uint64_t end = min_u64(map->end, first + vmdk_sparse_table_covers(sparse)), table;
    if (sparse->find_table(sparse, directory_entry, &table) < 0) {
        return refuse_grain(map, directory_entry,
                            "its entry of the grain directory cannot be true");
    }
    if (!range_within(table, table_size(sparse), store_size(sparse->store))) {
        return refuse_grain(map, table, "its grain table lies beyond the end of file");
    }
    int r = 0;
    Entries entries = {.sparse = sparse};
    while (r == 0 && map->offset < end && map->markers_read < MARKERS_READ) {
        uint64_t entry, index = (map->offset - first) / sparse->grain;
        r = entries_read(&entries, table, index, &entry);
        if (r == 0) {
            uint64_t grain_end = first + (index + 1) * sparse->grain;
            r = map_grain(map, entry, min_u64(end, grain_end));
        }
    }
    entries_end(&entries);
    return r;
}

/* How many directory entries, from index to last, name no table; *table is the one that the next names. */
static int find_table(const VmdkSparse *sparse, uint64_t index, uint64_t last, uint64_t *none,
                      uint64_t *table)
{
    int r = 0;
    Entries entries = {.sparse = sparse};
    *none = 0;
    *table = 0;
    while (r == 0 && *table == 0 && index + *none <= last && *none < DIRECTORY_RUN) {
        r = entries_read(&entries, sparse->directory_offset, index + *none, table);
        if (r == 0 && *table == 0) {
            ++*none;
        }
    }
    entries_end(&entries);
    return *none > 0 ? 0 : r;
}

/* Stops at the end of a table, of a run of directory entries that name none, or before what cannot be read. */
int vmdk_sparse_map(const VmdkSparse *sparse, uint64_t guest_base, uint64_t offset, uint64_t length,
                    ExtentList *list)
{
    SparseMap map = {
        .sparse = sparse,
        .guest_base = guest_base,
        .offset = offset,
        .end = offset + length,
        .list = list,
    };
    uint64_t covers = vmdk_sparse_table_covers(sparse);
    uint64_t index = offset / covers, last = (map.end - 1) / covers;
    uint64_t none, table;
    int r = find_table(sparse, index, last, &none, &table);
    if (r < 0) {
        return r;
    }
    if (none > 0) {
        uint64_t end = min_u64(map.end, (index + none) * covers);
        add_extent(&map, (Extent){.type = EXTENT_UNALLOCATED}, end);
        return 0;
    }
    r = map_table(&map, table);
    return map.offset > offset ? 0 : r;
}
