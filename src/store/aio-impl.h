/*
 * Between aio.c and its two back ends. Every function runs on the worker that owns the back end.
 * [worker]
 */
#ifndef STORE_AIO_IMPL_H
#define STORE_AIO_IMPL_H

#include "store/aio.h"

typedef struct Aio Aio;

typedef struct AioOps {
    const char *name;
    void (*submit)(Aio *aio, StoreIo *io); /* io->fd, io->worker and io->progress = 0 are set */
    void (*free)(Aio *aio);                /* nothing is in flight */
} AioOps;

/* The common head; a back end embeds it first. */
struct Aio {
    const AioOps *ops;
};

/* NULL with *err set to a negative errno when the kernel refuses. */
Aio *aio_uring_new(Worker *worker, int *err);

Aio *aio_pool_new(Pool *pool);

#endif
