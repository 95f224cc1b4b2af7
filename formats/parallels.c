/*
 * parallels, the expandable images of Parallels and Virtuozzo, of both magics.
 *
 *     +--------+-------+-----------+-----------+-----
 *     | header | table | cluster   | cluster   | ...      clusters lie in the order in which they
 *     +--------+-------+-----------+-----------+-----     were written first
 *
 *     table: where the cluster lies, in sectors (WithoutFreeSpace) or in clusters (WithouFreSpacExt); 0: it is zero
 *
 * A file has no parent: who makes snapshots keeps their order elsewhere, in a descriptor beside the files of one disk
 * (parallels-directory.c); that is an image of this format, too. A cluster size that is no power of two (63
 * sectors, 252 KiB) can be read, and not written.
 *
 * What must stay true: no number of the table becomes an offset unless the cluster lies in the file, behind the table.
 */
#include "formats/parallels.h"

#include <string.h>

#include "base/errors.h"
#include "base/log.h"

/* Of any version: one that is not known is refused, and not served as the bytes of its file. */
static int parallels_probe(const uint8_t *head, size_t n, const char *path)
{
    bool magic = n >= PARALLELS_HEADER_SIZE &&
                 (memcmp(head, PARALLELS_MAGIC, PARALLELS_MAGIC_SIZE) == 0 ||
                  memcmp(head, PARALLELS_MAGIC_OLD, PARALLELS_MAGIC_SIZE) == 0);
    return magic ? 100 : parallels_descriptor_probe(head, n) ? 90 : 0;
}

static void state_free(ParallelsState *s)
{
    if (s) {
        block_table_free(s->table);
        parallels_directory_free(s->directory);
        g_free(s);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ParallelsState, state_free)

/* What can be read and must not be written. */
static bool check_write(const Image *image, const ParallelsHeader *header, GError **error)
{
    if (!is_power_of_two(header->cluster_size)) {
        return error_set(error, ENOTSUP,
                         "%s: tracks is %" PRIu64 ", no power of two: open it read-only (-r)",
                         image->path, header->cluster_size / PARALLELS_SECTOR);
    }
    if (header->flags & PARALLELS_EMPTY) {
        return error_set(error, ENOTSUP,
                         "%s: flags are 0x%x, the image is marked empty: open it read-only (-r)",
                         image->path, header->flags);
    }
    if (header->extension != 0) {
        return error_set(error, ENOTSUP,
                         "%s: ext_off is %" PRIu64
                         ": the dirty bitmaps there would become wrong: open it read-only (-r)",
                         image->path, header->extension);
    }
    return true;
}

static bool open_file(Image *image, ParallelsState *s, GError **error)
{
    ParallelsHeader *header = &s->header;
    if (!parallels_header_read(image->store, image->path, header, error) ||
        (image->write && !check_write(image, header, error))) {
        return false;
    }
    s->table = block_table_read(image->store, PARALLELS_HEADER_SIZE, header->entries,
                                BLOCK_TABLE_LITTLE_ENDIAN, error);
    if (!s->table) {
        return false;
    }
    image->size = header->size;
    image->allocation_unit = is_power_of_two(header->cluster_size) ? header->cluster_size : 1;
    return true;
}

static bool open_directory(Image *image, ParallelsState *s, GError **error)
{
    s->directory = parallels_directory_open(image, &s->header, error);
    return s->directory != NULL;
}

static bool parallels_open(Image *image, GError **error)
{
    g_autoptr(ParallelsState) s = g_new0(ParallelsState, 1);
    uint8_t head[IMAGE_PROBE_SIZE];
    size_t n = min_u64(sizeof head, store_size(image->store));
    int r = store_read(image->store, head, n, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read its first bytes", image->path);
    }
    bool good = parallels_descriptor_probe(head, n) ? open_directory(image, s, error)
                                                    : open_file(image, s, error);
    if (!good) {
        return false;
    }
    image->state = g_steal_pointer(&s);
    return true;
}

static void parallels_close(Image *image)
{
    state_free(image->state);
}

static int refuse_entry(const Image *image, uint32_t block, uint32_t entry)
{
    log_limited(LOG_LEVEL_ERROR,
                "%s: the table says that cluster %u is at %u: must be behind the table and within "
                "the file, which has %" PRIu64 " bytes",
                image->path, block, entry, store_size(image->store));
    return -EIO;
}

static int add_cluster(Image *image, uint32_t block, uint64_t offset, uint64_t length,
                       ExtentList *list)
{
    const ParallelsHeader *header = &parallels_state(image)->header;
    uint32_t entry = block_table_get(parallels_state(image)->table, block);
    Extent extent = {.offset = offset, .length = length, .image = image};
    if (entry == 0 || header->flags & PARALLELS_EMPTY) {
        extent_list_add(list, &extent);
        return 0;
    }
    uint64_t host = entry * header->unit, start = block * header->cluster_size;
    if (host < header->data_offset ||
        !range_within(host, parallels_needed(image, block), store_size(image->store))) {
        return refuse_entry(image, block, entry);
    }
    extent.type = EXTENT_DATA;
    extent.host_offset = host + (offset - start);
    extent.store = image->store;
    extent.flags = EXTENT_SPARSE | (image->write ? EXTENT_WRITABLE : 0);
    extent_list_add(list, &extent);
    return 0;
}

static int parallels_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    const ParallelsState *s = parallels_state(image);
    return s->directory
               ? parallels_directory_map(image, offset, length, list)
               : block_table_map(image, s->header.cluster_size, add_cluster, offset, length, list);
}

static void parallels_info(const Image *image, GVariantBuilder *data)
{
    if (parallels_state(image)->directory) {
        parallels_directory_info(image, data);
    }
}

static bool parallels_snapshot_show(Image *image, const char *name, GError **error)
{
    ParallelsState *s = image->state;
    return s->directory
               ? parallels_directory_show(image, name, &s->header, error)
               : error_set(error, ENOTSUP,
                           "%s: snapshot '%s': is one file, and has no snapshots: open the "
                           "directory that it lies in, NAME.hdd",
                           image->path, name);
}

static unsigned parallels_snapshots(const Image *image, unsigned most, GVariantBuilder *list)
{
    return parallels_state(image)->directory ? parallels_directory_snapshots(image, most, list) : 0;
}

static uint64_t parallels_allocated_bytes(const Image *image)
{
    return parallels_state(image)->directory ? parallels_directory_allocated_bytes(image)
                                             : store_allocated_bytes(image->store);
}

static uint64_t parallels_cluster_size(const Image *image)
{
    return parallels_state(image)->header.cluster_size;
}

static bool parallels_dirty_flag(const Image *image)
{
    return parallels_state(image)->header.in_use == PARALLELS_IN_USE;
}

const Format format_parallels = {
    .name = "parallels",
    .probe = parallels_probe,
    .open = parallels_open,
    .start_writing = parallels_start_writing,
    .close = parallels_close,
    .map = parallels_map,
    .allocate = parallels_allocate,
    .commit = parallels_commit,
    .abandon = parallels_abandon,
    .unmap = parallels_unmap,
    .flush = parallels_flush,
    .finish = parallels_finish,
    .is_dirty = parallels_is_dirty,
    .directory_file = PARALLELS_DESCRIPTOR_NAME,
    .info = parallels_info,
    .snapshots = parallels_snapshots,
    .snapshot_show = parallels_snapshot_show,
    .cluster_size = parallels_cluster_size,
    .dirty_flag = parallels_dirty_flag,
    .allocated_bytes = parallels_allocated_bytes,
    .resize = parallels_resize,
    .resize_moves = true,
    .measure = parallels_measure,
    .create_like = parallels_create_like,
    .create_options = parallels_create_options,
    .create = parallels_create,
    .check = parallels_check,
};
