/*
 * A sparse vmdk extent of older ESX ("VMFSSPARSE", COWD): its header. Directory, tables and grains are those of
 * vmdk-sparse.c.
 *
 *     offset size  meaning (all little endian; offsets and lengths in sectors of 512 bytes)
 *          0    4  magic "COWD"
 *          4    4  version, 1
 *          8    4  flags: 1 root, 2 checked, 4 inconsistent
 *         12    4  numSectors, the capacity
 *         16    4  grainSize, a power of two, 1 by default
 *         20    4  gdOffset, 4 by default
 *         24    4  numGDEntries, tables of 4096 grains each
 *         28    4  freeSector, where the next grain goes
 *         32 1028  root: geometry; else: the parent's file name (1024) and its generation
 *       1060    4  generation
 *       1064   60  name
 *       1124  512  description
 *       1636    4  savedGeneration
 *       1648    4  uncleanShutdown
 *
 * It has no descriptor. One that is a root can be a disk by itself; another one has a parent, of which only a descriptor
 * file says by a CID which one that is.
 *
 * What must stay true: all tables that the capacity needs are in the directory, and the directory in the file.
 */
#include "formats/vmdk.h"

#include <errno.h>

#include "base/bytes.h"
#include "base/errors.h"

#define COWD_VERSION      1u
#define COWD_ROOT         0x1u
#define COWD_INCONSISTENT 0x4u
#define COWD_FLAGS        0x7u
#define COWD_ENTRIES      4096u /* in a grain table */

typedef struct __attribute__((packed)) VmdkCowdHeaderDisk {
    uint32_t magic, version, flags;
    uint32_t capacity, grain_size;
    uint32_t directory_offset, directory_entries, free_sector;
    uint8_t geometry_or_parent[1028];
    uint32_t generation;
    char name[60], description[512];
    uint32_t saved_generation;
    uint8_t reserved[8];
    uint32_t unclean_shutdown;
    uint8_t padding[396];
} VmdkCowdHeaderDisk;

G_STATIC_ASSERT(sizeof(VmdkCowdHeaderDisk) == 4 * VMDK_SECTOR);

static bool check_version(const char *name, const VmdkCowdHeaderDisk *disk, GError **error)
{
    uint32_t version = le32toh(disk->version), flags = le32toh(disk->flags);
    if (version != COWD_VERSION) {
        return error_set(error, ENOTSUP, "%s: version is %u: must be %u", name, version,
                         COWD_VERSION);
    }
    if (flags & ~COWD_FLAGS) {
        return error_set(error, ENOTSUP, "%s: flags are 0x%x: must be of 0x%x", name, flags,
                         COWD_FLAGS);
    }
    return !(flags & COWD_INCONSISTENT) ||
           error_set(error, EUCLEAN, "%s: flags are 0x%x: the disk is marked inconsistent (0x%x)",
                     name, flags, COWD_INCONSISTENT);
}

bool vmdk_cowd_open(VmdkSparse *sparse, GError **error)
{
    VmdkCowdHeaderDisk disk;
    vmdk_sparse_set_sectors(sparse);
    sparse->entries_per_table = COWD_ENTRIES;
    if (!vmdk_sparse_read(sparse->store, 0, "header", &disk, sizeof disk, error) ||
        !check_version(sparse->store->name, &disk, error) ||
        !vmdk_sparse_capacity(sparse, "numSectors", le32toh(disk.capacity), error) ||
        !vmdk_sparse_grain(sparse, le32toh(disk.grain_size), VMDK_SECTOR, error) ||
        !vmdk_sparse_directory(sparse, "gdOffset", le32toh(disk.directory_offset), error)) {
        return false;
    }
    sparse->is_alone = le32toh(disk.flags) & COWD_ROOT;
    uint32_t entries = le32toh(disk.directory_entries);
    return entries >= vmdk_sparse_tables(sparse) ||
           error_set(
               error, EUCLEAN,
               "%s: numGDEntries is %u: must be %" G_GUINT64_FORMAT " at least, for numSectors %u",
               sparse->store->name, entries, vmdk_sparse_tables(sparse), le32toh(disk.capacity));
}
