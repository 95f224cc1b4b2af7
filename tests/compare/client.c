/*
 * Connections and commands in flight. The completion callbacks only take notes: libnbd does not
 * allow calls on the same handle from within them.
 */
#include "client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"

#define PATIENCE_MS (120 * 1000) /* without any answer */

static struct nbd_handle *connect_one(const char *socket, const char *export, bool structured)
{
    struct nbd_handle *handle = nbd_create();
    if (handle == NULL || nbd_set_export_name(handle, export) != 0 ||
        nbd_set_request_structured_replies(handle, structured) != 0 ||
        (structured && nbd_add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0) ||
        nbd_set_pread_initialize(handle, false) != 0 || nbd_connect_unix(handle, socket) != 0) {
        die("cannot connect to %s: %s", export, nbd_get_error());
    }
    return handle;
}

void clients_connect(Clients *clients, const char *socket, const char *export, unsigned count,
                     Random *random)
{
    clients->count = count;
    for (unsigned i = 0; i < count; i++) {
        clients->structured[i] = random_percent(random, 75);
        clients->handles[i] = connect_one(socket, export, clients->structured[i]);
    }
}

void clients_disconnect(Clients *clients)
{
    for (unsigned i = 0; i < clients->count; i++) {
        if (!clients->lost[i] && nbd_shutdown(clients->handles[i], 0) != 0 &&
            !clients->may_be_lost) {
            die("cannot disconnect: %s", nbd_get_error());
        }
        nbd_close(clients->handles[i]);
    }
}

static int op_completed(void *opaque, int *error)
{
    Op *op = opaque;
    op->error = *error;
    op->finished = true;
    return 1;
}

static int op_chunk(void *opaque, const void *data, size_t length, uint64_t offset, unsigned status,
                    int *error)
{
    const Op *op = opaque;
    if (status != LIBNBD_READ_ERROR &&
        (offset < op->offset || length > op->offset + op->length - offset)) {
        *error = EBADMSG;
        return -1;
    }
    return 0;
}

static int op_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries,
                      size_t count, int *error)
{
    Op *op = opaque;
    op->status_count = count < OP_STATUS_MAX ? count : OP_STATUS_MAX;
    memcpy(op->status, entries, op->status_count * sizeof *entries);
    return 0;
}

void clients_submit(Clients *clients, Op *op)
{
    struct nbd_handle *handle = clients->handles[op->connection];
    nbd_completion_callback done = {.callback = op_completed, .user_data = op};
    nbd_chunk_callback chunk = {.callback = op_chunk, .user_data = op};
    nbd_extent_callback extents = {.callback = op_extents, .user_data = op};
    int64_t cookie = -1;
    op->in_flight = true;
    op->finished = false;
    switch (op->kind) {
    case OP_READ:
        memset(op->buffer, 0xa5, op->length);
        cookie = (op->flags & LIBNBD_CMD_FLAG_DF) || (op->offset & 1)
                     ? nbd_aio_pread_structured(handle, op->buffer, op->length, op->offset, chunk,
                                                done, op->flags)
                     : nbd_aio_pread(handle, op->buffer, op->length, op->offset, done, op->flags);
        break;
    case OP_WRITE:
        cookie = nbd_aio_pwrite(handle, op->buffer, op->length, op->offset, done, op->flags);
        break;
    case OP_TRIM:
        cookie = nbd_aio_trim(handle, op->length, op->offset, done, op->flags);
        break;
    case OP_ZERO:
        cookie = nbd_aio_zero(handle, op->length, op->offset, done, op->flags);
        break;
    case OP_FLUSH:
        cookie = nbd_aio_flush(handle, done, op->flags);
        break;
    case OP_CACHE:
        cookie = nbd_aio_cache(handle, op->length, op->offset, done, op->flags);
        break;
    default:
        cookie = nbd_aio_block_status(handle, op->length, op->offset, extents, done, op->flags);
    }
    if (cookie < 0 && clients->may_be_lost && nbd_aio_is_dead(handle)) {
        clients->lost[op->connection] = true;
        op->finished = true;
        op->error = ENOTCONN;
    } else if (cookie < 0) {
        die("%s: %s", op_text(op), nbd_get_error());
    }
}

/* A handle may also find out while it sends, which is not seen here before the next look. */
static bool notice_loss(Clients *clients, unsigned i)
{
    struct nbd_handle *handle = clients->handles[i];
    clients->lost[i] = clients->lost[i] || nbd_aio_is_dead(handle) || nbd_aio_is_closed(handle);
    if (clients->lost[i] && !clients->may_be_lost) {
        die("connection %u was lost: %s", i, nbd_get_error() ? nbd_get_error() : "closed");
    }
    return clients->lost[i];
}

static void clients_notify(Clients *clients, unsigned i, short events)
{
    if (events & POLLOUT && !(events & POLLIN)) {
        nbd_aio_notify_write(clients->handles[i]);
    } else {
        nbd_aio_notify_read(clients->handles[i]);
    }
    notice_loss(clients, i);
}

void clients_poll(Clients *clients)
{
    struct pollfd fds[CLIENTS_MAX];
    bool noticed = false;
    for (unsigned i = 0; i < clients->count; i++) {
        fds[i] = (struct pollfd){.fd = -1};
        if (!clients->lost[i] && notice_loss(clients, i)) {
            noticed = true;
        } else if (!clients->lost[i]) {
            unsigned direction = nbd_aio_get_direction(clients->handles[i]);
            fds[i].fd = nbd_aio_get_fd(clients->handles[i]);
            fds[i].events = (direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                            (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
        }
    }
    int ready = poll(fds, clients->count, noticed ? 0 : PATIENCE_MS);
    if (ready == 0 && !noticed) {
        die("the server does not answer");
    }
    if (ready < 0) {
        die("poll: %s", strerror(errno));
    }
    for (unsigned i = 0; i < clients->count; i++) {
        if (fds[i].revents != 0) {
            clients_notify(clients, i, fds[i].revents);
        }
    }
}

void clients_run(Clients *clients, Op *op)
{
    clients_submit(clients, op);
    while (!op->finished) {
        clients_poll(clients);
    }
    op->in_flight = false;
}

const char *op_text(const Op *op)
{
    static const char *const names[OP_KINDS] = {"READ",  "WRITE", "TRIM",  "ZERO",
                                                "FLUSH", "CACHE", "STATUS"};
    static char text[128];
    snprintf(text, sizeof text, "%s 0x%llx+0x%llx flags 0x%x on connection %u", names[op->kind],
             (unsigned long long)op->offset, (unsigned long long)op->length, op->flags,
             op->connection);
    return text;
}
