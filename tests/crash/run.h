/*
 * A run: seeded random requests on a disk, several at once from several workers, on a recording
 * store.
 */
#ifndef TESTS_CRASH_RUN_H
#define TESTS_CRASH_RUN_H

#include <stdbool.h>
#include <stdint.h>

#include "fixture.h"
#include "model.h"
#include "tests/lib/store-record.h"

typedef struct RunOptions {
    uint64_t seed;
    unsigned requests;
    unsigned depth_max; /* requests in flight a worker, 1 to this; 0: 8 */
    bool one_worker;
    bool promise_nothing;      /* the model forgets that FLUSH and FUA were answered: only the order
                               counts */
    RecordOptions record;      /* pool is filled in */
    const ImageBytes *content; /* the image at the start; NULL: the fixture's new one */
    const uint32_t *values;    /* and the cells of its disk */
    uint32_t first_value;      /* of the writes; 0: VALUE_FIRST */
} RunOptions;

typedef struct Run {
    ImageFiles files; /* of the record */
    Store *store;     /* the first of them */
    Model *model;     /* finished */
    bool opened;      /* false only with faults */
    int close_result;
    unsigned failed; /* requests */
    uint32_t next_value;
    uint64_t close_tick; /* when disk_close had returned */
} Run;

/* Runs, checks the READs, closes the disk. */
Run *run_new(const Fixture *fixture, Machine *machine, const RunOptions *options,
             Findings *findings);
void run_free(Run *run);

#endif
