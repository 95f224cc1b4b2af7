/*
 * vhd: create.
 *
 *     dynamic, differencing:  copy of the footer | header | table | names of the parent | footer
 *     fixed:                  the disk | footer
 *
 * The creator that we write is "win ": programs that do not know a creator take the size of the
 * disk from the geometry, which can say few sizes, and would cut the disk short. All of them take
 * it from the current size where that one is named.
 *
 * A parent's UUID must be known, for without it nobody may open the image; a raw parent has none,
 * which Xen says with a UUID of zeroes.
 */
#include "formats/vhd.h"

#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/errors.h"
#include "formats/option.h"

#define BLOCK_SIZE_DEFAULT (2u << 20)
#define BLOCK_SIZE_MIN     4096u
#define BLOCK_SIZE_MAX     (256u << 20)
#define TABLE_OFFSET       (VHD_FOOTER_SIZE + VHD_HEADER_SIZE)
#define DATA_ALIGNMENT     4096u
#define VERSION_1          0x00010000u

const FormatOption vhd_create_options[] = {
    {"subformat", "dynamic (default, grows) or fixed"},
    {"block_size", "size of a block: 4k to 256M, a power of two (default 2M)"},
    {"force_size", "on (default): the size as given; off: rounded up to what a geometry can say"},
    {NULL, NULL},
};

typedef struct Plan {
    VhdType type;
    uint64_t size;
    uint64_t block_size;
    uint8_t footer[VHD_FOOTER_SIZE];
    uint8_t header[VHD_HEADER_SIZE];
    GByteArray *table; /* and what follows it */
} Plan;

static bool plan_options(Plan *plan, GHashTable *options, GError **error)
{
    const char *subformat = option_lookup(options, "subformat");
    const char *block_size = option_lookup(options, "block_size");
    const char *force_size = option_lookup(options, "force_size");
    bool forced = true;
    if (subformat && strcmp(subformat, "fixed") == 0) {
        plan->type = VHD_FIXED;
    } else if (subformat && strcmp(subformat, "dynamic") != 0) {
        return error_set(error, EINVAL, "subformat is '%s': must be dynamic or fixed", subformat);
    }
    if (block_size &&
        (!option_parse_size(block_size, &plan->block_size) || !is_power_of_two(plan->block_size) ||
         plan->block_size < BLOCK_SIZE_MIN || plan->block_size > BLOCK_SIZE_MAX)) {
        return error_set(error, EINVAL,
                         "block_size is '%s': must be a power of two from 4k to 256M", block_size);
    }
    if (force_size && !option_parse_switch(force_size, &forced)) {
        return error_set(error, EINVAL, "force_size is '%s': must be on or off", force_size);
    }
    if (!forced && plan->type == VHD_DIFFERENCING) {
        return error_set(error, EINVAL,
                         "force_size is off with a backing file, whose size counts: must be on");
    }
    plan->size = forced ? plan->size : vhd_size_by_geometry(plan->size);
    return true;
}

static bool check_plan(const Plan *plan, const FormatCreate *how, GError **error)
{
    if (plan->size > VHD_DISK_SIZE_MAX) {
        return error_set(error, EFBIG, "image size %" PRIu64 ": must be at most 2040G for vhd",
                         plan->size);
    }
    if (div_round_up(plan->size, plan->block_size) > BLOCK_TABLE_MAX) {
        return error_set(error, EFBIG,
                         "image size %" PRIu64 " is too large for block_size %" PRIu64
                         ": must be at most %" PRIu64,
                         plan->size, plan->block_size, plan->block_size * BLOCK_TABLE_MAX);
    }
    if (!how->backing_name || how->like) {
        return true;
    }
    if (plan->type == VHD_FIXED) {
        return error_set(error, EINVAL,
                         "a fixed image cannot have a backing file: leave out "
                         "subformat=fixed, or -b");
    }
    return vhd_parent_check(how->backing_format, how->backing, error);
}

static bool make_uuid(uint8_t *uuid, GError **error)
{
    if (getrandom(uuid, VHD_UUID_SIZE, 0) != (ssize_t)VHD_UUID_SIZE) {
        return error_set_errno(error, errno, "cannot make a UUID");
    }
    uuid[6] = (uuid[6] & 0x0f) | 0x40; /* made of random numbers, RFC 4122 */
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    return true;
}

static bool make_footer(Plan *plan, const FormatCreate *how, GError **error)
{
    uint8_t *footer = plan->footer;
    if (how->like) {
        vhd_footer_like(how->like, footer);
        vhd_checksum_set(footer, VHD_FOOTER_SIZE, VHD_F_CHECKSUM);
        return true;
    }
    memcpy(footer, "conectix", 8);
    store_be32(footer + VHD_F_FEATURES, 2);
    store_be32(footer + VHD_F_VERSION, VERSION_1);
    store_be64(footer + VHD_F_DATA_OFFSET, plan->type == VHD_FIXED ? UINT64_MAX : VHD_FOOTER_SIZE);
    store_be32(footer + VHD_F_TIMESTAMP, vhd_time(time(NULL)));
    memcpy(footer + VHD_F_CREATOR, "win ", 4);
    store_be32(footer + VHD_F_CREATOR_VERS, 0x00060001);
    memcpy(footer + VHD_F_CREATOR_HOST, "Wi2k", 4);
    store_be64(footer + VHD_F_ORIGINAL, plan->size);
    store_be32(footer + VHD_F_TYPE, plan->type);
    if (!make_uuid(footer + VHD_F_UUID, error)) {
        return false;
    }
    vhd_footer_set_size(footer, plan->size);
    return true;
}

static bool make_parent(Plan *plan, const FormatCreate *how, GError **error)
{
    if (how->like) {
        return vhd_header_like(how->like, TABLE_OFFSET, plan->header, plan->table, error);
    }
    return !how->backing_name ||
           vhd_parent_make(how->backing_name, how->backing, TABLE_OFFSET + plan->table->len,
                           plan->header, plan->table, error);
}

static bool make_header(Plan *plan, const FormatCreate *how, GError **error)
{
    uint8_t *header = plan->header;
    uint32_t entries = div_round_up(plan->size, plan->block_size);
    memcpy(header, "cxsparse", 8);
    store_be64(header + VHD_H_DATA_OFFSET, UINT64_MAX);
    store_be64(header + VHD_H_TABLE_OFFSET, TABLE_OFFSET);
    store_be32(header + VHD_H_VERSION, VERSION_1);
    store_be32(header + VHD_H_ENTRIES, entries);
    store_be32(header + VHD_H_BLOCK_SIZE, plan->block_size);
    g_byte_array_set_size(plan->table, align_up(max_u64(entries, 1) * 4, VHD_SECTOR));
    memset(plan->table->data, 0xff, plan->table->len);
    if (!make_parent(plan, how, error)) {
        return false;
    }
    vhd_checksum_set(header, VHD_HEADER_SIZE, VHD_H_CHECKSUM);
    return true;
}

static int write_blocks(Store *store, const Plan *plan)
{
    uint64_t end = TABLE_OFFSET + plan->table->len;
    uint64_t footer_offset = max_u64(end, store_size(store) & ~(uint64_t)(VHD_SECTOR - 1));
    if (footer_offset > end) { /* a block device: its end is the file's */
        footer_offset -= VHD_FOOTER_SIZE;
    }
    int r = store_write(store, plan->table->data, plan->table->len, TABLE_OFFSET);
    r = r < 0 ? r : store_write(store, plan->header, VHD_HEADER_SIZE, VHD_FOOTER_SIZE);
    r = r < 0 ? r : store_write(store, plan->footer, VHD_FOOTER_SIZE, footer_offset);
    r = r < 0 ? r : store_sync(store);
    return r < 0 ? r : store_write(store, plan->footer, VHD_FOOTER_SIZE, 0);
}

static int write_fixed(Store *store, const Plan *plan)
{
    uint64_t end = plan->size + VHD_FOOTER_SIZE;
    if (store_size(store) >= end) { /* a block device */
        return store_write(store, plan->footer, VHD_FOOTER_SIZE,
                           align_down(store_size(store), VHD_SECTOR) - VHD_FOOTER_SIZE);
    }
    int r = store_truncate(store, plan->size);
    return r < 0 ? r : store_write(store, plan->footer, VHD_FOOTER_SIZE, plan->size);
}

bool vhd_create(Store *store, const FormatCreate *how, GError **error)
{
    g_autoptr(GByteArray) table = g_byte_array_new();
    Plan plan = {
        .type = how->backing_name ? VHD_DIFFERENCING : VHD_DYNAMIC,
        .size = min_u64(how->size, INT64_MAX),
        .block_size = BLOCK_SIZE_DEFAULT,
        .table = table,
    };
    plan.size = plan.size + -plan.size % VHD_SECTOR;
    if (!plan_options(&plan, how->options, error) || !check_plan(&plan, how, error) ||
        !make_footer(&plan, how, error)) {
        return false;
    }
    if (plan.type != VHD_FIXED && !make_header(&plan, how, error)) {
        return false;
    }
    int r = plan.type == VHD_FIXED ? write_fixed(store, &plan) : write_blocks(store, &plan);
    r = r < 0 ? r : store_sync(store);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the image", store->name);
}

bool vhd_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    Plan plan = {
        .type = VHD_DYNAMIC,
        .size = align_up(min_u64(how->size, VHD_DISK_SIZE_MAX + VHD_SECTOR), VHD_SECTOR),
        .block_size = BLOCK_SIZE_DEFAULT,
    };
    if (!plan_options(&plan, how->options, error) || !check_plan(&plan, how, error)) {
        return false;
    }
    if (plan.type == VHD_FIXED) {
        measure->required = measure->fully_allocated = plan.size + VHD_FOOTER_SIZE;
        return true;
    }
    uint64_t blocks = div_round_up(plan.size, plan.block_size);
    uint64_t bitmap = align_up(plan.block_size / VHD_SECTOR / 8, VHD_SECTOR);
    uint64_t tables = TABLE_OFFSET + align_up(max_u64(blocks, 1) * 4, VHD_SECTOR) + VHD_FOOTER_SIZE;
    uint64_t used = measure->data(measure->opaque, plan.block_size) / plan.block_size;
    /* The data of a block is aligned, and before any of them a footer may have been left behind. */
    uint64_t stride = align_up(bitmap + plan.block_size, DATA_ALIGNMENT) + DATA_ALIGNMENT;
    measure->fully_allocated = tables + blocks * stride;
    measure->required = tables + used * stride;
    return true;
}
