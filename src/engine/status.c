/*
 * Block status: the map of a range as a report. Unlike READ it looks into sparse host files for
 * holes, which may block, so it always goes through the pool.
 */
#include "base/bytes.h"
#include "engine/disk-impl.h"
#include "store/store.h"

#define STATUS_EXTENTS_MAX 2048

/* [pool] Appends the extent, cut where its host file has holes. */
static int add_refined(ExtentList *list, const Extent *extent)
{
    Extent rest = *extent;
    while (rest.length > 0 && list->count < STATUS_EXTENTS_MAX) {
        bool data;
        uint64_t run;
        int r = store_next_data(rest.store, rest.host_offset, rest.length, &data, &run);
        if (r < 0) {
            return r;
        }
        Extent part = rest;
        extent_clip(&part, rest.offset, run);
        if (data) {
            extent_list_add(list, &part);
        } else {
            Extent hole = {.offset = part.offset,
                           .length = part.length,
                           .type = EXTENT_ZERO,
                           .image = part.image,
                           .depth = part.depth};
            extent_list_add(list, &hole);
        }
        rest.offset += run;
        rest.host_offset += run;
        rest.length -= run;
    }
    return 0;
}

static int map_status(Disk *disk, const Request *request, ExtentList *answer)
{
    if (!range_within(request->offset, request->length, disk->image->size)) {
        return request_past_the_end(request);
    }
    ExtentList list;
    extent_list_init(&list);
    int r = chain_map(disk->image, request->offset, request->length, STATUS_EXTENTS_MAX, &list);
    for (unsigned i = 0; r == 0 && i < list.count && answer->count < STATUS_EXTENTS_MAX; i++) {
        const Extent *extent = &list.items[i];
        if (extent->type == EXTENT_DATA && (extent->flags & EXTENT_SPARSE)) {
            r = add_refined(answer, extent);
        } else {
            extent_list_add(answer, extent);
        }
    }
    extent_list_clear(&list);
    return r;
}

static void status_done(Request *request)
{
    disk_release(request_disk(request), request);
    request_complete(request, request->result);
}

static void status_job(PoolJob *job)
{
    Request *request = (Request *)((char *)job - offsetof(Request, job.job));
    Disk *disk = request_disk(request);
    request->result = map_status(disk, request, &request->extents);
    gate_leave(&disk->gate, GATE_SHARED);
    request_resume(request, status_done);
}

static void status_granted(Request *request)
{
    request->job.job.run = status_job;
    gate_enter(&request_disk(request)->gate, &request->job, GATE_SHARED);
}

void status_start(Request *request)
{
    Disk *disk = request_disk(request);
    request->resume = status_granted;
    pthread_mutex_lock(&disk->map_lock);
    bool granted = rangelock_acquire(&disk->ranges, &request->hold, RANGE_STABLE, request->offset,
                                     request->length);
    pthread_mutex_unlock(&disk->map_lock);
    if (granted) {
        status_granted(request);
    }
}
