/*
 * The journal that a disk keeps: a few stores to mapped memory for each change.
 *
 * What must stay true:
 *  1. A change is in the journal before its request is answered, or durable.
 *  2. Records are removed only when everything committed is durable.
 *  3. A record counts when the count says so, and the count is one store: a process may die at any
 *     instruction.
 * Records are added inside the exclusive gate and removed inside that of a flush, so never at the
 * same time. In-place writes need no record: what they overwrite has one, or is in the tables.
 */
#include "engine/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "engine/journal-impl.h"
#include "engine/lease.h"

#define MAPPED_SIZE (JOURNAL_HEAD + JOURNAL_RECORDS * sizeof(JournalRecord))

struct Journal {
    char *path;
    JournalHeader *header; /* the mapping */
    JournalRecord *records;
    uint64_t bytes;  /* that the records point to */
    bool overflowed; /* something could not be noted */
};

static Journal *journal_of(const Disk *disk)
{
    return atomic_load_explicit(&disk->journal, memory_order_acquire);
}

void journal_header_init(JournalHeader *header, const Disk *disk)
{
    struct stat file = {0};
    stat(disk->image->path, &file); /* not a file: 0 and 0, also the next time */
    memset(header, 0, sizeof *header);
    header->magic = JOURNAL_MAGIC;
    header->disk_size = disk->node.size;
    header->unit = disk->image->allocation_unit;
    header->device = file.st_dev;
    header->inode = file.st_ino;
}

static void add(Journal *journal, JournalRecord record)
{
    uint64_t count = atomic_load_explicit(&journal->header->count, memory_order_relaxed);
    if (count == JOURNAL_RECORDS) {
        journal->overflowed = true;
        return;
    }
    journal->records[count] = record;
    journal->bytes += record.place == JOURNAL_ZERO ? 0 : record.length;
    atomic_store_explicit(&journal->header->count, count + 1, memory_order_release);
}

void journal_note(Disk *disk, const Extent *extent)
{
    Journal *journal = journal_of(disk);
    if (journal != NULL && extent->store == disk->image->store && !disk->image->encryption) {
        add(journal, (JournalRecord){extent->offset, extent->length, extent->host_offset});
    } else if (journal != NULL) {
        /* A record cannot say in which of several files, nor how it is encrypted. */
        journal->overflowed = true;
    }
}

void journal_note_zero(Disk *disk, uint64_t offset, uint64_t length)
{
    Journal *journal = journal_of(disk);
    if (journal != NULL && length > 0) {
        add(journal, (JournalRecord){offset, length, JOURNAL_ZERO});
    } else if (journal != NULL) {
        journal->overflowed = true;
    }
}

void journal_secure(Disk *disk)
{
    Journal *journal = journal_of(disk);
    if (journal == NULL || (!journal->overflowed && journal->bytes < JOURNAL_BYTES)) {
        return;
    }
    if (flush_metadata(disk) < 0 && journal->overflowed) {
        log_limited(
            LOG_LEVEL_WARNING,
            "%s: cannot flush, and its journal is full: the death of this server would lose writes",
            disk->image->path);
    }
}

void journal_empty(Disk *disk)
{
    Journal *journal = journal_of(disk);
    if (journal != NULL) {
        atomic_store_explicit(&journal->header->count, 0, memory_order_release);
        journal->bytes = 0;
        journal->overflowed = false;
    }
}

void journal_resized(Disk *disk)
{
    Journal *journal = journal_of(disk);
    if (journal != NULL) {
        journal->header->disk_size = disk->node.size;
    }
}

bool journal_is_kept(const Disk *disk)
{
    return journal_of(disk) != NULL;
}

bool journal_has_records(const Disk *disk)
{
    Journal *journal = journal_of(disk);
    return journal != NULL && atomic_load_explicit(&journal->header->count, memory_order_relaxed);
}

static void journal_free(Journal *journal)
{
    munmap(journal->header, MAPPED_SIZE);
    g_free(journal->path);
    g_free(journal);
}

void journal_end(Disk *disk, bool clean)
{
    Journal *journal = journal_of(disk);
    if (journal == NULL) {
        return;
    }
    disk->journal = NULL;
    if (clean) {
        unlink(journal->path);
    }
    journal_free(journal);
}

static bool allocate_file(const char *path, int fd, GError **error)
{
    int r = posix_fallocate(fd, 0, MAPPED_SIZE); /* room now, not a signal later */
    return r == 0 || error_set_errno(error, r, "%s: cannot allocate %zu bytes for the journal",
                                     path, (size_t)MAPPED_SIZE);
}

/* A new, empty one, in place of what is there. */
static Journal *journal_new(const Disk *disk, const char *path, GError **error)
{
    autofd int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        error_set_errno(error, errno, "%s: cannot make the journal of %s", path, disk->image->path);
        return NULL;
    }
    if (!allocate_file(path, fd, error)) {
        unlink(path);
        return NULL;
    }
    void *memory = mmap(NULL, MAPPED_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        error_set_errno(error, errno, "%s: cannot map the journal", path);
        unlink(path);
        return NULL;
    }
    Journal *journal = g_new0(Journal, 1);
    journal->path = g_strdup(path);
    journal->header = memory;
    journal->records = (JournalRecord *)((char *)memory + JOURNAL_HEAD);
    journal_header_init(journal->header, disk);
    journal->header->kind = JOURNAL_POINTERS;
    return journal;
}

bool journal_start(Disk *disk, const char *path, GError **error)
{
    if (!disk->image->write || disk->image->format->allocate == NULL || journal_of(disk) != NULL) {
        return true;
    }
    Journal *journal = journal_new(disk, path, error);
    if (journal == NULL) {
        return false;
    }
    atomic_store_explicit(&disk->journal, journal, memory_order_release);
    /* What was committed before it was there. */
    int r = lease_flush(disk);
    return r == 0 || error_set_errno(error, -r, "%s: cannot be flushed", disk->image->path);
}
