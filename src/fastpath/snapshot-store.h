/*
 * The store of a snapshot as a device: the file IMAGE.cownbd-cow (cowstore.h), locked, on a loop
 * device, made larger when asked. One thread at a time; blocks.
 */
#ifndef FASTPATH_SNAPSHOT_STORE_H
#define FASTPATH_SNAPSHOT_STORE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "fastpath/loop.h"
#include "map/image.h"

typedef struct SnapshotStore {
    char *path;
    int fd;              /* -1: closed */
    Loop loop;           /* the kernel's part */
    uint32_t chunk;      /* bytes */
    uint64_t size;       /* bytes of the kernel's part that have space on the host */
    uint64_t size_limit; /* more is never needed */
    bool created;        /* there was none before */
} SnapshotStore;

/* Makes the store of the image at path, or opens the one that is there, which must be of this image
 * and this very state of it, and puts it on a loop device. chunk: for a new one; 0: chosen by the
 * size of the disk. */
bool snapshot_store_open(SnapshotStore *store, const char *path, Image *image, uint32_t chunk,
                         GError **error);

/* The one that the kernel is using already, on this loop device. An image that was changed
 * meanwhile is told in the log: who uses the device reads wrong data, but what he wrote stays. */
bool snapshot_store_adopt(SnapshotStore *store, const char *path, Image *image, dev_t device,
                          GError **error);

/* Makes it wanted bytes large (at most size_limit), or as large as the host has space for; never
 * smaller. 0; -ENOSPC: the host had no space for all of it, perhaps for none; or another -errno. */
int snapshot_store_grow(SnapshotStore *store, uint64_t wanted);

/* All that the kernel has written is durable. 0 or -errno. */
int snapshot_store_sync(SnapshotStore *store);

/* remove: takes a new store away again, for nothing has used it. The loop device ends, and with it
 * the lock, when the kernel does not use it either. */
void snapshot_store_close(SnapshotStore *store, bool remove);

/* The size of chunks for a disk of this size. Pure. */
uint32_t snapshot_store_chunk(uint64_t disk_size);

#endif
