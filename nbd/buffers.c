/*
 * Payload buffers by size class, the last given back handed out first: it is the one still in the
 * CPU's cache.
 *
 * A kept buffer's first bytes hold the link to the next one. What must stay true: kept_bytes is the
 * sum of the sizes on the lists and never over BUFFERS_KEPT_MAX.
 */
#include "nbd/buffers.h"

#include <stdlib.h>

#include "base/bytes.h"

static unsigned class_of(uint32_t length)
{
    if (length <= BUFFERS_SMALLEST) {
        return 0;
    }
    return 32 - __builtin_clz((length - 1) / BUFFERS_SMALLEST);
}

static size_t class_size(unsigned rank)
{
    return (size_t)BUFFERS_SMALLEST << rank;
}

void *buffers_take(Buffers *buffers, uint32_t length)
{
    unsigned rank = class_of(length);
    void *buffer = buffers->kept[rank];
    if (buffer == NULL) {
        return aligned_alloc(BUFFERS_SMALLEST, class_size(rank));
    }
    memcpy(&buffers->kept[rank], buffer, sizeof(void *));
    buffers->kept_bytes -= class_size(rank);
    return buffer;
}

void buffers_give(Buffers *buffers, void *buffer, uint32_t length)
{
    unsigned rank = class_of(length);
    if (buffers->kept_bytes + class_size(rank) > BUFFERS_KEPT_MAX) {
        free(buffer);
        return;
    }
    memcpy(buffer, &buffers->kept[rank], sizeof(void *));
    buffers->kept[rank] = buffer;
    buffers->kept_bytes += class_size(rank);
}

void buffers_clear(Buffers *buffers)
{
    for (unsigned rank = 0; rank < BUFFERS_CLASSES; rank++) {
        while (buffers->kept[rank] != NULL) {
            void *buffer = buffers->kept[rank];
            memcpy(&buffers->kept[rank], buffer, sizeof(void *));
            free(buffer);
        }
    }
    buffers->kept_bytes = 0;
}
