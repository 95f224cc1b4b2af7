/*
 * A store in memory that can go back.
 *
 * The content and its base are two buffers that are equal except in pages marked as touched. Beyond
 * the size of either, its buffer holds zeroes, so that growing is only a change of size.
 */
#include "tests/lib/store-scratch.h"

#include <pthread.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"

#define PAGE        4096u
#define CONTENT_MAX (256u << 20)

typedef struct ScratchStore {
    Store store; /* first */
    pthread_mutex_t lock;
    uint8_t *base, *content;
    uint64_t base_size, capacity;
    uint8_t *touched; /* one flag a page */
    GArray *touched_pages;
} ScratchStore;

static ScratchStore *scratch_of(Store *store)
{
    return (ScratchStore *)store;
}

/* Fresh zeroes, of which nothing is touched that need not be: an image may be large and empty. */
static uint8_t *grown(uint8_t *memory, uint64_t old, uint64_t size)
{
    uint8_t *larger = g_malloc0(size);
    if (old > 0) {
        memcpy(larger, memory, old);
    }
    g_free(memory);
    return larger;
}

static void ensure_capacity(ScratchStore *scratch, uint64_t size)
{
    if (size > scratch->capacity) {
        uint64_t old = scratch->capacity;
        uint64_t capacity = align_up(max_u64(size, old * 2), PAGE);
        scratch->base = grown(scratch->base, old, capacity);
        scratch->content = grown(scratch->content, old, capacity);
        scratch->touched = grown(scratch->touched, old / PAGE, capacity / PAGE);
        scratch->capacity = capacity;
    }
}

static void touch(ScratchStore *scratch, uint64_t offset, uint64_t length)
{
    for (uint64_t page = offset / PAGE; length && page <= (offset + length - 1) / PAGE; page++) {
        if (!scratch->touched[page]) {
            scratch->touched[page] = 1;
            g_array_append_val(scratch->touched_pages, page);
        }
    }
}

static int write_locked(ScratchStore *scratch, const struct iovec *iov, int count, uint64_t offset)
{
    for (int i = 0; i < count; i++) {
        uint64_t end;
        if (!add_u64(offset, iov[i].iov_len, &end) || end > CONTENT_MAX) {
            return -ENOSPC;
        }
        ensure_capacity(scratch, end);
        touch(scratch, offset, iov[i].iov_len);
        memcpy(scratch->content + offset, iov[i].iov_base, iov[i].iov_len);
        offset = end;
        scratch->store.size = max_u64(scratch->store.size, end);
    }
    return 0;
}

static int scratch_pwritev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    with_mutex(&scratch_of(store)->lock);
    return write_locked(scratch_of(store), iov, count, offset);
}

static int scratch_preadv(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    ScratchStore *scratch = scratch_of(store);
    with_mutex(&scratch->lock);
    for (int i = 0; i < count; i++) {
        uint64_t have = offset < store->size ? store->size - offset : 0;
        uint64_t n = min_u64(have, iov[i].iov_len);
        memcpy(iov[i].iov_base, scratch->content + (n ? offset : 0), n);
        memset((uint8_t *)iov[i].iov_base + n, 0, iov[i].iov_len - n);
        offset += iov[i].iov_len;
    }
    return 0;
}

static void io_done(WorkerMessage *message)
{
    StoreIo *io = (StoreIo *)((char *)message - offsetof(StoreIo, message));
    store_io_end(io);
}

static void scratch_submit(StoreIo *io)
{
    if (io->kind == STORE_IO_READ) {
        io->result = scratch_preadv(io->store, io->iov, io->iov_count, io->offset);
    } else {
        io->result = scratch_pwritev(io->store, io->iov, io->iov_count, io->offset);
    }
    io->message.run = io_done;
    worker_post(worker_current(), &io->message);
}

static void zero_locked(ScratchStore *scratch, uint64_t offset, uint64_t length)
{
    touch(scratch, offset, length);
    memset(scratch->content + offset, 0, length);
}

static int scratch_punch(Store *store, uint64_t offset, uint64_t length, StorePunch how)
{
    with_mutex(&scratch_of(store)->lock);
    if (offset < store->size) {
        zero_locked(scratch_of(store), offset, min_u64(length, store->size - offset));
    }
    return 0;
}

static int scratch_next_data(Store *store, uint64_t offset, uint64_t length, bool *data,
                             uint64_t *run)
{
    *data = true;
    *run = length;
    return 0;
}

static int scratch_truncate(Store *store, uint64_t size)
{
    ScratchStore *scratch = scratch_of(store);
    if (size > CONTENT_MAX) {
        return -ENOSPC;
    }
    with_mutex(&scratch->lock);
    ensure_capacity(scratch, size);
    if (size < store->size) {
        zero_locked(scratch, size, store->size - size);
    }
    store->size = size;
    return 0;
}

static int scratch_replace(Store *store, const void *bytes, uint64_t length)
{
    int r = scratch_truncate(store, length);
    return r < 0 ? r : store_write(store, bytes, length, 0);
}

static int scratch_sync(Store *store)
{
    return 0;
}

static uint64_t scratch_allocated_bytes(Store *store)
{
    return store->size;
}

static void scratch_close(Store *store)
{
    ScratchStore *scratch = scratch_of(store);
    g_free(scratch->base);
    g_free(scratch->content);
    g_free(scratch->touched);
    g_array_free(scratch->touched_pages, TRUE);
    pthread_mutex_destroy(&scratch->lock);
}

static const StoreOps scratch_ops = {
    .name = "scratch",
    .preadv = scratch_preadv,
    .pwritev = scratch_pwritev,
    .read_nowait = scratch_preadv,
    .write_nowait = scratch_pwritev,
    .submit = scratch_submit,
    .punch = scratch_punch,
    .next_data = scratch_next_data,
    .truncate = scratch_truncate,
    .replace = scratch_replace,
    .sync = scratch_sync,
    .allocated_bytes = scratch_allocated_bytes,
    .close = scratch_close,
};

/* `to` is zeroes. */
static void copy_sparse(uint8_t *to, const uint8_t *from, uint64_t size)
{
    static const uint8_t zeroes[PAGE];
    for (uint64_t at = 0; at < size; at += PAGE) {
        uint64_t length = min_u64(PAGE, size - at);
        if (memcmp(from + at, zeroes, length) != 0) {
            memcpy(to + at, from + at, length);
        }
    }
}

Store *store_scratch_new(const char *name, const uint8_t *content, uint64_t size)
{
    ScratchStore *scratch = g_new0(ScratchStore, 1);
    store_init(&scratch->store, &scratch_ops, name, false, size);
    pthread_mutex_init(&scratch->lock, NULL);
    scratch->touched_pages = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    ensure_capacity(scratch, max_u64(size, 1u << 20));
    scratch->base_size = size;
    copy_sparse(scratch->base, content, size);
    copy_sparse(scratch->content, content, size);
    return &scratch->store;
}

static void copy_touched(ScratchStore *scratch, uint8_t *to, const uint8_t *from)
{
    for (guint i = 0; i < scratch->touched_pages->len; i++) {
        uint64_t page = g_array_index(scratch->touched_pages, uint64_t, i);
        memcpy(to + page * PAGE, from + page * PAGE, PAGE);
        scratch->touched[page] = 0;
    }
    g_array_set_size(scratch->touched_pages, 0);
}

void scratch_reset(Store *store)
{
    ScratchStore *scratch = scratch_of(store);
    with_mutex(&scratch->lock);
    copy_touched(scratch, scratch->content, scratch->base);
    store->size = scratch->base_size;
}

void scratch_commit(Store *store)
{
    ScratchStore *scratch = scratch_of(store);
    with_mutex(&scratch->lock);
    copy_touched(scratch, scratch->base, scratch->content);
    scratch->base_size = store->size;
}

const uint8_t *scratch_content(Store *store, uint64_t *size)
{
    *size = store->size;
    return scratch_of(store)->content;
}
