/*
 * qcow2: L1 and L2 tables, and map.
 *
 *     guest offset: | L1 index | L2 index (cluster_bits - 3 bits) | in the cluster (cluster_bits) |
 *
 *     L1 entry:  63 COPIED            55..9 offset of the L2 table
 *     L2 entry:  63 COPIED  62 COMPRESSED  55..9 host offset  0 reads as zeroes (version 3)
 *     extended:  the same without bit 0, and behind it a bitmap (qcow2-subcluster.c)
 *     compressed:            62  61..x  number of additional sectors  x-1..0 host offset, any byte;
 *                            x = 62 - (cluster_bits - 8)
 *
 * L1 lies in memory, L2 tables are read in pieces through the metacache. map runs beside other maps
 * and beside flush, which change neither.
 */
#include "formats/qcow2.h"

#include "base/log.h"
#include "formats/inflate.h"

#define MAP_EXTENTS_MAX 256 /* of one answer: enough to merge, little enough to keep lists short */
#define COUNT_MAX       (UINT64_C(1) << 24) /* counted to tell whether an image is sparse */

/* One answer in the making. */
typedef struct Mapping {
    Image *image;
    ExtentList *list;
    uint64_t offset, end; /* guest; what is still to be answered */
    unsigned first;       /* list->count before we began */
} Mapping;

uint32_t qcow2_compressed_offset_bits(const Qcow2State *s)
{
    return 62 - (s->cluster_bits - 8);
}

static Qcow2Cluster decode_compressed(const Qcow2State *s, uint64_t entry)
{
    uint64_t bits = qcow2_compressed_offset_bits(s);
    uint64_t host = entry & ((UINT64_C(1) << bits) - 1);
    uint64_t sectors = ((entry & ~(QCOW2_COMPRESSED | QCOW2_COPIED)) >> bits) + 1;
    if (host >= QCOW2_MAX_HOST_OFFSET || host == 0) {
        return (Qcow2Cluster){.type = QCOW2_CLUSTER_DAMAGED};
    }
    return (Qcow2Cluster){
        .type = QCOW2_CLUSTER_COMPRESSED,
        .host = host,
        .stored_length = sectors * 512 - host % 512,
    };
}

Qcow2Cluster qcow2_l2_decode(const Qcow2State *s, Qcow2Entry entry)
{
    const Qcow2Cluster damaged = {.type = QCOW2_CLUSTER_DAMAGED};
    if (entry.word & QCOW2_COMPRESSED) {
        return entry.bitmap == 0 && !s->external ? decode_compressed(s, entry.word) : damaged;
    }
    Qcow2Cluster cluster = {
        .host = entry.word & QCOW2_OFFSET_MASK,
        .copied = entry.word & QCOW2_COPIED,
        .allocated = entry.bitmap,
        .zero = entry.bitmap >> QCOW2_SUBCLUSTERS,
    };
    cluster.placed = cluster.host != 0 || (s->external && cluster.copied);
    cluster.copied |= s->external && cluster.placed;
    bool zero = s->extended ? cluster.allocated == 0 && cluster.zero != 0 : entry.word & QCOW2_ZERO;
    if ((entry.word & qcow2_l2_reserved(s)) || cluster.host % s->cluster_size != 0 ||
        (cluster.allocated & cluster.zero) || (cluster.allocated && !cluster.placed)) {
        return damaged;
    }
    if (!cluster.placed) {
        cluster.type = zero ? QCOW2_CLUSTER_ZERO : QCOW2_CLUSTER_UNALLOCATED;
        cluster.copied = false;
    } else {
        zero |= s->extended && cluster.allocated == 0; /* a kept place, wherever it reads from */
        cluster.type = zero ? QCOW2_CLUSTER_ZERO_ALLOC : QCOW2_CLUSTER_DATA;
    }
    return cluster;
}

Qcow2Run qcow2_cluster_run(const Qcow2State *s, const Qcow2Cluster *cluster)
{
    uint64_t length = 0;
    if (s->external) {
        return (Qcow2Run){0, 0};
    }
    switch (cluster->type) {
    case QCOW2_CLUSTER_ZERO_ALLOC:
    case QCOW2_CLUSTER_DATA:
        length = s->cluster_size;
        break;
    case QCOW2_CLUSTER_COMPRESSED:
        length = cluster->stored_length;
        break;
    default:
        return (Qcow2Run){0, 0};
    }
    uint64_t first = cluster->host >> s->cluster_bits;
    uint64_t last = (cluster->host + length - 1) >> s->cluster_bits;
    return (Qcow2Run){first, last - first + 1};
}

bool qcow2_table_offset_ok(const Image *image, uint64_t offset, uint64_t clusters)
{
    const Qcow2State *s = image->state;
    uint64_t end = align_up(store_size(image->store), s->cluster_size);
    return offset != 0 && offset % s->cluster_size == 0 &&
           range_within(offset, clusters * s->cluster_size, end);
}

int qcow2_l2_offset(Image *image, uint64_t l1_index, uint64_t *offset)
{
    const Qcow2State *s = image->state;
    uint64_t entry = s->l1[l1_index];
    *offset = entry & QCOW2_OFFSET_MASK;
    if ((entry & QCOW2_L1_RESERVED) == 0 && *offset == 0) {
        return 0;
    }
    if ((entry & QCOW2_L1_RESERVED) || !qcow2_table_offset_ok(image, *offset, 1) ||
        ranges_overlap(*offset, s->cluster_size, s->header.l1_table_offset,
                       (uint64_t)s->l1_size * 8) ||
        ranges_overlap(*offset, s->cluster_size, s->table_offset, s->table_entries * 8)) {
        return qcow2_corrupt(image,
                             "L1 entry %" PRIu64 " is 0x%" PRIx64
                             ": must be the aligned offset of a table inside the file",
                             l1_index, entry);
    }
    return 0;
}

/* The offset of the metacache block that holds an entry; *first is the index of the block's first
 * entry. */
static uint64_t l2_piece(const Qcow2State *s, uint64_t l2_offset, uint64_t index, uint64_t *first)
{
    uint64_t per_piece = qcow2_entries_per_piece(s);
    *first = index - index % per_piece;
    return l2_offset + *first * s->entry_size;
}

int qcow2_l2_get(Image *image, uint64_t l2_offset, uint64_t index, MetaBlock **block,
                 uint64_t *first)
{
    Qcow2State *s = image->state;
    int r = metacache_get(s->meta, l2_piece(s, l2_offset, index, first), block);
    if (r < 0) {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot read the L2 table at %" PRIu64 ": %s", image->path,
                    l2_offset, g_strerror(-r));
    }
    return r;
}

static void add(Mapping *m, Extent extent, uint64_t length)
{
    extent.offset = m->offset;
    extent.length = length;
    extent.image = m->image;
    if (extent.type == EXTENT_DATA || extent.type == EXTENT_ENCODED ||
        (extent.flags & EXTENT_HAS_HOST)) {
        extent.store = qcow2_data_store(m->image);
    }
    extent_list_add(m->list, &extent);
    m->offset += length;
}

/* Whether more clusters are in use than the host has space for: then data was preallocated, and a
 * report may look for holes of the file. The rule is qemu's, so that both report the same map. */
static bool count_is_sparse(Image *image)
{
    Qcow2State *s = image->state;
    uint64_t real = store_allocated_bytes(image->store) >> s->cluster_bits;
    uint64_t end = div_round_up(store_size(image->store), s->cluster_size), used = 0, cluster = 0;
    uint64_t enough = max_u64(real * 10 / 9, real + 2);
    end = min_u64(end, min_u64(s->table_count << s->block_bits, COUNT_MAX));
    if (end < enough) {
        return false; /* nearly always: the file has its space, and no refcount need be read */
    }
    while (cluster < end && used < enough) {
        Qcow2Piece piece;
        if (qcow2_piece_get(image, cluster, &piece) < 0) {
            return false;
        }
        uint64_t piece_end = min_u64(piece.end, end);
        for (; piece.block != NULL && cluster < piece_end; cluster++) {
            used += qcow2_piece_load(s, &piece, cluster) != 0;
        }
        cluster = piece_end;
        qcow2_piece_put(s, &piece);
    }
    return used >= enough;
}

/* Asked of what is read-only alone: counted once, when the first data is mapped. */
static bool is_sparse(Image *image)
{
    Qcow2State *s = image->state;
    if (image->write) {
        return false;
    }
    if (s->sparse == QCOW2_SPARSE_UNKNOWN) { /* two threads may count at once, and find the same */
        s->sparse = count_is_sparse(image) ? QCOW2_SPARSE : QCOW2_NOT_SPARSE;
    }
    return s->sparse == QCOW2_SPARSE;
}

/* DATA of `length` bytes from host on. The file may end inside the last cluster, and reads as
 * zeroes there. */
static int add_data(Mapping *m, uint64_t host, uint64_t length, bool copied)
{
    const Qcow2State *s = m->image->state;
    uint64_t size = align_up(store_size(qcow2_data_store(m->image)), s->cluster_size);
    uint64_t there = host < size ? min_u64(length, size - host) : 0;
    bool writable = copied && m->image->write && !s->corrupt;
    Qcow2Run run = {host >> s->cluster_bits,
                    div_round_up(length + host % s->cluster_size, s->cluster_size)};
    if (writable && !s->external && qcow2_overlaps_metadata(m->image, run)) {
        return qcow2_corrupt(m->image,
                             "guest offset %" PRIu64 " lies at %" PRIu64 ", on top of metadata",
                             m->offset, host);
    }
    if (there > 0) {
        Extent extent = {.type = EXTENT_DATA,
                         .host_offset = host,
                         .flags = (writable ? EXTENT_WRITABLE : 0) |
                                  (s->external || is_sparse(m->image) ? EXTENT_SPARSE : 0)};
        add(m, extent, there);
    }
    if (there < length) {
        return qcow2_corrupt(m->image,
                             "guest offset %" PRIu64 " lies at %" PRIu64
                             ", behind the end of the file (%" PRIu64 ")",
                             m->offset, host + there, size);
    }
    return 0;
}

static int add_compressed(Mapping *m, const Qcow2Cluster *cluster, uint64_t length)
{
    const Qcow2State *s = m->image->state;
    uint64_t size = store_size(m->image->store);
    if (cluster->host >= size) {
        return qcow2_corrupt(m->image,
                             "guest offset %" PRIu64 " lies compressed at %" PRIu64
                             ", behind the end of the file (%" PRIu64 ")",
                             m->offset, cluster->host, size);
    }
    Extent extent = {
        .type = EXTENT_ENCODED,
        .host_offset = cluster->host,
        .stored_length = min_u64(cluster->stored_length, size - cluster->host),
        .unit_offset = m->offset % s->cluster_size,
        .unit_length = s->cluster_size,
    };
    add(m, extent, length);
    return 0;
}

/* Adds `length` bytes of one state, of one run of entries that begins with *cluster. */
static int add_run(Mapping *m, const Qcow2Cluster *cluster, Qcow2ClusterType type, uint64_t length)
{
    const Qcow2State *s = m->image->state;
    uint64_t host = cluster->host + m->offset % s->cluster_size;
    switch (type) {
    case QCOW2_CLUSTER_UNALLOCATED:
        add(m, (Extent){.type = EXTENT_UNALLOCATED}, length);
        return 0;
    case QCOW2_CLUSTER_ZERO:
        add(m, (Extent){.type = EXTENT_ZERO}, length);
        return 0;
    case QCOW2_CLUSTER_ZERO_ALLOC: {
        Extent extent = {.type = EXTENT_ZERO};
        if (range_within(host, length, store_size(qcow2_data_store(m->image)))) {
            extent.host_offset = host;
            extent.flags = EXTENT_HAS_HOST;
        }
        add(m, extent, length);
        return 0;
    }
    case QCOW2_CLUSTER_DATA:
        return add_data(m, host, length, cluster->copied);
    default:
        return add_compressed(m, cluster, length);
    }
}

/* Adds what the parts of one cluster answer. */
static int add_parts(Mapping *m, const Qcow2Cluster *cluster)
{
    const Qcow2State *s = m->image->state;
    uint64_t start = align_down(m->offset, s->cluster_size);
    uint64_t end = min_u64(m->end, start + s->cluster_size);
    int r = 0;
    while (r == 0 && m->offset < end) {
        unsigned index = (m->offset - start) / s->unit;
        unsigned run = qcow2_subcluster_run(cluster, index, QCOW2_SUBCLUSTERS);
        uint64_t run_end = min_u64(end, start + (index + run) * s->unit);
        r = add_run(m, cluster, qcow2_subcluster_type(s, cluster, index), run_end - m->offset);
    }
    return r;
}

/* Cut by subclusters: each entry is answered on its own. */
static bool has_parts(const Qcow2Cluster *cluster)
{
    return (cluster->allocated != 0 && cluster->allocated != QCOW2_SUBCLUSTERS_ALL) ||
           (cluster->zero != 0 && cluster->zero != QCOW2_SUBCLUSTERS_ALL);
}

/* True when b is what follows a, n clusters further on, in one run. */
static bool continues(const Qcow2State *s, const Qcow2Cluster *a, const Qcow2Cluster *b, uint64_t n)
{
    if (a->type != b->type || a->copied != b->copied || a->type == QCOW2_CLUSTER_COMPRESSED ||
        a->allocated != b->allocated || a->zero != b->zero) {
        return false;
    }
    return !a->placed || b->host == a->host + n * s->cluster_size;
}

/* Answers from one piece of an L2 table, up to its end. */
static int map_piece(Mapping *m, const MetaBlock *block, uint64_t first)
{
    const Qcow2State *s = m->image->state;
    uint64_t l2_mask = (UINT64_C(1) << s->l2_bits) - 1;
    uint64_t i = ((m->offset >> s->cluster_bits) & l2_mask) - first, n = qcow2_entries_per_piece(s);
    while (i < n && m->offset < m->end && m->list->count - m->first < MAP_EXTENTS_MAX) {
        Qcow2Entry entry = qcow2_entry_load(s, block->data, i);
        Qcow2Cluster cluster = qcow2_l2_decode(s, entry);
        if (cluster.type == QCOW2_CLUSTER_DAMAGED || qcow2_is_misplaced(s, &cluster, m->offset)) {
            return qcow2_entry_damaged(m->image, m->offset, entry);
        }
        uint64_t run = 1, start = align_down(m->offset, s->cluster_size);
        while (!has_parts(&cluster) && i + run < n && start + (run << s->cluster_bits) < m->end) {
            Qcow2Cluster next = qcow2_l2_decode(s, qcow2_entry_load(s, block->data, i + run));
            if (!continues(s, &cluster, &next, run)) {
                break;
            }
            run++;
        }
        uint64_t run_end = min_u64(m->end, start + (run << s->cluster_bits));
        int r = has_parts(&cluster) ? add_parts(m, &cluster)
                                    : add_run(m, &cluster, qcow2_subcluster_type(s, &cluster, 0),
                                              run_end - m->offset);
        if (r < 0) {
            return r;
        }
        i += run;
    }
    return 0;
}

/* Answers up to the end of a piece of an L2 table, or of the span of an L1 entry without one. */
static int map_some(Mapping *m)
{
    Qcow2State *s = m->image->state;
    uint32_t span_bits = s->cluster_bits + s->l2_bits;
    uint64_t l1_index = m->offset >> span_bits, l2_offset;
    int r = qcow2_l2_offset(m->image, l1_index, &l2_offset);
    if (r < 0) {
        return r;
    }
    if (l2_offset == 0) {
        uint64_t left = (UINT64_C(1) << span_bits) - (m->offset & ((UINT64_C(1) << span_bits) - 1));
        add(m, (Extent){.type = EXTENT_UNALLOCATED}, min_u64(left, m->end - m->offset));
        return 0;
    }
    uint64_t index = (m->offset >> s->cluster_bits) & ((UINT64_C(1) << s->l2_bits) - 1), first;
    MetaBlock *block;
    if (m->list->count > m->first) { /* an answer is there: more must not cost a read */
        r = metacache_get_cached(s->meta, l2_piece(s, l2_offset, index, &first), &block);
    } else {
        r = qcow2_l2_get(m->image, l2_offset, index, &block, &first);
    }
    if (r == 0) {
        r = map_piece(m, block, first);
        metacache_put(s->meta, block);
    }
    return r;
}

int qcow2_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    Mapping m = {image, list, offset, offset + length, list->count};
    int r = 0;
    while (r == 0 && m.offset < m.end && list->count - m.first < MAP_EXTENTS_MAX) {
        r = map_some(&m);
    }
    /* What was answered before an error is true; whoever asks for the rest gets the error. */
    return m.offset > offset ? 0 : r;
}

int qcow2_decode(Image *image, const Extent *extent, const uint8_t *stored, size_t stored_length,
                 uint8_t *unit)
{
    const Qcow2State *s = image->state;
    int r;
    if (s->header.compression_type == QCOW2_COMPRESSION_ZSTD) {
        r = inflate_unit_zstd(stored, stored_length, unit, extent->unit_length);
    } else {
        r = inflate_unit(stored, stored_length, unit, extent->unit_length, -12);
    }
    if (r < 0) {
        log_limited(LOG_LEVEL_ERROR,
                    "%s: the compressed cluster at host offset %" PRIu64 " cannot be unpacked",
                    image->path, extent->host_offset);
    }
    return r;
}
