/*
 * A node: a box of the graph that takes requests. A disk, or a filter before one.
 */
#ifndef GRAPH_NODE_H
#define GRAPH_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/request.h"

typedef struct Node Node;

typedef struct NodeOps {
    void (*submit)(Node *node, Request *request);
} NodeOps;

struct Node {
    const NodeOps *ops;
    _Atomic uint64_t size; /* bytes; changes by REQUEST_RESIZE only */
    bool read_only;
    uint32_t block_minimum, block_preferred, block_maximum; /* bytes, as NBD_INFO_BLOCK_SIZE */
};

/* Starts the request; request->done comes on the same worker, perhaps inside this call. [worker] */
static inline void node_submit(Node *node, Request *request)
{
    node->ops->submit(node, request);
}

#endif
