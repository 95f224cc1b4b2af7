/* Requests that a thread waits for: a message to the worker, and a condition. */
#include "engine/request-call.h"

#include <stddef.h>

#include "base/cleanup.h"

/* [worker] */
static void call_done(Request *request)
{
    RequestCall *call = (RequestCall *)((char *)request - offsetof(RequestCall, request));
    with_mutex(&call->lock);
    call->done = true;
    pthread_cond_signal(&call->done_condition);
}

/* [worker] */
static void call_start(WorkerMessage *message)
{
    RequestCall *call = (RequestCall *)((char *)message - offsetof(RequestCall, start));
    node_submit(call->node, &call->request);
}

void request_call_init(RequestCall *call, Node *node, Worker *worker)
{
    request_init(&call->request);
    call->request.worker = worker;
    call->request.done = call_done;
    call->node = node;
    call->start.run = call_start;
    pthread_mutex_init(&call->lock, NULL);
    pthread_cond_init(&call->done_condition, NULL);
}

int request_call(RequestCall *call)
{
    call->done = false;
    worker_post(call->request.worker, &call->start);
    with_mutex(&call->lock);
    while (!call->done) {
        pthread_cond_wait(&call->done_condition, &call->lock);
    }
    return call->request.result;
}

void request_call_clear(RequestCall *call)
{
    request_clear(&call->request);
    pthread_cond_destroy(&call->done_condition);
    pthread_mutex_destroy(&call->lock);
}
