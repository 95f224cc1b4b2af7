/*
 * A worker: a thread, its event loop and its mailbox.
 *
 *      other threads --push--> mailbox (lock-free stack) --taken whole, reversed--> run in order
 *      the worker itself ----> local list, no atomic, no system call
 *
 * One turn: event_base_loop (waits, runs event callbacks) - what was posted - what asked for the
 * turn's end.
 *
 * What must stay true:
 *  1. A push that finds the mailbox empty writes the eventfd after the push; a push that finds it
 * full need not, for the one that filled it does, and the loop takes the whole mailbox after it has
 * woken.
 *  2. The loop never sleeps while the local list holds a message.
 *  3. What a posted message posts to its own worker runs in the next turn, so that messages cannot
 * starve sockets.
 *
 * The eventfd is watched edge-triggered: each write is an edge, so it is never read.
 */
#include "base/worker.h"

#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/errors.h"
#include "base/thread.h"

typedef struct MessageList {
    WorkerMessage *first, **last;
} MessageList;

struct Worker {
    unsigned index;
    int wake_fd;
    pthread_t thread;
    bool joined; /* [main] */
    struct event_base *base;
    struct event *wake_event;

    MessageList local;    /* [worker] */
    MessageList turn_end; /* [worker] */
    void *aio;
    void (*aio_free)(void *aio);

    /* Written by others: on a cache line of its own. */
    _Alignas(64) _Atomic(WorkerMessage *) mailbox;
    atomic_bool stop;
};

static _Thread_local Worker *current_worker;

static void list_init(MessageList *list)
{
    list->first = NULL;
    list->last = &list->first;
}

static void list_append(MessageList *list, WorkerMessage *message)
{
    message->next = NULL;
    *list->last = message;
    list->last = &message->next;
}

static void run_chain(WorkerMessage *message)
{
    while (message != NULL) {
        WorkerMessage *next = message->next; /* run may free the message */
        message->run(message);
        message = next;
    }
}

/* Takes the whole mailbox; the stack holds the newest first, the result the oldest. */
static WorkerMessage *take_mailbox(Worker *worker)
{
    if (atomic_load_explicit(&worker->mailbox, memory_order_relaxed) == NULL) {
        return NULL;
    }
    WorkerMessage *newest = atomic_exchange_explicit(&worker->mailbox, NULL, memory_order_acquire);
    WorkerMessage *ordered = NULL;
    while (newest != NULL) {
        WorkerMessage *next = newest->next;
        newest->next = ordered;
        ordered = newest;
        newest = next;
    }
    return ordered;
}

static void run_posted(Worker *worker)
{
    WorkerMessage *own = worker->local.first;
    list_init(&worker->local);
    run_chain(own);
    run_chain(take_mailbox(worker));
}

/* What runs here may ask for the turn's end again: a reply that a completion queued leaves in this
 * turn too. */
static void run_turn_end(Worker *worker)
{
    while (worker->turn_end.first != NULL) {
        WorkerMessage *batch = worker->turn_end.first;
        list_init(&worker->turn_end);
        run_chain(batch);
    }
}

static bool must_go_on(Worker *worker)
{
    return !atomic_load_explicit(&worker->stop, memory_order_acquire) ||
           worker->local.first != NULL ||
           atomic_load_explicit(&worker->mailbox, memory_order_relaxed) != NULL;
}

static void *run_thread(void *argument)
{
    Worker *worker = argument;
    current_worker = worker;
    while (must_go_on(worker)) {
        bool may_sleep = worker->local.first == NULL;
        event_base_loop(worker->base, EVLOOP_ONCE | (may_sleep ? 0 : EVLOOP_NONBLOCK));
        run_posted(worker);
        run_turn_end(worker);
    }
    if (worker->aio != NULL && worker->aio_free != NULL) {
        worker->aio_free(worker->aio);
    }
    current_worker = NULL;
    return NULL;
}

static void wake_cb(evutil_socket_t fd, short what, void *argument)
{
    /* Being awake is all: the turn takes the mailbox. */
}

static void wake(Worker *worker)
{
    /* Cannot fail but by EINTR and, after 2^64 posts, EAGAIN. */
    while (eventfd_write(worker->wake_fd, 1) != 0 && errno == EINTR) {
    }
}

static struct event_base *make_base(void)
{
    struct event_config *config = event_config_new();
    if (config == NULL) {
        return NULL;
    }
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    event_config_set_flag(config,
                          EVENT_BASE_FLAG_NO_CACHE_TIME); /* few timers: no clock read a turn */
    event_config_set_flag(config, EVENT_BASE_FLAG_IGNORE_ENV);
    event_config_require_features(config, EV_FEATURE_ET);
    struct event_base *base = event_base_new_with_config(config);
    event_config_free(config);
    return base;
}

static void free_parts(Worker *worker)
{
    if (worker->wake_event != NULL) {
        event_free(worker->wake_event);
    }
    if (worker->base != NULL) {
        event_base_free(worker->base);
    }
    if (worker->wake_fd >= 0) {
        close(worker->wake_fd);
    }
    free(worker);
}

static bool make_loop(Worker *worker)
{
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    worker->base = make_base();
    if (worker->wake_fd < 0 || worker->base == NULL) {
        return false;
    }
    worker->wake_event =
        event_new(worker->base, worker->wake_fd, EV_READ | EV_PERSIST | EV_ET, wake_cb, worker);
    return worker->wake_event != NULL && event_add(worker->wake_event, NULL) == 0;
}

Worker *worker_new(unsigned index, GError **error)
{
    Worker *worker = aligned_alloc(_Alignof(Worker), sizeof *worker);
    g_assert(worker != NULL);
    *worker = (Worker){.index = index, .wake_fd = -1};
    list_init(&worker->local);
    list_init(&worker->turn_end);
    g_autofree char *name = g_strdup_printf("worker-%u", index);
    errno = 0;
    int err = make_loop(worker) ? 0 : (errno != 0 ? errno : ENOMEM);
    if (err == 0) {
        err = thread_start(&worker->thread, name, run_thread, worker);
    }
    if (err != 0) {
        free_parts(worker);
        error_set_errno(error, err, "cannot start worker %u", index);
        return NULL;
    }
    return worker;
}

void worker_post(Worker *worker, WorkerMessage *message)
{
    if (worker == current_worker) {
        list_append(&worker->local, message);
        return;
    }
    WorkerMessage *top = atomic_load_explicit(&worker->mailbox, memory_order_relaxed);
    do {
        message->next = top;
    } while (!atomic_compare_exchange_weak_explicit(&worker->mailbox, &top, message,
                                                    memory_order_release, memory_order_relaxed));
    if (top == NULL) {
        wake(worker);
    }
}

void worker_at_turn_end(Worker *worker, WorkerMessage *message)
{
    g_assert(worker == current_worker);
    list_append(&worker->turn_end, message);
}

void worker_stop(Worker *worker)
{
    if (worker->joined) {
        return;
    }
    atomic_store_explicit(&worker->stop, true, memory_order_release);
    wake(worker);
    pthread_join(worker->thread, NULL);
    worker->joined = true;
}

void worker_free(Worker *worker)
{
    if (worker == NULL) {
        return;
    }
    worker_stop(worker);
    free_parts(worker);
}

unsigned worker_index(const Worker *worker)
{
    return worker->index;
}

struct event_base *worker_base(Worker *worker)
{
    return worker->base;
}

Worker *worker_current(void)
{
    return current_worker;
}

void **worker_aio_slot(Worker *worker)
{
    return &worker->aio;
}

void worker_set_aio_free(Worker *worker, void (*aio_free)(void *aio))
{
    worker->aio_free = aio_free;
}
