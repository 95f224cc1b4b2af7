/*
 * What a server does with the journal of one that died.
 *
 *      POINTERS --copy what is pointed to--> CONTENTS (renamed over it)
 *      CONTENTS --write all of it again, flush--> removed
 *
 * It may be killed at any point of this and begun again: of CONTENTS nothing changes until it is
 * removed, and to write it once more changes nothing. Writing goes through the engine, as for any
 * client, by a worker that is there; later records have replaced earlier ones before that, so the
 * order does not matter.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "engine/journal-impl.h"
#include "engine/journal.h"
#include "engine/rangeset.h"
#include "engine/request-call.h"

#define STEP (1u << 20) /* bytes of one copy or one write */

/* A journal file as it was read. */
typedef struct Left {
    const char *path;
    int fd;
    JournalHeader header;
    GArray *records; /* JournalRecord */
    uint64_t size;   /* of the file */
} Left;

static bool read_all(int fd, void *buffer, size_t length, uint64_t offset)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = pread(fd, (char *)buffer + done, length - done, offset + done);
        if (n <= 0 && !(n < 0 && errno == EINTR)) {
            errno = n == 0 ? EUCLEAN : errno;
            return false;
        }
        done += n > 0 ? n : 0;
    }
    return true;
}

static bool write_all(int fd, const void *buffer, size_t length, uint64_t offset)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = pwrite(fd, (const char *)buffer + done, length - done, offset + done);
        if (n < 0 && errno != EINTR) {
            return false;
        }
        done += n > 0 ? n : 0;
    }
    return true;
}

/* ---- reading ------------------------------------------------------------------------------- */

static bool damaged(const Left *left, const char *what, GError **error)
{
    return error_set(error, EUCLEAN,
                     "%s: is damaged (%s): removing it gives up what it has of the last writes",
                     left->path, what);
}

static bool record_is_good(const Left *left, const JournalRecord *record, uint64_t place_end)
{
    const JournalHeader *header = &left->header;
    bool inside = record->length > 0 && record->offset < header->disk_size &&
                  record->length <= header->disk_size - record->offset;
    bool placed = record->place == JOURNAL_ZERO ||
                  (record->place <= place_end && record->length <= place_end - record->place);
    return inside && placed;
}

/* place_end: the end of what records may point into. */
static bool read_records(Left *left, uint64_t place_end, GError **error)
{
    uint64_t count = left->header.count;
    if (count > JOURNAL_RECORDS * 2 || count * sizeof(JournalRecord) > left->size - JOURNAL_HEAD) {
        return damaged(left, "too many records", error);
    }
    g_array_set_size(left->records, count);
    if (!read_all(left->fd, left->records->data, count * sizeof(JournalRecord), JOURNAL_HEAD)) {
        return error_set_errno(error, errno, "%s: cannot be read", left->path);
    }
    for (uint64_t i = 0; i < count; i++) {
        if (!record_is_good(left, &g_array_index(left->records, JournalRecord, i), place_end)) {
            return damaged(left, "a record points outside", error);
        }
    }
    return true;
}

/* *left: fd -1 when there is no journal. */
static bool open_left(Left *left, const char *path, GError **error)
{
    struct stat file;
    left->path = path;
    left->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (left->fd < 0) {
        return errno == ENOENT ||
               error_set_errno(error, errno, "%s: cannot open the journal", path);
    }
    if (fstat(left->fd, &file) != 0 || file.st_size < JOURNAL_HEAD ||
        !read_all(left->fd, &left->header, sizeof left->header, 0)) {
        memset(&left->header, 0, sizeof left->header); /* died while it was made: nothing in it */
        return true;
    }
    left->size = file.st_size;
    return true;
}

static void close_left(Left *left)
{
    cleanup_fd(&left->fd);
    g_array_unref(left->records);
}

/* ---- POINTERS -> CONTENTS ------------------------------------------------------------------ */

static void add_piece(GArray *pieces, const JournalRecord *record, uint64_t at, uint64_t end)
{
    JournalRecord piece = {at, end - at, record->place};
    if (record->place != JOURNAL_ZERO) {
        piece.place += at - record->offset;
    }
    g_array_append_val(pieces, piece);
}

/* The first range that ends behind offset. */
static unsigned first_behind(const RangeSet *set, uint64_t offset)
{
    unsigned low = 0, high = set->count;
    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        if (set->items[middle].offset + set->items[middle].length <= offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Adds the parts of the record that no later one has covered. */
static void add_uncovered(GArray *pieces, RangeSet *covered, const JournalRecord *record)
{
    uint64_t at = record->offset, end = record->offset + record->length;
    for (unsigned i = first_behind(covered, at); at < end; i++) {
        Range next = i < covered->count ? covered->items[i] : (Range){end, 0};
        if (at < next.offset) {
            add_piece(pieces, record, at, min_u64(end, next.offset));
        }
        at = max_u64(at, next.offset + next.length);
    }
    rangeset_add(covered, record->offset, record->length);
}

static gint compare_pieces(gconstpointer a, gconstpointer b)
{
    const JournalRecord *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* What the records amount to: no range twice, in order. */
static GArray *final_pieces(const GArray *records)
{
    GArray *pieces = g_array_new(false, false, sizeof(JournalRecord));
    RangeSet covered = {0};
    for (guint i = records->len; i-- > 0;) {
        add_uncovered(pieces, &covered, &g_array_index(records, JournalRecord, i));
    }
    rangeset_clear(&covered);
    g_array_sort(pieces, compare_pieces);
    return pieces;
}

static int copy_piece(Store *store, int fd, const JournalRecord *piece, uint64_t to,
                      uint8_t *buffer)
{
    for (uint64_t done = 0; done < piece->length;) {
        uint64_t n = min_u64(STEP, piece->length - done);
        int r = store_read(store, buffer, n, piece->place + done);
        if (r == 0 && !write_all(fd, buffer, n, to + done)) {
            r = -errno;
        }
        if (r < 0) {
            return r;
        }
        done += n;
    }
    return 0;
}

/* Writes the contents file; the pieces get their places in it. 0 or -errno. */
static int write_contents(Store *store, int fd, JournalHeader header, GArray *pieces)
{
    g_autofree uint8_t *buffer = g_malloc(STEP);
    uint64_t at = align_up(JOURNAL_HEAD + pieces->len * sizeof(JournalRecord), JOURNAL_HEAD);
    for (guint i = 0; i < pieces->len; i++) {
        JournalRecord *piece = &g_array_index(pieces, JournalRecord, i);
        if (piece->place == JOURNAL_ZERO) {
            continue;
        }
        int r = copy_piece(store, fd, piece, at, buffer);
        if (r < 0) {
            return r;
        }
        piece->place = at;
        at += piece->length;
    }
    header.kind = JOURNAL_CONTENTS;
    header.count = pieces->len;
    bool ok = write_all(fd, pieces->data, pieces->len * sizeof(JournalRecord), JOURNAL_HEAD) &&
              write_all(fd, &header, sizeof header, 0);
    return ok ? 0 : -errno;
}

/* Puts the contents in the place of the pointers; left is then the new file. */
static bool save_contents(Disk *disk, Left *left, GError **error)
{
    g_autofree char *path = g_strconcat(left->path, ".new", NULL);
    autofd int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return error_set_errno(error, errno, "%s: cannot be made", path);
    }
    GArray *pieces = final_pieces(left->records);
    int r = write_contents(disk->image->store, fd, left->header, pieces);
    if (r == 0 && rename(path, left->path) != 0) {
        r = -errno;
    }
    g_array_unref(left->records);
    left->records = pieces;
    if (r < 0) {
        unlink(path);
        return error_set_errno(error, -r,
                               "%s: cannot save what the last server had written: nothing is lost, "
                               "start again",
                               path);
    }
    close(left->fd);
    left->fd = fd_steal(&fd);
    return true;
}

/* ---- CONTENTS -> the disk ------------------------------------------------------------------ */

static int call(RequestCall *caller, RequestType type, uint64_t offset, uint64_t length,
                void *buffer)
{
    Request *request = &caller->request;
    request->type = type;
    request->flags = 0;
    request->offset = offset;
    request->length = length;
    request->buffer = buffer;
    return request_call(caller);
}

static int write_piece(RequestCall *caller, const Left *left, const JournalRecord *piece,
                       uint8_t *buffer)
{
    int r = 0;
    if (piece->place == JOURNAL_ZERO) {
        return call(caller, REQUEST_ZERO, piece->offset, piece->length, NULL);
    }
    for (uint64_t done = 0; r == 0 && done < piece->length;) {
        uint64_t n = min_u64(STEP, piece->length - done);
        if (!read_all(left->fd, buffer, n, piece->place + done)) {
            return -errno;
        }
        r = call(caller, REQUEST_WRITE, piece->offset + done, n, buffer);
        done += n;
    }
    return r;
}

static int write_pieces(Disk *disk, const Left *left, Worker *worker)
{
    g_autofree uint8_t *buffer = g_malloc(STEP);
    RequestCall caller;
    request_call_init(&caller, disk_node(disk), worker);
    int r = 0;
    for (guint i = 0; r == 0 && i < left->records->len; i++) {
        r = write_piece(&caller, left, &g_array_index(left->records, JournalRecord, i), buffer);
    }
    if (r == 0) {
        r = call(&caller, REQUEST_FLUSH, 0, 0, NULL);
    }
    request_call_clear(&caller);
    return r;
}

static bool replay_contents(Disk *disk, Worker *worker, const Left *left, GError **error)
{
    int r = write_pieces(disk, left, worker);
    return r == 0 || error_set_errno(error, -r,
                                     "%s: cannot write again what the last server had answered: "
                                     "%s has it, start again",
                                     disk->image->path, left->path);
}

/* ---- all of it ----------------------------------------------------------------------------- */

static bool is_of_this_image(const Left *left, const Disk *disk)
{
    JournalHeader now;
    journal_header_init(&now, disk);
    const JournalHeader *then = &left->header;
    return then->disk_size == now.disk_size && then->unit == now.unit &&
           then->device == now.device && then->inode == now.inode;
}

static bool replay(Disk *disk, Worker *worker, Left *left, GError **error)
{
    bool pointers = left->header.kind == JOURNAL_POINTERS;
    if (!pointers && left->header.kind != JOURNAL_CONTENTS) {
        return damaged(left, "unknown kind", error);
    }
    uint64_t place_end = pointers ? store_size(disk->image->store) : left->size;
    if (!read_records(left, place_end, error) || (pointers && !save_contents(disk, left, error)) ||
        !replay_contents(disk, worker, left, error)) {
        return false;
    }
    log_info("%s: %u ranges of a server that died were written again", disk->image->path,
             left->records->len);
    return true;
}

static bool replay_or_refuse(Disk *disk, Worker *worker, Left *left, GError **error)
{
    if (left->fd < 0) {
        return true;
    }
    if (left->header.magic == JOURNAL_MAGIC && left->header.count > 0) {
        if (!is_of_this_image(left, disk)) {
            log_warning("%s: %s belongs to another file: it was left out", disk->image->path,
                        left->path);
        } else if (!replay(disk, worker, left, error)) {
            return false;
        }
    }
    return unlink(left->path) == 0 ||
           error_set_errno(error, errno, "%s: cannot be removed", left->path);
}

bool journal_replay(Disk *disk, Worker *worker, const char *path, GError **error)
{
    Left left = {.fd = -1, .records = g_array_new(false, false, sizeof(JournalRecord))};
    bool ok = open_left(&left, path, error) && replay_or_refuse(disk, worker, &left, error);
    close_left(&left);
    return ok;
}

bool journal_check_empty(const char *path, GError **error)
{
    Left left = {.fd = -1, .records = g_array_new(false, false, sizeof(JournalRecord))};
    bool ok = open_left(&left, path, error);
    bool full = left.fd >= 0 && left.header.magic == JOURNAL_MAGIC && left.header.count > 0;
    close_left(&left);
    return ok && (!full || error_set(error, EBUSY,
                                     "%s has writes of a server that died: serve the image for "
                                     "writing once",
                                     path));
}
