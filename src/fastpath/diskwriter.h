/*
 * Writes to a disk from a thread that may block, with some requests in flight: for tools.
 *
 *      disk_writer_slot -> fill in slot->buffer -> disk_writer_submit, again and again
 *      disk_writer_flush                              waits for all, and makes it durable
 *
 * One thread uses a writer; the worker and the pool are the engine's for as long. Ranges of
 * requests that are in flight together must not overlap.
 */
#ifndef FASTPATH_DISKWRITER_H
#define FASTPATH_DISKWRITER_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/worker.h"
#include "engine/disk.h"

#define DISK_WRITER_SLOTS 8

typedef struct DiskWriter DiskWriter;

/* One request and its memory. */
typedef struct DiskWriterSlot {
    Request request; /* first: done gets it */
    WorkerMessage start;
    DiskWriter *writer;
    uint8_t *buffer; /* the slot size long */
    bool busy;       /* the writer's lock */
} DiskWriterSlot;

struct DiskWriter {
    Disk *disk;
    Worker *worker;
    DiskWriterSlot slots[DISK_WRITER_SLOTS];
    pthread_mutex_t lock;
    pthread_cond_t freed;
    int result; /* the first error; lock */
};

/* image: open for writing. slot_size: bytes of the longest request. */
void disk_writer_init(DiskWriter *writer, Image *image, Pool *pool, Worker *worker,
                      uint32_t slot_size);

/* Ends the disk in order. 0 or -errno: only after 0 is everything in the image for good. */
int disk_writer_clear(DiskWriter *writer);

/* A slot that is free; waits. NULL when a request has failed. */
DiskWriterSlot *disk_writer_slot(DiskWriter *writer);

/* type: WRITE (of slot->buffer) or ZERO. */
void disk_writer_submit(DiskWriter *writer, DiskWriterSlot *slot, RequestType type, uint64_t offset,
                        uint64_t length);

/* 0, or the first error of any request so far. */
int disk_writer_flush(DiskWriter *writer);

#endif
