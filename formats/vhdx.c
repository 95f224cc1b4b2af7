/*
 * vhdx, the format of Hyper-V: fixed, dynamic, differencing; sectors of 512 or 4096 bytes.
 *
 *     +---------------------+-----+----------+-------+--------+--------+-----
 *     | headers, region     | log | metadata | table | block  | block  | ...    everything lies at a MiB
 *     | tables: the 1st MiB |     |          |       |        |        |
 *     +---------------------+-----+----------+-------+--------+--------+-----
 *
 *     table: 8 bytes a block: state (3 bits) and MiB of the file (44 bits)
 *
 *     | block 0 | block 1 | ... | block R-1 | sector bits | block R | ...      R: chunk ratio
 *
 *     state 0  not here: the parent's, or zeroes          6  here, all of it
 *           1  undefined, 2 zero, 3 unmapped: zeroes      7  here or the parent's: sector bits say which
 *
 * The sector bits of R blocks fill one MiB of the file, the least significant bit first. With a parent the unit of
 * allocation is VHDX_UNIT bytes, so that a small write does not copy a block; a unit with all its bits set is WRITABLE.
 *
 * A parent is known by the GUID of what its guest sees, which changes with each opening for writing: a child whose
 * parent was written to would show a mixture of two disks, and is refused.
 *
 * What must stay true: no number of the table becomes an offset unless the block lies in the file; table and sector
 * bits are looked at through what the log says.
 */
#include "formats/vhdx.h"

#include "base/errors.h"
#include "base/log.h"

#define CACHE_MIN (16u * VHDX_PAGE)

static int vhdx_probe(const uint8_t *head, size_t n, const char *path)
{
    return n >= 8 && memcmp(head, "vhdxfile", 8) == 0 ? 100 : 0;
}

static void state_free(VhdxState *s)
{
    if (s) {
        metacache_free(s->tables);
        g_clear_pointer(&s->regions, g_array_unref);
        g_clear_pointer(&s->replayed, g_hash_table_destroy);
        g_clear_pointer(&s->reserved, g_hash_table_destroy);
        g_clear_pointer(&s->freed, g_array_unref);
        g_free(s->used);
        g_free(s->entry);
        g_free(s);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VhdxState, state_free)

static bool check_signature(const Image *image, GError **error)
{
    uint8_t bytes[8];
    int r = store_read(image->store, bytes, sizeof bytes, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read its first bytes", image->path);
    }
    return memcmp(bytes, "vhdxfile", 8) == 0 ||
           error_set(error, EUCLEAN, "%s: signature: must be 'vhdxfile'", image->path);
}

static bool vhdx_open(Image *image, GError **error)
{
    g_autoptr(VhdxState) s = g_new0(VhdxState, 1);
    s->regions = g_array_new(false, false, sizeof(VhdxRange));
    s->replayed = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    s->reserved = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    s->freed = g_array_new(false, false, sizeof(VhdxRange));
    if (!check_signature(image, error) || !vhdx_header_read(image, s, error) ||
        !vhdx_log_read(image, s, error) || !vhdx_regions_read(image, s, error) ||
        !vhdx_metadata_read(image, s, error)) {
        return false;
    }
    s->tables = metacache_new(image->store, VHDX_PAGE, max_u64(image->metadata_cache, CACHE_MIN));
    image->allocation_unit = s->has_parent ? VHDX_UNIT : s->block_size;
    image->partial_units = s->has_parent;
    image->state = s;
    bool applied = vhdx_log_apply(image, s, error);
    image->state = applied ? g_steal_pointer(&s) : NULL;
    return applied;
}

static bool vhdx_check_backing(Image *image, GError **error)
{
    const VhdxState *s = image->state;
    const Image *backing = image->backing;
    if (!s->has_parent) {
        return true; /* a tool put something below */
    }
    if (backing->format != &format_vhdx) {
        return error_set(error, EINVAL, "%s: its parent %s is of format %s: must be vhdx",
                         image->path, backing->path, backing->format->name);
    }
    const VhdxHeader *parent = &vhdx_state(backing)->header;
    if (memcmp(s->parent_guid[0], parent->data_guid, VHDX_GUID_SIZE) == 0 ||
        memcmp(s->parent_guid[1], parent->data_guid, VHDX_GUID_SIZE) == 0) {
        return true;
    }
    g_autofree char *linkage = vhdx_guid_text(s->parent_guid[0]);
    g_autofree char *guid = vhdx_guid_text(parent->data_guid);
    return error_set(error, EUCLEAN,
                     "%s: parent_linkage is %s, but its parent %s is %s: the parent is another "
                     "file, or was changed",
                     image->path, linkage, backing->path, guid);
}

static void vhdx_close(Image *image)
{
    state_free(image->state);
}

/* ---- the table ---- */

uint64_t vhdx_entries_needed(const VhdxState *s)
{
    uint64_t chunks = div_round_up(s->blocks, s->chunk_ratio);
    if (s->has_parent) {
        return chunks * (s->chunk_ratio + UINT64_C(1));
    }
    return s->blocks + (chunks > 0 ? chunks - 1 : 0);
}

static uint64_t entry_place(const VhdxState *s, uint32_t index)
{
    return s->table.offset + index * UINT64_C(8);
}

int vhdx_entry_get(const Image *image, uint32_t index, uint64_t *entry)
{
    const VhdxState *s = image->state;
    uint64_t at = entry_place(s, index);
    MetaBlock *page;
    int r = metacache_get(s->tables, align_down(at, VHDX_PAGE), &page);
    if (r == 0) {
        *entry = load_le64(page->data + at % VHDX_PAGE);
        metacache_put(s->tables, page);
    }
    return r;
}

int vhdx_entry_set(Image *image, uint32_t index, uint64_t entry)
{
    VhdxState *s = image->state;
    uint64_t at = entry_place(s, index);
    MetaBlock *page;
    int r = metacache_get(s->tables, align_down(at, VHDX_PAGE), &page);
    if (r == 0) {
        store_le64(page->data + at % VHDX_PAGE, entry);
        metacache_dirty(s->tables, page, META_SECOND);
        metacache_put(s->tables, page);
    }
    return r;
}

/* Entries of sector bits count only where there is a parent. */
static int visit_page(Image *image, const MetaBlock *page, uint32_t *index, uint64_t count,
                      int (*visit)(void *opaque, const VhdxEntry *entry), void *opaque)
{
    const VhdxState *s = image->state;
    uint32_t stride = s->chunk_ratio + 1;
    int r = 0;
    for (uint64_t at = entry_place(s, *index) % VHDX_PAGE;
         r == 0 && at < VHDX_PAGE && *index < count; at += 8, (*index)++) {
        bool is_bits = *index % stride == s->chunk_ratio;
        uint64_t block =
            is_bits ? (uint64_t)*index / stride * s->chunk_ratio : *index - *index / stride;
        if (block < s->blocks && (!is_bits || s->has_parent)) {
            VhdxEntry entry = {*index, block, is_bits, load_le64(page->data + at)};
            r = visit(opaque, &entry);
        }
    }
    return r;
}

int vhdx_walk(Image *image, int (*visit)(void *opaque, const VhdxEntry *entry), void *opaque)
{
    const VhdxState *s = image->state;
    uint64_t count = vhdx_entries_needed(s);
    uint32_t index = 0;
    int r = 0;
    while (r == 0 && index < count) {
        MetaBlock *page;
        r = metacache_get(s->tables, align_down(entry_place(s, index), VHDX_PAGE), &page);
        if (r == 0) {
            r = visit_page(image, page, &index, count, visit, opaque);
            metacache_put(s->tables, page);
        }
    }
    return r;
}

static int refuse_entry(const Image *image, const char *what, uint32_t block, uint64_t entry)
{
    log_limited(LOG_LEVEL_ERROR,
                "%s: image is damaged: the table says that %s block %u are in state %u at %" PRIu64
                ", the file has %" PRIu64 " bytes",
                image->path, what, block, vhdx_entry_state(entry), vhdx_entry_offset(entry),
                store_size(image->store));
    return -EIO;
}

int vhdx_bits_find(const Image *image, uint32_t block, uint64_t *offset)
{
    const VhdxState *s = image->state;
    uint64_t entry, inside = block % s->chunk_ratio * (s->block_size / s->sector_size / 8);
    int r = vhdx_entry_get(image, vhdx_bits_entry(s, block), &entry);
    if (r < 0) {
        return r;
    }
    *offset = vhdx_entry_offset(entry) + inside;
    if (vhdx_entry_state(entry) != VHDX_PRESENT || vhdx_entry_offset(entry) < VHDX_MIB ||
        !range_within(vhdx_entry_offset(entry), VHDX_MIB, vhdx_file_size(image, s))) {
        return refuse_entry(image, "the sector bits of", block, entry);
    }
    return 0;
}

/* ---- map ---- */

/* A map call: what is added to the list is cut to the range. */
typedef struct Mapping {
    Image *image;
    uint64_t offset, length;
    ExtentList *list;
} Mapping;

static void add(const Mapping *map, Extent extent)
{
    extent.image = map->image;
    if (extent.type == EXTENT_DATA) {
        extent.store = map->image->store;
        extent.flags |= EXTENT_SPARSE;
    }
    if (extent_clip(&extent, map->offset, map->length)) {
        extent_list_add(map->list, &extent);
    }
}

static void add_sectors(const Mapping *map, uint64_t offset, uint64_t length, uint64_t host,
                        bool set, bool whole)
{
    Extent extent = {.offset = offset, .length = length, .type = EXTENT_UNALLOCATED};
    if (set) {
        extent.type = EXTENT_DATA;
        extent.host_offset = host;
        extent.flags = whole && map->image->write ? EXTENT_WRITABLE : 0;
    }
    add(map, extent);
}

/* The sectors of one unit: length bytes from offset on. */
static void add_unit(const Mapping *map, const uint8_t *bits, uint64_t first, uint64_t offset,
                     uint64_t length, uint64_t host)
{
    uint64_t sector = vhdx_state(map->image)->sector_size, count = length / sector, set = 0;
    for (uint64_t i = first; i < first + count; i++) {
        set += bits[i / 8] >> i % 8 & 1;
    }
    if (set == 0 || set == count) {
        add_sectors(map, offset, length, host, set != 0, true);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        bool here = bits[(first + i) / 8] >> (first + i) % 8 & 1;
        add_sectors(map, offset + i * sector, sector, host + i * sector, here, false);
    }
}

/* Adds what the bits of one page say, from the unit in which the range begins on. host is where the
 * block's first byte lies, start its guest offset. */
static int add_partial(const Mapping *map, uint32_t block, uint64_t host)
{
    const VhdxState *s = map->image->state;
    uint64_t start = block * s->block_size, bits_offset;
    uint64_t at = align_down(map->offset, VHDX_UNIT);
    uint64_t end = min_u64(align_up(map->offset + map->length, VHDX_UNIT), map->image->size);
    int r = vhdx_bits_find(map->image, block, &bits_offset);
    if (r < 0) {
        return r;
    }
    uint64_t bit = bits_offset * 8 + (at - start) / s->sector_size, page_bits = VHDX_PAGE * 8;
    MetaBlock *page;
    r = metacache_get(s->tables, align_down(bit, page_bits) / 8, &page);
    if (r < 0) {
        return r;
    }
    end = min_u64(
        end, min_u64(start + s->block_size, at + (page_bits - bit % page_bits) * s->sector_size));
    while (at < end) {
        uint64_t in_page = (bits_offset * 8 + (at - start) / s->sector_size) % page_bits;
        uint64_t length = min_u64(VHDX_UNIT, map->image->size - at);
        add_unit(map, page->data, in_page, at, length, host + (at - start));
        at += length;
    }
    metacache_put(s->tables, page);
    return 0;
}

/* All of the range lies in the block. *looked: sector bits were, which ends the answer. */
static int add_block(const Mapping *map, uint32_t block, uint64_t entry, bool *looked)
{
    const VhdxState *s = map->image->state;
    uint64_t start = block * s->block_size, host = vhdx_entry_offset(entry);
    uint64_t needed = min_u64(s->block_size, map->image->size - start);
    VhdxBlockState state = vhdx_entry_state(entry);
    Extent extent = {.offset = map->offset, .length = map->length};
    if (!vhdx_has_place(entry)) {
        extent.type = state == VHDX_NOT_PRESENT ? EXTENT_UNALLOCATED : EXTENT_ZERO;
        if (state > VHDX_UNMAPPED) {
            return refuse_entry(map->image, "bytes of", block, entry);
        }
        add(map, extent);
        return 0;
    }
    if (host < VHDX_MIB || !range_within(host, needed, vhdx_file_size(map->image, s)) ||
        (state == VHDX_PARTIAL && !s->has_parent)) {
        return refuse_entry(map->image, "bytes of", block, entry);
    }
    if (state == VHDX_PARTIAL) {
        *looked = true;
        return add_partial(map, block, host);
    }
    extent.type = EXTENT_DATA;
    extent.host_offset = host + (map->offset - start);
    extent.flags = map->image->write ? EXTENT_WRITABLE : 0;
    add(map, extent);
    return 0;
}

/* A page of the table costs no more than one entry; sector bits are looked at once. */
int vhdx_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    enum { BLOCKS = 512 };
    const VhdxState *s = image->state;
    uint64_t end = offset + length;
    bool looked = false;
    for (unsigned i = 0; offset < end && i < BLOCKS && !looked; i++) {
        uint32_t block = vhdx_block_of(s, offset);
        uint64_t block_end = min_u64(end, (block + UINT64_C(1)) * s->block_size), entry;
        Mapping map = {
            .image = image, .offset = offset, .length = block_end - offset, .list = list};
        int r = vhdx_entry_get(image, vhdx_block_entry(s, block), &entry);
        r = r < 0 ? r : add_block(&map, block, entry, &looked);
        if (r < 0) {
            return list->count > 0 ? 0 : r; /* the bad block is refused when it comes first */
        }
        offset = block_end;
    }
    return 0;
}

static uint64_t vhdx_cluster_size(const Image *image)
{
    return vhdx_state(image)->block_size;
}

/* The log has something that the file has not. */
static bool vhdx_dirty_flag(const Image *image)
{
    return g_hash_table_size(vhdx_state(image)->replayed) > 0;
}

const Format format_vhdx = {
    .name = "vhdx",
    .probe = vhdx_probe,
    .open = vhdx_open,
    .check_backing = vhdx_check_backing,
    .start_writing = vhdx_start_writing,
    .close = vhdx_close,
    .map = vhdx_map,
    .allocate = vhdx_allocate,
    .commit = vhdx_commit,
    .abandon = vhdx_abandon,
    .unmap = vhdx_unmap,
    .flush = vhdx_flush,
    .finish = vhdx_finish,
    .is_dirty = vhdx_is_dirty,
    .set_backing = vhdx_set_backing,
    .knows_backing = true,
    .cluster_size = vhdx_cluster_size,
    .dirty_flag = vhdx_dirty_flag,
    .resize = vhdx_resize,
    .resize_moves = true, /* over a longer parent all of the block that the end cuts is copied */
    .measure = vhdx_measure,
    .create_like = vhdx_create_like,
    .create_options = vhdx_create_options,
    .create = vhdx_create,
    .check = vhdx_check,
};
