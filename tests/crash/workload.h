/*
 * The requests of a run: seeded, with hot spots so that clusters are freed and used again soon.
 */
#ifndef TESTS_CRASH_WORKLOAD_H
#define TESTS_CRASH_WORKLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/request.h"
#include "tests/lib/random.h"

typedef struct Workload {
    Random random;
    uint64_t disk_size;
    unsigned unit; /* the cluster size */
    uint64_t hot[4];
    uint64_t append; /* where growing goes on */
    unsigned mood;   /* which kind of request is frequent now */
    unsigned mood_left;
    bool resizes; /* set after workload_init: some requests are RESIZEs */
} Workload;

typedef struct WorkloadRequest {
    RequestType type;
    unsigned flags;
    uint64_t offset, length; /* RESIZE: what the disk loses, until it gets its size back */
} WorkloadRequest;

void workload_init(Workload *workload, uint64_t seed, uint64_t disk_size, unsigned unit);
WorkloadRequest workload_next(Workload *workload);

#endif
