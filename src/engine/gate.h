/*
 * The gate: admits jobs that use an image's metadata to the pool.
 *
 *                  beside SHARED   beside WRITEBACK   beside EXCLUSIVE
 *     SHARED            yes              yes                no           map
 *     WRITEBACK         yes              no                 no           flush: changes no table
 *     EXCLUSIVE         no               no                 no           allocate, commit, unmap
 *
 * The job waits, never a thread (which may try, and be inside or not). Admission is in the order of arrival.
 */
#ifndef ENGINE_GATE_H
#define ENGINE_GATE_H

#include <pthread.h>
#include <stdbool.h>

#include "base/pool.h"

typedef enum { GATE_SHARED, GATE_WRITEBACK, GATE_EXCLUSIVE } GateMode;

typedef struct GateJob GateJob;
struct GateJob {
    /* Runs in the pool once admitted; calls gate_leave when it is done with metadata. */
    PoolJob job;
    GateMode mode;
    GateJob *next;
};

typedef struct Gate {
    pthread_mutex_t lock;
    Pool *pool;
    unsigned inside[3]; /* by mode */
    GateJob *first, **last;
} Gate;

void gate_init(Gate *gate, Pool *pool);
void gate_destroy(Gate *gate);

/* Submits job->job to the pool as soon as the gate admits it. [any] */
void gate_enter(Gate *gate, GateJob *job, GateMode mode);

/* True: the caller is inside, as a job of that mode would be that had entered. False: it would have to wait; nothing was
 * done. [any] */
bool gate_try_enter(Gate *gate, GateMode mode);

/* [any] The mode with which the job entered. */
void gate_leave(Gate *gate, GateMode mode);

#endif
