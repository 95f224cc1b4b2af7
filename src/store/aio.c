/*
 * Asynchronous file I/O of a worker: which back end serves it.
 *
 * The choice is made at a worker's first transfer, on the worker, for a ring belongs to the thread
 * that made it.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "store/aio-impl.h"

typedef enum { AIO_AUTO, AIO_FORCE_POOL, AIO_FORCE_URING } AioChoice;

/* Set once, before the workers use them. */
static Pool *aio_pool;
static AioChoice aio_choice;

static atomic_bool told; /* one line a process, not one a worker */

void aio_init(Pool *pool)
{
    const char *wish = g_getenv("COWNBD_AIO");
    aio_pool = pool;
    aio_choice = AIO_AUTO;
    if (g_strcmp0(wish, "pool") == 0) {
        aio_choice = AIO_FORCE_POOL;
    } else if (g_strcmp0(wish, "uring") == 0) {
        aio_choice = AIO_FORCE_URING;
    } else if (wish != NULL && *wish != '\0') {
        log_warning("COWNBD_AIO is '%s': must be pool or uring; ignored", wish);
    }
}

static Aio *choose(Worker *worker)
{
    g_assert(aio_pool != NULL); /* aio_init comes first */
    if (aio_choice == AIO_FORCE_POOL) {
        return aio_pool_new(aio_pool);
    }
    int err = 0;
    Aio *aio = aio_uring_new(worker, &err);
    if (aio != NULL) {
        return aio;
    }
    if (aio_choice == AIO_FORCE_URING) {
        log_error("COWNBD_AIO=uring, but the kernel refuses io_uring: %s", g_strerror(-err));
        _exit(EXIT_FAILURE);
    }
    if (!atomic_exchange(&told, true)) {
        log_info("the kernel refuses io_uring (%s): the thread pool reads and writes",
                 g_strerror(-err));
    }
    return aio_pool_new(aio_pool);
}

static void free_aio(void *slot)
{
    Aio *aio = slot;
    aio->ops->free(aio);
}

static Aio *current_aio(Worker *worker)
{
    void **slot = worker_aio_slot(worker);
    if (*slot == NULL) {
        *slot = choose(worker);
        worker_set_aio_free(worker, free_aio);
    }
    return *slot;
}

void aio_submit(StoreIo *io, int fd)
{
    io->worker = worker_current();
    g_assert(io->worker != NULL);
    io->fd = fd;
    io->progress = 0;
    Aio *aio = current_aio(io->worker);
    aio->ops->submit(aio, io);
}

const char *aio_name(void)
{
    return current_aio(worker_current())->ops->name;
}
