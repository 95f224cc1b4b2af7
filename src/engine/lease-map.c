/*
 * The map and the flush of a disk for the holder of its leases: for a thread that may block and has
 * no worker. Jobs of the pool do the work behind the gate, this thread waits for them one by one.
 *
 * The map is read in pieces of at most PIECE_EXTENTS and PIECE_UNITS, each behind the gate anew, so
 * that a change waits for one piece and not for an image of a million extents. What changes between two pieces is
 * remembered as unfit (lease_begin).
 */
#include <pthread.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "engine/disk-impl.h"
#include "engine/lease.h"

#define PIECE_EXTENTS 4096
#define PIECE_UNITS   65536 /* 512 KiB of tables with entries of 8 bytes */

/* One job that somebody waits for. */
typedef struct Errand {
    GateJob job;
    Disk *disk;
    uint64_t offset; /* mapping: where to begin */
    ExtentList list; /* mapping: the answer */
    int result;
    pthread_mutex_t lock;
    pthread_cond_t done_condition;
    bool done; /* lock */
} Errand;

static Errand *errand_of(PoolJob *job)
{
    return (Errand *)((char *)job - offsetof(Errand, job.job));
}

/* [pool] The last use of the errand. */
static void errand_end(Errand *errand, int result)
{
    with_mutex(&errand->lock);
    errand->result = result;
    errand->done = true;
    pthread_cond_signal(&errand->done_condition);
}

static int errand_wait(Errand *errand)
{
    with_mutex(&errand->lock);
    while (!errand->done) {
        pthread_cond_wait(&errand->done_condition, &errand->lock);
    }
    return errand->result;
}

static int errand_run(Errand *errand, GateMode mode, void (*run)(PoolJob *job))
{
    errand->done = false;
    errand->job.job.run = run;
    gate_enter(&errand->disk->gate, &errand->job, mode);
    return errand_wait(errand);
}

static void errand_init(Errand *errand, Disk *disk)
{
    *errand = (Errand){.disk = disk};
    extent_list_init(&errand->list);
    pthread_mutex_init(&errand->lock, NULL);
    pthread_cond_init(&errand->done_condition, NULL);
}

static void errand_clear(Errand *errand)
{
    extent_list_clear(&errand->list);
    pthread_cond_destroy(&errand->done_condition);
    pthread_mutex_destroy(&errand->lock);
}

static void map_piece(PoolJob *job)
{
    Errand *errand = errand_of(job);
    Disk *disk = errand->disk;
    uint64_t unit = disk->image->allocation_unit, size = disk->image->size;
    uint64_t rest = size > errand->offset ? size - errand->offset : 0;
    uint64_t length = unit == 1 ? rest : min_u64(rest, unit * PIECE_UNITS);
    int r = length == 0
                ? 0 /* the disk is shorter than it was */
                : chain_map(disk->image, errand->offset, length, PIECE_EXTENTS, &errand->list);
    gate_leave(&disk->gate, GATE_SHARED);
    errand_end(errand, r);
}

/* The bytes in which a write is looked at before it is done are written by nobody but us. */
static void tell(const Disk *disk, const Extent *extent, LeaseEach *each, void *argument)
{
    if (!disk->guard_probe || extent->offset >= IMAGE_PROBE_SIZE) {
        each(argument, extent);
        return;
    }
    Extent guarded = *extent, rest = *extent;
    extent_clip(&guarded, 0, IMAGE_PROBE_SIZE);
    guarded.flags &= ~EXTENT_WRITABLE;
    each(argument, &guarded);
    if (extent_clip(&rest, IMAGE_PROBE_SIZE, UINT64_MAX - IMAGE_PROBE_SIZE)) {
        each(argument, &rest);
    }
}

int lease_map(Disk *disk, LeaseEach *each, void *argument)
{
    Errand errand;
    errand_init(&errand, disk);
    int r = 0;
    for (bool more = true; r == 0 && more && errand.offset < disk->node.size;) {
        extent_list_reset(&errand.list);
        r = errand_run(&errand, GATE_SHARED, map_piece);
        more = errand.list.count > 0;
        for (unsigned i = 0; r == 0 && i < errand.list.count; i++) {
            tell(disk, &errand.list.items[i], each, argument);
            errand.offset = extent_end(&errand.list.items[i]);
        }
    }
    errand_clear(&errand);
    return r;
}

static void flush_errand(PoolJob *job)
{
    Errand *errand = errand_of(job);
    int r = flush_metadata(errand->disk);
    gate_leave(&errand->disk->gate, GATE_WRITEBACK);
    errand_end(errand, r);
}

int lease_flush(Disk *disk)
{
    if (!disk->image->write) {
        return 0;
    }
    Errand errand;
    errand_init(&errand, disk);
    int r = errand_run(&errand, GATE_WRITEBACK, flush_errand);
    errand_clear(&errand);
    return r;
}

static void sync_errand(PoolJob *job)
{
    Errand *errand = errand_of(job);
    errand_end(errand, image_sync(errand->disk->image));
}

int lease_sync(Disk *disk)
{
    Errand errand;
    errand_init(&errand, disk);
    errand.job.job.run = sync_errand;
    pool_submit(disk->pool, &errand.job.job);
    int r = errand_wait(&errand);
    errand_clear(&errand);
    return r;
}
