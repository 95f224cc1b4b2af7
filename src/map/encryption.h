/*
 * Encrypted images: how a mover gets from stored bytes to guest bytes and back.
 *
 * A format of such an image says where the bytes are, as any other; image->encryption says how to
 * read them. DATA of the image is encrypted, sector by sector; ENCODED and ZERO are not. Whole
 * sectors only: a mover that is asked for less takes the sectors around it.
 *
 * An encrypted extent is nothing that the kernel could read by itself, and a hole of the host file is
 * no zero of the guest.
 */
#ifndef MAP_ENCRYPTION_H
#define MAP_ENCRYPTION_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/cipher.h"
#include "map/image.h"

typedef struct Allocation Allocation;

typedef struct Encryption {
    const char *method; /* "luks" or "aes", for people */
    Cipher *cipher;  /* NULL: opened without the secret: what the metadata says is all there is */
    uint32_t sector; /* bytes; 512 as long as there is no cipher */
    bool by_guest;   /* sectors are counted by their place on the disk; else in the store */
    uint64_t start;  /* in the store: where they begin to count */
} Encryption;

/* method is not copied. cipher is taken over and may be NULL. */
Encryption *encryption_new(const char *method, Cipher *cipher, bool by_guest, uint64_t start);
void encryption_free(Encryption *encryption);

static inline bool extent_is_encrypted(const Extent *extent)
{
    return extent->type == EXTENT_DATA && extent->image && extent->image->encryption;
}

/* The extent, which is encrypted, made larger to whole sectors at both ends. */
Extent extent_whole_sectors(const Extent *extent);
static inline bool extent_has_whole_sectors(const Extent *extent)
{
    uint64_t sector = extent->image->encryption->sector;
    return (extent->offset | extent->length) % sector == 0;
}

/* Stored bytes to guest bytes, in place: whole sectors. -ENOKEY without a cipher. [any] */
int extent_decrypt(const Extent *extent, uint8_t *bytes);
/* Guest bytes, extent->length in all, to stored bytes in `stored`: whole sectors. [any] */
int extent_encrypt(const Extent *extent, const struct iovec *iov, int count, uint8_t *stored);

/* Blocking transfers of a DATA extent, encrypted or not, of any length. Who writes less than a
 * sector sees to it that nobody else writes the rest of it. [pool] */
int extent_read(const Extent *extent, uint8_t *bytes);
int extent_write(const Extent *extent, const struct iovec *iov, int count);

/* format->allocate, for who writes guest data: as there, and each extent knows its image, so that
 * what is written there can be encrypted. Returns the first error. */
int image_allocate(Image *image, Allocation **list, unsigned count);

/* For format->open of an encrypted image. True: image->secret is there, or only metadata is looked at. */
bool image_check_secret(const Image *image, GError **error);

/* Whether any image of the chain is encrypted. */
bool chain_is_encrypted(const Image *top);

#endif
