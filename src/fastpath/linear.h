/*
 * The fast path `linear`: a device-mapper device in which what the image has allocated lies directly
 * on its host files (through loop devices), and all the rest on /dev/nbdN, that is, on this server.
 *
 *     /dev/mapper/NAME   [ linear loop0 | linear nbd3 | linear loop0 | linear loop1 | linear nbd3 ]
 *
 * A thread of its own for each device follows the image: newly allocated bytes become lines from
 * time to time, lines are taken out at once when the server must change what they map.
 *
 * Calls block; from one thread at a time, which is no worker and none of the pool's, except
 * linear_get_stats [any].
 */
#ifndef FASTPATH_LINEAR_H
#define FASTPATH_LINEAR_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/disk.h"

typedef struct Linear Linear;

#define LINEAR_LINES_DEFAULT 1000

typedef struct LinearOptions {
    const char *nbd_device; /* "/dev/nbd3": connected to this disk, its size known; with adopt: may
                               still be without a server, and nothing is read or written there */
    const char *name;       /* of the device-mapper device */
    const char *uuid;       /* its UUID: by it the device is known as ours */
    unsigned lines_max;     /* lines of the table at most; 0: LINEAR_LINES_DEFAULT */
    bool read_only;         /* the device refuses writes */
    bool adopt;             /* the device is there, made by an earlier server: take it over */
} LinearOptions;

typedef struct LinearStats {
    uint64_t reloads, failed_reloads, recalls;
    uint64_t suspended_us, suspended_max_us; /* time that the device stood still, sum and longest */
    uint64_t lines;                          /* of the table */
    uint64_t mapped_bytes, size;             /* bytes in lines that need no server; all */
    uint64_t io_bytes, io_nbd_bytes;         /* moved by the device; those through this server */
    uint64_t reclaimed_bytes;                /* discarded by the kernel, given back to the image */
} LinearStats;

/* Makes (or adopts) the device. Ready when it returns: the node is there and can be opened. Adopting
 * checks every line against the image before it returns, so it has to be done before the first
 * request is made of the disk; wrong lines are taken out, logged. The strings are copied. NULL with
 * *error. */
Linear *linear_new(Disk *disk, const LinearOptions *options, GError **error);

const char *linear_device(const Linear *linear); /* "/dev/mapper/NAME" [any] */
void linear_get_stats(Linear *linear, LinearStats *stats);

/* The image and then the nbd device have another size: the device follows. */
bool linear_resized(Linear *linear, GError **error);

/* Removes the device, gives discarded space back to the image, and frees linear. False with *error
 * (EBUSY: the device is open) when the device stays; it then works on, and linear stays. /dev/nbdN
 * must be served until this has returned. */
bool linear_stop(Linear *linear, GError **error);

/* Frees linear and leaves the device as it is, for the next server to adopt. No request is made of
 * the disk any more. */
void linear_leave(Linear *linear);

#endif
