/*
 * The common head of every store: reference count, size, and dispatch to the implementation. What
 * all of them share is decided here once: nothing writes to a read-only store, punches end at the
 * end of the store, and what lies past the end is a hole.
 */
#include "store/store.h"

#include <errno.h>
#include <stdatomic.h>

#include "base/bytes.h"
#include "base/cleanup.h"

void store_init(Store *store, const StoreOps *ops, const char *name, bool read_only, uint64_t size)
{
    store->ops = ops;
    store->name = g_strdup(name);
    store->read_only = read_only;
    store->refs = 1;
    atomic_init(&store->size, size);
    atomic_init(&store->changed, true); /* nobody knows who wrote before */
    atomic_init(&store->shared, false);
    pthread_mutex_init(&store->sync_lock, NULL);
}

/* After the change, so that a sync which does not see this began before the change ended. */
static int note_change(Store *store, int result)
{
    if (!atomic_load(&store->changed)) {
        atomic_store(&store->changed, true);
    }
    return result;
}

void store_share(Store *store)
{
    atomic_store(&store->shared, true);
}

Store *store_ref(Store *store)
{
    g_atomic_int_inc(&store->refs);
    return store;
}

void store_unref(Store *store)
{
    if (store != NULL && g_atomic_int_dec_and_test(&store->refs)) {
        store->ops->close(store);
        pthread_mutex_destroy(&store->sync_lock);
        g_free(store->name);
        g_free(store);
    }
}

uint64_t store_size(const Store *store)
{
    return atomic_load_explicit(&store->size, memory_order_acquire);
}

void store_raise_size(Store *store, uint64_t end)
{
    uint64_t size = atomic_load_explicit(&store->size, memory_order_relaxed);
    while (size < end &&
           !atomic_compare_exchange_weak_explicit(&store->size, &size, end, memory_order_release,
                                                  memory_order_relaxed)) {
    }
}

int store_read(Store *store, void *buffer, size_t length, uint64_t offset)
{
    struct iovec iov = {buffer, length};
    return store_readv(store, &iov, 1, offset);
}

int store_write(Store *store, const void *buffer, size_t length, uint64_t offset)
{
    struct iovec iov = {(void *)buffer, length};
    return store_writev(store, &iov, 1, offset);
}

int store_readv(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    return store->ops->preadv(store, iov, count, offset);
}

int store_writev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    return store->read_only ? -EROFS
                            : note_change(store, store->ops->pwritev(store, iov, count, offset));
}

int store_read_nowait(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    if (store->ops->read_nowait == NULL) {
        return -EAGAIN;
    }
    return store->ops->read_nowait(store, iov, count, offset);
}

int store_write_nowait(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    if (store->read_only) {
        return -EROFS;
    }
    if (store->ops->write_nowait == NULL) {
        return -EAGAIN;
    }
    return note_change(store, store->ops->write_nowait(store, iov, count, offset));
}

int store_write_direct(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    if (store->read_only) {
        return -EROFS;
    }
    return store->ops->write_direct
               ? note_change(store, store->ops->write_direct(store, iov, count, offset))
               : -EAGAIN;
}

void store_submit(StoreIo *io)
{
    io->store->ops->submit(io);
}

void store_io_end(StoreIo *io)
{
    if (io->kind == STORE_IO_WRITE) {
        note_change(io->store, 0);
    }
    io->done(io);
}

int store_punch(Store *store, uint64_t offset, uint64_t length, StorePunch how)
{
    if (store->read_only) {
        return -EROFS;
    }
    uint64_t size = store_size(store);
    if (offset >= size || length == 0) {
        return 0;
    }
    return note_change(store,
                       store->ops->punch(store, offset, min_u64(length, size - offset), how));
}

int store_next_data(Store *store, uint64_t offset, uint64_t length, bool *data, uint64_t *run)
{
    uint64_t size = store_size(store);
    *data = false;
    *run = length;
    if (offset >= size || length == 0) {
        return 0;
    }
    return store->ops->next_data(store, offset, min_u64(length, size - offset), data, run);
}

int store_truncate(Store *store, uint64_t size)
{
    return store->read_only ? -EROFS : note_change(store, store->ops->truncate(store, size));
}

int store_replace(Store *store, const void *bytes, uint64_t length)
{
    if (store->read_only) {
        return -EROFS;
    }
    return store->ops->replace ? store->ops->replace(store, bytes, length) : -ENOTSUP;
}

int store_sync(Store *store)
{
    return store->ops->sync(store);
}

/* One at a time: who finds nothing changed must not be told so while the sync that covers it still runs. */
int store_sync_changes(Store *store)
{
    with_mutex(&store->sync_lock);
    if (!atomic_exchange(&store->changed, false) && !atomic_load(&store->shared)) {
        return 0;
    }
    int r = store_sync(store);
    if (r < 0) {
        atomic_store(&store->changed, true);
    }
    return r;
}

void store_start_sync(Store *store, uint64_t offset, uint64_t length)
{
    if (store->ops->start_sync) {
        store->ops->start_sync(store, offset, length);
    }
}

uint64_t store_allocated_bytes(Store *store)
{
    return store->ops->allocated_bytes(store);
}
