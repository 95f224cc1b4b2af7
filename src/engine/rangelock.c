/*
 * The range lock as three lists: who uses a range, who changes one, who waits.
 *
 * Nearly always nobody changes and nobody waits, and taking STABLE is then a look at two empty
 * lists and one link. The lists are searched from end to end otherwise: their length is the number
 * of requests in flight on one disk.
 */
#include "engine/rangelock.h"

#include <stddef.h>

#include "base/bytes.h"

static void list_append(RangeList *list, RangeHold *hold)
{
    hold->next = NULL;
    hold->previous = list->last;
    if (list->last != NULL) {
        list->last->next = hold;
    } else {
        list->first = hold;
    }
    list->last = hold;
}

static void list_remove(RangeList *list, RangeHold *hold)
{
    if (hold->previous != NULL) {
        hold->previous->next = hold->next;
    } else {
        list->first = hold->next;
    }
    if (hold->next != NULL) {
        hold->next->previous = hold->previous;
    } else {
        list->last = hold->previous;
    }
}

/* Does somebody from first up to (not including) end share a byte with hold, in a mode that forbids
 * it? */
static bool conflicts(const RangeHold *first, const RangeHold *end, const RangeHold *hold)
{
    for (const RangeHold *other = first; other != end; other = other->next) {
        bool both_stable = other->mode == RANGE_STABLE && hold->mode == RANGE_STABLE;
        if (!both_stable &&
            ranges_overlap(other->offset, other->length, hold->offset, hold->length)) {
            return true;
        }
    }
    return false;
}

/* waiting_before: the waiter at which to stop looking (those behind it came later); NULL looks at
 * all. */
static bool may_hold(const RangeLock *lock, const RangeHold *hold, const RangeHold *waiting_before)
{
    return !conflicts(lock->change.first, NULL, hold) &&
           !conflicts(lock->waiting.first, waiting_before, hold) &&
           (hold->mode == RANGE_STABLE || !conflicts(lock->stable.first, NULL, hold));
}

static void grant(RangeLock *lock, RangeHold *hold)
{
    list_append(hold->mode == RANGE_STABLE ? &lock->stable : &lock->change, hold);
}

bool rangelock_acquire(RangeLock *lock, RangeHold *hold, RangeMode mode, uint64_t offset,
                       uint64_t length)
{
    hold->mode = mode;
    hold->offset = offset;
    hold->length = length;
    if (may_hold(lock, hold, NULL)) {
        grant(lock, hold);
        return true;
    }
    list_append(&lock->waiting, hold);
    return false;
}

RangeHold *rangelock_release(RangeLock *lock, RangeHold *hold)
{
    list_remove(hold->mode == RANGE_STABLE ? &lock->stable : &lock->change, hold);
    RangeHold *granted = NULL, **tail = &granted;
    for (RangeHold *waiter = lock->waiting.first, *next; waiter != NULL; waiter = next) {
        next = waiter->next;
        if (ranges_overlap(waiter->offset, waiter->length, hold->offset, hold->length) &&
            may_hold(lock, waiter, waiter)) {
            list_remove(&lock->waiting, waiter);
            grant(lock, waiter);
            waiter->granted_next = NULL;
            *tail = waiter;
            tail = &waiter->granted_next;
        }
    }
    return granted;
}
