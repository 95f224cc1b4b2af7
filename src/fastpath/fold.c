/*
 * Brings what a store holds into the image on top, by way of the engine: so every format that can
 * be written to can be folded into, and all rules about the order of data and metadata are the
 * engine's.
 *
 * What must stay true:
 *  1. The image does not change before the store says FOLDING on stable storage.
 *  2. The store says FOLDED only after a flush and the orderly end of the disk.
 *  3. A store is removed only when it says FOLDED.
 *  4. Contents of the store are given up only when they are durable in the image and the store says
 *     so (folded_to), on stable storage too. To begin again from there is always right.
 */
#include "fastpath/fold.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "fastpath/cowstore.h"
#include "fastpath/diskwriter.h"
#include "formats/format.h"
#include "store/aio.h"
#include "store/store-file.h"

#define SLOT_SIZE    (1u << 20) /* bytes of the longest run */
#define POOL_THREADS 4
#define PROGRESS     (16u << 20) /* bytes between two reports */
#define FLUSH_AFTER  (32u << 20) /* bytes; see flush_after, and HOST_KEEPS of snapshot-store.c */

/* A fold under way. */
typedef struct Fold {
    Store *store;
    CowstoreHeader header; /* of the store, as it is there */
    const Exceptions *list;
    uint32_t slot_size;       /* of the writer */
    uint64_t first;           /* of the list that is to be folded */
    uint64_t disk_size, unit; /* of the image, bytes */
    DiskWriter *writer;
    const FoldOptions *options;
    FoldResult *result;
    uint64_t total;    /* bytes to be done */
    uint64_t reported; /* bytes done when progress was told last */
    uint64_t flushed;  /* bytes done that are durable */
    uint64_t given_up; /* of the list: contents before it need no longer be there */
} Fold;

/* What becomes one request: exceptions that follow each other on the disk. */
typedef struct Run {
    uint8_t *buffer;
    uint64_t count, length; /* exceptions; bytes, cut at the end of the disk */
    bool zero;
} Run;

/* ---- from the store to requests ------------------------------------------------------------ */

/* How many exceptions from `first` on follow each other on the disk and fit into a slot. */
static uint64_t count_run(const Fold *fold, uint64_t first)
{
    const Exceptions *list = fold->list;
    uint64_t most = max_u64(1, fold->slot_size / list->chunk), count = 1;
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
        bool zero = r == 0 && bytes_are_zero(bytes, length);
        if (r < 0 || (run->count > 0 && zero != run->zero)) {
            return r;
        }
        run->zero = zero;
        run->count += count;
        run->length += length;
    }
    return 0;
}

/* What is to be done; the last chunk of the disk may be cut. */
static uint64_t count_bytes(const Exceptions *list, uint64_t first, uint64_t disk_size)
{
    uint64_t bytes = (list->count - first) * list->chunk;
    uint64_t end = list->count > 0 ? (list->items[list->count - 1].origin + 1) * list->chunk : 0;
    return first < list->count && end > disk_size ? bytes - (end - disk_size) : bytes;
}

static void tell_progress(Fold *fold)
{
    uint64_t total = fold->total;
    if (fold->options->progress &&
        (fold->result->bytes - fold->reported >= PROGRESS || fold->result->bytes >= total)) {
        fold->reported = fold->result->bytes;
        fold->options->progress(fold->options->context, fold->reported, total);
    }
}

/* Chunks of zeroes become zeroes of the image, which may leave them out. */
static int fold_some(Fold *fold, uint64_t first, uint64_t most, uint64_t *count)
{
    DiskWriterSlot *slot = disk_writer_slot(fold->writer);
    if (!slot) {
        return disk_writer_flush(fold->writer); /* tells the error */
    }
    Run run = {.buffer = slot->buffer};
    int r = read_alike(fold, first, most, &run);
    if (r < 0) {
        return r;
    }
    uint64_t offset = fold->list->items[first].origin * fold->list->chunk;
    disk_writer_submit(fold->writer, slot, run.zero ? REQUEST_ZERO : REQUEST_WRITE, offset,
                       run.length);
    fold->result->bytes += run.length;
    fold->result->zero_bytes += run.zero ? run.length : 0;
    *count = run.count;
    return 0;
}

/* Gives space of the store back, from given_up to `to` of the list. A host that cannot keeps it. */
static void give_up(Fold *fold, uint64_t to)
{
    const Exceptions *list = fold->list;
    while (fold->given_up < to) {
        const Exception *item = &list->items[fold->given_up];
        uint64_t count = 1;
        while (fold->given_up + count < to && item[count].store == item->store + count) {
            count++;
        }
        store_punch(fold->store, exceptions_offset(list, COWSTORE_BASE, item->store),
                    count * list->chunk, STORE_PUNCH_FREE);
        fold->given_up += count;
    }
}

/* All before `next` of the list is in the image: for good, and the store need not have it. */
static int checkpoint(Fold *fold, uint64_t next)
{
    int r = disk_writer_flush(fold->writer);
    fold->flushed = fold->result->bytes;
    if (r < 0 || fold->options->keep) {
        return r;
    }
    fold->header.folded_to = fold->list->items[next - 1].origin + 1;
    r = cowstore_write_header(fold->store, &fold->header);
    if (r == 0) {
        give_up(fold, next);
    }
    return r;
}

static int fold_all(Fold *fold)
{
    uint64_t step = fold->options->flush_after ? fold->options->flush_after : FLUSH_AFTER;
    int r = 0;
    for (uint64_t i = fold->first, count = 0; i < fold->list->count && r == 0;) {
        r = fold_some(fold, i, count_run(fold, i), &count);
        i += count;
        tell_progress(fold);
        if (r == 0 && fold->result->bytes - fold->flushed >= step) {
            r = checkpoint(fold, i);
        }
    }
    return r < 0 ? r : disk_writer_flush(fold->writer);
}

static bool mark(Store *store, CowstoreHeader *header, CowstoreState state, GError **error)
{
    header->state = state;
    int r = cowstore_write_header(store, header);
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot change the store's header", store->name);
}

/* Where a fold that was cut off goes on. */
static uint64_t find_first(const Exceptions *list, uint64_t folded_to)
{
    uint64_t low = 0, high = list->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (list->items[middle].origin < folded_to) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

bool fold_run(Store *store, const Exceptions *list, Image *image, const FoldThreads *threads,
              const FoldOptions *options, FoldResult *result, GError **error)
{
    CowstoreHeader header;
    if (!cowstore_read_header(store, &header, error)) {
        return false;
    }
    DiskWriter writer;
    uint32_t slot_size = MAX(SLOT_SIZE, list->chunk);
    disk_writer_init(&writer, image, threads->pool, threads->worker, slot_size);
    Fold fold = {.store = store,
                 .header = header,
                 .list = list,
                 .slot_size = slot_size,
                 .first = find_first(list, header.folded_to),
                 .disk_size = image->size,
                 .unit = image->largest_unit,
                 .writer = &writer,
                 .options = options,
                 .result = result};
    fold.given_up = fold.first;
    fold.total = count_bytes(list, fold.first, fold.disk_size);
    result->chunks = list->count;
    result->chunk_size = list->chunk;
    result->invalid = !list->valid;
    int r = fold_all(&fold);
    int closed = disk_writer_clear(&writer);
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
    return mark(store, &fold.header, COWSTORE_FOLDED, error);
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
                      CowstoreHeader *header, const Exceptions *list, FoldResult *result,
                      GError **error)
{
    bool begins = header->state == COWSTORE_OPEN;
    ImageOpen how = options->how;
    how.write = true;
    how.fold = true;
    if (begins && !mark(store, header, COWSTORE_FOLDING, error)) {
        return false;
    }
    g_autoptr(Image) image = image_open(path, &how, error);
    if (!image) {
        return begins && mark(store, header, COWSTORE_OPEN, NULL) && false;
    }
    result->resumed = !begins;
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
