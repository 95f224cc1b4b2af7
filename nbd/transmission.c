/*
 * The transmission phase.
 *
 *      header -> check -> admit (budget) -> [payload] -> node_submit ... done -> reply queued
 *                  |
 *                  +-> error reply, after the payload of a refused WRITE was read past
 *
 * What a command may do is one table; a request passes all checks before anything is allocated for
 * it. A node may call done inside node_submit; that only queues a reply. What must stay true:
 * nothing from the client reaches a node unless it lies inside the disk and the export allows it.
 */
#include "nbd/transmission.h"

#include <inttypes.h>

#include "base/bytes.h"
#include "base/log.h"
#include "nbd/conn.h"
#include "nbd/meta-context.h"
#include "nbd/peer.h"

#define LARGE_PAYLOAD \
    (64u << 10) /* after such a WRITE, the next one's payload is not caught in scratch */

#define PAST_THE_END "the range goes past the end of the disk"

typedef struct Command {
    bool known, writes, buffered;
    uint8_t type;          /* RequestType */
    uint16_t flags;        /* allowed, beside FUA */
    uint32_t past_the_end; /* the error of a range that leaves the disk */
} Command;

static const Command COMMANDS[] = {
    [NBD_CMD_READ] = {.known = true,
                      .buffered = true,
                      .type = REQUEST_READ,
                      .flags = NBD_CMD_FLAG_DF,
                      .past_the_end = NBD_EINVAL},
    [NBD_CMD_WRITE] = {.known = true,
                       .writes = true,
                       .buffered = true,
                       .type = REQUEST_WRITE,
                       .past_the_end = NBD_ENOSPC},
    [NBD_CMD_FLUSH] = {.known = true, .type = REQUEST_FLUSH, .past_the_end = NBD_EINVAL},
    [NBD_CMD_TRIM] = {.known = true,
                      .writes = true,
                      .type = REQUEST_TRIM,
                      .past_the_end = NBD_EINVAL},
    [NBD_CMD_CACHE] = {.known = true, .type = REQUEST_CACHE, .past_the_end = NBD_EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {.known = true,
                              .writes = true,
                              .type = REQUEST_ZERO,
                              .flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              .past_the_end = NBD_ENOSPC},
    [NBD_CMD_BLOCK_STATUS] = {.known = true,
                              .type = REQUEST_STATUS,
                              .flags = NBD_CMD_FLAG_REQ_ONE,
                              .past_the_end = NBD_EINVAL},
    [NBD_CMD_RESIZE] = {.known = true, .writes = true, .type = REQUEST_RESIZE},
};

G_STATIC_ASSERT(G_N_ELEMENTS(COMMANDS) <= NBD_COMMANDS);

uint16_t transmission_flags(const Conn *conn, const Export *export)
{
    bool payload = conn->extended && conn->meta_export == export;
    bool can_write = peer_rights(conn, export) & ACCESS_WRITE;
    bool can_resize = can_write && conn->local->server->limits.allow_resize;
    return NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
           NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE |
           NBD_FLAG_SEND_FAST_ZERO | (can_write ? 0 : NBD_FLAG_READ_ONLY) |
           (conn->structured ? NBD_FLAG_SEND_DF : 0) | (can_resize ? NBD_FLAG_SEND_RESIZE : 0) |
           (payload ? NBD_FLAG_BLOCK_STATUS_PAYLOAD : 0);
}

/* The flags that a command may have on this connection. */
static uint16_t allowed_flags(const Conn *conn, const NbdRequestHeader *header)
{
    uint16_t allowed = COMMANDS[header->command].flags | NBD_CMD_FLAG_FUA;
    if (!conn->structured) {
        allowed &= ~NBD_CMD_FLAG_DF;
    }
    if (conn->extended &&
        (header->command == NBD_CMD_WRITE || header->command == NBD_CMD_BLOCK_STATUS)) {
        allowed |= NBD_CMD_FLAG_PAYLOAD_LEN;
    }
    return allowed;
}

static uint32_t check_status(const Conn *conn, const NbdRequestHeader *header, const char **text)
{
    if (conn->contexts == 0) {
        *text = "block status without a negotiated meta context";
    } else if (header->length == 0) {
        *text = "block status of no bytes";
    } else if (header->payload > NBD_STATUS_PAYLOAD_SIZE + 4 * META_CONTEXTS_MAX ||
               header->payload % 4 != 0 ||
               (header->payload > 0 && header->payload < NBD_STATUS_PAYLOAD_SIZE)) {
        *text = "the payload must be a length of 8 bytes and numbers of contexts";
    } else {
        return NBD_SUCCESS;
    }
    return NBD_EINVAL;
}

/* The offset is the new size. */
static uint32_t check_resize(const Conn *conn, const NbdRequestHeader *header, const char **text)
{
    if (!conn->local->server->limits.allow_resize) {
        *text = "changing the size was not offered";
        return NBD_EINVAL;
    }
    if (header->length != 0) {
        *text = "resize has no length: its offset is the new size";
        return NBD_EINVAL;
    }
    if (conn->export->kernel_clients > 0) {
        *text = "the disk is a block device of the server: its size is changed there";
        return NBD_EPERM;
    }
    return NBD_SUCCESS;
}

/* The checks that ask only for the command and its flags. */
static uint32_t check_form(const Conn *conn, const NbdRequestHeader *header, const char **text)
{
    if (header->command >= G_N_ELEMENTS(COMMANDS) || !COMMANDS[header->command].known) {
        *text = "unknown command";
        return NBD_EINVAL;
    }
    if (header->flags & ~allowed_flags(conn, header)) {
        *text = "a flag that this command does not have, or that was not negotiated";
        return NBD_EINVAL;
    }
    if (header->command == NBD_CMD_BLOCK_STATUS) {
        return check_status(conn, header, text);
    }
    if (header->command == NBD_CMD_RESIZE) {
        return check_resize(conn, header, text);
    }
    if (header->command == NBD_CMD_FLUSH && (header->offset != 0 || header->length != 0)) {
        *text = "flush has no offset and no length";
        return NBD_EINVAL;
    }
    return NBD_SUCCESS;
}

/* A RESIZE has no range; that of a BLOCK_STATUS with a payload is known, and checked, when that has
 * arrived. */
static bool has_range(const NbdRequestHeader *header)
{
    return header->command != NBD_CMD_RESIZE &&
           (header->command != NBD_CMD_BLOCK_STATUS || header->payload == 0);
}

/* Which error a request deserves, with its text; NBD_SUCCESS where it may go to the node. */
static uint32_t check_request(const Conn *conn, const NbdRequestHeader *header, const char **text)
{
    if (conn->stopping) {
        *text = "the server is shutting down";
        return NBD_ESHUTDOWN;
    }
    uint32_t error = check_form(conn, header, text);
    if (error != NBD_SUCCESS) {
        return error;
    }
    const Command *command = &COMMANDS[header->command];
    if (command->writes && conn->read_only) {
        *text = "the export is read-only";
        return NBD_EPERM;
    }
    if (command->buffered && header->length > TRANSMISSION_LENGTH_MAX) {
        *text = "longer than the maximum of 64 MiB";
        return header->flags & NBD_CMD_FLAG_DF ? NBD_EOVERFLOW : NBD_EINVAL;
    }
    if (has_range(header) &&
        !range_within(header->offset, header->length, conn->export->node->size)) {
        *text = PAST_THE_END;
        return command->past_the_end;
    }
    return NBD_SUCCESS;
}

static void count(const NbdRequest *request)
{
    NbdCounters *counters = request->conn->counters;
    nbd_count(&counters->requests[request->command], 1);
    if (request->request.result == 0) {
        nbd_count(&counters->bytes[request->command], request->length);
    } else {
        nbd_count_error(counters, nbd_error_from_errno(request->request.result));
    }
}

static void request_done(Request *done)
{
    NbdRequest *request = (NbdRequest *)(void *)done;
    count(request);
    nbd_local_returned(request->conn->local);
    if (request->conn->closed) {
        nbd_request_free(request);
        return;
    }
    reply_make(request);
    conn_send(request->conn, request);
}

/* The kernel has asked for nothing else, and the worker has nobody else: two changes of thread would be for nothing. */
static bool is_alone(const Conn *conn)
{
    return conn->gone != NULL && conn->in_flight == 1 && conn->local->conns == conn &&
           conn->next == NULL;
}

static unsigned engine_flags(const Conn *conn, const NbdRequest *request)
{
    unsigned flags = 0;
    if (request->command == NBD_CMD_READ) {
        return conn->structured ? REQUEST_HOLES_OK : 0;
    }
    if (request->command == NBD_CMD_RESIZE) {
        return REQUEST_MAY_SHRINK;
    }
    if (request->command == NBD_CMD_WRITE && is_alone(conn)) {
        flags |= REQUEST_MAY_BLOCK;
    }
    if (request->flags & NBD_CMD_FLAG_FUA) {
        flags |= REQUEST_FUA;
    }
    if (request->flags & NBD_CMD_FLAG_NO_HOLE) {
        flags |= REQUEST_NO_HOLE;
    }
    if (request->flags & NBD_CMD_FLAG_FAST_ZERO) {
        flags |= REQUEST_FAST_ZERO;
    }
    if (request->flags & NBD_CMD_FLAG_REQ_ONE) {
        flags |= REQUEST_ONE;
    }
    return flags;
}

/* The others are answered without it. */
static bool concerns_node(const NbdRequest *request)
{
    switch (request->command) {
    case NBD_CMD_FLUSH:
    case NBD_CMD_RESIZE:
        return true;
    case NBD_CMD_BLOCK_STATUS:
        return request->contexts & META_OF_MAP;
    default:
        return request->length > 0;
    }
}

static void submit(Conn *conn, NbdRequest *request)
{
    Request *to_node = &request->request;
    to_node->result = 0;
    request->begun = conn->local->now;
    nbd_count(&conn->counters->begun, 1);
    nbd_local_submitted(conn->local);
    if (!concerns_node(request)) {
        request_done(to_node);
        return;
    }
    to_node->type = COMMANDS[request->command].type;
    to_node->flags = engine_flags(conn, request);
    to_node->length = request->command == NBD_CMD_RESIZE ? request->head.offset : request->length;
    to_node->buffer = request->buffer;
    to_node->done = request_done;
    node_submit(conn->export->node, to_node);
}

static NbdRequest *make_request(Conn *conn, const NbdRequestHeader *header, uint64_t charge)
{
    NbdRequest *request = nbd_request_new(conn, charge);
    request->head = (NbdChunkHead){
        .extended = conn->extended, .cookie = header->cookie, .offset = header->offset};
    request->command = header->command;
    request->flags = header->flags;
    request->length = header->length;
    request->contexts = conn->contexts;
    request->request.offset = header->command == NBD_CMD_RESIZE ? 0 : header->offset;
    return request;
}

/* Answers with an error, after the payload if there is one. */
static void refuse(Conn *conn, NbdRequest *request, uint64_t payload, uint32_t error,
                   const char *text)
{
    nbd_count_error(conn->counters, error);
    reply_make_error(request, error, text);
    if (payload == 0) {
        conn_send(conn, request);
    } else if (payload <= TRANSMISSION_SKIP_MAX) {
        conn_skip(conn, payload, request);
    } else {
        log_limited(LOG_LEVEL_WARNING,
                    "client dropped: it announced a payload of %" PRIu64 " bytes", payload);
        nbd_request_free(request);
        conn_break(conn);
    }
}

/* The payload of a BLOCK_STATUS: 64 bits of length, numbers of contexts. */
static void submit_status(Conn *conn, NbdRequest *request)
{
    const uint8_t *payload = request->buffer;
    unsigned numbers = (request->length - NBD_STATUS_PAYLOAD_SIZE) / 4;
    request->length = load_be64(payload);
    request->contexts =
        meta_context_unpack(payload + NBD_STATUS_PAYLOAD_SIZE, numbers, conn->contexts);
    nbd_request_drop_buffer(request);
    if (request->contexts == 0) {
        refuse(conn, request, 0, NBD_EINVAL,
               "the payload must name negotiated contexts, each once");
    } else if (request->length == 0) {
        refuse(conn, request, 0, NBD_EINVAL, "block status of no bytes");
    } else if (!range_within(request->request.offset, request->length, conn->export->node->size)) {
        refuse(conn, request, 0, NBD_EINVAL, PAST_THE_END);
    } else {
        submit(conn, request);
    }
}

static void payload_is_here(Conn *conn, NbdRequest *request)
{
    if (request->command == NBD_CMD_BLOCK_STATUS) {
        submit_status(conn, request);
    } else {
        submit(conn, request);
    }
}

/* Takes what is there of a payload; goes on when that is all. Returns the bytes taken. */
static size_t begin_payload(Conn *conn, NbdRequest *request, const uint8_t *bytes, size_t length)
{
    size_t here = min_u64(length, request->length);
    memcpy(request->buffer, bytes, here);
    conn->expect_large = request->length >= LARGE_PAYLOAD;
    if (here == request->length) {
        payload_is_here(conn, request);
    } else {
        conn->payload = request;
        conn->payload_got = here;
    }
    return here;
}

void transmission_payload_done(Conn *conn)
{
    NbdRequest *request = conn->payload;
    conn->payload = NULL;
    payload_is_here(conn, request);
}

/* Bytes of the buffer that a request has from its beginning. */
static uint64_t buffer_of(const NbdRequestHeader *header)
{
    return COMMANDS[header->command].buffered ? header->length : header->payload;
}

/* What a request with a buffer of length bytes adds to the budget beside its structure. */
static uint64_t charge_of(const Conn *conn, const NbdRequestHeader *header, uint64_t length)
{
    if (header->command == NBD_CMD_BLOCK_STATUS) {
        return buffers_cost(reply_status_size(conn, conn->contexts, REPLY_STATUS_MAX));
    }
    return buffers_cost(length);
}

/* Takes the header; false: the connection is over. */
static bool unpack(Conn *conn, const uint8_t *bytes, NbdRequestHeader *header)
{
    if (conn->extended ? nbd_unpack_extended_request(bytes, header)
                       : nbd_unpack_request(bytes, header)) {
        return true;
    }
    log_limited(LOG_LEVEL_WARNING, "client dropped: a request with the magic 0x%08x",
                load_be32(bytes));
    conn_break(conn);
    return false;
}

size_t transmission_consume(Conn *conn, const uint8_t *bytes, size_t length)
{
    NbdRequestHeader header;
    size_t size = conn->header_size;
    if (length < size || !unpack(conn, bytes, &header)) {
        return 0;
    }
    if (header.command == NBD_CMD_DISC) {
        conn_drain(conn);
        return 0;
    }
    const char *text = NULL;
    uint32_t error = check_request(conn, &header, &text);
    uint64_t buffer = error == NBD_SUCCESS ? buffer_of(&header) : 0;
    uint64_t charge = error == NBD_SUCCESS ? charge_of(conn, &header, buffer) : 0;
    if (!conn_admit(conn, charge + NBD_REQUEST_CHARGE)) {
        return 0;
    }
    NbdRequest *request = make_request(conn, &header, charge);
    if (buffer > 0 && !nbd_request_take_buffer(request, buffer)) {
        error = NBD_ENOMEM;
        text = "the server has no memory left for this request";
    }
    if (error != NBD_SUCCESS) {
        refuse(conn, request, header.payload, error, text);
        return size;
    }
    if (header.payload > 0) {
        return size + begin_payload(conn, request, bytes + size, length - size);
    }
    conn->expect_large = false;
    submit(conn, request);
    return size;
}
