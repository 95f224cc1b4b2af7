/*
 * The memory of a tool's threads: a buffer of one piece each, made when it is first asked for.
 */
#ifndef TOOLS_BUFFERS_H
#define TOOLS_BUFFERS_H

#include <glib.h>
#include <stdint.h>

typedef struct Buffers Buffers;

/* How large the pieces of a tool are: whole units of an image, and enough for one system call. */
uint64_t buffers_piece(uint64_t unit);

/* How many of `wanted` threads may work on pieces of that size at once, so that memory stays
 * bounded. */
unsigned buffers_threads(unsigned wanted, uint64_t piece);

Buffers *buffers_new(unsigned count, uint64_t piece);
void buffers_free(Buffers *buffers);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Buffers, buffers_free)

/* A thread's own. NULL: out of memory. */
uint8_t *buffers_get(Buffers *buffers, unsigned slot);

#endif
