/*
 * WRITE, part by part. A part is either a run that may be overwritten in place, or a run that needs
 * new space:
 *
 *     map (STABLE) ──all writable──> write in place ──────────────────> next part, or complete
 *          │ not writable                                                  ^
 *          └─> CHANGE on whole units ─> allocate ─> read edges ─> write ─> commit
 *                                                │                 └─ failed: abandon, complete
 *                                                └─> write at once and commit, in the change job
 *
 * Edges are the parts of the first and the last unit that the client does not overwrite. They are
 * read from the old place and written together with the client's bytes; on FRESH space they need
 * nothing where the old place read as zeroes. (New space of an encrypted image is never FRESH.)
 *
 * What must stay true (docs/architecture.md, what a crash may do, rule 1): commit is asked for only
 * after every byte of the unit, edges included, has been written. Another request may have
 * allocated the same unit between the two locks; the change job maps again and then shortens this
 * change to nothing, and the part starts over.
 *
 * Where a format has units of two sizes, the small ones are tried first; a change that is too narrow is made again with
 * the large ones.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "engine/change.h"
#include "engine/transfer.h"
#include "map/encryption.h"

typedef struct NewWrite {
    Change *change;
    uint64_t start, end;  /* the client's bytes in this part, guest offsets */
    uint8_t *head, *tail; /* edges to write, or NULL */
} NewWrite;

static void write_next_part(Request *request);
static void write_new(Request *request, uint64_t start, uint64_t end, uint64_t unit);

static const uint8_t *payload_at(const Request *request, uint64_t offset)
{
    return request->buffer + (offset - request->offset);
}

/* What the first extents of the mapped range have in common decides what the part is. */
typedef enum { PART_WRITABLE, PART_ZERO_ALREADY, PART_NEW } PartKind;

static PartKind part_kind(const Request *request, const Extent *extent)
{
    if (extent->type == EXTENT_DATA && (extent->flags & EXTENT_WRITABLE)) {
        return PART_WRITABLE;
    }
    bool zero_already = (request->flags & REQUEST_ALL_ZERO) && extent_is_zero(extent);
    return zero_already ? PART_ZERO_ALREADY : PART_NEW;
}

static void part_done(Request *request, int result, uint64_t end)
{
    disk_release(request_disk(request), request);
    request->progress = end - request->offset;
    if (result < 0 || request->progress == request->length) {
        extent_list_reset(&request->extents);
        request_complete_changed(request, result);
    } else {
        request_resume(request, write_next_part); /* a turn later: others first, and no recursion */
    }
}

/* In place. */

static void write_in_place_done(Request *request, int result)
{
    part_done(request, result, extent_list_end(&request->extents));
}

static struct iovec payload_iov(const Request *request, const Extent *extent)
{
    return (struct iovec){(void *)payload_at(request, extent->offset), extent->length};
}

static void write_in_place_rest(Request *request, unsigned index)
{
    Transfer *transfer = transfer_new(request_disk(request), request, write_in_place_done);
    for (unsigned i = index; i < request->extents.count; i++) {
        const Extent *extent = &request->extents.items[i];
        struct iovec iov = payload_iov(request, extent);
        transfer_write(transfer, extent, &iov, 1);
    }
    transfer_start(transfer);
}

/* All extents of a part are of one image, the disk's own. */
static bool is_encrypted(const Request *request)
{
    return extent_is_encrypted(&request->extents.items[0]);
}

static bool has_part_of_a_sector(const Request *request)
{
    const ExtentList *list = &request->extents;
    return is_encrypted(request) && !(extent_has_whole_sectors(&list->items[0]) &&
                                      extent_has_whole_sectors(&list->items[list->count - 1]));
}

static void write_in_place(Request *request)
{
    if (is_encrypted(request)) {
        write_in_place_rest(request, 0);
        return;
    }
    for (unsigned i = 0; i < request->extents.count; i++) {
        const Extent *extent = &request->extents.items[i];
        struct iovec iov = payload_iov(request, extent);
        int r = store_write_nowait(extent->store, &iov, 1, extent->host_offset);
        if (r == -EAGAIN) {
            write_in_place_rest(request, i);
            return;
        }
        if (r < 0) {
            write_in_place_done(request, r);
            return;
        }
    }
    write_in_place_done(request, 0);
}

/* Part of a sector of an encrypted image: read, changed and written with CHANGE on the whole of it, by
 * a thread that may block. */

static void sectors_written(Request *request)
{
    part_done(request, request->result, request->offset + request->progress);
}

/* [pool] As much of the request as is writable in place. None of it any more: it is looked at again. */
static void sectors_job(PoolJob *job)
{
    Request *request = (Request *)((char *)job - offsetof(Request, job.job));
    Disk *disk = request_disk(request);
    uint64_t start = request->offset + request->progress;
    uint64_t end =
        min_u64(request->offset + request->length, request->hold.offset + request->hold.length);
    ExtentList list;
    extent_list_init(&list);
    request->result = range_within(start, end - start, disk->image->size)
                          ? chain_map(disk->image, start, end - start, MAP_PART_MAX, &list)
                          : request_past_the_end(request);
    gate_leave(&disk->gate, GATE_SHARED);
    for (unsigned i = 0; request->result == 0 && i < list.count; i++) {
        const Extent *extent = &list.items[i];
        if (part_kind(request, extent) != PART_WRITABLE) {
            break;
        }
        struct iovec iov = payload_iov(request, extent);
        request->result = extent_write(extent, &iov, 1);
        request->progress = extent_end(extent) - request->offset;
    }
    extent_list_clear(&list);
    request_resume(request, sectors_written);
}

static void sectors_granted(Request *request)
{
    request->job.job.run = sectors_job;
    gate_enter(&request_disk(request)->gate, &request->job, GATE_SHARED);
}

/* [start, end) is writable, with part of a sector at an end. */
static void write_sectors(Request *request, uint64_t start, uint64_t end)
{
    Disk *disk = request_disk(request);
    uint64_t sector = disk->image->encryption->sector;
    uint64_t from = align_down(start, sector);
    disk_release(disk, request);
    change_acquire(request, from, align_up(end, sector) - from, sectors_granted);
}

/* Into new space. */

static NewWrite *new_write(const Request *request)
{
    return request->work;
}

static void new_write_end(Request *request, int result)
{
    NewWrite *new = new_write(request);
    uint64_t end = new->end;
    request->work = NULL;
    change_free(new->change);
    g_free(new->head);
    g_free(new->tail);
    g_free(new);
    part_done(request, result, end);
}

static void abandoned(Request *request)
{
    new_write_end(request, request->result);
}

static void committed(Request *request)
{
    new_write_end(request, new_write(request)->change->result);
}

static void new_write_failed(Request *request, int result)
{
    request->result = result;
    change_start(new_write(request)->change, CHANGE_ABANDON, abandoned);
}

static void data_written(Request *request, int result)
{
    if (result < 0) {
        new_write_failed(request, result);
    } else {
        change_start(new_write(request)->change, CHANGE_COMMIT, committed);
    }
}

/* What goes into the new extent: edge, client's bytes, edge, in one piece. Returns how many parts it has; *offset: the
 * guest offset of the first. */
static int new_extent_iov(const Request *request, const Extent *extent,
                          struct iovec iov[TRANSFER_IOV_MAX], uint64_t *offset)
{
    const NewWrite *new = new_write(request);
    const Change *change = new->change;
    uint64_t from = new->head != NULL ? change->offset : new->start;
    uint64_t to = new->tail != NULL ? change->offset + change->length : new->end;
    from = max_u64(from, extent->offset);
    to = min_u64(to, extent_end(extent));
    int count = 0;
    if (from < new->start) {
        uint64_t end = min_u64(to, new->start);
        iov[count++] = (struct iovec){new->head + (from - change->offset), end - from};
    }
    uint64_t start = max_u64(from, new->start), end = min_u64(to, new->end);
    if (start < end) {
        iov[count++] = (struct iovec){(void *)payload_at(request, start), end - start};
    }
    if (to > new->end) {
        uint64_t tail_start = max_u64(from, new->end);
        iov[count++] = (struct iovec){new->tail + (tail_start - new->end), to - tail_start};
    }
    *offset = from;
    return count;
}

static void write_new_extent(Transfer *transfer, Request *request, const Extent *extent)
{
    struct iovec iov[TRANSFER_IOV_MAX];
    uint64_t offset, length = 0;
    int count = new_extent_iov(request, extent, iov, &offset);
    for (int i = 0; i < count; i++) {
        length += iov[i].iov_len;
    }
    Extent part = *extent;
    extent_clip(&part, offset, length);
    transfer_write(transfer, &part, iov, count);
}

static void edges_read(Request *request, int result)
{
    if (result < 0) {
        new_write_failed(request, result);
        return;
    }
    const ExtentList *extents = &new_write(request)->change->allocation.extents;
    Transfer *transfer = transfer_new(request_disk(request), request, data_written);
    for (unsigned i = 0; i < extents->count; i++) {
        write_new_extent(transfer, request, &extents->items[i]);
    }
    transfer_start(transfer);
}

/* True when the range need not be written: it was zero and the new space reads as zeroes. */
static bool edge_needs_nothing(const Change *change, uint64_t offset, uint64_t length)
{
    for (unsigned i = 0; i < change->old.count; i++) {
        Extent old = change->old.items[i];
        if (extent_clip(&old, offset, length) && !extent_is_zero(&old)) {
            return false;
        }
    }
    for (unsigned i = 0; i < change->allocation.extents.count; i++) {
        Extent extent = change->allocation.extents.items[i];
        if (extent_clip(&extent, offset, length) && !(extent.flags & EXTENT_FRESH)) {
            return false;
        }
    }
    return true;
}

/* Adds the reads of an edge to the transfer. False when there is no memory; *edge stays NULL when
 * it needs nothing. */
static bool read_edge(Transfer *transfer, const Change *change, uint64_t offset, uint64_t length,
                      uint8_t **edge)
{
    if (length == 0 || edge_needs_nothing(change, offset, length)) {
        return true;
    }
    *edge = g_try_malloc(length);
    if (*edge == NULL) {
        return false;
    }
    for (unsigned i = 0; i < change->old.count; i++) {
        Extent old = change->old.items[i];
        if (extent_clip(&old, offset, length)) {
            transfer_read(transfer, &old, *edge + (old.offset - offset));
        }
    }
    return true;
}

/* What the kernel will move itself from now on goes past the page cache, as all that it moves. */
static int write_pieces(const Request *request, Store *store, const struct iovec *iov, int count,
                        uint64_t host_offset)
{
    if (!(request->flags & REQUEST_MAY_BLOCK)) {
        return store_write_nowait(store, iov, count, host_offset);
    }
    int r = -EAGAIN;
    if (disk_is_leased(request_disk(request))) {
        r = store_write_direct(store, iov, count, host_offset);
    }
    return r == -EAGAIN ? store_writev(store, iov, count, host_offset) : r;
}

/* The change's write_now. What was written when it gives up is written again. */
static bool write_at_once(Change *change)
{
    const Request *request = change->request;
    NewWrite *new = new_write(request);
    uint64_t change_end = change->offset + change->length, end = min_u64(new->end, change_end);
    if (request_disk(request)->image->encryption != NULL) {
        return false; /* what is written is not what the client sent: transfer_write knows */
    }
    if (!edge_needs_nothing(change, change->offset, new->start - change->offset) ||
        !edge_needs_nothing(change, end, change_end - end)) {
        return false;
    }
    new->end = end;
    for (unsigned i = 0; i < change->allocation.extents.count; i++) {
        const Extent *extent = &change->allocation.extents.items[i];
        struct iovec iov[TRANSFER_IOV_MAX];
        uint64_t offset;
        int count = new_extent_iov(request, extent, iov, &offset);
        uint64_t host_offset = extent->host_offset + (offset - extent->offset);
        if (write_pieces(request, extent->store, iov, count, host_offset) != 0) {
            return false;
        }
    }
    return true;
}

/* The same bytes once more, with all of the unit around them. */
static void widen(Request *request)
{
    NewWrite *new = new_write(request);
    uint64_t start = new->start, end = new->end;
    change_free(new->change);
    g_free(new);
    write_new(request, start, end, request_disk(request)->image->largest_unit);
}

static void allocated(Request *request)
{
    NewWrite *new = new_write(request);
    Change *change = new->change;
    uint64_t change_end = change->offset + change->length;
    if (change->result == 0 && change->too_narrow) {
        widen(request);
        return;
    }
    if (change->result < 0 || change->length == 0) {
        new->end = new->start; /* nothing was done: report, or look again */
        new_write_end(request, change->result);
        return;
    }
    if (change->committed) {
        new_write_end(request, change->result);
        return;
    }
    new->end = min_u64(new->end, change_end);
    Transfer *transfer = transfer_new(request_disk(request), request, edges_read);
    bool memory =
        read_edge(transfer, change, change->offset, new->start - change->offset, &new->head) &&
        read_edge(transfer, change, new->end, change_end - new->end, &new->tail);
    if (!memory) {
        transfer_fail(transfer, -ENOMEM);
    }
    transfer_start(transfer);
}

static void change_granted(Request *request)
{
    change_start(new_write(request)->change, CHANGE_ALLOCATE, allocated);
}

/* [start, end) is not writable: take the units around it for a change. */
static void write_new(Request *request, uint64_t start, uint64_t end, uint64_t unit)
{
    Disk *disk = request_disk(request);
    uint64_t from = align_down(start, unit);
    /* Never before the end of what is written, although the disk may be shorter by now. */
    uint64_t to = max_u64(end, min_u64(align_up(end, unit), disk->node.size));
    NewWrite *new = g_new0(NewWrite, 1);
    new->start = start;
    new->end = end;
    new->change = change_new(request, from, to - from);
    new->change->write_now = disk->image->encryption ? NULL : write_at_once;
    request->work = new;
    disk_release(disk, request);
    change_acquire(request, from, to - from, change_granted);
}

static void write_mapped(Request *request)
{
    ExtentList *list = &request->extents;
    uint64_t start = request->offset + request->progress;
    if (request->result < 0) {
        part_done(request, request->result, start);
        return;
    }
    PartKind kind = part_kind(request, &list->items[0]);
    unsigned same = 1;
    while (same < list->count && part_kind(request, &list->items[same]) == kind) {
        same++;
    }
    list->count = same;
    switch (kind) {
    case PART_WRITABLE:
        if (has_part_of_a_sector(request)) {
            write_sectors(request, start, extent_list_end(list));
        } else {
            write_in_place(request);
        }
        break;
    case PART_ZERO_ALREADY:
        part_done(request, 0, extent_list_end(list));
        break;
    case PART_NEW:
        write_new(request, start, extent_list_end(list),
                  request_disk(request)->image->allocation_unit);
        break;
    }
}

static void write_next_part(Request *request)
{
    map_start(request, request->offset + request->progress, request->length - request->progress,
              write_mapped);
}

/*
 * An image whose format was guessed to be raw must not become something else by what a guest writes
 * to its first bytes: the next open would follow names that the guest chose.
 *
 * Two writes may plant together what neither plants alone. So the part of a write that lies in the
 * first bytes is looked at and written in one go, with CHANGE on all of them.
 */
static uint64_t guarded_size(const Disk *disk)
{
    return min_u64(IMAGE_PROBE_SIZE, disk->node.size);
}

static uint64_t guarded_length(const Request *request)
{
    return min_u64(request->length, IMAGE_PROBE_SIZE - request->offset);
}

static void guard_done(Request *request)
{
    uint64_t length = request->result < 0 ? 0 : guarded_length(request);
    part_done(request, request->result, request->offset + length);
}

static int guarded_write(Disk *disk, const Request *request)
{
    uint8_t head[IMAGE_PROBE_SIZE] = {0};
    uint64_t size = guarded_size(disk), length = guarded_length(request);
    if (!range_within(request->offset, length, size)) {
        return request_past_the_end(request);
    }
    int r = store_read(disk->image->store, head, size, 0);
    if (r < 0) {
        return r;
    }
    memcpy(head + request->offset, request->buffer, length);
    if (format_probe(head, size, disk->image->path) != disk->image->format) {
        log_limited(
            LOG_LEVEL_WARNING,
            "%s: a write that would make this raw image look like another format was refused: "
            "say -f raw to allow it",
            disk->image->path);
        return -EPERM;
    }
    return store_write(disk->image->store, request->buffer, length, request->offset);
}

static void guard_job(PoolJob *job)
{
    Request *request = (Request *)((char *)job - offsetof(Request, job.job));
    request->result = guarded_write(request_disk(request), request);
    request_resume(request, guard_done);
}

static void guard_granted(Request *request)
{
    request->job.job.run = guard_job;
    pool_submit(request_disk(request)->pool, &request->job.job);
}

static void guard_start(Request *request)
{
    change_acquire(request, 0, IMAGE_PROBE_SIZE, guard_granted);
}

void write_start(Request *request)
{
    Disk *disk = request_disk(request);
    int refusal = disk_write_refusal(disk);
    if (refusal < 0) {
        request_complete(request, refusal);
    } else if (disk->guard_probe && request->offset < IMAGE_PROBE_SIZE) {
        guard_start(request);
    } else {
        write_next_part(request);
    }
}
