/*
 * Who uses which cluster of a file, for formats that do not record it themselves (qcow version 1, qed): two bits a
 * cluster, filled in by going through all tables.
 *
 * One thread at a time; nothing here blocks.
 */
#ifndef FORMATS_CLUSTERUSE_H
#define FORMATS_CLUSTERUSE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

typedef struct ClusterUse {
    uint64_t clusters; /* of the file */
    uint32_t cluster_bits;
    uint8_t *used;   /* a bit a cluster: somebody has it */
    uint8_t *packed; /* a bit a cluster: only compressed ones have it, which may share it */
    uint64_t end;    /* one past the last cluster that is used */
} ClusterUse;

/* Nothing is used. EFBIG where the file claims more clusters than memory is spent on. */
bool cluster_use_init(ClusterUse *use, Store *store, uint32_t cluster_bits, GError **error);
void cluster_use_clear(ClusterUse *use);

/* Takes a range of the file, not empty, for one user; false, and nothing taken, when somebody has any of it already or
 * it is not in the file. packed: a compressed cluster, which shares with others like it. */
bool cluster_use_take(ClusterUse *use, uint64_t offset, uint64_t length, bool packed);

/* The same for parts of the header, which lie close together and may share clusters. The range lies in the file. */
void cluster_use_take_head(ClusterUse *use, uint64_t offset, uint64_t length);

uint64_t cluster_use_unused(const ClusterUse *use); /* clusters below the end */

#endif
