/*
 * Copying up: read through the chain, allocate, write, commit.
 */
#include "formats/copyup.h"

#include <errno.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "map/encryption.h"

#define STEP (UINT64_C(1) << 20)

static int write_extents(const ExtentList *extents, uint8_t *bytes)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < extents->count; i++) {
        const Extent *extent = &extents->items[i];
        r = extent_write(extent, &(struct iovec){bytes, extent->length}, 1);
        bytes += extent->length;
    }
    return r;
}

int copy_up(Image *image, uint64_t offset, uint64_t length)
{
    const Format *format = image->format;
    g_autofree uint8_t *bytes = g_try_malloc(length);
    int r = bytes != NULL ? chain_read(image, bytes, length, offset) : -ENOMEM;
    if (r < 0) {
        return r;
    }
    Allocation allocation = {.offset = offset, .length = length}, *list = &allocation;
    extent_list_init(&allocation.extents);
    r = image_allocate(image, &list, 1);
    if (r == 0) {
        r = write_extents(&allocation.extents, bytes);
        if (r == 0) {
            r = format->commit(image, &list, 1);
        } else {
            format->abandon(image, &list, 1);
        }
    }
    extent_list_clear(&allocation.extents);
    return r;
}

/* The first part of the range that is not writable; *from is its end where there is none. */
static int find_gap(Image *image, uint64_t *from, uint64_t end, uint64_t *length)
{
    ExtentList map;
    extent_list_init(&map);
    bool found = false;
    int r = 0;
    while (r == 0 && !found && *from < end) {
        extent_list_reset(&map);
        r = image_map(image, *from, end - *from, &map);
        for (unsigned i = 0; r == 0 && i < map.count && !found; i++) {
            const Extent *extent = &map.items[i];
            found = extent->type != EXTENT_DATA || !(extent->flags & EXTENT_WRITABLE);
            *from = found ? extent->offset : extent_end(extent);
            *length = extent->length;
        }
    }
    extent_list_clear(&map);
    return r;
}

int copy_up_all(Image *image, uint64_t offset, uint64_t length)
{
    uint64_t unit = image->allocation_unit, end = offset + length, gap = 0;
    int r = find_gap(image, &offset, end, &gap);
    while (r == 0 && offset < end) {
        uint64_t start = align_down(offset, unit);
        uint64_t stop = min_u64(align_up(min_u64(offset + gap, offset + STEP), unit), end);
        r = copy_up(image, start, stop - start);
        offset = stop;
        r = r < 0 ? r : find_gap(image, &offset, end, &gap);
    }
    return r;
}
