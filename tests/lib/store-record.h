/*
 * A store in memory that records what is done to it: every write with its bytes, every punch,
 * change of size and sync, in one order. From the record a test builds the states that a disk could
 * hold after a power cut. An image of several files has a store for each; they share the record, its clock, its
 * options and faults, and a sync of one of them says nothing of the others.
 *
 * Time is a counter of ticks that the store and the test share (record_tick): whatever has the
 * smaller tick happened before. An operation has three: it began, it took effect in memory, it
 * ended. What the operation's caller can know of it is only that it ended; a sync makes durable
 * what had ended before the sync began.
 *
 * To reach the code that only slow disks reach, the store waits a little here and there, answers
 * -EAGAIN to calls that may not wait, and ends asynchronous transfers in another order. A FaultPlan
 * makes operations fail; a write that fails leaves some of its sectors behind.
 */
#ifndef TESTS_LIB_STORE_RECORD_H
#define TESTS_LIB_STORE_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/pool.h"
#include "store/store.h"
#include "tests/lib/store-fault.h"

#define RECORD_NEVER  UINT64_MAX
#define RECORD_SECTOR 512u /* what a disk writes whole or not at all */

typedef enum {
    RECORD_WRITE,
    RECORD_PUNCH,
    RECORD_TRUNCATE,
    RECORD_REPLACE,
    RECORD_SYNC
} RecordKind;

typedef struct RecordEntry {
    RecordKind kind;
    unsigned file; /* 0: the first store of the record */
    uint64_t begin, tick,
        end;                 /* tick: took effect; end: RECORD_NEVER when it failed or still runs */
    uint64_t offset, length; /* TRUNCATE, REPLACE: length is the new size */
    uint8_t *data;           /* WRITE, REPLACE: length bytes */
} RecordEntry;

typedef struct RecordOptions {
    Pool *pool; /* runs asynchronous transfers */
    uint64_t seed;
    unsigned eagain_percent; /* how many nowait calls answer -EAGAIN */
    unsigned delay_percent;  /* how many of the others wait a little */
    unsigned delay_max_us;
    uint64_t capacity; /* a full disk: all files together cannot grow beyond it; 0: they can */
    bool no_punch;     /* the host cannot punch: freed space keeps its old bytes */
    bool discard;      /* keep no record: for runs that only want the faults */
    FaultPlan *faults; /* may be NULL */
    /* Mutations that prove the tests: a sync whose number (from 1) this function picks does
     * nothing, though it says that it did. NULL: every sync is honest. */
    bool (*sync_is_lie)(uint64_t number);
} RecordOptions;

/* Copies the first size bytes as the content. [main] */
Store *store_record_new(const char *name, const uint8_t *content, uint64_t size,
                        const RecordOptions *options);

/* Another file of the image that has `first`, numbered in the order of the calls; nothing was done to them yet. */
Store *store_record_beside(Store *first, const char *name, const uint8_t *content, uint64_t size);

/* The next tick. [any] */
uint64_t record_tick(Store *store);

/* Every operation has ended: the entries, in the order in which they took effect. Valid until the
 * last store of the record is closed. */
const RecordEntry *record_entries(Store *store, size_t *count);

/* Every operation has ended: what a reader would see. Valid until the next operation. */
const uint8_t *record_content(Store *store, uint64_t *size);

#endif
