/*
 * A TLS session on a connection's socket, from STARTTLS to the end. [worker]
 *
 * It stands between a connection and its socket, as recvmsg and sendmsg would: never waits, takes
 * what there is. The handshake goes on inside tls_receive. GnuTLS never touches the socket; it reads
 * from and writes to two buffers here, which exist while there is something in them:
 *
 *      socket --> in --> GnuTLS --> tls_receive's caller
 *      socket <-- out <-- GnuTLS <-- tls_send's caller
 *
 * So a session that waits holds no memory of ours but its structure, and one whose client does not
 * read at most one full buffer. Where the kernel makes the records (tls-kernel.h) there are neither
 * buffers nor GnuTLS after the handshake.
 */
#ifndef NBD_TLS_H
#define NBD_TLS_H

#include <glib.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "control/access.h"
#include "nbd/buffers.h"
#include "nbd/tls-credentials.h"

typedef struct TlsSession TlsSession;

/* fd and buffers stay the caller's; takes keys. NULL: no memory. */
TlsSession *tls_session_new(int fd, Buffers *buffers, TlsKeys *keys);
void tls_session_free(TlsSession *session);

/* As recvmsg: at most one receive from the socket. Bytes; 0: the client has ended; -EAGAIN: nothing
 * yet; another negative errno: over (said in the log, and to the client). */
ssize_t tls_receive(TlsSession *session, const struct iovec *iov, unsigned count);

/* Input is here already: tls_receive has something to say, whether the socket has or not. */
bool tls_has_input(const TlsSession *session);

/* The caller receives no more for now. */
void tls_rest(TlsSession *session);

/* As sendmsg; with count 0 sends only what was left. Bytes taken, of which some may still be output;
 * fewer than all: the socket takes no more. */
ssize_t tls_send(TlsSession *session, const struct iovec *iov, unsigned count);

/* Bytes are to be sent when the socket takes them: call tls_send. */
bool tls_has_output(const TlsSession *session);

/* What was sent does not get lost when the socket is closed. */
bool tls_may_close(const TlsSession *session);

/* The kernel makes and reads the records. */
bool tls_is_in_kernel(const TlsSession *session);

/* Tells the client that no more comes, as far as the socket takes that at once. */
void tls_goodbye(TlsSession *session);

/* Adds what is known of the client; valid as long as the session. */
void tls_get_peer(const TlsSession *session, AccessPeer *peer);

#endif
