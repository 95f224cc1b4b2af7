/*
 * The map cache: what is known of a disk's merged map, in memory.
 *
 * It holds extents of the whole chain (depth filled in, never UNALLOCATED), in guest order, gaps
 * where nothing is known. It always says what the formats would say: who changes a format's state
 * changes the cache before he leaves the exclusive gate, who maps inserts before he leaves the
 * shared gate.
 *
 * Memory is bounded: past the limit the extents of one part of the disk after another are
 * forgotten.
 *
 * No locks inside: the disk's map lock protects it. [any], never blocks.
 */
#ifndef MAP_MAPCACHE_H
#define MAP_MAPCACHE_H

#include "map/extent.h"

typedef struct MapCache MapCache;

/* limit: extents kept at most (rounded up to a few leaves). */
MapCache *mapcache_new(unsigned limit);
void mapcache_free(MapCache *cache);

/* Appends what is known from offset on, clipped to the range, until the first gap or until the list
 * holds max_extents (0: no limit). True when all of the range is known and in the list. */
bool mapcache_lookup(const MapCache *cache, uint64_t offset, uint64_t length, unsigned max_extents,
                     ExtentList *list);

/* Replaces what was known of the extent's range. */
void mapcache_insert(MapCache *cache, const Extent *extent);

/* Forgets the range. */
void mapcache_erase(MapCache *cache, uint64_t offset, uint64_t length);

unsigned mapcache_count(const MapCache *cache); /* extents held */

#endif
