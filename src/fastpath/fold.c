/*
 * Brings what a store holds into the image on top, by way of the engine: so every format that can
 * be written to can be folded into, and all rules about the order of data and metadata are the
 * engine's.
 *
 *      this thread   reads runs of chunks from the store    ---> slots --->  worker: node_submit
 *                    waits for a free slot                  <-------------  request_done
 *
 * What must stay true:
 *  1. The image does not change before the store says FOLDING on stable storage.
 *  2. The store says FOLDED only after a flush and the orderly end of the disk.
 *  3. A store is removed only when it says FOLDED.
 *  4. Until then nothing of the store changes but its state, so to begin again is always right.
 */
#include "fastpath/fold.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "base/pool.h"
#include "base/worker.h"
#include "engine/disk.h"
#include "fastpath/cowstore.h"
#include "formats/format.h"
#include "store/aio.h"
#include "store/store-file.h"

#define SLOTS        8
#define SLOT_SIZE    (1u << 20) /* bytes of the longest run */
#define POOL_THREADS 4
#define PROGRESS     (16u << 20) /* bytes between two reports */
#define FLUSH_AFTER  (64u << 20) /* bytes: what a cut may leave behind as leaked space */

typedef struct Writer Writer;

/* One request and its memory. */
typedef struct Slot {
    Request request; /* first: done gets it */
    WorkerMessage start;
    Writer *writer;
    uint8_t *buffer;
    bool busy;
} Slot;

struct Writer {
    Disk *disk;
    Worker *worker;
    uint32_t slot_size;
    Slot slots[SLOTS];
    pthread_mutex_t lock;
    pthread_cond_t freed;
    int result; /* the first error */
};

/* A fold under way. */
typedef struct Fold {
    Store *store;
    const Exceptions *list;
    uint64_t disk_size, unit; /* of the image, bytes */
    Writer *writer;
    const FoldOptions *options;
    FoldResult *result;
    uint64_t reported; /* bytes done when progress was told last */
} Fold;

/* What becomes one request: exceptions that follow each other on the disk. */
typedef struct Run {
    uint8_t *buffer;
    uint64_t count, length; /* exceptions; bytes, cut at the end of the disk */
    bool zero;
} Run;

/* ---- requests ------------------------------------------------------------------------------ */

static void request_done(Request *request)
{
    Slot *slot = (Slot *)request;
    Writer *writer = slot->writer;
    int result = request->result;
    request_clear(request);
    with_mutex(&writer->lock);
    if (result < 0 && writer->result == 0) {
        writer->result = result;
    }
    slot->busy = false;
    pthread_cond_signal(&writer->freed);
}

/* [worker] */
static void start_run(WorkerMessage *message)
{
    Slot *slot = (Slot *)((char *)message - offsetof(Slot, start));
    node_submit(disk_node(slot->writer->disk), &slot->request);
}

static Slot *find_free(Writer *writer)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        if (!writer->slots[i].busy) {
            return &writer->slots[i];
        }
    }
    return NULL;
}

/* A slot that is free; NULL when a request has failed. Waits. */
static Slot *writer_slot(Writer *writer)
{
    with_mutex(&writer->lock);
    Slot *slot;
    while (!(slot = find_free(writer)) && writer->result == 0) {
        pthread_cond_wait(&writer->freed, &writer->lock);
    }
    return writer->result == 0 ? slot : NULL;
}

static void writer_submit(Writer *writer, Slot *slot, RequestType type, uint64_t offset,
                          uint64_t length)
{
    slot->request.type = type;
    slot->request.flags = 0;
    slot->request.offset = offset;
    slot->request.length = length;
    slot->request.buffer = type == REQUEST_WRITE ? slot->buffer : NULL;
    slot->request.worker = writer->worker;
    slot->request.done = request_done;
    slot->start.run = start_run;
    {
        with_mutex(&writer->lock);
        slot->busy = true;
    }
    worker_post(writer->worker, &slot->start);
}

static bool any_busy(const Writer *writer)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        if (writer->slots[i].busy) {
            return true;
        }
    }
    return false;
}

/* Waits for all requests; the first error or 0. */
static int writer_drain(Writer *writer)
{
    with_mutex(&writer->lock);
    while (any_busy(writer)) {
        pthread_cond_wait(&writer->freed, &writer->lock);
    }
    return writer->result;
}

static int writer_flush(Writer *writer)
{
    int r = writer_drain(writer);
    if (r < 0) {
        return r;
    }
    writer_submit(writer, &writer->slots[0], REQUEST_FLUSH, 0, 0);
    return writer_drain(writer);
}

static void writer_init(Writer *writer, Image *image, const FoldThreads *threads,
                        uint32_t slot_size)
{
    /* What the guest put into the store must not become another format by being folded. */
    bool guard = image->format_guessed && strcmp(image->format->name, "raw") == 0;
    *writer = (Writer){.worker = threads->worker, .slot_size = slot_size};
    writer->disk = disk_new(image, threads->pool, guard);
    pthread_mutex_init(&writer->lock, NULL);
    pthread_cond_init(&writer->freed, NULL);
    for (unsigned i = 0; i < SLOTS; i++) {
        Slot *slot = &writer->slots[i];
        request_init(&slot->request);
        slot->writer = writer;
        if (posix_memalign((void **)&slot->buffer, 4096, slot_size) != 0) {
            abort(); /* as GLib does when memory is gone */
        }
    }
}

/* Ends the disk in order. 0 or -errno: only after 0 is everything in the image. */
static int writer_clear(Writer *writer)
{
    writer_drain(writer);
    int r = disk_close(writer->disk);
    for (unsigned i = 0; i < SLOTS; i++) {
        free(writer->slots[i].buffer);
    }
    pthread_cond_destroy(&writer->freed);
    pthread_mutex_destroy(&writer->lock);
    return r;
}

/* ---- from the store to requests ------------------------------------------------------------ */

static bool is_zero(const uint8_t *bytes, uint64_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

/* How many exceptions from `first` on follow each other on the disk and fit into a slot. */
static uint64_t count_run(const Fold *fold, uint64_t first)
{
    const Exceptions *list = fold->list;
    uint64_t most = max_u64(1, fold->writer->slot_size / list->chunk), count = 1;
    while (count < most && first + count < list->count &&
           list->items[first + count].origin == list->items[first].origin + count) {
        count++;
    }
    return count;
}

/* Reads the contents of a run, the last chunk cut at the end of the disk; *length: bytes. */
static int read_run(const Fold *fold, uint64_t first, uint64_t count, uint8_t *buffer,
                    uint64_t *length)
{
    const Exceptions *list = fold->list;
    const Exception *items = list->items + first;
    for (uint64_t done = 0; done < count;) {
        uint64_t together = 1;
        while (done + together < count &&
               items[done + together].store == items[done].store + together) {
            together++;
        }
        uint64_t from = exceptions_offset(list, COWSTORE_BASE, items[done].store);
        int r = store_read(fold->store, buffer + done * list->chunk, together * list->chunk, from);
        if (r < 0) {
            return r;
        }
        done += together;
    }
    *length = min_u64(count * list->chunk, fold->disk_size - items[0].origin * list->chunk);
    return 0;
}

/* Exceptions from `first` on, at most `most`, that lie in one allocation unit of the image. */
static uint64_t count_piece(const Fold *fold, uint64_t first, uint64_t most)
{
    uint64_t together = max_u64(1, fold->unit / fold->list->chunk);
    return min_u64(most, together - fold->list->items[first].origin % together);
}

/* Reads as much of a run as is all zeroes, or all not, looking at one allocation unit after the
 * other: smaller zeroes would save nothing. */
static int read_alike(const Fold *fold, uint64_t first, uint64_t most, Run *run)
{
    while (run->count < most) {
        uint64_t length, next = first + run->count;
        uint64_t count = count_piece(fold, next, most - run->count);
        uint8_t *bytes = run->buffer + run->length;
        int r = read_run(fold, next, count, bytes, &length);
        bool zero = r == 0 && is_zero(bytes, length);
        if (r < 0 || (run->count > 0 && zero != run->zero)) {
            return r;
        }
        run->zero = zero;
        run->count += count;
        run->length += length;
    }
    return 0;
}

static void tell_progress(Fold *fold)
{
    uint64_t total = fold->list->count * fold->list->chunk;
    if (fold->options->progress &&
        (fold->result->bytes - fold->reported >= PROGRESS || fold->result->bytes >= total)) {
        fold->reported = fold->result->bytes;
        fold->options->progress(fold->options->context, min_u64(fold->reported, total), total);
    }
}

/* Chunks of zeroes become zeroes of the image, which may leave them out. */
static int fold_some(Fold *fold, uint64_t first, uint64_t most, uint64_t *count)
{
    Slot *slot = writer_slot(fold->writer);
    if (!slot) {
        return fold->writer->result;
    }
    Run run = {.buffer = slot->buffer};
    int r = read_alike(fold, first, most, &run);
    if (r < 0) {
        return r;
    }
    uint64_t offset = fold->list->items[first].origin * fold->list->chunk;
    writer_submit(fold->writer, slot, run.zero ? REQUEST_ZERO : REQUEST_WRITE, offset, run.length);
    fold->result->bytes += run.length;
    fold->result->zero_bytes += run.zero ? run.length : 0;
    *count = run.count;
    return 0;
}

static int fold_all(Fold *fold)
{
    int r = 0;
    uint64_t flushed = 0;
    for (uint64_t i = 0, count = 0; i < fold->list->count && r == 0; i += count) {
        r = fold_some(fold, i, count_run(fold, i), &count);
        tell_progress(fold);
        if (r == 0 && fold->result->bytes - flushed >= FLUSH_AFTER) {
            flushed = fold->result->bytes;
            r = writer_flush(fold->writer);
        }
    }
    return r < 0 ? r : writer_flush(fold->writer);
}

static bool mark(Store *store, CowstoreState state, GError **error)
{
    CowstoreHeader header;
    if (!cowstore_read_header(store, &header, error)) {
        return false;
    }
    header.state = state;
    int r = cowstore_write_header(store, &header);
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot change the store's header", store->name);
}

bool fold_run(Store *store, const Exceptions *list, Image *image, const FoldThreads *threads,
              const FoldOptions *options, FoldResult *result, GError **error)
{
    Writer writer;
    writer_init(&writer, image, threads, MAX(SLOT_SIZE, list->chunk));
    Fold fold = {.store = store,
                 .list = list,
                 .disk_size = image->size,
                 .unit = image->allocation_unit,
                 .writer = &writer,
                 .options = options,
                 .result = result};
    result->chunks = list->count;
    result->chunk_size = list->chunk;
    result->invalid = !list->valid;
    int r = fold_all(&fold);
    int closed = writer_clear(&writer);
    r = r < 0 ? r : closed;
    if (r == -EPERM && image->format_guessed) {
        return error_set(error, EPERM,
                         "%s: its format was guessed as raw, and the store would make it look like "
                         "another one: say -f raw when that is what it shall be",
                         image->path);
    }
    if (r < 0) {
        return error_set_errno(error, -r,
                               "%s: cannot bring %s into it: nothing is lost, fold it again",
                               image->path, store->name);
    }
    return mark(store, COWSTORE_FOLDED, error);
}

/* ---- files --------------------------------------------------------------------------------- */

/* The image is still the one that the store was made for. */
static bool check_origin(const char *path, const FoldOptions *options, Store *store,
                         const CowstoreHeader *header, Exceptions *list, GError **error)
{
    ImageOpen how = options->how;
    how.write = false;
    how.fold = true;
    g_autoptr(Image) image = image_open(path, &how, error);
    return image && cowstore_check_origin(store, header, image, error) &&
           exceptions_read(store, COWSTORE_BASE, image->size, list, error);
}

static bool start_threads(FoldThreads *threads, GError **error)
{
    threads->worker = worker_new(0, error);
    if (!threads->worker) {
        return false;
    }
    threads->pool = pool_new(POOL_THREADS);
    aio_init(threads->pool);
    return true;
}

/* Nobody posts to the worker any more when it is freed. */
static void stop_threads(const FoldThreads *threads)
{
    worker_stop(threads->worker);
    pool_free(threads->pool);
    worker_free(threads->worker);
}

/* Rules 1 and 2. A store that was OPEN is OPEN again when the image did not even open. */
static bool fold_into(const char *path, const FoldOptions *options, Store *store,
                      const CowstoreHeader *header, const Exceptions *list, FoldResult *result,
                      GError **error)
{
    ImageOpen how = options->how;
    how.write = true;
    how.fold = true;
    if (header->state == COWSTORE_OPEN && !mark(store, COWSTORE_FOLDING, error)) {
        return false;
    }
    g_autoptr(Image) image = image_open(path, &how, error);
    if (!image) {
        return header->state == COWSTORE_OPEN && mark(store, COWSTORE_OPEN, NULL) && false;
    }
    result->resumed = header->state == COWSTORE_FOLDING;
    FoldThreads threads;
    if (!start_threads(&threads, error)) {
        return false;
    }
    bool folded = fold_run(store, list, image, &threads, options, result, error);
    stop_threads(&threads);
    return folded;
}

/* A fold that was cut off has left space that nothing uses. Failure is no reason to fail: all is in
 * the image, and cownbd check finds it too. */
static void mend_leaks(const char *path, const FoldOptions *options)
{
    g_autoptr(GError) error = NULL;
    ImageOpen how = options->how;
    how.write = how.repair = how.fold = how.no_backing = true;
    g_autoptr(Image) image = image_open(path, &how, &error);
    CheckResult result = {0};
    if (!image || (image->format->check &&
                   !image->format->check(image, CHECK_REPAIR_LEAKS, &result, &error))) {
        log_warning("leaked space is left: %s", error->message);
    }
}

static bool sync_folder(const char *path)
{
    g_autofree char *folder = g_path_get_dirname(path);
    autofd int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 && fsync(fd) == 0;
}

/* Rule 3. */
static bool put_away(const char *store_path, bool keep, GError **error)
{
    g_autofree char *kept = g_strconcat(store_path, ".folded", NULL);
    int r = keep ? rename(store_path, kept) : unlink(store_path);
    if (r != 0) {
        return error_set_errno(error, errno, "%s: is folded, but cannot be %s", store_path,
                               keep ? "renamed" : "removed");
    }
    return sync_folder(store_path) ||
           error_set_errno(error, errno, "%s: cannot make its removal durable", store_path);
}

static bool fold_store(const char *path, const char *store_path, const FoldOptions *options,
                       FoldResult *result, GError **error)
{
    CowstoreHeader header;
    g_autoptr(Store) store = store_file_open(store_path, STORE_OPEN_WRITE, error);
    if (!store || !cowstore_read_header(store, &header, error)) {
        return false;
    }
    if (header.state == COWSTORE_FOLDED) {
        result->resumed = true;
        mend_leaks(path, options);
        return put_away(store_path, options->keep, error);
    }
    Exceptions list = {0};
    bool ok = check_origin(path, options, store, &header, &list, error) &&
              (list.count == 0 || /* the image stays as it is */
               fold_into(path, options, store, &header, &list, result, error));
    exceptions_clear(&list);
    if (ok && result->resumed) {
        mend_leaks(path, options);
    }
    return ok && put_away(store_path, options->keep, error);
}

bool fold_image(const char *path, const char *store_path, const FoldOptions *options,
                FoldResult *result, GError **error)
{
    *result = (FoldResult){0};
    char *real = realpath(path, NULL);
    if (!real) {
        return error_set_errno(error, errno, "%s: cannot find the image", path);
    }
    g_autofree char *beside = cowstore_path(real);
    free(real);
    if (!store_path && access(beside, F_OK) != 0 && errno == ENOENT) {
        return true;
    }
    result->found = true;
    return fold_store(path, store_path ? store_path : beside, options, result, error);
}
