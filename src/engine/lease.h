/*
 * Leases: the parts of a disk's map that the kernel holds, so that it moves their bytes without the
 * server.
 *
 * One holder a disk. While it holds a range, no CHANGE of any of it is granted: the change is parked
 * (a request waits, never a thread), the holder is told, and goes on when the range has been given
 * back. Nothing else in the engine knows of leases.
 *
 * Taking and giving back is done in rounds, because a round of the holder takes long and the disk
 * goes on meanwhile:
 *
 *     lease_begin     from now on every range that is being changed is remembered as unfit
 *     lease_map       what the map says; lease_flush: and all of that is durable
 *     lease_filter    leaves out what has become unfit, and what parked changes wait for
 *        (the kernel's new table is loaded; its device is suspended: none of its I/O is in flight)
 *     lease_commit    all ranges still fit: they are held together with the old ones. False: some
 *                     are not, nothing was altered: give the round up and begin another
 *        (the kernel resumes with the new table)
 *     lease_settle    only the new ranges are held; parked changes whose ranges are free go on
 *     lease_cancel    in place of commit or settle: the kernel goes on with what it had before
 *
 * A parked change stands in nobody's way: other requests for its range go on. Otherwise a suspend,
 * which waits for the device's own I/O in this server, could wait for a change that waits for it.
 * For the same reason a holder takes whole allocation units only (lease_map cuts them so): then a
 * request that comes in through the rest of his device never changes what he holds.
 *
 * Threads: a holder calls from one thread at a time, which may block and is no worker.
 */
#ifndef ENGINE_LEASE_H
#define ENGINE_LEASE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/disk.h"
#include "engine/rangeset.h"
#include "map/extent.h"

typedef struct LeaseHolder LeaseHolder;
struct LeaseHolder {
    /* A change was parked: begin a round soon. Must not block, nor call the engine. [any] */
    void (*recall)(LeaseHolder *holder);
};

/* False when the disk has a holder already. Nothing is held yet. [any] */
bool lease_attach(Disk *disk, LeaseHolder *holder);
/* Gives everything back; parked changes go on. recall is not called after this. */
void lease_detach(Disk *disk);

void lease_begin(Disk *disk);

/* Calls each(argument, extent) for the map of all of the disk, in order; in pieces, so that others
 * get to the map in between. What the kernel must not write itself is not WRITABLE: what lies in
 * parts of allocation units, and the first bytes of a guarded raw image. 0 or -errno. Blocks. */
typedef void LeaseEach(void *argument, const Extent *extent);
int lease_map(Disk *disk, LeaseEach *each, void *argument);

/* A FLUSH of the disk, by a job of its own. 0 or -errno. Blocks. */
int lease_flush(Disk *disk);

/* For each of count ranges: is it fit to be held still? fit[i] is set. True when all are. */
bool lease_filter(Disk *disk, const Range *ranges, unsigned count, bool *fit);

bool lease_commit(Disk *disk, const Range *ranges, unsigned count);
void lease_settle(Disk *disk);
void lease_cancel(Disk *disk);

/* Holds the ranges at once, before any request was made of the disk: those that the kernel holds
 * since an earlier server. */
void lease_adopt(Disk *disk, const Range *ranges, unsigned count);

bool lease_wanted(Disk *disk); /* a change is parked [any] */

/* Bytes that have become writable in place since the disk was opened: how much there is to gain by
 * a new round. [any] */
uint64_t lease_new_bytes(const Disk *disk);

#endif
