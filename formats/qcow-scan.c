/*
 * qcow, version 1: who uses which cluster of the file.
 *
 * Two bits a cluster of the file are kept: somebody has it; and only compressed clusters have it,
 * which may share it among themselves. The memory is bounded, whatever size a sparse file claims.
 */
#include "formats/qcow.h"

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

static bool use_init(QcowUse *use, const Image *image, GError **error)
{
    const QcowState *s = image->state;
    *use = (QcowUse){.cluster_bits = s->header.cluster_bits};
    use->clusters = div_round_up(store_size(image->store), s->cluster_size);
    if (use->clusters > BITS_MAX) {
        return error_set(error, EFBIG,
                         "%s: the file has %" PRIu64 " clusters: at most %" PRIu64
                         " can be looked through",
                         image->path, use->clusters, BITS_MAX);
    }
    use->used = g_try_malloc0(use->clusters / 8 + 1);
    use->packed = g_try_malloc0(use->clusters / 8 + 1);
    if (!use->used || !use->packed) {
        qcow_use_clear(use);
        return error_set_errno(error, ENOMEM, "%s: cannot look through the image", image->path);
    }
    qcow_use_take(use, 0, QCOW_HEADER_SIZE, false);
    return true;
}

void qcow_use_clear(QcowUse *use)
{
    g_clear_pointer(&use->used, g_free);
    g_clear_pointer(&use->packed, g_free);
}

static void take(QcowUse *use, uint64_t first, uint64_t last, bool packed)
{
    for (uint64_t at = first; at <= last; at++) {
        if (packed && !bit_get(use->used, at)) {
            bit_set(use->packed, at);
        }
        bit_set(use->used, at);
    }
    use->end = max_u64(use->end, last + 1);
}

bool qcow_use_take(QcowUse *use, uint64_t offset, uint64_t length, bool packed)
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

uint64_t qcow_use_unused(const QcowUse *use)
{
    uint64_t unused = 0;
    for (uint64_t at = 0; at < use->end; at++) {
        unused += !bit_get(use->used, at);
    }
    return unused;
}

/* Header, name and L1 lie close together, and may share clusters with each other. */
static void take_head(QcowUse *use, const Image *image)
{
    const QcowHeader *header = &qcow_state(image)->header;
    uint64_t l1_bytes = max_u64(header->l1_size * UINT64_C(8), 1);
    take(use, header->l1_offset >> use->cluster_bits,
         (header->l1_offset + l1_bytes - 1) >> use->cluster_bits, false);
    if (image->backing_name) {
        take(use, header->name_offset >> use->cluster_bits,
             (header->name_offset + header->name_size - 1) >> use->cluster_bits, false);
    }
}

static bool refuse(const Image *image, const char *what, uint64_t offset, GError **error)
{
    return error_set(error, EUCLEAN,
                     "%s: the %s at %" PRIu64
                     " is not in the file, not aligned or on top of something else: open it "
                     "read-only, or run check --repair=all",
                     image->path, what, offset);
}

static bool take_tables(QcowUse *use, const Image *image, GError **error)
{
    const QcowState *s = image->state;
    for (uint32_t i = 0; i < s->header.l1_size; i++) {
        uint64_t l2 = s->l1[i];
        if (l2 != 0 && (l2 % s->cluster_size != 0 || !qcow_place_ok(image, l2, s->l2_bytes) ||
                        !qcow_use_take(use, l2, s->l2_bytes, false))) {
            return refuse(image, "L2 table", l2, error);
        }
    }
    return true;
}

bool qcow_scan_entry(const Image *image, QcowUse *use, uint64_t entry)
{
    const QcowState *s = image->state;
    QcowCluster cluster = qcow_entry_decode(s, entry);
    uint64_t size = store_size(image->store);
    if (cluster.host == 0) {
        return !cluster.compressed;
    }
    if (cluster.host < QCOW_HEADER_SIZE || cluster.host >= size) {
        return false;
    }
    if (cluster.compressed) {
        uint64_t length = min_u64(cluster.stored_length, size - cluster.host);
        return length > 0 && qcow_use_take(use, cluster.host, length, true);
    }
    return cluster.host % s->cluster_size == 0 &&
           qcow_use_take(use, cluster.host, s->cluster_size, false);
}

/* A table of which the host has no bytes has no entries: a sparse file may claim many such. */
bool qcow_table_is_hole(const Image *image, uint64_t l2)
{
    const QcowState *s = image->state;
    uint64_t run;
    bool data;
    return store_next_data(image->store, l2, s->l2_bytes, &data, &run) == 0 && !data &&
           run >= s->l2_bytes;
}

static bool take_clusters(QcowUse *use, Image *image, uint64_t l2, GError **error)
{
    QcowState *s = image->state;
    for (uint64_t at = 0; at < s->l2_bytes; at += 8) {
        uint64_t entry;
        int r = qcow_entry_get(s, l2 + at, &entry);
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot read an L2 table", image->path);
        }
        if (!qcow_scan_entry(image, use, entry)) {
            return refuse(image, "cluster", qcow_entry_decode(s, entry).host, error);
        }
    }
    return true;
}

bool qcow_scan_head(const Image *image, QcowUse *use, GError **error)
{
    if (!use_init(use, image, error)) {
        return false;
    }
    take_head(use, image);
    return true;
}

bool qcow_scan(Image *image, GError **error)
{
    QcowState *s = image->state;
    QcowUse use;
    if (!qcow_scan_head(image, &use, error)) {
        return false;
    }
    bool good = take_tables(&use, image, error);
    for (uint32_t i = 0; good && i < s->header.l1_size; i++) {
        good = s->l1[i] == 0 || qcow_table_is_hole(image, s->l1[i]) ||
               take_clusters(&use, image, s->l1[i], error);
    }
    qcow_use_clear(&use);
    return good;
}
