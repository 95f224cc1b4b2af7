/*
 * vmdk: create.
 *
 *     monolithicSparse       header | descriptor | copy of the directory, its tables | directory, its tables | grains
 *     streamOptimized        the same, for compressed grains
 *     twoGbMaxExtentSparse   a descriptor file, and sparse extents without a descriptor: disk-s001.vmdk, ...
 *     monolithicFlat         a descriptor file, and the disk's bytes: disk-flat.vmdk
 *     twoGbMaxExtentFlat     the same in parts: disk-f001.vmdk, ...
 *
 * All tables are there from the start, as holes of the file: other programs want them, and a new grain then changes
 * tables only. Grains begin at a multiple of their size.
 *
 * The CID is random. A parent's is written down, so it must be known.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/format.h"
#include "formats/option.h"
#include "formats/space.h"
#include "formats/vmdk-impl.h"

#define GRAIN_DEFAULT       (64u << 10)
#define GRAIN_MIN           4096u
#define EXTENT_SIZE_DEFAULT (UINT64_C(2) << 30)
#define EXTENT_SIZE_MIN     (64u << 10)
#define DISK_SIZE_MAX       (UINT64_C(62) << 40) /* as VMware's */
#define ENTRIES             512u
#define TABLE_SECTORS       (ENTRIES * 4 / VMDK_SECTOR)
#define DESCRIPTOR_SECTOR   1u
#define DESCRIPTOR_SECTORS  20u
#define DIRECTORY_PIECE     (64u << 10) /* bytes of a directory in one write */
#define HW_VERSION          "4"
#define HW_VERSION_COMPAT6  "6"
#define TOOLS_VERSION       "2147483647"
#define GEOMETRY_SECTORS    63u
#define CYLINDERS_MAX       16383u

const FormatOption vmdk_create_options[] = {
    {"subformat", "monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, "
                  "twoGbMaxExtentFlat or streamOptimized"},
    {"adapter_type", "ide (default), buslogic, lsilogic or legacyESX"},
    {"hwversion", "version of the virtual hardware, a number (default 4)"},
    {"toolsversion", "version of VMware Tools, a number"},
    {"compat6", "the same as hwversion=6: on or off (default)"},
    {"zeroed_grain", "grains may be zero without space: on or off (default)"},
    {"grain_size", "size of a grain: 4k to 16M, a power of two (default 64k)"},
    {"extent_size", "size of an extent of twoGbMaxExtent*: 64k to 2G, whole grains (default 2G)"},
    {NULL, NULL},
};

typedef struct Subformat {
    const char *name;
    bool sparse;
    bool split;
    bool compressed;
    const char *suffix; /* of an extent's name; NULL: the image itself is the extent */
} Subformat;

static const Subformat subformats[] = {
    {"monolithicSparse", true, false, false, NULL},
    {"monolithicFlat", false, false, false, "-flat"},
    {"twoGbMaxExtentSparse", true, true, false, "-s"},
    {"twoGbMaxExtentFlat", false, true, false, "-f"},
    {"streamOptimized", true, false, true, NULL},
};

typedef struct Plan {
    const Subformat *subformat;
    uint64_t size, grain, extent_size;
    const char *adapter, *hw_version, *tools_version;
    bool zeroed_grain;
} Plan;

/* Where the parts of a sparse extent lie, in sectors. */
typedef struct Layout {
    uint64_t capacity, tables, directory_sectors;
    uint64_t redundant, directory, grains;
} Layout;

/* ---- options -------------------------------------------------------------------------------- */

static bool plan_subformat(Plan *plan, GHashTable *options, GError **error)
{
    const char *name = option_lookup(options, "subformat");
    plan->subformat = &subformats[0];
    for (unsigned i = 0; name && i < G_N_ELEMENTS(subformats); i++) {
        if (g_ascii_strcasecmp(name, subformats[i].name) == 0) {
            plan->subformat = &subformats[i];
            return true;
        }
    }
    return !name || error_set(error, EINVAL,
                              "subformat is '%s': must be monolithicSparse, monolithicFlat, "
                              "twoGbMaxExtentSparse, twoGbMaxExtentFlat or streamOptimized",
                              name);
}

static bool plan_adapter(Plan *plan, GHashTable *options, GError **error)
{
    static const char *const adapters[] = {"ide", "buslogic", "lsilogic", "legacyESX"};
    const char *name = option_lookup(options, "adapter_type");
    plan->adapter = adapters[0];
    for (unsigned i = 0; name && i < G_N_ELEMENTS(adapters); i++) {
        if (g_ascii_strcasecmp(name, adapters[i]) == 0) {
            plan->adapter = adapters[i];
            return true;
        }
    }
    return !name ||
           error_set(error, EINVAL,
                     "adapter_type is '%s': must be ide, buslogic, lsilogic or legacyESX", name);
}

static bool plan_switch(GHashTable *options, const char *name, bool *on, GError **error)
{
    const char *text = option_lookup(options, name);
    return !text || option_parse_switch(text, on) ||
           error_set(error, EINVAL, "%s is '%s': must be on or off", name, text);
}

static bool plan_number(GHashTable *options, const char *name, const char **number, GError **error)
{
    const char *text = option_lookup(options, name);
    uint64_t value;
    *number = text ? text : *number;
    return !text || option_parse_number(text, UINT32_MAX, &value) ||
           error_set(error, EINVAL, "%s is '%s': must be a number below 2^32", name, text);
}

static bool plan_versions(Plan *plan, GHashTable *options, GError **error)
{
    bool compat6 = false;
    plan->hw_version = HW_VERSION;
    plan->tools_version = TOOLS_VERSION;
    if (!plan_switch(options, "compat6", &compat6, error) ||
        !plan_number(options, "hwversion", &plan->hw_version, error) ||
        !plan_number(options, "toolsversion", &plan->tools_version, error)) {
        return false;
    }
    if (compat6 && option_lookup(options, "hwversion")) {
        return error_set(error, EINVAL, "compat6 says hwversion=6: give only one of them");
    }
    plan->hw_version = compat6 ? HW_VERSION_COMPAT6 : plan->hw_version;
    return true;
}

static bool plan_sizes(Plan *plan, GHashTable *options, GError **error)
{
    const char *grain = option_lookup(options, "grain_size");
    const char *extent = option_lookup(options, "extent_size");
    plan->grain = GRAIN_DEFAULT;
    plan->extent_size = EXTENT_SIZE_DEFAULT;
    if (grain && (!option_parse_size(grain, &plan->grain) || !is_power_of_two(plan->grain) ||
                  plan->grain < GRAIN_MIN || plan->grain > VMDK_GRAIN_MAX)) {
        return error_set(error, EINVAL, "grain_size is '%s': must be a power of two from 4k to 16M",
                         grain);
    }
    if (extent &&
        (!option_parse_size(extent, &plan->extent_size) || plan->extent_size < EXTENT_SIZE_MIN ||
         plan->extent_size > EXTENT_SIZE_DEFAULT || plan->extent_size % plan->grain != 0)) {
        return error_set(error, EINVAL,
                         "extent_size is '%s': must be from 64k to 2G, a multiple of grain_size",
                         extent);
    }
    return true;
}

static bool plan_make(Plan *plan, const FormatCreate *how, GError **error)
{
    GHashTable *options = how->options;
    plan->size = align_up(min_u64(how->size, DISK_SIZE_MAX + 1), VMDK_SECTOR);
    return plan_subformat(plan, options, error) && plan_adapter(plan, options, error) &&
           plan_versions(plan, options, error) && plan_sizes(plan, options, error) &&
           plan_switch(options, "zeroed_grain", &plan->zeroed_grain, error);
}

/* How many extents, and how many bytes one of them has. */
static uint64_t extent_count(const Plan *plan)
{
    return plan->subformat->split ? div_round_up(plan->size, plan->extent_size) : 1;
}

static uint64_t extent_length(const Plan *plan, uint64_t number)
{
    return plan->subformat->split
               ? min_u64(plan->extent_size, plan->size - number * plan->extent_size)
               : plan->size;
}

static Layout layout_of(const Plan *plan, uint64_t length)
{
    Layout layout = {.capacity = length / VMDK_SECTOR};
    layout.tables = div_round_up(length, plan->grain * ENTRIES);
    layout.directory_sectors = div_round_up(layout.tables * 4, VMDK_SECTOR);
    uint64_t whole = layout.directory_sectors + layout.tables * TABLE_SECTORS;
    layout.redundant = DESCRIPTOR_SECTOR + DESCRIPTOR_SECTORS;
    layout.directory = layout.redundant + whole;
    layout.grains = align_up((layout.directory + whole) * VMDK_SECTOR, plan->grain) / VMDK_SECTOR;
    return layout;
}

static bool check_sizes(const Plan *plan, GError **error)
{
    uint64_t count = extent_count(plan);
    if (plan->size == 0 || plan->size > DISK_SIZE_MAX) {
        return error_set(error, EFBIG, "image size %" PRIu64 ": must be from 1 to 62T for vmdk",
                         plan->size);
    }
    if (count > VMDK_EXTENTS_MAX) {
        return error_set(error, EFBIG,
                         "image size %" PRIu64 " needs %" PRIu64
                         " extents: must be %u at most; use subformat=%s",
                         plan->size, count, VMDK_EXTENTS_MAX,
                         plan->subformat->sparse ? "monolithicSparse" : "monolithicFlat");
    }
    if (layout_of(plan, extent_length(plan, 0)).grains > UINT32_MAX) {
        return error_set(error, EFBIG,
                         "image size %" PRIu64 " is too large for grain_size %" PRIu64, plan->size,
                         plan->grain);
    }
    return true;
}

static bool check_backing(const Plan *plan, const FormatCreate *how, GError **error)
{
    const char *name = how->backing_name;
    if (!name) {
        return true;
    }
    if (!plan->subformat->sparse) {
        return error_set(error, EINVAL, "%s has no backing file: use subformat=monolithicSparse",
                         plan->subformat->name);
    }
    if (format_find(how->backing_format) != &format_vmdk) {
        return error_set(error, EINVAL, "the backing format is %s: must be vmdk",
                         how->backing_format);
    }
    if (!how->backing) {
        return error_set(error, EINVAL,
                         "the CID of the backing file is needed: it must be looked at (without "
                         "-u)");
    }
    return !strpbrk(name, "\"\r\n") ||
           error_set(error, EINVAL, "the name of the backing file '%s' has a quote or a line break",
                     name);
}

static bool check_plan(const Plan *plan, const FormatCreate *how, GError **error)
{
    if (plan->zeroed_grain && !plan->subformat->sparse) {
        return error_set(error, EINVAL, "zeroed_grain: %s has no grains", plan->subformat->name);
    }
    return check_sizes(plan, error) && check_backing(plan, how, error);
}

/* ---- the descriptor ------------------------------------------------------------------------- */

static void add_parent(GString *text, const FormatCreate *how)
{
    uint32_t cid = how->backing_name ? vmdk_cid(how->backing) : VMDK_NO_PARENT;
    g_string_append_printf(text, "parentCID=%08x\n", cid);
    if (how->backing_name) {
        g_string_append_printf(text, "parentFileNameHint=\"%s\"\n", how->backing_name);
    }
}

static void add_data_base(GString *text, const Plan *plan)
{
    unsigned heads = strcmp(plan->adapter, "ide") == 0 ? 16 : 255;
    uint64_t cylinders = plan->size / VMDK_SECTOR / heads / GEOMETRY_SECTORS;
    if (heads == 16) {
        cylinders = min_u64(cylinders, CYLINDERS_MAX);
    }
    g_string_append_printf(text,
                           "\n# The Disk Data Base\n"
                           "ddb.virtualHWVersion = \"%s\"\n"
                           "ddb.geometry.cylinders = \"%" PRIu64 "\"\n"
                           "ddb.geometry.heads = \"%u\"\n"
                           "ddb.geometry.sectors = \"%u\"\n"
                           "ddb.adapterType = \"%s\"\n"
                           "ddb.toolsVersion = \"%s\"\n",
                           plan->hw_version, cylinders, heads, GEOMETRY_SECTORS, plan->adapter,
                           plan->tools_version);
}

/* names: of the extents, in order. */
static GString *descriptor_make(const Plan *plan, const FormatCreate *how, const GPtrArray *names)
{
    GString *text = g_string_new(NULL);
    g_string_append_printf(text, "# Disk DescriptorFile\nversion=1\nCID=%08x\n", vmdk_cid_new(0));
    add_parent(text, how);
    g_string_append_printf(text, "createType=\"%s\"\n\n# Extent description\n",
                           plan->subformat->name);
    for (guint i = 0; i < names->len; i++) {
        g_string_append_printf(
            text, "RW %" PRIu64 " %s \"%s\"%s\n", extent_length(plan, i) / VMDK_SECTOR,
            plan->subformat->sparse ? "SPARSE" : "FLAT", (char *)g_ptr_array_index(names, i),
            plan->subformat->sparse ? "" : " 0");
    }
    add_data_base(text, plan);
    return text;
}

/* ---- files ---------------------------------------------------------------------------------- */

static int write_directory(Store *store, uint64_t sector, const Layout *layout)
{
    g_autofree uint8_t *piece = g_malloc(DIRECTORY_PIECE);
    uint64_t table = sector + layout->directory_sectors;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < layout->tables; at += DIRECTORY_PIECE / 4) {
        uint64_t count = min_u64(DIRECTORY_PIECE / 4, layout->tables - at);
        for (uint64_t i = 0; i < count; i++) {
            store_le32(piece + i * 4, table + (at + i) * TABLE_SECTORS);
        }
        r = store_write(store, piece, count * 4, sector * VMDK_SECTOR + at * 4);
    }
    return r;
}

/* descriptor: NULL for an extent without one. */
static int write_sparse(Store *store, const Plan *plan, uint64_t length, const GString *descriptor)
{
    Layout layout = layout_of(plan, length);
    VmdkHeader header = {
        .compressed = plan->subformat->compressed,
        .zero_grains = plan->zeroed_grain,
        .capacity = layout.capacity,
        .grain = plan->grain / VMDK_SECTOR,
        .descriptor = descriptor ? DESCRIPTOR_SECTOR : 0,
        .descriptor_sectors = descriptor ? DESCRIPTOR_SECTORS : 0,
        .entries_per_table = ENTRIES,
        .redundant = layout.redundant,
        .directory = layout.directory,
        .overhead = layout.grains,
    };
    uint8_t sector[VMDK_SECTOR];
    vmdk_header_pack(&header, sector);
    int r = store_truncate(store, layout.grains * VMDK_SECTOR);
    r = r == -ENOTSUP || r == -EINVAL ? 0 : r; /* a block device: what it holds is written over */
    if (r == 0 && store_size(store) < layout.grains * VMDK_SECTOR) {
        r = -ENOSPC;
    }
    if (r == 0) {
        r = space_make_fresh(store, 0, layout.grains * VMDK_SECTOR, UINT64_MAX);
    }
    r = r < 0 ? r : write_directory(store, layout.redundant, &layout);
    r = r < 0 ? r : write_directory(store, layout.directory, &layout);
    if (r == 0 && descriptor) {
        r = store_write(store, descriptor->str, descriptor->len, DESCRIPTOR_SECTOR * VMDK_SECTOR);
    }
    r = r < 0 ? r : store_write(store, sector, sizeof sector, 0);
    return r < 0 ? r : store_sync(store);
}

static int write_extent(Store *store, const Plan *plan, uint64_t length)
{
    if (plan->subformat->sparse) {
        return write_sparse(store, plan, length, NULL);
    }
    int r = store_size(store) >= length ? 0 : store_truncate(store, length);
    return r < 0 ? r : store_sync(store);
}

static char *extent_name(const Plan *plan, const char *base_name, unsigned number)
{
    const char *dot = strrchr(base_name, '.');
    int stem = dot && dot != base_name ? (int)(dot - base_name) : (int)strlen(base_name);
    const char *suffix = dot && dot != base_name ? dot : "";
    return plan->subformat->split
               ? g_strdup_printf("%.*s%s%03u%s", stem, base_name, plan->subformat->suffix,
                                 number + 1, suffix)
               : g_strdup_printf("%.*s%s%s", stem, base_name, plan->subformat->suffix, suffix);
}

static bool make_extents(const Plan *plan, FormatFiles *files, GPtrArray *names, GError **error)
{
    for (uint64_t i = 0; i < extent_count(plan); i++) {
        char *name = extent_name(plan, files->base_name, i);
        g_ptr_array_add(names, name);
        g_autoptr(Store) store = files->make(files, name, error);
        if (!store) {
            return false;
        }
        int r = write_extent(store, plan, extent_length(plan, i));
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot write the extent", store->name);
        }
    }
    return true;
}

static bool check_files(const Plan *plan, const FormatCreate *how, const char *path, GError **error)
{
    if (!how->files) {
        return error_set(error, EINVAL, "%s: subformat %s needs files beside it: use another one",
                         path, plan->subformat->name);
    }
    return !strpbrk(how->files->base_name, "\"\r\n") ||
           error_set(error, EINVAL,
                     "%s: the name has a quote or a line break: its extents would too", path);
}

/* A descriptor file and its extents. */
static bool create_several(Store *store, const Plan *plan, const FormatCreate *how, GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    if (!check_files(plan, how, store->name, error) ||
        !make_extents(plan, how->files, names, error)) {
        return false;
    }
    g_autoptr(GString) descriptor = descriptor_make(plan, how, names);
    int r = store_write(store, descriptor->str, descriptor->len, 0);
    r = r < 0 ? r : store_sync(store);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the descriptor", store->name);
}

/* The name that an image gives itself may be anything: nobody reads it. */
static bool create_one(Store *store, const Plan *plan, const FormatCreate *how, GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *base = g_path_get_basename(how->files ? how->files->base_name : store->name);
    g_ptr_array_add(names, g_strdelimit(g_steal_pointer(&base), "\"\r\n", '_'));
    g_autoptr(GString) descriptor = descriptor_make(plan, how, names);
    if (descriptor->len > DESCRIPTOR_SECTORS * VMDK_SECTOR) {
        return error_set(error, ENAMETOOLONG,
                         "%s: the name of the backing file is too long: the descriptor has room "
                         "for %u bytes",
                         store->name, DESCRIPTOR_SECTORS * VMDK_SECTOR);
    }
    int r = write_sparse(store, plan, plan->size, descriptor);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the image", store->name);
}

bool vmdk_create(Store *store, const FormatCreate *how, GError **error)
{
    Plan plan = {0};
    if (!plan_make(&plan, how, error) || !check_plan(&plan, how, error)) {
        return false;
    }
    return plan.subformat->suffix ? create_several(store, &plan, how, error)
                                  : create_one(store, &plan, how, error);
}

bool vmdk_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    Plan plan = {0};
    if (!plan_make(&plan, how, error) || !check_plan(&plan, how, error)) {
        return false;
    }
    uint64_t tables = 0, grains = 0;
    for (uint64_t i = 0; plan.subformat->sparse && i < extent_count(&plan); i++) {
        uint64_t length = extent_length(&plan, i);
        tables += layout_of(&plan, length).grains * VMDK_SECTOR;
        grains += div_round_up(length, plan.grain);
    }
    if (!plan.subformat->sparse) {
        measure->required = measure->fully_allocated = plan.size;
        return true;
    }
    measure->required = tables + measure->data(measure->opaque, plan.grain);
    measure->fully_allocated = tables + grains * plan.grain;
    return true;
}
