/*
 * Leases: which ranges the kernel holds, and the changes that wait for one of them.
 *
 *      CHANGE wanted ──> overlaps what is held? ──yes──> parked, holder is told
 *                             │ no                          │ lease_settle: its range is free
 *                             v                             v
 *                      range lock: granted, or queued <─────┘
 *
 * What must stay true:
 * 1. A granted or queued CHANGE never overlaps a held range: a change is looked at when it enters
 *    the range lock, and a range is taken (lease_commit) only when no change has entered on it since
 *    lease_begin, and none was inside then. All of that is under the map lock.
 * 2. A parked change is not in the range lock, so nothing waits for it.
 * 3. From commit to settle what was held before is held too: the kernel may fall back to it.
 * 4. A parked change enters the range lock under the same lock under which its range became free,
 *    so that the next round already sees it, and it waits for one round, not for many.
 *
 * Without a holder all of this is one test of a pointer a change.
 */
#include "engine/lease.h"

#include <stdatomic.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "engine/disk-impl.h"

/* Ranges remembered while a map is read. Past this, neighbours are joined: less is taken then. */
#define UNFIT_MAX 16384

struct Lease {
    LeaseHolder *holder;
    RangeSet held;
    RangeSet before; /* from commit to settle: what was held until then */
    RangeSet next;   /* the same: what will be */
    bool committed;
    bool is_recording; /* from begin to commit: */
    RangeSet unfit;    /* what was being changed */
    Request *parked, **parked_end;
};

bool lease_attach(Disk *disk, LeaseHolder *holder)
{
    with_mutex(&disk->map_lock);
    if (disk->lease != NULL) {
        return false;
    }
    disk->lease = g_new0(Lease, 1);
    disk->lease->holder = holder;
    disk->lease->parked_end = &disk->lease->parked;
    return true;
}

bool lease_admit(Disk *disk, Request *request, uint64_t offset, uint64_t length)
{
    Lease *lease = disk->lease;
    if (!rangeset_overlaps(&lease->held, offset, length)) {
        if (lease->is_recording) {
            rangeset_add(&lease->unfit, offset, length);
        }
        return true;
    }
    request->hold.offset = offset;
    request->hold.length = length;
    request->next = NULL;
    *lease->parked_end = request;
    lease->parked_end = &request->next;
    lease->holder->recall(lease->holder);
    return false;
}

/* Lets parked changes whose ranges are free into the range lock. The map lock is held. Returns
 * those that are granted, linked by next. */
static Request *admit_parked(Disk *disk)
{
    Lease *lease = disk->lease;
    Request *all = lease->parked, *granted = NULL;
    lease->parked = NULL;
    lease->parked_end = &lease->parked;
    while (all != NULL) {
        Request *request = all;
        RangeHold *hold = &request->hold;
        all = request->next;
        if (lease_admit(disk, request, hold->offset, hold->length) &&
            rangelock_acquire(&disk->ranges, hold, RANGE_CHANGE, hold->offset, hold->length)) {
            request->next = granted;
            granted = request;
        }
    }
    return granted;
}

static void resume_all(Request *granted)
{
    while (granted != NULL) {
        Request *request = granted;
        granted = request->next;
        request_resume(request, request->resume);
    }
}

void lease_detach(Disk *disk)
{
    pthread_mutex_lock(&disk->map_lock);
    Lease *lease = disk->lease;
    disk->has_unsynced = true;
    disk->write_through = false;
    rangeset_clear(&lease->held);
    Request *granted = admit_parked(disk);
    disk->lease = NULL;
    pthread_mutex_unlock(&disk->map_lock);
    resume_all(granted);
    rangeset_clear(&lease->before);
    rangeset_clear(&lease->next);
    rangeset_clear(&lease->unfit);
    g_free(lease);
}

void lease_write_through(Disk *disk, bool on)
{
    disk->write_through = on;
}

static void add_changes(RangeSet *set, const RangeList *list)
{
    for (const RangeHold *hold = list->first; hold != NULL; hold = hold->next) {
        if (hold->mode == RANGE_CHANGE) {
            rangeset_add(set, hold->offset, hold->length);
        }
    }
}

void lease_begin(Disk *disk)
{
    with_mutex(&disk->map_lock);
    Lease *lease = disk->lease;
    lease->is_recording = true;
    rangeset_clear(&lease->unfit);
    lease->unfit.limit = UNFIT_MAX;
    add_changes(&lease->unfit, &disk->ranges.change);
    add_changes(&lease->unfit, &disk->ranges.waiting);
}

void lease_unfit(Disk *disk, RangeSet *unfit)
{
    with_mutex(&disk->map_lock);
    const Lease *lease = disk->lease;
    for (unsigned i = 0; lease->is_recording && i < lease->unfit.count; i++) {
        rangeset_add(unfit, lease->unfit.items[i].offset, lease->unfit.items[i].length);
    }
    for (const Request *request = lease->parked; request != NULL; request = request->next) {
        rangeset_add(unfit, request->hold.offset, request->hold.length);
    }
}

static void stop_recording(Lease *lease)
{
    lease->is_recording = false;
    rangeset_clear(&lease->unfit);
}

static void assert_whole_units(const Disk *disk, const Range *range)
{
    uint64_t unit = disk->image->allocation_unit, end = range->offset + range->length;
    g_assert(range->length > 0 && range_within(range->offset, range->length, disk->node.size));
    g_assert(range->offset % unit == 0);
    g_assert(end % unit == 0 || disk->node.size - end < unit);
}

bool lease_commit(Disk *disk, const Range *ranges, unsigned count)
{
    with_mutex(&disk->map_lock);
    Lease *lease = disk->lease;
    bool fit = true;
    for (unsigned i = 0; i < count && fit; i++) {
        fit = !lease->is_recording ||
              !rangeset_overlaps(&lease->unfit, ranges[i].offset, ranges[i].length);
        if (fit) { /* else the disk may have got another size */
            assert_whole_units(disk, &ranges[i]);
        }
    }
    stop_recording(lease);
    if (!fit) {
        return false;
    }
    lease->committed = true;
    /* What the kernel wrote to a line that goes away now is flushed by the server from here on. */
    disk->has_unsynced = true;
    rangeset_copy(&lease->before, &lease->held);
    for (unsigned i = 0; i < count; i++) {
        rangeset_add(&lease->next, ranges[i].offset, ranges[i].length);
        rangeset_add(&lease->held, ranges[i].offset, ranges[i].length);
    }
    return true;
}

/* From now on *set is held and nothing else. */
static void end_round(Disk *disk, RangeSet *set)
{
    pthread_mutex_lock(&disk->map_lock);
    Lease *lease = disk->lease;
    rangeset_clear(&lease->held);
    lease->held = *set;
    *set = (RangeSet){0};
    rangeset_clear(&lease->before);
    rangeset_clear(&lease->next);
    lease->committed = false;
    Request *granted = admit_parked(disk);
    pthread_mutex_unlock(&disk->map_lock);
    resume_all(granted);
}

void lease_settle(Disk *disk)
{
    g_assert(disk->lease->committed);
    end_round(disk, &disk->lease->next);
}

void lease_cancel(Disk *disk)
{
    if (disk->lease->committed) {
        end_round(disk, &disk->lease->before);
        return;
    }
    with_mutex(&disk->map_lock);
    stop_recording(disk->lease);
}

void lease_adopt(Disk *disk, const Range *ranges, unsigned count)
{
    with_mutex(&disk->map_lock);
    for (unsigned i = 0; i < count; i++) {
        assert_whole_units(disk, &ranges[i]);
        rangeset_add(&disk->lease->held, ranges[i].offset, ranges[i].length);
    }
}

bool lease_wanted(Disk *disk)
{
    with_mutex(&disk->map_lock);
    return disk->lease->parked != NULL;
}

bool disk_is_leased(Disk *disk)
{
    with_mutex(&disk->map_lock);
    return disk->lease != NULL;
}

uint64_t lease_new_bytes(const Disk *disk)
{
    return atomic_load_explicit(&disk->new_bytes, memory_order_relaxed);
}

uint64_t lease_unit(const Disk *disk)
{
    return disk->image->allocation_unit;
}

bool lease_is_fixed(const Disk *disk)
{
    return !disk->image->write;
}

uint64_t lease_size(const Disk *disk)
{
    return disk->node.size;
}
