/*
 * The linear fast path: its device, and the thread that follows the image.
 *
 *      wait ──recall──> give back, at once: a change waits
 *        │ ──new bytes, and it pays──> refresh: map, flush, load, suspend, resume
 *        │ ──the kernel has discarded──> reclaim
 *        └─<───────────────────────────────┘
 *
 * When does a refresh pay? It may take REFRESH_SHARE of the time at most, measured by what the last
 * one took; and it is worth it when enough was allocated, or when a little was and some time has
 * gone by. So a disk that is being filled is looked at seldom, and one that has come to rest soon
 * has all of its data in lines.
 *
 * Lines may make flushes dearer: linear-bound.c and linear-flush.c look after that.
 *
 * What must stay true: the workers never wait for this thread, because a suspend waits for the
 * device's own requests, which they serve. A change that waits for it is parked (engine/lease.h).
 * So losing lines, or this thread's failures, cost speed only; except that a parked change waits
 * until lines can be taken out, which is tried again until it works.
 */
#include "fastpath/linear-impl.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "base/thread.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

#define MS             1000u /* in microseconds, as all times here */
#define TICK_US        (200 * MS)
#define REFRESH_SHARE  50          /* a refresh takes at most 1/50 of the time */
#define WORTH_BYTES    (64u << 20) /* newly allocated: refresh as soon as its cost allows */
#define WORTH_FRACTION 8           /* or this part of what is mapped already */
#define SETTLED_US     (1000 * MS) /* after this time: any new byte is reason enough */
#define RETRY_US       (100 * MS)  /* after a failure */
#define RETRY_MAX_US   (2000 * MS)
#define RECLAIM_US     (10000 * MS) /* between two looks for discards */
#define REPAIR_WAIT_US (1000 * MS)

/* What the thread remembers from round to round. */
typedef struct Follow {
    uint64_t seen_bytes;   /* lease_new_bytes when the map was last read */
    uint64_t refreshed_at; /* end of the last refresh */
    uint64_t cost_us;      /* of the last refresh */
    uint64_t retry_us;     /* pause after failures; 0: the last round went well */
    uint64_t not_before;   /* because of a failure */
    uint64_t reclaimed_at;
    LinearBound bound;
    LinearFlush flush;
    bool has_risen; /* the bound, since the last refresh */
} Follow;

static void recall(LeaseHolder *holder)
{
    Linear *linear = (Linear *)((char *)holder - offsetof(Linear, holder));
    with_mutex(&linear->lock);
    linear->recalled = true;
    pthread_cond_signal(&linear->wake);
}

static struct timespec timespec_of(uint64_t us)
{
    return (struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
}

/* Waits for a recall, a tick at most; after a failure, for as long as the pause lasts. False: the
 * end. */
static bool wait_for_work(Linear *linear, const Follow *follow)
{
    uint64_t now = linear_now_us();
    bool is_pause = follow->not_before > now;
    struct timespec until = timespec_of(is_pause ? follow->not_before : now + TICK_US);
    with_mutex(&linear->lock);
    int r = 0;
    while (!linear->stopping && (is_pause || !linear->recalled) && r != ETIMEDOUT) {
        r = pthread_cond_timedwait(&linear->wake, &linear->lock, &until);
    }
    return !linear->stopping;
}

static bool take_recall(Linear *linear)
{
    with_mutex(&linear->lock);
    bool recalled = linear->recalled;
    linear->recalled = false;
    return recalled;
}

/* After each round: when it failed the next one has to wait, longer each time. */
static void note_outcome(Follow *follow, bool done, const GError *error)
{
    if (done || error->code == ECANCELED) { /* given up because the disk had changed: no failure */
        follow->retry_us = 0;
        return;
    }
    log_limited(LOG_LEVEL_ERROR, "%s: the device goes on with its old table", error->message);
    follow->retry_us = min_u64(max_u64(follow->retry_us * 2, RETRY_US), RETRY_MAX_US);
    follow->not_before = linear_now_us() + follow->retry_us;
}

/* When that has failed before, all lines go: there is no smaller table than one line. */
static void give_back(Linear *linear, Follow *follow)
{
    g_autoptr(GError) error = NULL;
    RangeSet all = {0};
    if (follow->retry_us > 0) {
        rangeset_add(&all, 0, linear->size);
    }
    bool done = linear_give_back(linear, &all, &error);
    rangeset_clear(&all);
    note_outcome(follow, done, error);
    with_mutex(&linear->lock);
    linear->stats.recalls++;
    linear->recalled = linear->recalled || !done; /* the changes wait still */
}

static void keep_bound(Linear *linear, Follow *follow)
{
    g_autoptr(GError) error = NULL;
    bool done = linear_give_back(linear, NULL, &error);
    note_outcome(follow, done, error);
}

static bool is_due(const Linear *linear, const Follow *follow)
{
    uint64_t fresh = lease_new_bytes(linear->disk) - follow->seen_bytes;
    uint64_t passed = linear_now_us() - follow->refreshed_at;
    bool worth = fresh >= WORTH_BYTES || fresh >= linear->table.mapped_bytes / WORTH_FRACTION ||
                 passed >= SETTLED_US;
    bool wanted = (fresh > 0 && worth) || follow->has_risen;
    return wanted && passed >= follow->cost_us * REFRESH_SHARE;
}

static void refresh(Linear *linear, Follow *follow)
{
    g_autoptr(GError) error = NULL;
    LinearCost cost = {0};
    uint64_t bytes = lease_new_bytes(linear->disk);
    bool done = linear_refresh(linear, &cost, &error);
    note_outcome(follow, done, error);
    follow->cost_us = cost.plan_us + cost.swap_us;
    follow->refreshed_at = linear_now_us();
    follow->has_risen = follow->has_risen && !done;
    if (done) {
        follow->seen_bytes = bytes - cost.is_partial; /* then there is more to come */
    }
}

static void repair(Linear *linear, Follow *follow)
{
    g_autoptr(GError) error = NULL;
    bool done = linear_repair(linear, &error);
    note_outcome(follow, done, error);
    with_mutex(&linear->lock);
    linear->is_repaired = done; /* written by this thread alone */
    pthread_cond_broadcast(&linear->wake);
}

static void adapt_to_flushes(Linear *linear, Follow *follow)
{
    g_autoptr(GError) error = NULL;
    bool done = linear_flush_look(linear, &follow->flush, &error);
    note_outcome(follow, done, error);
}

static void look_for_discards(Linear *linear, Follow *follow)
{
    follow->reclaimed_at = linear_now_us();
    if (linear_saw_discards(linear)) {
        linear_reclaim(linear, &linear->table);
    }
}

/* One thing at a time, the most urgent first. */
static void act(Linear *linear, Follow *follow)
{
    with_mutex(&linear->round_lock);
    if (linear->is_removed) {
        return;
    }
    LinearBoundChange change = linear_bound_look(linear, &follow->bound);
    follow->has_risen = follow->has_risen || change == LINEAR_BOUND_ROSE;
    if (!linear->is_repaired) {
        repair(linear, follow);
    } else if (take_recall(linear)) {
        give_back(linear, follow);
    } else if (change == LINEAR_BOUND_FELL) {
        keep_bound(linear, follow);
    } else if (is_due(linear, follow)) {
        refresh(linear, follow);
    } else if (linear_now_us() - follow->reclaimed_at >= RECLAIM_US) {
        look_for_discards(linear, follow);
    } else {
        adapt_to_flushes(linear, follow);
    }
}

static void *follow_image(void *argument)
{
    Linear *linear = argument;
    uint64_t now = linear_now_us();
    Follow follow = {.refreshed_at = now, .reclaimed_at = now, .bound = linear_bound_new(linear)};
    follow.flush = linear_flush_new(linear);
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0); /* where it is allowed: see docs/fastpath.md */
    do {
        act(linear, &follow);
    } while (wait_for_work(linear, &follow));
    return NULL;
}

static Linear *linear_alloc(Disk *disk, const LinearOptions *options)
{
    Linear *linear = g_new0(Linear, 1);
    pthread_condattr_t monotonic;
    linear->disk = disk;
    linear->name = g_strdup(options->name);
    linear->uuid = g_strdup(options->uuid);
    linear->device = g_strdup_printf("/dev/mapper/%s", options->name);
    linear->lines_max = options->lines_max != 0 ? options->lines_max : LINEAR_LINES_DEFAULT;
    linear->lines_max = MIN(linear->lines_max, DM_LINES_MAX);
    linear->lines_bound = linear->lines_max;
    linear->fixed = lease_is_fixed(disk);
    linear->read_only = options->read_only || linear->fixed;
    linear->holder.recall = recall;
    linear->files = g_ptr_array_new();
    linear->is_repaired = true;
    pthread_mutex_init(&linear->round_lock, NULL);
    pthread_mutex_init(&linear->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&linear->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return linear;
}

/* The thread has ended, or never began. */
static void linear_free(Linear *linear)
{
    if (linear->has_leases) {
        lease_detach(linear->disk);
    }
    if (linear->worker != NULL) {
        worker_free(linear->worker);
    }
    linear_files_free(linear);
    dmtable_clear(&linear->table);
    pthread_cond_destroy(&linear->wake);
    pthread_mutex_destroy(&linear->lock);
    pthread_mutex_destroy(&linear->round_lock);
    g_free(linear->name);
    g_free(linear->uuid);
    g_free(linear->device);
    g_free(linear);
}

static void end_thread(Linear *linear)
{
    pthread_mutex_lock(&linear->lock);
    linear->stopping = true;
    pthread_cond_broadcast(&linear->wake);
    pthread_mutex_unlock(&linear->lock);
    pthread_join(linear->thread, NULL);
}

static bool find_nbd(Linear *linear, const char *path, GError **error)
{
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISBLK(st.st_mode)) {
        return error_set(error, ENODEV, "%s: is no block device: give one that is connected", path);
    }
    linear->nbd = st.st_rdev;
    return true;
}

/* Takes over the device when there is one. */
static bool adopt(Linear *linear, bool *found, GError **error)
{
    DmInfo info;
    unsigned wrong;
    *found = false;
    if (!dm_find(linear->uuid, &info, error)) {
        return false;
    }
    if (!info.exists) {
        return true;
    }
    *found = true;
    g_free(linear->name);
    g_free(linear->device);
    linear->name = g_strdup(info.name);
    linear->device = g_strdup_printf("/dev/mapper/%s", info.name);
    if ((info.has_inactive && !dm_clear(linear->name, error)) ||
        !linear_adopt(linear, &wrong, error)) {
        return false;
    }
    linear->is_repaired = wrong == 0;
    return !info.suspended || wrong > 0 || dm_resume(linear->name, error);
}

static bool start(Linear *linear, const LinearOptions *options, GError **error)
{
    bool found = false;
    if (!dm_available("linear", error) || (linear->fixed && !dm_available("zero", error)) ||
        !find_nbd(linear, options->nbd_device, error)) {
        return false;
    }
    linear->has_switch = dm_available("switch", NULL);
    if (!linear->fixed) {
        linear->has_leases = lease_attach(linear->disk, &linear->holder);
        if (!linear->has_leases) {
            return error_set(error, EBUSY, "%s: the image has a fast path already", options->name);
        }
    }
    if (options->adopt && !adopt(linear, &found, error)) {
        return false;
    }
    if (!found && (!linear_find_size(linear, error) || !linear_create(linear, error))) {
        return false;
    }
    int r = thread_start(&linear->thread, "linear", follow_image, linear);
    if (r != 0) {
        if (!found) {
            dm_remove(linear->name, NULL);
        }
        return error_set_errno(error, r, "%s: cannot start a thread", linear->name);
    }
    return true;
}

/* Wrong lines: at least the suspend has begun when this returns, and new I/O goes nowhere wrong. */
static void wait_for_repair(Linear *linear)
{
    struct timespec until = timespec_of(linear_now_us() + REPAIR_WAIT_US);
    with_mutex(&linear->lock);
    int r = 0;
    while (!linear->is_repaired && r != ETIMEDOUT) {
        r = pthread_cond_timedwait(&linear->wake, &linear->lock, &until);
    }
}

Linear *linear_new(Disk *disk, const LinearOptions *options, GError **error)
{
    Linear *linear = linear_alloc(disk, options);
    if (!start(linear, options, error)) {
        linear_free(linear);
        return NULL;
    }
    wait_for_repair(linear);
    return linear;
}

const char *linear_device(const Linear *linear)
{
    return linear->device;
}

/* Bytes that a block device has read and written. */
static uint64_t device_bytes(unsigned major_number, unsigned minor_number)
{
    g_autofree char *path =
        g_strdup_printf("/sys/dev/block/%u:%u/stat", major_number, minor_number);
    g_autofree char *text = NULL;
    uint64_t read_sectors, written_sectors;
    if (!g_file_get_contents(path, &text, NULL, NULL) ||
        sscanf(text, "%*s %*s %" G_GUINT64_FORMAT " %*s %*s %*s %" G_GUINT64_FORMAT, &read_sectors,
               &written_sectors) != 2) {
        return 0;
    }
    return (read_sectors + written_sectors) * 512;
}

void linear_get_stats(Linear *linear, LinearStats *stats)
{
    struct stat st;
    pthread_mutex_lock(&linear->lock);
    *stats = linear->stats;
    pthread_mutex_unlock(&linear->lock);
    if (stat(linear->device, &st) == 0) {
        stats->io_bytes = device_bytes(major(st.st_rdev), minor(st.st_rdev));
        stats->io_nbd_bytes = device_bytes(major(linear->nbd), minor(linear->nbd));
    }
}

bool linear_resized(Linear *linear, GError **error)
{
    LinearCost cost;
    with_mutex(&linear->round_lock);
    return linear_refresh(linear, &cost, error);
}

bool linear_stop(Linear *linear, GError **error)
{
    pthread_mutex_lock(&linear->round_lock);
    bool removed = dm_remove(linear->name, error);
    linear->is_removed = removed;
    pthread_mutex_unlock(&linear->round_lock);
    if (!removed) {
        return false;
    }
    end_thread(linear);
    if (linear->has_leases) {
        lease_detach(linear->disk);
        linear->has_leases = false;
    }
    if (linear_saw_discards(linear)) {
        linear_reclaim(linear, &linear->table);
    }
    linear_free(linear);
    return true;
}

void linear_leave(Linear *linear)
{
    end_thread(linear);
    linear_free(linear);
}
