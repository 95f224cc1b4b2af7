/*
 * Credentials.
 *
 * Every file is read into memory first, and given to GnuTLS from there: so an error is known to
 * belong to a file, and a file that changes while it is used changes nothing. What must stay true:
 * TlsKeys is complete before anybody sees it, and never changes after.
 */
#include "nbd/tls-credentials.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include <gnutls/crypto.h>
#include <gnutls/x509.h>

#include "base/cleanup.h"
#include "base/errors.h"

#define FILE_SIZE_MAX (16u << 20)
#define USERS_MAX     65536
#define KEY_SIZE_MAX  512 /* bytes of a pre-shared key */
#define DECOY_SIZE    32  /* of the key that an unknown user is tested against */

#define PRIORITY      "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"
#define PRIORITY_PSK  PRIORITY ":+ECDHE-PSK:+DHE-PSK:+PSK"

struct TlsKeys {
    atomic_uint refs;
    bool verify_peer, use_kernel;
    gnutls_priority_t priority;
    gnutls_certificate_credentials_t certificate; /* or NULL */
    gnutls_psk_server_credentials_t psk;          /* or NULL */
    GHashTable *users;                            /* GBytes name -> GBytes key; or NULL */
};

struct TlsCredentials {
    char *directory, *psk;
    bool verify_peer, use_kernel;
    pthread_mutex_t lock;
    TlsKeys *keys; /* lock */
};

/* Keys */

void tls_keys_unref(TlsKeys *keys)
{
    if (atomic_fetch_sub(&keys->refs, 1) != 1) {
        return;
    }
    if (keys->certificate != NULL) {
        gnutls_certificate_free_credentials(keys->certificate);
    }
    if (keys->psk != NULL) {
        gnutls_psk_free_server_credentials(keys->psk);
    }
    if (keys->priority != NULL) {
        gnutls_priority_deinit(keys->priority);
    }
    g_clear_pointer(&keys->users, g_hash_table_unref);
    g_free(keys);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(TlsKeys, tls_keys_unref)

bool tls_keys_set(const TlsKeys *keys, gnutls_session_t session, TlsOffer *offer)
{
    if (gnutls_priority_set(session, keys->priority) != GNUTLS_E_SUCCESS ||
        (keys->certificate != NULL &&
         gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, keys->certificate) != 0) ||
        (keys->psk != NULL && gnutls_credentials_set(session, GNUTLS_CRD_PSK, keys->psk) != 0)) {
        return false;
    }
    offer->keys = keys;
    gnutls_session_set_ptr(session, offer);
    gnutls_certificate_server_set_request(session, keys->verify_peer ? GNUTLS_CERT_REQUIRE
                                                                     : GNUTLS_CERT_IGNORE);
    return true;
}

bool tls_keys_verify_peer(const TlsKeys *keys)
{
    return keys->verify_peer;
}

bool tls_keys_use_kernel(const TlsKeys *keys)
{
    return keys->use_kernel;
}

static const GBytes *find_key(const TlsKeys *keys, const void *user, size_t length)
{
    if (keys->users == NULL) {
        return NULL;
    }
    g_autoptr(GBytes) name = g_bytes_new(user, length);
    return g_hash_table_lookup(keys->users, name);
}

/* Of a user who is not there, a key that nobody has: it fails as a wrong one does. */
static int give_key(gnutls_session_t session, const gnutls_datum_t *user, gnutls_datum_t *key)
{
    size_t size = DECOY_SIZE;
    TlsOffer *offer = gnutls_session_get_ptr(session);
    const GBytes *found = find_key(offer->keys, user->data, user->size);
    g_free(offer->user);
    offer->user = g_strndup((const char *)user->data, user->size);
    offer->known = found != NULL;
    const void *bytes = found != NULL ? g_bytes_get_data((GBytes *)found, &size) : NULL;
    key->data = gnutls_malloc(size);
    if (key->data == NULL) {
        return -1;
    }
    key->size = size;
    if (bytes == NULL) {
        return gnutls_rnd(GNUTLS_RND_KEY, key->data, size);
    }
    memcpy(key->data, bytes, size);
    return 0;
}

/* Reading files */

/* The text of a file, with a NUL behind it; NULL: it cannot be read. */
static char *read_file(const char *path, size_t *length, GError **error)
{
    g_autofree char *text = NULL;
    g_autoptr(GError) problem = NULL;
    if (!g_file_get_contents(path, &text, length, &problem)) {
        error_set(error, EINVAL, "TLS: %s", problem->message);
        return NULL;
    }
    if (*length > FILE_SIZE_MAX || memchr(text, '\0', *length) != NULL) {
        error_set(error, EINVAL, "TLS: %s: must be text of at most %u bytes", path, FILE_SIZE_MAX);
        return NULL;
    }
    return g_steal_pointer(&text);
}

typedef int (*TlsGive)(gnutls_certificate_credentials_t certificate, const gnutls_datum_t *text,
                       gnutls_x509_crt_fmt_t format);

/* Reads a file of certificates, or of revoked ones, and gives it to GnuTLS. */
static bool give_file(TlsKeys *keys, const char *path, TlsGive give, const char *what,
                      GError **error)
{
    size_t length;
    g_autofree char *text = read_file(path, &length, error);
    if (text == NULL) {
        return false;
    }
    gnutls_datum_t datum = {(unsigned char *)text, length};
    int r = give(keys->certificate, &datum, GNUTLS_X509_FMT_PEM);
    return r > 0 || error_set(error, EINVAL, "TLS: %s: %s: must be %s in PEM", path,
                              r < 0 ? gnutls_strerror(r) : "nothing is in it", what);
}

static bool check_pem(const char *path, int r, const char *what, GError **error)
{
    return r >= 0 || error_set(error, EINVAL, "TLS: %s: %s: must be %s in PEM", path,
                               gnutls_strerror(r), what);
}

static bool check_certificate(const char *path, const gnutls_datum_t *text, GError **error)
{
    gnutls_x509_crt_t *list;
    unsigned count;
    int r = gnutls_x509_crt_list_import2(&list, &count, text, GNUTLS_X509_FMT_PEM, 0);
    if (!check_pem(path, r, "the certificate of this server", error)) {
        return false;
    }
    for (unsigned i = 0; i < count; i++) {
        gnutls_x509_crt_deinit(list[i]);
    }
    gnutls_free(list);
    return true;
}

static bool check_key(const char *path, const gnutls_datum_t *text, GError **error)
{
    gnutls_x509_privkey_t key;
    int r = gnutls_x509_privkey_init(&key);
    if (r == GNUTLS_E_SUCCESS) {
        r = gnutls_x509_privkey_import2(key, text, GNUTLS_X509_FMT_PEM, NULL, 0);
        gnutls_x509_privkey_deinit(key);
    }
    return check_pem(path, r, "a key without a password", error);
}

static bool give_own(TlsKeys *keys, const char *certificate_path, const char *key_path,
                     GError **error)
{
    size_t certificate_length, key_length;
    g_autofree char *certificate = read_file(certificate_path, &certificate_length, error);
    g_autofree char *key = certificate != NULL ? read_file(key_path, &key_length, error) : NULL;
    if (key == NULL) {
        return false;
    }
    gnutls_datum_t own = {(unsigned char *)certificate, certificate_length};
    gnutls_datum_t secret = {(unsigned char *)key, key_length};
    if (!check_certificate(certificate_path, &own, error) || !check_key(key_path, &secret, error)) {
        return false;
    }
    int r =
        gnutls_certificate_set_x509_key_mem(keys->certificate, &own, &secret, GNUTLS_X509_FMT_PEM);
    return r >= 0 || error_set(error, EINVAL, "TLS: %s: %s: must be the key of %s", key_path,
                               gnutls_strerror(r), certificate_path);
}

static bool load_certificates(TlsKeys *keys, const char *directory, GError **error)
{
    g_autofree char *authority = g_build_filename(directory, "ca-cert.pem", NULL);
    g_autofree char *revoked = g_build_filename(directory, "ca-crl.pem", NULL);
    g_autofree char *own = g_build_filename(directory, "server-cert.pem", NULL);
    g_autofree char *key = g_build_filename(directory, "server-key.pem", NULL);
    if (gnutls_certificate_allocate_credentials(&keys->certificate) != GNUTLS_E_SUCCESS) {
        return error_set(error, ENOMEM, "TLS: no memory for certificates");
    }
    bool has_authority = keys->verify_peer || g_file_test(authority, G_FILE_TEST_EXISTS);
    bool has_revoked = g_file_test(revoked, G_FILE_TEST_EXISTS);
    gnutls_certificate_set_known_dh_params(keys->certificate, GNUTLS_SEC_PARAM_MEDIUM);
    return give_own(keys, own, key, error) &&
           (!has_authority || give_file(keys, authority, gnutls_certificate_set_x509_trust_mem,
                                        "the certificate of the authority of clients", error)) &&
           (!has_revoked || give_file(keys, revoked, gnutls_certificate_set_x509_crl_mem,
                                      "a list of revoked certificates", error));
}

/* The bytes that hex stands for; NULL: it is none, or for none. */
static GBytes *bytes_of_hex(const char *hex, size_t length)
{
    uint8_t bytes[KEY_SIZE_MAX];
    size_t size = sizeof bytes;
    gnutls_datum_t text = {(unsigned char *)hex, length};
    if (length == 0 || length > 2 * sizeof bytes ||
        gnutls_hex_decode(&text, bytes, &size) != GNUTLS_E_SUCCESS) {
        return NULL;
    }
    return g_bytes_new(bytes, size);
}

/* A name that begins with # is in hex: so psktool writes one that is no text. */
static GBytes *user_name(const char *name, size_t length)
{
    return *name == '#' ? bytes_of_hex(name + 1, length - 1) : g_bytes_new(name, length);
}

static bool add_user(TlsKeys *keys, const char *path, unsigned line_number, const char *line,
                     GError **error)
{
    const char *colon = strrchr(line, ':');
    bool named = colon != NULL && colon > line;
    g_autoptr(GBytes) name = named ? user_name(line, colon - line) : NULL;
    g_autoptr(GBytes) key = named ? bytes_of_hex(colon + 1, strlen(colon + 1)) : NULL;
    if (name == NULL || key == NULL) {
        return error_set(error, EINVAL, "TLS: %s:%u: must be USER:HEX, as psktool writes it", path,
                         line_number);
    }
    if (g_hash_table_size(keys->users) == USERS_MAX) {
        return error_set(error, EINVAL, "TLS: %s: must have at most %d users", path, USERS_MAX);
    }
    if (!g_hash_table_insert(keys->users, g_steal_pointer(&name), g_steal_pointer(&key))) {
        return error_set(error, EINVAL, "TLS: %s:%u: the user has a key already: must be one", path,
                         line_number);
    }
    return true;
}

static bool add_users(TlsKeys *keys, const char *path, char *text, GError **error)
{
    unsigned number = 1;
    for (char *line = text, *next; line != NULL; line = next, number++) {
        next = strchr(line, '\n');
        if (next != NULL) {
            *next++ = '\0';
        }
        g_strchomp(line);
        if (*line != '\0' && !add_user(keys, path, number, line, error)) {
            return false;
        }
    }
    return true;
}

static bool load_users(TlsKeys *keys, const char *path, GError **error)
{
    size_t length;
    g_autofree char *text = read_file(path, &length, error);
    if (text == NULL) {
        return false;
    }
    keys->users = g_hash_table_new_full(g_bytes_hash, g_bytes_equal, (GDestroyNotify)g_bytes_unref,
                                        (GDestroyNotify)g_bytes_unref);
    if (!add_users(keys, path, text, error)) {
        return false;
    }
    if (gnutls_psk_allocate_server_credentials(&keys->psk) != GNUTLS_E_SUCCESS) {
        return error_set(error, ENOMEM, "TLS: no memory for keys");
    }
    gnutls_psk_set_server_known_dh_params(keys->psk, GNUTLS_SEC_PARAM_MEDIUM);
    gnutls_psk_set_server_credentials_function2(keys->psk, give_key);
    return true;
}

static TlsKeys *load(const TlsCredentials *credentials, GError **error)
{
    g_autoptr(TlsKeys) keys = g_new0(TlsKeys, 1);
    atomic_init(&keys->refs, 1);
    keys->verify_peer = credentials->verify_peer;
    keys->use_kernel = credentials->use_kernel;
    const char *priority = credentials->psk != NULL ? PRIORITY_PSK : PRIORITY;
    const char *position;
    int r = gnutls_priority_init(&keys->priority, priority, &position);
    if (r != GNUTLS_E_SUCCESS) {
        error_set(error, EINVAL, "TLS: this system's GnuTLS does not take '%s': %s", priority,
                  gnutls_strerror(r));
        return NULL;
    }
    if ((credentials->directory != NULL &&
         !load_certificates(keys, credentials->directory, error)) ||
        (credentials->psk != NULL && !load_users(keys, credentials->psk, error))) {
        return NULL;
    }
    return g_steal_pointer(&keys);
}

/* Credentials */

TlsCredentials *tls_credentials_new(const TlsFiles *files, GError **error)
{
    TlsCredentials *credentials = g_new0(TlsCredentials, 1);
    credentials->directory = g_strdup(files->directory);
    credentials->psk = g_strdup(files->psk);
    credentials->verify_peer = files->verify_peer;
    credentials->use_kernel = files->use_kernel;
    pthread_mutex_init(&credentials->lock, NULL);
    credentials->keys = load(credentials, error);
    if (credentials->keys == NULL) {
        g_clear_pointer(&credentials, tls_credentials_free);
    }
    return credentials;
}

void tls_credentials_free(TlsCredentials *credentials)
{
    if (credentials == NULL) {
        return;
    }
    g_clear_pointer(&credentials->keys, tls_keys_unref);
    pthread_mutex_destroy(&credentials->lock);
    g_free(credentials->directory);
    g_free(credentials->psk);
    g_free(credentials);
}

bool tls_credentials_reload(TlsCredentials *credentials, GError **error)
{
    TlsKeys *fresh = load(credentials, error);
    if (fresh == NULL) {
        return false;
    }
    g_autoptr(TlsKeys) old = NULL; /* freed after the lock */
    with_mutex(&credentials->lock);
    old = credentials->keys;
    credentials->keys = fresh;
    return true;
}

TlsKeys *tls_credentials_get(TlsCredentials *credentials)
{
    with_mutex(&credentials->lock);
    atomic_fetch_add(&credentials->keys->refs, 1);
    return credentials->keys;
}
