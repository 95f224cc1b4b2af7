/*
 * A disk: where requests come in, and what all kinds of requests share.
 *
 * What must stay true: a request that holds a range gives it up (disk_release) exactly once before
 * it completes; done is called exactly once, on the worker that submitted.
 */
#include "engine/disk.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "engine/change.h"
#include "engine/disk-impl.h"
#include "engine/journal-impl.h"

/* 64k extents of 64 bytes in leaves that may be half full: 8 MiB a disk at most, taken as they come. */
#define MAPCACHE_LIMIT (64 * 1024)
#define UNITCACHE_SIZE (8u << 20)

static void submit(Node *node, Request *request);

static const NodeOps disk_node_ops = {.submit = submit};

Disk *disk_new(Image *image, Pool *pool, bool guard_probe)
{
    Disk *disk = g_new0(Disk, 1);
    disk->image = image_ref(image);
    disk->pool = pool;
    disk->guard_probe = guard_probe && image->write;
    disk->node = (Node){
        .ops = &disk_node_ops,
        .size = image->size,
        .read_only = !image->write,
        .block_minimum = 1,
        .block_preferred = 4096,
        .block_maximum = 64 << 20,
    };
    pthread_mutex_init(&disk->map_lock, NULL);
    disk->mapcache = mapcache_new(MAPCACHE_LIMIT);
    disk->units = unitcache_new(UNITCACHE_SIZE);
    gate_init(&disk->gate, pool);
    change_init(disk);
    flush_init(disk);
    return disk;
}

Node *disk_node(Disk *disk)
{
    return &disk->node;
}

Image *disk_image(const Disk *disk)
{
    return disk->image;
}

DiskMode disk_mode(const Disk *disk)
{
    return disk->mode;
}

void disk_get_counts(const Disk *disk, DiskCounts *counts)
{
    *counts = (DiskCounts){.map_hits = disk->map_hits,
                           .map_misses = disk->map_misses,
                           .allocated = disk->new_bytes,
                           .flushes = disk->flushes,
                           .flush_microseconds = disk->flush_microseconds};
}

int disk_close(Disk *disk)
{
    int r = 0;
    if (disk->image->write) { /* of a degraded disk, answered writes may be missing */
        r = disk_mode(disk) == DISK_NORMAL ? image_finish(disk->image) : -EIO;
    }
    journal_end(disk, r == 0);
    gate_destroy(&disk->gate);
    unitcache_free(disk->units);
    mapcache_free(disk->mapcache);
    pthread_mutex_destroy(&disk->map_lock);
    pthread_mutex_destroy(&disk->change_lock);
    pthread_mutex_destroy(&disk->flush_lock);
    image_unref(disk->image);
    g_free(disk);
    return r;
}

void disk_degrade(Disk *disk, DiskMode mode, const char *why, int error)
{
    int now = disk->mode;
    while (now < (int)mode) {
        if (atomic_compare_exchange_strong(&disk->mode, &now, (int)mode)) {
            log_error("%s: %s: %s: the disk is %s until it is opened again", disk->image->path, why,
                      g_strerror(-error), mode == DISK_READ_ONLY ? "read-only" : "not used");
            return;
        }
    }
}

int disk_write_refusal(const Disk *disk)
{
    if (disk->node.read_only) {
        return -EPERM;
    }
    return disk_mode(disk) == DISK_NORMAL ? 0 : -EIO;
}

static void resume_message(WorkerMessage *message)
{
    Request *request = (Request *)((char *)message - offsetof(Request, message));
    request->resume(request);
}

void request_resume(Request *request, void (*resume)(Request *request))
{
    request->resume = resume;
    request->message.run = resume_message;
    worker_post(request->worker, &request->message);
}

void request_complete(Request *request, int result)
{
    request->result = result;
    request->done(request);
}

int request_past_the_end(const Request *request)
{
    switch (request->type) {
    case REQUEST_READ:
    case REQUEST_CACHE:
    case REQUEST_STATUS:
        return -EINVAL;
    default:
        return -ENOSPC;
    }
}

void disk_release(Disk *disk, Request *request)
{
    pthread_mutex_lock(&disk->map_lock);
    RangeHold *granted = rangelock_release(&disk->ranges, &request->hold);
    pthread_mutex_unlock(&disk->map_lock);
    while (granted != NULL) {
        Request *waiter = (Request *)((char *)granted - offsetof(Request, hold));
        granted = granted->granted_next;
        request_resume(waiter, waiter->resume);
    }
}

static void submit(Node *node, Request *request)
{
    static void (*const starts[])(Request *) = {
        [REQUEST_READ] = read_start,     [REQUEST_WRITE] = write_start,
        [REQUEST_FLUSH] = flush_start,   [REQUEST_TRIM] = discard_start,
        [REQUEST_ZERO] = discard_start,  [REQUEST_CACHE] = cache_start,
        [REQUEST_STATUS] = status_start, [REQUEST_RECLAIM] = reclaim_start,
        [REQUEST_RESIZE] = resize_start, [REQUEST_SNAPSHOT] = snapshot_start,
    };
    Disk *disk = (Disk *)((char *)node - offsetof(Disk, node));
    request->node = disk;
    request->progress = 0;
    extent_list_reset(&request->extents);
    if (disk_mode(disk) == DISK_FAILED) {
        request_complete(request, -EIO);
    } else if (request->length == 0 && request->type != REQUEST_FLUSH &&
               request->type != REQUEST_RESIZE && request->type != REQUEST_SNAPSHOT) {
        request_complete(request, 0);
    } else {
        starts[request->type](request);
    }
}
