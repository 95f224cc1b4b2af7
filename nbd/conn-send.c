/*
 * A connection's output: the queue of replies and the vectored sends that empty it.
 *
 * Replies of one callback or turn leave in one send. When much is queued they leave at once, so
 * that the client works on the first while we make the next. What must stay true: the queue's
 * requests stay counted in flight until their last byte is sent, so a client that reads nothing
 * stops at its budget; a request is freed only after the queue has let go of it; and while blocked,
 * the socket is watched, for nothing else ends that.
 */
#include <errno.h>
#include <event2/event.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "nbd/conn.h"
#include "nbd/tls.h"

#define SEND_AT_ONCE     (64u << 10) /* bytes queued that do not wait for the end of the callback */
#define SEND_IOV_MAX     128
#define SEND_BYTES_PIECE (1u << 20)

/* Counted before it is sent, as all else is: who has an answer finds it in the numbers. */
static void count_latency(NbdRequest *request, uint64_t now)
{
    if (request->begun != 0) {
        nbd_count_latency(request->conn->counters, request->command, now - request->begun);
        request->begun = 0;
    }
}

static unsigned gather(const Conn *conn, struct iovec *iov, size_t *length)
{
    unsigned count = 0;
    uint64_t now = nbd_clock();
    *length = 0;
    for (NbdRequest *request = conn->queue; request != NULL; request = request->next) {
        if (count + request->iov_count > SEND_IOV_MAX) {
            break;
        }
        count_latency(request, now);
        memcpy(iov + count, request->iov, request->iov_count * sizeof *iov);
        count += request->iov_count;
        *length += request->reply_length;
    }
    return count;
}

/* Moves the head of a reply forward by sent bytes, fewer than it has. */
static void advance(NbdRequest *request, size_t sent)
{
    request->reply_length -= sent;
    while (sent >= request->iov->iov_len) {
        sent -= request->iov->iov_len;
        request->iov++;
        request->iov_count--;
    }
    request->iov->iov_base = (uint8_t *)request->iov->iov_base + sent;
    request->iov->iov_len -= sent;
}

static void retire(Conn *conn, size_t sent)
{
    conn->queued_bytes -= sent;
    while (sent > 0) {
        NbdRequest *request = conn->queue;
        if (sent < request->reply_length) {
            advance(request, sent);
            return;
        }
        sent -= request->reply_length;
        conn->queue = request->next;
        if (conn->queue == NULL) {
            conn->queue_last = &conn->queue;
        }
        nbd_request_free(request);
    }
}

static void block(Conn *conn)
{
    conn->blocked = true;
    conn->blocked_since = nbd_clock();
    conn->writing = true;
    if (event_add(conn->write_event, NULL) != 0) {
        conn_break(conn);
    }
}

bool conn_owes_tls(const Conn *conn)
{
    return conn->tls != NULL &&
           (tls_has_output(conn->tls) || (conn->draining && !tls_may_close(conn->tls)));
}

static bool has_output(const Conn *conn)
{
    return conn->queue != NULL || conn_owes_tls(conn);
}

/* As sendmsg, through TLS where that is. */
static ssize_t send_some(Conn *conn, struct iovec *iov, unsigned count)
{
    if (conn->tls != NULL) {
        ssize_t sent = tls_send(conn->tls, iov, count);
        errno = sent < 0 ? -sent : 0;
        return sent;
    }
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
    return sendmsg(conn->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void conn_flush(Conn *conn)
{
    while (has_output(conn) && !conn->blocked && !conn->broken && !conn->local->still) {
        struct iovec iov[SEND_IOV_MAX];
        size_t length;
        unsigned count = gather(conn, iov, &length);
        ssize_t sent = send_some(conn, iov, count);
        if (sent >= 0) {
            retire(conn, sent);
            if ((size_t)sent < length || conn_owes_tls(conn)) {
                block(conn);
            }
        } else if (errno == EAGAIN) {
            block(conn);
        } else if (errno != EINTR) {
            conn_break(conn);
        }
    }
    if (conn->writing && !has_output(conn) && !conn->local->still) {
        conn->writing = conn->blocked = false; /* TLS sends what is left also while it receives */
        event_del(conn->write_event);
    }
}

void conn_send(Conn *conn, NbdRequest *request)
{
    request->next = NULL;
    *conn->queue_last = request;
    conn->queue_last = &request->next;
    conn->queued_bytes += request->reply_length;
    if (conn->queued_bytes >= SEND_AT_ONCE) {
        conn_flush(conn);
    }
    conn_schedule(conn);
}

NbdRequest *conn_reply_of_bytes(Conn *conn, const void *bytes, uint32_t length)
{
    NbdRequest *request = nbd_request_new(conn, buffers_cost(length));
    if (!nbd_request_take_buffer(request, length)) {
        nbd_request_free(request);
        conn_break(conn);
        return NULL;
    }
    memcpy(request->buffer, bytes, length);
    reply_make_bytes(request, length);
    return request;
}

void conn_send_bytes(Conn *conn, const void *bytes, size_t length)
{
    const uint8_t *from = bytes;
    while (length > 0 && !conn->broken) {
        uint32_t piece = min_u64(length, SEND_BYTES_PIECE);
        NbdRequest *request = conn_reply_of_bytes(conn, from, piece);
        if (request != NULL) {
            conn_send(conn, request);
        }
        from += piece;
        length -= piece;
    }
}
