/*
 * RECLAIM: space that reads as zeroes because the host file has holes there goes back to the image.
 *
 * Who discards a range that the kernel holds (lease.h) makes a hole in the host file, and no format
 * learns of it. This request looks for units of the top image that are all hole, and unmaps them:
 *
 *      CHANGE on a step ──> look for holes ──found──> unmap ──> release ──> from there on
 *                                │ none
 *                                └──> release ──> next step
 *
 * What must stay true: holes are looked for while CHANGE is held. Then neither the kernel nor
 * another request writes there, and what is a hole stays one until it is unmapped.
 */
#include "base/bytes.h"
#include "engine/change.h"

#define STEP_UNITS  8192
#define EXTENTS_MAX 1024 /* of the map, looked at in one step */

typedef struct Reclaim {
    uint64_t at, end;     /* whole units, not looked at yet */
    uint64_t step_end;    /* how far one look got */
    uint64_t hole, bytes; /* found: a range of whole units; bytes 0: none */
    Change *change;
} Reclaim;

static void reclaim_step(Request *request);

static void reclaim_end(Request *request, int result)
{
    g_free(request->work);
    request->work = NULL;
    request_complete_changed(request, result);
}

static void step_done(Request *request, int result, uint64_t at)
{
    Reclaim *reclaim = request->work;
    disk_release(request_disk(request), request);
    reclaim->at = at;
    if (result < 0 || reclaim->at >= reclaim->end) {
        reclaim_end(request, result);
    } else {
        request_resume(request, reclaim_step); /* a turn later: others first, and no recursion */
    }
}

static void unmapped(Request *request)
{
    Reclaim *reclaim = request->work;
    int result = reclaim->change->result;
    change_free(reclaim->change);
    step_done(request, result == -ENOTSUP ? 0 : result, reclaim->hole + reclaim->bytes);
}

static void looked(Request *request)
{
    Reclaim *reclaim = request->work;
    if (request->result < 0 || reclaim->bytes == 0) {
        step_done(request, request->result, reclaim->step_end);
        return;
    }
    reclaim->change = change_new(request, reclaim->hole, reclaim->bytes);
    reclaim->change->unmap_flags = UNMAP_ZERO;
    change_start(reclaim->change, CHANGE_UNMAP, unmapped);
}

/* [pool] The first run of whole units in the extent that is all hole. */
static int find_hole(const Disk *disk, const Extent *extent, Reclaim *reclaim)
{
    uint64_t unit = disk->image->allocation_unit;
    for (uint64_t done = 0, run; done < extent->length; done += run) {
        bool data;
        int r = store_next_data(extent->store, extent->host_offset + done, extent->length - done,
                                &data, &run);
        if (r < 0) {
            return r;
        }
        uint64_t start = align_up(extent->offset + done, unit);
        uint64_t end = extent->offset + done + run;
        end = end == disk->image->size ? end : align_down(end, unit);
        if (!data && start < end) {
            reclaim->hole = start;
            reclaim->bytes = end - start;
            return 0;
        }
    }
    return 0;
}

/* [pool] */
static int look(Disk *disk, const Request *request)
{
    Reclaim *reclaim = request->work;
    uint64_t offset = request->hold.offset, length = request->hold.length;
    if (!range_within(offset, length, disk->image->size)) {
        return request_past_the_end(request);
    }
    ExtentList list;
    extent_list_init(&list);
    reclaim->bytes = 0;
    int r = chain_map(disk->image, offset, length, EXTENTS_MAX, &list);
    for (unsigned i = 0; r == 0 && i < list.count && reclaim->bytes == 0; i++) {
        const Extent *extent = &list.items[i];
        if (extent->type == EXTENT_DATA && (extent->flags & EXTENT_WRITABLE)) {
            r = find_hole(disk, extent, reclaim);
        }
    }
    if (r == 0) { /* a unit that the list cut is looked at again, unless it was the only one */
        uint64_t end = extent_list_end(&list), unit = disk->image->allocation_unit;
        reclaim->step_end = max_u64(min_u64(align_down(end, unit), end), offset + unit);
        reclaim->step_end = end == offset + length ? end : reclaim->step_end;
    }
    extent_list_clear(&list);
    return r;
}

static void look_job(PoolJob *job)
{
    Request *request = (Request *)((char *)job - offsetof(Request, job.job));
    Disk *disk = request_disk(request);
    request->result = look(disk, request);
    gate_leave(&disk->gate, GATE_SHARED);
    request_resume(request, looked);
}

static void step_granted(Request *request)
{
    request->job.job.run = look_job;
    gate_enter(&request_disk(request)->gate, &request->job, GATE_SHARED);
}

static void reclaim_step(Request *request)
{
    Reclaim *reclaim = request->work;
    uint64_t step = request_disk(request)->image->allocation_unit * STEP_UNITS;
    change_acquire(request, reclaim->at, min_u64(reclaim->end - reclaim->at, step), step_granted);
}

void reclaim_start(Request *request)
{
    Disk *disk = request_disk(request);
    uint64_t unit = disk->image->allocation_unit, size = disk->node.size;
    int refusal = disk_write_refusal(disk);
    uint64_t end = request->offset + request->length;
    uint64_t from =
        request->offset > size - (size & (unit - 1)) ? size : align_up(request->offset, unit);
    uint64_t to = end == size ? end : align_down(end, unit);
    if (refusal < 0 || unit == 1 || from >= to) { /* raw: the holes are the record */
        request_complete(request, refusal);
        return;
    }
    Reclaim *reclaim = g_new0(Reclaim, 1);
    reclaim->at = from;
    reclaim->end = to;
    request->work = reclaim;
    reclaim_step(request);
}
