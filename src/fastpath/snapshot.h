/*
 * Snapshot mode: the kernel does the copy-on-write itself.
 *
 *      /dev/mapper/NAME          dm snapshot, persistent, PO
 *        |           |
 *        |           loop device on IMAGE.cownbd-cow, which grows ahead of the writer
 *      NAME-origin               the whole chain, read-only: linear lines on loop devices of its
 *        |                       files, zeroes, and /dev/nbdN for what must be decoded (linear.h)
 *
 * The disk's image is open read-only for as long, which keeps writers out; the loop devices keep
 * the locks when the server dies. Nothing of the image changes. snapshot_stop takes the device
 * away; the store stays, and fold.h brings it into the image when the image is closed.
 * [main] or a thread that may block.
 */
#ifndef FASTPATH_SNAPSHOT_H
#define FASTPATH_SNAPSHOT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/disk.h"

typedef struct Snapshot Snapshot;

typedef struct SnapshotOptions {
    const char *nbd_device; /* "/dev/nbd3": serves the disk, read-only */
    const char *name;       /* of the dm device; the origin is NAME-origin */
    const char *uuid;       /* of the dm device; the origin's has "-origin" at its end */
    unsigned lines_max;     /* of the origin's table */
    uint32_t chunk;         /* bytes; 0: chosen by the size of the disk */
    bool adopt;             /* the devices may be there already, from a server that died */
} SnapshotOptions;

typedef struct SnapshotStats {
    uint64_t store_size;  /* bytes of the kernel's part of the store file */
    uint64_t store_used;  /* bytes, metadata included */
    uint64_t grown;       /* times that the store was made larger */
    uint32_t chunk;       /* bytes */
    bool store_full_size; /* it holds the whole disk: it cannot overflow */
    bool host_full;       /* the host has no space for more: writes will fail when it is used up */
    bool overflowed;      /* writes fail, reads go on; detach folds what is there */
    bool invalid;         /* the kernel could not write to the store and gave it up */
} SnapshotStats;

/* Makes the devices; an existing store of the same image goes on. A store of an image that was
 * changed meanwhile: refused. The disk must be open read-only and stay open until snapshot_stop. */
Snapshot *snapshot_new(Disk *disk, const SnapshotOptions *options, GError **error);

const char *snapshot_device(const Snapshot *snapshot);             /* "/dev/mapper/NAME" [any] */
void snapshot_get_stats(Snapshot *snapshot, SnapshotStats *stats); /* [any] */

/* Removes the devices and frees. EBUSY when the device is open: all stays as it is. */
bool snapshot_stop(Snapshot *snapshot, GError **error);

/* Frees snapshot and leaves the devices as they are, for the next server to adopt. The store does
 * not grow until then. */
void snapshot_leave(Snapshot *snapshot);

#endif
