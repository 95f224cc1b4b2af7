/*
 * qcow, version 1: the header.
 *
 *     offset size  meaning (big endian)                offset size  meaning
 *          0    4  "QFI\xfb"                              32    1  log2 of the cluster size
 *          4    4  version, 1                             33    1  log2 of the entries of an L2
 *          8    8  offset of the backing's name           36    4  encryption, 1 is AES
 *         16    4  its length, 20 4 its time              40    8  offset of L1
 *         24    8  size of the disk
 *
 *     behind it, in images of Xen's blktap
 *         48    4  "XEN\xfb"                              56    4  least clusters to allocate
 *         52    4  checksum of L1, often stale            60    4  flags, 2: L1 is big endian
 *
 * The checksum says nothing, so it is not looked at. Without flag 2 the L1 table of such an image
 * has the order of the machine that wrote it, which was little endian.
 *
 * Another name is written where the old one is not, and synced; then the first bytes of the header in one piece. So
 * after a cut the header says all of the old or all of the new.
 */
#include "formats/qcow.h"

#include <string.h>

#include "base/errors.h"

static bool check_bits(const Image *image, const QcowHeader *header, GError **error)
{
    if (header->cluster_bits < QCOW_MIN_CLUSTER_BITS ||
        header->cluster_bits > QCOW_MAX_CLUSTER_BITS) {
        return error_set(error, EUCLEAN, "%s: cluster_bits is %u: must be 9 to 16", image->path,
                         header->cluster_bits);
    }
    if (header->l2_bits < QCOW_MIN_L2_BITS || header->l2_bits > QCOW_MAX_L2_BITS) {
        return error_set(error, EUCLEAN, "%s: l2_bits is %u: must be 6 to 13", image->path,
                         header->l2_bits);
    }
    return true;
}

static bool check_l1(const Image *image, QcowHeader *header, GError **error)
{
    uint64_t span = UINT64_C(1) << (header->cluster_bits + header->l2_bits);
    uint64_t entries = div_round_up(header->size, span);
    if (header->size > INT64_MAX || entries > TABLE_TREE_MAX_L1_BYTES / 8) {
        return error_set(error, EUCLEAN,
                         "%s: size is %" PRIu64 ": must be at most %" PRIu64
                         " with these cluster_bits and l2_bits",
                         image->path, header->size, span * (TABLE_TREE_MAX_L1_BYTES / 8));
    }
    if (header->l1_offset < QCOW_HEADER_SIZE || header->l1_offset % 8 != 0 ||
        !range_within(header->l1_offset, entries * 8, store_size(image->store))) {
        return error_set(error, EUCLEAN,
                         "%s: l1_table_offset is %" PRIu64
                         ": must be a multiple of 8 behind the header, and the table's %" PRIu64
                         " bytes must end within the file, which has %" PRIu64,
                         image->path, header->l1_offset, entries * 8, store_size(image->store));
    }
    header->l1_size = entries;
    return true;
}

/* Where name and L1 leave room for it. */
static void look_for_xen(QcowHeader *header, const uint8_t *bytes)
{
    uint32_t end = QCOW_HEADER_SIZE + QCOW_XEN_SIZE;
    bool room = header->l1_offset >= end && (header->name_size == 0 || header->name_offset >= end);
    if (room && load_be32(bytes + QCOW_HEADER_SIZE) == QCOW_XEN_MAGIC) {
        header->l1_little = !(load_be32(bytes + QCOW_H_XEN_FLAGS) & QCOW_XEN_L1_BIG);
    }
}

static bool read_name(Image *image, const QcowHeader *header, GError **error)
{
    if (header->name_size == 0 || header->name_offset == 0) {
        return true;
    }
    if (header->name_size > QCOW_MAX_NAME) {
        return error_set(error, EUCLEAN, "%s: backing_file_size is %u: must be at most %u",
                         image->path, header->name_size, QCOW_MAX_NAME);
    }
    if (!range_within(header->name_offset, header->name_size, store_size(image->store))) {
        return error_set(error, EUCLEAN,
                         "%s: backing_file_offset is %" PRIu64
                         ": the name must end within the file, which has %" PRIu64 " bytes",
                         image->path, header->name_offset, store_size(image->store));
    }
    g_autofree char *name = g_malloc0(header->name_size + 1);
    int r = store_read(image->store, name, header->name_size, header->name_offset);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the backing's name", image->path);
    }
    image->backing_name = g_steal_pointer(&name);
    return true;
}

bool qcow_header_read(Image *image, QcowHeader *header, GError **error)
{
    uint8_t bytes[QCOW_HEADER_SIZE + QCOW_XEN_SIZE];
    if (store_size(image->store) < QCOW_HEADER_SIZE) {
        return error_set(error, EUCLEAN, "%s: image is truncated: it ends inside the header",
                         image->path);
    }
    int r = store_read(image->store, bytes, sizeof bytes, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the header", image->path);
    }
    if (load_be32(bytes) != QCOW_MAGIC || load_be32(bytes + QCOW_H_VERSION) != 1) {
        return error_set(error, EUCLEAN,
                         "%s: magic is %08x, version %u: must be %08x (QFI\\xfb), 1", image->path,
                         load_be32(bytes), load_be32(bytes + QCOW_H_VERSION), QCOW_MAGIC);
    }
    if (load_be32(bytes + QCOW_H_CRYPT) > QCOW_CRYPT_AES) {
        return error_set(error, ENOTSUP, "%s: crypt_method is %u: must be 0, or 1 (AES)",
                         image->path, load_be32(bytes + QCOW_H_CRYPT));
    }
    *header = (QcowHeader){
        .name_offset = load_be64(bytes + QCOW_H_NAME_OFFSET),
        .name_size = load_be32(bytes + QCOW_H_NAME_SIZE),
        .size = load_be64(bytes + QCOW_H_SIZE),
        .cluster_bits = bytes[QCOW_H_CLUSTER_BITS],
        .l2_bits = bytes[QCOW_H_L2_BITS],
        .aes = load_be32(bytes + QCOW_H_CRYPT) == QCOW_CRYPT_AES,
        .l1_offset = load_be64(bytes + QCOW_H_L1_OFFSET),
    };
    if (!check_bits(image, header, error) || !check_l1(image, header, error)) {
        return false;
    }
    look_for_xen(header, bytes);
    return read_name(image, header, error);
}

/* ---- another backing ---- */

/* A place for a name: in what the header leaves of the first cluster, which nobody else may use, or at the end of the
 * file. */
static int place_name(Image *image, uint64_t length, uint64_t *offset)
{
    const QcowHeader *header = &qcow_state(image)->header;
    uint64_t behind = header->name_size > 0 ? header->name_offset + header->name_size : 0;
    uint64_t places[] = {QCOW_HEADER_SIZE + QCOW_XEN_SIZE, behind};
    uint64_t end = min_u64(header->l1_offset, table_tree(image)->cluster_size);
    bool fresh;
    for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
        *offset = places[i];
        if (*offset >= QCOW_HEADER_SIZE && range_within(*offset, length, end) &&
            !ranges_overlap(*offset, length, header->name_offset, header->name_size)) {
            return 0;
        }
    }
    return table_tree_space_take(image, align_up(length, table_tree(image)->cluster_size), offset,
                                 &fresh);
}

static int write_name(Image *image, QcowHeader *header, const char *name)
{
    uint8_t bytes[QCOW_H_NAME_SIZE + 4];
    header->name_size = name ? strlen(name) : 0;
    header->name_offset = 0;
    int r = name ? place_name(image, header->name_size, &header->name_offset) : 0;
    if (r == 0 && name) {
        r = store_write(image->store, name, header->name_size, header->name_offset);
    }
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : store_read(image->store, bytes, sizeof bytes, 0);
    store_be64(bytes + QCOW_H_NAME_OFFSET, header->name_offset);
    store_be32(bytes + QCOW_H_NAME_SIZE, header->name_size);
    r = r < 0 ? r : store_write(image->store, bytes, sizeof bytes, 0);
    return r < 0 ? r : store_sync(image->store);
}

bool qcow_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                      GError **error)
{
    QcowHeader header = qcow_state(image)->header;
    if (name && strlen(name) > QCOW_MAX_NAME) {
        return error_set(error, EINVAL, "%s: the backing name has %zu bytes: must be at most %u",
                         image->path, strlen(name), QCOW_MAX_NAME);
    }
    int r = write_name(image, &header, name);
    r = r < 0 ? r : table_tree_finish(image); /* what was grown ahead of need */
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the header", image->path);
    }
    qcow_state(image)->header = header;
    image_name_backing(image, name, NULL);
    return true;
}
