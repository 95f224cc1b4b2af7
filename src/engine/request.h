/*
 * A request: one READ, WRITE, FLUSH, TRIM, WRITE ZEROES, CACHE, block status or
 * RESIZE in flight.
 *
 *      fill in the public part -> node_submit -> ... -> done(request), once, on the same worker
 *
 * done may be called inside node_submit (the fast path) or later. The submitter owns request and
 * buffer; both must stay until done. The engine owns the engine part from submit to done.
 */
#ifndef ENGINE_REQUEST_H
#define ENGINE_REQUEST_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/worker.h"
#include "engine/gate.h"
#include "engine/rangelock.h"
#include "map/extent.h"

typedef enum {
    REQUEST_READ,
    REQUEST_WRITE,
    REQUEST_FLUSH,
    REQUEST_TRIM,
    REQUEST_ZERO,
    REQUEST_CACHE,
    REQUEST_STATUS,
    REQUEST_RECLAIM,  /* units whose host space is all hole become holes of the image; nothing reads
                        differently after it */
    REQUEST_RESIZE,   /* the disk becomes `length` bytes long, durably; offset is 0 */
    REQUEST_SNAPSHOT, /* an internal snapshot is made or deleted: by disk_snapshot alone */
} RequestType;

typedef enum {
    REQUEST_FUA = 1 << 0,       /* durable before it is answered */
    REQUEST_NO_HOLE = 1 << 1,   /* ZERO: keep or make the space allocated */
    REQUEST_FAST_ZERO = 1 << 2, /* ZERO: -ENOTSUP rather than writing zeroes */
    REQUEST_HOLES_OK =
        1 << 3, /* READ: extents says which parts are zero, their buffer need not be filled */
    REQUEST_ONE = 1 << 4, /* STATUS: one extent is enough */
    REQUEST_ALL_ZERO =
        1 << 5, /* WRITE: the payload is zeroes; parts that read as zeroes are left alone */
    REQUEST_MAY_SHRINK = 1 << 6, /* RESIZE: what the disk loses may be lost; else -EPERM */
    REQUEST_MAY_BLOCK =
        1 << 7, /* WRITE: nobody else needs its worker meanwhile, which may wait for files, then */
} RequestFlags;

typedef struct Request Request;

struct Request {
    RequestType type;
    unsigned flags;  /* RequestFlags */
    uint64_t offset; /* bytes; the range lies inside the disk (checked by the submitter) */
    uint64_t length;
    uint8_t *buffer; /* READ: to fill; WRITE: payload; else NULL */
    Worker *worker;  /* on which it was submitted */
    void (*done)(Request *request);

    int result; /* 0 or a negative errno, valid in done */
    /* STATUS: the answer, which begins at offset and may end early. READ with HOLES_OK: the map of
     * the range, whose zero extents were not written to buffer; empty: the whole buffer is filled.
     * Valid in done; cleared by request_clear. */
    ExtentList extents;
    GError **why; /* RESIZE, SNAPSHOT: where the reason of a failure goes; may be NULL */

    /* the engine's */
    void *node;                       /* the disk */
    void (*mapped)(Request *request); /* what goes on when the map is there */
    void (*resume)(Request *request); /* what goes on when the message below arrives */
    WorkerMessage message;
    GateJob job;
    RangeHold hold;
    struct Request *next; /* in a queue of the disk */
    uint64_t progress;    /* bytes that are done */
    void *work;           /* what a request that left the fast path needs more */
};

void request_init(Request *request); /* once, before the first use */
void request_clear(
    Request *request); /* after done, before the next use or the end: frees what extents hold */

#endif
