/*
 * READ: map, then move what is in memory at once and the rest without waiting. CACHE: READs whose
 * bytes nobody wants.
 *
 * A range of more than MAP_PART_MAX extents is done part by part.
 */
#include <string.h>

#include "base/bytes.h"
#include "engine/disk-impl.h"
#include "engine/transfer.h"

static void read_next_part(Request *request);

/* Holes are left to the submitter only when one list tells all of the request. */
static bool leaves_holes(const Request *request)
{
    return (request->flags & REQUEST_HOLES_OK) && request->progress == 0 &&
           request->extents.count > 0 &&
           extent_list_end(&request->extents) == request->offset + request->length;
}

static void read_part_done(Request *request, int result)
{
    disk_release(request_disk(request), request);
    bool holes = leaves_holes(request);
    if (request->extents.count > 0) {
        request->progress = extent_list_end(&request->extents) - request->offset;
    }
    if (result < 0 || request->progress == request->length) {
        if (!holes || result < 0) {
            extent_list_reset(&request->extents);
        }
        request_complete(request, result);
    } else {
        request_resume(request, read_next_part); /* a turn later: others first, and no recursion */
    }
}

/* Moves extents from index on that are not in memory. */
static void read_rest(Request *request, unsigned index, bool holes)
{
    Transfer *transfer = transfer_new(request_disk(request), request, read_part_done);
    for (unsigned i = index; i < request->extents.count; i++) {
        const Extent *extent = &request->extents.items[i];
        if (!(holes && extent_is_zero(extent))) {
            transfer_read(transfer, extent, request->buffer + (extent->offset - request->offset));
        }
    }
    transfer_start(transfer);
}

static void read_mapped(Request *request)
{
    if (request->result < 0) {
        read_part_done(request, request->result);
        return;
    }
    bool holes = leaves_holes(request);
    for (unsigned i = 0; i < request->extents.count; i++) {
        const Extent *extent = &request->extents.items[i];
        if (holes && extent_is_zero(extent)) {
            continue;
        }
        uint8_t *out = request->buffer + (extent->offset - request->offset);
        int r = transfer_read_nowait(request_disk(request), extent, out);
        if (r == -EAGAIN) {
            read_rest(request, i, holes);
            return;
        }
        if (r < 0) {
            read_part_done(request, r);
            return;
        }
    }
    read_part_done(request, 0);
}

static void read_next_part(Request *request)
{
    map_start(request, request->offset + request->progress, request->length - request->progress,
              read_mapped);
}

void read_start(Request *request)
{
    read_next_part(request);
}

/* CACHE reads the range into memory that is thrown away, a step at a time. */
#define CACHE_STEP (1u << 20)

typedef struct Caching {
    Request read;
    Request *request;
    uint8_t *buffer;
} Caching;

static void cache_next_step(Request *request)
{
    Caching *caching = request->work;
    Request *read = &caching->read;
    read->offset = request->offset + request->progress;
    read->length = min_u64(request->length - request->progress, CACHE_STEP);
    node_submit(&request_disk(request)->node, read);
}

static void cache_step_done(Request *read)
{
    Caching *caching = (Caching *)((char *)read - offsetof(Caching, read));
    Request *request = caching->request;
    request->progress += read->length;
    request_clear(read);
    int result = read->result;
    if (result == 0 && request->progress < request->length) {
        request_resume(request, cache_next_step);
        return;
    }
    g_free(caching->buffer);
    g_free(caching);
    request_complete(request, result);
}

void cache_start(Request *request)
{
    Caching *caching = g_new(Caching, 1);
    caching->request = request;
    caching->buffer = g_malloc(CACHE_STEP);
    request_init(&caching->read);
    caching->read.type = REQUEST_READ;
    caching->read.flags = REQUEST_HOLES_OK;
    caching->read.worker = request->worker;
    caching->read.buffer = caching->buffer;
    caching->read.done = cache_step_done;
    request->work = caching;
    cache_next_step(request);
}
