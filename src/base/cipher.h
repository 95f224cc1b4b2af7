/*
 * The cipher of a disk: sectors, each encrypted for itself under a number (its "tweak" or IV).
 *
 * By libgcrypt; the key, and what is made of it, lie in secret memory (base/secret.h). A cipher may be
 * used by any number of threads at once.
 */
#ifndef BASE_CIPHER_H
#define BASE_CIPHER_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CIPHER_IV_SECTOR 512u /* bytes that a sector number counts, whatever the sector's size */
#define CIPHER_KEY_MAX   128u /* bytes */

typedef struct Cipher Cipher;

typedef struct CipherKind {
    const char *algorithm; /* "aes", "serpent", "twofish": dm-crypt's names */
    const char *mode;      /* "xts-plain64", "cbc-essiv:sha256" ... */
    uint32_t sector;       /* bytes: 512, 1024, 2048 or 4096 */
    uint64_t iv_offset;    /* the number of the first sector */
} CipherKind;

/* name: of the image, for messages. The key is copied. EINVAL: what cannot be together, ENOTSUP: what
 * is not known here. [main]/[pool] */
Cipher *cipher_new(const CipherKind *kind, const uint8_t *key, size_t key_length, const char *name,
                   GError **error);
void cipher_free(Cipher *cipher);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Cipher, cipher_free)

uint32_t cipher_sector(const Cipher *cipher);

/* length bytes, whole sectors, the first of which is at byte `offset` of what is encrypted. in and out
 * are the same or do not overlap. 0 or -errno. [any] */
int cipher_encrypt(Cipher *cipher, uint64_t offset, const uint8_t *in, uint8_t *out, size_t length);
int cipher_decrypt(Cipher *cipher, uint64_t offset, const uint8_t *in, uint8_t *out, size_t length);

#endif
