/*
 * Asynchronous I/O by threads that may block: where io_uring is refused.
 *
 *      [worker] submit -> [pool] the store's own blocking transfer -> [worker] done
 */
#include <stddef.h>

#include "store/aio-impl.h"

typedef struct AioPool {
    Aio aio;
    Pool *pool;
} AioPool;

static void transfer_done(WorkerMessage *message)
{
    StoreIo *io = (StoreIo *)((char *)message - offsetof(StoreIo, message));
    store_io_end(io);
}

static void transfer_job(PoolJob *job)
{
    StoreIo *io = (StoreIo *)((char *)job - offsetof(StoreIo, job));
    if (io->kind == STORE_IO_READ) {
        io->result = store_readv(io->store, io->iov, io->iov_count, io->offset);
    } else {
        io->result = store_writev(io->store, io->iov, io->iov_count, io->offset);
    }
    io->message.run = transfer_done;
    worker_post(io->worker, &io->message);
}

static void aio_pool_submit(Aio *aio, StoreIo *io)
{
    io->job.run = transfer_job;
    pool_submit(((AioPool *)aio)->pool, &io->job);
}

static void aio_pool_free(Aio *aio)
{
    g_free(aio);
}

Aio *aio_pool_new(Pool *pool)
{
    static const AioOps ops = {"pool", aio_pool_submit, aio_pool_free};
    AioPool *made = g_new0(AioPool, 1);
    made->aio.ops = &ops;
    made->pool = pool;
    return &made->aio;
}
