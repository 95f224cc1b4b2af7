/*
 * qed, the QEMU Enhanced Disk format.
 *
 *     header, backing's name
 *     L1 table -> L2 tables -> clusters      0: not here, ask the backing
 *                                            1: zeroes
 *
 * Both tables have the size that the header says, 1 to 16 clusters: they are indexed by it, never by the size of a
 * cluster. Nothing records who uses which cluster: new ones are taken from the end of the file, and the image is looked
 * through before it is written to (tabletree-scan.c).
 *
 * While the bit "needs a check" is set, a writer has not come to its end. After ours, that is leaked clusters at worst;
 * so such an image may be read as it is.
 *
 * What must stay true: a table or a cluster is used only where all of it lies in the file.
 */
#include "formats/qed.h"

#include "base/errors.h"
#include "base/log.h"

#define MAP_EXTENTS_MAX 256
#define MAP_PIECES_MAX  256

static int qed_probe(const uint8_t *head, size_t n, const char *path)
{
    return n >= QED_HEADER_SIZE && load_le32(head) == QED_MAGIC ? 100 : 0;
}

static void state_free(QedState *s)
{
    if (s) {
        table_tree_clear(&s->tree);
        g_free(s);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(QedState, state_free)

static TreeCluster decode_entry(const TableTree *tree, uint64_t entry)
{
    bool zero = entry == QED_ZERO;
    return (TreeCluster){.host = zero ? 0 : entry, .zero = zero};
}

static void take_head(const Image *image, ClusterUse *use)
{
    const QedHeader *header = &qed_state(image)->header;
    cluster_use_take_head(use, 0, (uint64_t)header->header_size * header->cluster_size);
    cluster_use_take_head(use, header->l1_offset, qed_table_bytes(header));
}

static bool qed_open(Image *image, GError **error)
{
    g_autoptr(QedState) s = g_new0(QedState, 1);
    QedHeader *header = &s->header;
    if (!qed_header_read(image, header, error)) {
        return false;
    }
    s->tree = (TableTree){
        .l1_offset = header->l1_offset,
        .l1_size = div_round_up(header->size, qed_table_span(header)),
        .l1_little = true,
        .l2_little = true,
        .cluster_bits = __builtin_ctz(header->cluster_size),
        .l2_bits = __builtin_ctzll(qed_table_bytes(header) / 8),
        .head_end = (uint64_t)header->header_size * header->cluster_size,
        .decode = decode_entry,
        .take_head = take_head,
        .before_change = qed_before_change,
    };
    if (!table_tree_open(&s->tree, image, error)) {
        return false;
    }
    image->size = header->size;
    image->allocation_unit = header->cluster_size;
    image->state = g_steal_pointer(&s);
    return true;
}

static void qed_close(Image *image)
{
    state_free(image->state);
}

static int refuse_cluster(const Image *image, uint64_t offset, uint64_t entry)
{
    log_limited(LOG_LEVEL_ERROR,
                "%s: the L2 entry of offset %" PRIu64 " is 0x%" PRIx64
                ": must be 0, 1 or the offset of a cluster of the file",
                image->path, offset, entry);
    return -EIO;
}

/* What the entry says of the guest's range, which lies in one cluster. */
static int add_cluster(Image *image, uint64_t entry, uint64_t offset, uint64_t length,
                       ExtentList *list)
{
    const TableTree *tree = table_tree(image);
    Extent extent = {.offset = offset, .length = length, .image = image};
    if (entry == QED_ZERO) {
        extent.type = EXTENT_ZERO;
    } else if (entry != 0) {
        if (!table_tree_cluster_ok(image, entry) || entry % tree->cluster_size != 0) {
            return refuse_cluster(image, offset, entry);
        }
        extent.type = EXTENT_DATA;
        extent.store = image->store;
        extent.host_offset = entry + offset % tree->cluster_size;
        extent.flags = EXTENT_SPARSE | (image->write ? EXTENT_WRITABLE : 0);
    }
    extent_list_add(list, &extent);
    return 0;
}

/* Answers from the entries of one piece of an L2 table; `place` is where the first one that is wanted lies. */
static int map_piece(Image *image, uint64_t place, uint64_t *offset, uint64_t end, ExtentList *list)
{
    TableTree *tree = table_tree(image);
    uint64_t entries[TABLE_TREE_PIECE_ENTRIES];
    int r = table_tree_read_piece(tree, align_down(place, TABLE_TREE_PIECE), entries);
    for (unsigned i = place % TABLE_TREE_PIECE / 8;
         r == 0 && *offset < end && i < TABLE_TREE_PIECE_ENTRIES; i++) {
        uint64_t rest = tree->cluster_size - *offset % tree->cluster_size;
        uint64_t length = min_u64(end - *offset, rest);
        r = add_cluster(image, entries[i], *offset, length, list);
        *offset += r == 0 ? length : 0;
    }
    return r;
}

/* Answers from one piece, or for all that an L1 entry without a table spans. */
static int map_some(Image *image, uint64_t *offset, uint64_t end, ExtentList *list)
{
    uint64_t place, span = qed_table_span(&qed_state(image)->header);
    int r = table_tree_find(image, *offset, &place);
    if (r < 0 || place != 0) {
        return r < 0 ? r : map_piece(image, place, offset, end, list);
    }
    uint64_t length = min_u64(end - *offset, span - (*offset & (span - 1)));
    Extent extent = {.offset = *offset, .length = length, .image = image};
    extent_list_add(list, &extent);
    *offset += length;
    return 0;
}

static int qed_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    uint64_t end = offset + length;
    int r = 0;
    for (unsigned i = 0;
         r == 0 && offset < end && i < MAP_PIECES_MAX && list->count < MAP_EXTENTS_MAX; i++) {
        r = map_some(image, &offset, end, list);
    }
    return list->count > 0 ? 0 : r; /* the bad part is refused when it comes first */
}

static uint64_t qed_cluster_size(const Image *image)
{
    return table_tree(image)->cluster_size;
}

static bool qed_dirty_flag(const Image *image)
{
    return qed_state(image)->header.features & QED_NEED_CHECK;
}

/* An image that was found sound, or was made so, needs no check any more. */
static bool qed_check(Image *image, CheckRepair repair, CheckResult *result, GError **error)
{
    uint64_t features = qed_state(image)->header.features;
    if (!table_tree_check(image, repair, result, error)) {
        return false;
    }
    bool sound = result->corruptions == 0 && result->check_errors == 0;
    if (repair == CHECK_REPORT_ONLY || !sound || !(features & QED_NEED_CHECK)) {
        return true;
    }
    int r = qed_set_features(image, features & ~(uint64_t)QED_NEED_CHECK);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the header", image->path);
}

const Format format_qed = {
    .name = "qed",
    .probe = qed_probe,
    .open = qed_open,
    .start_writing = qed_start_writing,
    .close = qed_close,
    .map = qed_map,
    .allocate = table_tree_allocate,
    .commit = table_tree_commit,
    .abandon = table_tree_abandon,
    .unmap = qed_unmap,
    .flush = table_tree_flush,
    .finish = qed_finish,
    .is_dirty = table_tree_is_dirty,
    .set_backing = qed_set_backing,
    .cluster_size = qed_cluster_size,
    .dirty_flag = qed_dirty_flag,
    .resize = qed_resize,
    .measure = qed_measure,
    .create_like = qed_create_like,
    .create_options = qed_create_options,
    .create = qed_create,
    .check = qed_check,
};
