/*
 * What the server proves who it is with, and what it believes of clients: certificates and keys in
 * files, as qemu and nbdkit have them.
 *
 *      DIRECTORY/server-cert.pem   our certificate, with those between it and its authority
 *      DIRECTORY/server-key.pem    its key
 *      DIRECTORY/ca-cert.pem       the authority of clients; needed to verify them
 *      DIRECTORY/ca-crl.pem        what that has revoked; may be missing
 *      PSK file                    lines USER:HEX, a key that a user and we share
 *
 * The files are read once and again at each reload: a session keeps the keys with which it began.
 * [any]
 */
#ifndef NBD_TLS_CREDENTIALS_H
#define NBD_TLS_CREDENTIALS_H

#include <glib.h>
#include <gnutls/gnutls.h>
#include <stdbool.h>

typedef struct TlsCredentials TlsCredentials;

/* One state of the files; does not change. */
typedef struct TlsKeys TlsKeys;

typedef struct TlsFiles {
    const char *directory; /* or NULL */
    const char *psk;       /* or NULL */
    bool verify_peer;      /* a client with a certificate of ours, or none at all */
    bool use_kernel;       /* it makes the records of sessions where it can (tls-kernel.h) */
} TlsFiles;

/* Reads the files; the error names the one that is wrong. files is copied. */
TlsCredentials *tls_credentials_new(const TlsFiles *files, GError **error);
void tls_credentials_free(TlsCredentials *credentials);

/* Reads them again, for the sessions that begin from now on. False: all stays as it was. */
bool tls_credentials_reload(TlsCredentials *credentials, GError **error);

/* The keys of now, for as long as wanted. */
TlsKeys *tls_credentials_get(TlsCredentials *credentials);
void tls_keys_unref(TlsKeys *keys);

bool tls_keys_verify_peer(const TlsKeys *keys);
bool tls_keys_use_kernel(const TlsKeys *keys);

/* For which user a client has offered a key, right or wrong. */
typedef struct TlsOffer {
    const TlsKeys *keys;
    char *user; /* NULL: it has not; freed by the session's owner */
    bool known; /* there is such a user */
} TlsOffer;

/* Gives keys to a session that has not begun; offer stays the session's until that is over. False: no
 * memory. */
bool tls_keys_set(const TlsKeys *keys, gnutls_session_t session, TlsOffer *offer);

#endif
