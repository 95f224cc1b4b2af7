/* Decoded units, in a queue with the last used one at the end. A disk keeps a handful; they are
 * looked for one by one. */
#include "engine/unitcache.h"

#include <glib.h>
#include <pthread.h>
#include <string.h>

#include "base/cleanup.h"

typedef struct Unit {
    const Image *image;
    const Store *store;
    uint64_t host_offset;
    uint32_t length;
    uint8_t *bytes;
} Unit;

struct UnitCache {
    pthread_mutex_t lock;
    GQueue units; /* Unit *, least recently used first */
    uint64_t limit, size;
};

UnitCache *unitcache_new(uint64_t limit)
{
    UnitCache *cache = g_new0(UnitCache, 1);
    pthread_mutex_init(&cache->lock, NULL);
    g_queue_init(&cache->units);
    cache->limit = limit;
    return cache;
}

static void drop_oldest(UnitCache *cache)
{
    Unit *unit = g_queue_pop_head(&cache->units);
    cache->size -= unit->length;
    g_free(unit->bytes);
    g_free(unit);
}

void unitcache_clear(UnitCache *cache)
{
    with_mutex(&cache->lock);
    while (!g_queue_is_empty(&cache->units)) {
        drop_oldest(cache);
    }
}

void unitcache_free(UnitCache *cache)
{
    unitcache_clear(cache);
    pthread_mutex_destroy(&cache->lock);
    g_free(cache);
}

static GList *find(UnitCache *cache, const Extent *extent)
{
    for (GList *link = cache->units.tail; link != NULL; link = link->prev) {
        const Unit *unit = link->data;
        if (unit->image == extent->image && unit->store == extent->store &&
            unit->host_offset == extent->host_offset && unit->length == extent->unit_length) {
            return link;
        }
    }
    return NULL;
}

bool unitcache_copy(UnitCache *cache, const Extent *extent, uint8_t *out)
{
    with_mutex(&cache->lock);
    GList *link = find(cache, extent);
    if (link == NULL) {
        return false;
    }
    const Unit *unit = link->data;
    memcpy(out, unit->bytes + extent->unit_offset, extent->length);
    g_queue_unlink(&cache->units, link);
    g_queue_push_tail_link(&cache->units, link);
    return true;
}

void unitcache_add(UnitCache *cache, const Extent *extent, uint8_t *unit)
{
    with_mutex(&cache->lock);
    if (find(cache, extent) != NULL || extent->unit_length > cache->limit) {
        g_free(unit);
        return;
    }
    Unit *added = g_new(Unit, 1);
    *added = (Unit){extent->image, extent->store, extent->host_offset, extent->unit_length, unit};
    g_queue_push_tail(&cache->units, added);
    cache->size += added->length;
    while (cache->size > cache->limit) {
        drop_oldest(cache);
    }
}
