/*
 * Decoded units (clusters, grains) of a disk, the last few: neighbouring reads of one compressed
 * unit decode it once.
 *
 * Compressed data never changes in place; a unit is known by the image, the store (an image may
 * have several), the host offset it was decoded from, and its length. A host offset that is freed
 * and used again must be dropped: unitcache_clear. [any]; a mutex inside, held for one copy.
 */
#ifndef ENGINE_UNITCACHE_H
#define ENGINE_UNITCACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "map/extent.h"

typedef struct UnitCache UnitCache;

/* limit: bytes of decoded units kept. Memory is taken when the first unit comes. */
UnitCache *unitcache_new(uint64_t limit);
void unitcache_free(UnitCache *cache);

/* Copies extent->length bytes of the extent to out; false when its unit is not here. */
bool unitcache_copy(UnitCache *cache, const Extent *extent, uint8_t *out);

/* Takes over unit (from g_malloc), extent->unit_length bytes. */
void unitcache_add(UnitCache *cache, const Extent *extent, uint8_t *unit);

void unitcache_clear(UnitCache *cache);

#endif
