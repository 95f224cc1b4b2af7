/*
 * LZFSE, Apple's compression: a row of blocks, each with bytes as they are, LZVN, or matches under finite state entropy.
 * After the format of Apple's open library of that name. Memory only. [any]
 *
 * Whatever the bytes say, nothing is read or written outside of the two buffers, and the time is bounded by their lengths.
 */
#ifndef FORMATS_LZFSE_H
#define FORMATS_LZFSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Exactly `length` bytes out of the stream in `stored`; what stands behind its end is ignored. 0 or -EIO. */
int lzfse_unpack(const uint8_t *stored, size_t stored_length, uint8_t *out, size_t length);

/* What is made, shared between the two kinds of blocks: a block may make bytes up to limit, and may repeat any before. */
typedef struct LzfseOut {
    uint8_t *bytes;
    size_t made, limit;
} LzfseOut;

/* Bytes as they are. false: more than there may be. */
bool lzfse_put(LzfseOut *out, const uint8_t *bytes, size_t length);

/* Again what was made `distance` bytes ago; the two may overlap. false: more than there may be, or from before the first. */
bool lzfse_repeat(LzfseOut *out, size_t length, size_t distance);

/* The payload of an LZVN block, up to the limit. */
bool lzvn_unpack(const uint8_t *stored, size_t stored_length, LzfseOut *out);

#endif
