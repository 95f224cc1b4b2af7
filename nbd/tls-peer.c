/*
 * The client's identity. What must stay true: a name is taken only from a certificate that an
 * authority of ours has signed, and whole: one with a zero byte in it is no name.
 */
#include "nbd/tls-peer.h"

#include <arpa/inet.h>
#include <gnutls/x509-ext.h>
#include <gnutls/x509.h>
#include <stdbool.h>
#include <string.h>

/* The client's own certificate; NULL: it sent none, or nothing that is one. */
static gnutls_x509_crt_t own_certificate(gnutls_session_t session)
{
    unsigned count = 0;
    gnutls_x509_crt_t certificate;
    const gnutls_datum_t *chain = gnutls_certificate_get_peers(session, &count);
    if (chain == NULL || count == 0 || gnutls_x509_crt_init(&certificate) != GNUTLS_E_SUCCESS) {
        return NULL;
    }
    if (gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER) != GNUTLS_E_SUCCESS) {
        gnutls_x509_crt_deinit(certificate);
        return NULL;
    }
    return certificate;
}

static char *text_of(const gnutls_datum_t *datum)
{
    if (memchr(datum->data, '\0', datum->size) != NULL) {
        return NULL;
    }
    return g_strndup((const char *)datum->data, datum->size);
}

static char *dn_of(gnutls_x509_crt_t certificate)
{
    gnutls_datum_t datum;
    if (gnutls_x509_crt_get_dn3(certificate, &datum, 0) != GNUTLS_E_SUCCESS) {
        return NULL;
    }
    char *dn = text_of(&datum);
    gnutls_free(datum.data);
    return dn;
}

/* Verification */

static const struct {
    unsigned status;
    gnutls_alert_description_t alert;
    const char *problem;
} PROBLEMS[] = {
    {GNUTLS_CERT_REVOKED, GNUTLS_A_CERTIFICATE_REVOKED, "is revoked"},
    {GNUTLS_CERT_EXPIRED, GNUTLS_A_CERTIFICATE_EXPIRED, "has expired"},
    {GNUTLS_CERT_NOT_ACTIVATED, GNUTLS_A_BAD_CERTIFICATE, "is not valid yet"},
    {GNUTLS_CERT_SIGNER_NOT_FOUND, GNUTLS_A_UNKNOWN_CA,
     "is not signed by an authority in ca-cert.pem"},
    {GNUTLS_CERT_SIGNER_NOT_CA, GNUTLS_A_UNKNOWN_CA, "is signed by one that is no authority"},
    {GNUTLS_CERT_PURPOSE_MISMATCH, GNUTLS_A_UNSUPPORTED_CERTIFICATE, "is not for TLS clients"},
    {GNUTLS_CERT_INSECURE_ALGORITHM, GNUTLS_A_BAD_CERTIFICATE, "uses an algorithm that is broken"},
    {GNUTLS_CERT_SIGNATURE_FAILURE, GNUTLS_A_BAD_CERTIFICATE, "has a wrong signature"},
    {GNUTLS_CERT_REVOCATION_DATA_SUPERSEDED, GNUTLS_A_BAD_CERTIFICATE,
     "cannot be checked: ca-crl.pem is out of date"},
};

static char *describe(gnutls_session_t session, const char *problem)
{
    gnutls_x509_crt_t certificate = own_certificate(session);
    g_autofree char *dn = certificate != NULL ? dn_of(certificate) : NULL;
    if (certificate != NULL) {
        gnutls_x509_crt_deinit(certificate);
    }
    g_autofree char *shown = g_strescape(dn != NULL ? dn : "(no name)", NULL);
    return g_strdup_printf("the client's certificate '%s' %s", shown, problem);
}

char *tls_peer_verify(gnutls_session_t session, gnutls_alert_description_t *alert)
{
    unsigned status = 0;
    gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID,
                                     .data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT};
    int r = gnutls_certificate_verify_peers(session, &purpose, 1, &status);
    if (r == GNUTLS_E_SUCCESS && status == 0) {
        return NULL;
    }
    *alert = GNUTLS_A_BAD_CERTIFICATE;
    if (r != GNUTLS_E_SUCCESS) {
        return describe(session, gnutls_strerror(r));
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(PROBLEMS); i++) {
        if (status & PROBLEMS[i].status) {
            *alert = PROBLEMS[i].alert;
            return describe(session, PROBLEMS[i].problem);
        }
    }
    return describe(session, "cannot be verified");
}

/* Names */

static char *address_text(const gnutls_datum_t *datum)
{
    char text[INET6_ADDRSTRLEN];
    if (datum->size != 4 && datum->size != 16) {
        return NULL;
    }
    inet_ntop(datum->size == 4 ? AF_INET : AF_INET6, datum->data, text, sizeof text);
    return g_strdup(text);
}

static char *other_name(gnutls_subject_alt_names_t names, unsigned index, bool *end)
{
    unsigned type;
    gnutls_datum_t datum;
    *end = gnutls_subject_alt_names_get(names, index, &type, &datum, NULL) != GNUTLS_E_SUCCESS;
    if (*end) {
        return NULL;
    }
    switch (type) {
    case GNUTLS_SAN_DNSNAME:
    case GNUTLS_SAN_RFC822NAME:
    case GNUTLS_SAN_URI:
        return text_of(&datum);
    case GNUTLS_SAN_IPADDRESS:
        return address_text(&datum);
    default:
        return NULL;
    }
}

static char **other_names(gnutls_x509_crt_t certificate)
{
    GPtrArray *found = g_ptr_array_new();
    gnutls_datum_t extension = {0};
    gnutls_subject_alt_names_t names;
    if (gnutls_x509_crt_get_extension_by_oid2(certificate, "2.5.29.17", 0, &extension, NULL) == 0 &&
        gnutls_subject_alt_names_init(&names) == GNUTLS_E_SUCCESS) {
        bool end = gnutls_x509_ext_import_subject_alt_names(&extension, names, 0) != 0;
        for (unsigned i = 0; !end; i++) {
            char *name = other_name(names, i, &end);
            if (name != NULL) {
                g_ptr_array_add(found, name);
            }
        }
        gnutls_subject_alt_names_deinit(names);
    }
    gnutls_free(extension.data);
    g_ptr_array_add(found, NULL);
    return (char **)g_ptr_array_free(found, FALSE);
}

void tls_peer_take(TlsPeer *peer, gnutls_session_t session, bool verified)
{
    gnutls_datum_t user;
    if (gnutls_auth_client_get_type(session) == GNUTLS_CRD_PSK) {
        if (gnutls_psk_server_get_username2(session, &user) == GNUTLS_E_SUCCESS) {
            peer->psk = text_of(&user);
        }
        return;
    }
    gnutls_x509_crt_t certificate = verified ? own_certificate(session) : NULL;
    if (certificate != NULL) {
        peer->dn = dn_of(certificate);
        peer->names = other_names(certificate);
        gnutls_x509_crt_deinit(certificate);
    }
}

void tls_peer_clear(TlsPeer *peer)
{
    g_free(peer->psk);
    g_free(peer->dn);
    g_strfreev(peer->names);
    *peer = (TlsPeer){0};
}
