/*
 * qed: the header.
 *
 *     offset size  meaning (little endian)           offset size  meaning
 *          0    4  "QED\0"                              32    8  features that a writer clears
 *          4    4  bytes of a cluster                   40    8  offset of L1
 *          8    4  clusters of a table                  48    8  size of the disk
 *         12    4  clusters of the header               56    4  offset of the backing's name
 *         16    8  features, all must be known          60    4  its length
 *         24    8  features, none need be known
 *
 * A name lies in the header's clusters. One that changes is written where the old one is not, and synced; then the
 * first sector in one piece. So after a cut the header says all of the old or all of the new.
 */
#include "formats/qed.h"

#include <string.h>

#include "base/errors.h"

/* Where names are put: two places, so that a new one never lies on the old. */
#define FIRST_NAME  QED_HEADER_SIZE
#define SECOND_NAME 3072u

uint64_t qed_largest_size(const QedHeader *header)
{
    uint64_t entries = min_u64(qed_table_bytes(header), TABLE_TREE_MAX_L1_BYTES) / 8, largest;
    return mul_u64(entries, qed_table_span(header), &largest) ? min_u64(largest, INT64_MAX)
                                                              : INT64_MAX;
}

static bool check_clusters(const Image *image, const QedHeader *header, GError **error)
{
    if (!is_power_of_two(header->cluster_size) || header->cluster_size < QED_MIN_CLUSTER_SIZE ||
        header->cluster_size > QED_MAX_CLUSTER_SIZE) {
        return error_set(error, EUCLEAN,
                         "%s: cluster_size is %u: must be a power of two from 4096 to 67108864",
                         image->path, header->cluster_size);
    }
    if (!is_power_of_two(header->table_size) || header->table_size > QED_MAX_TABLE_SIZE) {
        return error_set(error, EUCLEAN, "%s: table_size is %u: must be a power of two up to 16",
                         image->path, header->table_size);
    }
    return true;
}

static bool check_places(const Image *image, const QedHeader *header, GError **error)
{
    uint64_t header_bytes = (uint64_t)header->header_size * header->cluster_size;
    if (header->header_size == 0 || header_bytes > store_size(image->store)) {
        return error_set(error, EUCLEAN,
                         "%s: header_size is %u: must be 1 cluster at least, and end within the "
                         "file, which has %" PRIu64 " bytes",
                         image->path, header->header_size, store_size(image->store));
    }
    if (header->l1_offset < header_bytes || header->l1_offset % header->cluster_size != 0 ||
        !range_within(header->l1_offset, qed_table_bytes(header), store_size(image->store))) {
        return error_set(error, EUCLEAN,
                         "%s: l1_table_offset is %" PRIu64
                         ": must be a multiple of the cluster size behind the header, and the "
                         "table's %" PRIu64 " bytes must end within the file, which has %" PRIu64,
                         image->path, header->l1_offset, qed_table_bytes(header),
                         store_size(image->store));
    }
    if (header->size % QED_SECTOR != 0 || header->size > qed_largest_size(header)) {
        return error_set(error, EUCLEAN,
                         "%s: image_size is %" PRIu64
                         ": must be a multiple of 512, at most %" PRIu64 " with such tables",
                         image->path, header->size, qed_largest_size(header));
    }
    return true;
}

static bool read_name(Image *image, const QedHeader *header, GError **error)
{
    uint64_t header_bytes = (uint64_t)header->header_size * header->cluster_size;
    if (!(header->features & QED_BACKING_FILE)) {
        return true;
    }
    if (header->name_size == 0 || header->name_size > QED_MAX_NAME) {
        return error_set(error, EUCLEAN, "%s: backing_filename_size is %u: must be 1 to %u",
                         image->path, header->name_size, QED_MAX_NAME);
    }
    if (header->name_offset < QED_HEADER_SIZE ||
        !range_within(header->name_offset, header->name_size, header_bytes)) {
        return error_set(error, EUCLEAN,
                         "%s: backing_filename_offset is %u: the name must lie behind the first %u "
                         "bytes and end within the header, which has %" PRIu64,
                         image->path, header->name_offset, QED_HEADER_SIZE, header_bytes);
    }
    g_autofree char *name = g_malloc0(header->name_size + 1);
    int r = store_read(image->store, name, header->name_size, header->name_offset);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the backing's name", image->path);
    }
    image->backing_name = g_steal_pointer(&name);
    image->backing_format = g_strdup(header->features & QED_BACKING_IS_RAW ? "raw" : NULL);
    return true;
}

bool qed_header_read(Image *image, QedHeader *header, GError **error)
{
    uint8_t bytes[QED_HEADER_SIZE];
    if (store_size(image->store) < sizeof bytes) {
        return error_set(error, EUCLEAN, "%s: image is truncated: it ends inside the header",
                         image->path);
    }
    int r = store_read(image->store, bytes, sizeof bytes, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the header", image->path);
    }
    if (load_le32(bytes) != QED_MAGIC) {
        return error_set(error, EUCLEAN, "%s: magic is %08x: must be %08x (QED\\0)", image->path,
                         load_le32(bytes), QED_MAGIC);
    }
    *header = (QedHeader){
        .cluster_size = load_le32(bytes + QED_H_CLUSTER_SIZE),
        .table_size = load_le32(bytes + QED_H_TABLE_SIZE),
        .header_size = load_le32(bytes + QED_H_HEADER_SIZE),
        .features = load_le64(bytes + QED_H_FEATURES),
        .autoclear = load_le64(bytes + QED_H_AUTOCLEAR),
        .l1_offset = load_le64(bytes + QED_H_L1_OFFSET),
        .size = load_le64(bytes + QED_H_SIZE),
        .name_offset = load_le32(bytes + QED_H_NAME_OFFSET),
        .name_size = load_le32(bytes + QED_H_NAME_SIZE),
    };
    if (header->features & ~(uint64_t)QED_FEATURES) {
        return error_set(error, ENOTSUP,
                         "%s: features are 0x%" PRIx64 ": only bits 0 to 2 are known", image->path,
                         header->features);
    }
    return check_clusters(image, header, error) && check_places(image, header, error) &&
           read_name(image, header, error);
}

/* ---- changes ---- */

static int write_field(Image *image, unsigned offset, uint64_t value)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    int r = store_write(image->store, bytes, sizeof bytes, offset);
    return r < 0 ? r : store_sync(image->store);
}

int qed_set_features(Image *image, uint64_t features)
{
    QedHeader *header = &qed_state(image)->header;
    int r = write_field(image, QED_H_FEATURES, features);
    if (r == 0) {
        header->features = features;
    }
    return r;
}

int qed_set_size(Image *image, uint64_t size)
{
    int r = write_field(image, QED_H_SIZE, size);
    if (r == 0) {
        qed_state(image)->header.size = size;
    }
    return r;
}

/* The first sector with another name, which lies in its place already. */
static int write_sector(Image *image, const QedHeader *header)
{
    uint8_t sector[QED_SECTOR];
    int r = store_read(image->store, sector, sizeof sector, 0);
    if (r < 0) {
        return r;
    }
    store_le64(sector + QED_H_FEATURES, header->features);
    store_le32(sector + QED_H_NAME_OFFSET, header->name_offset);
    store_le32(sector + QED_H_NAME_SIZE, header->name_size);
    r = store_write(image->store, sector, sizeof sector, 0);
    return r < 0 ? r : store_sync(image->store);
}

bool qed_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                     GError **error)
{
    QedHeader header = qed_state(image)->header;
    size_t length = name ? strlen(name) : 0;
    if (length > QED_MAX_NAME) {
        return error_set(error, EINVAL, "%s: the backing name has %zu bytes: must be at most %u",
                         image->path, length, QED_MAX_NAME);
    }
    bool first = !(header.features & QED_BACKING_FILE) ||
                 !ranges_overlap(FIRST_NAME, length, header.name_offset, header.name_size);
    header.name_offset = name ? (first ? FIRST_NAME : SECOND_NAME) : 0;
    header.name_size = length;
    header.features &= ~(uint64_t)(QED_BACKING_FILE | QED_BACKING_IS_RAW);
    header.features |= name ? QED_BACKING_FILE : 0;
    header.features |= format && strcmp(format, "raw") == 0 ? QED_BACKING_IS_RAW : 0;
    int r = name ? store_write(image->store, name, length, header.name_offset) : 0;
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : write_sector(image, &header);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the header", image->path);
    }
    qed_state(image)->header = header;
    image_name_backing(image, name, format);
    return true;
}
