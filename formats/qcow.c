/*
 * qcow, version 1: the first copy-on-write format of QEMU, and what Xen's blktap made of it.
 *
 *     header, backing's name
 *     L1 table -> L2 tables -> clusters        0: not here, ask the backing
 *                                              bit 63: compressed; then the length in bytes is in
 *                                              the bits above the offset, which need not be aligned
 *
 * Nothing records who uses which cluster: new ones are taken from the end of the file. So an image
 * is looked through before it is written to (tabletree-scan.c): blktap has left images behind in which
 * clusters overlap.
 *
 * What must stay true: a table or a cluster is used only where all of it lies in the file, for what
 * lies behind its end would become somebody else's with the next write.
 */
#include "formats/qcow.h"

#include <string.h>

#include "base/errors.h"
#include "base/log.h"
#include "formats/deflate.h"
#include "formats/inflate.h"
#include "formats/legacy-aes.h"

#define MAP_EXTENTS_MAX 256
#define WINDOW_BITS     12 /* qemu's: readers keep 4 KiB */

static int qcow_probe(const uint8_t *head, size_t n, const char *path)
{
    return n >= 8 && load_be32(head) == QCOW_MAGIC && load_be32(head + 4) == 1 ? 100 : 0;
}

static void state_free(QcowState *s)
{
    if (s) {
        table_tree_clear(&s->tree);
        g_free(s);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QcowState, state_free)

static TreeCluster decode_entry(const TableTree *tree, uint64_t entry)
{
    unsigned offset_bits = 63 - tree->cluster_bits;
    if (!(entry & QCOW_COMPRESSED)) {
        return (TreeCluster){.host = entry};
    }
    return (TreeCluster){
        .host = entry & ((UINT64_C(1) << offset_bits) - 1),
        .compressed = true,
        .stored_length = (entry >> offset_bits) & (tree->cluster_size - 1),
    };
}

static uint64_t encode_entry(const TableTree *tree, uint64_t host, uint32_t stored_length)
{
    return QCOW_COMPRESSED | (uint64_t)stored_length << (63 - tree->cluster_bits) | host;
}

static void take_head(const Image *image, ClusterUse *use)
{
    const QcowHeader *header = &qcow_state(image)->header;
    cluster_use_take_head(use, 0, QCOW_HEADER_SIZE);
    cluster_use_take_head(use, header->l1_offset, max_u64(header->l1_size * UINT64_C(8), 1));
    if (image->backing_name) {
        cluster_use_take_head(use, header->name_offset, header->name_size);
    }
}

static bool qcow_open(Image *image, GError **error)
{
    g_autoptr(QcowState) s = g_new0(QcowState, 1);
    const QcowHeader *header = &s->header;
    if (!qcow_header_read(image, &s->header, error) ||
        (header->aes && !legacy_aes_open(image, error))) {
        return false;
    }
    s->tree = (TableTree){
        .l1_offset = header->l1_offset,
        .l1_size = header->l1_size,
        .l1_little = header->l1_little,
        .cluster_bits = header->cluster_bits,
        .l2_bits = header->l2_bits,
        .head_end = QCOW_HEADER_SIZE,
        .decode = decode_entry,
        .encode = encode_entry,
        .take_head = take_head,
        .before_change = qcow_before_change,
    };
    if (!table_tree_open(&s->tree, image, error)) {
        return false;
    }
    image->size = header->size;
    image->allocation_unit = s->tree.cluster_size;
    image->state = g_steal_pointer(&s);
    return true;
}

static void qcow_close(Image *image)
{
    state_free(image->state);
}

static int refuse_cluster(const Image *image, uint64_t offset, uint64_t entry)
{
    log_limited(LOG_LEVEL_ERROR,
                "%s: the L2 entry of offset %" PRIu64 " is 0x%" PRIx64
                ": what it points to is not in the file",
                image->path, offset, entry);
    return -EIO;
}

/* What the entry says of the guest's range, which lies in one cluster. */
static int add_cluster(Image *image, uint64_t entry, uint64_t offset, uint64_t length,
                       ExtentList *list)
{
    const TableTree *tree = table_tree(image);
    TreeCluster cluster = decode_entry(tree, entry);
    uint64_t inside = offset % tree->cluster_size;
    Extent extent = {.offset = offset, .length = length, .image = image};
    if (cluster.host != 0) {
        if (cluster.host < QCOW_HEADER_SIZE || (cluster.compressed && !cluster.stored_length) ||
            cluster.host >= store_size(image->store)) {
            return refuse_cluster(image, offset, entry);
        }
        extent.store = image->store;
        extent.type = cluster.compressed ? EXTENT_ENCODED : EXTENT_DATA;
        extent.host_offset = cluster.host + (cluster.compressed ? 0 : inside);
        extent.flags = cluster.compressed || !image->write ? 0 : EXTENT_WRITABLE;
        extent.stored_length = cluster.stored_length;
        extent.unit_length = cluster.compressed ? tree->cluster_size : 0;
        extent.unit_offset = cluster.compressed ? inside : 0;
    }
    extent_list_add(list, &extent);
    return 0;
}

/* Answers for one cluster, or for all that an L1 entry without a table spans. */
static int map_some(Image *image, uint64_t *offset, uint64_t end, ExtentList *list)
{
    TableTree *tree = table_tree(image);
    uint64_t place, entry, unit = tree->cluster_size;
    int r = table_tree_find(image, *offset, &place);
    if (r == 0 && place == 0) {
        unit <<= tree->l2_bits;
        entry = 0;
    } else if (r == 0) {
        r = table_tree_get(tree, place, &entry);
    }
    if (r < 0) {
        return r;
    }
    uint64_t length = min_u64(end - *offset, unit - (*offset & (unit - 1)));
    if (place == 0) {
        Extent extent = {.offset = *offset, .length = length, .image = image};
        extent_list_add(list, &extent);
    } else {
        r = add_cluster(image, entry, *offset, length, list);
    }
    *offset += length;
    return r;
}

static int qcow_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    uint64_t end = offset + length;
    int r = 0;
    while (r == 0 && offset < end && list->count < MAP_EXTENTS_MAX) {
        r = map_some(image, &offset, end, list);
    }
    return list->count > 0 ? 0 : r; /* the bad part is refused when it comes first */
}

static int qcow_decode(Image *image, const Extent *extent, const uint8_t *stored,
                       size_t stored_length, uint8_t *unit)
{
    int r = inflate_unit(stored, stored_length, unit, extent->unit_length, -WINDOW_BITS);
    if (r < 0) {
        log_limited(LOG_LEVEL_ERROR,
                    "%s: the compressed cluster at host offset %" PRIu64 " cannot be unpacked",
                    image->path, extent->host_offset);
    }
    return r;
}

static int qcow_encode(Image *image, const uint8_t *unit, uint32_t unit_length, uint8_t *stored,
                       uint32_t room)
{
    return deflate_unit(unit, unit_length, stored, room, WINDOW_BITS, DEFLATE_RAW);
}

static uint64_t qcow_cluster_size(const Image *image)
{
    return table_tree(image)->cluster_size;
}

const Format format_qcow = {
    .name = "qcow",
    .probe = qcow_probe,
    .open = qcow_open,
    .start_writing = table_tree_start_writing,
    .close = qcow_close,
    .map = qcow_map,
    .allocate = table_tree_allocate,
    .commit = table_tree_commit,
    .abandon = table_tree_abandon,
    .unmap = qcow_unmap,
    .flush = table_tree_flush,
    .finish = table_tree_finish,
    .is_dirty = table_tree_is_dirty,
    .decode = qcow_decode,
    .encode = qcow_encode,
    .set_backing = qcow_set_backing,
    .cluster_size = qcow_cluster_size,
    .resize = qcow_resize,
    .measure = qcow_measure,
    .create_like = qcow_create_like,
    .create_options = qcow_create_options,
    .create = qcow_create,
    .check = table_tree_check,
};
