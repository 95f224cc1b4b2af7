/*
 * A set of bytes as sorted ranges that do not touch. Bounded: past the limit, neighbours are joined
 * over the smallest gaps, so that the set may then hold more than was added, never less.
 *
 * Pure; no locks inside. Adding costs a binary search and a move of what lies behind.
 */
#ifndef ENGINE_RANGESET_H
#define ENGINE_RANGESET_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Range {
    uint64_t offset, length; /* bytes */
} Range;

typedef struct RangeSet {
    Range *items;
    unsigned count, capacity;
    unsigned limit; /* 0: none */
} RangeSet;

/* set: zero-filled, or with a limit. Ranges are not empty and do not wrap. */
void rangeset_clear(RangeSet *set);                     /* empties and frees */
void rangeset_copy(RangeSet *to, const RangeSet *from); /* to is empty; keeps its limit */
void rangeset_add(RangeSet *set, uint64_t offset, uint64_t length);
bool rangeset_overlaps(const RangeSet *set, uint64_t offset, uint64_t length);

#endif
