/*
 * Discards: what the kernel throws away in a line becomes a hole of the host file, under a table of
 * the image that still says "data". It reads as zeroes, as it should; but the image does not know
 * that it has the space back.
 *
 *      the device has counted discards ──> holes below the runs ──> their lines go out (one round)
 *           ──> RECLAIM of each: the engine looks again, with the range to itself, and unmaps
 *
 * The first look is only a hint: it finds what is worth asking for. Of an image that was made with
 * its space allocated, parts that were never written are holes, too; they are given back with what
 * was discarded.
 */
#include "fastpath/linear-impl.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "engine/request-call.h"
#include "store/store.h"

#define HOLES_MAX 4096 /* ranges; neighbours are joined beyond that */

bool linear_saw_discards(Linear *linear)
{
    bool seen = false;
    for (unsigned i = 0; i < linear->files->len; i++) {
        LinearFile *file = linear->files->pdata[i];
        if (!file->refused && file->loop.is_loop) {
            int64_t discards = loop_discards(&file->loop);
            seen = seen || discards != file->discards;
            file->discards = discards;
        }
    }
    return seen;
}

static void find_holes(const DmRun *run, uint64_t unit, RangeSet *holes)
{
    for (uint64_t done = 0, length; done < run->length; done += length) {
        bool data;
        length = run->length - done;
        if (store_next_data(run->store, run->host_offset + done, length, &data, &length) < 0) {
            return;
        }
        uint64_t start = align_up(run->start + done, unit);
        uint64_t end = align_down(run->start + done + length, unit);
        if (!data && start < end) {
            rangeset_add(holes, start, end - start);
        }
    }
}

static int reclaim_range(const Linear *linear, uint64_t offset, uint64_t length)
{
    RequestCall call;
    request_call_init(&call, disk_node(linear->disk), linear->worker);
    call.request.type = REQUEST_RECLAIM;
    call.request.offset = offset;
    call.request.length = length;
    int r = request_call(&call);
    request_call_clear(&call);
    return r;
}

static void reclaim_all(Linear *linear, const RangeSet *holes)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < holes->count; i++) {
        int r = reclaim_range(linear, holes->items[i].offset, holes->items[i].length);
        if (r < 0) {
            log_limited(LOG_LEVEL_WARNING, "%s: discarded space stays allocated: %s", linear->name,
                        g_strerror(-r));
            break;
        }
        bytes += holes->items[i].length;
        if (linear->has_leases &&
            lease_wanted(linear->disk)) { /* others do not wait for all this */
            linear_give_back(linear, NULL, NULL);
        }
    }
    with_mutex(&linear->lock);
    linear->stats.reclaimed_bytes += bytes;
}

void linear_reclaim(Linear *linear, const DmTable *table)
{
    g_autoptr(GError) error = NULL;
    RangeSet holes = {.limit = HOLES_MAX};
    uint64_t unit = lease_unit(linear->disk);
    if (linear->fixed || unit == 1) { /* of a raw image the holes are the record */
        return;
    }
    for (unsigned i = 0; i < table->count; i++) {
        find_holes(&table->runs[i], unit, &holes);
    }
    bool ready = holes.count > 0;
    if (ready && linear->worker == NULL) {
        linear->worker = worker_new(0, &error);
        ready = linear->worker != NULL;
    }
    if (ready && linear->has_leases) {
        ready = linear_give_back(linear, &holes, &error);
    }
    if (error != NULL) {
        log_limited(LOG_LEVEL_WARNING, "%s", error->message);
    }
    if (ready) {
        reclaim_all(linear, &holes);
    }
    rangeset_clear(&holes);
}
