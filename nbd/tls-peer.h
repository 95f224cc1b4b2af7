/*
 * Who the client of a TLS session is: its certificate verified, its names. [worker]
 */
#ifndef NBD_TLS_PEER_H
#define NBD_TLS_PEER_H

#include <glib.h>
#include <gnutls/gnutls.h>

#include "control/access.h"

typedef struct TlsPeer { /* all zero: not known */
    char *psk;           /* user of the key; or NULL */
    char *dn;            /* of the certificate; or NULL */
    char **names;        /* its other names, ended by NULL; or NULL */
} TlsPeer;

/* Verifies the certificate that the client has sent. NULL: it is good; else what is wrong with whose
 * certificate, and the alert that says so to the client. */
char *tls_peer_verify(gnutls_session_t session, gnutls_alert_description_t *alert);

/* What a finished handshake has proved. Certificates count only where they were verified. */
void tls_peer_take(TlsPeer *peer, gnutls_session_t session, bool verified);
void tls_peer_clear(TlsPeer *peer);

#endif
