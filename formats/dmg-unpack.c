/*
 * Compressed chunks of dmg: zlib, bzip2 and xz by their libraries, LZFSE (lzfse.h), and ADC, Apple's first.
 *
 * ADC, by the first byte of each step:
 *
 *     1nnnnnnn                          n + 1 bytes follow as they are
 *     01nnnnnn, distance of 2 bytes     n + 4 bytes again, from distance + 1 bytes back
 *     00nnnndd, low byte of distance    n + 3 bytes again, the same
 *
 * What must stay true: whatever the bytes say, nothing is read or written outside of the two buffers.
 */
#include "formats/dmg.h"

#include <bzlib.h>
#include <errno.h>
#include <limits.h>
#include <lzma.h>

#include "base/bytes.h"
#include "formats/inflate.h"
#include "formats/lzfse.h"

#define ZLIB_WINDOW_BITS 15
#define XZ_MEMORY        (UINT64_C(36) << 20) /* for a window of 32 MiB, twice the largest chunk */

static int unpack_bzip2(const uint8_t *stored, size_t stored_length, uint8_t *out, size_t length)
{
    unsigned made = length;
    if (stored_length > UINT_MAX || length > UINT_MAX) {
        return -EIO;
    }
    int r = BZ2_bzBuffToBuffDecompress((char *)out, &made, (char *)stored, stored_length, 0, 0);
    return r == BZ_MEM_ERROR ? -ENOMEM : r == BZ_OK && made == length ? 0 : -EIO;
}

static int unpack_xz(const uint8_t *stored, size_t stored_length, uint8_t *out, size_t length)
{
    uint64_t memory = XZ_MEMORY;
    size_t in = 0, made = 0;
    lzma_ret r =
        lzma_stream_buffer_decode(&memory, 0, NULL, stored, &in, stored_length, out, &made, length);
    return r == LZMA_MEM_ERROR ? -ENOMEM : r == LZMA_OK && made == length ? 0 : -EIO;
}

/* One step of ADC: how many bytes of the stream say it, how many it makes, from how far back (0: from
 * the stream). */
typedef struct AdcStep {
    size_t head, length, distance;
} AdcStep;

static AdcStep adc_step(const uint8_t *at, size_t left)
{
    if (*at & 0x80) {
        return (AdcStep){1, (*at & 0x7f) + 1u, 0};
    }
    if (*at & 0x40) {
        return left < 3 ? (AdcStep){0} : (AdcStep){3, (*at & 0x3f) + 4u, load_be16(at + 1) + 1u};
    }
    return left < 2 ? (AdcStep){0} : (AdcStep){2, (*at >> 2) + 3u, ((*at & 3u) << 8 | at[1]) + 1u};
}

static int unpack_adc(const uint8_t *stored, size_t stored_length, uint8_t *out, size_t length)
{
    size_t in = 0, made = 0;
    while (made < length && in < stored_length) {
        AdcStep step = adc_step(stored + in, stored_length - in);
        in += step.head;
        bool plain = step.distance == 0;
        if (step.head == 0 || step.length > length - made || step.distance > made ||
            (plain && step.length > stored_length - in)) {
            return -EIO;
        }
        for (size_t i = 0; i < step.length; i++, made++) {
            out[made] = plain ? stored[in + i] : out[made - step.distance];
        }
        in += plain ? step.length : 0;
    }
    return made == length ? 0 : -EIO;
}

int dmg_unpack(DmgType type, const uint8_t *stored, size_t stored_length, uint8_t *out,
               size_t length)
{
    switch (type) {
    case DMG_ADC:
        return unpack_adc(stored, stored_length, out, length);
    case DMG_ZLIB:
        return inflate_unit(stored, stored_length, out, length, ZLIB_WINDOW_BITS);
    case DMG_BZIP2:
        return unpack_bzip2(stored, stored_length, out, length);
    case DMG_LZFSE:
        return lzfse_unpack(stored, stored_length, out, length);
    case DMG_XZ:
        return unpack_xz(stored, stored_length, out, length);
    default:
        return -EIO;
    }
}
