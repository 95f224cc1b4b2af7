/*
 * Leases: the parts of a disk's map that the kernel holds, so that it moves their bytes without the
 * server.
 *
 * One holder a disk. While it holds a range, no CHANGE of any of it is granted: the change is parked
 * (a request waits, never a thread), the holder is told, and the change goes on when its range has
 * been given back. Nothing else in the engine knows of leases.
 *
 * What is held is altered in rounds, because that takes long and the disk goes on meanwhile:
 *
 *     lease_begin     to take more: from now on what is being changed is remembered as unfit
 *     lease_map       what the map says; lease_flush: and all of that is durable
 *     lease_unfit     what must not be held after this round: what is or was being changed, and
 *                     what parked changes wait for
 *        (the kernel's new table is loaded; its device is suspended: none of its I/O is in flight)
 *     lease_commit    all ranges are still fit: they are held, together with the old ones. False:
 *                     some are not, and nothing was altered; the round is over
 *        (the kernel resumes with the new table)
 *     lease_settle    only the new ranges are held; parked changes whose ranges are free go on
 *     lease_cancel    in place of commit or settle: the kernel goes on with what it had before
 *
 * To give back only, begin and map are left out: commit of what was held already never fails.
 *
 * A parked change stands in nobody's way: other requests for its range go on. Otherwise a suspend,
 * which waits for the device's own I/O in this server, could wait for a change that waits for it.
 * For the same reason a holder takes whole allocation units only (asserted): then a request that
 * comes in through the rest of his device never changes what he holds.
 *
 * Threads: a holder calls from one thread at a time, which may block and is no worker.
 */
#ifndef ENGINE_LEASE_H
#define ENGINE_LEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/disk.h"
#include "engine/rangeset.h"
#include "map/extent.h"

typedef struct LeaseHolder LeaseHolder;
struct LeaseHolder {
    /* A change was parked: begin a round soon. The map lock is held: must not block, nor call the
     * engine. [any] */
    void (*recall)(LeaseHolder *holder);
};

/* False when the disk has a holder already. Nothing is held yet. */
bool lease_attach(Disk *disk, LeaseHolder *holder);
/* Gives everything back; parked changes go on. recall is not called after this. */
void lease_detach(Disk *disk);

void lease_begin(Disk *disk);

/* Calls each(argument, extent) for the map of all of the disk, in order, on this thread; in pieces,
 * so that others get to the map in between. What only the server may write is not WRITABLE: the
 * first bytes of a raw image that is guarded. 0 or -errno. Blocks. */
typedef void LeaseEach(void *argument, const Extent *extent);
int lease_map(Disk *disk, LeaseEach *each, void *argument);

/* Everything written so far is durable. Allocation stands still meanwhile: lease_sync before it
 * brings most of the bytes to the disk without that. 0 or -errno. Both block. */
int lease_flush(Disk *disk);
int lease_sync(Disk *disk);

/* While it is on, every change is durable before it is answered: for a holder that sends no flushes
 * of what goes through the server. What was answered before wants a lease_flush. Ends with
 * lease_detach. [any] */
void lease_write_through(Disk *disk, bool on);

/* Adds to the set, which should have no limit. */
void lease_unfit(Disk *disk, RangeSet *unfit);

bool lease_commit(Disk *disk, const Range *ranges, unsigned count);
void lease_settle(Disk *disk);
void lease_cancel(Disk *disk);

/* Holds the ranges at once, before any request was made of the disk: what the kernel holds since an
 * earlier server. */
void lease_adopt(Disk *disk, const Range *ranges, unsigned count);

bool lease_wanted(Disk *disk); /* a change is parked [any] */

/* Bytes that have become writable in place since the disk was opened: what there is to gain by
 * another round. [any] */
uint64_t lease_new_bytes(const Disk *disk);

/* What the allocation unit and the exclusion of writers mean for the holder. [any] */
uint64_t lease_unit(const Disk *disk); /* bytes, a power of two */
bool lease_is_fixed(const Disk *disk); /* the map cannot change: anything readable may be held */
uint64_t lease_size(const Disk *disk); /* of the disk, bytes */

#endif
