/*
 * Asynchronous I/O by io_uring: one ring a worker.
 *
 *      submit --> entry in the ring --(end of the turn)--> one system call for all of them
 *      done   <-- completions       <--(eventfd event)----- kernel
 *
 * A short transfer goes back into the ring for its rest. The ring is made for its only thread,
 * where the kernel is new enough to make use of that.
 *
 * What must stay true:
 *  1. At most IN_FLIGHT_MAX transfers are in the ring and the kernel: the completion queue has room
 * for all of them. Others wait in a list, in order.
 *  2. done is called from the eventfd's callback or a turn's end, never inside submit.
 */
#include <errno.h>
#include <event2/event.h>
#include <liburing.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "store/aio-impl.h"
#include "store/fdio.h"

#define RING_ENTRIES 256u
#define IN_FLIGHT_MAX \
    512u /* the completion queue's size, which the kernel makes twice the ring's */
#define REAP_BATCH 64

typedef struct AioUring {
    Aio aio; /* first */
    Worker *worker;
    struct io_uring ring;
    int event_fd;
    struct event *event;
    unsigned in_flight;
    StoreIo *waiting, **waiting_last;
    WorkerMessage flush; /* at the end of the turn */
    bool flush_asked;
} AioUring;

static AioUring *uring_of_flush(WorkerMessage *message)
{
    return (AioUring *)((char *)message - offsetof(AioUring, flush));
}

/* Hands what is in the submission queue to the kernel. What it does not take now is tried again in
 * the next turn. */
static void flush_ring(AioUring *uring)
{
    int n;
    do {
        n = io_uring_submit(&uring->ring);
    } while (n == -EINTR);
    if (n < 0 && n != -EAGAIN && n != -EBUSY) {
        log_limited(LOG_LEVEL_ERROR, "io_uring refuses transfers: %s", g_strerror(-n));
    }
    if (io_uring_sq_ready(&uring->ring) > 0 && !uring->flush_asked) {
        uring->flush_asked = true;
        worker_post(uring->worker, &uring->flush);
    }
}

static void flush_run(WorkerMessage *message)
{
    AioUring *uring = uring_of_flush(message);
    uring->flush_asked = false;
    flush_ring(uring);
}

/* Puts the rest of a transfer into the ring; false when there is no room for it. */
static bool queue_transfer(AioUring *uring, StoreIo *io)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    if (sqe == NULL) {
        flush_ring(uring);
        sqe = io_uring_get_sqe(&uring->ring);
        if (sqe == NULL) {
            return false;
        }
    }
    uint64_t at = io->offset + io->progress;
    if (io->iov_count == 1) { /* cheaper for the kernel than a vector of one */
        unsigned length = min_u64(io->iov->iov_len, 1u << 30);
        if (io->kind == STORE_IO_READ) {
            io_uring_prep_read(sqe, io->fd, io->iov->iov_base, length, at);
        } else {
            io_uring_prep_write(sqe, io->fd, io->iov->iov_base, length, at);
        }
    } else if (io->kind == STORE_IO_READ) {
        io_uring_prep_readv(sqe, io->fd, io->iov, io->iov_count, at);
    } else {
        io_uring_prep_writev(sqe, io->fd, io->iov, io->iov_count, at);
    }
    io_uring_sqe_set_data(sqe, io);
    if (!uring->flush_asked) {
        uring->flush_asked = true;
        worker_at_turn_end(uring->worker, &uring->flush);
    }
    return true;
}

static void wait_in_line(AioUring *uring, StoreIo *io)
{
    io->next = NULL;
    *uring->waiting_last = io;
    uring->waiting_last = &io->next;
}

static void start_waiting(AioUring *uring)
{
    while (uring->waiting != NULL && uring->in_flight < IN_FLIGHT_MAX) {
        StoreIo *io = uring->waiting;
        if (!queue_transfer(uring, io)) {
            return;
        }
        uring->in_flight++;
        uring->waiting = io->next;
        if (uring->waiting == NULL) {
            uring->waiting_last = &uring->waiting;
        }
    }
}

static void aio_uring_submit(Aio *aio, StoreIo *io)
{
    AioUring *uring = (AioUring *)aio;
    wait_in_line(uring, io);
    start_waiting(uring);
}

/* Takes n bytes off the front of the vector. Its entries stay in place, done ones get length 0. */
static void advance(StoreIo *io, uint64_t n)
{
    io->progress += n;
    for (int i = 0; i < io->iov_count && n > 0; i++) {
        size_t take = min_u64(n, io->iov[i].iov_len);
        io->iov[i].iov_base = (char *)io->iov[i].iov_base + take;
        io->iov[i].iov_len -= take;
        n -= take;
    }
}

/* What the kernel said of a transfer. True when it is finished and result is set. */
static bool take_result(StoreIo *io, int n)
{
    if (n == -EINTR || n == -EAGAIN) {
        return false;
    }
    io->result = n < 0 ? n : 0;
    if (n > 0) {
        advance(io, n);
    }
    if (n == 0 && io->progress < io->length) {
        if (io->kind == STORE_IO_READ) {
            iov_zero_from(io->iov, io->iov_count, 0); /* past the end */
        } else {
            io->result = -ENOSPC;
        }
    }
    return n <= 0 || io->progress >= io->length;
}

static void complete(AioUring *uring, StoreIo *io, int n)
{
    uring->in_flight--;
    if (!take_result(io, n)) {
        wait_in_line(uring, io);
        return;
    }
    if (io->kind == STORE_IO_WRITE && io->progress > 0) {
        store_raise_size(io->store, io->offset + io->progress);
    }
    store_io_end(io);
}

/* Completes what the queue holds; false when it was empty. */
static bool reap_batch(AioUring *uring)
{
    struct io_uring_cqe *cqes[REAP_BATCH];
    StoreIo *ios[REAP_BATCH];
    int results[REAP_BATCH];
    unsigned count = io_uring_peek_batch_cqe(&uring->ring, cqes, REAP_BATCH);
    for (unsigned i = 0; i < count; i++) {
        ios[i] = io_uring_cqe_get_data(cqes[i]);
        results[i] = cqes[i]->res;
    }
    io_uring_cq_advance(&uring->ring, count);
    for (unsigned i = 0; i < count; i++) {
        complete(uring, ios[i], results[i]);
    }
    return count > 0;
}

/* The eventfd is signalled after a completion is in the queue; so what comes after the last look
 * wakes us again. */
static void completions_cb(evutil_socket_t fd, short what, void *argument)
{
    AioUring *uring = argument;
    while (reap_batch(uring)) {
    }
    start_waiting(uring);
}

static void aio_uring_free(Aio *aio)
{
    AioUring *uring = (AioUring *)aio;
    g_assert(uring->in_flight == 0 && uring->waiting == NULL);
    if (uring->event != NULL) {
        event_free(uring->event);
    }
    io_uring_queue_exit(&uring->ring);
    if (uring->event_fd >= 0) {
        close(uring->event_fd);
    }
    g_free(uring);
}

/* Makes the ring with the most that this kernel knows. 0 or a negative errno.
 *
 * IORING_SETUP_DEFER_TASKRUN is left out on purpose: the kernel then keeps completions back until
 * it is asked, at most some 20 at a time, and the flag that says so (IORING_SQ_TASKRUN) may stay
 * set when nothing is left: a worker that trusted it span for ever. */
static int make_ring(AioUring *uring)
{
    static const unsigned wishes[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN,
        0,
    };
    int err = -EINVAL;
    for (size_t i = 0; i < G_N_ELEMENTS(wishes) && err == -EINVAL; i++) {
        struct io_uring_params params = {.flags = wishes[i]};
        err = io_uring_queue_init_params(RING_ENTRIES, &uring->ring, &params);
        if (err == 0 && ((params.features & IORING_FEAT_RW_CUR_POS) == 0 ||
                         params.cq_entries < IN_FLIGHT_MAX)) {
            io_uring_queue_exit(&uring->ring); /* too old for plain read and write */
            return -ENOSYS;
        }
    }
    return err;
}

static int watch_ring(AioUring *uring)
{
    uring->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (uring->event_fd < 0) {
        return -errno;
    }
    /* Edge-triggered, so the counter need not be read. */
    uring->event = event_new(worker_base(uring->worker), uring->event_fd,
                             EV_READ | EV_PERSIST | EV_ET, completions_cb, uring);
    if (uring->event == NULL || event_add(uring->event, NULL) != 0) {
        return -ENOMEM;
    }
    return io_uring_register_eventfd(&uring->ring, uring->event_fd);
}

Aio *aio_uring_new(Worker *worker, int *err)
{
    static const AioOps ops = {"io_uring", aio_uring_submit, aio_uring_free};
    AioUring *uring = g_new0(AioUring, 1);
    uring->aio.ops = &ops;
    uring->worker = worker;
    uring->event_fd = -1;
    uring->waiting_last = &uring->waiting;
    uring->flush.run = flush_run;
    *err = make_ring(uring);
    if (*err != 0) {
        g_free(uring);
        return NULL;
    }
    *err = watch_ring(uring);
    if (*err != 0) {
        aio_uring_free(&uring->aio);
        return NULL;
    }
    return &uring->aio;
}
