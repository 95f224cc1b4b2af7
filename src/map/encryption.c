/*
 * Encrypted images: the sectors of an extent, decrypted and encrypted.
 *
 *     extent          ....|bbbbbbbbbbbbbb|....        what is asked for
 *     whole sectors   |ssssssss|ssssssss|ssss|        what is read, decrypted, changed, encrypted,
 *                                                     written
 *
 * What must stay true: what is encrypted goes to a buffer of its own; the caller's bytes may be the
 * client's, or the zero page.
 */
#include "map/encryption.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/format.h"

#define STEP (1u << 20) /* bytes that a blocking write encrypts at a time */

Encryption *encryption_new(const char *method, Cipher *cipher, bool by_guest, uint64_t start)
{
    Encryption *encryption = g_new0(Encryption, 1);
    encryption->method = method;
    encryption->cipher = cipher;
    encryption->sector = cipher ? cipher_sector(cipher) : CIPHER_IV_SECTOR;
    encryption->by_guest = by_guest;
    encryption->start = start;
    return encryption;
}

void encryption_free(Encryption *encryption)
{
    if (encryption) {
        cipher_free(encryption->cipher);
        g_free(encryption);
    }
}

Extent extent_whole_sectors(const Extent *extent)
{
    uint64_t sector = extent->image->encryption->sector;
    Extent whole = *extent;
    uint64_t before = extent->offset % sector;
    whole.offset -= before;
    whole.host_offset -= before;
    whole.length = align_up(extent->length + before, sector);
    return whole;
}

/* Where the extent's first sector is counted. */
static uint64_t counted_from(const Extent *extent)
{
    const Encryption *encryption = extent->image->encryption;
    return encryption->by_guest ? extent->offset : extent->host_offset - encryption->start;
}

int extent_decrypt(const Extent *extent, uint8_t *bytes)
{
    Cipher *cipher = extent->image->encryption->cipher;
    return cipher ? cipher_decrypt(cipher, counted_from(extent), bytes, bytes, extent->length)
                  : -ENOKEY;
}

int extent_encrypt(const Extent *extent, const struct iovec *iov, int count, uint8_t *stored)
{
    Cipher *cipher = extent->image->encryption->cipher;
    uint64_t length = 0;
    if (!cipher) {
        return -ENOKEY;
    }
    if (count == 1) {
        return cipher_encrypt(cipher, counted_from(extent), iov->iov_base, stored, extent->length);
    }
    for (int i = 0; i < count; i++) {
        memcpy(stored + length, iov[i].iov_base, iov[i].iov_len);
        length += iov[i].iov_len;
    }
    g_assert(length == extent->length);
    return cipher_encrypt(cipher, counted_from(extent), stored, stored, length);
}

static int read_whole(const Extent *extent, uint8_t *bytes)
{
    int r = store_read(extent->store, bytes, extent->length, extent->host_offset);
    return r < 0 ? r : extent_decrypt(extent, bytes);
}

int extent_read(const Extent *extent, uint8_t *bytes)
{
    if (!extent_is_encrypted(extent)) {
        return store_read(extent->store, bytes, extent->length, extent->host_offset);
    }
    if (extent_has_whole_sectors(extent)) {
        return read_whole(extent, bytes);
    }
    Extent whole = extent_whole_sectors(extent);
    g_autofree uint8_t *buffer = g_try_malloc(whole.length);
    int r = buffer ? read_whole(&whole, buffer) : -ENOMEM;
    if (r == 0) {
        memcpy(bytes, buffer + (extent->offset - whole.offset), extent->length);
    }
    return r;
}

/* Takes `length` bytes at `at` of the list. */
static void gather(const struct iovec *iov, int count, uint64_t at, uint64_t length, uint8_t *out)
{
    for (int i = 0; i < count && length > 0; i++) {
        if (at >= iov[i].iov_len) {
            at -= iov[i].iov_len;
            continue;
        }
        uint64_t n = min_u64(length, iov[i].iov_len - at);
        memcpy(out, (const uint8_t *)iov[i].iov_base + at, n);
        out += n;
        length -= n;
        at = 0;
    }
}

/* One step: `part` lies inside the extent that the list is for, `skip` bytes behind its beginning. */
static int write_step(const Extent *part, const struct iovec *iov, int count, uint64_t skip,
                      uint8_t *buffer)
{
    Extent whole = extent_whole_sectors(part);
    int r = extent_has_whole_sectors(part) ? 0 : read_whole(&whole, buffer);
    if (r < 0) {
        return r;
    }
    gather(iov, count, skip, part->length, buffer + (part->offset - whole.offset));
    struct iovec all = {buffer, whole.length};
    r = extent_encrypt(&whole, &all, 1, buffer);
    return r < 0 ? r : store_write(whole.store, buffer, whole.length, whole.host_offset);
}

int extent_write(const Extent *extent, const struct iovec *iov, int count)
{
    if (!extent_is_encrypted(extent)) {
        return store_writev(extent->store, iov, count, extent->host_offset);
    }
    uint64_t sector = extent->image->encryption->sector;
    uint64_t room = min_u64(STEP, align_up(extent->length, sector)) + 2 * sector;
    g_autofree uint8_t *buffer = g_try_malloc(room);
    int r = buffer ? 0 : -ENOMEM;
    for (uint64_t done = 0, length; r == 0 && done < extent->length; done += length) {
        Extent part = *extent;
        uint64_t at = extent->offset + done;
        length = min_u64(STEP - at % STEP, extent->length - done);
        extent_clip(&part, at, length);
        r = write_step(&part, iov, count, done, buffer);
    }
    return r;
}

int image_allocate(Image *image, Allocation **list, unsigned count)
{
    int r = image->format->allocate(image, list, count);
    for (unsigned i = 0; i < count; i++) {
        for (unsigned j = 0; list[i]->result == 0 && j < list[i]->extents.count; j++) {
            Extent *extent = &list[i]->extents.items[j];
            extent->image = image;
            if (image->encryption) { /* zeroes of the host are none of the guest's */
                extent->flags &= ~EXTENT_FRESH;
            }
        }
    }
    return r;
}

bool image_check_secret(const Image *image, GError **error)
{
    return image->secret || image->no_secrets ||
           error_set(error, ENOKEY,
                     "%s: is encrypted: needs its secret, with --secret-file or --secret-fd",
                     image->path);
}

bool chain_is_encrypted(const Image *top)
{
    for (const Image *image = top; image; image = image->backing) {
        if (image->encryption) {
            return true;
        }
    }
    return false;
}
