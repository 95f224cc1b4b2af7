/*
 * The loop devices over the image's files: opened when the first run lies on a file, kept until the
 * fast path ends, grown when the file has.
 *
 * What must stay true:
 * 1. No line reaches beyond the end of its device. Device-mapper would notice only after the device
 *    is suspended.
 * 2. No page of a file is written past the page cache by the kernel and through it by this server:
 *    a page that the server has read to change a part of it would bring the rest back as it was.
 *    So lines begin and end with pages of the disk (linear_table_options), and where pages of the
 *    disk are no pages of the file (clusters of 512 bytes, blocks of a vhd), the loop device goes
 *    through the cache as well. What is left: two clients, the kernel one of them, that write
 *    different parts of one page of the disk at one time.
 */
#include "fastpath/linear-impl.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "store/store-file.h"
#include "store/store-lock.h"

/* The loop device keeps the open file, and with it the lock of a reader: when the server has died,
 * nobody may write to a file that the kernel reads all the same. (A writer's lock goes with nobody,
 * so the next server could not take over.) */
static void keep_writers_out(const LinearFile *file, int fd)
{
    g_autoptr(GError) error = NULL;
    if (file->store->read_only && !store_lock(fd, file->store->name, false, &error)) {
        log_warning("%s", error->message);
    }
}

static void file_open(LinearFile *file)
{
    g_autoptr(GError) error = NULL;
    autofd int fd = store_file_reopen(file->store);
    if (fd >= 0) {
        keep_writers_out(file, fd);
    }
    if (fd < 0) {
        error_set_errno(&error, errno, "%s: cannot be opened for the kernel", file->store->name);
    } else if (loop_open(&file->loop, fd, 0, file->store->name, &error)) {
        file->discards = loop_discards(&file->loop);
        return;
    }
    file->refused = true;
    log_warning("%s: nothing of this file goes the fast path", error->message);
}

static LinearFile *find(const Linear *linear, const Store *store)
{
    for (unsigned i = 0; i < linear->files->len; i++) {
        LinearFile *file = linear->files->pdata[i];
        if (file->store == store) {
            return file;
        }
    }
    return NULL;
}

LinearFile *linear_file(Linear *linear, Store *store)
{
    LinearFile *file = find(linear, store);
    if (file == NULL) {
        file = g_new0(LinearFile, 1);
        file->store = store;
        file->loop.fd = -1;
        g_ptr_array_add(linear->files, file);
        file_open(file);
    }
    return file;
}

/* Grows the device when the run needs that. False: the run does not lie on it. */
static bool reaches(LinearFile *file, const DmRun *run)
{
    g_autoptr(GError) error = NULL;
    uint64_t end = run->host_offset + run->length;
    if (file->refused) {
        return false;
    }
    if (end > file->loop.size && !loop_grow(&file->loop, &error)) {
        log_limited(LOG_LEVEL_WARNING, "%s", error->message);
    }
    return end <= file->loop.size;
}

static bool shares_pages(const Linear *linear, const DmRun *run)
{
    return !linear->fixed && (run->start - run->host_offset) % LINEAR_PAGE != 0;
}

/* False: the kernel must not have the file at all. */
static bool use_page_cache(LinearFile *file)
{
    g_autoptr(GError) error = NULL;
    if (file->loop.direct_io && !loop_set_direct_io(&file->loop, false, &error)) {
        log_warning("%s", error->message);
    }
    return !file->loop.direct_io;
}

bool linear_files_prepare(Linear *linear, DmTable *table)
{
    uint64_t alignment = linear->alignment;
    RangeSet lost = {0};
    for (unsigned i = 0; i < table->count; i++) {
        const DmRun *run = &table->runs[i];
        if (run->store == NULL) {
            continue;
        }
        LinearFile *file = linear_file(linear, run->store);
        if (!file->refused) {
            alignment = max_u64(alignment, file->loop.block_size);
        }
        bool useful = reaches(file, run);
        if (useful && shares_pages(linear, run)) {
            useful = use_page_cache(file);
        }
        if (!useful) {
            rangeset_add(&lost, run->start, run->length);
        }
    }
    if (lost.count > 0) {
        dmtable_exclude(table, &lost);
        rangeset_clear(&lost);
    }
    bool same = alignment == linear->alignment;
    linear->alignment = alignment;
    return same;
}

void linear_files_free(Linear *linear)
{
    for (unsigned i = 0; i < linear->files->len; i++) {
        LinearFile *file = linear->files->pdata[i];
        loop_close(&file->loop);
        g_free(file);
    }
    g_ptr_array_free(linear->files, true);
}
