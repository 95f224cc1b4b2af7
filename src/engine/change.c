/*
 * The change job: allocations, commits and discards of a disk, in batches behind the exclusive
 * gate.
 *
 * Whatever the format answers, the map cache says the same before the gate is left.
 */
#include "engine/change.h"

#include <errno.h>
#include <stdatomic.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "engine/journal-impl.h"
#include "map/encryption.h"

/* Extents of the old map looked at for one change: one unit of 2 MiB over a backing with clusters
 * of 512 bytes has 4096. A longer change is shortened; its request comes back for the rest. */
#define CHANGE_EXTENTS_MAX 8192

#define WRITE_ALONE_MAX    (2u << 20) /* bytes: a large cluster */

static void change_job_run(PoolJob *job);

void change_init(Disk *disk)
{
    pthread_mutex_init(&disk->change_lock, NULL);
    disk->changes_end = &disk->changes;
    disk->change_job.job.run = change_job_run;
}

void change_acquire(Request *request, uint64_t offset, uint64_t length,
                    void (*granted)(Request *request))
{
    Disk *disk = request_disk(request);
    request->resume = granted;
    pthread_mutex_lock(&disk->map_lock);
    bool now = (disk->lease == NULL || lease_admit(disk, request, offset, length)) &&
               rangelock_acquire(&disk->ranges, &request->hold, RANGE_CHANGE, offset, length);
    pthread_mutex_unlock(&disk->map_lock);
    if (now) {
        granted(request);
    }
}

Change *change_new(Request *request, uint64_t offset, uint64_t length)
{
    Change *change = g_new0(Change, 1);
    change->request = request;
    change->offset = offset;
    change->length = length;
    extent_list_init(&change->old);
    extent_list_init(&change->allocation.extents);
    return change;
}

void change_free(Change *change)
{
    extent_list_clear(&change->old);
    extent_list_clear(&change->allocation.extents);
    g_free(change);
}

/* True: the change job is the caller's to run, which is inside the gate. Queues it otherwise, unless it is already. */
static bool queue_change(Disk *disk, Change *change)
{
    bool may_block =
        change->kind == CHANGE_ALLOCATE && (change->request->flags & REQUEST_MAY_BLOCK);
    with_mutex(&disk->change_lock);
    *disk->changes_end = change;
    disk->changes_end = &change->next;
    if (disk->change_running) {
        return false;
    }
    disk->change_running = true;
    if (may_block && gate_try_enter(&disk->gate, GATE_EXCLUSIVE)) {
        return true;
    }
    gate_enter(&disk->gate, &disk->change_job, GATE_EXCLUSIVE);
    return false;
}

void change_start(Change *change, ChangeKind kind, void (*resume)(Request *request))
{
    Disk *disk = request_disk(change->request);
    change->kind = kind;
    change->next = NULL;
    change->result = 0;
    change->request->resume = resume;
    if (queue_change(disk, change)) {
        change_job_run(&disk->change_job.job);
    }
}

/* While a change waited the disk may have got another size. -EAGAIN: it is not made of whole units any
 * more, though all of its request lies inside. */
static int check_range(const Disk *disk, const Change *change)
{
    const Image *image = disk->image;
    const Request *request = change->request;
    uint64_t end = change->offset + change->length;
    if (!range_within(request->offset, request->length, image->size)) {
        return request_past_the_end(request);
    }
    uint64_t unit = image->allocation_unit;
    bool ends_well = end == image->size || (end < image->size && end % unit == 0);
    return change->offset % unit == 0 && ends_well ? 0 : -EAGAIN;
}

static bool is_writable(const Extent *extent)
{
    return extent->type == EXTENT_DATA && (extent->flags & EXTENT_WRITABLE);
}

/* Shortens the change to the units at its beginning that are not writable now; perhaps to none. Then
 * the map cache, by which the change was asked for, is behind. */
static int find_what_to_allocate(Disk *disk, Change *change)
{
    int r =
        chain_map(disk->image, change->offset, change->length, CHANGE_EXTENTS_MAX, &change->old);
    if (r < 0) {
        return r;
    }
    uint64_t end = change->offset;
    for (unsigned i = 0; i < change->old.count; i++) {
        const Extent *extent = &change->old.items[i];
        if (is_writable(extent)) {
            break;
        }
        end = extent_end(extent);
    }
    uint64_t whole_end = change->offset + change->length;
    if (end < whole_end) {
        end -= end % disk->image->allocation_unit;
    }
    change->length = end - change->offset;
    /* The map of the first unit ended in its middle: the rest of it cannot be read (a damaged
     * backing). */
    return change->length == 0 && !is_writable(&change->old.items[0]) ? -EIO : 0;
}

/* Where a larger unit must be allocated as a whole, the change has all of it or nothing: one that it begins in the middle
 * of makes it too narrow, one that it ends in the middle of is left for the next change. Was it widened, and the larger
 * unit is divided meanwhile, so that it ends before the client's bytes, then the part starts over, too. */
static int keep_units_whole(Disk *disk, Change *change)
{
    Image *image = disk->image;
    const Request *request = change->request;
    uint64_t end = change->offset + change->length, unit;
    if (image->format->unit_at == NULL || change->length == 0) {
        return 0;
    }
    int r = image->format->unit_at(image, end - 1, &unit);
    if (r == 0 && end % unit != 0 && end != image->size) {
        end = align_down(end, unit);
    }
    if (r == 0 && end > change->offset) {
        r = image->format->unit_at(image, change->offset, &unit);
        end = change->offset % unit == 0 ? end : change->offset;
    }
    change->too_narrow = end <= change->offset;
    bool useful = end > max_u64(change->offset, request->offset + request->progress);
    change->length = useful ? end - change->offset : 0;
    return r;
}

static void gather_allocate(Disk *disk, Change *change, GPtrArray *allocations)
{
    uint64_t end = change->offset + change->length;
    change->result = disk_write_refusal(disk);
    if (change->result == 0) {
        change->result = check_range(disk, change);
    }
    if (change->result == 0) {
        change->result = find_what_to_allocate(disk, change);
        change->result = change->result < 0 ? change->result : keep_units_whole(disk, change);
    } else if (change->result == -EAGAIN) { /* look again: nothing can be allocated */
        change->result = 0;
        change->length = 0;
    }
    if (change->result == 0 && change->length == 0) {
        with_mutex(&disk->map_lock);
        mapcache_erase(disk->mapcache, change->offset, end - change->offset);
    }
    if (change->result == 0 && change->length > 0) {
        change->allocation.offset = change->offset;
        change->allocation.length = change->length;
        g_ptr_array_add(allocations, &change->allocation);
    }
}

static void allocate(Disk *disk, Change *changes)
{
    g_autoptr(GPtrArray) allocations = g_ptr_array_new();
    for (Change *change = changes; change != NULL; change = change->next) {
        if (change->kind == CHANGE_ALLOCATE) {
            gather_allocate(disk, change, allocations);
        }
    }
    if (allocations->len == 0) {
        return;
    }
    image_allocate(disk->image, (Allocation **)allocations->pdata, allocations->len);
    for (Change *change = changes; change != NULL; change = change->next) {
        if (change->kind == CHANGE_ALLOCATE && change->result == 0) {
            change->result = change->allocation.result;
        }
    }
}

static bool was_encoded(const Change *change)
{
    for (unsigned i = 0; i < change->old.count; i++) {
        if (change->old.items[i].type == EXTENT_ENCODED) {
            return true;
        }
    }
    return false;
}

/* The new extents as map would show them. */
static void show_in_mapcache(Disk *disk, const Change *change)
{
    with_mutex(&disk->map_lock);
    for (unsigned i = 0; i < change->allocation.extents.count; i++) {
        Extent extent = change->allocation.extents.items[i];
        extent.flags = EXTENT_WRITABLE;
        extent.image = disk->image;
        mapcache_insert(disk->mapcache, &extent);
    }
}

static void forget_in_mapcache(Disk *disk, const Change *change)
{
    with_mutex(&disk->map_lock);
    mapcache_erase(disk->mapcache, change->offset, change->length);
}

/* The format has been told, nobody has been answered. */
static void note_in_journal(Disk *disk, const Change *change)
{
    for (unsigned i = 0; i < change->allocation.extents.count; i++) {
        journal_note(disk, &change->allocation.extents.items[i]);
    }
}

static void commit(Disk *disk, Change *changes)
{
    g_autoptr(GPtrArray) allocations = g_ptr_array_new();
    for (Change *change = changes; change != NULL; change = change->next) {
        if (change->kind == CHANGE_COMMIT) {
            g_ptr_array_add(allocations, &change->allocation);
        }
    }
    if (allocations->len == 0) {
        return;
    }
    int r = disk_write_refusal(disk);
    if (r == 0) {
        r = disk->image->format->commit(disk->image, (Allocation **)allocations->pdata,
                                        allocations->len);
        if (r < 0) {
            disk_degrade(disk, DISK_READ_ONLY, "making new data visible", r);
        }
    }
    for (Change *change = changes; change != NULL; change = change->next) {
        if (change->kind == CHANGE_COMMIT) {
            change->result = r;
            if (r == 0) {
                note_in_journal(disk, change);
                show_in_mapcache(disk, change);
                atomic_fetch_add_explicit(&disk->new_bytes, change->length, memory_order_relaxed);
            } else {
                forget_in_mapcache(disk, change);
            }
            if (was_encoded(change)) {
                unitcache_clear(disk->units);
            }
        }
    }
}

static void abandon(Disk *disk, Change *change)
{
    Allocation *allocation = &change->allocation;
    disk->image->format->abandon(disk->image, &allocation, 1);
}

/* What reads as zeroes now because the tables say so. Where the format has made holes in data that
 * stays where it is, there is nothing to remember, and a record would outlive what is written there
 * next, in place. */
static void note_zeroes(Disk *disk, const Change *change)
{
    uint64_t at = change->offset, end = change->offset + change->length;
    ExtentList list;
    extent_list_init(&list);
    while (at < end) {
        extent_list_reset(&list);
        if (chain_map(disk->image, at, end - at, CHANGE_EXTENTS_MAX, &list) < 0) {
            journal_note_zero(disk, 0, 0); /* not known: a flush */
            break;
        }
        for (unsigned i = 0; i < list.count; i++) {
            const Extent *extent = &list.items[i];
            if (!is_writable(extent)) {
                journal_note_zero(disk, extent->offset,
                                  extent_is_zero(extent) ? extent->length : 0);
            }
        }
        at = extent_list_end(&list);
    }
    extent_list_clear(&list);
}

static void unmap(Disk *disk, Change *change)
{
    const Format *format = disk->image->format;
    change->result = disk_write_refusal(disk);
    if (change->result == 0) {
        change->result = check_range(disk, change);
    }
    if (change->result < 0) {
        change->result = change->result == -EAGAIN ? -ENOTSUP : change->result;
        return;
    }
    change->result = format->unmap == NULL ? -ENOTSUP
                                           : format->unmap(disk->image, change->offset,
                                                           change->length, change->unmap_flags);
    if (change->result == 0 && journal_is_kept(disk)) {
        note_zeroes(disk, change);
    }
    forget_in_mapcache(disk, change);
    unitcache_clear(disk->units);
}

/* A client that waits for each answer before it writes again gets it a round through the pool sooner. With others
 * waiting, or for many bytes, the gate is too dear to be held while they are copied. */
static void write_alone(Disk *disk, Change *change)
{
    if (change->kind == CHANGE_ALLOCATE && change->next == NULL && change->write_now != NULL &&
        change->result == 0 && change->length > 0 && change->length <= WRITE_ALONE_MAX &&
        change->write_now(change)) {
        change->kind = CHANGE_COMMIT;
        change->committed = true;
        commit(disk, change);
        journal_secure(disk);
    }
}

static Change *take_all(Disk *disk)
{
    with_mutex(&disk->change_lock);
    Change *all = disk->changes;
    disk->changes = NULL;
    disk->changes_end = &disk->changes;
    return all;
}

/* Waits at the gate once more when changes have come meanwhile, so that maps in between get their
 * turn. */
static void leave_or_go_on(Disk *disk)
{
    with_mutex(&disk->change_lock);
    disk->change_running = disk->changes != NULL;
    if (disk->change_running) {
        gate_enter(&disk->gate, &disk->change_job, GATE_EXCLUSIVE);
    }
    gate_leave(&disk->gate, GATE_EXCLUSIVE);
}

/* [pool], or the worker of a request that may block. */
static void change_job_run(PoolJob *job)
{
    Disk *disk = (Disk *)((char *)job - offsetof(Disk, change_job.job));
    Change *all = take_all(disk);
    commit(disk, all);
    for (Change *change = all; change != NULL; change = change->next) {
        if (change->kind == CHANGE_UNMAP) {
            unmap(disk, change);
        } else if (change->kind == CHANGE_ABANDON) {
            abandon(disk, change);
        }
    }
    journal_secure(disk);
    allocate(disk, all);
    write_alone(disk, all);
    leave_or_go_on(disk);
    while (all != NULL) { /* once resumed, a change and its disk may be gone */
        Change *change = all;
        all = change->next;
        request_resume(change->request, change->request->resume);
    }
}
