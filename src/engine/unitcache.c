/*
 * Decoded units in an array, the least recently used first. There are at most UNITS_MAX, looked for
 * one by one: a disk needs those that its readers are in the middle of, not many.
 */
#include "engine/unitcache.h"

#include <glib.h>
#include <pthread.h>
#include <string.h>

#include "base/cleanup.h"

#define UNITS_MAX 64

typedef struct Unit {
    const Image *image;
    const Store *store;
    uint64_t host_offset;
    uint32_t length;
    uint8_t *bytes;
} Unit;

struct UnitCache {
    pthread_mutex_t lock;
    Unit units[UNITS_MAX];
    unsigned count;
    uint64_t limit, size;
};

UnitCache *unitcache_new(uint64_t limit)
{
    UnitCache *cache = g_new0(UnitCache, 1);
    pthread_mutex_init(&cache->lock, NULL);
    cache->limit = limit;
    return cache;
}

/* Takes the unit out of the array; its bytes are the caller's. */
static Unit take(UnitCache *cache, unsigned index)
{
    Unit unit = cache->units[index];
    cache->count--;
    memmove(&cache->units[index], &cache->units[index + 1],
            (cache->count - index) * sizeof *cache->units);
    cache->size -= unit.length;
    return unit;
}

static void append(UnitCache *cache, Unit unit)
{
    cache->units[cache->count++] = unit;
    cache->size += unit.length;
}

void unitcache_clear(UnitCache *cache)
{
    with_mutex(&cache->lock);
    while (cache->count > 0) {
        g_free(take(cache, cache->count - 1).bytes);
    }
}

void unitcache_free(UnitCache *cache)
{
    unitcache_clear(cache);
    pthread_mutex_destroy(&cache->lock);
    g_free(cache);
}

/* The unit's index; count when it is not here. */
static unsigned find(const UnitCache *cache, const Extent *extent)
{
    unsigned i = 0;
    for (; i < cache->count; i++) {
        const Unit *unit = &cache->units[i];
        if (unit->image == extent->image && unit->store == extent->store &&
            unit->host_offset == extent->host_offset && unit->length == extent->unit_length) {
            break;
        }
    }
    return i;
}

bool unitcache_copy(UnitCache *cache, const Extent *extent, uint8_t *out)
{
    with_mutex(&cache->lock);
    unsigned index = find(cache, extent);
    if (index == cache->count) {
        return false;
    }
    memcpy(out, cache->units[index].bytes + extent->unit_offset, extent->length);
    append(cache, take(cache, index));
    return true;
}

void unitcache_add(UnitCache *cache, const Extent *extent, uint8_t *unit)
{
    with_mutex(&cache->lock);
    if (find(cache, extent) < cache->count || extent->unit_length > cache->limit) {
        g_free(unit);
        return;
    }
    while (cache->count == UNITS_MAX || cache->size + extent->unit_length > cache->limit) {
        g_free(take(cache, 0).bytes);
    }
    append(cache,
           (Unit){extent->image, extent->store, extent->host_offset, extent->unit_length, unit});
}
