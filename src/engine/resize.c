/*
 * RESIZE: the disk gets another end.
 *
 *      CHANGE on what goes, and on the unit that the old end cuts ──> job behind the exclusive gate:
 *      flush, format->resize, new size of the node ──> release, complete
 *      (on all of the disk, where the format may move what stays)
 *
 * What is not in the CHANGE goes on meanwhile. Requests that were checked against the old size may be
 * anywhere: who waits for the range looks at the size again once it has it (map.c, change.c), so
 * nothing is read or written beyond a new end. The kernel gives back what it holds there like for any
 * other change (lease.h).
 *
 * What must stay true: image->size and the node's change inside the gate, with the range held, and the
 * map cache knows nothing of the range afterwards.
 */
#include <errno.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "engine/change.h"
#include "engine/journal-impl.h"
#include "engine/request-call.h"

typedef struct Resize {
    uint64_t old_size;
    uint64_t start, end; /* the range that is held; empty: nothing is */
    bool has_changed;    /* the disk got another size before it was our turn */
} Resize;

static void resize_try(Request *request);

static void resized(Request *request)
{
    Resize *resize = request->work;
    if (resize->start < resize->end) {
        disk_release(request_disk(request), request);
    }
    if (resize->has_changed) {
        resize_try(request);
        return;
    }
    request->work = NULL;
    g_free(resize);
    request_complete(request, request->result);
}

/* So the journal is empty: what it says is of a disk of the old size. */
static int flush_before(Disk *disk, GError **error)
{
    int r = disk_write_refusal(disk);
    r = r < 0 ? r : flush_metadata(disk);
    if (r < 0) {
        error_set_errno(error, -r, "%s: cannot be flushed", disk->image->path);
    }
    return r;
}

static int resize_image(Disk *disk, const Request *request)
{
    const Resize *resize = request->work;
    g_autoptr(GError) error = NULL;
    int r = flush_before(disk, &error);
    if (r == 0 && !image_resize(disk->image, request->length, &error)) {
        r = -error->code;
    }
    pthread_mutex_lock(&disk->map_lock);
    disk->node.size = disk->image->size;
    mapcache_erase(disk->mapcache, resize->start, UINT64_MAX - resize->start);
    pthread_mutex_unlock(&disk->map_lock);
    unitcache_clear(disk->units);
    journal_resized(disk);
    if (error != NULL) {
        g_propagate_error(request->why, g_steal_pointer(&error));
    }
    return r;
}

/* [pool] */
static void resize_job(PoolJob *job)
{
    Request *request = (Request *)((char *)job - offsetof(Request, job.job));
    Resize *resize = request->work;
    Disk *disk = request_disk(request);
    resize->has_changed = disk->image->size != resize->old_size;
    request->result = resize->has_changed ? 0 : resize_image(disk, request);
    gate_leave(&disk->gate, GATE_EXCLUSIVE);
    request_resume(request, resized);
}

static void resize_granted(Request *request)
{
    request->job.job.run = resize_job;
    gate_enter(&request_disk(request)->gate, &request->job, GATE_EXCLUSIVE);
}

static int refuse_loss(const Disk *disk, const Request *request, uint64_t size)
{
    error_set(request->why, EPERM,
              "%s: has %" G_GUINT64_FORMAT " bytes: making it %" G_GUINT64_FORMAT
              " loses what lies behind: say --shrink to allow it",
              disk->image->path, size, request->length);
    return -EPERM;
}

static void resize_end(Request *request, int result)
{
    g_clear_pointer(&request->work, g_free);
    request_complete(request, result);
}

static void resize_try(Request *request)
{
    Disk *disk = request_disk(request);
    Resize *resize = request->work;
    uint64_t size = disk->node.size;
    if (request->length < size && !(request->flags & REQUEST_MAY_SHRINK)) {
        resize_end(request, refuse_loss(disk, request, size));
        return;
    }
    resize->old_size = size;
    resize->start = align_down(min_u64(size, request->length), disk->image->largest_unit);
    resize->start = disk->image->format->resize_moves ? 0 : resize->start;
    resize->end = size;
    if (resize->start < resize->end) {
        change_acquire(request, resize->start, resize->end - resize->start, resize_granted);
    } else {
        resize_granted(request);
    }
}

void resize_start(Request *request)
{
    Disk *disk = request_disk(request);
    int refusal = disk_write_refusal(disk);
    if (refusal < 0) {
        error_set(request->why, -refusal, "%s: %s", disk->image->path,
                  refusal == -EPERM
                      ? "is read-only: its size cannot change"
                      : "is not written any more, because a write of its tables failed");
        request_complete(request, refusal);
        return;
    }
    request->work = g_new0(Resize, 1);
    resize_try(request);
}

bool disk_resize(Disk *disk, Worker *worker, uint64_t size, bool shrink, GError **error)
{
    RequestCall call;
    request_call_init(&call, &disk->node, worker);
    call.request.type = REQUEST_RESIZE;
    call.request.flags = shrink ? REQUEST_MAY_SHRINK : 0;
    call.request.length = size;
    call.request.why = error;
    int r = request_call(&call);
    request_call_clear(&call);
    return r == 0;
}
