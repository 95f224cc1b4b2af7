/*
 * LUKS headers, versions 1 and 2, by libcryptsetup: where the data is, which cipher it has, and the
 * key of that cipher for who knows the passphrase.
 *
 * libcryptsetup works on files. It is given a file in memory that holds a copy of the header, so the
 * image itself may be any store, and nothing needs root or device-mapper.
 *
 * Blocks; deriving a key from a passphrase takes seconds and memory on purpose. What a hostile header
 * may ask for is limited. [main]/[pool]
 */
#ifndef FORMATS_LUKS_HEADER_H
#define FORMATS_LUKS_HEADER_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cipher.h"
#include "formats/format.h"

#define LUKS_MAGIC      "LUKS\xba\xbe"
#define LUKS_MAGIC_SIZE 6
#define LUKS_HEADER_MAX (UINT64_C(32) << 20) /* bytes of a header, key slots included */

typedef struct LuksHeader LuksHeader;

/* The header that lies in length bytes at offset of the store; name: for messages. */
LuksHeader *luks_header_open(Store *store, uint64_t offset, uint64_t length, const char *name,
                             GError **error);
void luks_header_free(LuksHeader *header);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(LuksHeader, luks_header_free)

uint64_t luks_header_data_offset(const LuksHeader *header); /* bytes from the header's beginning */
uint32_t luks_header_sector(const LuksHeader *header);      /* bytes */

/* Whether a secret may be tried at all: what its key slots want together stays within limits. */
bool luks_header_check_cost(const LuksHeader *header, GError **error);

/* The cipher of the data. EKEYREJECTED: the secret opens no key slot. */
Cipher *luks_header_unlock(LuksHeader *header, const Secret *secret, GError **error);

/* Sets image->encryption, unlocked with the image's secret. start: the host offset of the sector that is
 * counted as the first one. */
bool luks_image_unlock(Image *image, LuksHeader *header, uint64_t start, GError **error);

/* What info shows: adds "{sv}" entries with qemu-img's keys. */
void luks_header_info(const LuksHeader *header, GVariantBuilder *data);

/* A new header with one key slot: options of prefix ("" or "encrypt."), see luks_create_options.
 * Its length is where the data may begin. */
GByteArray *luks_header_make(GHashTable *options, const char *prefix, const Secret *secret,
                             const char *name, GError **error);
/* How long that header would be. */
bool luks_header_length(GHashTable *options, const char *prefix, uint64_t *length, GError **error);

#endif
