/*
 * A sparse vmdk extent of older ESX ("VMFSSPARSE", COWD): its header, and a new one. Directory, tables and grains are
 * those of vmdk-sparse.c.
 *
 *     offset size  meaning (all little endian; offsets and lengths in sectors of 512 bytes)
 *          0    4  magic "COWD"
 *          4    4  version, 1
 *          8    4  flags: 1 root, 2 checked, 4 inconsistent
 *         12    4  numSectors, the capacity
 *         16    4  grainSize, a power of two, 1 by default
 *         20    4  gdOffset, 4 by default
 *         24    4  numGDEntries, tables of 4096 grains each
 *         28    4  freeSector, where the next grain or table goes
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
 * What must stay true: all tables that the capacity needs are in the directory, and the directory in the file. What is
 * used lies before freeSector, on the disk at any moment: ESX takes from there on without looking (vmdk-flush.c).
 */
#include "formats/vmdk-impl.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"

#define COWD_VERSION      1u
#define COWD_ROOT         0x1u
#define COWD_CHECKED      0x2u
#define COWD_INCONSISTENT 0x4u
#define COWD_FLAGS        0x7u
#define COWD_PARENT_MAX   1023u /* bytes */

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

G_STATIC_ASSERT(sizeof(VmdkCowdHeaderDisk) == VMDK_COWD_HEAD);

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

static void set_outline(const VmdkSparse *sparse, const VmdkOutline *outline, uint8_t *sector)
{
    store_le32(sector + offsetof(VmdkCowdHeaderDisk, capacity), outline->size / VMDK_SECTOR);
    store_le32(sector + offsetof(VmdkCowdHeaderDisk, directory_offset),
               outline->directory_offset / VMDK_SECTOR);
    store_le32(sector + offsetof(VmdkCowdHeaderDisk, directory_entries),
               outline->directory_length / 4);
    store_le32(sector + offsetof(VmdkCowdHeaderDisk, free_sector),
               outline->free_offset / VMDK_SECTOR);
}

/* Nothing else may lie where it does. A reader only wants what the capacity needs. */
static bool check_directory(VmdkSparse *sparse, const VmdkCowdHeaderDisk *disk, bool write,
                            GError **error)
{
    uint32_t entries = le32toh(disk->directory_entries);
    if (entries < vmdk_sparse_tables(sparse)) {
        return error_set(
            error, EUCLEAN,
            "%s: numGDEntries is %u: must be %" G_GUINT64_FORMAT " at least, for numSectors %u",
            sparse->store->name, entries, vmdk_sparse_tables(sparse), le32toh(disk->capacity));
    }
    uint64_t length = entries * UINT64_C(4), offset;
    bool whole = vmdk_sparse_range(sparse, "gdOffset", le32toh(disk->directory_offset), length,
                                   &offset, write ? error : NULL);
    sparse->directory_length = whole ? length : sparse->directory_length;
    sparse->directory_claims = whole ? 0 : entries;
    return whole || !write;
}

bool vmdk_cowd_open(VmdkSparse *sparse, bool write, GError **error)
{
    VmdkCowdHeaderDisk disk;
    vmdk_sparse_set_sectors(sparse);
    sparse->entries_per_table = VMDK_COWD_ENTRIES;
    if (!vmdk_sparse_read(sparse->store, 0, "header", &disk, sizeof disk, error) ||
        !check_version(sparse->store->name, &disk, error) ||
        !vmdk_sparse_capacity(sparse, "numSectors", le32toh(disk.capacity), error) ||
        !vmdk_sparse_grain(sparse, le32toh(disk.grain_size), VMDK_SECTOR, error) ||
        !vmdk_sparse_directory(sparse, "gdOffset", le32toh(disk.directory_offset), error)) {
        return false;
    }
    sparse->is_alone = le32toh(disk.flags) & COWD_ROOT;
    sparse->is_unclean = disk.unclean_shutdown != 0;
    sparse->head_length = sizeof disk;
    sparse->set_outline = set_outline;
    sparse->unclean_offset = offsetof(VmdkCowdHeaderDisk, unclean_shutdown);
    sparse->free_offset = offsetof(VmdkCowdHeaderDisk, free_sector);
    return check_directory(sparse, &disk, write, error);
}

void vmdk_cowd_pack(const VmdkPlan *plan, const VmdkLayout *layout, const char *parent,
                    uint8_t *head)
{
    VmdkCowdHeaderDisk disk = {
        .magic = htole32(VMDK_COWD_MAGIC),
        .version = htole32(COWD_VERSION),
        .flags = htole32(COWD_CHECKED | (parent ? 0 : COWD_ROOT)),
        .capacity = htole32(layout->capacity),
        .grain_size = htole32(plan->grain / VMDK_SECTOR),
        .directory_offset = htole32(layout->directory),
        .directory_entries = htole32(layout->tables),
        .free_sector = htole32(layout->grains),
    };
    if (!parent) {
        VmdkGeometry geometry = vmdk_plan_geometry(plan);
        store_le32(disk.geometry_or_parent, geometry.cylinders);
        store_le32(disk.geometry_or_parent + 4, geometry.heads);
        store_le32(disk.geometry_or_parent + 8, geometry.sectors);
    } else if (strlen(parent) <= COWD_PARENT_MAX) { /* else the descriptor alone says it */
        memcpy(disk.geometry_or_parent, parent, strlen(parent));
    }
    memcpy(head, &disk, sizeof disk);
}

int vmdk_cowd_pack_like(const VmdkSparse *old, const VmdkLayout *layout, uint8_t *head)
{
    VmdkCowdHeaderDisk disk;
    int r = store_read(old->store, &disk, sizeof disk, 0);
    disk.capacity = htole32(layout->capacity);
    disk.directory_offset = htole32(layout->directory);
    disk.directory_entries = htole32(layout->tables);
    disk.free_sector = htole32(layout->grains);
    disk.unclean_shutdown = 0;
    memcpy(head, &disk, sizeof disk);
    return r;
}
