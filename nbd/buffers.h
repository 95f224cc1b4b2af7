/*
 * Buffers for payloads, kept for the next request: a fresh 1 MiB costs 256 page faults, a kept one
 * none.
 *
 * One cache belongs to one worker. [worker] Buffers are page-aligned, of power-of-two sizes. What
 * is kept is bounded by BUFFERS_KEPT_MAX bytes; what is handed out is the caller's to bound.
 */
#ifndef NBD_BUFFERS_H
#define NBD_BUFFERS_H

#include <stddef.h>
#include <stdint.h>

#define BUFFERS_SMALLEST 4096u
#define BUFFERS_LARGEST  (64u << 20)
#define BUFFERS_CLASSES  15
#define BUFFERS_KEPT_MAX ((size_t)32 << 20)

typedef struct Buffers { /* all zero: an empty cache */
    void *kept[BUFFERS_CLASSES];
    size_t kept_bytes;
} Buffers;

/* A buffer of at least length bytes, 1 to BUFFERS_LARGEST, contents unknown; NULL when there is no
 * memory. */
void *buffers_take(Buffers *buffers, uint32_t length);

/* Memory that a buffer of length bytes costs when it is used: whole pages. */
static inline uint64_t buffers_cost(uint32_t length)
{
    return ((uint64_t)length + BUFFERS_SMALLEST - 1) & ~(uint64_t)(BUFFERS_SMALLEST - 1);
}

/* Gives back what buffers_take gave for the same length. */
void buffers_give(Buffers *buffers, void *buffer, uint32_t length);

/* Frees all that is kept. */
void buffers_clear(Buffers *buffers);

#endif
