/*
 * qcow, version 1: create.
 *
 *     header | backing's name | L1 table, from a multiple of 512 on | clusters
 *
 * An L2 table takes one cluster, as far as the format allows.
 */
#include "formats/qcow.h"

#include <string.h>

#include "base/errors.h"
#include "formats/option.h"
#include "map/encryption.h"

#define CLUSTER_SIZE_DEFAULT 4096u
#define SECTOR               512u

const FormatOption qcow_create_options[] = {
    {"cluster_size", "size of a cluster: 512 to 64k, a power of two (default 4k)"},
    {"encrypt.format", "aes, for programs that know nothing better"},
    {NULL, NULL},
};

static bool plan_cluster_size(QcowHeader *header, GHashTable *options, GError **error)
{
    const char *text = option_lookup(options, "cluster_size");
    uint64_t size = CLUSTER_SIZE_DEFAULT;
    if (text && (!option_parse_size(text, &size) || !is_power_of_two(size) ||
                 size < 1u << QCOW_MIN_CLUSTER_BITS || size > 1u << QCOW_MAX_CLUSTER_BITS)) {
        return error_set(error, EINVAL,
                         "cluster_size is '%s': must be a power of two from 512 to 64k", text);
    }
    header->cluster_bits = __builtin_ctzll(size);
    header->l2_bits = header->cluster_bits - 3;
    return true;
}

static bool plan_encryption(QcowHeader *header, const FormatCreate *how, GError **error)
{
    const char *text = option_lookup(how->options, "encrypt.format");
    header->aes = text != NULL;
    if (text && strcmp(text, "aes") != 0) {
        return error_set(error, EINVAL, "encrypt.format is '%s': must be aes", text);
    }
    return true;
}

static bool plan_layout(QcowHeader *header, const FormatCreate *how, GError **error)
{
    size_t name = how->backing_name ? strlen(how->backing_name) : 0;
    uint64_t span = UINT64_C(1) << (header->cluster_bits + header->l2_bits);
    uint64_t entries = div_round_up(header->size, span);
    if (name > QCOW_MAX_NAME) {
        return error_set(error, EINVAL, "the backing name has %zu bytes: must be at most %u", name,
                         QCOW_MAX_NAME);
    }
    if (entries > TABLE_TREE_MAX_L1_BYTES / 8) {
        return error_set(error, EFBIG,
                         "image size %" PRIu64 " is too large for cluster_size %u: must be at most "
                         "%" PRIu64,
                         header->size, 1u << header->cluster_bits,
                         span * (TABLE_TREE_MAX_L1_BYTES / 8));
    }
    header->name_size = name;
    header->name_offset = name > 0 ? QCOW_HEADER_SIZE : 0;
    header->l1_size = entries;
    header->l1_offset = align_up(QCOW_HEADER_SIZE + name, SECTOR);
    return true;
}

static void pack(const QcowHeader *header, const char *name, uint8_t *bytes)
{
    store_be32(bytes, QCOW_MAGIC);
    store_be32(bytes + QCOW_H_VERSION, 1);
    store_be64(bytes + QCOW_H_NAME_OFFSET, header->name_offset);
    store_be32(bytes + QCOW_H_NAME_SIZE, header->name_size);
    store_be64(bytes + QCOW_H_SIZE, header->size);
    bytes[QCOW_H_CLUSTER_BITS] = header->cluster_bits;
    bytes[QCOW_H_L2_BITS] = header->l2_bits;
    store_be32(bytes + QCOW_H_CRYPT, header->aes ? QCOW_CRYPT_AES : 0);
    store_be64(bytes + QCOW_H_L1_OFFSET, header->l1_offset);
    if (name) {
        memcpy(bytes + QCOW_HEADER_SIZE, name, header->name_size);
    }
}

bool qcow_create(Store *store, const FormatCreate *how, GError **error)
{
    QcowHeader header = {.size = align_up(min_u64(how->size, INT64_MAX - SECTOR), SECTOR)};
    if (!plan_cluster_size(&header, how->options, error) || !plan_encryption(&header, how, error) ||
        !plan_layout(&header, how, error)) {
        return false;
    }
    uint64_t end = header.l1_offset + header.l1_size * UINT64_C(8);
    end = align_up(end, UINT64_C(1) << header.cluster_bits);
    g_autofree uint8_t *bytes = g_malloc0(end);
    pack(&header, how->backing_name, bytes);
    int r = store_write(store, bytes + SECTOR, end - SECTOR, SECTOR);
    r = r < 0 ? r : store_sync(store);
    r = r < 0 ? r : store_write(store, bytes, SECTOR, 0);
    r = r < 0 ? r : store_sync(store);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the image", store->name);
}

bool qcow_create_like(const Image *image, GHashTable *options, GError **error)
{
    g_hash_table_insert(options, g_strdup("cluster_size"),
                        g_strdup_printf("%" PRIu64, table_tree(image)->cluster_size));
    if (image->encryption) {
        g_hash_table_insert(options, g_strdup("encrypt.format"),
                            g_strdup(image->encryption->method));
    }
    return true;
}

bool qcow_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    QcowHeader header = {.size = align_up(min_u64(how->size, INT64_MAX - SECTOR), SECTOR)};
    if (!plan_cluster_size(&header, how->options, error) || !plan_encryption(&header, how, error) ||
        !plan_layout(&header, how, error)) {
        return false;
    }
    uint64_t cluster = UINT64_C(1) << header.cluster_bits;
    uint64_t table = UINT64_C(8) << header.l2_bits, span = cluster << header.l2_bits;
    uint64_t head = align_up(header.l1_offset + header.l1_size * UINT64_C(8), cluster);
    uint64_t tables = div_round_up(measure->data(measure->opaque, span), span);
    measure->fully_allocated = head + header.l1_size * table + align_up(header.size, cluster);
    measure->required = head + tables * table + measure->data(measure->opaque, cluster);
    return true;
}
