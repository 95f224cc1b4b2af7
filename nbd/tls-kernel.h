/*
 * A TLS session whose records the kernel makes and reads: kTLS. [worker]
 *
 * GnuTLS does the handshake; then keys and numbers of records are given to the socket, both ways at
 * once, for an answer to what one way brings (new keys) goes the other way. From then on data is sent
 * and received as on a plain socket; all other records (alerts, new keys) are told from it by a
 * control message.
 *
 *      GNUTLS --at the end of a record--> KERNEL --the client asks, or 2^24 records--> new keys
 *        |                                  |
 *        +--the kernel refuses--> stays     +--and the kernel takes no second ones--> the end
 */
#ifndef NBD_TLS_KERNEL_H
#define NBD_TLS_KERNEL_H

#include <gnutls/gnutls.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "nbd/tls-traffic.h"

typedef enum TlsKernelSupport {
    TLS_KERNEL_NONE,
    TLS_KERNEL_ONE_KEY,  /* a socket takes one key each way in its life */
    TLS_KERNEL_NEW_KEYS, /* Linux 6.14 */
} TlsKernelSupport;

/* What this kernel can do, tried on two sockets of our own. [any] */
TlsKernelSupport tls_kernel_probe(void);

typedef enum TlsWay { TLS_WAY_OUT, TLS_WAY_IN } TlsWay;

typedef struct TlsKernelCipher TlsKernelCipher;

typedef struct TlsKernel { /* all zero, but fd: GnuTLS has the session for ever */
    int fd;
    bool wanted; /* the kernel is to be asked */
    bool taken;  /* it has the session */
    bool renew;  /* our new keys are due, before all other output */

    /* where in a record GnuTLS is */
    uint8_t head[5];
    uint8_t head_length;
    uint32_t body_left;

    /* once taken */
    const TlsKernelCipher *cipher;
    TlsTraffic traffic[2]; /* by TlsWay; not known in TLS 1.2 */
    uint64_t records;      /* made with our key, at most */
    unsigned without_data; /* records since the last with data */
    uint8_t control[8];    /* one that is still being received */
    uint8_t control_length;
    gnutls_alert_description_t alert; /* the client's last one */
} TlsKernel;

void tls_kernel_clear(TlsKernel *kernel);

/* The secrets of TLS 1.3 as the handshake makes them; NULL: not this one. */
void tls_kernel_keep(TlsKernel *kernel, const void *in, const void *out, size_t size);

/* GnuTLS has taken these bytes of the socket. */
void tls_kernel_saw(TlsKernel *kernel, const uint8_t *bytes, size_t length);

/* Gives the session to the kernel, when that is wanted and no record is taken in part; the caller sees
 * to it that no whole one waits, and no output. 1: taken, GnuTLS' session is not needed any more; 0: it
 * stays with GnuTLS (for ever, where wanted is false now); a negative errno: it is lost, for the kernel
 * has half of it. */
int tls_kernel_take(TlsKernel *kernel, gnutls_session_t session);

/* Once taken. */

/* As gnutls_record_recv: bytes; 0: the client has said that nothing more comes; a code of GnuTLS, of
 * which GNUTLS_E_UNIMPLEMENTED_FEATURE says that new keys are needed and the kernel takes none, and
 * GNUTLS_E_PULL_ERROR that errno says more. */
ssize_t tls_kernel_receive(TlsKernel *kernel, const struct iovec *iov, unsigned count);

/* What tls_kernel_receive does with length bytes of a record that is not data, or of a part of one: they
 * lie where data was wanted. 0, or a code; GNUTLS_E_AGAIN: goes on. */
int tls_kernel_control(TlsKernel *kernel, uint8_t type, const struct iovec *iov, size_t length,
                       bool whole);

/* As sendmsg; with count 0 sends only what is due. Bytes; a negative errno, of which -EKEYEXPIRED
 * says that new keys are needed and the kernel takes none. */
ssize_t tls_kernel_send(TlsKernel *kernel, const struct iovec *iov, unsigned count);

/* As far as the socket takes it at once. */
void tls_kernel_alert(TlsKernel *kernel, gnutls_alert_level_t level,
                      gnutls_alert_description_t description);

/* The kernel has nothing left that it would throw away if the socket were closed. */
bool tls_kernel_is_flushed(const TlsKernel *kernel);

#endif
