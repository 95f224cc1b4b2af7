/*
 * Requests for a thread that waits for them, one at a time: it is no worker and none of the pool's.
 *
 *     request_call_init -> (fill in type, flags, offset, length, buffer -> request_call)... -> clear
 */
#ifndef ENGINE_REQUEST_CALL_H
#define ENGINE_REQUEST_CALL_H

#include <pthread.h>
#include <stdbool.h>

#include "engine/request.h"
#include "graph/node.h"

typedef struct RequestCall {
    Request request;
    Node *node;
    WorkerMessage start;
    pthread_mutex_t lock;
    pthread_cond_t done_condition;
    bool done; /* lock */
} RequestCall;

/* Of node; the requests run on worker. */
void request_call_init(RequestCall *call, Node *node, Worker *worker);
int request_call(RequestCall *call); /* the request's result. Blocks. */
void request_call_clear(RequestCall *call);

#endif
