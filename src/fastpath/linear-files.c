/*
 * The loop devices over the image's files: opened when the first run lies on a file, kept until the
 * fast path ends, grown when the file has.
 *
 * What must stay true: no line reaches beyond the end of its device. Device-mapper would notice
 * only after the device is suspended.
 */
#include "fastpath/linear-impl.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "store/store-file.h"

static void file_open(LinearFile *file)
{
    g_autoptr(GError) error = NULL;
    autofd int fd = store_file_reopen(file->store);
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
        if (!reaches(file, run)) {
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
