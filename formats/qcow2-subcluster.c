/*
 * qcow2: subclusters.
 *
 * An extended L2 entry has 16 bytes: the word of every entry, and a bitmap of the 32 parts of its cluster.
 *
 *     word    63 COPIED  62 COMPRESSED  55..9 host offset of the cluster
 *     bitmap  63..32 reads as zeroes (bit 32 + n: part n)    31..0 allocated (bit n: part n)
 *
 *     allocated  zero   the part
 *         0       0     is not in this image, also where the cluster has a place
 *         0       1     reads as zeroes
 *         1       0     lies in the cluster, at its own distance from the cluster's start
 *         1       1     cannot be; nor can an allocated part of a cluster without a place
 *
 * So a small write allocates a part of a cluster, and copies nothing but the edges of that part. Two
 * such writes to one cluster that has no place yet must choose the same one, and it must not be given back
 * while either is under way: until commit or abandon, each has a *claim* to it.
 *
 * Where a cluster is compressed, or holds data in a place that a snapshot shares, a part cannot go
 * elsewhere without the rest: there the unit is the cluster.
 */
#include "formats/qcow2.h"

typedef struct Claim {
    uint64_t host;
    unsigned users;
} Claim;

/* ---- entries ---- */

uint32_t qcow2_subcluster_mask(const Qcow2State *s, uint64_t offset, uint64_t length)
{
    uint64_t in = offset % s->cluster_size;
    unsigned first = in / s->unit, last = (in + length - 1) / s->unit;
    return QCOW2_SUBCLUSTERS_ALL >> (QCOW2_SUBCLUSTERS - 1 - last) & QCOW2_SUBCLUSTERS_ALL << first;
}

Qcow2ClusterType qcow2_subcluster_type(const Qcow2State *s, const Qcow2Cluster *cluster,
                                       unsigned index)
{
    if (!s->extended || cluster->type == QCOW2_CLUSTER_COMPRESSED) {
        return cluster->type;
    }
    if (cluster->allocated >> index & 1) {
        return QCOW2_CLUSTER_DATA;
    }
    if (cluster->zero >> index & 1) {
        return cluster->placed ? QCOW2_CLUSTER_ZERO_ALLOC : QCOW2_CLUSTER_ZERO;
    }
    return QCOW2_CLUSTER_UNALLOCATED;
}

unsigned qcow2_subcluster_run(const Qcow2Cluster *cluster, unsigned index, unsigned end)
{
    unsigned run = 1;
    uint32_t allocated = cluster->allocated >> index, zero = cluster->zero >> index;
    while (index + run < end && (allocated >> run & 1) == (allocated & 1) &&
           (zero >> run & 1) == (zero & 1)) {
        run++;
    }
    return run;
}

uint64_t qcow2_subcluster_bitmap(uint32_t allocated, uint32_t zero)
{
    return (uint64_t)zero << QCOW2_SUBCLUSTERS | allocated;
}

/* ---- what is the unit ---- */

bool qcow2_is_indivisible(const Qcow2State *s, const Qcow2Cluster *cluster)
{
    return s->extended && (cluster->type == QCOW2_CLUSTER_COMPRESSED ||
                           (cluster->allocated != 0 && !cluster->copied));
}

int qcow2_unit_at(Image *image, uint64_t offset, uint64_t *unit)
{
    const Qcow2State *s = image->state;
    *unit = s->unit;
    if (!s->extended) {
        return 0;
    }
    Qcow2Cursor cursor;
    Qcow2Cluster cluster;
    qcow2_cursor_init(&cursor, image);
    int r = qcow2_cursor_get(&cursor, offset, &cluster);
    qcow2_cursor_release(&cursor);
    if (r == 0 && qcow2_is_indivisible(s, &cluster)) {
        *unit = s->cluster_size;
    }
    return r;
}

/* ---- claims ---- */

static Claim *find_claim(const Qcow2State *s, uint64_t offset)
{
    return g_hash_table_lookup(s->claims, GSIZE_TO_POINTER(offset >> s->cluster_bits));
}

bool qcow2_claimed(const Qcow2State *s, uint64_t offset, uint64_t *host)
{
    const Claim *claim = find_claim(s, offset);
    *host = claim != NULL ? claim->host : 0;
    return claim != NULL;
}

void qcow2_claim(Qcow2State *s, uint64_t offset, uint64_t host)
{
    Claim *claim = find_claim(s, offset);
    if (claim == NULL) {
        claim = g_new0(Claim, 1);
        claim->host = host;
        g_hash_table_insert(s->claims, GSIZE_TO_POINTER(offset >> s->cluster_bits), claim);
    }
    claim->users++;
}

bool qcow2_unclaim(Qcow2State *s, uint64_t offset)
{
    Claim *claim = find_claim(s, offset);
    if (claim != NULL && --claim->users > 0) {
        return true;
    }
    g_hash_table_remove(s->claims, GSIZE_TO_POINTER(offset >> s->cluster_bits));
    return false;
}
