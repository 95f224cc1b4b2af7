/*
 * The pool: a first-in first-out list of jobs, taken by threads that may block.
 *
 * What must stay true: a thread ends only when the pool is closing, the list is empty and no job
 * runs, for a running job may submit another one.
 */
#include "base/pool.h"

#include <glib.h>
#include <pthread.h>
#include <stdbool.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/thread.h"

struct Pool {
    pthread_mutex_t lock; /* of everything below but threads */
    pthread_cond_t changed;
    PoolJob *first, **last;
    unsigned idle;    /* threads that wait */
    unsigned running; /* jobs that run */
    bool closing;

    unsigned thread_count;
    pthread_t threads[];
};

static _Thread_local bool in_pool;

_Bool pool_is_current(void)
{
    return in_pool;
}

/* Waits for a job; NULL when the pool ends. Called with the lock held. */
static PoolJob *take_job(Pool *pool)
{
    while (pool->first == NULL) {
        if (pool->closing && pool->running == 0) {
            return NULL;
        }
        pool->idle++;
        pthread_cond_wait(&pool->changed, &pool->lock);
        pool->idle--;
    }
    PoolJob *job = pool->first;
    pool->first = job->next;
    if (pool->first == NULL) {
        pool->last = &pool->first;
    }
    return job;
}

static void *run_thread(void *argument)
{
    Pool *pool = argument;
    in_pool = true;
    pthread_mutex_lock(&pool->lock);
    for (PoolJob *job; (job = take_job(pool)) != NULL;) {
        pool->running++;
        pthread_mutex_unlock(&pool->lock);
        job->run(job);
        pthread_mutex_lock(&pool->lock);
        pool->running--;
    }
    /* The last job may have ended while others waited for one more. */
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

Pool *pool_new(unsigned threads)
{
    threads = MAX(threads, 1);
    Pool *pool = g_malloc0(sizeof *pool + threads * sizeof pool->threads[0]);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->changed, NULL);
    pool->last = &pool->first;
    for (unsigned i = 0; i < threads; i++) {
        g_autofree char *name = g_strdup_printf("pool-%u", i);
        int err = thread_start(&pool->threads[pool->thread_count], name, run_thread, pool);
        if (err != 0) {
            log_warning("cannot start pool thread %u: %s", i, g_strerror(err));
            break;
        }
        pool->thread_count++;
    }
    if (pool->thread_count == 0) {
        g_error("not a single pool thread could be started");
    }
    return pool;
}

void pool_submit(Pool *pool, PoolJob *job)
{
    job->next = NULL;
    with_mutex(&pool->lock);
    *pool->last = job;
    pool->last = &job->next;
    if (pool->idle > 0) {
        pthread_cond_signal(&pool->changed);
    }
}

void pool_free(Pool *pool)
{
    if (pool == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->lock);
    pool->closing = true;
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++) {
        pthread_join(pool->threads[i], NULL);
    }
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->lock);
    g_free(pool);
}
