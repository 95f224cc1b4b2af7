/*
 * Seeded random numbers for tests: small, fast, the same everywhere. A Random belongs to one
 * thread.
 */
#ifndef TESTS_LIB_RANDOM_H
#define TESTS_LIB_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Random {
    uint64_t state;
} Random;

/* splitmix64's finalizer: a good hash of one word. */
static inline uint64_t random_mix(uint64_t v)
{
    v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
    v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
    return v ^ (v >> 31);
}

static inline Random random_new(uint64_t seed)
{
    return (Random){.state = random_mix(seed + 0x9e3779b97f4a7c15u)};
}

static inline uint64_t random_next(Random *random)
{
    random->state += 0x9e3779b97f4a7c15u;
    return random_mix(random->state);
}

/* 0 .. n-1; n must not be 0. */
static inline uint64_t random_below(Random *random, uint64_t n)
{
    return random_next(random) % n;
}

/* In [low, high]. */
static inline uint64_t random_between(Random *random, uint64_t low, uint64_t high)
{
    return low + random_below(random, high - low + 1);
}

/* True in percent of 100 cases. */
static inline bool random_percent(Random *random, unsigned percent)
{
    return random_below(random, 100) < percent;
}

#endif
