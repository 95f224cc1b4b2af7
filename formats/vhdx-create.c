/*
 * vhdx: create.
 *
 *     0        signature, headers, region tables
 *     1 MiB    log | metadata | table | blocks, if the disk is fixed
 *
 * The signature is written last: half an image is none.
 */
#include "formats/vhdx.h"

#include "base/errors.h"
#include "formats/option.h"
#include "formats/space.h"

#define LOG_DEFAULT        VHDX_MIB
#define BLOCK_DIFFERENCING (2 * VHDX_MIB)
#define METADATA_LENGTH    VHDX_MIB
#define WRITE_ENTRIES      8192u /* of the table, at a time */
#define CREATOR_LENGTH     512u
#define KNOWN_REGIONS      3u /* log, table, metadata */

const FormatOption vhdx_create_options[] = {
    {"subformat", "dynamic (default, grows) or fixed"},
    {"block_size", "size of a block: 1M to 256M, a power of two (default 8M to 64M, by the size)"},
    {"log_size", "size of the log: a multiple of 1M up to 64M (default 1M)"},
    {"block_state_zero", "blocks that are not there are called zero: on or off (default)"},
    {"logical_sector_size", "512 (default) or 4096"},
    {NULL, NULL},
};

typedef struct Plan {
    VhdxState layout; /* sizes, regions, log */
    uint64_t size;
    uint64_t metadata_length;
    bool zero_state;
    VhdxParent parent;
} Plan;

static uint64_t default_block_size(uint64_t size, bool differencing)
{
    if (differencing) {
        return BLOCK_DIFFERENCING;
    }
    if (size > UINT64_C(32) << 40) {
        return 64 * VHDX_MIB;
    }
    if (size > UINT64_C(100) << 30) {
        return 32 * VHDX_MIB;
    }
    return size > UINT64_C(1) << 30 ? 16 * VHDX_MIB : 8 * VHDX_MIB;
}

static bool plan_sizes(Plan *plan, GHashTable *options, GError **error)
{
    VhdxState *s = &plan->layout;
    const char *block = option_lookup(options, "block_size");
    const char *log = option_lookup(options, "log_size");
    const char *sector = option_lookup(options, "logical_sector_size");
    if (block && (!option_parse_size(block, &s->block_size) || !is_power_of_two(s->block_size) ||
                  s->block_size < VHDX_BLOCK_MIN || s->block_size > VHDX_BLOCK_MAX)) {
        return error_set(error, EINVAL,
                         "block_size is '%s': must be a power of two from 1M to 256M", block);
    }
    if (log && (!option_parse_size(log, &s->header.log.length) || s->header.log.length == 0 ||
                s->header.log.length % VHDX_MIB != 0 || s->header.log.length > VHDX_LOG_MAX)) {
        return error_set(error, EINVAL, "log_size is '%s': must be a multiple of 1M up to 64M",
                         log);
    }
    if (sector && (!option_parse_size(sector, &s->sector_size) ||
                   (s->sector_size != 512 && s->sector_size != 4096))) {
        return error_set(error, EINVAL, "logical_sector_size is '%s': must be 512 or 4096", sector);
    }
    return true;
}

static bool plan_options(Plan *plan, GHashTable *options, GError **error)
{
    const char *subformat = option_lookup(options, "subformat");
    const char *zero = option_lookup(options, "block_state_zero");
    if (subformat && strcmp(subformat, "fixed") == 0) {
        plan->layout.fixed = true;
    } else if (subformat && strcmp(subformat, "dynamic") != 0) {
        return error_set(error, EINVAL, "subformat is '%s': must be dynamic or fixed", subformat);
    }
    if (zero && !option_parse_switch(zero, &plan->zero_state)) {
        return error_set(error, EINVAL, "block_state_zero is '%s': must be on or off", zero);
    }
    return plan_sizes(plan, options, error);
}

static bool plan_parent(Plan *plan, const FormatCreate *how, GError **error)
{
    plan->layout.has_parent = how->backing_name;
    if (!how->backing_name || how->like) {
        return true;
    }
    if (plan->layout.fixed || plan->zero_state) {
        return error_set(error, EINVAL,
                         "a backing file needs blocks that are not there: leave out "
                         "subformat=fixed and block_state_zero=on, or -b");
    }
    if (!vhdx_parent_check(plan->layout.sector_size, how->backing_format, how->backing, error)) {
        return false;
    }
    plan->parent = (VhdxParent){how->backing_name, vhdx_state(how->backing)->header.data_guid};
    return true;
}

static bool plan_layout(Plan *plan, GError **error)
{
    VhdxState *s = &plan->layout;
    plan->size = align_up(plan->size, s->sector_size);
    if (plan->size > VHDX_DISK_MAX) {
        return error_set(error, EFBIG, "image size %" PRIu64 ": must be at most 64T for vhdx",
                         plan->size);
    }
    s->blocks = div_round_up(plan->size, s->block_size);
    s->chunk_ratio = VHDX_CHUNK_SECTORS * s->sector_size / s->block_size;
    s->header.log.offset = VHDX_MIB;
    s->metadata = (VhdxRange){VHDX_MIB + s->header.log.length, plan->metadata_length};
    s->table.offset = s->metadata.offset + plan->metadata_length;
    s->table.length = align_up(max_u64(vhdx_entries_needed(s) * 8, 1), VHDX_MIB);
    return true;
}

static uint64_t first_block(const Plan *plan)
{
    return plan->layout.table.offset + plan->layout.table.length;
}

static uint64_t make_entry(const Plan *plan, uint64_t index)
{
    const VhdxState *s = &plan->layout;
    uint64_t block = index - index / (s->chunk_ratio + UINT64_C(1));
    if (index % (s->chunk_ratio + UINT64_C(1)) == s->chunk_ratio) {
        return VHDX_NOT_PRESENT;
    }
    if (s->fixed) {
        return (first_block(plan) + block * s->block_size) | VHDX_PRESENT;
    }
    return plan->zero_state ? VHDX_ZERO : VHDX_NOT_PRESENT;
}

/* The file is longer than that already, and reads as zeroes. */
static int write_table(Store *store, const Plan *plan)
{
    const VhdxState *s = &plan->layout;
    uint64_t count = s->fixed || plan->zero_state ? vhdx_entries_needed(s) : 0;
    g_autofree uint8_t *bytes = g_malloc(WRITE_ENTRIES * 8);
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < count; at += WRITE_ENTRIES) {
        uint64_t n = min_u64(WRITE_ENTRIES, count - at);
        for (uint64_t i = 0; i < n; i++) {
            store_le64(bytes + i * 8, make_entry(plan, at + i));
        }
        r = store_write(store, bytes, n * 8, s->table.offset + at * 8);
    }
    return r;
}

static int write_regions(Store *store, const Plan *plan)
{
    g_autofree uint8_t *bytes = g_malloc0(VHDX_TABLE_SIZE);
    vhdx_regions_make(bytes, plan->layout.table, plan->layout.metadata);
    int r = store_write(store, bytes, VHDX_TABLE_SIZE, VHDX_REGIONS_1);
    return r < 0 ? r : store_write(store, bytes, VHDX_TABLE_SIZE, VHDX_REGIONS_1 + VHDX_TABLE_SIZE);
}

static int write_signature(Store *store)
{
    static const char creator[] = "cownbd";
    uint8_t bytes[8 + CREATOR_LENGTH] = "vhdxfile";
    for (unsigned i = 0; creator[i]; i++) {
        store_le16(bytes + 8 + i * 2, creator[i]);
    }
    return store_write(store, bytes, sizeof bytes, 0);
}

/* A block device may hold anything: all before the first block is cleared. */
static int clear_start(Store *store, const Plan *plan)
{
    const VhdxState *s = &plan->layout;
    uint64_t end = first_block(plan) + (s->fixed ? s->blocks * s->block_size : 0);
    uint64_t old = store_size(store);
    int r = old < end ? store_truncate(store, end) : 0;
    return r < 0 || old == 0 ? r : space_make_fresh(store, 0, min_u64(old, first_block(plan)), old);
}

static int write_image(Store *store, Plan *plan, const GByteArray *metadata)
{
    VhdxHeader *header = &plan->layout.header;
    int r = clear_start(store, plan);
    r = r < 0 ? r : write_table(store, plan);
    r = r < 0 ? r : store_write(store, metadata->data, metadata->len, plan->layout.metadata.offset);
    r = r < 0 ? r : write_regions(store, plan);
    header->slot = 1;
    r = r < 0 ? r : vhdx_header_write(store, header);
    r = r < 0 ? r : vhdx_header_write(store, header);
    r = r < 0 ? r : write_signature(store);
    return r < 0 ? r : store_sync(store);
}

static bool make_plan(Plan *plan, const FormatCreate *how, GError **error)
{
    *plan = (Plan){.size = min_u64(how->size, INT64_MAX - VHDX_MIB)};
    plan->layout.sector_size = 512;
    plan->layout.block_size = default_block_size(plan->size, how->backing_name != NULL);
    plan->layout.header.log.length = LOG_DEFAULT;
    plan->metadata_length = how->like ? vhdx_state(how->like)->metadata.length : METADATA_LENGTH;
    return plan_options(plan, how->options, error) && plan_parent(plan, how, error) &&
           plan_layout(plan, error);
}

bool vhdx_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    Plan plan;
    if (!make_plan(&plan, how, error)) {
        return false;
    }
    const VhdxState *s = &plan.layout;
    measure->fully_allocated = first_block(&plan) + s->blocks * s->block_size;
    measure->required = s->fixed
                            ? measure->fully_allocated
                            : first_block(&plan) + measure->data(measure->opaque, s->block_size);
    return true;
}

bool vhdx_create_like(const Image *image, GHashTable *options, GError **error)
{
    const VhdxState *s = image->state;
    const struct {
        const char *name;
        uint64_t size;
    } sizes[] = {{"block_size", s->block_size},
                 {"log_size", s->header.log.length},
                 {"logical_sector_size", s->sector_size}};
    if (s->regions->len > KNOWN_REGIONS) {
        return error_set(error, ENOTSUP,
                         "%s: has regions that are not known here, which would be lost",
                         image->path);
    }
    g_hash_table_insert(options, g_strdup("subformat"), g_strdup(s->fixed ? "fixed" : "dynamic"));
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_hash_table_insert(options, g_strdup(sizes[i].name),
                            g_strdup_printf("%" PRIu64, sizes[i].size));
    }
    return true;
}

/* What the image is known by, and what it says of itself. NULL with *error. */
static GByteArray *make_identity(Plan *plan, const FormatCreate *how, GError **error)
{
    VhdxState *s = &plan->layout;
    if (!vhdx_guid_make(s->header.file_guid, error) ||
        !vhdx_guid_make(s->header.data_guid, error)) {
        return NULL;
    }
    if (how->like) {
        memcpy(s->header.data_guid, vhdx_state(how->like)->header.data_guid, VHDX_GUID_SIZE);
        return vhdx_metadata_region(how->like, error);
    }
    return vhdx_metadata_make(s, plan->size, s->has_parent ? &plan->parent : NULL, error);
}

bool vhdx_create(Store *store, const FormatCreate *how, GError **error)
{
    Plan plan;
    if (!make_plan(&plan, how, error)) {
        return false;
    }
    g_autoptr(GByteArray) metadata = make_identity(&plan, how, error);
    if (!metadata) {
        return false;
    }
    int r = write_image(store, &plan, metadata);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the image", store->name);
}
