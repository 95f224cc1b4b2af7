/*
 * Input that was received and cannot be used yet. [worker]
 */
#ifndef NBD_STASH_H
#define NBD_STASH_H

#include <stddef.h>
#include <stdint.h>

#define STASH_ROOM 32 /* a partial request fits */

/* In room when the bytes are few, else in memory of their own. All zero: empty. */
typedef struct Stash {
    uint8_t *memory; /* NULL: in room */
    uint32_t start, length;
    uint8_t room[STASH_ROOM];
} Stash;

const uint8_t *stash_bytes(const Stash *stash);
void stash_clear(Stash *stash);

/* Keeps bytes for the next receive; they may lie in the stash itself (then they are its tail). */
void stash_keep(Stash *stash, const uint8_t *bytes, size_t length);

/* Moves all to the head of scratch. Returns how much that was. */
size_t stash_move(Stash *stash, uint8_t *scratch);

#endif
