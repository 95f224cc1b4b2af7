/*
 * The header of a "hosted" sparse vmdk extent (KDMV). Directory, tables and grains are those of vmdk-sparse.c.
 *
 *     offset size  meaning (all little endian; offsets and lengths in sectors of 512 bytes)
 *          0    4  magic "KDMV"
 *          4    4  version, 1 to 3
 *          8    4  flags: 1 newline test, 2 redundant directory, 4 zero grains,
 *                 0x10000 compressed, 0x20000 markers
 *         12    8  capacity
 *         20    8  grainSize, a power of two
 *         28    8  descriptorOffset: the embedded descriptor, 0 when there is none
 *         36    8  descriptorSize
 *         44    4  numGTEsPerGT, entries of one grain table
 *         48    8  rgdOffset, the redundant directory
 *         56    8  gdOffset, or -1: look into the footer, a copy of the header 1024 bytes
 *                 before the end of the file
 *         64    8  overHead
 *         72    1  uncleanShutdown
 *         73    4  LF, space, CR, LF: damaged by whatever changes the ends of lines
 *         77    2  compressAlgorithm, 1 is deflate
 *
 * All that says what the extent is lies in one sector, so that it gets another size and another directory at once.
 *
 * What must stay true: whatever the header, what leaves here lies in the file, and no size overflows.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/vmdk.h"

#define FLAG_NEWLINE_TEST 0x1u
#define FLAG_REDUNDANT    0x2u
#define FLAG_ZERO_GRAINS  0x4u
#define FLAG_COMPRESSED   0x10000u
#define FLAG_MARKERS      0x20000u

#define MARKER_FOOTER     3u
#define MARKER_SIZE       512u /* of the special ones */

#define GRAIN_MIN         4096u /* bytes */
#define ENTRIES_MAX       512u  /* in a grain table */

typedef struct __attribute__((packed)) VmdkHeaderDisk {
    uint32_t magic, version, flags;
    uint64_t capacity, grain_size, descriptor_offset, descriptor_size;
    uint32_t entries_per_table;
    uint64_t redundant_directory_offset, directory_offset, overhead;
    uint8_t unclean_shutdown;
    char newlines[4];
    uint16_t compression;
    uint8_t padding[433];
} VmdkHeaderDisk;

G_STATIC_ASSERT(sizeof(VmdkHeaderDisk) == VMDK_SECTOR);

static bool read_header(Store *store, uint64_t offset, const char *what, VmdkHeaderDisk *disk,
                        GError **error)
{
    if (!vmdk_sparse_read(store, offset, what, disk, sizeof *disk, error)) {
        return false;
    }
    if (le32toh(disk->magic) != VMDK_MAGIC) {
        return error_set(error, EUCLEAN, "%s: the magic of the %s is %08x: must be %08x (KDMV)",
                         store->name, what, le32toh(disk->magic), VMDK_MAGIC);
    }
    return true;
}

/* A stream that was written in one go: the header that counts comes last, between two markers. */
static bool read_footer(Store *store, VmdkHeaderDisk *disk, GError **error)
{
    uint64_t size = store_size(store);
    if (size < 4 * VMDK_SECTOR) {
        return error_set(error, EUCLEAN,
                         "%s: image is truncated: no room for the footer of gdOffset -1",
                         store->name);
    }
    uint8_t marker[16];
    uint64_t offset = size - 2 * VMDK_SECTOR;
    int r = store_read(store, marker, sizeof marker, offset - MARKER_SIZE);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the footer's marker", store->name);
    }
    if (load_le32(marker + 8) != 0 || load_le32(marker + 12) != MARKER_FOOTER) {
        return error_set(
            error, EUCLEAN,
            "%s: gdOffset is -1, but the marker before the footer has size %u, type %u: "
            "must be 0, %u (image is truncated?)",
            store->name, load_le32(marker + 8), load_le32(marker + 12), MARKER_FOOTER);
    }
    if (!read_header(store, offset, "footer", disk, error)) {
        return false;
    }
    if (le64toh(disk->directory_offset) == VMDK_DIRECTORY_IN_FOOTER) {
        return error_set(error, EUCLEAN, "%s: gdOffset of the footer is -1: must be a sector",
                         store->name);
    }
    return true;
}

static bool check_version(const char *name, const VmdkHeaderDisk *disk, GError **error)
{
    uint32_t version = le32toh(disk->version);
    if (version < 1 || version > 3) {
        return error_set(error, ENOTSUP, "%s: version is %u: must be 1, 2 or 3", name, version);
    }
    if ((le32toh(disk->flags) & FLAG_NEWLINE_TEST) && memcmp(disk->newlines, "\n \r\n", 4) != 0) {
        return error_set(
            error, EUCLEAN,
            "%s: the newline test is %02x %02x %02x %02x: must be 0a 20 0d 0a (the file "
            "was copied as text?)",
            name, (uint8_t)disk->newlines[0], (uint8_t)disk->newlines[1],
            (uint8_t)disk->newlines[2], (uint8_t)disk->newlines[3]);
    }
    return true;
}

static bool unpack_compression(VmdkSparse *out, const char *name, const VmdkHeaderDisk *disk,
                               GError **error)
{
    uint32_t flags = le32toh(disk->flags);
    uint16_t compression = le16toh(disk->compression);
    out->compressed = flags & FLAG_COMPRESSED;
    out->has_markers = flags & FLAG_MARKERS;
    out->has_zero_grains = flags & FLAG_ZERO_GRAINS;
    if (compression != (out->compressed ? 1 : 0)) {
        return error_set(error, EUCLEAN,
                         "%s: compressAlgorithm is %u: must be %s, as flags are 0x%x", name,
                         compression, out->compressed ? "1 (deflate)" : "0", flags);
    }
    return true;
}

static bool unpack_sizes(VmdkSparse *out, const VmdkHeaderDisk *disk, GError **error)
{
    out->entries_per_table = le32toh(disk->entries_per_table);
    if (!vmdk_sparse_capacity(out, "capacity", le64toh(disk->capacity), error) ||
        !vmdk_sparse_grain(out, le64toh(disk->grain_size), GRAIN_MIN, error)) {
        return false;
    }
    return (out->entries_per_table > 0 && out->entries_per_table <= ENTRIES_MAX) ||
           error_set(error, EUCLEAN, "%s: numGTEsPerGT is %u: must be 1 to %u", out->store->name,
                     out->entries_per_table, ENTRIES_MAX);
}

static bool unpack_places(VmdkSparse *out, const VmdkHeaderDisk *disk, GError **error)
{
    if (!vmdk_sparse_directory(out, "gdOffset", le64toh(disk->directory_offset), error)) {
        return false;
    }
    uint64_t descriptor = le64toh(disk->descriptor_offset);
    uint64_t sectors = le64toh(disk->descriptor_size);
    if (descriptor == 0) {
        return true;
    }
    if (sectors > VMDK_DESCRIPTOR_MAX / VMDK_SECTOR) {
        return error_set(error, EUCLEAN,
                         "%s: descriptorSize is %" G_GUINT64_FORMAT " sectors: must be %u at most",
                         out->store->name, sectors, VMDK_DESCRIPTOR_MAX / VMDK_SECTOR);
    }
    out->descriptor_length = sectors * VMDK_SECTOR;
    return vmdk_sparse_range(out, "descriptorOffset", descriptor, out->descriptor_length,
                             &out->descriptor_offset, error);
}

/* For writers and repairs: a reader does not look at the copy. It may be where the directory is: then there is none. */
static void unpack_redundant(VmdkSparse *out, const VmdkHeaderDisk *disk)
{
    uint64_t sector = le64toh(disk->redundant_directory_offset);
    if (!(le32toh(disk->flags) & FLAG_REDUNDANT) || sector == 0 ||
        sector == le64toh(disk->directory_offset)) {
        return;
    }
    if (!vmdk_sparse_range(out, "rgdOffset", sector, vmdk_sparse_tables(out) * out->entry_size,
                           &out->redundant_offset, &out->copy_error)) {
        out->redundant_offset = 0;
    }
}

int vmdk_hosted_drop_copy(VmdkSparse *sparse)
{
    uint8_t flags[4];
    uint64_t place = offsetof(VmdkHeaderDisk, flags);
    int r = store_read(sparse->store, flags, sizeof flags, place);
    if (r == 0) {
        store_le32(flags, load_le32(flags) & ~FLAG_REDUNDANT);
        r = store_write(sparse->store, flags, sizeof flags, place);
    }
    r = r < 0 ? r : store_sync(sparse->store);
    if (r == 0) {
        g_clear_error(&sparse->copy_error);
    }
    return r;
}

static bool header_unpack(VmdkSparse *out, const VmdkHeaderDisk *disk, GError **error)
{
    const char *name = out->store->name;
    return check_version(name, disk, error) && unpack_compression(out, name, disk, error) &&
           unpack_sizes(out, disk, error) && unpack_places(out, disk, error);
}

void vmdk_header_pack(const VmdkHeader *header, uint8_t *sector)
{
    uint32_t version = header->compressed ? 3 : header->zero_grains ? 2 : 1;
    VmdkHeaderDisk disk = {
        .magic = htole32(VMDK_MAGIC),
        .version = htole32(version),
        .flags = htole32(FLAG_NEWLINE_TEST | (header->redundant ? FLAG_REDUNDANT : 0) |
                         (header->zero_grains ? FLAG_ZERO_GRAINS : 0) |
                         (header->compressed ? FLAG_COMPRESSED | FLAG_MARKERS : 0)),
        .capacity = htole64(header->capacity),
        .grain_size = htole64(header->grain),
        .descriptor_offset = htole64(header->descriptor),
        .descriptor_size = htole64(header->descriptor_sectors),
        .entries_per_table = htole32(header->entries_per_table),
        .redundant_directory_offset = htole64(header->redundant),
        .directory_offset = htole64(header->directory),
        .overhead = htole64(header->overhead),
        .newlines = {'\n', ' ', '\r', '\n'},
        .compression = htole16(header->compressed ? 1 : 0),
    };
    memcpy(sector, &disk, sizeof disk);
}

/* Where one directory is its own copy, it stays so. */
static void set_outline(const VmdkSparse *sparse, const VmdkOutline *outline, uint8_t *sector)
{
    VmdkHeaderDisk disk;
    memcpy(&disk, sector, sizeof disk);
    bool is_own_copy = disk.redundant_directory_offset == disk.directory_offset;
    disk.capacity = htole64(outline->size / VMDK_SECTOR);
    disk.directory_offset = htole64(outline->directory_offset / VMDK_SECTOR);
    disk.descriptor_offset = htole64(outline->descriptor_offset / VMDK_SECTOR);
    if (outline->redundant_offset != 0) {
        disk.redundant_directory_offset = htole64(outline->redundant_offset / VMDK_SECTOR);
    } else if (is_own_copy) {
        disk.redundant_directory_offset = disk.directory_offset;
    }
    memcpy(sector, &disk, sizeof disk);
}

bool vmdk_hosted_open(VmdkSparse *sparse, GError **error)
{
    Store *store = sparse->store;
    VmdkHeaderDisk disk;
    vmdk_sparse_set_sectors(sparse);
    if (!read_header(store, 0, "header", &disk, error) ||
        !check_version(store->name, &disk, error)) {
        return false;
    }
    sparse->has_footer = le64toh(disk.directory_offset) == VMDK_DIRECTORY_IN_FOOTER;
    if (sparse->has_footer && !read_footer(store, &disk, error)) {
        return false;
    }
    sparse->set_outline = set_outline;
    sparse->head_length = sizeof disk;
    sparse->unclean_offset = offsetof(VmdkHeaderDisk, unclean_shutdown);
    sparse->is_unclean = disk.unclean_shutdown != 0;
    if (!header_unpack(sparse, &disk, error)) {
        return false;
    }
    unpack_redundant(sparse, &disk);
    return true;
}
