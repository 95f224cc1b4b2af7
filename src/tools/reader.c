/*
 * What a range of a disk reads as.
 *
 * The map of a chain says "data" for all of a raw file, and for preallocated clusters; the host
 * knows which of that are holes. Asked here, so that no tool reads what is zero anyway.
 */
#include "tools/reader.h"

#include <string.h>

#include "base/bytes.h"
#include "store/store-file.h"

/* Adds an extent whose host file may have holes: these become zero. */
static int add_sparse(ExtentList *list, const Extent *extent)
{
    for (uint64_t done = 0; done < extent->length;) {
        bool data = true;
        uint64_t run = extent->length - done;
        int r = store_next_data(extent->store, extent->host_offset + done, run, &data, &run);
        if (r < 0) {
            return r;
        }
        Extent part = *extent;
        part.offset += done;
        part.host_offset += done;
        part.length = run;
        part.type = data ? EXTENT_DATA : EXTENT_ZERO;
        part.flags = data ? extent->flags : 0;
        extent_list_add(list, &part);
        done += run;
    }
    return 0;
}

static int map_inside(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    ExtentList chain;
    extent_list_init(&chain);
    int r = chain_map(image, offset, length, 0, &chain);
    for (unsigned i = 0; r == 0 && i < chain.count; i++) {
        const Extent *extent = &chain.items[i];
        if (extent->type == EXTENT_DATA && extent->flags & EXTENT_SPARSE) {
            r = add_sparse(list, extent);
        } else {
            extent_list_add(list, extent);
        }
    }
    extent_list_clear(&chain);
    return r;
}

int reader_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    uint64_t inside = offset < image->size ? min_u64(length, image->size - offset) : 0;
    int r = inside > 0 ? map_inside(image, offset, inside, list) : 0;
    if (r == 0 && inside < length) {
        extent_list_add_zero(list, offset + inside, length - inside, NULL);
    }
    return r;
}

int reader_read(const ExtentList *list, uint64_t offset, uint64_t length, uint8_t *buffer)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < list->count; i++) {
        Extent extent = list->items[i];
        if (extent_clip(&extent, offset, length)) {
            r = chain_read_extent(&extent, buffer + (extent.offset - offset));
        }
    }
    return r;
}

bool reader_all_zero(const ExtentList *list)
{
    for (unsigned i = 0; i < list->count; i++) {
        if (!extent_is_zero(&list->items[i])) {
            return false;
        }
    }
    return true;
}

uint64_t reader_zero_until(Image *image, uint64_t offset, uint64_t limit)
{
    if (offset >= limit || offset >= image->size) {
        return max_u64(offset, limit);
    }
    uint64_t inside = min_u64(limit, image->size), end = offset;
    ExtentList list;
    extent_list_init(&list);
    if (chain_map(image, offset, inside - offset, 1, &list) == 0) {
        const Extent *first = &list.items[0];
        uint64_t run = first->length;
        bool data = !extent_is_zero(first);
        if (first->type == EXTENT_DATA && first->flags & EXTENT_SPARSE &&
            store_next_data(first->store, first->host_offset, run, &data, &run) < 0) {
            data = true;
        }
        end = data ? offset : offset + run;
    }
    extent_list_clear(&list);
    return end == image->size ? max_u64(end, limit) : end;
}

bool reader_same_place(const Extent *a, const Extent *b)
{
    return a->type == b->type && !extent_is_zero(a) && a->host_offset == b->host_offset &&
           a->unit_offset == b->unit_offset && store_file_same(a->store, b->store);
}

#define COUNT_STEP (UINT64_C(64) << 20) /* mapped at a time */

/* Adds the units that the data of a list touches; *end: where the last unit that was counted ends. */
static void count_units(const ExtentList *list, uint64_t unit, uint64_t *end, uint64_t *bytes)
{
    for (unsigned i = 0; i < list->count; i++) {
        const Extent *extent = &list->items[i];
        uint64_t first = max_u64(align_down(extent->offset, unit), *end);
        uint64_t last = align_up(extent_end(extent), unit);
        if (!extent_is_zero(extent) && last > first) {
            *bytes += last - first;
            *end = last;
        }
    }
}

int reader_count_data(Image *image, uint64_t unit, uint64_t *bytes)
{
    uint64_t end = 0;
    int r = 0;
    ExtentList list;
    extent_list_init(&list);
    *bytes = 0;
    for (uint64_t at = 0; r == 0 && at < image->size;) {
        uint64_t data = reader_zero_until(image, at, image->size);
        uint64_t length = data < image->size ? min_u64(COUNT_STEP, image->size - data) : 0;
        extent_list_reset(&list);
        r = length > 0 ? reader_map(image, data, length, &list) : 0;
        count_units(&list, unit, &end, bytes);
        at = data + length;
    }
    extent_list_clear(&list);
    return r;
}
