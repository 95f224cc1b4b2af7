/*
 * For tests with threads: a count that goes down, and a wait until it is 0. A minute is the limit:
 * then something that should have happened did not.
 */
#ifndef TESTS_UNIT_LATCH_H
#define TESTS_UNIT_LATCH_H

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct Latch {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned count;
} Latch;

static inline void latch_init(Latch *latch, unsigned count)
{
    pthread_mutex_init(&latch->lock, NULL);
    pthread_cond_init(&latch->changed, NULL);
    latch->count = count;
}

/* The lock is held until the waiter may go on: it may free the latch then. */
static inline void latch_down(Latch *latch)
{
    pthread_mutex_lock(&latch->lock);
    if (--latch->count == 0) {
        pthread_cond_broadcast(&latch->changed);
    }
    pthread_mutex_unlock(&latch->lock);
}

/* [any]: so without check's assertions, which are for the thread of the tests alone, and only while these run. */
static inline void latch_wait(Latch *latch)
{
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 60;
    pthread_mutex_lock(&latch->lock);
    while (latch->count > 0) {
        if (pthread_cond_timedwait(&latch->changed, &latch->lock, &limit) != 0) {
            fprintf(stderr, "what a latch waits for has not happened within a minute\n");
            abort();
        }
    }
    pthread_mutex_unlock(&latch->lock);
}

#endif
