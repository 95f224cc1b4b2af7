/*
 * A sparse vmdk extent of newer ESX ("SESPARSE", space efficient): its headers and entries. Where the grains are found
 * by them is vmdk-sparse.c's.
 *
 *     offset size  meaning of the constant header (all little endian; places and lengths in sectors of 512 bytes)
 *          0    8  magic 0xcafebabe
 *          8    8  version, major and minor: 0x200000001
 *         16    8  capacity
 *         24    8  grain size, 8
 *         32    8  grain table size, 64: 4096 entries of 8 bytes
 *         40    8  flags, 0
 *         48   32  reserved, 0
 *         80   16  place and length of the volatile header; then of the journal's header (96), the journal (112),
 *                  grain directory (128), grain tables (144), free bitmap (160), backmap (176), grains (192)
 *
 *     volatile header: magic 0xcafecafe, free table number, next transaction, replay journal (0)
 *
 *     directory entry   0, or 0x1 at the top and below it the number of a table within the grain tables
 *     table entry       by its top four bits: 0 not here, 1 unmapped by the guest (reads as zeroes), 2 zeroes,
 *                       3 a grain: bits 48 to 59 are the low 12 bits of its number within the grains, bits 0 to 47 the rest
 *
 * There is no public specification; this is what other readers know of it. So whatever is not as above is refused.
 *
 * What must stay true: a number that leaves here as a place lies within the area that the header gives its kind.
 */
#include "formats/vmdk.h"

#include <errno.h>

#include "base/bytes.h"
#include "base/errors.h"

#define SESPARSE_VERSION        UINT64_C(0x200000001)
#define SESPARSE_GRAIN          8u  /* sectors */
#define SESPARSE_TABLE          64u /* sectors */
#define SESPARSE_ENTRY_SIZE     8u
#define SESPARSE_VOLATILE_MAGIC UINT64_C(0xcafecafe)

#define ENTRY_TYPE_SHIFT        60
#define ENTRY_NUMBER            ((UINT64_C(1) << ENTRY_TYPE_SHIFT) - 1)
#define DIRECTORY_TABLE         1u

enum { GRAIN_NONE, GRAIN_UNMAPPED, GRAIN_ZERO, GRAIN_DATA };

typedef struct __attribute__((packed)) VmdkArea {
    uint64_t offset, length; /* sectors */
} VmdkArea;

typedef struct __attribute__((packed)) VmdkSesparseHeaderDisk {
    uint64_t magic, version, capacity, grain_size, table_size, flags;
    uint64_t reserved[4];
    VmdkArea volatile_header, journal_header, journal;
    VmdkArea directory, tables, free_bitmap, backmap, grains;
    uint8_t padding[304];
} VmdkSesparseHeaderDisk;

G_STATIC_ASSERT(sizeof(VmdkSesparseHeaderDisk) == VMDK_SECTOR);

typedef struct __attribute__((packed)) VmdkVolatileHeaderDisk {
    uint64_t magic, free_table, next_transaction, replay_journal;
    uint8_t padding[480];
} VmdkVolatileHeaderDisk;

G_STATIC_ASSERT(sizeof(VmdkVolatileHeaderDisk) == VMDK_SECTOR);

static int sesparse_find_table(const VmdkSparse *sparse, uint64_t entry, uint64_t *offset)
{
    uint64_t length = SESPARSE_TABLE * VMDK_SECTOR, number = entry & ENTRY_NUMBER;
    if (entry >> ENTRY_TYPE_SHIFT != DIRECTORY_TABLE || number >= sparse->tables_length / length) {
        return -EIO;
    }
    *offset = sparse->tables_offset + number * length;
    return 0;
}

static int sesparse_find_grain(const VmdkSparse *sparse, uint64_t entry, VmdkGrain *grain)
{
    uint64_t number = (entry & ENTRY_NUMBER) >> 48 | (entry & 0xffffffffffff) << 12;
    switch (entry >> ENTRY_TYPE_SHIFT) {
    case GRAIN_NONE:
        *grain = (VmdkGrain){.type = EXTENT_UNALLOCATED};
        return entry == 0 ? 0 : -EIO;
    case GRAIN_UNMAPPED:
    case GRAIN_ZERO:
        *grain = (VmdkGrain){.type = EXTENT_ZERO};
        return 0;
    case GRAIN_DATA:
        if (number >= sparse->grains_length / sparse->grain) {
            return -EIO;
        }
        *grain = (VmdkGrain){
            .type = EXTENT_DATA,
            .host_offset = sparse->grains_offset + number * sparse->grain,
        };
        return 0;
    default:
        return -EIO;
    }
}

static bool check_value(const VmdkSparse *sparse, const char *field, uint64_t value,
                        uint64_t wanted, GError **error)
{
    return value == wanted ||
           error_set(error, ENOTSUP,
                     "%s: %s is 0x%" G_GINT64_MODIFIER "x: must be 0x%" G_GINT64_MODIFIER "x",
                     sparse->store->name, field, value, wanted);
}

static bool check_constants(const VmdkSparse *sparse, const VmdkSesparseHeaderDisk *disk,
                            GError **error)
{
    bool zero = bytes_are_zero(disk->reserved, sizeof disk->reserved) &&
                bytes_are_zero(disk->padding, sizeof disk->padding);
    return check_value(sparse, "version", le64toh(disk->version), SESPARSE_VERSION, error) &&
           check_value(sparse, "grain size", le64toh(disk->grain_size), SESPARSE_GRAIN, error) &&
           check_value(sparse, "grain table size", le64toh(disk->table_size), SESPARSE_TABLE,
                       error) &&
           check_value(sparse, "flags", le64toh(disk->flags), 0, error) &&
           (zero || error_set(error, ENOTSUP, "%s: reserved bytes of the header are not 0",
                              sparse->store->name));
}

/* An area that may end behind the file: what lies in it is looked for when it is needed. */
static bool unpack_area(const VmdkSparse *sparse, const char *what, const VmdkArea *area,
                        uint64_t *offset, uint64_t *length, GError **error)
{
    uint64_t sector = le64toh(area->offset), sectors = le64toh(area->length), end;
    *offset = sector * VMDK_SECTOR;
    *length = sectors * VMDK_SECTOR;
    return (add_u64(sector, sectors, &end) && end <= INT64_MAX / VMDK_SECTOR) ||
           error_set(error, EUCLEAN,
                     "%s: the %s are %" G_GUINT64_FORMAT " sectors from %" G_GUINT64_FORMAT
                     " on: must end before 2^54",
                     sparse->store->name, what, sectors, sector);
}

static bool unpack_directory(VmdkSparse *sparse, const VmdkArea *area, GError **error)
{
    uint64_t needed = vmdk_sparse_tables(sparse) * SESPARSE_ENTRY_SIZE;
    uint64_t sectors = le64toh(area->length);
    if (sectors < div_round_up(needed, VMDK_SECTOR)) {
        return error_set(error, EUCLEAN,
                         "%s: the grain directory has %" G_GUINT64_FORMAT
                         " sectors: must be %" G_GUINT64_FORMAT " at least, for its capacity",
                         sparse->store->name, sectors, div_round_up(needed, VMDK_SECTOR));
    }
    return vmdk_sparse_directory(sparse, "grain directory offset", le64toh(area->offset), error);
}

/* A host that was cut off left its last changes in the journal, which nobody else can read. */
static bool check_volatile(const VmdkSparse *sparse, const VmdkArea *area, GError **error)
{
    VmdkVolatileHeaderDisk disk;
    uint64_t offset;
    if (!vmdk_sparse_range(sparse, "volatile header offset", le64toh(area->offset), sizeof disk,
                           &offset, error) ||
        !vmdk_sparse_read(sparse->store, offset, "volatile header", &disk, sizeof disk, error) ||
        !check_value(sparse, "volatile header's magic", le64toh(disk.magic),
                     SESPARSE_VOLATILE_MAGIC, error)) {
        return false;
    }
    return disk.replay_journal == 0 ||
           error_set(error, ENOTSUP,
                     "%s: its journal must be replayed (replay journal is %" G_GUINT64_FORMAT
                     "), which only ESX can do: open and close it there",
                     sparse->store->name, le64toh(disk.replay_journal));
}

bool vmdk_sesparse_open(VmdkSparse *sparse, GError **error)
{
    VmdkSesparseHeaderDisk disk;
    sparse->entry_size = SESPARSE_ENTRY_SIZE;
    sparse->entries_per_table = SESPARSE_TABLE * VMDK_SECTOR / SESPARSE_ENTRY_SIZE;
    sparse->find_table = sesparse_find_table;
    sparse->find_grain = sesparse_find_grain;
    return vmdk_sparse_read(sparse->store, 0, "header", &disk, sizeof disk, error) &&
           check_constants(sparse, &disk, error) &&
           vmdk_sparse_capacity(sparse, "capacity", le64toh(disk.capacity), error) &&
           vmdk_sparse_grain(sparse, le64toh(disk.grain_size), VMDK_SECTOR, error) &&
           unpack_directory(sparse, &disk.directory, error) &&
           unpack_area(sparse, "grain tables", &disk.tables, &sparse->tables_offset,
                       &sparse->tables_length, error) &&
           unpack_area(sparse, "grains", &disk.grains, &sparse->grains_offset,
                       &sparse->grains_length, error) &&
           check_volatile(sparse, &disk.volatile_header, error);
}
