/*
 * Compressed units: exactly one unit of an image out of stored bytes. Memory only. [any]
 *
 * Stored bytes behind the end of the compressed stream are padding and ignored; a stream that gives
 * fewer or more bytes than the unit has is an error.
 */
#ifndef FORMATS_INFLATE_H
#define FORMATS_INFLATE_H

#include <stddef.h>
#include <stdint.h>

/* zlib. window_bits as zlib's inflateInit2 takes it: -12 is raw deflate with a 4 KiB window
 * (qcow2), 15 a zlib stream (vmdk). 0, -EIO (damaged) or -ENOMEM. */
int inflate_unit(const uint8_t *stored, size_t stored_length, uint8_t *out, size_t out_length,
                 int window_bits);

/* Zstandard, one or more frames; a frame need not say its size. 0, -EIO or -ENOMEM. */
int inflate_unit_zstd(const uint8_t *stored, size_t stored_length, uint8_t *out, size_t out_length);

#endif
