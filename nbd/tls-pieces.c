/*
 * Pieces of output. Large ones are encrypted from where they lie; small ones (heads of replies) are
 * put together first, to share a record.
 */
#include "nbd/tls-pieces.h"

#include <string.h>

size_t tls_pieces_left(const TlsPieces *at)
{
    return at->count > 0 ? at->iov->iov_len - at->offset : 0;
}

const uint8_t *tls_pieces_bytes(const TlsPieces *at)
{
    return (const uint8_t *)at->iov->iov_base + at->offset;
}

void tls_pieces_move(TlsPieces *at, size_t length)
{
    at->offset += length;
    while (at->count > 0 && at->offset == at->iov->iov_len) {
        at->iov++;
        at->count--;
        at->offset = 0;
    }
}

size_t tls_pieces_gather(TlsPieces *at, uint8_t *room, size_t size, size_t below)
{
    size_t length = 0;
    for (;;) {
        size_t left = tls_pieces_left(at);
        if (left == 0 || left > size - length || (left >= below && length > 0)) {
            return length;
        }
        memcpy(room + length, tls_pieces_bytes(at), left);
        length += left;
        tls_pieces_move(at, left);
    }
}
