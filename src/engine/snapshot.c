/*
 * SNAPSHOT: an internal snapshot is made or deleted while the disk is in use.
 *
 *      CHANGE on the whole disk ──> job behind the exclusive gate: flush, the format's change
 *                               ──> release, complete
 *
 * CHANGE waits for all requests under way, and the kernel gives back all that it holds: a write that was
 * answered before is in the snapshot, and none that comes later is. Requests that come meanwhile wait.
 *
 * What must stay true: nothing that was known of the map is known afterwards, for what was writable in
 * place is shared with the snapshot now.
 */
#include <errno.h>

#include "base/errors.h"
#include "engine/change.h"
#include "engine/request-call.h"

typedef struct Snapshot {
    DiskSnapshotChange change;
    const char *name;
    bool has_grown; /* before it was our turn: not all of the disk is held */
} Snapshot;

static void snapshot_try(Request *request);

static void snapshot_done(Request *request)
{
    const Snapshot *snapshot = request->work;
    if (request->length > 0) {
        disk_release(request_disk(request), request);
    }
    if (snapshot->has_grown) {
        snapshot_try(request);
    } else {
        request_complete(request, request->result);
    }
}

static int change_image(Disk *disk, const Request *request)
{
    const Snapshot *snapshot = request->work;
    g_autoptr(GError) error = NULL;
    int r = disk_write_refusal(disk);
    r = r < 0 ? r : flush_metadata(disk);
    if (r < 0) {
        error_set_errno(&error, -r, "%s: cannot be flushed", disk->image->path);
    } else if (!snapshot->change(disk->image, snapshot->name, &error)) {
        r = -error->code;
    }
    pthread_mutex_lock(&disk->map_lock);
    mapcache_erase(disk->mapcache, 0, UINT64_MAX);
    pthread_mutex_unlock(&disk->map_lock);
    unitcache_clear(disk->units);
    if (error != NULL) {
        g_propagate_error(request->why, g_steal_pointer(&error));
    }
    return r;
}

/* [pool] */
static void snapshot_job(PoolJob *job)
{
    Request *request = (Request *)((char *)job - offsetof(Request, job.job));
    Snapshot *snapshot = request->work;
    Disk *disk = request_disk(request);
    snapshot->has_grown = disk->image->size > request->length;
    request->result = snapshot->has_grown ? 0 : change_image(disk, request);
    gate_leave(&disk->gate, GATE_EXCLUSIVE);
    request_resume(request, snapshot_done);
}

static void snapshot_granted(Request *request)
{
    request->job.job.run = snapshot_job;
    gate_enter(&request_disk(request)->gate, &request->job, GATE_EXCLUSIVE);
}

static void snapshot_try(Request *request)
{
    request->length = request_disk(request)->node.size;
    if (request->length > 0) {
        change_acquire(request, 0, request->length, snapshot_granted);
    } else {
        snapshot_granted(request);
    }
}

void snapshot_start(Request *request)
{
    snapshot_try(request);
}

bool disk_snapshot(Disk *disk, Worker *worker, DiskSnapshotChange change, const char *name,
                   GError **error)
{
    Snapshot snapshot = {.change = change, .name = name};
    RequestCall call;
    request_call_init(&call, &disk->node, worker);
    call.request.type = REQUEST_SNAPSHOT;
    call.request.work = &snapshot;
    call.request.why = error;
    int r = request_call(&call);
    request_call_clear(&call);
    return r == 0;
}
