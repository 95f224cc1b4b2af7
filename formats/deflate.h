/*
 * Compressed units: stored bytes out of exactly one unit of an image. Memory only. [any]
 */
#ifndef FORMATS_DEFLATE_H
#define FORMATS_DEFLATE_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
    DEFLATE_RAW,  /* nothing around the deflate stream (qcow2, qcow) */
    DEFLATE_ZLIB, /* a zlib stream, RFC 1950 (vmdk) */
} DeflateWrapper;

/* Deflate, whose back references reach 2^window_bits bytes at most: readers keep no more than their
 * format says. 9 to 15. How many bytes of stored were used; 0: room is too small; -ENOMEM. */
int deflate_unit(const uint8_t *unit, size_t length, uint8_t *stored, size_t room,
                 unsigned window_bits, DeflateWrapper wrapper);

/* One Zstandard frame. The same answers. */
int deflate_unit_zstd(const uint8_t *unit, size_t length, uint8_t *stored, size_t room);

#endif
