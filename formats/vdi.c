/*
 * vdi, the format of VirtualBox, version 1.1: dynamic, fixed, differencing.
 *
 *     +--------+-------+-------------+-------------+-----
 *     | header | table | block 0     | block 1     | ...      blocks lie in the order in which they
 *     +--------+-------+-------------+-------------+-----     were written first
 *
 *     table: number of the block in the file, or
 *            ffffffff  not there: ask the parent, or zeroes
 *            fffffffe  zeroes
 *
 * A parent is known by its UUID, and the UUID of its last change must be the one that it had when
 * the child was made: a parent that was written to would show a mixture of two disks.
 *
 * A block size that is no power of two can be read, and not written.
 *
 * What must stay true: no number of the table becomes an offset unless the block lies in the file.
 */
#include "formats/vdi.h"

#include <string.h>

#include "base/errors.h"
#include "base/log.h"

static int vdi_probe(const uint8_t *head, size_t n, const char *path)
{
    return n >= VDI_H_VERSION && load_le32(head + VDI_H_SIGNATURE) == VDI_SIGNATURE ? 100 : 0;
}

static void state_free(VdiState *s)
{
    if (s) {
        block_table_free(s->table);
        g_clear_pointer(&s->reserved, g_hash_table_destroy);
        g_free(s);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VdiState, state_free)

static bool vdi_open(Image *image, GError **error)
{
    g_autoptr(VdiState) s = g_new0(VdiState, 1);
    VdiHeader *header = &s->header;
    if (!vdi_header_read(image->store, image->path, header, error)) {
        return false;
    }
    bool plain = is_power_of_two(header->block_size);
    if (image->write && !plain) {
        return error_set(error, ENOTSUP,
                         "%s: block size is %u, no power of two: open it read-only (-r)",
                         image->path, header->block_size);
    }
    s->table = block_table_read(image->store, header->table_offset, header->blocks,
                                BLOCK_TABLE_LITTLE_ENDIAN, error);
    if (!s->table) {
        return false;
    }
    s->stride = (uint64_t)header->block_size + header->extra;
    s->reserved = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    image->size = header->size;
    image->allocation_unit = plain ? header->block_size : 1;
    vdi_parent_find(image, header);
    image->state = g_steal_pointer(&s);
    return true;
}

static bool vdi_check_backing(Image *image, GError **error)
{
    const VdiHeader *header = &vdi_state(image)->header;
    const Image *backing = image->backing;
    if (vdi_uuid_is_null(header->link)) {
        return true; /* a tool put something below */
    }
    if (backing->format != &format_vdi) {
        return error_set(error, EINVAL, "%s: its parent %s is of format %s: must be vdi",
                         image->path, backing->path, backing->format->name);
    }
    const VdiHeader *parent = &vdi_state(backing)->header;
    g_autofree char *link = vdi_uuid_text(header->link);
    g_autofree char *uuid = vdi_uuid_text(parent->uuid);
    if (memcmp(header->link, parent->uuid, VDI_UUID_SIZE) != 0) {
        return error_set(error, EUCLEAN,
                         "%s: parent UUID is %s, but the UUID of its parent %s is %s: the parent "
                         "is another file",
                         image->path, link, backing->path, uuid);
    }
    if (!vdi_uuid_is_null(header->parent) &&
        memcmp(header->parent, parent->modified, VDI_UUID_SIZE) != 0) {
        g_autofree char *then = vdi_uuid_text(header->parent);
        g_autofree char *now = vdi_uuid_text(parent->modified);
        return error_set(error, EUCLEAN,
                         "%s: the parent's last change is %s, but that of its parent %s is %s: the "
                         "parent was changed",
                         image->path, then, backing->path, now);
    }
    return true;
}

static void vdi_close(Image *image)
{
    state_free(image->state);
}

static int refuse_place(const Image *image, uint32_t block, uint32_t place)
{
    log_limited(LOG_LEVEL_ERROR,
                "%s: image is truncated: the table says that block %u is block %u of the file, "
                "which has %" PRIu64 " bytes",
                image->path, block, place, store_size(image->store));
    return -EIO;
}

static int add_block(Image *image, uint32_t block, uint64_t offset, uint64_t length,
                     ExtentList *list)
{
    const VdiState *s = image->state;
    uint32_t place = block_table_get(s->table, block);
    Extent extent = {.offset = offset, .length = length, .image = image};
    if (place == VDI_UNALLOCATED || place == VDI_ZERO) {
        extent.type = place == VDI_ZERO ? EXTENT_ZERO : EXTENT_UNALLOCATED;
        extent_list_add(list, &extent);
        return 0;
    }
    uint64_t host = vdi_host_offset(s, place), start = block * (uint64_t)s->header.block_size;
    uint64_t needed = min_u64(s->header.block_size, image->size - start);
    if (!range_within(host, needed, store_size(image->store))) {
        return refuse_place(image, block, place);
    }
    extent.type = EXTENT_DATA;
    extent.host_offset = host + (offset - start);
    extent.store = image->store;
    extent.flags = EXTENT_SPARSE | (image->write ? EXTENT_WRITABLE : 0);
    extent_list_add(list, &extent);
    return 0;
}

static int vdi_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    return block_table_map(image, vdi_state(image)->header.block_size, add_block, offset, length,
                           list);
}

static uint64_t vdi_cluster_size(const Image *image)
{
    return vdi_state(image)->header.block_size;
}

const Format format_vdi = {
    .name = "vdi",
    .probe = vdi_probe,
    .open = vdi_open,
    .check_backing = vdi_check_backing,
    .start_writing = vdi_start_writing,
    .close = vdi_close,
    .map = vdi_map,
    .allocate = vdi_allocate,
    .commit = vdi_commit,
    .abandon = vdi_abandon,
    .unmap = vdi_unmap,
    .flush = vdi_flush,
    .finish = vdi_finish,
    .is_dirty = vdi_is_dirty,
    .set_backing = vdi_set_backing,
    .knows_backing = true,
    .cluster_size = vdi_cluster_size,
    .resize = vdi_resize,
    .resize_moves = true,
    .measure = vdi_measure,
    .create_like = vdi_create_like,
    .create_options = vdi_create_options,
    .create = vdi_create,
    .check = vdi_check,
};
