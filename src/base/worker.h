/*
 * A worker: one thread that runs one libevent loop, made without locks. Connections live on
 * workers.
 *
 * Other threads talk to it by worker_post alone. A loop *turn* is: wait for events, call the
 * callbacks that are due, run what was posted, run what asked for the end of the turn (batched
 * submissions and batched replies).
 */
#ifndef BASE_WORKER_H
#define BASE_WORKER_H

#include <glib.h>
#include <stdbool.h>

struct event_base;
typedef struct Worker Worker;
typedef struct WorkerMessage WorkerMessage;

struct WorkerMessage {
    WorkerMessage *next;                 /* the worker's, until run is called */
    void (*run)(WorkerMessage *message); /* [worker]; may free the structure that message lies in */
};

/* Starts the thread. index is what worker_index returns: workers of a program are numbered 0, 1,
 * ... [main] */
Worker *worker_new(unsigned index, GError **error);

/* Delivers message on the worker's thread, in the order of posting for one poster. Wakes the loop
 * only when the mailbox was empty. Never fails, allocates nothing. Also from the worker itself:
 * runs later in this turn or in the next. [any] */
void worker_post(Worker *worker, WorkerMessage *message);

/* Runs message once, at the end of the current turn. [worker] */
void worker_at_turn_end(Worker *worker, WorkerMessage *message);

/* Ends the loop after the mailbox is empty and joins the thread. Nothing is posted to it any more;
 * but a post that was made may still be waking it up, so threads that posted end first, and workers
 * that post to each other are all stopped before one is freed. [main] */
void worker_stop(Worker *worker);

/* Stops it where that was not done, and frees. [main] */
void worker_free(Worker *worker);

unsigned worker_index(const Worker *worker);    /* [any] */
struct event_base *worker_base(Worker *worker); /* [worker] */
Worker *worker_current(void);                   /* the worker of this thread or NULL [any] */

/* A slot for the asynchronous I/O of this worker, see store/aio.h. [worker] */
void **worker_aio_slot(Worker *worker);
/* Called once on the worker's thread when it ends, to free what is in the slot. */
void worker_set_aio_free(Worker *worker, void (*aio_free)(void *aio));

#endif
