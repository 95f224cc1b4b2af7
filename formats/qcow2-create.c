/*
 * qcow2: a new, empty image.
 *
 *     +--------+----------------+-----------------+----------+-----------+-------------+
 *     | header | refcount table | refcount blocks | L1 table | L2 tables | LUKS header |   each begins at a
 *     +--------+----------------+-----------------+----------+-----------+-------------+   cluster of its own
 *
 * L2 tables are made where a raw data file holds the disk: they map all of it.
 *
 * The header is written last, after a sync: a file whose creation was cut short is no image at all
 * rather than a broken one.
 */
#include "formats/qcow2-create.h"

#include <string.h>

#include "base/errors.h"
#include "map/encryption.h"

#define HEADER_LENGTH  112 /* with the compression type */
#define EXTENSION_HEAD 8   /* type and length */

static bool write_failed(Store *store, int result, const char *what, GError **error)
{
    return error_set_errno(error, -result, "%s: cannot write the %s", store->name, what);
}

/* Zeroes from offset to the end of the image. A new file reads as zeroes there once it has that
 * size; a device may hold anything. */
static bool write_zeroes(Store *store, uint64_t offset, uint64_t end, GError **error)
{
    enum { CHUNK = 1 << 20 };
    g_autofree uint8_t *zeroes = g_malloc0(CHUNK);
    for (; offset < end; offset += CHUNK) {
        int result = store_write(store, zeroes, min_u64(CHUNK, end - offset), offset);
        if (result < 0) {
            return write_failed(store, result, "tables", error);
        }
    }
    return true;
}

static bool write_empty(Store *store, const Qcow2Plan *plan, GError **error)
{
    uint64_t end = plan->clusters << plan->cluster_bits;
    if (store_size(store) > 0) {
        return write_zeroes(store, 0, end, error);
    }
    int result = store_truncate(store, end);
    return result < 0 ? write_failed(store, result, "tables", error) : true;
}

static bool write_reftable(Store *store, const Qcow2Plan *plan, GError **error)
{
    size_t length = plan->refblocks * 8;
    g_autofree uint8_t *table = g_malloc0(length);
    for (uint64_t i = 0; i < plan->refblocks; i++) {
        store_be64(table + i * 8, plan_refblock_offset(plan) + (i << plan->cluster_bits));
    }
    int result = store_write(store, table, length, plan_cluster_bytes(plan));
    return result < 0 ? write_failed(store, result, "refcount table", error) : true;
}

static bool write_refblocks(Store *store, const Qcow2Plan *plan, GError **error)
{
    size_t length = div_round_up(plan->clusters << plan->refcount_order, 8);
    g_autofree uint8_t *counts = g_malloc0(length);
    for (uint64_t i = 0; i < plan->clusters; i++) {
        qcow2_refcount_store(counts, i, plan->refcount_order, 1);
    }
    int result = store_write(store, counts, length, plan_refblock_offset(plan));
    return result < 0 ? write_failed(store, result, "refcount blocks", error) : true;
}

/* All of the disk, each cluster at its own offset in the data file. The entries behind its end stay 0. */
static void fill_l2(const Qcow2Plan *plan, uint64_t first, uint8_t *table)
{
    uint64_t end = div_round_up(plan->size, plan_cluster_bytes(plan));
    uint64_t entries = plan_cluster_bytes(plan) >> plan_entry_bits(plan);
    for (uint64_t i = 0; i < entries; i++) {
        bool used = first + i < end;
        uint8_t *entry = table + (i << plan_entry_bits(plan));
        store_be64(entry, used ? (first + i) << plan->cluster_bits | QCOW2_COPIED : 0);
        if (plan->extended_l2) {
            store_be64(entry + 8, used ? qcow2_subcluster_bitmap(QCOW2_SUBCLUSTERS_ALL, 0) : 0);
        }
    }
}

static bool write_l2(Store *store, const Qcow2Plan *plan, GError **error)
{
    uint64_t cluster = plan_cluster_bytes(plan), entries = cluster >> plan_entry_bits(plan);
    g_autofree uint8_t *l1 = g_malloc0(plan->l2_clusters * 8), *table = g_malloc(cluster);
    int result = 0;
    for (uint64_t i = 0; i < plan->l2_clusters && result == 0; i++) {
        uint64_t offset = plan_l2_offset(plan) + (i << plan->cluster_bits);
        store_be64(l1 + i * 8, offset | QCOW2_COPIED);
        fill_l2(plan, i * entries, table);
        result = store_write(store, table, cluster, offset);
    }
    if (result == 0 && plan->l2_clusters > 0) {
        result = store_write(store, l1, plan->l2_clusters * 8, plan_l1_offset(plan));
    }
    return result < 0 ? write_failed(store, result, "L1 and L2 tables", error) : true;
}

static bool write_luks(Store *store, const Qcow2Plan *plan, const GByteArray *luks, GError **error)
{
    int result = luks ? store_write(store, luks->data, luks->len, plan_luks_offset(plan)) : 0;
    return result < 0 ? write_failed(store, result, "LUKS header", error) : true;
}

/* Names of the feature bits, for programs that do not know them: type, bit, 46 characters of name. */
static GByteArray *feature_names(void)
{
    static const struct {
        uint8_t type, bit;
        const char *name;
    } features[] = {
        {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
        {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
        {2, 0, "bitmaps"},          {2, 1, "raw external data"},
    };
    GByteArray *names = g_byte_array_new();
    for (unsigned i = 0; i < G_N_ELEMENTS(features); i++) {
        uint8_t entry[48] = {features[i].type, features[i].bit};
        memcpy(entry + 2, features[i].name, strlen(features[i].name));
        g_byte_array_append(names, entry, sizeof entry);
    }
    return names;
}

static void append_extension(GByteArray *extensions, uint32_t type, const void *data,
                             uint32_t length)
{
    static const uint8_t padding[8];
    uint8_t head[EXTENSION_HEAD];
    store_be32(head, type);
    store_be32(head + 4, length);
    g_byte_array_append(extensions, head, sizeof head);
    if (length > 0) {
        g_byte_array_append(extensions, data, length);
        g_byte_array_append(extensions, padding, align_up(length, 8) - length);
    }
}

static Qcow2Header plan_header(const Qcow2Plan *plan)
{
    return (Qcow2Header){
        .version = plan->version,
        .cluster_bits = plan->cluster_bits,
        .size = plan->size,
        .crypt_method = plan->crypt_method,
        .l1_size = plan->l1_entries,
        .l1_table_offset = plan->l1_entries > 0 ? plan_l1_offset(plan) : 0,
        .refcount_table_offset = plan_cluster_bytes(plan),
        .refcount_table_clusters = plan->reftable_clusters,
        .incompatible_features = (plan->zstd ? QCOW2_INCOMPAT_COMPRESSION : 0) |
                                 (plan->extended_l2 ? QCOW2_INCOMPAT_EXTENDED_L2 : 0) |
                                 (plan->data_file ? QCOW2_INCOMPAT_DATA_FILE : 0),
        .autoclear_features = plan->data_raw ? QCOW2_AUTOCLEAR_DATA_RAW : 0,
        .compatible_features = plan->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0,
        .refcount_order = plan->refcount_order,
        .header_length = plan->version >= 3 ? HEADER_LENGTH : QCOW2_V2_HEADER_LENGTH,
        .compression_type = plan->zstd ? QCOW2_COMPRESSION_ZSTD : QCOW2_COMPRESSION_ZLIB,
    };
}

/* The feature names are left out where the first cluster has no room for them and for bitmaps: they
 * are only a courtesy. */
static GByteArray *build_extensions(const Qcow2Plan *plan, const FormatCreate *how, size_t room)
{
    GByteArray *extensions = g_byte_array_new();
    const char *format = format_name_in_images(how->backing_format);
    if (format) {
        append_extension(extensions, QCOW2_EXT_BACKING_FORMAT, format, strlen(format));
    }
    if (plan->data_file) {
        append_extension(extensions, QCOW2_EXT_DATA_FILE, plan->data_file, strlen(plan->data_file));
    }
    if (plan->luks_length > 0) {
        uint8_t where[QCOW2_CRYPTO_EXT_LENGTH];
        store_be64(where, plan_luks_offset(plan));
        store_be64(where + 8, plan->luks_length);
        append_extension(extensions, QCOW2_EXT_CRYPTO, where, sizeof where);
    }
    if (plan->version >= 3) {
        g_autoptr(GByteArray) names = feature_names();
        size_t others = 3 * EXTENSION_HEAD + QCOW2_BITMAPS_EXT_LENGTH;
        if (extensions->len + names->len + others <= room) {
            append_extension(extensions, QCOW2_EXT_FEATURE_NAMES, names->data, names->len);
        }
    }
    append_extension(extensions, QCOW2_EXT_END, NULL, 0);
    return extensions;
}

static bool check_backing_name(const Qcow2Plan *plan, size_t length, size_t room, GError **error)
{
    if (length > QCOW2_MAX_BACKING_NAME) {
        return error_set(error, EINVAL, "the backing name has %zu bytes: must be at most %u",
                         length, QCOW2_MAX_BACKING_NAME);
    }
    if (length > room) {
        return error_set(error, EINVAL,
                         "the backing name has %zu bytes: cluster_size %" G_GUINT64_FORMAT
                         " leaves room for %zu",
                         length, plan_cluster_bytes(plan), room);
    }
    return true;
}

/* Header, extensions, backing name: all of it must fit the first cluster. */
static GByteArray *build_header(const Qcow2Plan *plan, const FormatCreate *how, GError **error)
{
    Qcow2Header header = plan_header(plan);
    size_t name_length = how->backing_name ? strlen(how->backing_name) : 0;
    size_t room = plan_cluster_bytes(plan) - header.header_length;
    g_autoptr(GByteArray) extensions =
        build_extensions(plan, how, name_length < room ? room - name_length : 0);
    size_t name_room = extensions->len < room ? room - extensions->len : 0;
    if (!check_backing_name(plan, name_length, name_room, error)) {
        return NULL;
    }
    if (name_length > 0) {
        header.backing_file_offset = header.header_length + extensions->len;
        header.backing_file_size = name_length;
    }
    Qcow2HeaderDisk disk;
    qcow2_header_pack(&header, &disk);
    GByteArray *bytes = g_byte_array_new();
    g_byte_array_append(bytes, (const uint8_t *)&disk, header.header_length);
    g_byte_array_append(bytes, extensions->data, extensions->len);
    if (name_length > 0) {
        g_byte_array_append(bytes, (const uint8_t *)how->backing_name, name_length);
    }
    return bytes;
}

static bool sync_store(Store *store, GError **error)
{
    int result = store_sync(store);
    return result < 0 ? error_set_errno(error, -result, "%s: cannot sync", store->name) : true;
}

/* As long as the disk, and empty. */
static bool make_data_file(const Qcow2Plan *plan, const FormatCreate *how, GError **error)
{
    if (!plan->data_file) {
        return true;
    }
    if (!how->files) {
        return error_set(error, EINVAL, "data_file is given, but no file can be made beside this");
    }
    g_autoptr(Store) data = how->files->make(how->files, plan->data_file, error);
    if (!data) {
        return false;
    }
    int result = store_truncate(data, plan->size);
    return result < 0 ? write_failed(data, result, "data file", error) : sync_store(data, error);
}

bool qcow2_create(Store *store, const FormatCreate *how, GError **error)
{
    Qcow2Plan plan;
    if (!qcow2_plan_make(&plan, how, error)) {
        return false;
    }
    g_autoptr(GByteArray) luks = NULL;
    if (!qcow2_encryption_make(plan.crypt_method, how, store->name, &luks, error)) {
        return false;
    }
    plan.luks_length = luks ? luks->len : 0;
    qcow2_plan_layout(&plan);
    g_autoptr(GByteArray) header = build_header(&plan, how, error);
    if (!header || !make_data_file(&plan, how, error) || !write_empty(store, &plan, error) ||
        !write_reftable(store, &plan, error) || !write_refblocks(store, &plan, error) ||
        !write_l2(store, &plan, error) || !write_luks(store, &plan, luks, error) ||
        !sync_store(store, error)) {
        return false;
    }
    int result = store_write(store, header->data, header->len, 0);
    return result < 0 ? write_failed(store, result, "header", error) : sync_store(store, error);
}

static void add_option(GHashTable *options, const char *name, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

static void add_option(GHashTable *options, const char *name, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    g_hash_table_insert(options, g_strdup(name), g_strdup_vprintf(format, arguments));
    va_end(arguments);
}

bool qcow2_create_like(const Image *image, GHashTable *options, GError **error)
{
    const Qcow2State *s = image->state;
    const Qcow2Header *h = &s->header;
    const uint64_t made = QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_EXTENDED_L2;
    if (s->snapshots->len > 0 || s->bitmap_count > 0) {
        return error_set(error, ENOTSUP,
                         "%s: has internal snapshots or bitmaps, which would be lost", image->path);
    }
    if (s->external) {
        return error_set(error, ENOTSUP,
                         "%s: its data lies in %s, where every cluster has its one place",
                         image->path, s->data->name);
    }
    if (h->incompatible_features & ~made) {
        return error_set(error, ENOTSUP,
                         "%s: incompatible_features is 0x%" PRIx64 ": must be 0x%" PRIx64
                         " at most: check --repair=all clears dirty and corrupt",
                         image->path, h->incompatible_features, made);
    }
    add_option(options, "cluster_size", "%" PRIu64, s->cluster_size);
    add_option(options, "compat", "%s", h->version >= 3 ? "1.1" : "0.10");
    if (h->version >= 3) {
        bool lazy = h->compatible_features & QCOW2_COMPAT_LAZY_REFCOUNTS;
        add_option(options, "extended_l2", "%s", s->extended ? "on" : "off");
        add_option(options, "lazy_refcounts", "%s", lazy ? "on" : "off");
        add_option(options, "refcount_bits", "%u", 1u << s->refcount_order);
        add_option(options, "compression_type", "%s",
                   h->compression_type == QCOW2_COMPRESSION_ZSTD ? "zstd" : "zlib");
    }
    if (image->encryption) {
        add_option(options, "encrypt.format", "%s", image->encryption->method);
    }
    return true;
}
