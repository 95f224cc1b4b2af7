/* src/base/worker.c */
#include <event2/event.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/worker.h"
#include "latch.h"
#include "tests/unit/suite.h"

#define POSTERS 4
#define POSTS   20000

typedef struct Note {
    WorkerMessage message; /* first */
    unsigned poster, number;
} Note;

static Note notes[POSTERS][POSTS];
static unsigned next_number[POSTERS]; /* [worker] */
static Worker *worker;
static Latch latch;

static void setup(void)
{
    worker = worker_new(5, NULL);
    ck_assert_ptr_nonnull(worker);
}

static void teardown(void)
{
    worker_free(worker);
}

static void take_note(WorkerMessage *message)
{
    Note *note = (Note *)message;
    ck_assert_ptr_eq(worker_current(), worker);
    ck_assert_uint_eq(note->number, next_number[note->poster]++);
    if (note->number == POSTS - 1) {
        latch_down(&latch);
    }
}

static void *post_many(void *argument)
{
    unsigned poster = (Note(*)[POSTS])argument - notes;
    for (unsigned i = 0; i < POSTS; i++) {
        notes[poster][i] = (Note){.message.run = take_note, .poster = poster, .number = i};
        worker_post(worker, &notes[poster][i].message);
        if (i % 1000 == 0) {
            usleep(50); /* lets the worker fall asleep now and then */
        }
    }
    return NULL;
}

START_TEST(worker_keeps_the_order_of_each_poster)
{
    pthread_t threads[POSTERS];
    latch_init(&latch, POSTERS);
    memset(next_number, 0, sizeof next_number);
    for (unsigned i = 0; i < POSTERS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, post_many, notes[i]), 0);
    }
    latch_wait(&latch);
    for (unsigned i = 0; i < POSTERS; i++) {
        pthread_join(threads[i], NULL);
    }
}
END_TEST

static void down_run(WorkerMessage *message)
{
    latch_down(&latch);
}

START_TEST(worker_wakes_for_each_lone_post)
{
    for (unsigned i = 0; i < 1000; i++) {
        WorkerMessage message = {.run = down_run};
        latch_init(&latch, 1);
        worker_post(worker, &message);
        latch_wait(&latch);
    }
    ck_assert_ptr_null(worker_current());
    ck_assert_uint_eq(worker_index(worker), 5);
}
END_TEST

/* The steps of one turn, in the order in which they ran. */
static char trace[32];
static WorkerMessage step_a, step_b, step_end, step_end2, step_next;

static void say(char c)
{
    size_t length = strlen(trace);
    trace[length] = c;
    trace[length + 1] = '\0';
}

static void next_run(WorkerMessage *message)
{
    say('n');
    latch_down(&latch);
}

static void end2_run(WorkerMessage *message)
{
    say('E');
}

static void end_run(WorkerMessage *message)
{
    say('e');
    step_end2.run = end2_run;
    worker_at_turn_end(worker, &step_end2);
}

static void b_run(WorkerMessage *message)
{
    say('b');
}

static void a_run(WorkerMessage *message)
{
    say('a');
    step_next.run = next_run;
    step_end.run = end_run;
    worker_post(worker, &step_next); /* its own post: not before the next turn */
    worker_at_turn_end(worker, &step_end);
}

/* Posts a and b from an event's callback, so that both run in this turn. */
static void begin_cb(evutil_socket_t fd, short what, void *argument)
{
    step_a.run = a_run;
    step_b.run = b_run;
    worker_post(worker, &step_a);
    worker_post(worker, &step_b);
}

static void begin_run(WorkerMessage *message)
{
    struct timeval now = {0, 0};
    event_base_once(worker_base(worker), -1, EV_TIMEOUT, begin_cb, NULL, &now);
}

START_TEST(worker_turn_runs_posts_then_its_end_then_the_next_turn)
{
    WorkerMessage begin = {.run = begin_run};
    trace[0] = '\0';
    latch_init(&latch, 1);
    worker_post(worker, &begin);
    latch_wait(&latch);
    ck_assert_str_eq(trace, "abeEn");
}
END_TEST

static bool event_seen; /* [worker] */

static void seen_cb(evutil_socket_t fd, short what, void *argument)
{
    event_seen = true;
}

static void busy_run(WorkerMessage *message)
{
    static bool begun;
    if (!begun) {
        begun = true;
        struct timeval soon = {0, 1000};
        event_base_once(worker_base(worker), -1, EV_TIMEOUT, seen_cb, NULL, &soon);
    }
    if (event_seen) {
        latch_down(&latch);
    } else {
        worker_post(worker, message);
    }
}

START_TEST(worker_that_posts_to_itself_still_sees_events)
{
    WorkerMessage message = {.run = busy_run};
    latch_init(&latch, 1);
    worker_post(worker, &message);
    latch_wait(&latch);
}
END_TEST

static atomic_uint ran;

static void heir_run(WorkerMessage *message)
{
    if (atomic_fetch_add(&ran, 1) < 99) {
        worker_post(worker, message);
    }
}

static void slot_free(void *slot)
{
    ck_assert_ptr_eq(worker_current(), worker);
    ck_assert_ptr_eq(slot, &ran);
    atomic_fetch_add(&ran, 1000);
}

static void slot_run(WorkerMessage *message)
{
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    ck_assert(sigismember(&blocked, SIGTERM) == 1 && sigismember(&blocked, SIGPIPE) == 1);
    *worker_aio_slot(worker) = &ran;
    worker_set_aio_free(worker, slot_free);
}

START_TEST(worker_free_runs_what_was_posted_and_frees_the_slot)
{
    WorkerMessage slot = {.run = slot_run}, heir = {.run = heir_run};
    atomic_store(&ran, 0);
    worker_post(worker, &slot);
    worker_post(worker, &heir);
    worker_free(worker);
    ck_assert_uint_eq(atomic_load(&ran), 1100);
    worker = NULL;
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("worker");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, worker_keeps_the_order_of_each_poster);
    tcase_add_test(tcase, worker_wakes_for_each_lone_post);
    tcase_add_test(tcase, worker_turn_runs_posts_then_its_end_then_the_next_turn);
    tcase_add_test(tcase, worker_that_posts_to_itself_still_sees_events);
    tcase_add_test(tcase, worker_free_runs_what_was_posted_and_frees_the_slot);
    return suite_run("worker", tcase);
}
