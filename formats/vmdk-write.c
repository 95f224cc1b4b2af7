/*
 * vmdk: allocate, commit, abandon, unmap.
 *
 *     allocate   tables made, space at the end of the extent's file
 *     (the engine writes the data)
 *     commit     entries of tables and of their copies, in memory
 *     flush      see vmdk-flush.c
 *
 * The first change of a session comes by allocate or unmap, for until then map shows nothing as writable. What is there
 * already is allocated where it lies.
 *
 * A discard gives the bytes of a grain back to the host and leaves the grain where it is. So no grain's bytes can turn
 * up in another. Where the parent would show, a grain becomes a zero grain, if the extent has those; else zeroes must
 * be written.
 */
#include <errno.h>

#include "base/bytes.h"
#include "formats/allocation.h"
#include "formats/vmdk-impl.h"

int vmdk_before_change(Image *image)
{
    VmdkState *state = image->state;
    if (state->broken) {
        return -EIO;
    }
    if (state->write_error < 0) { /* there may be space again */
        state->write_error = vmdk_flush(image);
    }
    return state->write_error < 0 ? state->write_error : vmdk_start_session(image);
}

/* Calls visit for each part of a range that lies in one extent; offsets of the extent. */
typedef int (*VisitPart)(void *opaque, const VmdkExtent *extent, uint64_t offset, uint64_t length);

static int visit_parts(const VmdkState *state, uint64_t offset, uint64_t length, VisitPart visit,
                       void *opaque)
{
    uint64_t end = offset + length;
    int r = 0;
    while (r == 0 && offset < end) {
        const VmdkExtent *extent = vmdk_extent_at(state, offset);
        uint64_t part = min_u64(end, extent->offset + extent->length) - offset;
        r = visit(opaque, extent, offset - extent->offset, part);
        offset += part;
    }
    return r;
}

/* ---- allocate ------------------------------------------------------------------------------- */

typedef struct Reserve {
    Image *image;
    Allocation *allocation;
} Reserve;

static void add_part(const Reserve *reserve, const VmdkExtent *extent, uint64_t host,
                     uint64_t length, bool fresh)
{
    allocation_add(reserve->image, reserve->allocation, extent->store, host, length, fresh);
}

/* One grain, or what the allocation has of it. */
static int reserve_grain(const Reserve *reserve, const VmdkExtent *extent, uint64_t offset,
                         uint64_t length)
{
    VmdkSparse *sparse = extent->sparse;
    uint64_t inside = offset % sparse->grain, host;
    VmdkPlace place;
    uint32_t entry;
    bool fresh = false;
    int r = vmdk_entry_look(sparse, offset / sparse->grain, &place, &entry);
    if (r < 0) {
        return r;
    }
    if (vmdk_entry_has_place(sparse, entry)) {
        host = (uint64_t)entry * VMDK_SECTOR;
    } else {
        r = vmdk_space_take(sparse, sparse->grain, &host, &fresh);
    }
    if (r == 0) {
        add_part(reserve, extent, host + inside, length, fresh);
    }
    return r;
}

static int reserve_part(void *opaque, const VmdkExtent *extent, uint64_t offset, uint64_t length)
{
    const Reserve *reserve = opaque;
    VmdkSparse *sparse = extent->sparse;
    if (!sparse) {
        add_part(reserve, extent, extent->host_offset + offset, length, false);
        return 0;
    }
    uint64_t end = offset + length;
    int r = vmdk_tables_make(sparse, offset / sparse->grain, (end - 1) / sparse->grain);
    while (r == 0 && offset < end) {
        uint64_t part = min_u64(end, align_down(offset, sparse->grain) + sparse->grain) - offset;
        r = reserve_grain(reserve, extent, offset, part);
        offset += part;
    }
    return r;
}

static void give_back(Image *image, Allocation *allocation);

/* All of it or nothing. */
static int reserve(Image *image, Allocation *allocation)
{
    Reserve reserve = {image, allocation};
    int r =
        visit_parts(image->state, allocation->offset, allocation->length, reserve_part, &reserve);
    if (r < 0) {
        give_back(image, allocation);
    }
    return r;
}

int vmdk_allocate(Image *image, Allocation **list, unsigned count)
{
    int r = allocation_reserve_all(image, list, count, vmdk_before_change(image), reserve);
    vmdk_update_dirty(image->state);
    vmdk_flush_if_full(image);
    return r;
}

/* ---- commit, abandon ------------------------------------------------------------------------ */

/* The grains that a new extent has space for. */
typedef struct NewGrains {
    VmdkSparse *sparse;
    uint64_t first, count;
    uint64_t host; /* of the first, whole */
} NewGrains;

/* False: the extent is a part of a flat one. */
static bool new_grains(const VmdkState *state, const Extent *new, NewGrains *grains)
{
    const VmdkExtent *extent = vmdk_extent_at(state, new->offset);
    if (!extent->sparse) {
        return false;
    }
    uint64_t grain = extent->sparse->grain, offset = new->offset - extent->offset;
    grains->sparse = extent->sparse;
    grains->first = offset / grain;
    grains->count = div_round_up(offset + new->length, grain) - grains->first;
    grains->host = new->host_offset - offset % grain;
    return true;
}

static int commit_grain(VmdkSparse *sparse, uint64_t grain, uint64_t host)
{
    VmdkPlace place;
    uint32_t entry;
    int r = vmdk_entry_look(sparse, grain, &place, &entry);
    if (r < 0 || entry == host / VMDK_SECTOR) {
        return r;
    }
    return vmdk_grain_set(sparse, grain, &place, host / VMDK_SECTOR);
}

static int commit_extent(const VmdkState *state, const Extent *new)
{
    NewGrains grains;
    int r = 0;
    if (!new_grains(state, new, &grains)) {
        return 0;
    }
    for (uint64_t i = 0; r == 0 && i < grains.count; i++) {
        r = commit_grain(grains.sparse, grains.first + i, grains.host + i * grains.sparse->grain);
    }
    return r;
}

static int commit_one(Image *image, Allocation *allocation)
{
    const ExtentList *extents = &allocation->extents;
    int r = 0;
    for (unsigned i = 0; r == 0 && i < extents->count; i++) {
        r = commit_extent(image->state, &extents->items[i]);
    }
    return r;
}

int vmdk_commit(Image *image, Allocation **list, unsigned count)
{
    int r = allocation_commit_all(image, list, count, commit_one);
    vmdk_update_dirty(image->state);
    vmdk_flush_if_full(image);
    return r;
}

static bool is_linked(const VmdkSparse *sparse, uint64_t grain, uint64_t host)
{
    VmdkPlace place;
    uint32_t entry;
    /* When in doubt it is: then its space is lost until the next check, nothing worse. */
    return vmdk_entry_look(sparse, grain, &place, &entry) < 0 || entry == host / VMDK_SECTOR;
}

static void give_back_extent(const VmdkState *state, const Extent *new)
{
    NewGrains grains;
    if (!new_grains(state, new, &grains)) {
        return;
    }
    for (uint64_t i = grains.count; i > 0; i--) {
        uint64_t host = grains.host + (i - 1) * grains.sparse->grain;
        if (!is_linked(grains.sparse, grains.first + i - 1, host)) {
            vmdk_space_give_back(grains.sparse, host, grains.sparse->grain);
        }
    }
}

static void give_back(Image *image, Allocation *allocation)
{
    ExtentList *extents = &allocation->extents;
    for (unsigned i = extents->count; i > 0; i--) {
        give_back_extent(image->state, &extents->items[i - 1]);
    }
    extent_list_reset(extents);
}

void vmdk_abandon(Image *image, Allocation **list, unsigned count)
{
    for (unsigned i = count; i > 0; i--) {
        give_back(image, list[i - 1]);
    }
}

/* ---- unmap ---------------------------------------------------------------------------------- */

typedef struct Unmap {
    Image *image;
    UnmapFlags flags;
    uint64_t below; /* the parent may show before this offset */
    bool change;    /* else only look whether zeroes must be written */
} Unmap;

/* A parent that was not opened may have any length. */
static uint64_t backing_end(const Image *image)
{
    if (image->backing) {
        return image->backing->size;
    }
    return image->backing_name ? UINT64_MAX : 0;
}

static int punch(const Unmap *unmap, Store *store, uint64_t offset, uint64_t length)
{
    if (!unmap->change) {
        return 0;
    }
    return store_punch(store, offset, length,
                       unmap->flags & UNMAP_KEEP_SPACE ? STORE_PUNCH_KEEP_SPACE : STORE_PUNCH_FREE);
}

/* A grain that is not there, over a parent that may be. */
static int make_zero_grain(const Unmap *unmap, VmdkSparse *sparse, uint64_t grain)
{
    VmdkPlace place;
    if (!sparse->has_zero_grains) {
        return -ENOTSUP;
    }
    if (!unmap->change) {
        return 0;
    }
    int r = vmdk_tables_make(sparse, grain, grain);
    r = r < 0 ? r : vmdk_entry_find(sparse, grain, &place);
    return r < 0 ? r : vmdk_grain_set(sparse, grain, &place, 1);
}

static int unmap_grain(const Unmap *unmap, const VmdkExtent *extent, uint64_t offset,
                       uint64_t length)
{
    VmdkSparse *sparse = extent->sparse;
    VmdkPlace place;
    uint32_t entry;
    int r = vmdk_entry_look(sparse, offset / sparse->grain, &place, &entry);
    if (r < 0) {
        return r;
    }
    if (vmdk_entry_has_place(sparse, entry)) {
        uint64_t host = (uint64_t)entry * VMDK_SECTOR + offset % sparse->grain;
        return punch(unmap, extent->store, host, length);
    }
    bool shows = entry == 0 && extent->offset + offset < unmap->below;
    return shows && (unmap->flags & UNMAP_ZERO)
               ? make_zero_grain(unmap, sparse, offset / sparse->grain)
               : 0;
}

static int unmap_part(void *opaque, const VmdkExtent *extent, uint64_t offset, uint64_t length)
{
    const Unmap *unmap = opaque;
    VmdkSparse *sparse = extent->sparse;
    if (!sparse) {
        return punch(unmap, extent->store, extent->host_offset + offset, length);
    }
    int r = 0;
    for (uint64_t end = offset + length; r == 0 && offset < end;) {
        uint64_t part = min_u64(end, align_down(offset, sparse->grain) + sparse->grain) - offset;
        r = unmap_grain(unmap, extent, offset, part);
        offset += part;
    }
    return r;
}

/* Where one part cannot be done, none is. */
static int unmap_range(Unmap *unmap, uint64_t offset, uint64_t length)
{
    const VmdkState *state = unmap->image->state;
    int r = visit_parts(state, offset, length, unmap_part, unmap);
    unmap->change = true;
    return r < 0 ? r : visit_parts(state, offset, length, unmap_part, unmap);
}

int vmdk_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    Unmap unmap = {.image = image, .flags = flags, .below = backing_end(image)};
    if (flags & UNMAP_BACKING) {
        return -ENOTSUP; /* grains stay where they are */
    }
    int r = vmdk_before_change(image);
    r = r < 0 ? r : unmap_range(&unmap, offset, length);
    vmdk_update_dirty(image->state);
    vmdk_flush_if_full(image);
    if (r == -ENOTSUP && !(flags & UNMAP_ZERO)) {
        return 0; /* a discard is advice: keeping the bytes is a right answer */
    }
    return r;
}
