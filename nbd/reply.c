/*
 * Requests and the replies made of them.
 *
 *      simple:      header | data                        one reply, all of the data
 *      structured:  chunk head | data  or  chunk head    one or more chunks; a hole is 32 bytes
 *
 * The head of a reply lies in the request structure and the data in its buffer: nothing is copied
 * to make a reply. A READ whose map has zero extents is cut into runs of data and zeroes; short
 * zero runs, zero runs after REPLY_CHUNKS_MAX, and those of a client that wants a single chunk (DF)
 * are filled in as bytes.
 *
 * What must stay true: every byte of the range is in exactly one chunk, and every byte sent was
 * either filled by the engine or cleared here: buffers are used again, what is in them belonged to
 * another request.
 */
#include "nbd/reply.h"

#include "base/bytes.h"
#include "nbd/conn.h"
#include "nbd/conn-memory.h"
#include "nbd/meta-context.h"

#define REPLY_CHUNKS_MAX 32
#define REPLY_HOLE_MIN   4096 /* a shorter run of zeroes is sent as bytes */

typedef struct ReplyChunks {
    struct iovec iov[2 * REPLY_CHUNKS_MAX];
    uint8_t headers[REPLY_CHUNKS_MAX][REPLY_HEADER_MAX];
} ReplyChunks;

G_STATIC_ASSERT(sizeof(ReplyChunks) <= BUFFERS_SMALLEST);
G_STATIC_ASSERT(NBD_CHUNK_MAX <= REPLY_HEADER_MAX);
G_STATIC_ASSERT(META_CONTEXTS_MAX <= REPLY_CHUNKS_MAX);

/* A piece of the range of a READ: all zeroes, or bytes. */
typedef struct Run {
    uint64_t offset, length;
    bool zero;
} Run;

NbdRequest *nbd_request_new(Conn *conn, uint64_t charge)
{
    NbdLocal *local = conn->local;
    NbdRequest *request = local->spare;
    if (request != NULL) {
        local->spare = request->next;
        local->spare_count--;
    } else {
        request = g_new0(NbdRequest, 1);
        request_init(&request->request);
        request->request.worker = local->worker;
    }
    request->conn = conn;
    request->charge = charge + NBD_REQUEST_CHARGE;
    request->begun = 0;
    conn->refs++;
    conn->in_flight++;
    conn->in_flight_bytes += request->charge;
    conn_memory_take(local, request->charge);
    return request;
}

bool nbd_request_take_buffer(NbdRequest *request, uint32_t length)
{
    request->buffer = buffers_take(&request->conn->local->buffers, length);
    request->buffer_length = length;
    return request->buffer != NULL;
}

static void drop_buffer(NbdRequest *request)
{
    if (request->buffer != NULL) {
        buffers_give(&request->conn->local->buffers, request->buffer, request->buffer_length);
        request->buffer = NULL;
    }
}

void nbd_request_drop_buffer(NbdRequest *request)
{
    drop_buffer(request);
}

void nbd_request_free(NbdRequest *request)
{
    Conn *conn = request->conn;
    NbdLocal *local = conn->local;
    request_clear(&request->request);
    drop_buffer(request);
    if (request->chunks != NULL) {
        buffers_give(&local->buffers, request->chunks, sizeof(ReplyChunks));
        request->chunks = NULL;
    }
    conn->in_flight--;
    conn->in_flight_bytes -= request->charge;
    conn_memory_give(local, request->charge);
    if (local->spare_count < NBD_SPARE_MAX) {
        request->next = local->spare;
        local->spare = request;
        local->spare_count++;
    } else {
        g_free(request);
    }
    conn_unref(conn);
}

void nbd_request_free_spare(NbdLocal *local)
{
    while (local->spare != NULL) {
        NbdRequest *request = local->spare;
        local->spare = request->next;
        g_free(request);
    }
    local->spare_count = 0;
}

/* The reply is the first header_length bytes of the header, then length bytes at data. */
static void set_reply(NbdRequest *request, size_t header_length, const void *data, size_t length)
{
    request->iov = request->iov_room;
    request->iov_room[0] = (struct iovec){request->header, header_length};
    request->iov_room[1] = (struct iovec){(void *)data, length};
    request->iov_count = length > 0 ? 2 : 1;
    request->reply_length = header_length + length;
}

void reply_make_bytes(NbdRequest *request, uint32_t length)
{
    request->iov = request->iov_room;
    request->iov_room[0] = (struct iovec){request->buffer, length};
    request->iov_count = 1;
    request->reply_length = length;
}

void reply_make_error(NbdRequest *request, uint32_t nbd_error, const char *text)
{
    if (!request->conn->structured) {
        set_reply(request, nbd_pack_simple_reply(request->header, nbd_error, request->head.cookie),
                  NULL, 0);
        return;
    }
    size_t length = strlen(text);
    const NbdChunkHead *head = &request->head;
    set_reply(request, nbd_pack_error_chunk(request->header, head, nbd_error, length), text,
              length);
}

static const char *error_text(uint32_t nbd_error)
{
    switch (nbd_error) {
    case NBD_EPERM:
        return "the disk may not be written so";
    case NBD_ENOMEM:
        return "the server has no memory left for this request";
    case NBD_EINVAL:
        return "the request is not valid for this disk";
    case NBD_ENOSPC:
        return "no space left on the server for this disk";
    case NBD_EOVERFLOW:
        return "the request is too large";
    case NBD_ENOTSUP:
        return "this disk cannot do that, or not that fast";
    case NBD_ESHUTDOWN:
        return "the server is shutting down";
    default:
        return "input or output error of the server: see its log";
    }
}

/* READ */

static void data_reply(NbdRequest *request)
{
    const NbdChunkHead *head = &request->head;
    set_reply(request,
              nbd_pack_data_chunk(request->header, head, NBD_REPLY_FLAG_DONE, head->offset,
                                  request->length),
              request->buffer, request->length);
}

static void hole_reply(NbdRequest *request)
{
    const NbdChunkHead *head = &request->head;
    set_reply(request,
              nbd_pack_hole_chunk(request->header, head, NBD_REPLY_FLAG_DONE, head->offset,
                                  request->length),
              NULL, 0);
}

/* Success and nothing more. */
static void none_reply(NbdRequest *request)
{
    const NbdChunkHead *head = &request->head;
    set_reply(request,
              nbd_pack_chunk(request->header, head, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_NONE, 0),
              NULL, 0);
}

/* The extent that covers position or the end of the list; *i goes on from one call to the next. */
static Run next_run(const NbdRequest *request, unsigned *i, uint64_t position)
{
    const ExtentList *list = &request->request.extents;
    uint64_t end = request->request.offset + request->length;
    Run run = {.offset = position};
    while (*i < list->count && extent_end(&list->items[*i]) <= position) {
        ++*i;
    }
    if (*i == list->count) {
        run.length = end - position;
        return run;
    }
    run.zero = extent_is_zero(&list->items[*i]);
    uint64_t run_end = position;
    while (*i < list->count && extent_is_zero(&list->items[*i]) == run.zero && run_end < end) {
        run_end = min_u64(extent_end(&list->items[*i]), end);
        ++*i;
    }
    run.length = run_end - position;
    return run;
}

static uint8_t *run_bytes(const NbdRequest *request, const Run *run)
{
    return (uint8_t *)request->buffer + (run->offset - request->request.offset);
}

/* Turns zero runs that are not worth a chunk into bytes and joins neighbours. Returns the number of
 * runs. */
static unsigned cut_into_runs(NbdRequest *request, Run *runs, unsigned max)
{
    bool single = request->flags & NBD_CMD_FLAG_DF;
    uint64_t position = request->request.offset;
    uint64_t end = position + request->length;
    unsigned count = 0, i = 0;
    while (position < end) {
        Run run = next_run(request, &i, position);
        position += run.length;
        bool whole = run.length == request->length;
        if (run.zero && !whole && (single || run.length < REPLY_HOLE_MIN || count >= max - 1)) {
            memset(run_bytes(request, &run), 0, run.length);
            run.zero = false;
        }
        if (count > 0 && !run.zero && !runs[count - 1].zero) {
            runs[count - 1].length += run.length;
        } else {
            runs[count++] = run;
        }
    }
    return count;
}

static void runs_reply(NbdRequest *request, const Run *runs, unsigned count)
{
    ReplyChunks *chunks = request->chunks;
    const NbdChunkHead *head = &request->head;
    unsigned n = 0;
    request->reply_length = 0;
    for (unsigned i = 0; i < count; i++) {
        uint16_t flags = i == count - 1 ? NBD_REPLY_FLAG_DONE : 0;
        uint8_t *header = chunks->headers[i];
        size_t header_length =
            runs[i].zero ? nbd_pack_hole_chunk(header, head, flags, runs[i].offset, runs[i].length)
                         : nbd_pack_data_chunk(header, head, flags, runs[i].offset, runs[i].length);
        chunks->iov[n++] = (struct iovec){header, header_length};
        request->reply_length += header_length;
        if (!runs[i].zero) {
            chunks->iov[n++] = (struct iovec){run_bytes(request, &runs[i]), runs[i].length};
            request->reply_length += runs[i].length;
        }
    }
    request->iov = chunks->iov;
    request->iov_count = n;
}

static void mixed_reply(NbdRequest *request)
{
    Run runs[REPLY_CHUNKS_MAX];
    request->chunks = buffers_take(&request->conn->local->buffers, sizeof(ReplyChunks));
    unsigned max = request->chunks != NULL ? REPLY_CHUNKS_MAX : 1;
    unsigned count = cut_into_runs(request, runs, max);
    if (count > 1) {
        runs_reply(request, runs, count);
    } else if (runs[0].zero) {
        hole_reply(request);
    } else {
        data_reply(request);
    }
}

static void read_reply(NbdRequest *request)
{
    const ExtentList *extents = &request->request.extents;
    if (!request->conn->structured) {
        set_reply(request,
                  nbd_pack_simple_reply(request->header, NBD_SUCCESS, request->head.cookie),
                  request->buffer, request->length);
    } else if (request->length == 0) {
        none_reply(request);
    } else if (extents->count == 0 ||
               (extents->count == 1 && !extent_is_zero(&extents->items[0]))) {
        data_reply(request);
    } else {
        mixed_reply(request);
    }
}

/* BLOCK_STATUS */

static uint32_t allocation_state(const Extent *extent)
{
    if (!extent_is_zero(extent)) {
        return 0;
    }
    bool kept = extent->type == EXTENT_ZERO && (extent->flags & EXTENT_HAS_HOST);
    return kept ? NBD_STATE_ZERO : NBD_STATE_ZERO | NBD_STATE_HOLE;
}

/* 0: no image of the chain has it; 1: the top image; 2: its backing ... */
static uint32_t depth_state(const Extent *extent)
{
    return extent->image == NULL ? 0 : extent->depth + 1u;
}

/* Descriptors of one context, as they are written. */
typedef struct Descriptors {
    const NbdChunkHead *head;
    unsigned count, max;
    uint32_t state;  /* of the last one */
    uint64_t length; /* of the last one */
    uint8_t *last, *end;
} Descriptors;

/* Adds a piece, joined with the last one where both say the same; false: there is no room. */
static bool add_piece(Descriptors *d, uint64_t length, uint32_t state)
{
    if (d->count == 0 || state != d->state) {
        if (d->count == d->max) {
            return false;
        }
        d->count++;
        d->last = d->end;
        d->state = state;
        d->length = 0;
    }
    d->length += length;
    d->end = d->last + nbd_pack_descriptor(d->last, d->head, d->length, state);
    return true;
}

static void add_map(const NbdRequest *request, MetaContext context, Descriptors *d)
{
    const ExtentList *list = &request->request.extents;
    for (unsigned i = 0; i < list->count; i++) {
        Extent extent = list->items[i];
        if (extent_clip(&extent, request->head.offset, request->length)) {
            uint32_t state =
                context == META_DEPTH ? depth_state(&extent) : allocation_state(&extent);
            if (!add_piece(d, extent.length, state)) {
                return;
            }
        }
    }
}

static void add_own(const NbdRequest *request, const ExportContext *context, Descriptors *d)
{
    uint64_t offset = request->head.offset, end = offset + request->length;
    while (offset < end) {
        uint64_t run = 0;
        uint32_t state = context->status(context->data, offset, end - offset, &run);
        g_assert(run > 0 && run <= end - offset);
        if (!add_piece(d, run, state)) {
            return;
        }
        offset += run;
    }
}

/* One chunk for each context; descriptors go to the buffer. */
static void status_chunks(NbdRequest *request, unsigned max)
{
    ReplyChunks *chunks = request->chunks;
    const Export *export = request->conn->export;
    uint8_t *end = request->buffer;
    unsigned n = 0;
    request->reply_length = 0;
    for (unsigned context = 0; request->contexts >> context != 0; context++) {
        if (!(request->contexts & 1u << context)) {
            continue;
        }
        Descriptors d = {.head = &request->head, .max = max, .end = end};
        if (context < META_EXPORT) {
            add_map(request, context, &d);
        } else {
            add_own(request, &export->contexts[context - META_EXPORT], &d);
        }
        uint8_t *header = chunks->headers[n / 2];
        bool last = request->contexts >> context == 1;
        size_t header_length = nbd_pack_status_chunk(header, d.head, last ? NBD_REPLY_FLAG_DONE : 0,
                                                     meta_context_number(context), d.count);
        chunks->iov[n++] = (struct iovec){header, header_length};
        chunks->iov[n++] = (struct iovec){end, d.end - end};
        request->reply_length += header_length + (d.end - end);
        end = d.end;
    }
    request->iov = chunks->iov;
    request->iov_count = n;
}

uint32_t reply_status_size(const Conn *conn, MetaContexts contexts, unsigned max)
{
    unsigned size = conn->extended ? NBD_EXTENDED_DESCRIPTOR_SIZE : NBD_STATUS_DESCRIPTOR_SIZE;
    return max * __builtin_popcount(contexts) * size;
}

static void status_reply(NbdRequest *request)
{
    unsigned max = request->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : REPLY_STATUS_MAX;
    bool of_map = request->contexts & META_OF_MAP;
    if (of_map && request->request.extents.count == 0) {
        reply_make_error(request, NBD_EIO, error_text(NBD_EIO));
        return;
    }
    if (!(request->contexts & ~META_OF_MAP)) {
        max = MIN(max, request->request.extents.count);
    }
    request->chunks = buffers_take(&request->conn->local->buffers, sizeof(ReplyChunks));
    uint32_t size = reply_status_size(request->conn, request->contexts, max);
    if (request->chunks == NULL || !nbd_request_take_buffer(request, size)) {
        reply_make_error(request, NBD_ENOMEM, error_text(NBD_ENOMEM));
        return;
    }
    status_chunks(request, max);
}

void reply_make(NbdRequest *request)
{
    if (request->request.result != 0) {
        uint32_t error = nbd_error_from_errno(request->request.result);
        reply_make_error(request, error, error_text(error));
    } else if (request->command == NBD_CMD_READ) {
        read_reply(request);
    } else if (request->command == NBD_CMD_BLOCK_STATUS) {
        status_reply(request);
    } else if (request->head.extended) {
        none_reply(request);
    } else {
        set_reply(request,
                  nbd_pack_simple_reply(request->header, NBD_SUCCESS, request->head.cookie), NULL,
                  0);
    }
}
