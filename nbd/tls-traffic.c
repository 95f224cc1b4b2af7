/*
 * Secrets of TLS 1.3.
 *
 * All that is made of a secret is made by one function, HKDF-Expand-Label, with a name of what is
 * wanted; so a secret tells its keys and its successor, and none of them tells the secret.
 */
#include "nbd/tls-traffic.h"

#include <gnutls/crypto.h>
#include <string.h>

#include "base/bytes.h"

#define LABEL_MAX 18 /* "tls13 traffic upd" is the longest */

void tls_traffic_set(TlsTraffic *traffic, const void *secret, size_t size)
{
    tls_traffic_clear(traffic);
    if (size == 32 || size == 48) {
        memcpy(traffic->secret, secret, size);
        traffic->size = size;
    }
}

void tls_traffic_clear(TlsTraffic *traffic)
{
    gnutls_memset(traffic, 0, sizeof *traffic);
}

/* HKDF-Expand-Label with no context: the length that is wanted, the label, and an empty one. */
static bool expand(const TlsTraffic *traffic, const char *label, uint8_t *out, size_t size)
{
    uint8_t text[2 + 1 + LABEL_MAX + 1];
    size_t length = strlen(label);
    store_be16(text, size);
    text[2] = length;
    memcpy(text + 3, label, length);
    text[3 + length] = 0;
    gnutls_datum_t secret = {(unsigned char *)traffic->secret, traffic->size};
    gnutls_datum_t info = {text, 3 + length + 1};
    gnutls_mac_algorithm_t hash = traffic->size == 48 ? GNUTLS_MAC_SHA384 : GNUTLS_MAC_SHA256;
    return traffic->size > 0 && gnutls_hkdf_expand(hash, &secret, &info, out, size) == 0;
}

bool tls_traffic_key(const TlsTraffic *traffic, uint8_t *key, size_t size)
{
    return expand(traffic, "tls13 key", key, size);
}

bool tls_traffic_nonce(const TlsTraffic *traffic, uint8_t *nonce, size_t size)
{
    return expand(traffic, "tls13 iv", nonce, size);
}

bool tls_traffic_next(TlsTraffic *traffic)
{
    TlsTraffic next = {.size = traffic->size};
    bool known = expand(traffic, "tls13 traffic upd", next.secret, next.size);
    if (known) {
        *traffic = next;
    }
    tls_traffic_clear(&next);
    return known;
}
