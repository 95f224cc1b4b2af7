/*
 * FLUSH, and FUA as a FLUSH behind a write.
 *
 * A flush covers every write that was answered before it came. While one runs, those that come wait
 * and then share the next one:
 *
 *      idle --request--> running --ends, nobody waits--> idle
 *                           |  ^
 *                           +--+ ends, some wait: they all share the next
 *
 * Where nothing was answered since the last one, a flush is answered at once.
 *
 * With metadata to write the job goes through the write-back gate; otherwise it only syncs the
 * data.
 */
#include "base/cleanup.h"
#include "engine/disk-impl.h"
#include "engine/journal-impl.h"

static void flush_job_run(PoolJob *job);
static void sync_job_run(PoolJob *job);

void flush_init(Disk *disk)
{
    disk->has_unsynced = true; /* of whoever had the image before */
    pthread_mutex_init(&disk->flush_lock, NULL);
}

static bool has_metadata(const Disk *disk)
{
    const Image *image = disk->image;
    return (image->format->is_dirty != NULL && image->format->is_dirty(image)) ||
           journal_has_records(disk);
}

/* flush_lock is held, no flush is active, somebody waits. [any] */
static void flush_begin(Disk *disk)
{
    disk->flush_active = true;
    disk->flush_begun = g_get_monotonic_time();
    disk->flush_running = disk->flush_waiting;
    disk->flush_waiting = NULL;
    disk->has_unsynced = false; /* what is answered from now on is the next one's */
    if (has_metadata(disk)) {
        disk->flush_job.job.run = flush_job_run;
        gate_enter(&disk->gate, &disk->flush_job, GATE_WRITEBACK);
    } else {
        disk->flush_job.job.run = sync_job_run;
        pool_submit(disk->pool, &disk->flush_job.job);
    }
}

static void flush_answer(Request *request)
{
    request_complete(request, request->result);
}

/* [pool] */
static void flush_end(Disk *disk, int result)
{
    Request *done = disk->flush_running;
    pthread_mutex_lock(&disk->flush_lock);
    if (result < 0) {
        disk->has_unsynced = true;
    }
    disk->flush_running = NULL;
    disk->flush_active = false;
    disk->flushes++;
    disk->flush_microseconds += g_get_monotonic_time() - disk->flush_begun;
    if (disk->flush_waiting != NULL) {
        flush_begin(disk);
    }
    pthread_mutex_unlock(&disk->flush_lock);
    while (done != NULL) { /* the last use of disk: who is answered may close it */
        Request *request = done;
        done = request->next;
        request->result = result;
        request_resume(request, flush_answer);
    }
}

static Disk *job_disk(PoolJob *job)
{
    return (Disk *)((char *)job - offsetof(Disk, flush_job.job));
}

int flush_metadata(Disk *disk)
{
    int r = disk_mode(disk) == DISK_NORMAL ? disk->image->format->flush(disk->image) : -EIO;
    /* Without space nothing is broken: what could not be written is still in memory, and may be
     * tried again. */
    if (r < 0 && r != -ENOSPC && r != -EDQUOT) {
        disk_degrade(disk, DISK_READ_ONLY, "flush", r);
    }
    if (r == 0) {
        journal_empty(disk);
    }
    return r;
}

static void flush_job_run(PoolJob *job)
{
    Disk *disk = job_disk(job);
    int r = flush_metadata(disk);
    gate_leave(&disk->gate, GATE_WRITEBACK);
    flush_end(disk, r);
}

static void sync_job_run(PoolJob *job)
{
    Disk *disk = job_disk(job);
    flush_end(disk, image_sync(disk->image));
}

/* False: there is nothing to flush. A device of which the kernel moves the data flushes the server
 * with everything else, most often for nothing. */
static bool flush_enter(Disk *disk, Request *request)
{
    with_mutex(&disk->flush_lock);
    if (!disk->flush_active && !disk->has_unsynced && !has_metadata(disk)) {
        return false;
    }
    request->next = disk->flush_waiting;
    disk->flush_waiting = request;
    if (!disk->flush_active) {
        flush_begin(disk);
    }
    return true;
}

void flush_start(Request *request)
{
    Disk *disk = request_disk(request);
    if (!disk->image->write) {
        request_complete(request, 0);
        return;
    }
    if (!flush_enter(disk, request)) {
        request_complete(request, 0);
    }
}

void request_complete_changed(Request *request, int result)
{
    Disk *disk = request_disk(request);
    disk->has_unsynced = true; /* before anybody is told */
    if (disk->image->marks && request->type != REQUEST_RECLAIM) {
        /* Also what failed: it may have been written in part. */
        disk->image->format->mark(disk->image, request->offset, request->length);
    }
    if (result == 0 && ((request->flags & REQUEST_FUA) || disk->write_through)) {
        flush_start(request);
    } else {
        request_complete(request, result);
    }
}
