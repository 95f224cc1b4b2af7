/*
 * The pieces of what is to be sent, taken record by record. [worker]
 */
#ifndef NBD_TLS_PIECES_H
#define NBD_TLS_PIECES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Where the next byte of the pieces is. */
typedef struct TlsPieces {
    const struct iovec *iov;
    unsigned count;
    size_t offset; /* in the first of them */
} TlsPieces;

/* Of the first piece. */
size_t tls_pieces_left(const TlsPieces *at);
const uint8_t *tls_pieces_bytes(const TlsPieces *at);

/* Goes on by length, and past pieces that are empty. */
void tls_pieces_move(TlsPieces *at, size_t length);

/* Copies pieces smaller than below, as many as follow each other and fit into size, the first one in
 * any case; goes on behind them. Returns their length. */
size_t tls_pieces_gather(TlsPieces *at, uint8_t *room, size_t size, size_t below);

#endif
