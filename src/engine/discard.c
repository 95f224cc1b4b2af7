/*
 * TRIM and WRITE ZEROES.
 *
 * Whole units inside the range are unmapped by the format, a step at a time so that other requests
 * get between. TRIM is advice: what is left over stays. WRITE ZEROES must be true: edges, and all
 * of it where the format cannot, are written as zeroes by child WRITEs, except where the disk reads
 * as zero already.
 *
 *      unmap inner units ──> edges as zero WRITEs ──> complete
 *            │ -ENOTSUP
 *            └─> all of the range as zero WRITEs ──> complete       (FAST_ZERO: -ENOTSUP)
 */
#include <string.h>

#include "base/bytes.h"
#include "engine/change.h"

/* Units that one step unmaps: at 8 bytes each, 64 metadata blocks. */
#define STEP_UNITS 32768

/* Bytes of one zero WRITE. The memory behind it is the kernel's zero page until somebody writes,
 * and nobody does. */
#define ZERO_STEP (1u << 20)
static uint8_t zero_bytes[ZERO_STEP];

typedef struct Discard {
    uint64_t at, end; /* inner units not unmapped yet */
    struct {
        uint64_t at, end;
    } write[2]; /* ranges to write as zeroes */
    Change *change;
    Request child;
    Request *request;
} Discard;

static void discard_end(Request *request, int result)
{
    Discard *discard = request->work;
    request->work = NULL;
    request_clear(&discard->child);
    g_free(discard);
    request_complete_changed(request, result);
}

static void write_zeroes(Discard *discard);

static void write_more_zeroes(Request *request)
{
    write_zeroes(request->work);
}

static void zeroes_written(Request *child)
{
    Discard *discard = (Discard *)((char *)child - offsetof(Discard, child));
    if (child->result < 0) {
        discard_end(discard->request, child->result);
    } else {
        request_resume(discard->request, write_more_zeroes); /* a turn later: others first */
    }
}

static void write_zeroes(Discard *discard)
{
    unsigned i = discard->write[0].at < discard->write[0].end ? 0 : 1;
    if (discard->write[i].at >= discard->write[i].end) {
        discard_end(discard->request, 0);
        return;
    }
    Request *child = &discard->child;
    child->type = REQUEST_WRITE;
    child->flags = discard->request->flags & REQUEST_NO_HOLE ? 0 : REQUEST_ALL_ZERO;
    child->offset = discard->write[i].at;
    /* Cut at multiples of the step, so that no sector is written in two parts. */
    child->length =
        min_u64(ZERO_STEP - child->offset % ZERO_STEP, discard->write[i].end - child->offset);
    child->buffer = zero_bytes;
    child->worker = discard->request->worker;
    child->done = zeroes_written;
    discard->write[i].at += child->length;
    node_submit(&request_disk(discard->request)->node, child);
}

/* The format could not: everything is written, or nothing. */
static void unmap_refused(Discard *discard)
{
    Request *request = discard->request;
    if (request->type == REQUEST_TRIM) {
        discard_end(request, 0);
    } else if (request->flags & REQUEST_FAST_ZERO) {
        discard_end(request, -ENOTSUP);
    } else {
        discard->write[0].at = request->offset;
        discard->write[0].end = request->offset + request->length;
        discard->write[1].at = discard->write[1].end = 0;
        write_zeroes(discard);
    }
}

/* A step that is only a part of a larger unit, at one end of the range: trimmed it need not be, and zeroes can be written to
 * it alone. False: it is none. */
static bool part_refused(Discard *discard, uint64_t start, uint64_t end)
{
    const Request *request = discard->request;
    const Disk *disk = request_disk(request);
    uint64_t unit = disk->image->largest_unit;
    bool whole = start % unit == 0 && (end % unit == 0 || end == disk->node.size);
    if (whole || (request->flags & REQUEST_FAST_ZERO)) {
        return false;
    }
    if (request->type == REQUEST_ZERO && discard->write[0].end == start) {
        discard->write[0].end = end;
    } else if (request->type == REQUEST_ZERO) {
        discard->write[1].at = start;
    }
    return true;
}

static void unmap_step(Discard *discard);

static void step_unmapped(Request *request)
{
    Discard *discard = request->work;
    int result = discard->change->result;
    uint64_t start = discard->at;
    discard->at += discard->change->length;
    change_free(discard->change);
    disk_release(request_disk(request), request);
    if (result == -ENOTSUP && part_refused(discard, start, discard->at)) {
        result = 0;
    }
    if (result == -ENOTSUP) {
        unmap_refused(discard);
    } else if (result < 0) {
        discard_end(request, result);
    } else {
        unmap_step(discard);
    }
}

static void step_granted(Request *request)
{
    Discard *discard = request->work;
    Change *change = change_new(request, request->hold.offset, request->hold.length);
    if (request->type == REQUEST_ZERO) {
        change->unmap_flags = UNMAP_ZERO;
        if (request->flags & REQUEST_NO_HOLE) {
            change->unmap_flags |= UNMAP_KEEP_SPACE;
        }
    }
    discard->change = change;
    change_start(change, CHANGE_UNMAP, step_unmapped);
}

/* The end of a step: parts of larger units, at both ends of the range, are steps of their own. */
static uint64_t step_end(const Discard *discard)
{
    const Disk *disk = request_disk(discard->request);
    uint64_t unit = disk->image->allocation_unit, large = disk->image->largest_unit;
    uint64_t step = unit == 1 ? UINT64_MAX : unit * STEP_UNITS;
    uint64_t end = discard->at + min_u64(discard->end - discard->at, step);
    if (discard->at % large != 0) {
        return min_u64(end, align_up(discard->at, large));
    }
    bool to_the_end = end == disk->node.size || end - discard->at < large;
    return to_the_end ? end : align_down(end, large);
}

static void unmap_step(Discard *discard)
{
    Request *request = discard->request;
    if (discard->at == discard->end) {
        write_zeroes(discard);
        return;
    }
    change_acquire(request, discard->at, step_end(discard) - discard->at, step_granted);
}

/* Cuts the range into whole units (the last unit of the disk may be short) and what is left at both
 * ends. */
static void cut(Discard *discard, const Request *request, uint64_t unit, uint64_t size)
{
    uint64_t start = request->offset, end = start + request->length;
    uint64_t inner_start = start > size - (size & (unit - 1)) ? size : align_up(start, unit);
    uint64_t inner_end = end == size ? size : align_down(end, unit);
    if (inner_start >= inner_end) {
        discard->write[0].at = start;
        discard->write[0].end = end;
        return;
    }
    discard->at = inner_start;
    discard->end = inner_end;
    discard->write[0].at = start;
    discard->write[0].end = inner_start;
    discard->write[1].at = inner_end;
    discard->write[1].end = end;
}

void discard_start(Request *request)
{
    Disk *disk = request_disk(request);
    int refusal = disk_write_refusal(disk);
    uint64_t size = disk->node.size;
    if (refusal == 0 && !range_within(request->offset, request->length, size)) {
        refusal = request_past_the_end(request); /* the client knows a larger disk */
    }
    if (refusal < 0) {
        request_complete(request, refusal);
        return;
    }
    Discard *discard = g_new0(Discard, 1);
    discard->request = request;
    request_init(&discard->child);
    cut(discard, request, disk->image->allocation_unit, size);
    if (request->type == REQUEST_TRIM) {
        memset(discard->write, 0, sizeof discard->write);
    }
    request->work = discard;
    unmap_step(discard);
}
