/* src/base/pool.c */
#include <glib.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "base/pool.h"
#include "latch.h"
#include "tests/unit/suite.h"

#define JOBS 20000

typedef struct Job {
    PoolJob job; /* first */
    unsigned number;
    Pool *pool;
} Job;

static atomic_uint ran;
static unsigned order[JOBS];

static void count_job(PoolJob *job)
{
    ck_assert(pool_is_current());
    order[atomic_fetch_add(&ran, 1)] = ((Job *)job)->number;
}

START_TEST(pool_of_one_thread_keeps_the_order)
{
    static Job jobs[JOBS];
    atomic_store(&ran, 0);
    Pool *pool = pool_new(1);
    for (unsigned i = 0; i < JOBS; i++) {
        jobs[i] = (Job){.job.run = count_job, .number = i};
        pool_submit(pool, &jobs[i].job);
    }
    pool_free(pool);
    ck_assert_uint_eq(atomic_load(&ran), JOBS);
    for (unsigned i = 0; i < JOBS; i++) {
        ck_assert_uint_eq(order[i], i);
    }
    ck_assert(!pool_is_current());
}
END_TEST

static void *submit_many(void *argument)
{
    Job *jobs = argument;
    for (unsigned i = 0; i < JOBS / 4; i++) {
        pool_submit(jobs[i].pool, &jobs[i].job);
    }
    return NULL;
}

START_TEST(pool_takes_jobs_from_many_threads)
{
    static Job jobs[JOBS];
    atomic_store(&ran, 0);
    Pool *pool = pool_new(4);
    pthread_t threads[4];
    for (unsigned i = 0; i < JOBS; i++) {
        jobs[i] = (Job){.job.run = count_job, .number = i, .pool = pool};
    }
    for (unsigned i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, submit_many, jobs + i * (JOBS / 4)), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    pool_free(pool);
    ck_assert_uint_eq(atomic_load(&ran), JOBS);
}
END_TEST

/* Submits the next of a row of jobs, each in memory of its own. */
static void heir_job(PoolJob *job)
{
    Job *self = (Job *)job;
    if (self->number > 0) {
        Job *heir = g_new(Job, 1);
        *heir = *self;
        heir->number--;
        pool_submit(heir->pool, &heir->job);
    }
    g_free(self);
    g_usleep(100);
    atomic_fetch_add(&ran, 1);
}

START_TEST(pool_free_runs_what_its_jobs_submit)
{
    atomic_store(&ran, 0);
    Pool *pool = pool_new(3);
    Job *first = g_new(Job, 1);
    *first = (Job){.job.run = heir_job, .number = 99, .pool = pool};
    pool_submit(pool, &first->job);
    pool_free(pool);
    ck_assert_uint_eq(atomic_load(&ran), 100);
    pool_free(NULL);
}
END_TEST

static void signals_job(PoolJob *job)
{
    sigset_t blocked;
    char name[16];
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    ck_assert(sigismember(&blocked, SIGTERM) == 1 && sigismember(&blocked, SIGPIPE) == 1);
    ck_assert_int_eq(pthread_getname_np(pthread_self(), name, sizeof name), 0);
    atomic_fetch_add(&ran, 1);
}

START_TEST(pool_threads_take_no_signals)
{
    atomic_store(&ran, 0);
    Job job = {.job.run = signals_job};
    Pool *pool = pool_new(0); /* at least one thread all the same */
    pool_submit(pool, &job.job);
    pool_free(pool);
    ck_assert_uint_eq(atomic_load(&ran), 1);
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    ck_assert(sigismember(&blocked, SIGTERM) == 0);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("pool");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, pool_of_one_thread_keeps_the_order);
    tcase_add_test(tcase, pool_takes_jobs_from_many_threads);
    tcase_add_test(tcase, pool_free_runs_what_its_jobs_submit);
    tcase_add_test(tcase, pool_threads_take_no_signals);
    int status = suite_run("pool", tcase);
    return status;
}
