/*
 * The map cache as a sorted array cut into leaves.
 *
 *      starts   [ 0 | 64M | 3G | ... ]      guest offset of each leaf's first extent, ascending
 *                 |    |     |
 *      leaves   [....][..][......]          up to LEAF_MAX extents each, ascending, gaps allowed
 *
 * Two binary searches find an extent, and a change moves at most one leaf's extents. Fragmented
 * images reach tens of thousands of extents; a balanced tree of single extents would miss the
 * processor's cache at every level.
 *
 * What must stay true: no leaf is empty; starts[i] == leaves[i]->items[0].offset; extents never
 * overlap.
 */
#include "map/mapcache.h"

#include <glib.h>
#include <string.h>

#define LEAF_MAX 64

typedef struct Leaf {
    unsigned count;
    Extent items[LEAF_MAX];
} Leaf;

struct MapCache {
    uint64_t *starts;
    Leaf **leaves;
    unsigned leaf_count, leaf_capacity;
    unsigned leaf_limit;
    unsigned hand; /* the leaf that is forgotten next when there are too many */
    unsigned count;
};

/* A place in the cache: leaf may be leaf_count (the end). */
typedef struct Place {
    unsigned leaf, index;
} Place;

MapCache *mapcache_new(unsigned limit)
{
    MapCache *cache = g_new0(MapCache, 1);
    cache->leaf_limit = MAX(limit / (LEAF_MAX / 2), 8);
    return cache;
}

void mapcache_free(MapCache *cache)
{
    for (unsigned i = 0; i < cache->leaf_count; i++) {
        g_free(cache->leaves[i]);
    }
    g_free(cache->leaves);
    g_free(cache->starts);
    g_free(cache);
}

unsigned mapcache_count(const MapCache *cache)
{
    return cache->count;
}

/* The last leaf that begins at or before offset; 0 when there is none. */
static unsigned find_leaf(const MapCache *cache, uint64_t offset)
{
    unsigned low = 0, high = cache->leaf_count;
    while (high - low > 1) {
        unsigned middle = low + (high - low) / 2;
        if (cache->starts[middle] <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The first extent that ends after offset. */
static Place find(const MapCache *cache, uint64_t offset)
{
    if (cache->leaf_count == 0) {
        return (Place){0, 0};
    }
    Place place = {find_leaf(cache, offset), 0};
    const Leaf *leaf = cache->leaves[place.leaf];
    unsigned low = 0, high = leaf->count;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        if (extent_end(&leaf->items[middle]) <= offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    place.index = low;
    return low < leaf->count ? place : (Place){place.leaf + 1, 0};
}

static Extent *at(const MapCache *cache, Place place)
{
    return place.leaf < cache->leaf_count ? &cache->leaves[place.leaf]->items[place.index] : NULL;
}

static Place next(const MapCache *cache, Place place)
{
    return place.index + 1 < cache->leaves[place.leaf]->count ? (Place){place.leaf, place.index + 1}
                                                              : (Place){place.leaf + 1, 0};
}

bool mapcache_lookup(const MapCache *cache, uint64_t offset, uint64_t length, unsigned max_extents,
                     ExtentList *list)
{
    uint64_t end = offset + length;
    Place place = find(cache, offset);
    const Extent *found;
    while ((found = at(cache, place)) != NULL && found->offset <= offset) {
        Extent part = *found;
        extent_clip(&part, offset, end - offset);
        extent_list_add(list, &part);
        offset = extent_end(&part);
        if (offset == end) {
            return true;
        }
        if (max_extents != 0 && list->count >= max_extents) {
            return false;
        }
        place = next(cache, place);
    }
    return false;
}

static void leaf_remove(MapCache *cache, unsigned index)
{
    cache->count -= cache->leaves[index]->count;
    g_free(cache->leaves[index]);
    unsigned after = cache->leaf_count - index - 1;
    memmove(&cache->leaves[index], &cache->leaves[index + 1], after * sizeof(Leaf *));
    memmove(&cache->starts[index], &cache->starts[index + 1], after * sizeof(uint64_t));
    cache->leaf_count--;
}

static Leaf *leaf_add(MapCache *cache, unsigned index)
{
    if (cache->leaf_count == cache->leaf_capacity) {
        cache->leaf_capacity = MAX(cache->leaf_capacity * 2, 4);
        cache->leaves = g_renew(Leaf *, cache->leaves, cache->leaf_capacity);
        cache->starts = g_renew(uint64_t, cache->starts, cache->leaf_capacity);
    }
    unsigned after = cache->leaf_count - index;
    memmove(&cache->leaves[index + 1], &cache->leaves[index], after * sizeof(Leaf *));
    memmove(&cache->starts[index + 1], &cache->starts[index], after * sizeof(uint64_t));
    Leaf *leaf = g_new(Leaf, 1);
    leaf->count = 0;
    cache->leaves[index] = leaf;
    cache->leaf_count++;
    return leaf;
}

/* Keeps the limit by forgetting one leaf, never the one at keep. */
static void evict(MapCache *cache, uint64_t keep)
{
    unsigned kept = find_leaf(cache, keep);
    unsigned victim = cache->hand % cache->leaf_count;
    if (victim == kept) {
        victim = (victim + 1) % cache->leaf_count;
    }
    leaf_remove(cache, victim);
    cache->hand = victim;
}

static void split(MapCache *cache, unsigned index)
{
    Leaf *right = leaf_add(cache, index + 1);
    Leaf *left = cache->leaves[index];
    unsigned half = left->count / 2;
    right->count = left->count - half;
    memcpy(right->items, left->items + half, right->count * sizeof(Extent));
    left->count = half;
    cache->starts[index + 1] = right->items[0].offset;
}

/* Inserts where nothing overlaps, into the leaf before place or at it. */
static void insert_at(MapCache *cache, Place place, const Extent *extent)
{
    if (cache->leaf_count == 0) {
        leaf_add(cache, 0);
    } else if (place.index == 0 && place.leaf > 0) {
        place.leaf--;
        place.index = cache->leaves[place.leaf]->count;
    }
    Leaf *leaf = cache->leaves[place.leaf];
    if (leaf->count == LEAF_MAX) {
        split(cache, place.leaf);
        if (place.index > leaf->count) {
            place.index -= leaf->count;
            leaf = cache->leaves[++place.leaf];
        }
    }
    memmove(&leaf->items[place.index + 1], &leaf->items[place.index],
            (leaf->count - place.index) * sizeof(Extent));
    leaf->items[place.index] = *extent;
    leaf->count++;
    cache->count++;
    cache->starts[place.leaf] = leaf->items[0].offset;
}

static void remove_at(MapCache *cache, Place place)
{
    Leaf *leaf = cache->leaves[place.leaf];
    if (leaf->count == 1) {
        leaf_remove(cache, place.leaf);
        return;
    }
    memmove(&leaf->items[place.index], &leaf->items[place.index + 1],
            (leaf->count - place.index - 1) * sizeof(Extent));
    leaf->count--;
    cache->count--;
    cache->starts[place.leaf] = leaf->items[0].offset;
}

void mapcache_erase(MapCache *cache, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length;
    for (;;) {
        Place place = find(cache, offset);
        Extent *found = at(cache, place);
        if (found == NULL || found->offset >= end) {
            return;
        }
        Extent before = *found, after = *found;
        bool keep_before =
            found->offset < offset && extent_clip(&before, found->offset, offset - found->offset);
        bool keep_after =
            extent_end(found) > end && extent_clip(&after, end, extent_end(found) - end);
        if (keep_before) {
            *found = before;
        } else if (keep_after) {
            *found = after;
            cache->starts[place.leaf] = cache->leaves[place.leaf]->items[0].offset;
        } else {
            remove_at(cache, place);
        }
        if (keep_before && keep_after) {
            insert_at(cache, find(cache, end - 1), &after);
        }
        if (keep_after) {
            return;
        }
    }
}

void mapcache_insert(MapCache *cache, const Extent *extent)
{
    mapcache_erase(cache, extent->offset, extent->length);
    Extent merged = *extent;
    if (extent->offset > 0) {
        Place place = find(cache, extent->offset - 1);
        const Extent *left = at(cache, place);
        if (left != NULL && extent_mergeable(left, &merged)) {
            merged = *left;
            merged.length += extent->length;
            remove_at(cache, place);
        }
    }
    Place place = find(cache, extent_end(extent));
    const Extent *right = at(cache, place);
    if (right != NULL && extent_mergeable(&merged, right)) {
        merged.length += right->length;
        remove_at(cache, place);
        place = find(cache, extent_end(&merged));
    }
    insert_at(cache, place, &merged);
    if (cache->leaf_count > cache->leaf_limit) {
        evict(cache, extent->offset);
    }
}
