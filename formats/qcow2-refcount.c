/*
 * qcow2: refcounts.
 *
 *     refcount table (in memory) -> refcount block (one cluster) -> refcounts of 1 to 64 bits
 *
 * A block describes a *region* of 2^block_bits clusters. Blocks are read and changed in pieces
 * through the metacache, in order META_FIRST: a refcount that rises is durable before a table
 * points to the cluster, and one that falls is only lowered here after no table on the disk points
 * to it (ARCHITECTURE, what a crash may do, rule 2).
 *
 * A new block is put into its own region, where everything is free by definition, so it describes
 * itself and making one never needs another. The table entry is written by flush after the block is
 * durable.
 */
#include "formats/qcow2.h"

#include "base/errors.h"
#include "base/log.h"

#define TABLE_READ_CHUNK 8192 /* entries */

uint64_t qcow2_refcount_load(const uint8_t *block, uint64_t index, uint32_t refcount_order)
{
    switch (refcount_order) {
    case 0:
    case 1:
    case 2: {
        uint64_t bit = index << refcount_order;
        uint32_t mask = (1u << (1u << refcount_order)) - 1;
        return (block[bit / 8] >> (bit % 8)) & mask;
    }
    case 3:
        return block[index];
    case 4:
        return load_be16(block + index * 2);
    case 5:
        return load_be32(block + index * 4);
    default:
        return load_be64(block + index * 8);
    }
}

void qcow2_refcount_store(uint8_t *block, uint64_t index, uint32_t refcount_order, uint64_t value)
{
    switch (refcount_order) {
    case 0:
    case 1:
    case 2: {
        uint64_t bit = index << refcount_order;
        uint32_t mask = (1u << (1u << refcount_order)) - 1;
        uint8_t *byte = block + bit / 8;
        *byte = (*byte & ~(mask << (bit % 8))) | (value & mask) << (bit % 8);
        return;
    }
    case 3:
        block[index] = value;
        return;
    case 4:
        store_be16(block + index * 2, value);
        return;
    case 5:
        store_be32(block + index * 4, value);
        return;
    default:
        store_be64(block + index * 8, value);
        return;
    }
}

bool qcow2_refcount_table_read(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    uint64_t entries = s->header.refcount_table_clusters * (s->cluster_size / 8);
    g_autofree uint8_t *chunk = g_malloc(TABLE_READ_CHUNK * 8);
    g_free(s->table);
    s->table = NULL;
    s->table_count = 0;
    s->table_entries = entries;
    s->table_offset = s->header.refcount_table_offset;
    for (uint64_t at = 0; at < entries; at += TABLE_READ_CHUNK) {
        uint64_t n = min_u64(TABLE_READ_CHUNK, entries - at);
        int r = store_read(image->store, chunk, n * 8, s->table_offset + at * 8);
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot read the refcount table", image->path);
        }
        while (n > 0 && load_be64(chunk + (n - 1) * 8) == 0) {
            n--; /* only what is there is kept: the table of a small image is nearly empty */
        }
        if (n > 0 && !qcow2_table_reserve(s, at + n)) {
            return error_set_errno(error, ENOMEM, "%s: refcount table", image->path);
        }
        for (uint64_t i = 0; i < n; i++) {
            s->table[at + i] = load_be64(chunk + i * 8);
        }
    }
    return true;
}

bool qcow2_table_reserve(Qcow2State *s, uint64_t count)
{
    if (count <= s->table_count) {
        return true;
    }
    uint64_t *table = g_try_realloc_n(s->table, count, 8);
    if (table == NULL) {
        return false;
    }
    memset(table + s->table_count, 0, (count - s->table_count) * 8);
    s->table = table;
    s->table_count = count;
    return true;
}

/* Where the block of a region lies (0: there is none), checked. */
static int block_offset(Image *image, uint64_t region, uint64_t *offset)
{
    const Qcow2State *s = image->state;
    *offset = region < s->table_count ? s->table[region] : 0;
    if (*offset == 0) {
        return 0;
    }
    if (!qcow2_table_offset_ok(image, *offset, 1) ||
        ranges_overlap(*offset, s->cluster_size, s->header.l1_table_offset,
                       (uint64_t)s->l1_size * 8) ||
        ranges_overlap(*offset, s->cluster_size, s->table_offset, s->table_entries * 8)) {
        return qcow2_corrupt(image,
                             "refcount table entry %" PRIu64 " is 0x%" PRIx64
                             ": must be the aligned offset of a block inside the file",
                             region, *offset);
    }
    return 0;
}

int qcow2_piece_get(Image *image, uint64_t cluster, Qcow2Piece *piece)
{
    Qcow2State *s = image->state;
    uint64_t region = cluster >> s->block_bits, offset;
    *piece = (Qcow2Piece){.first = region << s->block_bits, .end = (region + 1) << s->block_bits};
    int r = block_offset(image, region, &offset);
    if (r < 0 || offset == 0) {
        return r;
    }
    uint64_t per_piece = ((uint64_t)s->meta_size * 8) >> s->refcount_order;
    uint64_t index = (cluster - piece->first) / per_piece;
    r = metacache_get(s->meta, offset + index * s->meta_size, &piece->block);
    if (r < 0) {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot read the refcount block at %" PRIu64 ": %s",
                    image->path, offset, g_strerror(-r));
        return r;
    }
    piece->first += index * per_piece;
    piece->end = piece->first + per_piece;
    return 0;
}

void qcow2_piece_put(Qcow2State *s, Qcow2Piece *piece)
{
    if (piece->block != NULL) {
        metacache_put(s->meta, piece->block);
        piece->block = NULL;
    }
}

uint64_t qcow2_piece_load(const Qcow2State *s, const Qcow2Piece *piece, uint64_t cluster)
{
    if (piece->block == NULL) {
        return 0;
    }
    return qcow2_refcount_load(piece->block->data, cluster - piece->first, s->refcount_order);
}

void qcow2_piece_store(Qcow2State *s, Qcow2Piece *piece, uint64_t cluster, uint64_t refcount)
{
    qcow2_refcount_store(piece->block->data, cluster - piece->first, s->refcount_order, refcount);
    metacache_dirty(s->meta, piece->block, META_FIRST);
}

int qcow2_refcount_get(Image *image, uint64_t cluster, uint64_t *refcount)
{
    Qcow2Piece piece;
    int r = qcow2_piece_get(image, cluster, &piece);
    if (r == 0) {
        *refcount = qcow2_piece_load(image->state, &piece, cluster);
        qcow2_piece_put(image->state, &piece);
    }
    return r;
}

/* Makes a free cluster, whose refcount is or will be 1, the block of a region. */
int qcow2_refcount_link_block(Image *image, uint64_t region, uint64_t cluster, bool fresh)
{
    Qcow2State *s = image->state;
    uint64_t offset = cluster << s->cluster_bits;
    int r = fresh ? 0 : qcow2_write_zeroes(image, offset);
    if (r < 0) {
        return r;
    }
    if (!qcow2_table_reserve(s, region + 1)) {
        return -ENOMEM;
    }
    s->table[region] = offset;
    g_hash_table_add(s->table_dirty, GSIZE_TO_POINTER(region / QCOW2_SECTOR_ENTRIES));
    qcow2_metadata_add(s, cluster);
    return 0;
}

int qcow2_refcount_need_block(Image *image, uint64_t at, bool *made)
{
    Qcow2State *s = image->state;
    uint64_t region = at >> s->block_bits;
    *made = !(region < s->table_count && s->table[region] != 0);
    if (!*made) {
        return 0;
    }
    if (region >= s->table_entries) {
        return qcow2_table_grow(image, region);
    }
    Qcow2Run run = {at, 1};
    bool fresh;
    int r = qcow2_space_prepare(image, run, &fresh);
    if (r == 0) {
        r = qcow2_refcount_link_block(image, region, at, fresh);
    }
    if (r < 0) {
        return r;
    }
    r = qcow2_refcount_raise(image, run);
    if (r < 0) { /* a block that does not count itself must not stay */
        s->table[region] = 0;
        qcow2_metadata_remove(s, at);
        return r;
    }
    qcow2_space_used(s, run);
    return 0;
}

int qcow2_refcount_set(Image *image, uint64_t cluster, uint64_t refcount)
{
    Qcow2State *s = image->state;
    if (refcount > s->refcount_max) {
        log_limited(LOG_LEVEL_ERROR,
                    "%s: cluster %" PRIu64 " cannot have %" PRIu64
                    " references: refcounts have %u bits",
                    image->path, cluster, refcount, 1u << s->refcount_order);
        return -ERANGE;
    }
    Qcow2Piece piece;
    int r = qcow2_piece_get(image, cluster, &piece);
    if (r < 0 || piece.block == NULL) {
        return r < 0 || refcount == 0 ? r : -ENOENT;
    }
    qcow2_piece_store(s, &piece, cluster, refcount);
    qcow2_piece_put(s, &piece);
    if (refcount == 0) {
        qcow2_space_freed(s, cluster);
    } else {
        qcow2_space_used(s, (Qcow2Run){cluster, 1});
    }
    qcow2_update_dirty(s);
    return 0;
}

int qcow2_refcount_raise(Image *image, Qcow2Run run)
{
    Qcow2State *s = image->state;
    uint64_t end = run.first + run.count;
    for (uint64_t cluster = run.first; cluster < end;) {
        Qcow2Piece piece;
        int r = qcow2_piece_get(image, cluster, &piece);
        if (r < 0 || piece.block == NULL) {
            qcow2_alloc_return(image, (Qcow2Run){run.first, cluster - run.first});
            return r < 0 ? r : -EIO;
        }
        for (; cluster < min_u64(end, piece.end); cluster++) {
            qcow2_piece_store(s, &piece, cluster, 1);
        }
        qcow2_piece_put(s, &piece);
    }
    return 0;
}

/* Whether a cluster may have one reference more. */
static int check_add(Image *image, uint64_t cluster, uint64_t refcount)
{
    const Qcow2State *s = image->state;
    if (refcount == 0) {
        return qcow2_corrupt(image, "cluster %" PRIu64 " is in use with a refcount of 0", cluster);
    }
    return refcount < s->refcount_max ? 0 : -ERANGE;
}

int qcow2_refcount_add(Image *image, Qcow2Run run, uint64_t *done)
{
    Qcow2State *s = image->state;
    uint64_t end = run.first + run.count;
    *done = 0;
    while (*done < run.count) {
        Qcow2Piece piece;
        uint64_t cluster = run.first + *done;
        int r = qcow2_piece_get(image, cluster, &piece);
        for (; r == 0 && cluster < min_u64(end, piece.end); cluster++) {
            uint64_t refcount = qcow2_piece_load(s, &piece, cluster);
            r = check_add(image, cluster, refcount);
            if (r == 0) {
                qcow2_piece_store(s, &piece, cluster, refcount + 1);
                (*done)++;
            }
        }
        qcow2_piece_put(s, &piece);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

/* Whether a cluster may lose one of its references. */
static int check_drop(Image *image, uint64_t cluster, uint64_t refcount)
{
    if (refcount == 0) {
        return qcow2_corrupt(image, "cluster %" PRIu64 " was in use with a refcount of 0", cluster);
    }
    /* An entry that lay on top of metadata is gone; the metadata must not go with it. */
    if (refcount == 1 && qcow2_overlaps_metadata(image, (Qcow2Run){cluster, 1})) {
        return qcow2_corrupt(image, "cluster %" PRIu64 " was in use as data, but holds metadata",
                             cluster);
    }
    return 0;
}

int qcow2_refcount_drop(Image *image, Qcow2Run run, uint64_t *done, GArray *zeroed)
{
    Qcow2State *s = image->state;
    uint64_t end = run.first + run.count;
    *done = 0;
    while (*done < run.count) {
        Qcow2Piece piece;
        uint64_t cluster = run.first + *done;
        int r = qcow2_piece_get(image, cluster, &piece);
        if (r < 0) {
            return r;
        }
        for (; cluster < min_u64(end, piece.end); cluster++, (*done)++) {
            uint64_t refcount = qcow2_piece_load(s, &piece, cluster);
            r = check_drop(image, cluster, refcount);
            if (r < 0) {
                qcow2_piece_put(s, &piece);
                return r;
            }
            qcow2_piece_store(s, &piece, cluster, refcount - 1);
            if (refcount == 1) {
                qcow2_space_freed(s, cluster);
                qcow2_run_append(zeroed, (Qcow2Run){cluster, 1});
            }
        }
        qcow2_piece_put(s, &piece);
    }
    return 0;
}
