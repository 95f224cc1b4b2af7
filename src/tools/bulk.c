/*
 * The bulk mover.
 *
 *     next                                     the end of the range
 *      v
 *     |....|.1..|.2..|....|....|....|....|     threads take the piece at `next`, under the lock
 *
 * What must stay true: a piece is handed out once; when pieces stop being handed out, those before
 * have all been given to a thread, and bulk_run waits for these; so the lowest failed piece is the
 * first one of the range.
 *
 * For pieces that must be done with in order, a thread waits until no other one has a piece before its
 * own. As they are handed out in order, the first of them never waits.
 */
#include "tools/bulk.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include <glib.h>

#include "base/bytes.h"
#include "base/cleanup.h"

#define PROGRESS_MS 200
#define NO_PIECE    UINT64_MAX
#define HOUR_US     (UINT64_C(3600) * G_USEC_PER_SEC)

typedef struct BulkThread BulkThread;

typedef struct BulkState {
    const Bulk *bulk;
    uint64_t end;
    pthread_mutex_t lock;
    pthread_cond_t ended; /* a thread has ended */
    pthread_cond_t moved; /* a piece is done with */
    pthread_cond_t paced; /* no more pieces: nobody need wait for its turn */
    BulkThread *threads;
    unsigned count;
    uint64_t next; /* the first piece that nobody has */
    int64_t due;   /* with a rate: when it may be handed out; monotonic, µs */
    uint64_t done; /* bytes */
    unsigned running;
    int result;         /* of the first piece of the range that said more than 0 */
    uint64_t result_at; /* where it begins */
} BulkState;

struct BulkThread {
    BulkState *state;
    unsigned slot;
    uint64_t at; /* where its piece begins; NO_PIECE */
    pthread_t thread;
};

static uint64_t piece_end(const BulkState *state, uint64_t offset)
{
    return min_u64(align_down(offset, state->bulk->piece) + state->bulk->piece, state->end);
}

/* How long a piece takes at the rate, µs. */
static int64_t piece_time(const BulkState *state, uint64_t length)
{
    uint64_t rate = state->bulk->rate;
    return rate > 0 ? (int64_t)min_u64((double)length / rate * G_USEC_PER_SEC, HOUR_US) : 0;
}

/* The lock is held, and let go of meanwhile: until the next piece may be handed out, or none will be. */
static void wait_for_turn(BulkState *state)
{
    while (state->bulk->rate > 0 && state->result == 0 && state->next < state->end &&
           g_get_monotonic_time() < state->due) {
        struct timespec until = {state->due / G_USEC_PER_SEC, state->due % G_USEC_PER_SEC * 1000};
        pthread_cond_timedwait(&state->paced, &state->lock, &until);
    }
}

/* The lock is held. A piece for a thread; false: there is none. */
static bool take_piece(BulkState *state, uint64_t *offset, uint64_t *end)
{
    wait_for_turn(state);
    if (state->result != 0 || state->next >= state->end) {
        return false;
    }
    *offset = state->next;
    *end = piece_end(state, *offset);
    state->next = *end;
    state->due = MAX(state->due, g_get_monotonic_time()) + piece_time(state, *end - *offset);
    return true;
}

/* The lock is held. Nothing is to do before `next`: what nobody has taken yet counts as done. */
static void skip_to(BulkState *state, uint64_t next)
{
    next = next >= state->end ? state->end : align_down(next, state->bulk->piece);
    if (next > state->next) {
        state->done += next - state->next;
        state->next = next;
    }
}

/* The lock is held. */
static void note_result(BulkState *state, int result, uint64_t at)
{
    if (result != 0 && (state->result == 0 || at < state->result_at)) {
        state->result = result;
        state->result_at = at;
        pthread_cond_broadcast(&state->paced);
    }
}

/* The lock is held. */
static bool is_first(const BulkThread *thread)
{
    const BulkState *state = thread->state;
    for (unsigned i = 0; i < state->count; i++) {
        if (state->threads[i].at < thread->at) {
            return false;
        }
    }
    return true;
}

/* The lock is held: the thread's piece has been worked on, and it is its turn to be done with. */
static int finish_in_order(BulkThread *thread, uint64_t end)
{
    BulkState *state = thread->state;
    const Bulk *bulk = state->bulk;
    while (!is_first(thread)) {
        pthread_cond_wait(&state->moved, &state->lock);
    }
    if (state->result != 0 && state->result_at < thread->at) {
        return 0;
    }
    pthread_mutex_unlock(&state->lock);
    int r = bulk->in_order(bulk->opaque, thread->slot, thread->at, end - thread->at);
    pthread_mutex_lock(&state->lock);
    return r;
}

static void *thread_main(void *argument)
{
    BulkThread *thread = argument;
    BulkState *state = thread->state;
    const Bulk *bulk = state->bulk;
    uint64_t offset, end;
    pthread_mutex_lock(&state->lock);
    while (take_piece(state, &offset, &end)) {
        thread->at = offset;
        pthread_mutex_unlock(&state->lock);
        uint64_t next = end;
        int r = bulk->work(bulk->opaque, thread->slot, offset, end - offset, &next);
        pthread_mutex_lock(&state->lock);
        if (r == 0 && bulk->in_order) {
            r = finish_in_order(thread, end);
        }
        note_result(state, r, offset);
        thread->at = NO_PIECE;
        pthread_cond_broadcast(&state->moved);
        state->done += end - offset;
        if (next > end) {
            state->due -= piece_time(state, end - offset);
            pthread_cond_broadcast(&state->paced);
        }
        skip_to(state, next);
    }
    state->running--;
    pthread_cond_signal(&state->ended);
    pthread_mutex_unlock(&state->lock);
    return NULL;
}

/* The lock is held: tells how far it is, without it. */
static void tell(BulkState *state)
{
    const Bulk *bulk = state->bulk;
    uint64_t done = state->done;
    if (bulk->progress == NULL) {
        return;
    }
    pthread_mutex_unlock(&state->lock);
    bool stop = bulk->progress(bulk->context, done, bulk->length);
    pthread_mutex_lock(&state->lock);
    if (stop) {
        note_result(state, -EINTR, state->end);
    }
}

static void wait_for_threads(BulkState *state)
{
    with_mutex(&state->lock);
    while (state->running > 0) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += PROGRESS_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        if (pthread_cond_timedwait(&state->ended, &state->lock, &until) == ETIMEDOUT) {
            tell(state);
        }
    }
    tell(state);
}

static void state_init(BulkState *state, const Bulk *bulk)
{
    *state = (BulkState){.bulk = bulk, .next = bulk->offset, .end = bulk->offset + bulk->length};
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&state->lock, NULL);
    pthread_cond_init(&state->ended, &monotonic);
    pthread_cond_init(&state->paced, &monotonic);
    pthread_cond_init(&state->moved, NULL);
    pthread_condattr_destroy(&monotonic);
}

int bulk_run(const Bulk *bulk, uint64_t *at)
{
    BulkState state;
    unsigned wanted = min_u64(bulk->threads, div_round_up(bulk->length, bulk->piece)), started = 0;
    BulkThread *threads = g_new0(BulkThread, wanted + 1);
    state_init(&state, bulk);
    state.threads = threads;
    pthread_mutex_lock(&state.lock);
    for (; started < wanted; started++) {
        threads[started] = (BulkThread){.state = &state, .slot = started, .at = NO_PIECE};
        int r = pthread_create(&threads[started].thread, NULL, thread_main, &threads[started]);
        if (r != 0) { /* those that there are do the work */
            note_result(&state, started == 0 ? -r : 0, bulk->offset);
            break;
        }
        state.running++;
        state.count++;
    }
    pthread_mutex_unlock(&state.lock);
    wait_for_threads(&state);
    for (unsigned i = 0; i < started; i++) {
        pthread_join(threads[i].thread, NULL);
    }
    pthread_cond_destroy(&state.ended);
    pthread_cond_destroy(&state.moved);
    pthread_cond_destroy(&state.paced);
    pthread_mutex_destroy(&state.lock);
    g_free(threads);
    if (at != NULL) {
        *at = state.result_at;
    }
    return state.result;
}
