/*
 * The range lock: protects the map of a range, and makes requests wait, never threads.
 *
 *     STABLE   the map of the range is in use and must not change   (reads, writes in place)
 *     CHANGE   the map of the range is being altered; alone          (allocation, discard)
 *
 * Conflicting requests are served in the order of their arrival, so nobody starves.
 *
 * No lock inside: the disk's map lock protects it. [any], never blocks.
 */
#ifndef ENGINE_RANGELOCK_H
#define ENGINE_RANGELOCK_H

#include <stdbool.h>
#include <stdint.h>

typedef enum { RANGE_STABLE, RANGE_CHANGE } RangeMode;

typedef struct RangeHold RangeHold;

/* One holder or waiter; lives in the structure that holds. */
struct RangeHold {
    uint64_t offset, length;
    RangeMode mode;
    RangeHold *next, *previous;
    RangeHold *granted_next; /* list given back by rangelock_release */
};

typedef struct RangeList {
    RangeHold *first, *last;
} RangeList;

typedef struct RangeLock {
    RangeList stable, change; /* who holds */
    RangeList waiting;        /* in order of arrival */
} RangeLock;

/* lock: zero-filled. */

/* True: granted now. False: queued; rangelock_release of another will grant it. */
bool rangelock_acquire(RangeLock *lock, RangeHold *hold, RangeMode mode, uint64_t offset,
                       uint64_t length);

/* Gives up what was granted. Returns those that are granted by that, linked by granted_next. */
RangeHold *rangelock_release(RangeLock *lock, RangeHold *hold);

#endif
