/*
 * A plan of faults: which operation of a store fails, and how. The recording store asks it before
 * each operation.
 *
 * Operations of one kind are counted from 1 on. A plan with at == 0 fails nothing and only counts,
 * which is how a test learns how many operations a fixed run has.
 */
#ifndef TESTS_LIB_STORE_FAULT_H
#define TESTS_LIB_STORE_FAULT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/lib/random.h"

typedef enum {
    FAULT_READ,
    FAULT_WRITE,
    FAULT_SYNC,
    FAULT_PUNCH,
    FAULT_TRUNCATE,
} FaultKind;
#define FAULT_KINDS 5

typedef struct FaultPlan {
    FaultKind kind;
    uint64_t at;      /* the at-th operation of this kind fails; 0: none does */
    bool forever;     /* and every later one */
    int error;        /* a negative errno */
    unsigned percent; /* instead of `at`: so many of the operations of this kind fail, at random */

    pthread_mutex_t lock;
    uint64_t counts[FAULT_KINDS];
    int sync_error; /* a failed sync stays failed, as store_sync says */
    uint64_t fired;
    Random random;
} FaultPlan;

void fault_plan_init(FaultPlan *plan, FaultKind kind, uint64_t at, bool forever, int error);
/* A plan of random faults. */
void fault_plan_init_random(FaultPlan *plan, FaultKind kind, unsigned percent, int error,
                            uint64_t seed);
void fault_plan_clear(FaultPlan *plan);

/* Counts one operation; 0, or the negative errno with which it must fail. plan may be NULL. [any] */
int fault_plan_check(FaultPlan *plan, FaultKind kind);

const char *fault_kind_name(FaultKind kind);

#endif
