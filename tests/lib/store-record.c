/*
 * Stores in memory that record what is done to them.
 *
 * One mutex protects the bytes of all files of a record, the record and its clock, and is held for the moment in
 * which an operation takes effect; waits lie before and after it. An entry is appended when its operation takes
 * effect, so the list is in the order of `tick`; `end` is filled in when the caller is told.
 */
#include "tests/lib/store-record.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "tests/lib/random.h"

#define CONTENT_MAX (256u << 20) /* when no capacity is given */
#define HOLE_BLOCK  4096u
#define NO_ENTRY    UINT64_MAX

/* What the files of an image share. */
typedef struct Record {
    atomic_int refs; /* of files */
    RecordOptions options;
    pthread_mutex_t lock;
    uint64_t clock;
    Random random;
    GArray *entries;
    uint64_t syncs;
    unsigned files;
    uint64_t size; /* of all of them */
} Record;

typedef struct RecordStore {
    Store store; /* first */
    Record *record;
    unsigned number;
    uint8_t *content;
    bool *written; /* for each HOLE_BLOCK: something was, since it was a hole */
    uint64_t capacity;
} RecordStore;

static RecordStore *file_of(Store *store)
{
    return (RecordStore *)store;
}

static uint64_t tick_now(RecordStore *file)
{
    with_mutex(&file->record->lock);
    return ++file->record->clock;
}

uint64_t record_tick(Store *store)
{
    return tick_now(file_of(store));
}

static void wait_a_little(RecordStore *file)
{
    unsigned us = 0;
    {
        with_mutex(&file->record->lock);
        if (file->record->options.delay_max_us &&
            random_percent(&file->record->random, file->record->options.delay_percent)) {
            us = 1 + random_below(&file->record->random, file->record->options.delay_max_us);
        }
    }
    if (us) {
        usleep(us);
    }
}

static bool answers_eagain(RecordStore *file)
{
    with_mutex(&file->record->lock);
    return random_percent(&file->record->random, file->record->options.eagain_percent);
}

static uint64_t blocks_of(uint64_t bytes)
{
    return (bytes + HOLE_BLOCK - 1) / HOLE_BLOCK;
}

/* Under the lock, as all up to the operations. */
static bool has_room(const RecordStore *file, uint64_t end)
{
    uint64_t others = file->record->size - file->store.size;
    return end <= file->store.size || range_within(others, end, file->record->options.capacity);
}

static void content_resize(RecordStore *file, uint64_t size)
{
    uint64_t old = file->store.size;
    if (size > file->capacity) {
        file->capacity = max_u64(size, file->capacity * 2);
        file->content = g_realloc(file->content, file->capacity);
        file->written = g_renew(bool, file->written, blocks_of(file->capacity));
    }
    if (size > old) {
        memset(file->content + old, 0, size - old);
        memset(file->written + blocks_of(old), 0, blocks_of(size) - blocks_of(old));
    }
    file->record->size += size - old;
    file->store.size = size;
}

/* Bytes that a write has left, a failed one too, are data, though they may be zeroes: what it has
 * covered may still be on the disk. */
static void mark_written(RecordStore *file, uint64_t offset, uint64_t length)
{
    uint64_t first = offset / HOLE_BLOCK;
    memset(file->written + first, true, blocks_of(offset + length) - first);
}

static bool is_zero(const uint8_t *bytes, uint64_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

/* What the store begins with: blocks of zeroes are holes. */
static void content_begin(RecordStore *file, const uint8_t *content, uint64_t size)
{
    for (uint64_t at = 0; at < size; at += HOLE_BLOCK) {
        uint64_t length = min_u64(HOLE_BLOCK, size - at);
        memcpy(file->content + at, content + at, length);
        file->written[at / HOLE_BLOCK] = !is_zero(content + at, length);
    }
}

/* Whole blocks become holes; the parts at both ends only zeroes. */
static void punch(RecordStore *file, uint64_t offset, uint64_t length)
{
    uint64_t first = blocks_of(offset), end = offset + length;
    uint64_t last = end == file->store.size ? blocks_of(end) : end / HOLE_BLOCK;
    memset(file->content + offset, 0, length);
    if (first < last) {
        memset(file->written + first, false, last - first);
    }
}

static uint64_t entry_add(RecordStore *file, RecordEntry entry)
{
    Record *record = file->record;
    entry.file = file->number;
    entry.tick = ++record->clock;
    if (record->options.discard) {
        g_free(entry.data);
        return NO_ENTRY;
    }
    g_array_append_val(record->entries, entry);
    return record->entries->len - 1;
}

static void entry_end(RecordStore *file, uint64_t index)
{
    if (index != NO_ENTRY) {
        with_mutex(&file->record->lock);
        g_array_index(file->record->entries, RecordEntry, index).end = ++file->record->clock;
    }
}

static uint64_t iov_length(const struct iovec *iov, int count)
{
    uint64_t length = 0;
    for (int i = 0; i < count; i++) {
        length += iov[i].iov_len;
    }
    return length;
}

static void read_effect(RecordStore *file, const struct iovec *iov, int count, uint64_t offset)
{
    with_mutex(&file->record->lock);
    for (int i = 0; i < count; i++) {
        uint64_t have = offset < file->store.size ? file->store.size - offset : 0;
        uint64_t n = min_u64(have, iov[i].iov_len);
        memcpy(iov[i].iov_base, file->content + (n ? offset : 0), n);
        memset((uint8_t *)iov[i].iov_base + n, 0, iov[i].iov_len - n);
        offset += iov[i].iov_len;
    }
}

static uint8_t *iov_flatten(const struct iovec *iov, int count, uint64_t length)
{
    uint8_t *data = g_malloc(length + 1);
    uint8_t *to = data;
    for (int i = 0; i < count; i++) {
        memcpy(to, iov[i].iov_base, iov[i].iov_len);
        to += iov[i].iov_len;
    }
    return data;
}

/* How much of a failing write reaches the disk: whole sectors from its start, often none. */
static uint64_t failed_length(RecordStore *file, uint64_t length)
{
    if (random_percent(&file->record->random, 50)) {
        return 0;
    }
    return random_below(&file->record->random, length / RECORD_SECTOR + 1) * RECORD_SECTOR;
}

/* Returns the entry's index, NO_ENTRY when there is none; *error holds the write's result. */
static uint64_t write_effect(RecordStore *file, const struct iovec *iov, int count, uint64_t offset,
                             uint64_t begin, int *error)
{
    uint64_t length = iov_length(iov, count);
    *error = fault_plan_check(file->record->options.faults, FAULT_WRITE);
    with_mutex(&file->record->lock);
    if (!*error && !has_room(file, offset + length)) {
        *error = -ENOSPC;
        return NO_ENTRY;
    }
    uint64_t done = *error ? failed_length(file, length) : length;
    if (done == 0) {
        return NO_ENTRY;
    }
    uint8_t *data = iov_flatten(iov, count, length);
    if (offset + done > file->store.size) {
        content_resize(file, offset + done);
    }
    memcpy(file->content + offset, data, done);
    mark_written(file, offset, done);
    return entry_add(file, (RecordEntry){.kind = RECORD_WRITE,
                                         .begin = begin,
                                         .end = RECORD_NEVER,
                                         .offset = offset,
                                         .length = done,
                                         .data = data});
}

static int record_write(RecordStore *file, const struct iovec *iov, int count, uint64_t offset)
{
    uint64_t begin = tick_now(file);
    int error;
    uint64_t index = write_effect(file, iov, count, offset, begin, &error);
    if (!error) {
        entry_end(file, index);
    }
    return error;
}

static int record_preadv(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    RecordStore *file = file_of(store);
    int error = fault_plan_check(file->record->options.faults, FAULT_READ);
    if (error) {
        return error;
    }
    wait_a_little(file);
    read_effect(file, iov, count, offset);
    return 0;
}

static int record_pwritev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    RecordStore *file = file_of(store);
    wait_a_little(file);
    return record_write(file, iov, count, offset);
}

static int record_read_nowait(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    RecordStore *file = file_of(store);
    if (answers_eagain(file)) {
        return -EAGAIN;
    }
    int error = fault_plan_check(file->record->options.faults, FAULT_READ);
    if (!error) {
        read_effect(file, iov, count, offset);
    }
    return error;
}

static int record_write_nowait(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    RecordStore *file = file_of(store);
    return answers_eagain(file) ? -EAGAIN : record_write(file, iov, count, offset);
}

/* The implementation's fields of a StoreIo: `progress` holds the tick of the beginning, then the
 * entry. */
static void io_done(WorkerMessage *message)
{
    StoreIo *io = (StoreIo *)((char *)message - offsetof(StoreIo, message));
    if (io->kind == STORE_IO_WRITE && io->result == 0) {
        entry_end(file_of(io->store), io->progress);
    }
    store_io_end(io);
}

static void io_run(PoolJob *job)
{
    StoreIo *io = (StoreIo *)((char *)job - offsetof(StoreIo, job));
    RecordStore *file = file_of(io->store);
    wait_a_little(file);
    if (io->kind == STORE_IO_READ) {
        io->result = fault_plan_check(file->record->options.faults, FAULT_READ);
        if (io->result == 0) {
            read_effect(file, io->iov, io->iov_count, io->offset);
        }
    } else {
        int error;
        io->progress = write_effect(file, io->iov, io->iov_count, io->offset, io->progress, &error);
        io->result = error;
    }
    wait_a_little(file);
    worker_post(io->worker, &io->message);
}

static void record_submit(StoreIo *io)
{
    RecordStore *file = file_of(io->store);
    io->worker = worker_current();
    io->message.run = io_done;
    io->progress = tick_now(file);
    io->job.run = io_run;
    pool_submit(file->record->options.pool, &io->job);
}

static int record_punch(Store *store, uint64_t offset, uint64_t length, StorePunch how)
{
    RecordStore *file = file_of(store);
    if (file->record->options.no_punch) {
        return -ENOTSUP;
    }
    int error = fault_plan_check(file->record->options.faults, FAULT_PUNCH);
    if (error) {
        return error;
    }
    uint64_t begin = tick_now(file);
    uint64_t index = NO_ENTRY;
    {
        with_mutex(&file->record->lock);
        if (offset < store->size) {
            length = min_u64(length, store->size - offset);
            punch(file, offset, length);
            index = entry_add(file, (RecordEntry){.kind = RECORD_PUNCH,
                                                  .begin = begin,
                                                  .end = RECORD_NEVER,
                                                  .offset = offset,
                                                  .length = length});
        }
    }
    entry_end(file, index);
    return 0;
}

static int record_next_data(Store *store, uint64_t offset, uint64_t length, bool *data,
                            uint64_t *run)
{
    RecordStore *file = file_of(store);
    with_mutex(&file->record->lock);
    uint64_t at = offset, end = min_u64(offset + length, store->size);
    while (at < end) {
        uint64_t next = min_u64(end, align_down(at, HOLE_BLOCK) + HOLE_BLOCK);
        bool block_has_data = file->written[at / HOLE_BLOCK];
        if (at == offset) {
            *data = block_has_data;
        } else if (*data != block_has_data) {
            break;
        }
        at = next;
    }
    *data = at > offset && *data;
    *run = at > offset ? at - offset : length;
    return 0;
}

static int record_truncate(Store *store, uint64_t size)
{
    RecordStore *file = file_of(store);
    int error = fault_plan_check(file->record->options.faults, FAULT_TRUNCATE);
    if (error) {
        return error;
    }
    uint64_t begin = tick_now(file);
    uint64_t index;
    {
        with_mutex(&file->record->lock);
        if (!has_room(file, size)) {
            return -ENOSPC;
        }
        content_resize(file, size);
        index = entry_add(file, (RecordEntry){.kind = RECORD_TRUNCATE,
                                              .begin = begin,
                                              .end = RECORD_NEVER,
                                              .length = size});
    }
    entry_end(file, index);
    return 0;
}

static void record_durable(RecordStore *file, uint64_t begin)
{
    uint64_t index = entry_add(file, (RecordEntry){.kind = RECORD_SYNC, .begin = begin});
    if (index != NO_ENTRY) {
        RecordEntry *entry = &g_array_index(file->record->entries, RecordEntry, index);
        entry->end = entry->tick;
    }
}

/* All of it at once, and durable when it ends. A replacement that fails comes too late or did nothing. */
static int record_replace(Store *store, const void *bytes, uint64_t length)
{
    RecordStore *file = file_of(store);
    int error = fault_plan_check(file->record->options.faults, FAULT_WRITE);
    uint64_t begin = tick_now(file), index;
    {
        with_mutex(&file->record->lock);
        if (!has_room(file, length)) {
            return -ENOSPC;
        }
        if (error && random_percent(&file->record->random, 50)) {
            return error;
        }
        content_resize(file, length);
        memcpy(file->content, bytes, length);
        mark_written(file, 0, length);
        index = entry_add(file, (RecordEntry){.kind = RECORD_REPLACE,
                                              .begin = begin,
                                              .end = RECORD_NEVER,
                                              .length = length,
                                              .data = g_memdup2(bytes, length)});
    }
    if (!error) {
        entry_end(file, index);
        begin = tick_now(file);
        with_mutex(&file->record->lock);
        record_durable(file, begin);
    }
    return error;
}

static int record_sync(Store *store)
{
    RecordStore *file = file_of(store);
    Record *record = file->record;
    int error = fault_plan_check(record->options.faults, FAULT_SYNC);
    if (error) {
        return error;
    }
    uint64_t begin = tick_now(file);
    wait_a_little(file);
    with_mutex(&record->lock);
    bool lie = record->options.sync_is_lie && record->options.sync_is_lie(++record->syncs);
    if (!lie) {
        record_durable(file, begin);
    }
    return 0;
}

static uint64_t record_allocated_bytes(Store *store)
{
    return store->size;
}

static void record_unref(Record *record)
{
    if (atomic_fetch_sub(&record->refs, 1) > 1) {
        return;
    }
    for (guint i = 0; i < record->entries->len; i++) {
        g_free(g_array_index(record->entries, RecordEntry, i).data);
    }
    g_array_free(record->entries, TRUE);
    pthread_mutex_destroy(&record->lock);
    g_free(record);
}

static void record_close(Store *store)
{
    RecordStore *file = file_of(store);
    g_free(file->content);
    g_free(file->written);
    record_unref(file->record);
}

static const StoreOps record_ops = {
    .name = "record",
    .preadv = record_preadv,
    .pwritev = record_pwritev,
    .read_nowait = record_read_nowait,
    .write_nowait = record_write_nowait,
    .submit = record_submit,
    .punch = record_punch,
    .next_data = record_next_data,
    .truncate = record_truncate,
    .replace = record_replace,
    .sync = record_sync,
    .allocated_bytes = record_allocated_bytes,
    .close = record_close,
};

static Store *file_new(Record *record, const char *name, const uint8_t *content, uint64_t size)
{
    RecordStore *file = g_new0(RecordStore, 1);
    store_init(&file->store, &record_ops, name, false, size);
    file->record = record;
    file->number = record->files++;
    record->size += size;
    file->capacity = max_u64(size, 1u << 20);
    file->content = g_malloc0(file->capacity);
    file->written = g_new0(bool, blocks_of(file->capacity));
    content_begin(file, content, size);
    return &file->store;
}

Store *store_record_new(const char *name, const uint8_t *content, uint64_t size,
                        const RecordOptions *options)
{
    Record *record = g_new0(Record, 1);
    record->refs = 1;
    record->options = *options;
    record->options.capacity = options->capacity ? max_u64(options->capacity, size) : CONTENT_MAX;
    record->random = random_new(options->seed);
    pthread_mutex_init(&record->lock, NULL);
    record->entries = g_array_new(FALSE, FALSE, sizeof(RecordEntry));
    return file_new(record, name, content, size);
}

Store *store_record_beside(Store *first, const char *name, const uint8_t *content, uint64_t size)
{
    Record *record = file_of(first)->record;
    atomic_fetch_add(&record->refs, 1);
    return file_new(record, name, content, size);
}

const RecordEntry *record_entries(Store *store, size_t *count)
{
    GArray *entries = file_of(store)->record->entries;
    *count = entries->len;
    return (const RecordEntry *)entries->data;
}

const uint8_t *record_content(Store *store, uint64_t *size)
{
    *size = store->size;
    return file_of(store)->content;
}
