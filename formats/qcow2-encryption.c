/*
 * qcow2: encrypted images.
 *
 *     crypt_method 1   AES as it was before LUKS: no header, sectors counted on the disk
 *     crypt_method 2   LUKS: its header lies in clusters of the image, found by a header extension;
 *                      sectors counted in the file
 *
 *     extension 0x0537be77:   0  8  offset of the LUKS header, at a cluster
 *                             8  8  its length
 *
 * Compressed clusters are not encrypted, zero clusters and what is not allocated have no bytes. Since
 * LUKS counts in the file, a cluster that moves must be encrypted anew.
 */
#include "formats/qcow2.h"

#include <string.h>

#include "base/errors.h"
#include "formats/legacy-aes.h"
#include "formats/luks-header.h"
#include "formats/option.h"
#include "map/encryption.h"

#define SECTOR 512u
#define PREFIX "encrypt."

bool qcow2_crypto_extension(Image *image, const uint8_t *data, uint32_t length, GError **error)
{
    Qcow2State *s = image->state;
    if (s->header.crypt_method != QCOW2_CRYPT_LUKS) {
        return true; /* means nothing */
    }
    if (length != QCOW2_CRYPTO_EXT_LENGTH) {
        return error_set(error, EUCLEAN,
                         "%s: the encryption header extension has %u bytes: must be %u",
                         image->path, length, QCOW2_CRYPTO_EXT_LENGTH);
    }
    s->luks_offset = load_be64(data);
    s->luks_length = load_be64(data + 8);
    if (s->luks_offset == 0 || s->luks_offset % s->cluster_size != 0 ||
        s->luks_length > LUKS_HEADER_MAX ||
        !range_within(s->luks_offset, s->luks_length, store_size(image->store))) {
        return error_set(error, EUCLEAN,
                         "%s: the encryption header is at %" PRIu64 ", with %" PRIu64
                         " bytes: must begin at a cluster, end inside the file, and have at most "
                         "%" PRIu64,
                         image->path, s->luks_offset, s->luks_length, LUKS_HEADER_MAX);
    }
    return true;
}

static bool open_luks(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    if (s->luks_offset == 0) {
        return error_set(
            error, EUCLEAN,
            "%s: crypt_method is 2 (LUKS), but there is no encryption header extension",
            image->path);
    }
    s->luks = luks_header_open(image->store, s->luks_offset, s->luks_length, image->path, error);
    return s->luks && luks_image_unlock(image, s->luks, 0, error);
}

bool qcow2_encryption_open(Image *image, GError **error)
{
    const Qcow2Header *h = &qcow2_state(image)->header;
    if (h->crypt_method == QCOW2_CRYPT_NONE) {
        return true;
    }
    if (h->size % SECTOR != 0) {
        return error_set(error, EUCLEAN, "%s: size is %" PRIu64 ": must be a multiple of %u",
                         image->path, h->size, SECTOR);
    }
    if (!(h->crypt_method == QCOW2_CRYPT_LUKS ? open_luks(image, error)
                                              : legacy_aes_open(image, error))) {
        return false;
    }
    return image->encryption->sector <= SECTOR ||
           error_set(error, ENOTSUP, "%s: sector_size is %u: must be %u in a qcow2 image",
                     image->path, image->encryption->sector, SECTOR);
}

void qcow2_encryption_info(const Image *image, GVariantBuilder *data)
{
    const Qcow2State *s = image->state;
    if (!image->encryption) {
        return;
    }
    GVariantBuilder encrypt;
    g_variant_builder_init(&encrypt, G_VARIANT_TYPE("a{sv}"));
    if (s->luks) {
        luks_header_info(s->luks, &encrypt);
    }
    g_variant_builder_add(&encrypt, "{sv}", "format",
                          g_variant_new_string(image->encryption->method));
    g_variant_builder_add(data, "{sv}", "encrypt", g_variant_builder_end(&encrypt));
}

/* Nothing is encrypted: then nothing is said of how, either. */
static bool refuse_details(GHashTable *options, GError **error)
{
    GHashTableIter iter;
    gpointer name;
    g_hash_table_iter_init(&iter, options);
    while (g_hash_table_iter_next(&iter, &name, NULL)) {
        if (g_str_has_prefix(name, PREFIX)) {
            return error_set(error, EINVAL, "%s is given without encrypt.format: say luks",
                             (const char *)name);
        }
    }
    return true;
}

bool qcow2_encryption_plan(GHashTable *options, unsigned *method, GError **error)
{
    const char *text = option_lookup(options, PREFIX "format");
    *method = QCOW2_CRYPT_NONE;
    if (!text) {
        return !options || refuse_details(options, error);
    }
    if (strcmp(text, "luks") == 0) {
        *method = QCOW2_CRYPT_LUKS;
    } else if (strcmp(text, "aes") == 0) {
        *method = QCOW2_CRYPT_AES;
    }
    return *method != QCOW2_CRYPT_NONE ||
           error_set(error, EINVAL, "encrypt.format is '%s': must be luks, or aes for old programs",
                     text);
}

/* The header of another image as it lies there: the same key, in the same key slots. */
static GByteArray *copy_header(const Image *image, GError **error)
{
    const Qcow2State *s = image->state;
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_byte_array_set_size(bytes, s->luks_length);
    int r = store_read(image->store, bytes->data, bytes->len, s->luks_offset);
    if (r < 0) {
        error_set_errno(error, -r, "%s: cannot read its encryption header", image->path);
        return NULL;
    }
    return g_steal_pointer(&bytes);
}

bool qcow2_encryption_make(unsigned method, const FormatCreate *how, const char *name,
                           GByteArray **header, GError **error)
{
    *header = NULL;
    if (method == QCOW2_CRYPT_NONE) {
        return true;
    }
    if (how->like) {
        *header = method == QCOW2_CRYPT_LUKS ? copy_header(how->like, error) : NULL;
        return *header || method != QCOW2_CRYPT_LUKS;
    }
    if (!how->secret) {
        return error_set(error, ENOKEY,
                         "%s: is encrypted: needs its secret, with --secret-file or --secret-fd",
                         name);
    }
    if (method == QCOW2_CRYPT_LUKS) {
        *header = luks_header_make(how->options, PREFIX, how->secret, name, error);
        return *header != NULL;
    }
    return true;
}
