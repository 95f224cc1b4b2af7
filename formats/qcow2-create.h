/*
 * qcow2: what the files of create share. Private to formats/qcow2-create*.c.
 *
 *     qcow2-create-plan.c   the options and the layout; measure
 *     qcow2-create.c        the files written; create_like
 */
#ifndef FORMATS_QCOW2_CREATE_H
#define FORMATS_QCOW2_CREATE_H

#include "formats/qcow2.h"

typedef struct Qcow2Plan {
    unsigned version;
    unsigned cluster_bits;
    unsigned refcount_order;
    bool extended_l2;
    bool lazy_refcounts;
    bool zstd;
    const char *data_file; /* NULL: data goes into the image; the caller's */
    bool data_raw;         /* all of the disk is mapped from the start */
    unsigned crypt_method;
    uint64_t size;
    uint64_t luks_length; /* bytes; 0: there is no LUKS header */

    uint64_t reftable_clusters, refblocks, l1_entries, l1_clusters, l2_clusters, luks_clusters;
    uint64_t clusters; /* all together */
} Qcow2Plan;

/* ---- qcow2-create-plan.c ---- */

/* All but the layout, which needs luks_length. Refuses options that do not go together. */
bool qcow2_plan_make(Qcow2Plan *plan, const FormatCreate *how, GError **error);
void qcow2_plan_layout(Qcow2Plan *plan);

static inline uint64_t plan_cluster_bytes(const Qcow2Plan *plan)
{
    return UINT64_C(1) << plan->cluster_bits;
}

/* log2 of the bytes of an L2 entry. */
static inline unsigned plan_entry_bits(const Qcow2Plan *plan)
{
    return plan->extended_l2 ? 4 : 3;
}

static inline uint64_t plan_refblock_offset(const Qcow2Plan *plan)
{
    return (1 + plan->reftable_clusters) << plan->cluster_bits;
}

static inline uint64_t plan_l1_offset(const Qcow2Plan *plan)
{
    return plan_refblock_offset(plan) + (plan->refblocks << plan->cluster_bits);
}

/* Of a raw data file only: one table for each L1 entry. */
static inline uint64_t plan_l2_offset(const Qcow2Plan *plan)
{
    return plan_l1_offset(plan) + (plan->l1_clusters << plan->cluster_bits);
}

static inline uint64_t plan_luks_offset(const Qcow2Plan *plan)
{
    return plan_l2_offset(plan) + (plan->l2_clusters << plan->cluster_bits);
}

#endif
