/*
 * The writing side of the bulk mover.
 *
 *     under the lock     map the piece; what is writable is planned as a transfer, units that shall
 *                        be zero are unmapped, all else is allocated
 *     without it         the bytes are written
 *     under the lock     commit
 *
 * This is the engine's write (docs/architecture.md, the life of a WRITE) without its requests: a
 * piece has one owner, so no range needs a lock, and whole units are in the caller's hand, so
 * nothing is read around what is written.
 *
 * What must stay true: an allocated unit is written as a whole before it is committed, except where
 * it is known to read as zeroes and shall.
 */
#include "tools/writer.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "formats/format.h"
#include "map/encryption.h"

struct Writer {
    Image *image;
    WriterOptions options;
    pthread_rwlock_t lock; /* the format: many may map, one changes */
    /* Of writing bytes: who waits for a file's lock in the kernel spins there. */
    pthread_mutex_t turn;
    uint8_t **encoded; /* of each slot, made when it is needed: a piece's encoded units */
};

/* Bytes that go to one place of a store. */
typedef struct Transfer {
    Extent encrypted; /* where they go, when the image is encrypted; else its length is 0 */
    Store *store;
    uint64_t host_offset;
    const uint8_t *bytes;
    uint64_t length;
} Transfer;

/* One call of writer_write. */
typedef struct Piece {
    Writer *writer;
    uint64_t offset, length;
    const uint8_t *bytes;
    const GArray *parts;
    const uint8_t *encoded;   /* unit i of the piece lies at i * unit; NULL: nothing is encoded */
    uint32_t *encoded_length; /* of each unit; 0: plain */
    ExtentList map;
    GArray *transfers;   /* Transfer */
    GArray *news;        /* Range: whole units that need space, in order */
    Allocation *changes; /* made of news */
    Allocation **list;
    unsigned count;
} Piece;

typedef struct Range {
    uint64_t offset, end;
} Range;

Writer *writer_new(Image *image, const WriterOptions *options)
{
    Writer *writer = g_new0(Writer, 1);
    g_assert(image->write && options->piece % image->largest_unit == 0);
    writer->image = image;
    writer->options = *options;
    writer->encoded = g_new0(uint8_t *, options->threads);
    pthread_rwlock_init(&writer->lock, NULL);
    pthread_mutex_init(&writer->turn, NULL);
    return writer;
}

void writer_free(Writer *writer)
{
    if (writer == NULL) {
        return;
    }
    for (unsigned i = 0; i < writer->options.threads; i++) {
        g_free(writer->encoded[i]);
    }
    g_free(writer->encoded);
    pthread_rwlock_destroy(&writer->lock);
    pthread_mutex_destroy(&writer->turn);
    g_free(writer);
}

void writer_hold_map(Writer *writer)
{
    pthread_rwlock_rdlock(&writer->lock);
}

void writer_release_map(Writer *writer)
{
    pthread_rwlock_unlock(&writer->lock);
}

static const uint8_t *bytes_at(const Piece *piece, uint64_t offset)
{
    return piece->bytes + (offset - piece->offset);
}

static uint64_t unit_of(const Piece *piece)
{
    return piece->writer->image->largest_unit;
}

/* What space is taken and dropped in. */
static uint64_t space_unit(const Piece *piece)
{
    bool fine = piece->writer->options.fine && !piece->encoded;
    return fine ? piece->writer->image->allocation_unit : unit_of(piece);
}

static bool is_writable(const Extent *extent)
{
    return extent->type == EXTENT_DATA && (extent->flags & EXTENT_WRITABLE);
}

/* ---- planning; the lock is held ------------------------------------------------------------- */

/* Plans [offset, end) of the disk to go to its place in the extent. Joined with what was planned
 * before where both go on. */
static void plan_transfer(Piece *piece, const Extent *extent, uint64_t offset, uint64_t end)
{
    Transfer transfer = {
        .store = extent->store,
        .host_offset = extent->host_offset + (offset - extent->offset),
        .bytes = bytes_at(piece, offset),
        .length = end - offset,
    };
    if (extent_is_encrypted(extent)) {
        transfer.encrypted = *extent;
        extent_clip(&transfer.encrypted, offset, end - offset);
    } else if (piece->transfers->len > 0) {
        Transfer *last = &g_array_index(piece->transfers, Transfer, piece->transfers->len - 1);
        if (last->store == transfer.store && last->encrypted.length == 0 &&
            last->bytes + last->length == transfer.bytes &&
            last->host_offset + last->length == transfer.host_offset) {
            last->length += transfer.length;
            return;
        }
    }
    g_array_append_val(piece->transfers, transfer);
}

/* The units around [offset, end) need space. */
static void plan_new(Piece *piece, uint64_t offset, uint64_t end)
{
    uint64_t unit = space_unit(piece);
    Range range = {align_down(offset, unit),
                   min_u64(align_up(end, unit), piece->writer->image->size)};
    Range *last =
        piece->news->len > 0 ? &g_array_index(piece->news, Range, piece->news->len - 1) : NULL;
    if (last && range.offset <= last->end) {
        last->end = max_u64(last->end, range.end);
    } else {
        g_array_append_val(piece->news, range);
    }
}

static void plan_data(Piece *piece, const Extent *extent, uint64_t offset, uint64_t end)
{
    if (is_writable(extent)) {
        plan_transfer(piece, extent, offset, end);
    } else {
        plan_new(piece, offset, end);
    }
}

/* Zeroes over an extent that holds something else: whole units are unmapped where the format can,
 * the rest is data that happens to be zero. */
static int plan_zero(Piece *piece, const Extent *extent, uint64_t offset, uint64_t end)
{
    Image *image = piece->writer->image;
    uint64_t from = align_up(offset, space_unit(piece)), to = align_down(end, space_unit(piece));
    to = end == image->size ? end : to;
    if (from >= to || !image->format->unmap) {
        plan_data(piece, extent, offset, end);
        return 0;
    }
    if (offset < from) {
        plan_data(piece, extent, offset, from);
    }
    int r = image->format->unmap(image, from, to - from, UNMAP_ZERO);
    if (r == -ENOTSUP) {
        plan_data(piece, extent, from, to);
        r = 0;
    }
    if (to < end) {
        plan_data(piece, extent, to, end);
    }
    return r;
}

static bool reads_zero(const Writer *writer, const Extent *extent)
{
    bool nothing = extent->type == EXTENT_UNALLOCATED;
    return extent->type == EXTENT_ZERO || (nothing && !writer->options.over_backing);
}

static int plan_part(Piece *piece, const Part *part, const Extent *extent)
{
    const Writer *writer = piece->writer;
    uint64_t from = max_u64(part->offset, extent->offset);
    uint64_t to = min_u64(part->offset + part->length, extent_end(extent));
    if (from >= to || part->kind == PART_KEEP) {
        return 0;
    }
    if (part->kind == PART_ZERO) {
        bool zero_already = writer->options.blank || reads_zero(writer, extent);
        return zero_already ? 0 : plan_zero(piece, extent, from, to);
    }
    plan_data(piece, extent, from, to);
    return 0;
}

/* The image's own map of the piece: what lies below it is not written. */
static int map_piece(Piece *piece)
{
    uint64_t at = piece->offset, end = piece->offset + piece->length;
    int r = 0;
    while (r == 0 && at < end) {
        r = image_map(piece->writer->image, at, end - at, &piece->map);
        at = extent_list_end(&piece->map);
    }
    return r;
}

static int plan(Piece *piece)
{
    int r = map_piece(piece);
    unsigned e = 0;
    for (guint i = 0; r == 0 && i < piece->parts->len; i++) {
        const Part *part = &g_array_index(piece->parts, Part, i);
        uint64_t part_end = part->offset + part->length;
        while (extent_end(&piece->map.items[e]) <= part->offset) {
            e++;
        }
        for (unsigned j = e; r == 0 && j < piece->map.count; j++) {
            if (piece->map.items[j].offset >= part_end) {
                break;
            }
            r = plan_part(piece, part, &piece->map.items[j]);
        }
    }
    return r;
}

/* ---- space; the lock is held ---------------------------------------------------------------- */

static uint32_t encoded_length(const Piece *piece, uint64_t offset)
{
    return piece->encoded ? piece->encoded_length[(offset - piece->offset) / unit_of(piece)] : 0;
}

/* The end of what one Allocation can hold from offset on: one encoded unit, or plain ones. */
static uint64_t allocation_end(const Piece *piece, uint64_t offset, uint64_t end)
{
    uint64_t unit = unit_of(piece), at = offset + unit;
    if (!piece->encoded) {
        return end;
    }
    while (encoded_length(piece, offset) == 0 && at < end && encoded_length(piece, at) == 0) {
        at += unit;
    }
    return min_u64(at, end);
}

static unsigned count_allocations(const Piece *piece)
{
    unsigned count = 0;
    for (guint i = 0; i < piece->news->len; i++) {
        const Range *range = &g_array_index(piece->news, Range, i);
        for (uint64_t at = range->offset; at < range->end; count++) {
            at = allocation_end(piece, at, range->end);
        }
    }
    return count;
}

static void make_allocations(Piece *piece)
{
    unsigned n = 0;
    piece->count = count_allocations(piece);
    piece->changes = g_new0(Allocation, piece->count);
    piece->list = g_new(Allocation *, piece->count);
    for (guint i = 0; i < piece->news->len; i++) {
        const Range *range = &g_array_index(piece->news, Range, i);
        for (uint64_t at = range->offset, end; at < range->end; at = end) {
            end = allocation_end(piece, at, range->end);
            Allocation *a = &piece->changes[n];
            a->offset = at;
            a->length = end - at;
            a->stored_length = encoded_length(piece, at);
            extent_list_init(&a->extents);
            piece->list[n++] = a;
        }
    }
}

/* Gives back those that were reserved. */
static void abandon(Piece *piece)
{
    Image *image = piece->writer->image;
    unsigned n = 0;
    for (unsigned i = 0; i < piece->count; i++) {
        if (piece->changes[i].result == 0) {
            piece->list[n++] = &piece->changes[i];
        }
    }
    if (n > 0) {
        image->format->abandon(image, piece->list, n);
    }
}

static int reserve(Piece *piece)
{
    Image *image = piece->writer->image;
    if (piece->news->len == 0) {
        return 0;
    }
    if (!image->format->allocate) {
        return -EROFS;
    }
    make_allocations(piece);
    int r = image_allocate(image, piece->list, piece->count);
    if (r < 0) {
        abandon(piece);
    }
    return r;
}

/* ---- the bytes; without the lock ------------------------------------------------------------ */

/* What of a fresh extent must be written: what is not zero. */
static void plan_fresh(Piece *piece, const Extent *extent)
{
    for (guint i = 0; i < piece->parts->len; i++) {
        const Part *part = &g_array_index(piece->parts, Part, i);
        uint64_t from = max_u64(part->offset, extent->offset);
        uint64_t to = min_u64(part->offset + part->length, extent_end(extent));
        bool zero =
            part->kind == PART_ZERO || (part->kind == PART_KEEP && piece->writer->options.blank);
        if (from < to && !zero) {
            plan_transfer(piece, extent, from, to);
        }
    }
}

static void plan_encoded(Piece *piece, const Extent *extent, uint32_t stored_length)
{
    g_array_append_val(piece->transfers,
                       ((Transfer){.store = extent->store,
                                   .host_offset = extent->host_offset,
                                   .bytes = piece->encoded + (extent->offset - piece->offset),
                                   .length = stored_length}));
}

static void plan_allocated(Piece *piece, const Allocation *a)
{
    for (unsigned i = 0; i < a->extents.count; i++) {
        const Extent *extent = &a->extents.items[i];
        if (a->stored_length > 0) {
            plan_encoded(piece, extent, a->stored_length);
        } else if (extent->flags & EXTENT_FRESH) {
            plan_fresh(piece, extent);
        } else {
            plan_transfer(piece, extent, extent->offset, extent_end(extent));
        }
    }
}

/* Writes the transfers from `first` on that lie one behind the other in one store, in one call;
 * *count: how many. */
static int transfer_neighbours(const Piece *piece, guint first, guint *count)
{
    struct iovec iov[64];
    const Transfer *start = &g_array_index(piece->transfers, Transfer, first);
    uint64_t end = start->host_offset;
    unsigned n = 0;
    if (start->encrypted.length > 0) {
        *count = 1;
        return extent_write(&start->encrypted, &(struct iovec){(void *)start->bytes, start->length},
                            1);
    }
    while (n < G_N_ELEMENTS(iov) && first + n < piece->transfers->len) {
        const Transfer *next = &g_array_index(piece->transfers, Transfer, first + n);
        if (next->store != start->store || next->host_offset != end || next->encrypted.length > 0) {
            break;
        }
        iov[n++] = (struct iovec){(void *)next->bytes, next->length};
        end += next->length;
    }
    *count = n;
    return store_writev(start->store, iov, n, start->host_offset);
}

static int transfer_in_turn(const Piece *piece)
{
    int r = 0;
    with_mutex(&piece->writer->turn);
    for (guint i = 0, n; r == 0 && i < piece->transfers->len; i += n) {
        r = transfer_neighbours(piece, i, &n);
    }
    return r;
}

/* The disks write while the next pieces are read; else all of it would wait for the sync at the end. What others wrote
 * in between goes along. */
static void start_sync(const Piece *piece)
{
    for (guint i = 0; i < piece->transfers->len;) {
        Store *store = g_array_index(piece->transfers, Transfer, i).store;
        uint64_t from = UINT64_MAX, to = 0;
        for (; i < piece->transfers->len; i++) {
            const Transfer *transfer = &g_array_index(piece->transfers, Transfer, i);
            if (transfer->store != store) {
                break;
            }
            from = min_u64(from, transfer->host_offset);
            to = max_u64(to, transfer->host_offset + transfer->length);
        }
        store_start_sync(store, from, to - from);
    }
}

static int transfer_all(const Piece *piece)
{
    int r = transfer_in_turn(piece);
    if (r == 0) {
        start_sync(piece);
    }
    return r;
}

/* ---- encoding ------------------------------------------------------------------------------- */

/* Whether some of [offset, end) shall be stored encoded. */
static bool wants_encoding(const Piece *piece, uint64_t offset, uint64_t end)
{
    for (guint i = 0; i < piece->parts->len; i++) {
        const Part *part = &g_array_index(piece->parts, Part, i);
        if (part->kind == PART_ENCODED && part->offset < end &&
            offset < part->offset + part->length) {
            return true;
        }
    }
    return false;
}

/* The last unit of the disk may be cut short; what is stored is a whole one, zeroes behind it. */
static int encode_unit(Piece *piece, uint8_t *out, uint64_t offset, uint64_t end)
{
    Image *image = piece->writer->image;
    uint64_t unit = unit_of(piece);
    const uint8_t *bytes = bytes_at(piece, offset);
    g_autofree uint8_t *whole = NULL;
    if (end - offset < unit) {
        whole = g_try_malloc0(unit);
        if (!whole) {
            return -ENOMEM;
        }
        memcpy(whole, bytes, end - offset);
        bytes = whole;
    }
    return image->format->encode(image, bytes, unit, out + (offset - piece->offset), unit - 1);
}

static int encode(Piece *piece, unsigned slot)
{
    Writer *writer = piece->writer;
    uint64_t unit = unit_of(piece), end = piece->offset + piece->length;
    if (!writer->image->format->encode || !wants_encoding(piece, piece->offset, end)) {
        return 0;
    }
    if (!writer->encoded[slot]) {
        writer->encoded[slot] = g_try_malloc(writer->options.piece);
    }
    piece->encoded_length = g_new0(uint32_t, div_round_up(piece->length, unit));
    piece->encoded = writer->encoded[slot];
    int r = piece->encoded ? 0 : -ENOMEM;
    for (uint64_t at = piece->offset; r >= 0 && at < end; at += unit) {
        uint64_t unit_end = min_u64(at + unit, end);
        if (wants_encoding(piece, at, unit_end)) {
            r = encode_unit(piece, writer->encoded[slot], at, unit_end);
            piece->encoded_length[(at - piece->offset) / unit] = r > 0 ? r : 0;
        }
    }
    return r < 0 ? r : 0;
}

/* ---- one piece ------------------------------------------------------------------------------ */

static int plan_and_reserve(Piece *piece)
{
    pthread_rwlock_wrlock(&piece->writer->lock);
    int r = plan(piece);
    r = r < 0 ? r : reserve(piece);
    pthread_rwlock_unlock(&piece->writer->lock);
    return r;
}

static int commit(Piece *piece, int written)
{
    Image *image = piece->writer->image;
    if (piece->count == 0) {
        return written;
    }
    pthread_rwlock_wrlock(&piece->writer->lock);
    int r = written;
    if (written < 0) {
        abandon(piece);
    } else {
        r = image->format->commit(image, piece->list, piece->count);
    }
    pthread_rwlock_unlock(&piece->writer->lock);
    return r;
}

static int write_piece(Piece *piece, unsigned slot)
{
    int r = encode(piece, slot);
    r = r < 0 ? r : plan_and_reserve(piece);
    if (r < 0) {
        return r;
    }
    for (unsigned i = 0; i < piece->count; i++) {
        plan_allocated(piece, &piece->changes[i]);
    }
    return commit(piece, transfer_all(piece));
}

static void piece_clear(Piece *piece)
{
    for (unsigned i = 0; i < piece->count; i++) {
        extent_list_clear(&piece->changes[i].extents);
    }
    extent_list_clear(&piece->map);
    g_array_unref(piece->transfers);
    g_array_unref(piece->news);
    g_free(piece->changes);
    g_free(piece->list);
    g_free(piece->encoded_length);
}

/* Bitmaps that follow what is written must know of it. */
static void mark(Image *image, const GArray *parts)
{
    for (guint i = 0; image->marks && i < parts->len; i++) {
        const Part *part = &g_array_index(parts, Part, i);
        if (part->kind != PART_KEEP) {
            image->format->mark(image, part->offset, part->length);
        }
    }
}

int writer_write(Writer *writer, unsigned slot, uint64_t offset, uint64_t length,
                 const uint8_t *bytes, const GArray *parts)
{
    bool nothing =
        parts_all(parts, PART_KEEP) || (writer->options.blank && parts_all(parts, PART_ZERO));
    if (nothing) {
        return 0;
    }
    Piece piece = {
        .writer = writer,
        .offset = offset,
        .length = length,
        .bytes = bytes,
        .parts = parts,
        .transfers = g_array_new(false, false, sizeof(Transfer)),
        .news = g_array_new(false, false, sizeof(Range)),
    };
    g_assert(offset % writer->image->largest_unit == 0);
    extent_list_init(&piece.map);
    mark(writer->image, parts);
    int r = write_piece(&piece, slot);
    piece_clear(&piece);
    return r;
}
