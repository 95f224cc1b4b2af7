/*
 * What is counted of an export: requests, bytes, errors, connections.
 *
 * Each worker counts for itself, so that counting is an addition without a lock; whoever asks adds
 * the workers' counts up.
 */
#ifndef NBD_COUNTERS_H
#define NBD_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

#define NBD_COMMANDS 8 /* NbdCommand is below */

typedef _Atomic uint64_t NbdCounter;

typedef struct NbdCounters {
    NbdCounter requests[NBD_COMMANDS]; /* answered */
    NbdCounter bytes[NBD_COMMANDS];    /* of those answered without an error */
    NbdCounter errors;                 /* answered with an error, refused ones included */
    NbdCounter connects, disconnects;
} NbdCounters;

/* The same as plain numbers. */
typedef struct NbdCounts {
    uint64_t requests[NBD_COMMANDS], bytes[NBD_COMMANDS];
    uint64_t errors;
    uint64_t connections; /* in transmission now */
} NbdCounts;

/* Only the worker that owns the counter adds to it. [worker] */
static inline void nbd_count(NbdCounter *counter, uint64_t more)
{
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, now + more, memory_order_relaxed);
}

static inline uint64_t nbd_counted(const NbdCounter *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Adds a worker's counters to counts. [any] */
static inline void nbd_counters_add(const NbdCounters *counters, NbdCounts *counts)
{
    for (unsigned i = 0; i < NBD_COMMANDS; i++) {
        counts->requests[i] += nbd_counted(&counters->requests[i]);
        counts->bytes[i] += nbd_counted(&counters->bytes[i]);
    }
    counts->errors += nbd_counted(&counters->errors);
    uint64_t gone = nbd_counted(&counters->disconnects); /* before connects: never below 0 */
    counts->connections += nbd_counted(&counters->connects) - gone;
}

#endif
