/*
 * bochs, the growing image of the Bochs emulator; read only.
 *
 *     header, offset size  meaning (little endian)
 *          0   32  "Bochs Virtual HD Image"             68    4  size of the header
 *         32   16  "Redolog"                            72    4  entries of the catalog
 *         48   16  "Growing"                            76    4  bytes of a bitmap
 *         64    4  version, 1.0 or 2.0                  80    4  bytes of an extent
 *         84    8  size of the disk, version 1          88    8  the same, version 2
 *
 *     header | catalog: number of each extent in the file, or ffffffff | bitmap | extent | bitmap | extent | ...
 *
 * Bitmap and extent are rounded up to sectors. A sector whose bit, the least significant first, is clear is zero.
 *
 * What must stay true: no number of the catalog becomes an offset unless bitmap and extent lie in the file.
 */
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/log.h"
#include "formats/blocktable.h"
#include "formats/format.h"
#include "store/metacache.h"

#define SECTOR      512u
#define HEADER_SIZE 512u
#define VERSION_1   0x00010000u
#define VERSION_2   0x00020000u
#define NOT_THERE   0xffffffffu
#define EXTENT_LOW  512u
#define EXTENT_HIGH (64u << 20)

typedef struct BochsState {
    uint64_t extent_size; /* bytes */
    uint64_t bitmap_size; /* in the file, bytes */
    uint64_t stride;      /* from one bitmap to the next */
    uint64_t data_offset; /* of the first bitmap */
    BlockTable *catalog;
    MetaCache *bitmaps;
} BochsState;

static int bochs_probe(const uint8_t *head, size_t n, const char *path)
{
    return n >= 64 && memcmp(head, "Bochs Virtual HD Image", 23) == 0 &&
                   memcmp(head + 32, "Redolog", 8) == 0 && memcmp(head + 48, "Growing", 8) == 0
               ? 100
               : 0;
}

static void state_free(BochsState *s)
{
    if (s) {
        metacache_free(s->bitmaps);
        block_table_free(s->catalog);
        g_free(s);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(BochsState, state_free)

static void bochs_close(Image *image)
{
    state_free(image->state);
}

static bool check_extents(const Image *image, uint32_t extent, uint32_t bitmap, GError **error)
{
    if (!is_power_of_two(extent) || extent < EXTENT_LOW || extent > EXTENT_HIGH) {
        return error_set(error, EUCLEAN,
                         "%s: extent size is %u: must be a power of two from %u to %u", image->path,
                         extent, EXTENT_LOW, EXTENT_HIGH);
    }
    uint32_t needed = div_round_up(extent / SECTOR, 8);
    return (bitmap >= needed && bitmap <= EXTENT_HIGH) ||
           error_set(error, EUCLEAN, "%s: bitmap size is %u: must be %u to %u", image->path, bitmap,
                     needed, EXTENT_HIGH);
}

static bool check_catalog(const Image *image, uint32_t header, uint32_t entries, uint64_t needed,
                          GError **error)
{
    uint64_t size = store_size(image->store);
    if (entries < needed || entries > BLOCK_TABLE_MAX) {
        return error_set(error, EUCLEAN, "%s: catalog has %u entries: must have %" PRIu64 " to %u",
                         image->path, entries, needed, BLOCK_TABLE_MAX);
    }
    return (header >= HEADER_SIZE && range_within(header, entries * UINT64_C(4), size)) ||
           error_set(error, EUCLEAN,
                     "%s: header size is %u: must be %u at least, and the catalog behind it within "
                     "the file, which has %" PRIu64 " bytes",
                     image->path, header, HEADER_SIZE, size);
}

static bool unpack(Image *image, const uint8_t *bytes, BochsState *s, GError **error)
{
    uint32_t version = load_le32(bytes + 64), header = load_le32(bytes + 68);
    uint32_t entries = load_le32(bytes + 72), bitmap = load_le32(bytes + 76);
    uint32_t extent = load_le32(bytes + 80);
    if (!bochs_probe(bytes, HEADER_SIZE, "")) {
        return error_set(error, EUCLEAN,
                         "%s: magic, type, subtype: must be those of a growing "
                         "redolog",
                         image->path);
    }
    if (version != VERSION_1 && version != VERSION_2) {
        return error_set(error, ENOTSUP, "%s: version is %u.%u: must be 1.0 or 2.0", image->path,
                         version >> 16, version & 0xffff);
    }
    image->size = load_le64(bytes + (version == VERSION_1 ? 84 : 88));
    if (image->size % SECTOR != 0 || image->size > INT64_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: disk size is %" PRIu64 ": must be a multiple of 512 below 2^63",
                         image->path, image->size);
    }
    if (!check_extents(image, extent, bitmap, error) ||
        !check_catalog(image, header, entries, div_round_up(image->size, extent), error)) {
        return false;
    }
    s->extent_size = extent;
    s->bitmap_size = align_up(bitmap, SECTOR);
    s->stride = s->bitmap_size + extent;
    s->data_offset = header + entries * UINT64_C(4);
    s->catalog = block_table_read(image->store, header, entries, BLOCK_TABLE_LITTLE_ENDIAN, error);
    return s->catalog != NULL;
}

static bool bochs_open(Image *image, GError **error)
{
    g_autoptr(BochsState) s = g_new0(BochsState, 1);
    uint8_t bytes[HEADER_SIZE];
    if (image->write) {
        return error_set(error, ENOTSUP,
                         "%s: bochs images can only be read: open it read-only (-r)", image->path);
    }
    int r = store_read(image->store, bytes, sizeof bytes, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the header", image->path);
    }
    if (!unpack(image, bytes, s, error)) {
        return false;
    }
    s->bitmaps = metacache_new(image->store, SECTOR, image->metadata_cache);
    image->allocation_unit = SECTOR;
    image->state = g_steal_pointer(&s);
    return true;
}

/* The catalog ends anywhere, so bitmaps lie at no multiple of a sector: a byte of one is found in
 * the sector of the file that has it. */
static int bit_get(Image *image, uint64_t bitmap_offset, uint64_t sector, bool *set)
{
    const BochsState *s = image->state;
    uint64_t at = bitmap_offset + sector / 8;
    MetaBlock *block;
    int r = metacache_get(s->bitmaps, align_down(at, SECTOR), &block);
    if (r == 0) {
        *set = block->data[at % SECTOR] >> sector % 8 & 1;
        metacache_put(s->bitmaps, block);
    }
    return r;
}

static int refuse_extent(const Image *image, uint64_t index, uint32_t entry)
{
    log_limited(LOG_LEVEL_ERROR,
                "%s: image is truncated: the catalog says that extent %" PRIu64 " is number %u of "
                "the file, which has %" PRIu64 " bytes",
                image->path, index, entry, store_size(image->store));
    return -EIO;
}

/* The range lies inside one extent that is there. */
static int map_sectors(Image *image, uint64_t offset, uint64_t length, uint64_t bitmap_offset,
                       ExtentList *list)
{
    const BochsState *s = image->state;
    uint64_t start = align_down(offset, s->extent_size), end = offset + length;
    while (offset < end) {
        uint64_t next = min_u64(end, align_down(offset, SECTOR) + SECTOR);
        bool set = false;
        int r = bit_get(image, bitmap_offset, (offset - start) / SECTOR, &set);
        if (r < 0) {
            return r;
        }
        Extent extent = {.offset = offset, .length = next - offset, .image = image};
        if (set) {
            extent.type = EXTENT_DATA;
            extent.host_offset = bitmap_offset + s->bitmap_size + (offset - start);
            extent.store = image->store;
            extent.flags = EXTENT_SPARSE;
        }
        extent_list_add(list, &extent);
        offset = next;
    }
    return 0;
}

/* A run of extents that are not there costs no more than one; else the rest of one is looked at. */
static int bochs_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    const BochsState *s = image->state;
    uint64_t end = offset + length;
    while (offset < end) {
        uint64_t index = offset / s->extent_size;
        uint64_t part = min_u64(end, (index + 1) * s->extent_size) - offset;
        uint32_t entry = block_table_get(s->catalog, index);
        uint64_t bitmap_offset = s->data_offset + entry * s->stride;
        if (entry != NOT_THERE && list->count > 0) {
            return 0;
        }
        if (entry != NOT_THERE) {
            uint64_t needed =
                s->bitmap_size + min_u64(s->extent_size, image->size - index * s->extent_size);
            bool inside = range_within(bitmap_offset, needed, store_size(image->store));
            return inside ? map_sectors(image, offset, part, bitmap_offset, list)
                          : refuse_extent(image, index, entry);
        }
        Extent extent = {.offset = offset, .length = part, .image = image};
        extent_list_add(list, &extent);
        offset += part;
    }
    return 0;
}

static uint64_t bochs_cluster_size(const Image *image)
{
    return ((const BochsState *)image->state)->extent_size;
}

const Format format_bochs = {
    .name = "bochs",
    .probe = bochs_probe,
    .open = bochs_open,
    .close = bochs_close,
    .map = bochs_map,
    .cluster_size = bochs_cluster_size,
};
