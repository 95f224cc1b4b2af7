/*
 * Numbers as they lie in images and on the wire, and arithmetic that cannot wrap unseen.
 *
 * Every function here is pure and may be called from any thread. The loads and stores take any
 * alignment. The checked functions return false, and leave *out alone, when the result does not
 * fit.
 */
#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BYTES_DEFINE(bits, order)                                     \
    static inline uint##bits##_t load_##order##bits(const void *p)    \
    {                                                                 \
        uint##bits##_t v;                                             \
        memcpy(&v, p, sizeof v);                                      \
        return order##bits##toh(v);                                   \
    }                                                                 \
    static inline void store_##order##bits(void *p, uint##bits##_t v) \
    {                                                                 \
        v = hto##order##bits(v);                                      \
        memcpy(p, &v, sizeof v);                                      \
    }

BYTES_DEFINE(16, be)
BYTES_DEFINE(32, be)
BYTES_DEFINE(64, be)
BYTES_DEFINE(16, le)
BYTES_DEFINE(32, le)
BYTES_DEFINE(64, le)
#undef BYTES_DEFINE

static inline bool add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r)) {
        return false;
    }
    *out = r;
    return true;
}

static inline bool mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r)) {
        return false;
    }
    *out = r;
    return true;
}

/* True when [offset, offset + length) lies within [0, size). */
static inline bool range_within(uint64_t offset, uint64_t length, uint64_t size)
{
    return offset <= size && length <= size - offset;
}

/* True when the two ranges share a byte. Neither may wrap. */
static inline bool ranges_overlap(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
    return a < b + b_length && b < a + a_length;
}

static inline bool is_power_of_two(uint64_t v)
{
    return v != 0 && (v & (v - 1)) == 0;
}

/* alignment must be a power of two; align_up must not be given a value within one alignment of
 * 2^64. */
static inline uint64_t align_down(uint64_t v, uint64_t alignment)
{
    return v & ~(alignment - 1);
}

static inline uint64_t align_up(uint64_t v, uint64_t alignment)
{
    return (v + alignment - 1) & ~(alignment - 1);
}

static inline uint64_t div_round_up(uint64_t v, uint64_t by)
{
    return v / by + (v % by != 0);
}

/* True when all of the bytes are 0, also when there are none. */
static inline bool bytes_are_zero(const void *bytes, size_t n)
{
    const uint8_t *p = bytes;
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

#endif
