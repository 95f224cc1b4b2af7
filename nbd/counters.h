/*
 * What is counted of an export: requests, bytes, errors, connections, and how long requests took.
 *
 * Each worker counts for itself, so that counting is an addition without a lock; whoever asks adds
 * the workers' counts up.
 */
#ifndef NBD_COUNTERS_H
#define NBD_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#define NBD_COMMANDS       9 /* NbdCommand is below */
#define NBD_LATENCY_BOUNDS 19

typedef enum {
    NBD_KIND_EPERM,
    NBD_KIND_EIO,
    NBD_KIND_ENOMEM,
    NBD_KIND_EINVAL,
    NBD_KIND_ENOSPC,
    NBD_KIND_EOVERFLOW,
    NBD_KIND_ENOTSUP,
    NBD_KIND_ESHUTDOWN,
    NBD_ERROR_KINDS
} NbdErrorKind;

typedef _Atomic uint64_t NbdCounter;

/* From the moment when a request was there whole to the one when its reply was given to the socket. */
typedef struct NbdLatencyCounters {
    NbdCounter nanoseconds;
    NbdCounter buckets[NBD_LATENCY_BOUNDS + 1]; /* the last one: longer than every bound */
} NbdLatencyCounters;

typedef struct NbdCounters {
    NbdCounter requests[NBD_COMMANDS]; /* answered */
    NbdCounter bytes[NBD_COMMANDS];    /* of those answered without an error */
    NbdCounter begun;                  /* given to the node; those of requests came back */
    NbdCounter errors;                 /* answered with an error, refused ones included */
    NbdCounter errors_by_kind[NBD_ERROR_KINDS];
    NbdCounter connects, disconnects;
    NbdLatencyCounters latency[NBD_COMMANDS];
} NbdCounters;

/* The same as plain numbers. */
typedef struct NbdLatency {
    uint64_t nanoseconds;
    uint64_t buckets[NBD_LATENCY_BOUNDS + 1];
} NbdLatency;

typedef struct NbdCounts {
    uint64_t requests[NBD_COMMANDS], bytes[NBD_COMMANDS];
    uint64_t errors, errors_by_kind[NBD_ERROR_KINDS];
    uint64_t in_flight;   /* with the node now */
    uint64_t connections; /* in transmission now */
    NbdLatency latency[NBD_COMMANDS];
} NbdCounts;

/* The longest time of each bucket but the last, in nanoseconds. */
extern const uint64_t nbd_latency_bounds[NBD_LATENCY_BOUNDS];

/* Only the worker that owns the counter adds to it. Who sees a count sees those made before it.
 * [worker] */
static inline void nbd_count(NbdCounter *counter, uint64_t more)
{
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, now + more, memory_order_release);
}

static inline uint64_t nbd_counted(const NbdCounter *counter)
{
    return atomic_load_explicit(counter, memory_order_acquire);
}

#define NBD_SECOND UINT64_C(1000000000)

/* The clock of latencies and of patience, in nanoseconds. [any] */
static inline uint64_t nbd_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NBD_SECOND + now.tv_nsec;
}

void nbd_count_latency(NbdCounters *counters, unsigned command,
                       uint64_t nanoseconds); /* [worker] */

/* error: NBD_E*. [worker] */
void nbd_count_error(NbdCounters *counters, uint32_t error);

/* "EPERM". */
const char *nbd_error_kind_name(NbdErrorKind kind);

/* Adds more to counts. */
void nbd_counts_add(NbdCounts *counts, const NbdCounts *more);

/* Adds a worker's counters to counts. [any] */
void nbd_counters_add(const NbdCounters *counters, NbdCounts *counts);

#endif
