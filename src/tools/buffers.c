/*
 * The memory of a tool's threads.
 */
#include "tools/buffers.h"

#include <stdlib.h>

#include "base/bytes.h"

#define PIECE      (UINT64_C(2) << 20) /* the largest cluster of qcow2: no unit is decoded twice */
#define MEMORY_MAX (UINT64_C(256) << 20)
#define ALIGNMENT  4096

struct Buffers {
    unsigned count;
    uint64_t piece;
    uint8_t *items[];
};

uint64_t buffers_piece(uint64_t unit)
{
    return max_u64(unit, PIECE);
}

unsigned buffers_threads(unsigned wanted, uint64_t piece)
{
    return MAX(1, min_u64(wanted, MEMORY_MAX / piece));
}

Buffers *buffers_new(unsigned count, uint64_t piece)
{
    Buffers *buffers = g_malloc0(sizeof(Buffers) + count * sizeof(uint8_t *));
    buffers->count = count;
    buffers->piece = piece;
    return buffers;
}

void buffers_free(Buffers *buffers)
{
    for (unsigned i = 0; buffers && i < buffers->count; i++) {
        free(buffers->items[i]);
    }
    g_free(buffers);
}

uint8_t *buffers_get(Buffers *buffers, unsigned slot)
{
    void *memory;
    if (!buffers->items[slot] && posix_memalign(&memory, ALIGNMENT, buffers->piece) == 0) {
        buffers->items[slot] = memory;
    }
    return buffers->items[slot];
}
