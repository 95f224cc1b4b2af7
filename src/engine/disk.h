/*
 * A disk: the top image of a chain plus the engine's state. It is a node: requests are made of it.
 */
#ifndef ENGINE_DISK_H
#define ENGINE_DISK_H

#include <glib.h>

#include "base/pool.h"
#include "graph/node.h"
#include "map/image.h"

typedef struct Disk Disk;

/* What the disk still does. Modes only get worse. */
typedef enum {
    DISK_NORMAL,
    DISK_READ_ONLY, /* a metadata write failed: writes and flushes of them answer -EIO */
    DISK_FAILED,    /* metadata cannot be trusted or read: everything answers -EIO */
} DiskMode;

/* Takes a reference to image. guard_probe: refuse (-EPERM) writes that would plant a known magic at
 * offset 0 of a raw image whose format was guessed. [main] */
Disk *disk_new(Image *image, Pool *pool, bool guard_probe);

/* The disk as a node; lives as long as the disk. */
Node *disk_node(Disk *disk);

/* Its image, not owned; who asks must not change it. [any] */
Image *disk_image(const Disk *disk);

DiskMode disk_mode(const Disk *disk); /* [any] */

/* An internal snapshot is made or deleted, by a function of the image's format, between two requests: what
 * was answered before is in the snapshot. Made on worker and waited for here. */
typedef bool (*DiskSnapshotChange)(Image *image, const char *name, GError **error);
bool disk_snapshot(Disk *disk, Worker *worker, DiskSnapshotChange change, const char *name,
                   GError **error);

/* REQUEST_RESIZE, made on worker and waited for here: the disk and its node have another size afterwards.
 * Requests beyond a new end get -ENOSPC, READs and STATUS -EINVAL. What else shows the size (exports
 * that clients have open, devices of the kernel) is the caller's to tell. EPERM: it would lose data and
 * shrink is false. Blocks. Not from a worker nor the pool. */
bool disk_resize(Disk *disk, Worker *worker, uint64_t size, bool shrink, GError **error);

/* What was counted since the disk was opened. */
typedef struct DiskCounts {
    uint64_t map_hits, map_misses; /* maps of a request's range that were known, that were not */
    uint64_t allocated;            /* bytes that became writable in place */
    uint64_t flushes; /* that went to stable storage; waiting ones are joined into one */
    uint64_t flush_microseconds;
} DiskCounts;

/* Numbers of one moment need not fit each other exactly. [any] */
void disk_get_counts(const Disk *disk, DiskCounts *counts);

/* All requests are done: flushes, finishes the image, frees. 0 or the -errno of the last flush. May
 * block. [main] */
int disk_close(Disk *disk);

#endif
