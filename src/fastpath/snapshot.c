/*
 * The live side of snapshot mode: the two device-mapper devices, and a thread that makes the store
 * larger ahead of the writer.
 *
 * The kernel tells nobody that a store fills up (its events come when it is too late), so the
 * thread looks at the status several times a second. It keeps so much space free that the fastest
 * disk cannot use it up between two looks, and more while much is being written. A store as large
 * as the disk cannot overflow; then the thread only watches for failure.
 *
 *      status    "used/size metadata"    sectors; else "Overflow" or "Invalid"
 *
 * What must stay true:
 *  1. The origin exists longer than the snapshot: made before it, removed after it.
 *  2. The thread does nothing to the snapshot's own device but to ask for its status.
 */
#include "fastpath/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "base/thread.h"
#include "fastpath/dm.h"
#include "fastpath/exceptions.h"
#include "fastpath/linear.h"
#include "fastpath/snapshot-store.h"
#include "formats/format.h"

#define LOOK_MS       50 /* between two looks while the store may have to grow */
#define LOOK_IDLE_MS  2000
#define AHEAD_MIN     (128ull << 20) /* bytes kept free: 2.5 GB/s between two looks */
#define AHEAD_MAX     (4ull << 30)
#define AHEAD_FOR     8 /* times what was written between two looks */
#define CHUNK_MIN     4096u
#define CHUNK_MAX     (1u << 20)
#define ORIGIN_SUFFIX "-origin"

struct Snapshot {
    Disk *disk;
    char *path, *nbd_device, *name, *uuid, *origin_name, *origin_uuid, *device;
    Linear *origin;
    bool there;          /* the device NAME is in the kernel */
    SnapshotStore store; /* the thread's while it runs */
    pthread_t thread;
    bool running;

    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;           /* lock */
    SnapshotStats stats; /* lock */
};

/* ---- the thread ---------------------------------------------------------------------------- */

/* Says once what has become worse. */
static void tell_worse(const Snapshot *snapshot, const SnapshotStats *before,
                       const SnapshotStats *now)
{
    const char *path = snapshot->store.path;
    if (now->host_full && !before->host_full) {
        log_warning("%s: the host has no space left for it: writes to %s will fail when %" PRIu64
                    " more bytes are written",
                    path, snapshot->device, now->store_size - now->store_used);
    }
    if (now->overflowed && !before->overflowed) {
        log_error("%s: is used up: writes to %s fail from now on, reads go on; detach it to bring "
                  "what is there into the image",
                  path, snapshot->device);
    }
    if (now->invalid && !before->invalid) {
        log_error("%s: the kernel could not write to it and has given it up: %s fails; what was "
                  "written before is there, detach brings it into the image",
                  path, snapshot->device);
    }
}

static bool read_status(const Snapshot *snapshot, SnapshotStats *stats)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *text = dm_status(snapshot->name, &error);
    uint64_t used, size;
    if (!text) {
        log_limited(LOG_LEVEL_ERROR, "%s", error->message);
        return false;
    }
    if (sscanf(text, "%" SCNu64 "/%" SCNu64, &used, &size) == 2) {
        stats->store_used = used * DM_SECTOR;
    } else {
        stats->overflowed = strcmp(text, "Overflow") == 0;
        stats->invalid = !stats->overflowed;
    }
    return true;
}

/* written: bytes since the last look. */
static void grow_ahead(Snapshot *snapshot, SnapshotStats *stats, uint64_t written)
{
    SnapshotStore *store = &snapshot->store;
    uint64_t ahead = CLAMP(written * AHEAD_FOR, AHEAD_MIN, AHEAD_MAX);
    uint64_t before = store->size;
    if (store->size < store->size_limit && store->size - stats->store_used < ahead) {
        int r = snapshot_store_grow(store, stats->store_used + ahead + ahead / 2);
        if (r < 0 && r != -ENOSPC) {
            log_limited(LOG_LEVEL_ERROR, "%s: cannot be made larger: %s", store->path,
                        g_strerror(-r));
        }
        stats->host_full = r < 0 && store->size - stats->store_used < ahead;
    }
    stats->grown += store->size > before;
    stats->store_size = store->size;
    stats->store_full_size = store->size >= store->size_limit;
}

/* Looks, and does what is to be done. Only the thread, or before it runs. */
static void look(Snapshot *snapshot)
{
    SnapshotStats before, now;
    snapshot_get_stats(snapshot, &before);
    now = before;
    if (!read_status(snapshot, &now)) {
        return;
    }
    if (!now.overflowed && !now.invalid) {
        uint64_t known = snapshot->running ? before.store_used : now.store_used;
        grow_ahead(snapshot, &now, now.store_used - min_u64(known, now.store_used));
    }
    tell_worse(snapshot, &before, &now);
    with_mutex(&snapshot->lock);
    snapshot->stats = now;
}

/* Waits until the next look is due; false: the thread shall end. */
static bool wait_for_look(Snapshot *snapshot)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    with_mutex(&snapshot->lock);
    const SnapshotStats *stats = &snapshot->stats;
    bool idle = stats->store_full_size || stats->overflowed || stats->invalid;
    uint64_t ns = until.tv_nsec + (idle ? LOOK_IDLE_MS : LOOK_MS) * 1000000ull;
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    while (!snapshot->stop &&
           pthread_cond_timedwait(&snapshot->wake, &snapshot->lock, &until) == 0) {
    }
    return !snapshot->stop;
}

static void *run(void *argument)
{
    Snapshot *snapshot = argument;
    while (wait_for_look(snapshot)) {
        look(snapshot);
    }
    return NULL;
}

static bool start_thread(Snapshot *snapshot, GError **error)
{
    look(snapshot);
    int r = thread_start(&snapshot->thread, "snapshot", run, snapshot);
    snapshot->running = r == 0;
    return r == 0 || error_set_errno(error, r, "%s: cannot start a thread", snapshot->path);
}

static void stop_thread(Snapshot *snapshot)
{
    if (!snapshot->running) {
        return;
    }
    {
        with_mutex(&snapshot->lock);
        snapshot->stop = true;
        pthread_cond_signal(&snapshot->wake);
    }
    pthread_join(snapshot->thread, NULL);
    snapshot->running = false;
    snapshot->stop = false;
}

/* ---- the devices --------------------------------------------------------------------------- */

static bool start_origin(Snapshot *snapshot, const SnapshotOptions *options, GError **error)
{
    snapshot->origin = linear_new(snapshot->disk,
                                  &(LinearOptions){.nbd_device = options->nbd_device,
                                                   .name = snapshot->origin_name,
                                                   .uuid = snapshot->origin_uuid,
                                                   .lines_max = options->lines_max,
                                                   .read_only = true,
                                                   .adopt = options->adopt},
                                  error);
    return snapshot->origin != NULL;
}

static bool make_device(Snapshot *snapshot, GError **error)
{
    DmInfo origin;
    if (!dm_info(snapshot->origin_name, &origin, error)) {
        return false;
    }
    g_autofree char *params =
        g_strdup_printf("%u:%u %u:%u PO %u", major(origin.device), minor(origin.device),
                        major(snapshot->store.loop.device), minor(snapshot->store.loop.device),
                        snapshot->store.chunk / DM_SECTOR);
    uint64_t size = align_down(disk_node(snapshot->disk)->size, DM_SECTOR);
    DmLine line = dm_line(0, size, "snapshot", params);
    DmLines lines = {.items = &line, .count = 1};
    snapshot->there = dm_create(snapshot->name, snapshot->uuid, &lines, false, error);
    return snapshot->there;
}

static bool start_new(Snapshot *snapshot, const SnapshotOptions *options, GError **error)
{
    Image *image = disk_image(snapshot->disk);
    return snapshot_store_open(&snapshot->store, snapshot->path, image, options->chunk, error) &&
           start_origin(snapshot, options, error) && make_device(snapshot, error) &&
           start_thread(snapshot, error);
}

/* The number of the loop device under the snapshot that the kernel has. */
static bool find_store_device(const Snapshot *snapshot, dev_t *device, GError **error)
{
    DmLines lines;
    unsigned origin_major, origin_minor, store_major, store_minor;
    if (!dm_table(snapshot->name, &lines, error)) {
        return false;
    }
    bool ours = lines.count == 1 && strcmp(lines.items[0].target, "snapshot") == 0 &&
                sscanf(lines.items[0].params, "%u:%u %u:%u ", &origin_major, &origin_minor,
                       &store_major, &store_minor) == 4;
    g_free(lines.items);
    if (!ours) {
        return error_set(error, EUCLEAN, "/dev/mapper/%s: is no snapshot: must be, by its UUID",
                         snapshot->name);
    }
    *device = makedev(store_major, store_minor);
    return true;
}

static bool start_again(Snapshot *snapshot, const SnapshotOptions *options, bool suspended,
                        GError **error)
{
    dev_t device = 0;
    snapshot->there = true;
    return find_store_device(snapshot, &device, error) &&
           snapshot_store_adopt(&snapshot->store, snapshot->path, disk_image(snapshot->disk),
                                device, error) &&
           start_origin(snapshot, options, error) &&
           (!suspended || dm_resume(snapshot->name, error)) && start_thread(snapshot, error);
}

/* ---- life ---------------------------------------------------------------------------------- */

static Snapshot *snapshot_alloc(Disk *disk, const SnapshotOptions *options)
{
    Snapshot *snapshot = g_new0(Snapshot, 1);
    snapshot->disk = disk;
    snapshot->path = realpath(disk_image(disk)->path, NULL);
    snapshot->nbd_device = g_strdup(options->nbd_device);
    snapshot->name = g_strdup(options->name);
    snapshot->uuid = g_strdup(options->uuid);
    snapshot->origin_name = g_strconcat(options->name, ORIGIN_SUFFIX, NULL);
    snapshot->origin_uuid = g_strconcat(options->uuid, ORIGIN_SUFFIX, NULL);
    snapshot->device = g_strconcat("/dev/mapper/", options->name, NULL);
    snapshot->store.fd = snapshot->store.loop.fd = -1;
    pthread_mutex_init(&snapshot->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&snapshot->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return snapshot;
}

static void snapshot_free(Snapshot *snapshot)
{
    pthread_cond_destroy(&snapshot->wake);
    pthread_mutex_destroy(&snapshot->lock);
    free(snapshot->path);
    g_free(snapshot->nbd_device);
    g_free(snapshot->name);
    g_free(snapshot->uuid);
    g_free(snapshot->origin_name);
    g_free(snapshot->origin_uuid);
    g_free(snapshot->device);
    g_free(snapshot);
}

/* What could not be made: nothing is left of it. What was there already stays. */
static void undo(Snapshot *snapshot, bool adopted)
{
    g_autoptr(GError) error = NULL;
    stop_thread(snapshot);
    if (adopted) {
        snapshot_leave(snapshot);
        return;
    }
    bool removed = !snapshot->there || dm_remove(snapshot->name, &error);
    if (snapshot->origin && (!removed || !linear_stop(snapshot->origin, &error))) {
        log_warning("%s", error->message);
        linear_leave(snapshot->origin);
    }
    if (snapshot->store.path) {
        snapshot_store_close(&snapshot->store, removed);
    }
    snapshot_free(snapshot);
}

/* Beside a device there is /dev, which lies in memory. */
static bool check_place(const Image *image, GError **error)
{
    struct stat status;
    return stat(image->path, &status) != 0 || !S_ISBLK(status.st_mode) ||
           error_set(error, ENOTSUP,
                     "%s: is a block device, and the store of snapshot mode lies beside the image: "
                     "make an overlay of it in a file (cownbd create -f qcow2 -b ...)",
                     image->path);
}

static bool check_options(Disk *disk, const SnapshotOptions *options, GError **error)
{
    const Image *image = disk_image(disk);
    const Format *format = image->format;
    if (!check_place(image, error)) {
        return false;
    }
    if (image->write) {
        return error_set(error, EINVAL,
                         "%s: is served for writing: snapshot mode needs a server that has it open "
                         "read-only",
                         image->path);
    }
    if (!format->flush || image->unwritable) {
        return error_set(error, ENOTSUP,
                         "%s: this %s image cannot be written, so nothing could be folded into it: "
                         "make an overlay of it (cownbd create -f qcow2 -b ...)",
                         image->path, format->name);
    }
    uint32_t chunk = options->chunk;
    if (chunk && (!is_power_of_two(chunk) || chunk < CHUNK_MIN || chunk > CHUNK_MAX)) {
        return error_set(error, EINVAL,
                         "%s: a chunk of %u bytes: must be a power of two from %u to %u",
                         image->path, chunk, CHUNK_MIN, CHUNK_MAX);
    }
    return true;
}

Snapshot *snapshot_new(Disk *disk, const SnapshotOptions *options, GError **error)
{
    DmInfo there = {0};
    if (!check_options(disk, options, error) || !dm_available("snapshot", error) ||
        (options->adopt && !dm_find(options->uuid, &there, error))) {
        return NULL;
    }
    Snapshot *snapshot = snapshot_alloc(disk, options);
    if (!snapshot->path) {
        error_set_errno(error, errno, "%s: cannot find the image", disk_image(disk)->path);
        snapshot_free(snapshot);
        return NULL;
    }
    bool ready = there.exists ? start_again(snapshot, options, there.suspended, error)
                              : start_new(snapshot, options, error);
    if (!ready) {
        undo(snapshot, there.exists);
        return NULL;
    }
    return snapshot;
}

const char *snapshot_device(const Snapshot *snapshot)
{
    return snapshot->device;
}

void snapshot_get_stats(Snapshot *snapshot, SnapshotStats *stats)
{
    with_mutex(&snapshot->lock);
    *stats = snapshot->stats;
    stats->chunk = snapshot->store.chunk;
}

/* The store goes when all devices have: what it holds is durable then. */
static bool finish(Snapshot *snapshot, GError **error)
{
    if (snapshot->origin && !linear_stop(snapshot->origin, error)) {
        return false;
    }
    snapshot->origin = NULL;
    int r = snapshot_store_sync(&snapshot->store);
    if (r < 0) {
        log_error("%s: cannot be made durable: %s", snapshot->store.path, g_strerror(-r));
    }
    snapshot_store_close(&snapshot->store, false);
    snapshot_free(snapshot);
    return true;
}

bool snapshot_stop(Snapshot *snapshot, GError **error)
{
    stop_thread(snapshot);
    if (snapshot->there && !dm_remove(snapshot->name, error)) {
        g_autoptr(GError) thread_error = NULL;
        if (!start_thread(snapshot, &thread_error)) {
            log_error("%s", thread_error->message);
        }
        return false;
    }
    snapshot->there = false;
    return finish(snapshot, error);
}

void snapshot_leave(Snapshot *snapshot)
{
    stop_thread(snapshot);
    if (snapshot->origin) {
        linear_leave(snapshot->origin);
    }
    if (snapshot->store.path) {
        snapshot_store_close(&snapshot->store, false);
    }
    snapshot_free(snapshot);
}
