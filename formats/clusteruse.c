/*
 * Who uses which cluster of a file.
 *
 * What must stay true: the memory is bounded, whatever size a sparse file claims.
 */
#include "formats/clusteruse.h"

#include <inttypes.h>

#include "base/bytes.h"
#include "base/errors.h"

#define BITS_MAX (UINT64_C(1) << 27) /* clusters of the file: 16 MiB for each of the two */

static bool bit_get(const uint8_t *bits, uint64_t at)
{
    return bits[at / 8] & (1 << at % 8);
}

static void bit_set(uint8_t *bits, uint64_t at)
{
    bits[at / 8] |= 1 << at % 8;
}

bool cluster_use_init(ClusterUse *use, Store *store, uint32_t cluster_bits, GError **error)
{
    *use = (ClusterUse){.cluster_bits = cluster_bits};
    use->clusters = div_round_up(store_size(store), UINT64_C(1) << cluster_bits);
    if (use->clusters > BITS_MAX) {
        return error_set(error, EFBIG,
                         "%s: the file has %" PRIu64 " clusters: at most %" PRIu64
                         " can be looked through",
                         store->name, use->clusters, BITS_MAX);
    }
    use->used = g_try_malloc0(use->clusters / 8 + 1);
    use->packed = g_try_malloc0(use->clusters / 8 + 1);
    if (!use->used || !use->packed) {
        cluster_use_clear(use);
        return error_set_errno(error, ENOMEM, "%s: cannot look through the image", store->name);
    }
    return true;
}

void cluster_use_clear(ClusterUse *use)
{
    g_clear_pointer(&use->used, g_free);
    g_clear_pointer(&use->packed, g_free);
}

static void take(ClusterUse *use, uint64_t first, uint64_t last, bool packed)
{
    for (uint64_t at = first; at <= last; at++) {
        if (packed && !bit_get(use->used, at)) {
            bit_set(use->packed, at);
        }
        bit_set(use->used, at);
    }
    use->end = max_u64(use->end, last + 1);
}

bool cluster_use_take(ClusterUse *use, uint64_t offset, uint64_t length, bool packed)
{
    uint64_t first = offset >> use->cluster_bits;
    uint64_t last = (offset + length - 1) >> use->cluster_bits;
    for (uint64_t at = first; at <= last; at++) {
        if (at >= use->clusters ||
            (bit_get(use->used, at) && !(packed && bit_get(use->packed, at)))) {
            return false;
        }
    }
    take(use, first, last, packed);
    return true;
}

void cluster_use_take_head(ClusterUse *use, uint64_t offset, uint64_t length)
{
    take(use, offset >> use->cluster_bits, (offset + length - 1) >> use->cluster_bits, false);
}

uint64_t cluster_use_unused(const ClusterUse *use)
{
    uint64_t unused = 0;
    for (uint64_t at = 0; at < use->end; at++) {
        unused += !bit_get(use->used, at);
    }
    return unused;
}
