/*
 * What is counted, sorted: how long requests took, which errors there were.
 *
 * The bounds of the times are round numbers of seconds, three a decade, as monitoring systems draw them.
 */
#include "nbd/counters.h"

#include <glib.h>

#include "nbd/nbd-wire.h"

const uint64_t nbd_latency_bounds[NBD_LATENCY_BOUNDS] = {
    10000,     25000,      50000,      100000,     250000,     500000,    1000000,
    2500000,   5000000,    10000000,   25000000,   50000000,   100000000, 250000000,
    500000000, 1000000000, 2500000000, 5000000000, 10000000000};

void nbd_count_latency(NbdCounters *counters, unsigned command, uint64_t nanoseconds)
{
    unsigned bucket = 0;
    while (bucket < NBD_LATENCY_BOUNDS && nanoseconds > nbd_latency_bounds[bucket]) {
        bucket++;
    }
    nbd_count(&counters->latency[command].buckets[bucket], 1);
    nbd_count(&counters->latency[command].nanoseconds, nanoseconds);
}

static const struct {
    uint32_t error;
    const char *name;
} kinds[NBD_ERROR_KINDS] = {
    [NBD_KIND_EPERM] = {NBD_EPERM, "EPERM"},
    [NBD_KIND_EIO] = {NBD_EIO, "EIO"},
    [NBD_KIND_ENOMEM] = {NBD_ENOMEM, "ENOMEM"},
    [NBD_KIND_EINVAL] = {NBD_EINVAL, "EINVAL"},
    [NBD_KIND_ENOSPC] = {NBD_ENOSPC, "ENOSPC"},
    [NBD_KIND_EOVERFLOW] = {NBD_EOVERFLOW, "EOVERFLOW"},
    [NBD_KIND_ENOTSUP] = {NBD_ENOTSUP, "ENOTSUP"},
    [NBD_KIND_ESHUTDOWN] = {NBD_ESHUTDOWN, "ESHUTDOWN"},
};

const char *nbd_error_kind_name(NbdErrorKind kind)
{
    return kinds[kind].name;
}

void nbd_count_error(NbdCounters *counters, uint32_t error)
{
    NbdErrorKind kind = 0;
    while (kind < NBD_ERROR_KINDS && kinds[kind].error != error) {
        kind++;
    }
    g_assert(kind < NBD_ERROR_KINDS);
    nbd_count(&counters->errors, 1);
    nbd_count(&counters->errors_by_kind[kind], 1);
}

void nbd_counts_add(NbdCounts *counts, const NbdCounts *more)
{
    for (unsigned i = 0; i < NBD_COMMANDS; i++) {
        counts->requests[i] += more->requests[i];
        counts->bytes[i] += more->bytes[i];
        counts->latency[i].nanoseconds += more->latency[i].nanoseconds;
        for (unsigned j = 0; j <= NBD_LATENCY_BOUNDS; j++) {
            counts->latency[i].buckets[j] += more->latency[i].buckets[j];
        }
    }
    for (unsigned i = 0; i < NBD_ERROR_KINDS; i++) {
        counts->errors_by_kind[i] += more->errors_by_kind[i];
    }
    counts->errors += more->errors;
    counts->in_flight += more->in_flight;
    counts->connections += more->connections;
}

/* The numbers of one worker. */
static void read_counters(const NbdCounters *counters, NbdCounts *counts)
{
    uint64_t ended = 0;
    for (unsigned i = 0; i < NBD_COMMANDS; i++) {
        counts->requests[i] = nbd_counted(&counters->requests[i]);
        counts->bytes[i] = nbd_counted(&counters->bytes[i]);
        counts->latency[i].nanoseconds = nbd_counted(&counters->latency[i].nanoseconds);
        for (unsigned j = 0; j <= NBD_LATENCY_BOUNDS; j++) {
            counts->latency[i].buckets[j] = nbd_counted(&counters->latency[i].buckets[j]);
        }
        ended += counts->requests[i];
    }
    for (unsigned i = 0; i < NBD_ERROR_KINDS; i++) {
        counts->errors_by_kind[i] = nbd_counted(&counters->errors_by_kind[i]);
    }
    counts->errors = nbd_counted(&counters->errors);
    /* What ended or went is read before what began or came: never below 0. */
    counts->in_flight = nbd_counted(&counters->begun) - ended;
    uint64_t gone = nbd_counted(&counters->disconnects);
    counts->connections = nbd_counted(&counters->connects) - gone;
}

void nbd_counters_add(const NbdCounters *counters, NbdCounts *counts)
{
    NbdCounts own;
    read_counters(counters, &own);
    nbd_counts_add(counts, &own);
}
