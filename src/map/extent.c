/*
 * Extent lists: ascending, gapless, merged where neighbours say the same.
 *
 * What must stay true: items[i + 1].offset == extent_end(items[i]); no item is empty.
 * extent_list_add holds it, so nobody else needs to check it.
 */
#include "map/extent.h"

#include <glib.h>
#include <string.h>

void extent_list_init(ExtentList *list)
{
    list->items = list->room;
    list->count = 0;
    list->capacity = EXTENT_LIST_INLINE;
}

void extent_list_clear(ExtentList *list)
{
    if (list->items != list->room) {
        g_free(list->items);
    }
    extent_list_init(list);
}

void extent_list_reset(ExtentList *list)
{
    list->count = 0;
}

bool extent_mergeable(const Extent *a, const Extent *b)
{
    if (extent_end(a) != b->offset || a->type != b->type || a->flags != b->flags ||
        a->image != b->image || a->depth != b->depth) {
        return false;
    }
    bool has_host = a->type == EXTENT_DATA || (a->flags & EXTENT_HAS_HOST);
    if (has_host) {
        return a->store == b->store && a->host_offset + a->length == b->host_offset;
    }
    return a->type != EXTENT_ENCODED;
}

static void list_grow(ExtentList *list)
{
    unsigned capacity = list->capacity * 2;
    Extent *items = g_new(Extent, capacity);
    memcpy(items, list->items, list->count * sizeof *items);
    if (list->items != list->room) {
        g_free(list->items);
    }
    list->items = items;
    list->capacity = capacity;
}

void extent_list_add(ExtentList *list, const Extent *extent)
{
    g_assert(extent->length > 0);
    if (list->count > 0) {
        Extent *last = &list->items[list->count - 1];
        g_assert(extent_end(last) == extent->offset);
        if (extent_mergeable(last, extent)) {
            last->length += extent->length;
            return;
        }
    }
    if (list->count == list->capacity) {
        list_grow(list);
    }
    list->items[list->count++] = *extent;
}

void extent_list_add_zero(ExtentList *list, uint64_t offset, uint64_t length, Image *image)
{
    Extent zero = {.offset = offset, .length = length, .type = EXTENT_ZERO, .image = image};
    extent_list_add(list, &zero);
}

uint64_t extent_list_end(const ExtentList *list)
{
    return list->count == 0 ? 0 : extent_end(&list->items[list->count - 1]);
}

bool extent_clip(Extent *extent, uint64_t offset, uint64_t length)
{
    uint64_t start = MAX(extent->offset, offset);
    uint64_t end = MIN(extent_end(extent), offset + length);
    if (start >= end) {
        return false;
    }
    uint64_t skip = start - extent->offset;
    extent->offset = start;
    extent->length = end - start;
    if (extent->type == EXTENT_DATA || (extent->flags & EXTENT_HAS_HOST)) {
        extent->host_offset += skip;
    } else if (extent->type == EXTENT_ENCODED) {
        extent->unit_offset += skip;
    }
    return true;
}
