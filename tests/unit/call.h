/*
 * A request of a disk that a test makes, and waits for.
 *
 *     call_start -> call_end
 */
#ifndef TESTS_UNIT_CALL_H
#define TESTS_UNIT_CALL_H

#include <stddef.h>

#include "base/worker.h"
#include "engine/disk.h"
#include "engine/request.h"
#include "graph/node.h"
#include "tests/unit/latch.h"

typedef struct Call {
    Request request;
    WorkerMessage message;
    Node *node;
    Latch latch;
} Call;

static inline void call_done(Request *request)
{
    latch_down(&((Call *)((char *)request - offsetof(Call, request)))->latch);
}

static inline void call_submit(WorkerMessage *message)
{
    Call *call = (Call *)((char *)message - offsetof(Call, message));
    node_submit(call->node, &call->request);
}

/* Submits on the worker. */
static inline void call_start(Call *call, Disk *disk, Worker *worker, RequestType type,
                              unsigned flags, uint64_t offset, uint64_t length, void *buffer)
{
    request_init(&call->request);
    call->request.type = type;
    call->request.flags = flags;
    call->request.offset = offset;
    call->request.length = length;
    call->request.buffer = buffer;
    call->request.worker = worker;
    call->request.done = call_done;
    call->node = disk_node(disk);
    call->message.run = call_submit;
    latch_init(&call->latch, 1);
    worker_post(worker, &call->message);
}

/* Waits; what the answer holds is the caller's to clear. */
static inline int call_end(Call *call)
{
    latch_wait(&call->latch);
    return call->request.result;
}

#endif
