/*
 * How much of their full work heavy tests do: COWNBD_TEST_SCALE percent of it.
 */
#ifndef TESTS_LIB_SCALE_H
#define TESTS_LIB_SCALE_H

#include <stdint.h>
#include <stdlib.h>

/* `full`, scaled; at least 1. */
static inline uint64_t scaled(uint64_t full)
{
    const char *scale = getenv("COWNBD_TEST_SCALE");
    uint64_t percent = scale && *scale ? strtoull(scale, NULL, 10) : 100;
    uint64_t count = full * percent / 100;
    return count ? count : 1;
}

#endif
