/*
 * The inside of a disk, for the files of the engine.
 *
 * How a request goes through them:
 *
 *     disk.c     submit ─┬─> read.c     map, move, complete
 *                        ├─> write.c    map; in place: move, complete
 *                        │              otherwise ──> change.c allocate, move, commit, complete
 *                        ├─> discard.c  ──> change.c unmap, complete
 *                        ├─> status.c   map, complete
 *                        ├─> resize.c   format->resize, complete
 *                        ├─> reclaim.c  look for holes ──> change.c unmap, complete
 *                        └─> flush.c    one flush for all who wait
 *     map.c      STABLE lock and map of a range: from the cache, or by a job in the pool
 *     transfer.c the bytes of extents, to and from stores
 *
 * Lock order: map_lock, change_lock and flush_lock are never held together, nor while calling a
 * format or a store.
 */
#ifndef ENGINE_DISK_IMPL_H
#define ENGINE_DISK_IMPL_H

#include <pthread.h>

#include "engine/disk.h"
#include "engine/gate.h"
#include "engine/rangelock.h"
#include "engine/request.h"
#include "engine/unitcache.h"
#include "formats/format.h"
#include "map/mapcache.h"

typedef struct Change Change;
typedef struct Journal Journal;
typedef struct Lease Lease;

struct Disk {
    Node node;
    Image *image;
    Pool *pool;
    bool guard_probe;
    _Atomic int mode; /* DiskMode */

    pthread_mutex_t map_lock;
    RangeLock ranges;   /* map_lock */
    MapCache *mapcache; /* map_lock */
    Lease *lease;       /* map_lock; NULL: the kernel holds nothing and nobody wants it to */

    Gate gate;
    UnitCache *units;
    _Atomic(Journal *) journal; /* NULL: none is kept */

    pthread_mutex_t change_lock;
    Change *changes, **changes_end; /* change_lock; wait for the change job */
    bool change_running;            /* change_lock; the job below is in use */
    GateJob change_job;
    _Atomic uint64_t new_bytes; /* that became writable in place since the disk was opened */

    _Atomic uint64_t map_hits, map_misses;        /* map_lock for writing */
    _Atomic uint64_t flushes, flush_microseconds; /* flush_lock for writing */

    _Atomic bool has_unsynced;  /* something was written that no flush has begun to cover */
    _Atomic bool write_through; /* every change is flushed before it is answered */
    pthread_mutex_t flush_lock;
    Request *flush_waiting; /* flush_lock; for the next flush */
    Request *flush_running; /* the flush job's; answered when it ends */
    bool flush_active;      /* flush_lock; the job below is in use */
    int64_t flush_begun;    /* flush_lock; when the job below was begun, in microseconds */
    GateJob flush_job;
};

/* disk.c */
static inline Disk *request_disk(const Request *request)
{
    return request->node;
}
void request_resume(Request *request,
                    void (*resume)(Request *request)); /* posts it to its worker [any] */
void request_complete(Request *request, int result);   /* [worker] */
/* What a request is answered that lies beyond the end of the disk: because that has moved. [any] */
int request_past_the_end(const Request *request);
void disk_degrade(Disk *disk, DiskMode mode, const char *why, int error); /* [any] */
int disk_write_refusal(
    const Disk *disk); /* 0, or the -errno for changes of a disk in its present mode [any] */

/* Gives up the request's range; requests that waited for it go on. [any] */
void disk_release(Disk *disk, Request *request);

/* map.c: takes STABLE on the range and appends its map to request->extents (at least the beginning
 * of the range), then mapped(request) on the worker, with request->result 0 or -errno; perhaps
 * inside the call. [worker] */
void map_start(Request *request, uint64_t offset, uint64_t length,
               void (*mapped)(Request *request));
/* The largest number of extents that one part of a request is made of. */
#define MAP_PART_MAX 512

/* flush.c: what a flush does. In a job that the gate has admitted as WRITEBACK. [pool] */
int flush_metadata(Disk *disk);

/* lease.c: true when the change may enter the range lock now; false when it was parked until the
 * kernel has given the range back. Holding map_lock; there is a lease. [any] */
bool lease_admit(Disk *disk, Request *request, uint64_t offset, uint64_t length);
bool disk_is_leased(Disk *disk); /* lease.c: there is a lease, whatever it holds [any] */

/* read.c write.c discard.c status.c reclaim.c flush.c [worker] */
void read_start(Request *request);
void write_start(Request *request);
void discard_start(Request *request);
void cache_start(Request *request);
void status_start(Request *request);
void reclaim_start(Request *request);
void resize_start(Request *request);
void snapshot_start(Request *request);
void flush_start(Request *request);
void flush_init(Disk *disk);

/* Completes the request, after a flush if it went well and it (FUA) or the disk (write_through)
 * wants one. [worker] */
void request_complete_changed(Request *request, int result);

#endif
