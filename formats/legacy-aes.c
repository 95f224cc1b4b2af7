/*
 * The encryption of old qcow and qcow2 images: the key, by what qemu made of it.
 */
#include "formats/legacy-aes.h"

#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/secret.h"
#include "map/encryption.h"

#define KEY_LENGTH 16u

static Cipher *make_cipher(const Image *image, GError **error)
{
    static const CipherKind kind = {"aes", "cbc-plain64", CIPHER_IV_SECTOR, 0};
    uint8_t *key = secret_memory_new(
        KEY_LENGTH); /* zeroes behind a short one; of a long one the rest is lost */
    if (!key) {
        error_set_errno(error, ENOMEM, "%s: its key", image->path);
        return NULL;
    }
    memcpy(key, image->secret->bytes, min_u64(KEY_LENGTH, image->secret->length));
    Cipher *cipher = cipher_new(&kind, key, KEY_LENGTH, image->path, error);
    secret_memory_free(key);
    return cipher;
}

bool legacy_aes_open(Image *image, GError **error)
{
    if (!image_check_secret(image, error)) {
        return false;
    }
    Cipher *cipher = image->secret ? make_cipher(image, error) : NULL;
    if (image->secret && !cipher) {
        return false;
    }
    image->encryption = encryption_new("aes", cipher, true, 0);
    return true;
}
