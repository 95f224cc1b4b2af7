/*
 * A sorted array of ranges that neither overlap nor touch.
 *
 * Adding takes out all that the new range overlaps or touches, and puts their union in one place.
 * Past the limit a range is joined with the neighbour that is nearer: the set may say more than it
 * was told, never less, and who asks it only loses some speed by that.
 */
#include "engine/rangeset.h"

#include <glib.h>
#include <string.h>

#include "base/bytes.h"

static uint64_t range_end(const Range *range)
{
    return range->offset + range->length;
}

void rangeset_clear(RangeSet *set)
{
    g_free(set->items);
    set->items = NULL;
    set->count = set->capacity = 0;
}

/* The first range that ends at or after offset. */
static unsigned find(const RangeSet *set, uint64_t offset)
{
    unsigned low = 0, high = set->count;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        if (range_end(&set->items[middle]) < offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Puts one range in the place of those in [first, last). */
static void replace(RangeSet *set, unsigned first, unsigned last, Range range)
{
    if (first == last && set->count == set->capacity) {
        set->capacity = MAX(set->capacity * 2, 16);
        set->items = g_renew(Range, set->items, set->capacity);
    }
    memmove(&set->items[first + 1], &set->items[last], (set->count - last) * sizeof(Range));
    set->items[first] = range;
    set->count = set->count - (last - first) + 1;
}

/* Joins the range at index with its nearer neighbour. */
static void join(RangeSet *set, unsigned index)
{
    Range *items = set->items;
    bool left = index > 0;
    if (left && index + 1 < set->count) {
        left = items[index].offset - range_end(&items[index - 1]) <=
               items[index + 1].offset - range_end(&items[index]);
    }
    unsigned first = left ? index - 1 : index;
    Range both = {items[first].offset, range_end(&items[first + 1]) - items[first].offset};
    replace(set, first, first + 2, both);
}

void rangeset_add(RangeSet *set, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length;
    unsigned first = find(set, offset), last = first;
    while (last < set->count && set->items[last].offset <= end) {
        offset = min_u64(offset, set->items[last].offset);
        end = max_u64(end, range_end(&set->items[last]));
        last++;
    }
    replace(set, first, last, (Range){offset, end - offset});
    if (set->limit != 0 && set->count > set->limit && set->count > 1) {
        join(set, first);
    }
}

bool rangeset_overlaps(const RangeSet *set, uint64_t offset, uint64_t length)
{
    unsigned i = find(set, offset + 1); /* ends after offset */
    return i < set->count && set->items[i].offset < offset + length;
}

void rangeset_copy(RangeSet *to, const RangeSet *from)
{
    to->count = to->capacity = from->count;
    to->items = g_memdup2(from->items, from->count * sizeof(Range));
}
