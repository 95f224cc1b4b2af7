/*
 * The map of a request's range: from the map cache, or by a job in the pool behind the shared gate.
 *
 * The cache is exact because of one rule: whoever knows news of the map (a map job, a change) puts
 * them into the cache before leaving the gate. The STABLE lock is taken before the cache is asked,
 * under the same mutex, so that nothing can change between the answer and its use.
 */
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "engine/disk-impl.h"

static void map_granted(Request *request);

/* Where a map job that was asked for a range up to end goes on to: the end of what one metadata
 * block tells anyhow (512 entries of 8 bytes); a format without allocation units answers for all of
 * the disk at once. */
static uint64_t window_end(const Disk *disk, uint64_t end)
{
    uint64_t size = disk->image->size, unit = disk->image->allocation_unit;
    if (unit <= 1) {
        return size;
    }
    uint64_t window = unit * 512;
    return end > size - (size & (window - 1)) ? size : align_up(end, window);
}

/* [pool] Behind the gate. */
static int map_range(Disk *disk, const Request *request, ExtentList *answer)
{
    uint64_t offset = request->hold.offset, length = request->hold.length;
    if (!range_within(offset, length, disk->image->size)) {
        return request_past_the_end(request);
    }
    ExtentList list;
    extent_list_init(&list);
    uint64_t end = window_end(disk, offset + length);
    int r = chain_map(disk->image, offset, end - offset, MAP_PART_MAX, &list);
    if (r == 0) {
        with_mutex(&disk->map_lock);
        for (unsigned i = 0; i < list.count; i++) {
            mapcache_insert(disk->mapcache, &list.items[i]);
            Extent part = list.items[i];
            if (extent_clip(&part, offset, length)) {
                extent_list_add(answer, &part);
            }
        }
    }
    extent_list_clear(&list);
    return r;
}

static void map_job(PoolJob *job)
{
    Request *request = (Request *)((char *)job - offsetof(Request, job.job));
    Disk *disk = request_disk(request);
    request->result = map_range(disk, request, &request->extents);
    gate_leave(&disk->gate, GATE_SHARED);
    request_resume(request, request->mapped);
}

static void map_miss(Request *request)
{
    extent_list_reset(&request->extents);
    request->job.job.run = map_job;
    gate_enter(&request_disk(request)->gate, &request->job, GATE_SHARED);
}

/* Holding map_lock, so adding needs no atomic instruction: only whoever reads the counts has no lock. */
static void count_one(_Atomic uint64_t *counter)
{
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, now + 1, memory_order_relaxed);
}

static bool lookup(Disk *disk, Request *request)
{
    bool known = mapcache_lookup(disk->mapcache, request->hold.offset, request->hold.length,
                                 MAP_PART_MAX, &request->extents) ||
                 request->extents.count >= MAP_PART_MAX;
    count_one(known ? &disk->map_hits : &disk->map_misses);
    return known;
}

static void map_granted(Request *request)
{
    Disk *disk = request_disk(request);
    pthread_mutex_lock(&disk->map_lock);
    bool known = lookup(disk, request);
    pthread_mutex_unlock(&disk->map_lock);
    if (known) {
        request->mapped(request);
    } else {
        map_miss(request);
    }
}

void map_start(Request *request, uint64_t offset, uint64_t length, void (*mapped)(Request *request))
{
    Disk *disk = request_disk(request);
    request->mapped = mapped;
    request->resume = map_granted;
    request->result = 0;
    extent_list_reset(&request->extents);
    pthread_mutex_lock(&disk->map_lock);
    bool granted = rangelock_acquire(&disk->ranges, &request->hold, RANGE_STABLE, offset, length);
    bool known = granted && lookup(disk, request);
    pthread_mutex_unlock(&disk->map_lock);
    if (known) {
        mapped(request);
    } else if (granted) {
        map_miss(request);
    }
}
