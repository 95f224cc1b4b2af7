/*
 * The pool: threads that may block. Formats, cold reads and decoding run here.
 *
 * A job is embedded in the structure that it works for; the pool allocates nothing. Jobs start in
 * the order in which they were submitted. A job that has something to say to a worker posts to it
 * (worker_post).
 */
#ifndef BASE_POOL_H
#define BASE_POOL_H

typedef struct Pool Pool;
typedef struct PoolJob PoolJob;

struct PoolJob {
    PoolJob *next;             /* the pool's, until run is called */
    void (*run)(PoolJob *job); /* [pool]; may free the structure that job lies in */
};

/* Threads are started at once. Aborts when not a single one can be started. [main] */
Pool *pool_new(unsigned threads);

/* Never blocks for long and never fails. The job must stay alive until it runs. [any] */
void pool_submit(Pool *pool, PoolJob *job);

/* Runs all that was submitted, jobs submitted by those jobs included, then ends the threads. [main] */
void pool_free(Pool *pool);

/* True in a thread of any pool; for assertions. [any] */
_Bool pool_is_current(void);

#endif
