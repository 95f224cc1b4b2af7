/* src/tools/bulk.c: pieces that are done with in their order, whoever was first to work on them */
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/cleanup.h"
#include "tests/unit/suite.h"
#include "tools/bulk.h"

#define PIECE   16u
#define PIECES  100u
#define LENGTH  (PIECES * PIECE - 3)
#define THREADS 8u

typedef struct Run {
    pthread_mutex_t lock;
    pthread_cond_t worked;
    unsigned works;        /* pieces that have been worked on */
    uint64_t work_fails;   /* the piece; UINT64_MAX */
    uint64_t finish_fails; /* the same */
    unsigned skip_behind;  /* after this piece, the next nine need no work; 0: none */
    unsigned finished, piece[PIECES];
    uint64_t length; /* of all that were finished */
} Run;

/* The first piece is worked on last of those that the threads have at once. */
static int work(void *opaque, unsigned slot, uint64_t offset, uint64_t length, uint64_t *next)
{
    Run *run = opaque;
    ck_assert_uint_lt(slot, THREADS);
    ck_assert_uint_eq(*next, offset + length);
    with_mutex(&run->lock);
    while (offset == 0 && run->works < THREADS - 1) {
        pthread_cond_wait(&run->worked, &run->lock);
    }
    bool fails = offset == run->work_fails * PIECE;
    run->works += fails ? THREADS : 1; /* behind a failure no more pieces are handed out */
    pthread_cond_broadcast(&run->worked);
    if (run->skip_behind > 0 && offset == run->skip_behind * PIECE) {
        *next += 9 * PIECE;
    }
    return fails ? -EIO : 0;
}

static int finish(void *opaque, unsigned slot, uint64_t offset, uint64_t length)
{
    Run *run = opaque;
    with_mutex(&run->lock);
    run->piece[run->finished++] = offset / PIECE;
    run->length += length;
    return offset == run->finish_fails * PIECE ? -ENOSPC : 0;
}

static Run run_pieces(Run how, int result, uint64_t at)
{
    pthread_mutex_init(&how.lock, NULL);
    pthread_cond_init(&how.worked, NULL);
    Bulk bulk = {
        .length = LENGTH,
        .piece = PIECE,
        .threads = THREADS,
        .work = work,
        .in_order = finish,
        .opaque = &how,
    };
    uint64_t failed_at = 0;
    ck_assert_int_eq(bulk_run(&bulk, &failed_at), result);
    ck_assert_uint_eq(failed_at, at * PIECE);
    pthread_cond_destroy(&how.worked);
    pthread_mutex_destroy(&how.lock);
    for (unsigned i = 1; i < how.finished; i++) {
        ck_assert_uint_gt(how.piece[i], how.piece[i - 1]);
    }
    return how;
}

#define NONE (UINT64_MAX / PIECE)

START_TEST(pieces_are_finished_in_order)
{
    Run run = run_pieces((Run){.work_fails = NONE, .finish_fails = NONE}, 0, 0);
    ck_assert_uint_eq(run.finished, PIECES);
    ck_assert_uint_eq(run.length, LENGTH);
}
END_TEST

START_TEST(what_needs_no_work_is_not_finished)
{
    /* The last piece that the threads can have when the first ends; those behind it are free. */
    Run run = run_pieces((Run){.work_fails = NONE, .finish_fails = NONE, .skip_behind = 90}, 0, 0);
    ck_assert_uint_ge(run.finished, PIECES - 9);
    ck_assert_uint_eq(run.piece[90], 90);
}
END_TEST

START_TEST(nothing_is_finished_behind_a_failure)
{
    for (unsigned fails = 0; fails < 20; fails++) {
        Run run = run_pieces((Run){.work_fails = fails, .finish_fails = NONE}, -EIO, fails);
        ck_assert_uint_eq(run.finished, fails);
        run = run_pieces((Run){.work_fails = NONE, .finish_fails = fails}, -ENOSPC, fails);
        ck_assert_uint_eq(run.finished, fails + 1);
    }
}
END_TEST

/* Each piece says what comes behind it. */
typedef struct Paced {
    _Atomic unsigned works;
    bool fails, skips;
} Paced;

static int work_paced(void *opaque, unsigned slot, uint64_t offset, uint64_t length, uint64_t *next)
{
    Paced *paced = opaque;
    paced->works++;
    *next = paced->skips ? LENGTH : *next;
    return paced->fails ? -EIO : 0;
}

static int run_paced(Paced *paced, uint64_t rate, uint64_t length)
{
    Bulk bulk = {.length = length,
                 .piece = PIECE,
                 .threads = THREADS,
                 .rate = rate,
                 .work = work_paced,
                 .opaque = paced};
    return bulk_run(&bulk, NULL);
}

START_TEST(pieces_keep_to_the_rate)
{
    Paced paced = {0};
    int64_t start = g_get_monotonic_time();
    ck_assert_int_eq(run_paced(&paced, 50 * PIECE, 6 * PIECE), 0);
    ck_assert_uint_eq(paced.works, 6);
    ck_assert_int_ge(g_get_monotonic_time() - start, 5 * G_USEC_PER_SEC / 50);
}
END_TEST

/* At this rate a piece takes 16 seconds, and all of them longer than a test may. */
START_TEST(nobody_waits_for_a_piece_that_will_not_come)
{
    Paced fails = {.fails = true}, skips = {.skips = true};
    ck_assert_int_eq(run_paced(&fails, 1, LENGTH), -EIO);
    ck_assert_uint_eq(fails.works, 1);
    ck_assert_int_eq(run_paced(&skips, 1, LENGTH), 0);
    ck_assert_uint_eq(skips.works, 1);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("bulk");
    tcase_add_test(tcase, pieces_are_finished_in_order);
    tcase_add_test(tcase, what_needs_no_work_is_not_finished);
    tcase_add_test(tcase, nothing_is_finished_behind_a_failure);
    tcase_add_test(tcase, pieces_keep_to_the_rate);
    tcase_add_test(tcase, nobody_waits_for_a_piece_that_will_not_come);
    return suite_run("bulk", tcase);
}
