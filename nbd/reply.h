/*
 * A request of a client and its reply, one structure: the request comes back as the entry of the
 * send queue.
 *
 *      nbd_request_new -> (payload) -> node_submit -> done -> reply_make -> conn_send -> free
 *
 * Structures come from the worker's free list and payload buffers from its cache: a steady stream
 * of requests allocates nothing. All [worker].
 */
#ifndef NBD_REPLY_H
#define NBD_REPLY_H

#include <sys/uio.h>

#include "engine/request.h"
#include "nbd/meta-context.h"
#include "nbd/nbd-wire.h"
#include "nbd/server.h"

#define REPLY_HEADER_MAX 48
#define REPLY_STATUS_MAX 4096 /* descriptors of a context in one answer to BLOCK_STATUS */

struct NbdRequest {
    Request request;       /* the engine's; first, so that its done finds the rest */
    Conn *conn;            /* a reference */
    NbdChunkHead head;     /* its cookie and offset, as the chunks of the reply have them */
    uint16_t command;      /* NbdCommand */
    uint16_t flags;        /* NBD_CMD_FLAG_* */
    MetaContexts contexts; /* of a BLOCK_STATUS */
    uint64_t length;       /* as asked; while a payload arrives, of that */
    uint64_t charge;       /* bytes counted against the connection's budget */
    uint64_t begun;        /* nbd_clock when it was there whole; 0: its time is not counted */

    void *buffer; /* payload or reply data; from the worker's cache */
    uint32_t buffer_length;
    void *chunks; /* a ReplyChunks, when the reply has more than one */

    /* The reply, when it is queued. Sending moves iov and its entries forward. */
    NbdRequest *next;
    struct iovec *iov;
    unsigned iov_count;
    uint64_t reply_length; /* bytes not yet sent */
    struct iovec iov_room[2];
    uint8_t header[REPLY_HEADER_MAX];
};

/* What a request costs beside its payload, for the budget. */
#define NBD_REQUEST_CHARGE sizeof(NbdRequest)

/* A request of conn, cleared, counted in flight. Never NULL. */
NbdRequest *nbd_request_new(Conn *conn, uint64_t charge);

/* Gives it a buffer of length bytes; false when there is no memory. */
bool nbd_request_take_buffer(NbdRequest *request, uint32_t length);

/* Gives it back, for another one. */
void nbd_request_drop_buffer(NbdRequest *request);

/* Back to the free list; the connection's count and budget go down. May free the connection. */
void nbd_request_free(NbdRequest *request);

/* Frees a worker's free list. [main] */
void nbd_request_free_spare(NbdLocal *local);

/* Bytes of the descriptors of an answer to BLOCK_STATUS, max of each of the contexts. */
uint32_t reply_status_size(const Conn *conn, MetaContexts contexts, unsigned max);

/* Makes the reply from request->request.result and extents. */
void reply_make(NbdRequest *request);

/* Makes an error reply; text is a literal, shown to the user of a client that speaks structured
 * replies. */
void reply_make_error(NbdRequest *request, uint32_t nbd_error, const char *text);

/* Makes a reply of the first length bytes of the request's buffer (handshake). */
void reply_make_bytes(NbdRequest *request, uint32_t length);

#endif
