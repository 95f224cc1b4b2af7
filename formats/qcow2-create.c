/*
 * qcow2: a new, empty image.
 *
 *     +--------+----------------+-----------------+----------+-------------+
 *     | header | refcount table | refcount blocks | L1 table | LUKS header |     each begins at a cluster of
 *     +--------+----------------+-----------------+----------+-------------+     its own
 *
 * The refcount blocks count every cluster of the file, themselves included, so the layout is a
 * fixed point: more clusters may need another block, which is another cluster. It is found by
 * trying again until nothing grows.
 *
 * The header is written last, after a sync: a file whose creation was cut short is no image at all
 * rather than a broken one.
 */
#include "formats/qcow2.h"

#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/option.h"

#define CLUSTER_BITS_DEFAULT   16
#define REFCOUNT_ORDER_DEFAULT 4
#define HEADER_LENGTH          112 /* with the compression type */
#define EXTENSION_HEAD         8   /* type and length */
#define SECTOR                 512
#define LUKS_LENGTH            (UINT64_C(2) << 20) /* as libcryptsetup makes it, for measure */

const FormatOption qcow2_create_options[] = {
    {"cluster_size", "size of a cluster: 512 to 2M, a power of two (default 64k)"},
    {"compat", "version of the format: 0.10 (v2) or 1.1 (v3, the default)"},
    {"compression_type", "how clusters may be compressed: zlib (default) or zstd"},
    {"encrypt.format", "luks, or aes for programs that know nothing better"},
    {"encrypt.cipher-alg", "luks: aes-128, aes-192 or aes-256 (default)"},
    {"encrypt.cipher-mode", "luks: xts (default) or cbc"},
    {"encrypt.hash-alg", "luks: hash of the passphrase: sha256 (default), sha1, sha512 ..."},
    {"encrypt.iter-time", "luks: milliseconds that opening it takes: 1 to 20000 (default 2000)"},
    {"encrypt.iterations", "luks: rounds of the derivation, in place of iter-time"},
    {"encrypt.ivgen-alg", "luks: plain, plain64 (default) or essiv"},
    {"encrypt.ivgen-hash-alg", "luks: hash for essiv (default sha256)"},
    {"extended_l2", "clusters have 32 parts that are allocated one by one: on or off (default)"},
    {"lazy_refcounts", "put off refcount updates: on or off (default)"},
    {"preallocation", "space that the disk gets at once: off (default), metadata, falloc or full"},
    {"refcount_bits", "width of a refcount: 1, 2, 4, 8, 16 (default), 32 or 64"},
    {NULL, NULL},
};

typedef struct Plan {
    unsigned version;
    unsigned cluster_bits;
    unsigned refcount_order;
    bool extended_l2;
    bool lazy_refcounts;
    bool zstd;
    unsigned crypt_method;
    uint64_t size;
    uint64_t luks_length; /* bytes; 0: there is no LUKS header */

    uint64_t reftable_clusters, refblocks, l1_entries, l1_clusters, luks_clusters, clusters;
} Plan;

static bool plan_cluster_size(Plan *plan, const char *text, GError **error)
{
    uint64_t size = 0;
    if (!option_parse_size(text, &size) || !is_power_of_two(size) ||
        size < 1u << QCOW2_MIN_CLUSTER_BITS || size > 1u << QCOW2_MAX_CLUSTER_BITS) {
        return error_set(error, EINVAL,
                         "cluster_size is '%s': must be a power of two from 512 to 2M", text);
    }
    plan->cluster_bits = __builtin_ctzll(size);
    return true;
}

static bool plan_version(Plan *plan, const char *text, GError **error)
{
    static const char *const names[] = {"0.10", "v2", "1.1", "v3"};
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            plan->version = i < 2 ? 2 : 3;
            return true;
        }
    }
    return error_set(error, EINVAL, "compat is '%s': must be 0.10 (or v2) or 1.1 (or v3)", text);
}

static bool plan_refcount_bits(Plan *plan, const char *text, GError **error)
{
    uint64_t bits = 0;
    if (!option_parse_number(text, 64, &bits) || !is_power_of_two(bits)) {
        return error_set(error, EINVAL, "refcount_bits is '%s': must be 1, 2, 4, 8, 16, 32 or 64",
                         text);
    }
    plan->refcount_order = __builtin_ctzll(bits);
    return true;
}

static bool plan_lazy_refcounts(Plan *plan, const char *text, GError **error)
{
    if (!option_parse_switch(text, &plan->lazy_refcounts)) {
        return error_set(error, EINVAL, "lazy_refcounts is '%s': must be on or off", text);
    }
    return true;
}

static bool plan_extended_l2(Plan *plan, const char *text, GError **error)
{
    if (!option_parse_switch(text, &plan->extended_l2)) {
        return error_set(error, EINVAL, "extended_l2 is '%s': must be on or off", text);
    }
    return true;
}

static bool plan_compression(Plan *plan, const char *text, GError **error)
{
    plan->zstd = strcmp(text, "zstd") == 0;
    if (!plan->zstd && strcmp(text, "zlib") != 0) {
        return error_set(error, EINVAL, "compression_type is '%s': must be zlib or zstd", text);
    }
    return true;
}

static bool plan_options(Plan *plan, GHashTable *options, GError **error)
{
    static const struct {
        const char *name;
        bool (*take)(Plan *plan, const char *text, GError **error);
    } takers[] = {
        {"cluster_size", plan_cluster_size},    {"compat", plan_version},
        {"refcount_bits", plan_refcount_bits},  {"lazy_refcounts", plan_lazy_refcounts},
        {"compression_type", plan_compression}, {"extended_l2", plan_extended_l2},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(takers); i++) {
        const char *text = option_lookup(options, takers[i].name);
        if (text && !takers[i].take(plan, text, error)) {
            return false;
        }
    }
    return true;
}

/* What only version 3 knows. */
static bool plan_check_version(const Plan *plan, GError **error)
{
    if (plan->version >= 3) {
        return true;
    }
    if (plan->refcount_order != REFCOUNT_ORDER_DEFAULT) {
        return error_set(error, EINVAL,
                         "refcount_bits is %u with compat=0.10: must be 16, or compat=1.1",
                         1u << plan->refcount_order);
    }
    if (plan->lazy_refcounts) {
        return error_set(error, EINVAL, "lazy_refcounts is on with compat=0.10: needs compat=1.1");
    }
    if (plan->extended_l2) {
        return error_set(error, EINVAL, "extended_l2 is on with compat=0.10: needs compat=1.1");
    }
    if (plan->zstd) {
        return error_set(error, EINVAL,
                         "compression_type is zstd with compat=0.10: needs compat=1.1");
    }
    return true;
}

static uint64_t plan_cluster_bytes(const Plan *plan)
{
    return UINT64_C(1) << plan->cluster_bits;
}

static unsigned plan_entry_bits(const Plan *plan)
{
    return plan->extended_l2 ? 4 : 3;
}

/* Guest bytes that one L1 entry covers: one cluster full of L2 entries. */
static uint64_t plan_l1_reach(const Plan *plan)
{
    return UINT64_C(1) << (2 * plan->cluster_bits - plan_entry_bits(plan));
}

/* The smallest cluster whose L1 table can hold the disk, or 0. */
static uint64_t cluster_size_for(const Plan *plan)
{
    for (unsigned bits = plan->cluster_bits; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
        uint64_t reach = UINT64_C(1) << (2 * bits - plan_entry_bits(plan));
        if (div_round_up(plan->size, reach) * 8 <= QCOW2_MAX_L1_BYTES) {
            return UINT64_C(1) << bits;
        }
    }
    return 0;
}

static bool plan_l1(Plan *plan, GError **error)
{
    plan->l1_entries = div_round_up(plan->size, plan_l1_reach(plan));
    if (plan->l1_entries * 8 > QCOW2_MAX_L1_BYTES) {
        uint64_t enough = cluster_size_for(plan);
        g_autofree char *hint =
            enough ? g_strdup_printf(", or use cluster_size=%" G_GUINT64_FORMAT, enough)
                   : g_strdup("");
        return error_set(error, EFBIG,
                         "image size %" G_GUINT64_FORMAT
                         " is too large for cluster_size %" G_GUINT64_FORMAT
                         ": must be at most %" G_GUINT64_FORMAT "%s",
                         plan->size, plan_cluster_bytes(plan),
                         plan_l1_reach(plan) * (QCOW2_MAX_L1_BYTES / 8), hint);
    }
    plan->l1_clusters = div_round_up(plan->l1_entries * 8, plan_cluster_bytes(plan));
    return true;
}

static void plan_layout(Plan *plan)
{
    uint64_t cluster = plan_cluster_bytes(plan);
    uint64_t counts_per_block = cluster * 8 >> plan->refcount_order;
    plan->refblocks = 1;
    plan->reftable_clusters = 1;
    plan->luks_clusters = div_round_up(plan->luks_length, cluster);
    for (;;) {
        plan->clusters =
            1 + plan->reftable_clusters + plan->refblocks + plan->l1_clusters + plan->luks_clusters;
        uint64_t blocks = div_round_up(plan->clusters, counts_per_block);
        uint64_t table = div_round_up(plan->refblocks * 8, cluster);
        if (blocks <= plan->refblocks && table <= plan->reftable_clusters) {
            return;
        }
        plan->refblocks = max_u64(blocks, plan->refblocks);
        plan->reftable_clusters = max_u64(table, plan->reftable_clusters);
    }
}

static uint64_t plan_refblock_offset(const Plan *plan)
{
    return (1 + plan->reftable_clusters) << plan->cluster_bits;
}

static uint64_t plan_l1_offset(const Plan *plan)
{
    return plan_refblock_offset(plan) + (plan->refblocks << plan->cluster_bits);
}

static uint64_t plan_luks_offset(const Plan *plan)
{
    return plan_l1_offset(plan) + (plan->l1_clusters << plan->cluster_bits);
}

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

static bool write_empty(Store *store, const Plan *plan, GError **error)
{
    uint64_t end = plan->clusters << plan->cluster_bits;
    if (store_size(store) > 0) {
        return write_zeroes(store, 0, end, error);
    }
    int result = store_truncate(store, end);
    return result < 0 ? write_failed(store, result, "tables", error) : true;
}

static bool write_reftable(Store *store, const Plan *plan, GError **error)
{
    size_t length = plan->refblocks * 8;
    g_autofree uint8_t *table = g_malloc0(length);
    for (uint64_t i = 0; i < plan->refblocks; i++) {
        store_be64(table + i * 8, plan_refblock_offset(plan) + (i << plan->cluster_bits));
    }
    int result = store_write(store, table, length, plan_cluster_bytes(plan));
    return result < 0 ? write_failed(store, result, "refcount table", error) : true;
}

static bool write_refblocks(Store *store, const Plan *plan, GError **error)
{
    size_t length = div_round_up(plan->clusters << plan->refcount_order, 8);
    g_autofree uint8_t *counts = g_malloc0(length);
    for (uint64_t i = 0; i < plan->clusters; i++) {
        qcow2_refcount_store(counts, i, plan->refcount_order, 1);
    }
    int result = store_write(store, counts, length, plan_refblock_offset(plan));
    return result < 0 ? write_failed(store, result, "refcount blocks", error) : true;
}

static bool write_luks(Store *store, const Plan *plan, const GByteArray *luks, GError **error)
{
    int result = luks ? store_write(store, luks->data, luks->len, plan_luks_offset(plan)) : 0;
    return result < 0 ? write_failed(store, result, "LUKS header", error) : true;
}

/* Names of the feature bits, for programs that do not know them: type, bit, 46 characters of name.
 */
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

static Qcow2Header plan_header(const Plan *plan)
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
                                 (plan->extended_l2 ? QCOW2_INCOMPAT_EXTENDED_L2 : 0),
        .compatible_features = plan->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0,
        .refcount_order = plan->refcount_order,
        .header_length = plan->version >= 3 ? HEADER_LENGTH : QCOW2_V2_HEADER_LENGTH,
        .compression_type = plan->zstd ? QCOW2_COMPRESSION_ZSTD : QCOW2_COMPRESSION_ZLIB,
    };
}

/* The feature names are left out where the first cluster has no room for them and for bitmaps: they
 * are only a courtesy. */
static GByteArray *build_extensions(const Plan *plan, const FormatCreate *how, size_t room)
{
    GByteArray *extensions = g_byte_array_new();
    const char *format = format_name_in_images(how->backing_format);
    if (format) {
        append_extension(extensions, QCOW2_EXT_BACKING_FORMAT, format, strlen(format));
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

static bool check_backing_name(const Plan *plan, size_t length, size_t room, GError **error)
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
static GByteArray *build_header(const Plan *plan, const FormatCreate *how, GError **error)
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

static bool make_plan(Plan *plan, const FormatCreate *how, GError **error)
{
    if (how->size > INT64_MAX) {
        return error_set(error, EFBIG, "image size %" G_GUINT64_FORMAT ": must be below 2^63",
                         how->size);
    }
    *plan = (Plan){
        .version = 3,
        .cluster_bits = CLUSTER_BITS_DEFAULT,
        .refcount_order = REFCOUNT_ORDER_DEFAULT,
        /* others count the disk in sectors and drop the rest */
        .size = align_up(how->size, SECTOR),
    };
    if (!option_check_preallocation(how->options, error) ||
        !plan_options(plan, how->options, error) ||
        !qcow2_encryption_plan(how->options, &plan->crypt_method, error) ||
        !plan_check_version(plan, error)) {
        return false;
    }
    if (plan->extended_l2 && plan->cluster_bits < QCOW2_EXTENDED_CLUSTER_BITS) {
        return error_set(error, EINVAL,
                         "extended_l2 is on with cluster_size %" G_GUINT64_FORMAT
                         ": needs clusters of at least 16k",
                         plan_cluster_bytes(plan));
    }
    return plan_l1(plan, error);
}

bool qcow2_create(Store *store, const FormatCreate *how, GError **error)
{
    Plan plan;
    if (!make_plan(&plan, how, error)) {
        return false;
    }
    g_autoptr(GByteArray) luks = NULL;
    if (!qcow2_encryption_make(plan.crypt_method, how, store->name, &luks, error)) {
        return false;
    }
    plan.luks_length = luks ? luks->len : 0;
    plan_layout(&plan);
    g_autoptr(GByteArray) header = build_header(&plan, how, error);
    if (!header || !write_empty(store, &plan, error) || !write_reftable(store, &plan, error) ||
        !write_refblocks(store, &plan, error) || !write_luks(store, &plan, luks, error) ||
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
    if (image->encryption) {
        return error_set(error, ENOTSUP, "%s: is encrypted", image->path);
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
    return true;
}

/* Refcount blocks and the table that names them, for that many clusters and for themselves. */
static uint64_t refcount_bytes(const Plan *plan, uint64_t clusters)
{
    uint64_t cluster = plan_cluster_bytes(plan);
    uint64_t counts_per_block = cluster * 8 >> plan->refcount_order;
    uint64_t blocks = 0, tables = 0, before;
    do {
        before = blocks + tables;
        blocks = div_round_up(clusters + blocks + tables, counts_per_block);
        tables = div_round_up(blocks * 8, cluster);
    } while (blocks + tables != before);
    return (blocks + tables) << plan->cluster_bits;
}

/* Tables are counted for all of the disk, as qemu-img does: the image may fill up. */
bool qcow2_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    Plan plan;
    if (!make_plan(&plan, how, error)) {
        return false;
    }
    uint64_t cluster = plan_cluster_bytes(&plan), size = align_up(plan.size, cluster);
    uint64_t l2_bytes = align_up(size / cluster << plan_entry_bits(&plan), cluster);
    uint64_t l1_bytes = align_up(l2_bytes / cluster * 8, cluster);
    uint64_t luks = plan.crypt_method == QCOW2_CRYPT_LUKS ? LUKS_LENGTH : 0;
    uint64_t tables = cluster + l1_bytes + l2_bytes + align_up(luks, cluster);
    tables += refcount_bytes(&plan, (tables + size) / cluster);
    measure->fully_allocated = tables + size;
    measure->required = tables + measure->data(measure->opaque, cluster);
    return true;
}
