/*
 * The cipher of a disk, by libgcrypt.
 *
 * A handle of libgcrypt holds the expanded key and the state of one call. So a cipher keeps a few
 * of them, and makes one more when all are in use:
 *
 *     cipher_encrypt:  take a handle ── each sector: IV, encrypt ── give it back
 *
 * The IV of a sector, all of it little endian and as long as a block of the algorithm:
 *
 *     plain       its number, 32 bits
 *     plain64     its number, 64 bits
 *     essiv:HASH  its number, encrypted under the hash of the key, so that nobody can foresee it
 *
 * What must stay true: a key is only ever in secret memory; libgcrypt is told to take it there
 * before it is used for the first time.
 */
#include "base/cipher.h"

#include <gcrypt.h>
#include <pthread.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/secret.h"

#define BLOCK_MAX   16
#define HANDLES_MAX 64 /* kept; more are made and thrown away */

typedef enum { IV_PLAIN, IV_PLAIN64, IV_ESSIV } IvKind;

/* What cipher_new finds out of the names. */
typedef struct Choice {
    int algorithm, mode;
    IvKind iv;
    int essiv_algorithm, essiv_hash;
} Choice;

typedef struct Handle {
    struct Handle *next;
    gcry_cipher_hd_t data, essiv; /* essiv: NULL for the other kinds */
} Handle;

struct Cipher {
    Choice choice;
    uint32_t sector;
    uint64_t iv_offset;
    uint8_t *key; /* secret memory */
    size_t key_length;
    pthread_mutex_t lock;
    Handle *idle;        /* lock */
    unsigned idle_count; /* lock */
};

/* ---- libgcrypt ------------------------------------------------------------------------------ */

static void *plain_realloc(void *memory, size_t size)
{
    if (!secret_memory_owns(memory)) {
        return realloc(memory, size);
    }
    return NULL; /* secrets do not grow; libgcrypt takes this for want of memory */
}

static void release_memory(void *memory)
{
    if (secret_memory_owns(memory)) {
        secret_memory_free(memory);
    } else {
        free(memory);
    }
}

static int is_secret(const void *memory)
{
    return secret_memory_owns(memory);
}

static void start_library(void)
{
    gcry_set_allocation_handler(malloc, secret_memory_new, is_secret, plain_realloc,
                                release_memory);
    gcry_check_version(NULL);
    gcry_control(GCRYCTL_DISABLE_SECMEM_WARN);
    gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

/* ---- names ---------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t key_length;
    int algorithm;
} algorithms[] = {
    {"aes", 16, GCRY_CIPHER_AES128},         {"aes", 24, GCRY_CIPHER_AES192},
    {"aes", 32, GCRY_CIPHER_AES256},         {"serpent", 16, GCRY_CIPHER_SERPENT128},
    {"serpent", 24, GCRY_CIPHER_SERPENT192}, {"serpent", 32, GCRY_CIPHER_SERPENT256},
    {"twofish", 16, GCRY_CIPHER_TWOFISH128}, {"twofish", 32, GCRY_CIPHER_TWOFISH},
};

static int find_algorithm(const char *name, size_t key_length)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(algorithms); i++) {
        if (strcmp(name, algorithms[i].name) == 0 && key_length == algorithms[i].key_length) {
            return algorithms[i].algorithm;
        }
    }
    return 0;
}

static bool find_iv(Choice *choice, const char *algorithm, const char *iv)
{
    if (strcmp(iv, "plain") == 0) {
        choice->iv = IV_PLAIN;
        return true;
    }
    if (strcmp(iv, "plain64") == 0) {
        choice->iv = IV_PLAIN64;
        return true;
    }
    if (g_str_has_prefix(iv, "essiv:")) {
        choice->iv = IV_ESSIV;
        choice->essiv_hash = gcry_md_map_name(iv + strlen("essiv:"));
        size_t length = choice->essiv_hash ? gcry_md_get_algo_dlen(choice->essiv_hash) : 0;
        choice->essiv_algorithm = find_algorithm(algorithm, length);
        return choice->essiv_algorithm != 0;
    }
    return false;
}

static bool choose(const CipherKind *kind, size_t key_length, Choice *choice)
{
    g_auto(GStrv) parts = g_strsplit(kind->mode, "-", 2);
    if (!parts[0] || !parts[1]) {
        return false;
    }
    size_t half = key_length;
    if (strcmp(parts[0], "xts") == 0) {
        choice->mode = GCRY_CIPHER_MODE_XTS;
        half = key_length % 2 == 0 ? key_length / 2 : 0; /* the other one is for the IV */
    } else if (strcmp(parts[0], "cbc") == 0) {
        choice->mode = GCRY_CIPHER_MODE_CBC;
    } else {
        return false;
    }
    choice->algorithm = find_algorithm(kind->algorithm, half);
    return choice->algorithm != 0 && find_iv(choice, kind->algorithm, parts[1]);
}

/* ---- handles -------------------------------------------------------------------------------- */

static void handle_free(Handle *handle)
{
    gcry_cipher_close(handle->data);
    gcry_cipher_close(handle->essiv);
    g_free(handle);
}

/* libgcrypt takes no XTS key whose halves are equal, which only a broken image has. */
static gcry_error_t set_essiv(const Cipher *cipher, Handle *handle)
{
    int hash = cipher->choice.essiv_hash;
    size_t length = gcry_md_get_algo_dlen(hash);
    uint8_t *salt = secret_memory_new(length);
    if (!salt) {
        return gcry_error(GPG_ERR_ENOMEM);
    }
    gcry_md_hash_buffer(hash, salt, cipher->key, cipher->key_length);
    gcry_error_t failed = gcry_cipher_open(&handle->essiv, cipher->choice.essiv_algorithm,
                                           GCRY_CIPHER_MODE_ECB, GCRY_CIPHER_SECURE);
    failed = failed ? failed : gcry_cipher_setkey(handle->essiv, salt, length);
    secret_memory_free(salt);
    return failed;
}

static gcry_error_t handle_new(const Cipher *cipher, Handle **made)
{
    Handle *handle = g_new0(Handle, 1);
    gcry_error_t failed = gcry_cipher_open(&handle->data, cipher->choice.algorithm,
                                           cipher->choice.mode, GCRY_CIPHER_SECURE);
    failed = failed ? failed : gcry_cipher_setkey(handle->data, cipher->key, cipher->key_length);
    if (!failed && cipher->choice.iv == IV_ESSIV) {
        failed = set_essiv(cipher, handle);
    }
    if (failed) {
        handle_free(handle);
        return failed;
    }
    *made = handle;
    return 0;
}

static Handle *handle_take(Cipher *cipher)
{
    Handle *handle;
    {
        with_mutex(&cipher->lock);
        handle = cipher->idle;
        if (handle) {
            cipher->idle = handle->next;
            cipher->idle_count--;
            return handle;
        }
    }
    return handle_new(cipher, &handle) == 0 ? handle : NULL;
}

static void handle_give(Cipher *cipher, Handle *handle)
{
    {
        with_mutex(&cipher->lock);
        if (cipher->idle_count < HANDLES_MAX) {
            handle->next = cipher->idle;
            cipher->idle = handle;
            cipher->idle_count++;
            return;
        }
    }
    handle_free(handle);
}

/* ---- the cipher ----------------------------------------------------------------------------- */

Cipher *cipher_new(const CipherKind *kind, const uint8_t *key, size_t key_length, const char *name,
                   GError **error)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_library);
    Choice choice = {0};
    if (key_length > CIPHER_KEY_MAX || !choose(kind, key_length, &choice)) {
        error_set(error, ENOTSUP,
                  "%s: is encrypted with %s-%s and a key of %zu bits: must be aes, serpent or "
                  "twofish, with xts or cbc, and plain, plain64 or essiv",
                  name, kind->algorithm, kind->mode, key_length * 8);
        return NULL;
    }
    if (!is_power_of_two(kind->sector) || kind->sector < 512 || kind->sector > 4096) {
        error_set(error, ENOTSUP, "%s: sector_size is %u: must be 512, 1024, 2048 or 4096", name,
                  kind->sector);
        return NULL;
    }
    g_autoptr(Cipher) cipher = g_new0(Cipher, 1);
    pthread_mutex_init(&cipher->lock, NULL);
    cipher->choice = choice;
    cipher->sector = kind->sector;
    cipher->iv_offset = kind->iv_offset;
    cipher->key = secret_memory_new(key_length);
    if (!cipher->key) {
        error_set_errno(error, ENOMEM, "%s: its key", name);
        return NULL;
    }
    memcpy(cipher->key, key, key_length);
    cipher->key_length = key_length;
    Handle *first = NULL;
    gcry_error_t failed = handle_new(cipher, &first);
    if (failed) {
        error_set(error, EINVAL, "%s: its key cannot be used: %s", name, gcry_strerror(failed));
        return NULL;
    }
    handle_give(cipher, first);
    return g_steal_pointer(&cipher);
}

void cipher_free(Cipher *cipher)
{
    if (!cipher) {
        return;
    }
    for (Handle *handle = cipher->idle, *next; handle; handle = next) {
        next = handle->next;
        handle_free(handle);
    }
    pthread_mutex_destroy(&cipher->lock);
    secret_memory_free(cipher->key);
    g_free(cipher);
}

uint32_t cipher_sector(const Cipher *cipher)
{
    return cipher->sector;
}

static gcry_error_t set_iv(const Cipher *cipher, Handle *handle, uint64_t number)
{
    uint8_t iv[BLOCK_MAX] = {0};
    gcry_error_t failed = 0;
    store_le64(iv, cipher->choice.iv == IV_PLAIN ? number & UINT32_MAX : number);
    if (handle->essiv) {
        failed = gcry_cipher_encrypt(handle->essiv, iv, sizeof iv, NULL, 0);
    }
    return failed ? failed : gcry_cipher_setiv(handle->data, iv, sizeof iv);
}

typedef gcry_error_t CipherStep(gcry_cipher_hd_t handle, void *out, size_t out_size, const void *in,
                                size_t in_size);

static int run(Cipher *cipher, CipherStep *step, uint64_t offset, const uint8_t *in, uint8_t *out,
               size_t length)
{
    g_assert(offset % cipher->sector == 0 && length % cipher->sector == 0);
    Handle *handle = handle_take(cipher);
    if (!handle) {
        return -ENOMEM;
    }
    gcry_error_t failed = 0;
    uint64_t number = cipher->iv_offset + offset / CIPHER_IV_SECTOR;
    for (size_t at = 0; !failed && at < length; at += cipher->sector) {
        failed = set_iv(cipher, handle, number + at / CIPHER_IV_SECTOR);
        failed = failed ? failed
                        : step(handle->data, out + at, cipher->sector, in == out ? NULL : in + at,
                               in == out ? 0 : cipher->sector);
    }
    handle_give(cipher, handle);
    return failed ? -EIO : 0;
}

int cipher_encrypt(Cipher *cipher, uint64_t offset, const uint8_t *in, uint8_t *out, size_t length)
{
    return run(cipher, gcry_cipher_encrypt, offset, in, out, length);
}

int cipher_decrypt(Cipher *cipher, uint64_t offset, const uint8_t *in, uint8_t *out, size_t length)
{
    return run(cipher, gcry_cipher_decrypt, offset, in, out, length);
}
