/*
 * vdi: create.
 *
 *     header | table, from 512 on | blocks, from a multiple of 4096 on
 *
 * Blocks begin where disks and the kernel like it. A differencing image says its parent's UUID and
 * nothing else, so the parent must lie where it will be looked for.
 */
#include "formats/vdi.h"

#include <string.h>

#include "base/errors.h"
#include "formats/option.h"

#define BLOCK_SIZE_DEFAULT (1u << 20)
#define TABLE_OFFSET       512u
#define DATA_ALIGNMENT     4096u

const FormatOption vdi_create_options[] = {
    {"static", "all blocks are there from the start: on or off (default)"},
    {"block_size",
     "size of a block: 4k to 256M, a power of two (default 1M; others read no other)"},
    {NULL, NULL},
};

typedef struct Plan {
    bool fixed;
    uint64_t size, block_size, blocks, data_offset;
} Plan;

static bool plan_options(Plan *plan, GHashTable *options, GError **error)
{
    const char *fixed = option_lookup(options, "static");
    const char *block_size = option_lookup(options, "block_size");
    if (fixed && !option_parse_switch(fixed, &plan->fixed)) {
        return error_set(error, EINVAL, "static is '%s': must be on or off", fixed);
    }
    if (block_size &&
        (!option_parse_size(block_size, &plan->block_size) || !is_power_of_two(plan->block_size) ||
         plan->block_size < VDI_BLOCK_MIN || plan->block_size > VDI_BLOCK_MAX)) {
        return error_set(error, EINVAL,
                         "block_size is '%s': must be a power of two from 4k to 256M", block_size);
    }
    return true;
}

static bool plan_layout(Plan *plan, GError **error)
{
    plan->blocks = div_round_up(plan->size, plan->block_size);
    if (plan->blocks > BLOCK_TABLE_MAX) {
        return error_set(error, EFBIG,
                         "image size %" PRIu64 " is too large for block_size %" PRIu64
                         ": must be at most %" PRIu64,
                         plan->size, plan->block_size, plan->block_size * BLOCK_TABLE_MAX);
    }
    plan->data_offset = align_up(TABLE_OFFSET + plan->blocks * 4, DATA_ALIGNMENT);
    return true;
}

static bool check_backing(const Plan *plan, const FormatCreate *how, GError **error)
{
    if (!how->backing_name || how->like) {
        return true;
    }
    if (plan->fixed) {
        return error_set(error, EINVAL,
                         "a static image cannot have a backing file: leave out "
                         "static=on, or -b");
    }
    return vdi_parent_check(how->backing_name, how->backing_format, how->backing, error);
}

static VdiType type_of(const Plan *plan, const FormatCreate *how)
{
    if (how->backing_name) {
        return VDI_DIFFERENCING;
    }
    return plan->fixed ? VDI_FIXED : VDI_DYNAMIC;
}

/* Where things lie, and how many. */
static void pack_layout(uint8_t *bytes, const Plan *plan)
{
    store_le32(bytes + VDI_H_TABLE, TABLE_OFFSET);
    store_le32(bytes + VDI_H_DATA, plan->data_offset);
    store_le32(bytes + VDI_H_EXTRA, 0);
    store_le32(bytes + VDI_H_BLOCKS, plan->blocks);
    store_le32(bytes + VDI_H_ALLOCATED, plan->fixed ? plan->blocks : 0);
}

/* All else is as in the old image: UUIDs, type, comment, geometry. */
static bool take_header(uint8_t *bytes, const Plan *plan, const Image *like, GError **error)
{
    uint64_t length = min_u64(vdi_state(like)->header.table_offset, TABLE_OFFSET);
    int r = store_read(like->store, bytes, length, 0);
    pack_layout(bytes, plan);
    return r == 0 || error_set_errno(error, -r, "%s: cannot read the header", like->path);
}

static bool make_header(uint8_t *bytes, const Plan *plan, const FormatCreate *how, GError **error)
{
    if (how->like) {
        return take_header(bytes, plan, how->like, error);
    }
    strcpy((char *)bytes, "<<< Oracle VM VirtualBox Disk Image >>>\n");
    store_le32(bytes + VDI_H_SIGNATURE, VDI_SIGNATURE);
    store_le32(bytes + VDI_H_VERSION, VDI_VERSION);
    store_le32(bytes + VDI_H_HEADER_SIZE, VDI_HEADER_SIZE);
    store_le32(bytes + VDI_H_TYPE, type_of(plan, how));
    store_le32(bytes + VDI_H_SECTOR_SIZE, VDI_SECTOR);
    store_le64(bytes + VDI_H_DISK_SIZE, plan->size);
    store_le32(bytes + VDI_H_BLOCK_SIZE, plan->block_size);
    pack_layout(bytes, plan);
    if (how->backing) {
        const VdiHeader *parent = &vdi_state(how->backing)->header;
        memcpy(bytes + VDI_H_LINK, parent->uuid, VDI_UUID_SIZE);
        memcpy(bytes + VDI_H_PARENT, parent->modified, VDI_UUID_SIZE);
    }
    return vdi_uuid_make(bytes + VDI_H_UUID, error) && vdi_uuid_make(bytes + VDI_H_MODIFIED, error);
}

static int write_table(Store *store, const Plan *plan)
{
    size_t length = plan->data_offset - TABLE_OFFSET;
    g_autofree uint8_t *table = g_malloc0(length);
    for (uint32_t i = 0; i < plan->blocks; i++) {
        store_le32(table + i * UINT64_C(4), plan->fixed ? i : VDI_UNALLOCATED);
    }
    return store_write(store, table, length, TABLE_OFFSET);
}

bool vdi_create(Store *store, const FormatCreate *how, GError **error)
{
    uint8_t header[TABLE_OFFSET] = {0};
    Plan plan = {
        .size = align_up(min_u64(how->size, INT64_MAX), VDI_SECTOR),
        .block_size = BLOCK_SIZE_DEFAULT,
    };
    if (!plan_options(&plan, how->options, error) || !plan_layout(&plan, error) ||
        !check_backing(&plan, how, error) || !make_header(header, &plan, how, error)) {
        return false;
    }
    uint64_t end = plan.data_offset + (plan.fixed ? plan.blocks * plan.block_size : 0);
    int r = store_size(store) < end ? store_truncate(store, end) : 0;
    r = r < 0 ? r : write_table(store, &plan);
    r = r < 0 ? r : store_sync(store);
    r = r < 0 ? r : store_write(store, header, sizeof header, 0);
    r = r < 0 ? r : store_sync(store);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the image", store->name);
}

bool vdi_create_like(const Image *image, GHashTable *options, GError **error)
{
    const VdiHeader *header = &vdi_state(image)->header;
    g_hash_table_insert(options, g_strdup("static"),
                        g_strdup(header->type == VDI_FIXED ? "on" : "off"));
    g_hash_table_insert(options, g_strdup("block_size"), g_strdup_printf("%u", header->block_size));
    return true;
}

bool vdi_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    Plan plan = {
        .size = align_up(min_u64(how->size, INT64_MAX), VDI_SECTOR),
        .block_size = BLOCK_SIZE_DEFAULT,
    };
    if (!plan_options(&plan, how->options, error) || !plan_layout(&plan, error)) {
        return false;
    }
    measure->fully_allocated = plan.data_offset + plan.blocks * plan.block_size;
    measure->required = plan.fixed
                            ? measure->fully_allocated
                            : plan.data_offset + measure->data(measure->opaque, plan.block_size);
    return true;
}
