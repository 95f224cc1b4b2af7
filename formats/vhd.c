/*
 * vhd, the format of Virtual PC, Hyper-V and Xen's blktap: fixed, dynamic, differencing.
 *
 *     dynamic, differencing                             fixed
 *     +---------------------------------------+        +------------------------------+
 *     | copy of the footer | header | table   |        | the disk, byte for byte      |
 *     | bitmap | block | bitmap | block | ... |        |                              |
 *     | footer                                |        | footer                       |
 *     +---------------------------------------+        +------------------------------+
 *
 *     table: sector of each block's bitmap ---> bitmap, a bit a sector, the most significant first:
 *            ffffffff: the block is not there       1: the sector is in the block
 *                                                   0: ask the parent, or zeroes
 *
 * qemu does not look at bitmaps: it reads a cleared bit as what lies in the block. We see to it
 * that for a disk without a parent both are the same: all bits of a block are set when it is made,
 * on space that reads as zeroes.
 *
 * The unit of allocation is the block; with a parent it is UNIT_OVER_PARENT bytes, so that a small
 * write does not copy 2 MiB. A unit with all its bits set is WRITABLE, any other is not: it is
 * allocated anew where it lies.
 *
 * A parent is known by its UUID. Without it a differencing image is a mixture of two disks, so an
 * image whose parent has another one is refused.
 *
 * What must stay true: whatever the table says, a bitmap is looked at only where all of it lies in
 * the file.
 */
#include "formats/vhd.h"

#include <string.h>

#include "base/errors.h"
#include "base/log.h"

#define UNIT_OVER_PARENT 4096u
#define CACHE_MIN        (16u * VHD_SECTOR)

/* A fixed disk has its only magic at its end, where nobody looks; so its name counts. */
static int vhd_probe(const uint8_t *head, size_t n, const char *path)
{
    if (n >= 8 && memcmp(head, "conectix", 8) == 0) {
        return 100;
    }
    const char *suffix = strrchr(path, '.');
    return suffix && g_ascii_strcasecmp(suffix, ".vhd") == 0 ? 2 : 0;
}

static void state_free(VhdState *s)
{
    if (s) {
        metacache_free(s->bitmaps);
        block_table_free(s->table);
        g_clear_pointer(&s->structures, g_array_unref);
        g_clear_pointer(&s->reserved, g_hash_table_destroy);
        g_clear_pointer(&s->unlinked, g_hash_table_destroy);
        g_clear_pointer(&s->spare, g_array_unref);
        g_free(s);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VhdState, state_free)

static bool open_blocks(Image *image, VhdState *s, GError **error)
{
    if (!vhd_header_read(image, s, error)) {
        return false;
    }
    s->block_size = s->header.block_size;
    s->bitmap_size = align_up(div_round_up(s->block_size / VHD_SECTOR, 8), VHD_SECTOR);
    s->table = block_table_read(image->store, s->header.table_offset, s->header.entries,
                                BLOCK_TABLE_BIG_ENDIAN, error);
    if (!s->table) {
        return false;
    }
    s->bitmaps = metacache_new(image->store, VHD_SECTOR, max_u64(image->metadata_cache, CACHE_MIN));
    image->allocation_unit = s->block_size;
    if (s->footer.type == VHD_DIFFERENCING) {
        image->allocation_unit = min_u64(s->block_size, UNIT_OVER_PARENT);
        image->partial_units = true;
        return vhd_parent_read(image, s, error);
    }
    return true;
}

static bool vhd_open(Image *image, GError **error)
{
    g_autoptr(VhdState) s = g_new0(VhdState, 1);
    s->structures = g_array_new(false, false, sizeof(VhdRange));
    s->reserved = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    s->unlinked = g_hash_table_new(NULL, NULL);
    s->spare = g_array_new(false, false, sizeof(uint64_t));
    if (!vhd_footer_read(image, s, error)) {
        return false;
    }
    image->size = s->footer.size;
    image->allocation_unit = 1;
    if (s->footer.type != VHD_FIXED && !open_blocks(image, s, error)) {
        return false;
    }
    image->state = g_steal_pointer(&s);
    return true;
}

static bool vhd_check_backing(Image *image, GError **error)
{
    const VhdState *s = image->state;
    const Image *backing = image->backing;
    if (s->footer.type != VHD_DIFFERENCING || strcmp(image->backing_format, "raw") == 0) {
        return true; /* a raw parent has nothing to be known by */
    }
    if (backing->format != &format_vhd) {
        return error_set(error, EINVAL, "%s: its parent %s is of format %s: must be vhd",
                         image->path, backing->path, backing->format->name);
    }
    const VhdState *parent = backing->state;
    if (memcmp(parent->footer.uuid, s->header.parent_uuid, VHD_UUID_SIZE) != 0) {
        return error_set(
            error, EUCLEAN,
            "%s: parent UUID is %08x..., but the UUID of its parent %s is %08x...: the "
            "parent is another file",
            image->path, load_be32(s->header.parent_uuid), backing->path,
            load_be32(parent->footer.uuid));
    }
    return true;
}

static void vhd_close(Image *image)
{
    state_free(image->state);
}

int vhd_block_find(const Image *image, uint32_t block, uint64_t *bitmap_offset)
{
    const VhdState *s = image->state;
    uint32_t sector = block_table_get(s->table, block);
    *bitmap_offset = 0;
    if (sector == VHD_UNUSED) {
        return 0;
    }
    uint64_t offset = (uint64_t)sector * VHD_SECTOR;
    if (sector == 0 || !range_within(offset, s->bitmap_size, store_size(image->store))) {
        log_limited(LOG_LEVEL_ERROR,
                    "%s: image is truncated: the table says that block %u is at %" PRIu64
                    ", the file has %" PRIu64 " bytes",
                    image->path, block, offset, store_size(image->store));
        return -EIO;
    }
    *bitmap_offset = offset;
    return 0;
}

/* A map call inside one block: the range that is still to be answered, in sectors of the block. */
typedef struct BlockMap {
    Image *image;
    uint32_t block;
    uint64_t bitmap_offset;
    MetaBlock *piece; /* of the bitmap, pinned, or NULL */
    ExtentList *list;
} BlockMap;

static int bit_get(BlockMap *map, uint32_t sector, bool *set)
{
    VhdState *s = map->image->state;
    uint64_t offset = map->bitmap_offset + align_down(sector / 8, VHD_SECTOR);
    if (!map->piece || map->piece->offset != offset) {
        if (map->piece) {
            metacache_put(s->bitmaps, map->piece);
        }
        int r = metacache_get(s->bitmaps, offset, &map->piece);
        if (r < 0) {
            return r;
        }
    }
    *set = map->piece->data[sector / 8 % VHD_SECTOR] & (0x80 >> sector % 8);
    return 0;
}

/* How many sectors from first on have the same bit, up to end. */
static int bit_run(BlockMap *map, uint32_t first, uint32_t end, bool *set, uint32_t *run)
{
    int r = bit_get(map, first, set);
    bool same = true;
    uint32_t at = first + 1;
    while (r == 0 && at < end) {
        if (at % 8 == 0 && at + 8 <= end && map->piece && at / 8 % VHD_SECTOR != 0 &&
            map->piece->data[at / 8 % VHD_SECTOR] == (*set ? 0xff : 0)) {
            at += 8; /* a whole byte of the piece in hand */
            continue;
        }
        bool bit;
        r = bit_get(map, at, &bit);
        same = r == 0 && bit == *set;
        if (!same) {
            break;
        }
        at++;
    }
    *run = at - first;
    return r;
}

/* Adds what sectors [first, end) of the block are: all of them set or none. */
static void add_run(const BlockMap *map, uint32_t first, uint32_t end, bool set, bool writable)
{
    const VhdState *s = map->image->state;
    Extent extent = {
        .offset = map->block * s->block_size + (uint64_t)first * VHD_SECTOR,
        .length = (uint64_t)(end - first) * VHD_SECTOR,
        .image = map->image,
        .type = set ? EXTENT_DATA : EXTENT_UNALLOCATED,
    };
    if (set) {
        extent.host_offset = map->bitmap_offset + s->bitmap_size + (uint64_t)first * VHD_SECTOR;
        extent.store = map->image->store;
        extent.flags = EXTENT_SPARSE | (writable && map->image->write ? EXTENT_WRITABLE : 0);
    }
    extent_list_add(map->list, &extent);
}

/* Sectors [first, end) are set, but only whole units of them are writable. */
static void add_set_run(const BlockMap *map, uint32_t first, uint32_t end, uint32_t block_end)
{
    uint32_t unit = max_u64(map->image->allocation_unit / VHD_SECTOR, 1);
    uint32_t whole_first = align_up(first, unit);
    uint32_t whole_end = end == block_end ? end : align_down(end, unit);
    if (whole_first >= whole_end) {
        add_run(map, first, end, true, false);
        return;
    }
    if (first < whole_first) {
        add_run(map, first, whole_first, true, false);
    }
    add_run(map, whole_first, whole_end, true, true);
    if (whole_end < end) {
        add_run(map, whole_end, end, true, false);
    }
}

/* Answers for sectors [from, to) of a block that has block_end sectors inside the disk. Looks at
 * whole units, also where the range begins or ends inside one. */
static int map_sectors(BlockMap *map, uint32_t from, uint32_t to, uint32_t block_end)
{
    uint32_t unit = max_u64(map->image->allocation_unit / VHD_SECTOR, 1);
    uint32_t at = align_down(from, unit);
    uint32_t end = min_u64(align_up(to, unit), block_end);
    while (at < end) {
        bool set;
        uint32_t run;
        int r = bit_run(map, at, end, &set, &run);
        if (r < 0) {
            return r;
        }
        if (set) {
            add_set_run(map, at, at + run, block_end);
        } else {
            add_run(map, at, at + run, false, false);
        }
        at += run;
    }
    return 0;
}

/* The part of a list that lies in the range. */
static void add_clipped(const ExtentList *from, uint64_t offset, uint64_t length, ExtentList *to)
{
    for (unsigned i = 0; i < from->count; i++) {
        Extent extent = from->items[i];
        if (extent_clip(&extent, offset, length)) {
            extent_list_add(to, &extent);
        }
    }
}

static int map_block(Image *image, uint32_t block, uint64_t bitmap_offset, uint64_t offset,
                     uint64_t length, ExtentList *list)
{
    VhdState *s = image->state;
    uint64_t start = block * s->block_size;
    uint64_t block_end = min_u64(s->block_size, image->size - start) / VHD_SECTOR;
    ExtentList whole;
    extent_list_init(&whole);
    BlockMap map = {.image = image, .block = block, .bitmap_offset = bitmap_offset, .list = &whole};
    int r = map_sectors(&map, (offset - start) / VHD_SECTOR,
                        div_round_up(offset + length - start, VHD_SECTOR), block_end);
    if (map.piece) {
        metacache_put(s->bitmaps, map.piece);
    }
    if (r == 0) {
        add_clipped(&whole, offset, length, list);
    }
    extent_list_clear(&whole);
    return r;
}

static void add_plain(Image *image, uint64_t offset, uint64_t length, ExtentType type,
                      ExtentList *list)
{
    Extent extent = {.offset = offset, .length = length, .image = image, .type = type};
    if (type == EXTENT_DATA) {
        extent.host_offset = offset;
        extent.store = image->store;
        extent.flags = EXTENT_SPARSE | (image->write ? EXTENT_WRITABLE : 0);
    }
    extent_list_add(list, &extent);
}

/* A run of blocks that are not there costs no more than one. */
int vhd_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    const VhdState *s = image->state;
    uint64_t end = offset + length;
    bool looked = false;
    if (s->footer.type == VHD_FIXED) {
        add_plain(image, offset, length, EXTENT_DATA, list);
        return 0;
    }
    while (offset < end) {
        uint32_t block = vhd_block_of(s, offset);
        uint64_t block_end = min_u64(end, (block + UINT64_C(1)) * s->block_size);
        uint64_t bitmap_offset;
        int r = vhd_block_find(image, block, &bitmap_offset);
        if (r == 0 && bitmap_offset != 0) {
            if (looked) {
                return 0;
            }
            r = map_block(image, block, bitmap_offset, offset, block_end - offset, list);
            looked = true;
        } else if (r == 0) {
            add_plain(image, offset, block_end - offset, EXTENT_UNALLOCATED, list);
        }
        if (r < 0) {
            return list->count > 0 ? 0 : r; /* the bad block is refused when it comes first */
        }
        offset = block_end;
    }
    return 0;
}

/* As qemu-img: of images with blocks. */
static uint64_t vhd_cluster_size(const Image *image)
{
    return vhd_state(image)->block_size;
}

const Format format_vhd = {
    .name = "vhd",
    .probe = vhd_probe,
    .open = vhd_open,
    .check_backing = vhd_check_backing,
    .start_writing = vhd_start_writing,
    .close = vhd_close,
    .map = vhd_map,
    .allocate = vhd_allocate,
    .commit = vhd_commit,
    .abandon = vhd_abandon,
    .unmap = vhd_unmap,
    .flush = vhd_flush,
    .finish = vhd_finish,
    .is_dirty = vhd_is_dirty,
    .set_backing = vhd_set_backing,
    .knows_backing = true,
    .cluster_size = vhd_cluster_size,
    .resize = vhd_resize,
    .measure = vhd_measure,
    .create_like = vhd_create_like,
    .create_options = vhd_create_options,
    .create = vhd_create,
    .check = vhd_check,
};
