/*
 * qed: create.
 *
 *     cluster 0: header, backing's name | L1 table, all of it | clusters
 */
#include "formats/qed.h"

#include <string.h>

#include "base/errors.h"
#include "formats/option.h"

#define CLUSTER_SIZE_DEFAULT (64u << 10)
#define TABLE_SIZE_DEFAULT   4u

const FormatOption qed_create_options[] = {
    {"cluster_size", "size of a cluster: 4k to 64M, a power of two (default 64k)"},
    {"table_size", "clusters of a table: 1, 2, 4, 8 or 16 (default 4)"},
    {NULL, NULL},
};

static bool plan_sizes(QedHeader *header, GHashTable *options, GError **error)
{
    const char *cluster_text = option_lookup(options, "cluster_size");
    const char *table_text = option_lookup(options, "table_size");
    uint64_t cluster = CLUSTER_SIZE_DEFAULT, table = TABLE_SIZE_DEFAULT;
    if (cluster_text && (!option_parse_size(cluster_text, &cluster) || !is_power_of_two(cluster) ||
                         cluster < QED_MIN_CLUSTER_SIZE || cluster > QED_MAX_CLUSTER_SIZE)) {
        return error_set(error, EINVAL,
                         "cluster_size is '%s': must be a power of two from 4k to 64M",
                         cluster_text);
    }
    if (table_text &&
        (!option_parse_number(table_text, QED_MAX_TABLE_SIZE, &table) || !is_power_of_two(table))) {
        return error_set(error, EINVAL, "table_size is '%s': must be 1, 2, 4, 8 or 16", table_text);
    }
    header->cluster_size = cluster;
    header->table_size = table;
    return true;
}

/* Everything but the name's length, which is checked. */
static bool plan(QedHeader *header, const FormatCreate *how, GError **error)
{
    size_t name = how->backing_name ? strlen(how->backing_name) : 0;
    *header = (QedHeader){.size = align_up(min_u64(how->size, INT64_MAX), QED_SECTOR)};
    if (!plan_sizes(header, how->options, error)) {
        return false;
    }
    if (name > QED_MAX_NAME) {
        return error_set(error, EINVAL, "the backing name has %zu bytes: must be at most %u", name,
                         QED_MAX_NAME);
    }
    if (header->size > qed_largest_size(header)) {
        return error_set(error, EFBIG,
                         "image size %" PRIu64 " is too large for cluster_size %u, table_size %u: "
                         "must be at most %" PRIu64,
                         header->size, header->cluster_size, header->table_size,
                         qed_largest_size(header));
    }
    header->header_size = 1;
    header->l1_offset = header->cluster_size;
    if (name > 0) {
        bool raw = how->backing_format && strcmp(how->backing_format, "raw") == 0;
        header->features = QED_BACKING_FILE | (raw ? QED_BACKING_IS_RAW : 0);
        header->name_offset = QED_HEADER_SIZE;
        header->name_size = name;
    }
    return true;
}

static void pack(const QedHeader *header, const char *name, uint8_t *bytes)
{
    store_le32(bytes, QED_MAGIC);
    store_le32(bytes + QED_H_CLUSTER_SIZE, header->cluster_size);
    store_le32(bytes + QED_H_TABLE_SIZE, header->table_size);
    store_le32(bytes + QED_H_HEADER_SIZE, header->header_size);
    store_le64(bytes + QED_H_FEATURES, header->features);
    store_le64(bytes + QED_H_L1_OFFSET, header->l1_offset);
    store_le64(bytes + QED_H_SIZE, header->size);
    store_le32(bytes + QED_H_NAME_OFFSET, header->name_offset);
    store_le32(bytes + QED_H_NAME_SIZE, header->name_size);
    if (name) {
        memcpy(bytes + header->name_offset, name, header->name_size);
    }
}

/* The store is empty: what is not written reads as zeroes, which the whole of L1 is. */
bool qed_create(Store *store, const FormatCreate *how, GError **error)
{
    QedHeader header;
    uint8_t bytes[QED_MIN_CLUSTER_SIZE] = {0};
    if (!plan(&header, how, error)) {
        return false;
    }
    pack(&header, how->backing_name, bytes);
    int r = store_truncate(store, header.l1_offset + qed_table_bytes(&header));
    r = r < 0 ? r : store_sync(store);
    r = r < 0 ? r : store_write(store, bytes, sizeof bytes, 0);
    r = r < 0 ? r : store_sync(store);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the image", store->name);
}

bool qed_create_like(const Image *image, GHashTable *options, GError **error)
{
    const QedHeader *header = &qed_state(image)->header;
    g_hash_table_insert(options, g_strdup("cluster_size"),
                        g_strdup_printf("%u", header->cluster_size));
    g_hash_table_insert(options, g_strdup("table_size"), g_strdup_printf("%u", header->table_size));
    return true;
}

bool qed_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    QedHeader header;
    if (!plan(&header, how, error)) {
        return false;
    }
    uint64_t table = qed_table_bytes(&header), span = qed_table_span(&header);
    uint64_t head = header.l1_offset + table;
    uint64_t tables = div_round_up(measure->data(measure->opaque, span), span);
    measure->fully_allocated =
        head + div_round_up(header.size, span) * table + align_up(header.size, header.cluster_size);
    measure->required = head + tables * table + measure->data(measure->opaque, header.cluster_size);
    return true;
}
