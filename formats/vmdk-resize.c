/*
 * vmdk: another size of the disk.
 *
 *     grow     the last extent grows, up to the size that extents of a split disk have; what is more goes into new ones
 *              -> sync -> the descriptor's lines
 *     shrink   the descriptor's lines -> the last extent becomes smaller
 *
 *     sparse   vmdk-directory.c          flat   its file gets another length
 *
 * What says the size is one write: the descriptor, where it is a file by itself, for an extent may be larger than its
 * line says; the header, where the descriptor is in the extent, for then nobody looks at the line. So a cut leaves the
 * disk with the old size or with the new one.
 *
 * Extents of a split disk have whole grains, but for the last one. Only that becomes smaller: who wants less has files
 * to remove, and makes a new image.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/log.h"
#include "formats/copyup.h"
#include "formats/space.h"
#include "formats/vmdk-impl.h"
#include "store/store-file.h"

#define EXTENT_SIZE_SPLIT (UINT64_C(2) << 30)

static bool is_split(const VmdkState *state)
{
    return state->count > 1 || g_str_has_prefix(state->descriptor->create_type, "twoGb");
}

/* How large an extent of the image may become. */
static uint64_t extent_limit(const VmdkState *state)
{
    if (!is_split(state)) {
        return INT64_MAX;
    }
    uint64_t first = state->extents[0].length;
    const VmdkSparse *sparse = vmdk_last_extent(state)->sparse;
    uint64_t limit = state->count > 1 ? first : max_u64(first, EXTENT_SIZE_SPLIT);
    return sparse ? max_u64(align_down(limit, sparse->grain), sparse->grain) : limit;
}

uint64_t vmdk_hidden_end(const Image *image, const VmdkExtent *extent)
{
    return space_backing_is_longer(image) && image->backing->size > extent->offset
               ? image->backing->size - extent->offset
               : 0;
}

/* ---- what is allowed ------------------------------------------------------------------------ */

static bool check_flat(const Image *image, GError **error)
{
    const VmdkState *state = vmdk_state(image);
    const VmdkExtent *last = vmdk_last_extent(state);
    for (unsigned i = 0; !last->sparse && i + 1 < state->count; i++) {
        if (store_file_same(state->extents[i].store, last->store)) {
            return error_set(error, ENOTSUP,
                             "%s: extents %u and %u lie in one file, %s: its size stays",
                             image->path, i + 1, state->count, last->path);
        }
    }
    return true;
}

static bool check_grow(const Image *image, uint64_t size, GError **error)
{
    const VmdkState *state = vmdk_state(image);
    const VmdkSparse *sparse = vmdk_last_extent(state)->sparse;
    uint64_t limit = extent_limit(state), more = size - vmdk_last_extent(state)->offset;
    if (sparse && sparse->free_offset != 0 && size / VMDK_SECTOR > UINT32_MAX) {
        return error_set(error, EFBIG, "%s: size is %" PRIu64 ": must be below 2T for COWD",
                         image->path, size);
    }
    if (size > VMDK_DISK_SIZE_MAX ||
        (limit < more && state->count + (more - 1) / limit > VMDK_EXTENTS_MAX)) {
        return error_set(error, EFBIG,
                         "%s: size is %" PRIu64 ": must be at most 62T for vmdk, in %u extents",
                         image->path, size, VMDK_EXTENTS_MAX);
    }
    if (sparse && space_backing_is_longer(image) && !sparse->has_zero_grains) {
        return error_set(error, ENOTSUP,
                         "%s: its backing file is longer, and what the disk gains must not show "
                         "it: make a new image of all of it with cownbd convert",
                         image->path);
    }
    return check_flat(image, error);
}

static bool check_shrink(const Image *image, uint64_t size, GError **error)
{
    const VmdkState *state = vmdk_state(image);
    uint64_t least = vmdk_last_extent(state)->offset;
    if (size > least) {
        return check_flat(image, error);
    }
    return least == 0
               ? error_set(error, EINVAL, "%s: a vmdk must have a sector at least", image->path)
               : error_set(error, ENOTSUP,
                           "%s: only the last of its %u extents can become smaller: must be more "
                           "than %" PRIu64 " bytes; else make a new image with cownbd convert",
                           image->path, state->count, least);
}

/* ---- the last extent ------------------------------------------------------------------------ */

/* What the grain that the end of the disk cuts holds behind it. */
static int clear_last(Image *image, const VmdkExtent *extent)
{
    VmdkSparse *sparse = extent->sparse;
    uint64_t used = extent->length % sparse->grain, grain = extent->length / sparse->grain;
    VmdkPlace place;
    uint32_t entry = 0;
    int r = used == 0 ? 0 : vmdk_entry_look(sparse, grain, &place, &entry);
    if (r == 0 && used > 0 && entry == 0 && space_backing_is_longer(image)) {
        r = copy_up(image, image->size - used, used);
        r = r < 0 ? r : vmdk_entry_look(sparse, grain, &place, &entry);
    }
    return r < 0 || used == 0 || !vmdk_entry_has_place(sparse, entry)
               ? r
               : space_make_fresh(sparse->store, (uint64_t)entry * VMDK_SECTOR + used,
                                  sparse->grain - used, UINT64_MAX);
}

static int clear_behind(Image *image, const VmdkExtent *extent)
{
    g_autoptr(GArray) dropped = g_array_new(false, false, sizeof(uint32_t));
    uint64_t hidden = vmdk_hidden_end(image, extent);
    int r = vmdk_grains_drop(extent->sparse, extent->length, extent->sparse->size, hidden, dropped);
    vmdk_update_dirty(image->state);
    return r < 0 ? r : vmdk_flush(image);
}

/* With the descriptor in the extent the line is written before the header: that counts. */
static bool change_lines(Image *image, const VmdkEdit *edit, GError **error)
{
    return vmdk_state(image)->descriptor->lines->len == 0 || vmdk_text_change(image, edit, error);
}

static bool grow_sparse(Image *image, uint64_t length, const VmdkEdit *edit, GError **error)
{
    VmdkExtent *extent = vmdk_last_extent(vmdk_state(image));
    VmdkSparse *sparse = extent->sparse;
    VmdkOutline outline;
    int r = clear_last(image, extent);
    r = r < 0 ? r : clear_behind(image, extent);
    if (r == 0 && length > sparse->size) {
        r = vmdk_directory_grow(sparse, length, vmdk_hidden_end(image, extent), &outline);
        if (r == 0 && vmdk_state(image)->embedded && !change_lines(image, edit, error)) {
            return false;
        }
        r = r < 0 ? r : vmdk_outline_write(image, sparse, &outline);
    }
    return r == 0 || error_set_errno(error, -r, "%s: cannot grow", extent->path);
}

static bool grow_flat(Image *image, uint64_t length, GError **error)
{
    const VmdkExtent *extent = vmdk_last_extent(vmdk_state(image));
    uint64_t old = extent->host_offset + extent->length, end = extent->host_offset + length;
    uint64_t size = store_size(extent->store);
    int r =
        size > old ? space_make_fresh(extent->store, old, min_u64(size, end) - old, UINT64_MAX) : 0;
    r = r < 0 || size >= end ? r : store_truncate(extent->store, end);
    r = r < 0 ? r : store_sync(extent->store);
    return r == 0 || error_set_errno(error, -r, "%s: cannot grow", extent->path);
}

/* ---- both ----------------------------------------------------------------------------------- */

static bool grow_last(Image *image, uint64_t length, const VmdkEdit *edit, GError **error)
{
    VmdkExtent *last = vmdk_last_extent(image->state);
    if (length == last->length) {
        return true;
    }
    if (!(last->sparse ? grow_sparse(image, length, edit, error)
                       : grow_flat(image, length, error))) {
        return false;
    }
    last->length = length;
    return true;
}

/* The last extent and new ones behind it, then the lines; all of it goes again where the lines cannot be written. */
static bool grow(Image *image, uint64_t size, GError **error)
{
    VmdkState *state = image->state;
    unsigned last = state->count - 1;
    uint64_t limit = extent_limit(state), old = state->extents[last].length;
    uint64_t length = max_u64(old, min_u64(size - state->extents[last].offset, limit));
    g_autoptr(GArray) lines = vmdk_lines(state, length);
    VmdkEdit edit = {.lines = lines};
    bool done = grow_last(image, length, &edit, error) &&
                vmdk_extents_add(image, lines, size, limit, error) &&
                (state->embedded || change_lines(image, &edit, error));
    if (done) {
        image->size = size;
        return true;
    }
    if (!state->broken) {
        vmdk_extents_remove(image, last + 1);
    }
    state->extents[last].length = old;
    return false;
}

/* The last one first, so that the file may become smaller. */
static int compare_places(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x > y ? -1 : x < y;
}

static void free_grains(VmdkSparse *sparse, GArray *dropped)
{
    g_array_sort(dropped, compare_places);
    for (guint i = 0; i < dropped->len; i++) {
        uint64_t offset = g_array_index(dropped, uint32_t, i) * (uint64_t)VMDK_SECTOR;
        (void)store_punch(sparse->store, offset, sparse->grain, STORE_PUNCH_FREE);
        vmdk_space_give_back(sparse, offset, sparse->grain);
    }
    sparse->size_at_open = min_u64(sparse->size_at_open, sparse->used_end);
}

/* Tables behind the last one are out of sight by now, but in the file. */
static int drop_rest(Image *image, VmdkExtent *extent, uint64_t old_length)
{
    g_autoptr(GArray) dropped = g_array_new(false, false, sizeof(uint32_t));
    int r = vmdk_grains_drop(extent->sparse, extent->length, old_length, 0, dropped);
    vmdk_update_dirty(image->state);
    r = r < 0 ? r : vmdk_flush(image);
    if (r == 0) {
        free_grains(extent->sparse, dropped);
    }
    return r;
}

static int shrink_header(Image *image, VmdkSparse *sparse, uint64_t length)
{
    VmdkOutline outline = vmdk_outline(sparse);
    outline.size = length;
    return vmdk_outline_write(image, sparse, &outline);
}

static int shrink_flat(const VmdkExtent *extent)
{
    int r = store_truncate(extent->store, extent->host_offset + extent->length);
    r = r == -ENOTSUP || r == -EINVAL ? 0 : r; /* a block device */
    return r < 0 ? r : store_sync(extent->store);
}

/* What says the size, durably; what else does may follow. */
static bool shrink_said(Image *image, uint64_t size, GError **error)
{
    VmdkState *state = image->state;
    VmdkExtent *last = vmdk_last_extent(state);
    uint64_t length = size - last->offset;
    g_autoptr(GArray) lines = vmdk_lines(state, length);
    VmdkEdit edit = {.lines = lines};
    if (!change_lines(image, &edit, error)) {
        return false;
    }
    int r = state->embedded ? shrink_header(image, last->sparse, length) : 0;
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the header", image->path);
    }
    last->length = length;
    image->size = size;
    return true;
}

static bool shrink(Image *image, uint64_t size, GError **error)
{
    VmdkState *state = image->state;
    VmdkExtent *last = vmdk_last_extent(state);
    uint64_t old = last->length;
    int r = last->sparse ? clear_behind(image, last) : 0; /* entries of others: they go unused */
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot be flushed", image->path);
    }
    if (!shrink_said(image, size, error)) {
        return false;
    }
    if (!last->sparse) {
        r = shrink_flat(last);
    } else {
        r = state->embedded ? 0 : shrink_header(image, last->sparse, last->length);
        r = r < 0 ? r : drop_rest(image, last, old);
    }
    if (r < 0) {
        log_warning("%s: is smaller now, but keeps space that it does not need: %s", image->path,
                    g_strerror(-r));
    }
    return true;
}

bool vmdk_resize(Image *image, uint64_t size, GError **error)
{
    size = align_up(size, VMDK_SECTOR);
    bool grows = size > image->size;
    if (size == image->size) {
        return true;
    }
    if (!(grows ? check_grow(image, size, error) : check_shrink(image, size, error))) {
        return false;
    }
    int r = vmdk_before_change(image);
    r = r < 0 ? r : vmdk_flush(image);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot make the disk %" PRIu64 " bytes", image->path,
                               size);
    }
    return grows ? grow(image, size, error) : shrink(image, size, error);
}
