/*
 * The store in memory: an array behind a mutex.
 *
 * What must stay true: bytes between size and capacity are zero, so that growing shows zeroes.
 */
#include "tests/lib/store-memory.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"

typedef struct MemoryStore {
    Store store;
    pthread_mutex_t mutex;
    uint8_t *bytes;
    uint64_t capacity;
    uint64_t writes; /* since fail_first was set */
    uint64_t fail_first, fail_count;
    uint64_t syncs;
} MemoryStore;

static MemoryStore *memory_of(Store *store)
{
    return (MemoryStore *)store;
}

/* With the mutex held. */
static int memory_reserve(MemoryStore *memory, uint64_t size)
{
    if (size > MEMORY_SIZE_MAX) {
        return -ENOSPC;
    }
    if (size > memory->capacity) {
        uint64_t capacity = max_u64(size, memory->capacity + memory->capacity / 2);
        capacity = min_u64(capacity, MEMORY_SIZE_MAX);
        memory->bytes = g_realloc(memory->bytes, capacity);
        memset(memory->bytes + memory->capacity, 0, capacity - memory->capacity);
        memory->capacity = capacity;
    }
    return 0;
}

static int memory_preadv(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    MemoryStore *memory = memory_of(store);
    with_mutex(&memory->mutex);
    uint64_t size = store_size(store);
    for (int i = 0; i < count; i++) {
        uint64_t there = offset < size ? min_u64(iov[i].iov_len, size - offset) : 0;
        if (there > 0) {
            memcpy(iov[i].iov_base, memory->bytes + offset, there);
        }
        if (there < iov[i].iov_len) {
            memset((uint8_t *)iov[i].iov_base + there, 0, iov[i].iov_len - there);
        }
        offset += iov[i].iov_len;
    }
    return 0;
}

static int memory_pwritev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    MemoryStore *memory = memory_of(store);
    with_mutex(&memory->mutex);
    uint64_t number = memory->writes++;
    if (number >= memory->fail_first && number - memory->fail_first < memory->fail_count) {
        return -EIO;
    }
    for (int i = 0; i < count; i++) {
        uint64_t end;
        if (!add_u64(offset, iov[i].iov_len, &end) || memory_reserve(memory, end) < 0) {
            return -ENOSPC;
        }
        if (iov[i].iov_len > 0) {
            memcpy(memory->bytes + offset, iov[i].iov_base, iov[i].iov_len);
        }
        if (end > store_size(store)) {
            atomic_store(&store->size, end);
        }
        offset = end;
    }
    return 0;
}

static void memory_report(WorkerMessage *message)
{
    StoreIo *io = (StoreIo *)((char *)message - offsetof(StoreIo, message));
    store_io_end(io);
}

static void memory_submit(StoreIo *io)
{
    if (io->kind == STORE_IO_READ) {
        io->result = memory_preadv(io->store, io->iov, io->iov_count, io->offset);
    } else if (io->store->read_only) {
        io->result = -EROFS;
    } else {
        io->result = memory_pwritev(io->store, io->iov, io->iov_count, io->offset);
    }
    io->message.run = memory_report;
    worker_post(worker_current(), &io->message);
}

static int memory_punch(Store *store, uint64_t offset, uint64_t length, StorePunch how)
{
    MemoryStore *memory = memory_of(store);
    with_mutex(&memory->mutex);
    memset(memory->bytes + offset, 0, length);
    return 0;
}

static int memory_next_data(Store *store, uint64_t offset, uint64_t length, bool *data,
                            uint64_t *run)
{
    *data = true;
    *run = length;
    return 0;
}

static int memory_truncate(Store *store, uint64_t size)
{
    MemoryStore *memory = memory_of(store);
    with_mutex(&memory->mutex);
    uint64_t old = store_size(store);
    int r = memory_reserve(memory, size);
    if (r < 0) {
        return r;
    }
    if (size < old) {
        memset(memory->bytes + size, 0, old - size);
    }
    atomic_store(&store->size, size);
    return 0;
}

static int memory_replace(Store *store, const void *bytes, uint64_t length)
{
    int r = memory_truncate(store, length);
    return r < 0 ? r : store_write(store, bytes, length, 0);
}

static int memory_sync(Store *store)
{
    MemoryStore *memory = memory_of(store);
    with_mutex(&memory->mutex);
    memory->syncs++;
    return 0;
}

static uint64_t memory_allocated_bytes(Store *store)
{
    return store_size(store);
}

static void memory_close(Store *store)
{
    MemoryStore *memory = memory_of(store);
    g_free(memory->bytes);
    pthread_mutex_destroy(&memory->mutex);
}

static const StoreOps memory_ops = {
    .name = "memory",
    .preadv = memory_preadv,
    .pwritev = memory_pwritev,
    .read_nowait = memory_preadv,
    .write_nowait = memory_pwritev,
    .submit = memory_submit,
    .punch = memory_punch,
    .next_data = memory_next_data,
    .truncate = memory_truncate,
    .replace = memory_replace,
    .sync = memory_sync,
    .allocated_bytes = memory_allocated_bytes,
    .close = memory_close,
};

Store *store_memory_new(const char *name, const void *content, uint64_t size)
{
    MemoryStore *memory = g_new0(MemoryStore, 1);
    g_assert(size <= MEMORY_SIZE_MAX);
    pthread_mutex_init(&memory->mutex, NULL);
    store_init(&memory->store, &memory_ops, name, false, size);
    memory_reserve(memory, size);
    if (content && size > 0) {
        memcpy(memory->bytes, content, size);
    }
    return &memory->store;
}

const uint8_t *store_memory_content(Store *store, uint64_t *size)
{
    *size = store_size(store);
    return memory_of(store)->bytes;
}

void store_memory_set_read_only(Store *store)
{
    store->read_only = true;
}

void store_memory_fail_writes(Store *store, uint64_t first, uint64_t count)
{
    MemoryStore *memory = memory_of(store);
    with_mutex(&memory->mutex);
    memory->writes = 0;
    memory->fail_first = first;
    memory->fail_count = count;
}

uint64_t store_memory_syncs(Store *store)
{
    MemoryStore *memory = memory_of(store);
    with_mutex(&memory->mutex);
    return memory->syncs;
}
