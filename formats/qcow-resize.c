/*
 * qcow, version 1: a larger disk.
 *
 *     the rest of the last cluster is cleared, entries behind the end are dropped -> flush
 *     -> a longer L1 table at the end of the file -> sync -> its place and the size, in the header -> sync
 *
 * The L1 table has just the entries that the disk needs, so it moves as soon as it needs one more. What the old one had
 * is lost until the image is copied. There are no smaller disks: nothing records what would be free then.
 *
 * A write of the header that fails leaves unknown which table counts: then no entry is changed any more.
 */
#include "formats/qcow.h"

#include "base/errors.h"

int qcow_before_change(Image *image)
{
    return qcow_state(image)->broken;
}

/* All of the table, for so many entries; durable. */
static int write_l1(Image *image, const uint64_t *l1, uint64_t entries, uint64_t *offset)
{
    const TableTree *tree = table_tree(image);
    uint64_t bytes = entries * 8, length = align_up(bytes, tree->cluster_size);
    bool fresh;
    int r = table_tree_space_take(image, length, offset, &fresh);
    g_autofree uint64_t *table = r == 0 ? g_try_malloc0(length) : NULL;
    r = r == 0 && !table ? -ENOMEM : r;
    for (uint64_t i = 0; r == 0 && i < entries; i++) {
        if (tree->l1_little) {
            store_le64(&table[i], l1[i]);
        } else {
            store_be64(&table[i], l1[i]);
        }
    }
    r = r < 0 ? r : store_write(image->store, table, length, *offset);
    return r < 0 ? r : store_sync(image->store);
}

/* The header's size and, behind it in the same sector, the place of L1. */
static int write_header(Image *image, const QcowHeader *header)
{
    uint8_t bytes[QCOW_HEADER_SIZE];
    int r = store_read(image->store, bytes, sizeof bytes, 0);
    if (r < 0) {
        return r;
    }
    store_be64(bytes + QCOW_H_SIZE, header->size);
    store_be64(bytes + QCOW_H_L1_OFFSET, header->l1_offset);
    r = store_write(image->store, bytes, sizeof bytes, 0);
    r = r < 0 ? r : store_sync(image->store);
    if (r < 0) {
        qcow_state(image)->broken = -EIO;
    }
    return r;
}

static int set_size(Image *image, uint64_t size, uint64_t entries)
{
    QcowState *s = qcow_state(image);
    QcowHeader header = s->header;
    uint32_t old = s->tree.l1_size;
    uint64_t *l1 = NULL;
    int r = 0;
    header.size = size;
    if (entries > old) {
        l1 = g_try_new0(uint64_t, entries);
        r = l1 ? 0 : -ENOMEM;
        if (r == 0 && old > 0) {
            memcpy(l1, s->tree.l1, old * sizeof *l1);
        }
        header.l1_size = entries;
        r = r < 0 ? r : write_l1(image, l1, entries, &header.l1_offset);
    }
    r = r < 0 ? r : write_header(image, &header);
    if (r < 0) {
        g_free(l1);
        return r;
    }
    s->header = header;
    if (l1) {
        g_free(s->tree.l1);
        s->tree.l1 = l1;
        s->tree.l1_size = entries;
        s->tree.l1_offset = header.l1_offset;
    }
    image->size = size;
    return 0;
}

static bool check_resize(const Image *image, uint64_t size, GError **error)
{
    const TableTree *tree = table_tree(image);
    uint64_t span = UINT64_C(1) << (tree->cluster_bits + tree->l2_bits);
    uint64_t most = min_u64(span * (TABLE_TREE_MAX_L1_BYTES / 8), INT64_MAX / 512 * 512);
    if (size < image->size) {
        return error_set(error, ENOTSUP,
                         "%s: a qcow image cannot become smaller: must be at least %" PRIu64,
                         image->path, image->size);
    }
    if (size > most) {
        return error_set(error, EFBIG,
                         "%s: size is %" PRIu64 ": must be at most %" PRIu64 " with such tables",
                         image->path, size, most);
    }
    if (table_tree_backing_end(image) > image->size) {
        return error_set(error, ENOTSUP,
                         "%s: its backing file is longer than the disk and would show: qcow "
                         "cannot hide it",
                         image->path);
    }
    return true;
}

bool qcow_resize(Image *image, uint64_t size, GError **error)
{
    const TableTree *tree = table_tree(image);
    uint64_t span = UINT64_C(1) << (tree->cluster_bits + tree->l2_bits);
    size = size < image->size ? size : align_up(size, 512);
    if (!check_resize(image, size, error)) {
        return false;
    }
    int r = table_tree_may_change(image);
    r = r < 0 ? r : table_tree_zero_last(image);
    r = r < 0 ? r : table_tree_clear_behind(image);
    r = r < 0 ? r : table_tree_flush(image);
    r = r < 0 ? r : set_size(image, size, div_round_up(size, span));
    return r == 0 || error_set_errno(error, -r, "%s: cannot make the disk %" PRIu64 " bytes",
                                     image->path, size);
}
