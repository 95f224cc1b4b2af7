/*
 * parallels: allocate, commit, abandon, unmap, flush, finish.
 *
 *     allocate   clusters at the end of the file, in one piece
 *     (the engine writes the data)
 *     commit     the table's entries, in memory
 *     flush      data -> sync -> table -> sync
 *
 * The mark of a writer is durable before anything else is written, and replaced when the last flush is. Nothing in the
 * file records what is free, so space is taken behind all that the file has: no cluster's bytes can turn up in another.
 * A discard gives the bytes of a cluster back to the host and leaves it where it is.
 */
#include "formats/parallels.h"

#include <stdlib.h>

#include "base/errors.h"
#include "base/log.h"
#include "formats/allocation.h"
#include "formats/space.h"

static void update_dirty(ParallelsState *s)
{
    s->dirty = block_table_is_dirty(s->table);
}

bool parallels_is_dirty(const Image *image)
{
    return parallels_state(image)->dirty;
}

/* ---- space ---- */

void parallels_space_start(Image *image)
{
    ParallelsState *s = parallels_state(image);
    uint64_t size = max_u64(store_size(image->store), s->header.data_offset);
    s->used_end =
        s->header.data_offset + align_up(size - s->header.data_offset, s->header.cluster_size);
    s->size_at_open = store_size(image->store);
    s->fresh_start = s->used_end;
}

int parallels_space_take(Image *image, uint64_t length, uint64_t *host)
{
    ParallelsState *s = parallels_state(image);
    uint64_t end = s->used_end + length;
    if (end / s->header.unit > UINT32_MAX) {
        return -EFBIG;
    }
    int r = space_grow(image->store, end, s->header.cluster_size);
    if (r == 0) {
        *host = s->used_end;
        s->used_end = end;
    }
    return r;
}

/* ---- allocate, commit, abandon ---- */

static int reserve(Image *image, Allocation *a)
{
    const ParallelsState *s = parallels_state(image);
    uint64_t length = align_up(a->length, s->header.cluster_size), host_offset;
    int r = parallels_space_take(image, length, &host_offset);
    if (r == 0) {
        bool fresh = host_offset >= s->fresh_start;
        allocation_add(image, a, image->store, host_offset, a->length, fresh);
    }
    return r;
}

int parallels_allocate(Image *image, Allocation **list, unsigned count)
{
    return allocation_reserve_all(image, list, count, 0, reserve);
}

int parallels_commit(Image *image, Allocation **list, unsigned count)
{
    ParallelsState *s = parallels_state(image);
    for (unsigned i = 0; i < count; i++) {
        const Extent *extent = &list[i]->extents.items[0];
        for (uint64_t at = 0; at < extent->length; at += s->header.cluster_size) {
            uint32_t block = (extent->offset + at) / s->header.cluster_size;
            block_table_set(s->table, block, (extent->host_offset + at) / s->header.unit);
        }
        list[i]->result = 0;
    }
    update_dirty(s);
    return 0;
}

/* What was taken last is used again; it may have been written to. */
void parallels_abandon(Image *image, Allocation **list, unsigned count)
{
    ParallelsState *s = parallels_state(image);
    for (unsigned i = count; i > 0; i--) {
        ExtentList *extents = &list[i - 1]->extents;
        const Extent *extent = extents->count > 0 ? &extents->items[0] : NULL;
        if (extent &&
            extent->host_offset + align_up(extent->length, s->header.cluster_size) == s->used_end) {
            s->fresh_start = max_u64(s->fresh_start, s->used_end);
            s->used_end = extent->host_offset;
        }
        extent_list_reset(extents);
    }
}

/* ---- unmap ---- */

int parallels_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    const ParallelsState *s = parallels_state(image);
    StorePunch how = flags & UNMAP_KEEP_SPACE ? STORE_PUNCH_KEEP_SPACE : STORE_PUNCH_FREE;
    uint64_t cluster = s->header.cluster_size, end = offset + length;
    int r = 0;
    while (r == 0 && offset < end) {
        uint64_t part = min_u64(cluster, end - offset);
        uint32_t entry = block_table_get(s->table, offset / cluster);
        r = entry != 0 ? store_punch(image->store, entry * s->header.unit, part, how) : 0;
        offset += part;
    }
    if (r == -ENOTSUP && !(flags & UNMAP_ZERO)) {
        return 0; /* a discard is advice: keeping the bytes is a right answer */
    }
    return r;
}

/* ---- flush ---- */

int parallels_flush(Image *image)
{
    int r = store_sync(image->store);
    r = r < 0 ? r : block_table_flush(parallels_state(image)->table);
    if (r < 0) {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot write metadata: %s", image->path, g_strerror(-r));
    }
    update_dirty(image->state);
    return r;
}

/* ---- start and end ---- */

static int compare_places(const void *a, const void *b)
{
    const ParallelsPlace *x = a, *y = b;
    return x->entry != y->entry ? (x->entry < y->entry ? -1 : 1)
                                : (x->block > y->block) - (x->block < y->block);
}

ParallelsPlace *parallels_sorted(const ParallelsState *s, uint32_t *count)
{
    uint32_t blocks = block_table_count(s->table);
    ParallelsPlace *places = g_try_new(ParallelsPlace, max_u64(blocks, 1));
    *count = 0;
    for (uint32_t block = 0; places && block < blocks; block++) {
        uint32_t entry = block_table_get(s->table, block);
        if (entry != 0) {
            places[(*count)++] = (ParallelsPlace){entry, block};
        }
    }
    if (places) {
        qsort(places, *count, sizeof *places, compare_places);
    }
    return places;
}

/* Sees that every cluster lies in the file, alone: what a writer needs. */
static bool scan(const Image *image, GError **error)
{
    const ParallelsState *s = parallels_state(image);
    uint32_t count;
    uint64_t end = s->header.data_offset;
    g_autofree ParallelsPlace *places = parallels_sorted(s, &count);
    if (!places) {
        return error_set_errno(error, ENOMEM, "%s: cannot look through the table", image->path);
    }
    for (uint32_t i = 0; i < count; i++) {
        uint64_t host = places[i].entry * s->header.unit;
        uint64_t needed = parallels_needed(image, places[i].block);
        if (host < end || !range_within(host, needed, store_size(image->store))) {
            return error_set(error, EUCLEAN,
                             "%s: cluster %u is at %u: not in the file, or on top of something "
                             "else: open it read-only, or run check --repair=all",
                             image->path, places[i].block, places[i].entry);
        }
        end = host + needed;
    }
    return true;
}

bool parallels_start_writing(Image *image, GError **error)
{
    if (image->repair) {
        return true; /* check looks at everything itself, and mends it */
    }
    if (!scan(image, error)) {
        return false;
    }
    parallels_space_start(image);
    int r = parallels_set_in_use(image, PARALLELS_IN_USE);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the header", image->path);
}

/* Cuts off what was grown ahead of need. What the file had when it was opened is left alone. */
int parallels_finish(Image *image)
{
    const ParallelsState *s = parallels_state(image);
    if (image->repair) {
        return 0;
    }
    int r = parallels_is_dirty(image) ? parallels_flush(image) : 0;
    uint64_t end = max_u64(s->size_at_open, s->used_end);
    if (r == 0 && end < store_size(image->store)) {
        r = store_truncate(image->store, end);
    }
    r = r < 0 ? r : store_sync(image->store);
    return r < 0 ? r : parallels_set_in_use(image, PARALLELS_CLOSED);
}
