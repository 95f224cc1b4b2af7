/*
 * A writer hands its slots to the worker by messages and waits for them under one lock.
 *
 * What must stay true: a slot is busy from submit until its request is done, and only a slot that is
 * not busy is filled in. The first error stays, and no slot is given out after it.
 */
#include "fastpath/diskwriter.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "formats/format.h"

static void request_done(Request *request)
{
    DiskWriterSlot *slot = (DiskWriterSlot *)request;
    DiskWriter *writer = slot->writer;
    int result = request->result;
    request_clear(request);
    with_mutex(&writer->lock);
    if (result < 0 && writer->result == 0) {
        writer->result = result;
    }
    slot->busy = false;
    pthread_cond_signal(&writer->freed);
}

/* [worker] */
static void start_run(WorkerMessage *message)
{
    DiskWriterSlot *slot = (DiskWriterSlot *)((char *)message - offsetof(DiskWriterSlot, start));
    node_submit(disk_node(slot->writer->disk), &slot->request);
}

static DiskWriterSlot *find_free(DiskWriter *writer)
{
    for (unsigned i = 0; i < DISK_WRITER_SLOTS; i++) {
        if (!writer->slots[i].busy) {
            return &writer->slots[i];
        }
    }
    return NULL;
}

DiskWriterSlot *disk_writer_slot(DiskWriter *writer)
{
    with_mutex(&writer->lock);
    DiskWriterSlot *slot;
    while (!(slot = find_free(writer)) && writer->result == 0) {
        pthread_cond_wait(&writer->freed, &writer->lock);
    }
    return writer->result == 0 ? slot : NULL;
}

void disk_writer_submit(DiskWriter *writer, DiskWriterSlot *slot, RequestType type, uint64_t offset,
                        uint64_t length)
{
    slot->request.type = type;
    slot->request.flags = 0;
    slot->request.offset = offset;
    slot->request.length = length;
    slot->request.buffer = type == REQUEST_WRITE ? slot->buffer : NULL;
    slot->request.worker = writer->worker;
    slot->request.done = request_done;
    slot->start.run = start_run;
    {
        with_mutex(&writer->lock);
        slot->busy = true;
    }
    worker_post(writer->worker, &slot->start);
}

static bool any_busy(const DiskWriter *writer)
{
    for (unsigned i = 0; i < DISK_WRITER_SLOTS; i++) {
        if (writer->slots[i].busy) {
            return true;
        }
    }
    return false;
}

/* Waits for all requests; the first error or 0. */
static int drain(DiskWriter *writer)
{
    with_mutex(&writer->lock);
    while (any_busy(writer)) {
        pthread_cond_wait(&writer->freed, &writer->lock);
    }
    return writer->result;
}

int disk_writer_flush(DiskWriter *writer)
{
    int r = drain(writer);
    if (r < 0) {
        return r;
    }
    disk_writer_submit(writer, &writer->slots[0], REQUEST_FLUSH, 0, 0);
    return drain(writer);
}

void disk_writer_init(DiskWriter *writer, Image *image, Pool *pool, Worker *worker,
                      uint32_t slot_size)
{
    /* What is written must not become another format by that. */
    bool guard = image->format_guessed && strcmp(image->format->name, "raw") == 0;
    *writer = (DiskWriter){.disk = disk_new(image, pool, guard), .worker = worker};
    pthread_mutex_init(&writer->lock, NULL);
    pthread_cond_init(&writer->freed, NULL);
    for (unsigned i = 0; i < DISK_WRITER_SLOTS; i++) {
        DiskWriterSlot *slot = &writer->slots[i];
        request_init(&slot->request);
        slot->writer = writer;
        if (posix_memalign((void **)&slot->buffer, 4096, slot_size) != 0) {
            abort(); /* as GLib does when memory is gone */
        }
    }
}

int disk_writer_clear(DiskWriter *writer)
{
    drain(writer);
    int r = disk_close(writer->disk);
    for (unsigned i = 0; i < DISK_WRITER_SLOTS; i++) {
        free(writer->slots[i].buffer);
    }
    pthread_cond_destroy(&writer->freed);
    pthread_mutex_destroy(&writer->lock);
    return r;
}
