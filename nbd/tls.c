/*
 * TLS sessions.
 *
 * Many records travel with one call to the kernel: the output buffer is filled with records before it
 * is sent, the input buffer takes what one receive brings. Data is encrypted from where it lies;
 * only small pieces (heads of replies) are put together first, to share a record.
 *
 * What must stay true:
 *  1. GnuTLS never meets a full output buffer: a record is made only when the buffer has room for it,
 *     and while output waits nothing more is made. What it writes of itself (handshake, alerts, new
 *     keys) is bounded; a session that brings the buffer to its end is over.
 *  2. Nothing that was received before the session began is in it (CVE-2021-3716).
 *  3. An end or an error is told to the caller, once all that came before it was.
 */
#include "nbd/tls.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/bytes.h"
#include "base/log.h"
#include "nbd/stash.h"
#include "nbd/tls-kernel.h"
#include "nbd/tls-peer.h"
#include "nbd/tls-pieces.h"

#define BUFFER_SIZE  (128u << 10)
#define RECORD_DATA  (16u << 10)         /* bytes of plain text in a record, by the standard */
#define RECORD_SIZE  (RECORD_DATA + 512) /* with all that goes around it */
#define GATHER_BELOW (4u << 10)          /* smaller pieces share a record */

typedef struct TlsBuffer {
    uint8_t *bytes; /* NULL: empty */
    uint32_t start, end;
} TlsBuffer;

struct TlsSession {
    gnutls_session_t session; /* NULL: the kernel has taken it */
    TlsKernel kernel;
    int fd;
    Buffers *buffers;
    TlsKeys *keys;
    TlsBuffer in, out;
    Stash held; /* input from one callback to the next */
    bool open;  /* the handshake is over */
    bool end;   /* the socket has no more input */
    int over;   /* 1: the client has ended; negative errno: an error; 0: neither */
    TlsPeer peer;
    TlsOffer offer;
    char *problem;                    /* what is wrong with the client's certificate */
    gnutls_alert_description_t alert; /* which tells it so */
};

/* Buffers */

static bool buffer_take(TlsSession *session, TlsBuffer *buffer)
{
    if (buffer->bytes == NULL) {
        buffer->bytes = buffers_take(session->buffers, BUFFER_SIZE);
        buffer->start = buffer->end = 0;
    }
    return buffer->bytes != NULL;
}

static void buffer_give(TlsSession *session, TlsBuffer *buffer)
{
    if (buffer->bytes != NULL) {
        buffers_give(session->buffers, buffer->bytes, BUFFER_SIZE);
    }
    *buffer = (TlsBuffer){0};
}

static uint32_t buffer_length(const TlsBuffer *buffer)
{
    return buffer->end - buffer->start;
}

/* The two ends of GnuTLS */

static ssize_t push(gnutls_transport_ptr_t argument, const giovec_t *iov, int count)
{
    TlsSession *session = argument;
    TlsBuffer *out = &session->out;
    size_t length = 0;
    for (int i = 0; i < count; i++) {
        length += iov[i].iov_len;
    }
    if (!buffer_take(session, out) || length > BUFFER_SIZE - out->end) {
        gnutls_transport_set_errno(session->session, ENOBUFS);
        return -1;
    }
    for (int i = 0; i < count; i++) {
        memcpy(out->bytes + out->end, iov[i].iov_base, iov[i].iov_len);
        out->end += iov[i].iov_len;
    }
    return length;
}

static ssize_t pull(gnutls_transport_ptr_t argument, void *data, size_t length)
{
    TlsSession *session = argument;
    size_t here = min_u64(buffer_length(&session->in), length);
    if (here == 0 && !session->end) {
        gnutls_transport_set_errno(session->session, EAGAIN);
        return -1;
    }
    if (here > 0) {
        memcpy(data, session->in.bytes + session->in.start, here);
        tls_kernel_saw(&session->kernel, data, here);
        session->in.start += here;
    }
    return here;
}

/* Whether there is input without asking the socket: GnuTLS asks that, and must not by itself. */
static int pull_timeout(gnutls_transport_ptr_t argument, unsigned milliseconds)
{
    const TlsSession *session = argument;
    return buffer_length(&session->in) > 0 || session->end;
}

static bool is_transient(int err)
{
    return err == EAGAIN || err == EINTR;
}

/* Sends what is in the output buffer. 0 also when the socket does not take all of it. */
static int flush(TlsSession *session)
{
    TlsBuffer *out = &session->out;
    while (buffer_length(out) > 0) {
        ssize_t sent = send(session->fd, out->bytes + out->start, buffer_length(out),
                            MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            return is_transient(errno) ? 0 : -errno;
        }
        out->start += sent;
    }
    buffer_give(session, out);
    return 0;
}

/* One receive from the socket, behind what is there already. Positive: there is news. */
static int fill(TlsSession *session)
{
    TlsBuffer *in = &session->in;
    if (!buffer_take(session, in)) {
        return -ENOMEM;
    }
    memmove(in->bytes, in->bytes + in->start, buffer_length(in));
    in->end -= in->start;
    in->start = 0;
    if (in->end == BUFFER_SIZE) {
        return -EAGAIN; /* no record is so long: GnuTLS has the word */
    }
    ssize_t got = recv(session->fd, in->bytes + in->end, BUFFER_SIZE - in->end, MSG_DONTWAIT);
    if (got < 0) {
        return is_transient(errno) ? -EAGAIN : -errno;
    }
    session->end = got == 0;
    in->end += got;
    return 1;
}

/* Errors */

static char *describe(TlsSession *session, int code)
{
    if (session->problem != NULL) {
        return g_strdup(session->problem);
    }
    switch (code) {
    case GNUTLS_E_CERTIFICATE_REQUIRED:
    case GNUTLS_E_NO_CERTIFICATE_FOUND:
        return g_strdup("the client has sent no certificate: --tls-verify-peer asks for one");
    case GNUTLS_E_FATAL_ALERT_RECEIVED:
        return g_strdup_printf("the client ended it: %s",
                               gnutls_alert_get_name(session->kernel.taken
                                                         ? session->kernel.alert
                                                         : gnutls_alert_get(session->session)));
    case GNUTLS_E_REHANDSHAKE:
        return g_strdup("the client asked for a second handshake, which is not done here");
    case GNUTLS_E_PREMATURE_TERMINATION:
        return g_strdup("the connection ended in the middle of the handshake");
    case GNUTLS_E_UNIMPLEMENTED_FEATURE:
        return g_strdup(
            "new keys are due, and the kernel takes none for a socket that has some (Linux "
            "6.14 does): --ktls=auto leaves records to the server there");
    default:
        break;
    }
    if (!session->open && session->offer.user != NULL) {
        g_autofree char *shown = g_strescape(session->offer.user, NULL);
        return g_strdup_printf(session->offer.known ? "the client has another key for user '%s'"
                                                    : "there is no user '%s' in the file of keys",
                               shown);
    }
    return g_strdup(gnutls_strerror(code));
}

/* The session is over; the client is told why. */
static int fail(TlsSession *session, int code)
{
    g_autofree char *text = describe(session, code);
    log_limited(code == GNUTLS_E_PREMATURE_TERMINATION ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING,
                "client dropped: TLS: %s", text);
    if (session->kernel.taken) {
        int level = GNUTLS_AL_FATAL, alert = gnutls_error_to_alert(code, &level);
        bool again = code == GNUTLS_E_REHANDSHAKE;
        if (code != GNUTLS_E_FATAL_ALERT_RECEIVED) {
            tls_kernel_alert(&session->kernel, GNUTLS_AL_FATAL,
                             again ? GNUTLS_A_NO_RENEGOTIATION : alert);
        }
    } else if (code == GNUTLS_E_REHANDSHAKE) {
        gnutls_alert_send(session->session, GNUTLS_AL_FATAL, GNUTLS_A_NO_RENEGOTIATION);
    } else if (session->problem != NULL) {
        gnutls_alert_send(session->session, GNUTLS_AL_FATAL, session->alert);
    } else {
        gnutls_alert_send_appropriate(session->session, code);
    }
    flush(session);
    return session->over = -EPROTO;
}

/* The client hung up without a word of TLS. After the handshake that is its way to go, and what it
 * has not sent whole is thrown away. */
static int hung_up(TlsSession *session)
{
    log_limited(LOG_LEVEL_INFO, "client %d hung up without ending TLS", session->fd);
    return session->over = 1;
}

/* GnuTLS wants to be asked again: it has used up something else than data (new keys), of the so many
 * bytes that were here before, and more is here. */
static bool goes_on(const TlsSession *session, uint32_t before)
{
    return buffer_length(&session->in) > 0 && buffer_length(&session->in) < before;
}

/* Handshake */

static int verify(gnutls_session_t gnutls)
{
    TlsSession *session = gnutls_transport_get_ptr(gnutls);
    session->problem = tls_peer_verify(gnutls, &session->alert);
    return session->problem == NULL ? 0 : GNUTLS_E_CERTIFICATE_ERROR;
}

static int keep_secrets(gnutls_session_t gnutls, gnutls_record_encryption_level_t level,
                        const void *in, const void *out, size_t size)
{
    TlsSession *session = gnutls_transport_get_ptr(gnutls);
    if (level == GNUTLS_ENCRYPTION_LEVEL_APPLICATION) {
        tls_kernel_keep(&session->kernel, in, out, size);
    }
    return 0;
}

static void opened(TlsSession *session)
{
    session->open = true;
    tls_peer_take(&session->peer, session->session, tls_keys_verify_peer(session->keys));
    g_autofree char *how = gnutls_session_get_desc(session->session);
    log_debug("client %d: TLS: %s", session->fd, how);
}

/* Goes on as far as the input reaches. 0: done. */
static int handshake(TlsSession *session)
{
    bool filled = false;
    for (;;) {
        uint32_t before = buffer_length(&session->in);
        int code = gnutls_handshake(session->session);
        int r = flush(session);
        if (code == GNUTLS_E_SUCCESS && r == 0) {
            opened(session);
            return 0;
        }
        if (r < 0) {
            return session->over = r;
        }
        if (code == GNUTLS_E_AGAIN && !goes_on(session, before)) {
            r = filled ? -EAGAIN : fill(session);
            if (r < 0) {
                return r;
            }
            filled = true;
        } else if (gnutls_error_is_fatal(code)) {
            return fail(session, code);
        }
    }
}

/* The kernel takes the session, when nothing of it is here. */
static void give_to_kernel(TlsSession *session)
{
    if (!session->kernel.wanted || buffer_length(&session->in) > 0 || tls_has_output(session) ||
        gnutls_record_check_pending(session->session) > 0) {
        return;
    }
    int r = tls_kernel_take(&session->kernel, session->session);
    if (r > 0) {
        g_clear_pointer(&session->session, gnutls_deinit);
        buffer_give(session, &session->in);
        log_debug("client %d: TLS: the kernel makes the records", session->fd);
    } else if (r < 0) {
        log_limited(LOG_LEVEL_WARNING,
                    "client dropped: TLS: the kernel has taken the client's key, and "
                    "not ours: %s",
                    g_strerror(-r));
        session->over = -EPROTO;
    } else if (!session->kernel.wanted) {
        log_debug("client %d: TLS: the kernel does not take this session", session->fd);
    }
}

/* Receiving */

/* Fills bytes from the records that are here. How many there were; less than length: see over, or
 * nothing more is here. */
static size_t decrypt(TlsSession *session, uint8_t *bytes, size_t length)
{
    size_t done = 0;
    while (done < length && session->over == 0) {
        uint32_t before = buffer_length(&session->in);
        ssize_t got = gnutls_record_recv(session->session, bytes + done, length - done);
        if (got > 0) {
            done += got;
        } else if (got == 0) {
            session->over = 1;
        } else if (got == GNUTLS_E_AGAIN) {
            if (!goes_on(session, before)) {
                break;
            }
        } else if (got == GNUTLS_E_PREMATURE_TERMINATION) {
            hung_up(session);
        } else if (got == GNUTLS_E_REHANDSHAKE || gnutls_error_is_fatal(got)) {
            fail(session, got);
        }
    }
    return done;
}

/* Returns what is here, up to all of the pieces. */
static size_t decrypt_all(TlsSession *session, const struct iovec *iov, unsigned count, size_t skip)
{
    size_t total = 0;
    for (unsigned i = 0; i < count; i++) {
        size_t skipped = min_u64(skip, iov[i].iov_len);
        size_t wanted = iov[i].iov_len - skipped;
        size_t got = decrypt(session, (uint8_t *)iov[i].iov_base + skipped, wanted);
        skip -= skipped;
        total += got;
        if (got < wanted) {
            break;
        }
    }
    return total;
}

static size_t length_of(const struct iovec *iov, unsigned count)
{
    size_t length = 0;
    for (unsigned i = 0; i < count; i++) {
        length += iov[i].iov_len;
    }
    return length;
}

static ssize_t told(const TlsSession *session)
{
    return session->over == 1 ? 0 : session->over;
}

static ssize_t send_by_kernel(TlsSession *session, const struct iovec *iov, unsigned count)
{
    if (session->over < 0) {
        return session->over;
    }
    ssize_t sent = tls_kernel_send(&session->kernel, iov, count);
    if (sent == -EKEYEXPIRED) {
        return fail(session, GNUTLS_E_UNIMPLEMENTED_FEATURE);
    }
    return sent < 0 && is_transient(-sent) ? 0 : sent;
}

static ssize_t receive_from_kernel(TlsSession *session, const struct iovec *iov, unsigned count)
{
    ssize_t got = tls_kernel_receive(&session->kernel, iov, count);
    if (got == 0) {
        session->over = 1;
    } else if (got == GNUTLS_E_PREMATURE_TERMINATION) {
        hung_up(session);
    } else if (got == GNUTLS_E_PULL_ERROR) {
        session->over = -errno;
    } else if (got < 0 && got != GNUTLS_E_AGAIN) {
        fail(session, got);
    }
    if (got > 0 || session->over != 0) {
        return got > 0 ? got : told(session);
    }
    send_by_kernel(session, NULL, 0); /* an answer to new keys */
    return session->over != 0 ? told(session) : -EAGAIN;
}

ssize_t tls_receive(TlsSession *session, const struct iovec *iov, unsigned count)
{
    if (session->held.length > 0 && buffer_take(session, &session->in)) {
        session->in.end = stash_move(&session->held, session->in.bytes);
    }
    if (session->over != 0) {
        return told(session);
    }
    int r = session->open ? 0 : handshake(session);
    if (r != 0) {
        return r;
    }
    give_to_kernel(session);
    if (session->kernel.taken || session->over != 0) {
        return session->over != 0 ? told(session) : receive_from_kernel(session, iov, count);
    }
    size_t length = length_of(iov, count);
    size_t total = decrypt_all(session, iov, count, 0);
    if (total < length && session->over == 0) {
        r = fill(session);
        total += r > 0 ? decrypt_all(session, iov, count, total) : 0;
    }
    flush(session); /* an answer to new keys */
    if (total > 0) {
        return total;
    }
    return session->over != 0 ? told(session) : r < 0 ? r : -EAGAIN;
}

bool tls_has_input(const TlsSession *session)
{
    return session->held.length > 0 || session->over != 0 ||
           (session->open && session->session != NULL &&
            gnutls_record_check_pending(session->session) > 0);
}

void tls_rest(TlsSession *session)
{
    TlsBuffer *in = &session->in;
    if (in->bytes != NULL) {
        stash_keep(&session->held, in->bytes + in->start, buffer_length(in));
        buffer_give(session, in);
    }
}

/* Sending */

/* Makes one record. Bytes in it, or a negative errno. */
static ssize_t encrypt(TlsSession *session, TlsPieces *at)
{
    uint8_t room[RECORD_DATA];
    size_t length = tls_pieces_left(at);
    const uint8_t *bytes;
    if (length < GATHER_BELOW) {
        length = tls_pieces_gather(at, room, RECORD_DATA, GATHER_BELOW);
        bytes = room;
    } else {
        length = min_u64(length, RECORD_DATA);
        bytes = tls_pieces_bytes(at);
        tls_pieces_move(at, length);
    }
    size_t done = 0;
    while (done < length) { /* a client may have asked for smaller records */
        ssize_t sent = gnutls_record_send(session->session, bytes + done, length - done);
        if (sent < 0) {
            log_limited(LOG_LEVEL_INFO, "client dropped: TLS: %s", gnutls_strerror(sent));
            return session->over = -EPIPE;
        }
        done += sent;
    }
    return length;
}

static bool has_room(const TlsSession *session)
{
    return BUFFER_SIZE - session->out.end >= 2 * RECORD_SIZE;
}

ssize_t tls_send(TlsSession *session, const struct iovec *iov, unsigned count)
{
    if (session->kernel.taken) {
        return send_by_kernel(session, iov, count);
    }
    TlsPieces at = {iov, count, 0};
    size_t total = 0;
    int r = flush(session);
    tls_pieces_move(&at, 0);
    while (r == 0 && at.count > 0 && !tls_has_output(session)) {
        while (at.count > 0 && has_room(session)) {
            ssize_t made = session->over < 0 ? session->over : encrypt(session, &at);
            if (made < 0) {
                return made;
            }
            total += made;
        }
        r = flush(session);
    }
    return r < 0 ? r : (ssize_t)total;
}

bool tls_has_output(const TlsSession *session)
{
    return buffer_length(&session->out) > 0 || (session->kernel.renew && session->over >= 0);
}

bool tls_may_close(const TlsSession *session)
{
    return !session->kernel.taken || session->over < 0 || tls_kernel_is_flushed(&session->kernel);
}

bool tls_is_in_kernel(const TlsSession *session)
{
    return session->kernel.taken;
}

void tls_goodbye(TlsSession *session)
{
    if (session->kernel.taken && session->over >= 0) {
        tls_kernel_alert(&session->kernel, GNUTLS_AL_WARNING, GNUTLS_A_CLOSE_NOTIFY);
    } else if (session->open && session->over >= 0 && !tls_has_output(session)) {
        gnutls_bye(session->session, GNUTLS_SHUT_WR);
        flush(session);
    }
}

/* Life */

void tls_get_peer(const TlsSession *session, AccessPeer *peer)
{
    peer->tls = true;
    peer->psk = session->peer.psk;
    peer->dn = session->peer.dn;
    peer->names = (const char *const *)session->peer.names;
}

TlsSession *tls_session_new(int fd, Buffers *buffers, TlsKeys *keys)
{
    TlsSession *session = g_new0(TlsSession, 1);
    session->fd = session->kernel.fd = fd;
    session->kernel.wanted = tls_keys_use_kernel(keys);
    session->buffers = buffers;
    session->keys = keys;
    if (gnutls_init(&session->session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS) != 0 ||
        !tls_keys_set(keys, session->session, &session->offer)) {
        tls_session_free(session);
        return NULL;
    }
    gnutls_transport_set_ptr(session->session, session);
    gnutls_transport_set_vec_push_function(session->session, push);
    gnutls_transport_set_pull_function(session->session, pull);
    gnutls_transport_set_pull_timeout_function(session->session, pull_timeout);
    gnutls_handshake_set_timeout(session->session, GNUTLS_INDEFINITE_TIMEOUT);
    if (session->kernel.wanted) {
        gnutls_handshake_set_secret_function(session->session, keep_secrets);
    }
    if (tls_keys_verify_peer(keys)) {
        gnutls_session_set_verify_function(session->session, verify);
    }
    return session;
}

void tls_session_free(TlsSession *session)
{
    if (session == NULL) {
        return;
    }
    if (session->session != NULL) {
        gnutls_deinit(session->session);
    }
    tls_kernel_clear(&session->kernel);
    buffer_give(session, &session->in);
    buffer_give(session, &session->out);
    stash_clear(&session->held);
    tls_peer_clear(&session->peer);
    tls_keys_unref(session->keys);
    g_free(session->problem);
    g_free(session->offer.user);
    g_free(session);
}
