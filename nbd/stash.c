/*
 * Input kept for later.
 */
#include "nbd/stash.h"

#include <glib.h>
#include <string.h>

const uint8_t *stash_bytes(const Stash *stash)
{
    return (stash->memory != NULL ? stash->memory : stash->room) + stash->start;
}

void stash_clear(Stash *stash)
{
    g_free(stash->memory);
    stash->memory = NULL;
    stash->start = stash->length = 0;
}

void stash_keep(Stash *stash, const uint8_t *bytes, size_t length)
{
    if (length == 0) {
        stash_clear(stash);
        return;
    }
    if (stash->memory != NULL && length > STASH_ROOM) {
        stash->start += stash->length - length;
    } else if (length > STASH_ROOM) {
        stash->memory = g_memdup2(bytes, length);
    } else {
        memmove(stash->room, bytes, length);
        g_free(g_steal_pointer(&stash->memory));
        stash->start = 0;
    }
    stash->length = length;
}

size_t stash_move(Stash *stash, uint8_t *scratch)
{
    size_t length = stash->length;
    if (length > 0) {
        memcpy(scratch, stash_bytes(stash), length);
        stash_clear(stash);
    }
    return length;
}
