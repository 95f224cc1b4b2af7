/*
 * Looking through a chain: what an image does not have is asked of the image below it.
 *
 *     top      DDDD....DD..        D data, Z zero, . unallocated
 *     backing  ....ZZ..DDDD
 *     chain    DDDDZZ00DDDD        0 zero, because no image has it
 *
 * A backing may be shorter than the image above: beyond its end there is nothing, which reads as
 * zeroes. It may be longer: what is beyond the end of the image above is never asked for.
 *
 * What must stay true: the answer has no UNALLOCATED in it; only extents of the top image are
 * WRITABLE.
 */
#include <string.h>

#include "map/image.h"

#include "base/bytes.h"
#include "formats/format.h"
#include "map/encryption.h"

#define READ_EXTENTS 64 /* extents mapped at a time by chain_read */

typedef struct ChainWalk {
    ExtentList *list;
    unsigned max_extents;
} ChainWalk;

static bool walk_is_full(const ChainWalk *walk)
{
    return walk->max_extents != 0 && walk->list->count >= walk->max_extents;
}

static int walk_image(ChainWalk *walk, Image *image, unsigned depth, uint64_t offset,
                      uint64_t length);

/* The part of the chain below image, for a range that image does not have. */
static int walk_below(ChainWalk *walk, Image *image, unsigned depth, uint64_t offset,
                      uint64_t length)
{
    Image *backing = image->backing;
    if (backing && offset < backing->size) {
        uint64_t inside = min_u64(length, backing->size - offset);
        int r = walk_image(walk, backing, depth + 1, offset, inside);
        if (r < 0 || walk_is_full(walk) || inside == length) {
            return r;
        }
        offset += inside;
        length -= inside;
    }
    Extent nothing = {.offset = offset, .length = length, .type = EXTENT_ZERO, .depth = depth};
    extent_list_add(walk->list, &nothing);
    return 0;
}

static int walk_answer(ChainWalk *walk, Image *image, unsigned depth, const ExtentList *answer)
{
    for (unsigned i = 0; i < answer->count && !walk_is_full(walk); i++) {
        Extent extent = answer->items[i];
        if (extent.type == EXTENT_UNALLOCATED) {
            int r = walk_below(walk, image, depth, extent.offset, extent.length);
            if (r < 0) {
                return r;
            }
            continue;
        }
        extent.depth = depth;
        if (depth > 0) {
            extent.flags &= ~EXTENT_WRITABLE;
        }
        extent_list_add(walk->list, &extent);
    }
    return 0;
}

/* Calls itself through walk_below, at most IMAGE_CHAIN_MAX deep. */
static int walk_image(ChainWalk *walk, Image *image, unsigned depth, uint64_t offset,
                      uint64_t length)
{
    int r = 0;
    uint64_t end = offset + length;
    ExtentList answer;
    extent_list_init(&answer);
    while (r == 0 && offset < end && !walk_is_full(walk)) {
        extent_list_reset(&answer);
        r = image_map(image, offset, end - offset, &answer);
        if (r == 0) {
            offset = extent_list_end(&answer);
            r = walk_answer(walk, image, depth, &answer);
        }
    }
    extent_list_clear(&answer);
    return r;
}

int chain_map(Image *top, uint64_t offset, uint64_t length, unsigned max_extents, ExtentList *list)
{
    ChainWalk walk = {.list = list, .max_extents = max_extents};
    g_assert(length > 0 && range_within(offset, length, top->size));
    uint64_t before = list->count == 0 ? offset : extent_list_end(list);
    int r = walk_image(&walk, top, 0, offset, length);
    /* Who can take less than all gets what is good before the bad part. */
    bool some = list->count > 0 && extent_list_end(list) > before;
    return r < 0 && max_extents != 0 && some ? 0 : r;
}

static int read_encoded(const Extent *extent, uint8_t *buffer)
{
    uint64_t stored_length =
        min_u64(extent->stored_length, store_size(extent->store) - extent->host_offset);
    g_autofree uint8_t *stored = g_try_malloc(stored_length);
    g_autofree uint8_t *unit = g_try_malloc(extent->unit_length);
    if (!stored || !unit) {
        return -ENOMEM;
    }
    int r = store_read(extent->store, stored, stored_length, extent->host_offset);
    if (r < 0) {
        return r;
    }
    Image *image = extent->image;
    r = image->format->decode(image, extent, stored, stored_length, unit);
    if (r == 0) {
        memcpy(buffer, unit + extent->unit_offset, extent->length);
    }
    return r;
}

int chain_read_extent(const Extent *extent, uint8_t *buffer)
{
    switch (extent->type) {
    case EXTENT_DATA:
        return extent_read(extent, buffer);
    case EXTENT_ENCODED:
        return read_encoded(extent, buffer);
    default:
        memset(buffer, 0, extent->length);
        return 0;
    }
}

int chain_read(Image *top, void *buffer, uint64_t length, uint64_t offset)
{
    if (!range_within(offset, length, top->size)) {
        return -EINVAL;
    }
    int r = 0;
    uint64_t at = offset;
    uint64_t end = offset + length;
    ExtentList list;
    extent_list_init(&list);
    while (r == 0 && at < end) {
        extent_list_reset(&list);
        r = chain_map(top, at, end - at, READ_EXTENTS, &list);
        for (unsigned i = 0; r == 0 && i < list.count; i++) {
            const Extent *extent = &list.items[i];
            r = chain_read_extent(extent, (uint8_t *)buffer + (extent->offset - offset));
            at = extent_end(extent);
        }
    }
    extent_list_clear(&list);
    return r;
}
