/*
 * The secret of one direction of a TLS 1.3 session: the keys that it stands for, and the secret that
 * follows it when the sender takes new keys (RFC 8446, sections 7.1 to 7.3). [any]
 */
#ifndef NBD_TLS_TRAFFIC_H
#define NBD_TLS_TRAFFIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TLS_TRAFFIC_MAX 48u

typedef struct TlsTraffic { /* all zero: not known */
    uint8_t secret[TLS_TRAFFIC_MAX];
    size_t size; /* 32 or 48: by it the hash is known */
} TlsTraffic;

/* A secret of another size is forgotten. */
void tls_traffic_set(TlsTraffic *traffic, const void *secret, size_t size);
void tls_traffic_clear(TlsTraffic *traffic);

/* False: the secret is not known. */
bool tls_traffic_key(const TlsTraffic *traffic, uint8_t *key, size_t size);
bool tls_traffic_nonce(const TlsTraffic *traffic, uint8_t *nonce, size_t size);

/* Goes on to the secret after a KeyUpdate. */
bool tls_traffic_next(TlsTraffic *traffic);

#endif
