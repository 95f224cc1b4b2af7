/*
 * qcow2: what create shall make: the options, checked, and where each table will lie.
 *
 * The refcount blocks count every cluster of the file, themselves included, so the layout is a
 * fixed point: more clusters may need another block, which is another cluster. It is found by
 * trying again until nothing grows.
 */
#include "formats/qcow2-create.h"

#include <string.h>

#include "base/errors.h"
#include "formats/luks-header.h"
#include "formats/option.h"
#include "formats/qcow2-bitmap.h"

#define CLUSTER_BITS_DEFAULT   16
#define REFCOUNT_ORDER_DEFAULT 4
#define SECTOR                 512

const FormatOption qcow2_create_options[] = {
    {"cluster_size", "size of a cluster: 512 to 2M, a power of two (default 64k)"},
    {"compat", "version of the format: 0.10 (v2) or 1.1 (v3, the default)"},
    {"compression_type", "how clusters may be compressed: zlib (default) or zstd"},
    {"data_file", "file for the data of the disk, beside the image or with an absolute name"},
    {"data_file_raw", "the data file alone reads as the disk does: on or off (default)"},
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

static bool plan_cluster_size(Qcow2Plan *plan, const char *text, GError **error)
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

static bool plan_version(Qcow2Plan *plan, const char *text, GError **error)
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

static bool plan_refcount_bits(Qcow2Plan *plan, const char *text, GError **error)
{
    uint64_t bits = 0;
    if (!option_parse_number(text, 64, &bits) || !is_power_of_two(bits)) {
        return error_set(error, EINVAL, "refcount_bits is '%s': must be 1, 2, 4, 8, 16, 32 or 64",
                         text);
    }
    plan->refcount_order = __builtin_ctzll(bits);
    return true;
}

static bool plan_lazy_refcounts(Qcow2Plan *plan, const char *text, GError **error)
{
    if (!option_parse_switch(text, &plan->lazy_refcounts)) {
        return error_set(error, EINVAL, "lazy_refcounts is '%s': must be on or off", text);
    }
    return true;
}

static bool plan_extended_l2(Qcow2Plan *plan, const char *text, GError **error)
{
    if (!option_parse_switch(text, &plan->extended_l2)) {
        return error_set(error, EINVAL, "extended_l2 is '%s': must be on or off", text);
    }
    return true;
}

static bool plan_data_file(Qcow2Plan *plan, const char *text, GError **error)
{
    plan->data_file = text;
    size_t length = strlen(text);
    return (length > 0 && length <= QCOW2_MAX_DATA_FILE_NAME) ||
           error_set(error, EINVAL, "data_file has %zu bytes: must be a name of 1 to %u", length,
                     QCOW2_MAX_DATA_FILE_NAME);
}

static bool plan_data_raw(Qcow2Plan *plan, const char *text, GError **error)
{
    return option_parse_switch(text, &plan->data_raw) ||
           error_set(error, EINVAL, "data_file_raw is '%s': must be on or off", text);
}

static bool plan_compression(Qcow2Plan *plan, const char *text, GError **error)
{
    plan->zstd = strcmp(text, "zstd") == 0;
    if (!plan->zstd && strcmp(text, "zlib") != 0) {
        return error_set(error, EINVAL, "compression_type is '%s': must be zlib or zstd", text);
    }
    return true;
}

static bool plan_options(Qcow2Plan *plan, GHashTable *options, GError **error)
{
    static const struct {
        const char *name;
        bool (*take)(Qcow2Plan *plan, const char *text, GError **error);
    } takers[] = {
        {"cluster_size", plan_cluster_size},    {"compat", plan_version},
        {"refcount_bits", plan_refcount_bits},  {"lazy_refcounts", plan_lazy_refcounts},
        {"compression_type", plan_compression}, {"extended_l2", plan_extended_l2},
        {"data_file", plan_data_file},          {"data_file_raw", plan_data_raw},
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
static bool plan_check_version(const Qcow2Plan *plan, GError **error)
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
    if (plan->data_file) {
        return error_set(error, EINVAL, "data_file is given with compat=0.10: needs compat=1.1");
    }
    if (plan->zstd) {
        return error_set(error, EINVAL,
                         "compression_type is zstd with compat=0.10: needs compat=1.1");
    }
    return true;
}

/* Guest bytes that one L1 entry covers: one cluster full of L2 entries. */
static uint64_t plan_l1_reach(const Qcow2Plan *plan)
{
    return UINT64_C(1) << (2 * plan->cluster_bits - plan_entry_bits(plan));
}

/* Who reads the data file alone sees no backing and has no key. */
static bool plan_check_data_raw(const Qcow2Plan *plan, const FormatCreate *how, GError **error)
{
    if (!plan->data_raw) {
        return true;
    }
    if (!plan->data_file) {
        return error_set(error, EINVAL, "data_file_raw is on: needs data_file");
    }
    if (how->backing_name || plan->crypt_method != QCOW2_CRYPT_NONE) {
        return error_set(error, EINVAL, "data_file_raw is on with %s: must be off",
                         how->backing_name ? "a backing file" : "encryption");
    }
    return true;
}

/* The smallest cluster whose L1 table can hold the disk, or 0. */
static uint64_t cluster_size_for(const Qcow2Plan *plan)
{
    for (unsigned bits = plan->cluster_bits; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
        uint64_t reach = UINT64_C(1) << (2 * bits - plan_entry_bits(plan));
        if (div_round_up(plan->size, reach) * 8 <= QCOW2_MAX_L1_BYTES) {
            return UINT64_C(1) << bits;
        }
    }
    return 0;
}

static bool plan_l1(Qcow2Plan *plan, GError **error)
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

void qcow2_plan_layout(Qcow2Plan *plan)
{
    uint64_t cluster = plan_cluster_bytes(plan);
    uint64_t counts_per_block = cluster * 8 >> plan->refcount_order;
    plan->refblocks = 1;
    plan->reftable_clusters = 1;
    plan->l2_clusters = plan->data_raw ? plan->l1_entries : 0;
    plan->luks_clusters = div_round_up(plan->luks_length, cluster);
    for (;;) {
        plan->clusters = 1 + plan->reftable_clusters + plan->refblocks + plan->l1_clusters +
                         plan->l2_clusters + plan->luks_clusters;
        uint64_t blocks = div_round_up(plan->clusters, counts_per_block);
        uint64_t table = div_round_up(plan->refblocks * 8, cluster);
        if (blocks <= plan->refblocks && table <= plan->reftable_clusters) {
            return;
        }
        plan->refblocks = max_u64(blocks, plan->refblocks);
        plan->reftable_clusters = max_u64(table, plan->reftable_clusters);
    }
}

bool qcow2_plan_make(Qcow2Plan *plan, const FormatCreate *how, GError **error)
{
    if (how->size > INT64_MAX) {
        return error_set(error, EFBIG, "image size %" G_GUINT64_FORMAT ": must be below 2^63",
                         how->size);
    }
    *plan = (Qcow2Plan){
        .version = 3,
        .cluster_bits = CLUSTER_BITS_DEFAULT,
        .refcount_order = REFCOUNT_ORDER_DEFAULT,
        /* others count the disk in sectors and drop the rest */
        .size = align_up(how->size, SECTOR),
    };
    if (!option_check_preallocation(how->options, error) ||
        !plan_options(plan, how->options, error) ||
        !qcow2_encryption_plan(how->options, &plan->crypt_method, error) ||
        !plan_check_version(plan, error) || !plan_check_data_raw(plan, how, error)) {
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

/* Refcount blocks and the table that names them, for that many clusters and for themselves. */
static uint64_t refcount_bytes(const Qcow2Plan *plan, uint64_t clusters)
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
    Qcow2Plan plan;
    uint64_t luks = 0;
    if (!qcow2_plan_make(&plan, how, error) ||
        (plan.crypt_method == QCOW2_CRYPT_LUKS &&
         !luks_header_length(how->options, "encrypt.", &luks, error))) {
        return false;
    }
    uint64_t cluster = plan_cluster_bytes(&plan), size = align_up(plan.size, cluster);
    uint64_t l2_bytes = align_up(size / cluster << plan_entry_bits(&plan), cluster);
    uint64_t l1_bytes = align_up(l2_bytes / cluster * 8, cluster);
    uint64_t tables = cluster + l1_bytes + l2_bytes + align_up(luks, cluster);
    tables += refcount_bytes(&plan, (tables + size) / cluster);
    measure->fully_allocated = tables + size;
    measure->required = tables + measure->data(measure->opaque, cluster);
    measure->has_bitmaps = plan.version >= 3 && measure->source &&
                           measure->source->format == &format_qcow2 &&
                           ((const Qcow2State *)measure->source->state)->header.version >= 3;
    measure->bitmaps = measure->has_bitmaps ? qcow2_bitmaps_measure(measure->source, cluster) : 0;
    return true;
}
