/*
 * vmdk: what a new image shall be, out of the options of create; and its descriptor.
 *
 * The CID is random. A parent's is written down, so it must be known.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/option.h"
#include "formats/vmdk-impl.h"

#define GRAIN_DEFAULT       (64u << 10)
#define GRAIN_MIN           4096u
#define EXTENT_SIZE_DEFAULT (UINT64_C(2) << 30)
#define EXTENT_SIZE_MIN     (64u << 10)
#define HW_VERSION          "4"
#define HW_VERSION_COMPAT6  "6"
#define TOOLS_VERSION       "2147483647"
#define GEOMETRY_SECTORS    63u
#define CYLINDERS_MAX       16383u

const FormatOption vmdk_create_options[] = {
    {"subformat", "monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, "
                  "twoGbMaxExtentFlat, streamOptimized or vmfsSparse"},
    {"adapter_type", "ide (default), buslogic, lsilogic or legacyESX"},
    {"hwversion", "version of the virtual hardware, a number (default 4)"},
    {"toolsversion", "version of VMware Tools, a number"},
    {"compat6", "the same as hwversion=6: on or off (default)"},
    {"zeroed_grain", "grains may be zero without space: on or off (default)"},
    {"grain_size", "size of a grain: 4k to 16M, a power of two (default 64k; vmfsSparse: 512 to "
                   "16M, default 512)"},
    {"extent_size", "size of an extent of twoGbMaxExtent*: 64k to 2G, whole grains (default 2G)"},
    {NULL, NULL},
};

static const VmdkSubformat subformats[] = {
    {.name = "monolithicSparse", .sparse = true},
    {.name = "monolithicFlat", .suffix = "-flat"},
    {.name = "twoGbMaxExtentSparse", .sparse = true, .split = true, .suffix = "-s"},
    {.name = "twoGbMaxExtentFlat", .split = true, .suffix = "-f"},
    {.name = "streamOptimized", .sparse = true, .compressed = true},
    {.name = "vmfsSparse", .sparse = true, .cowd = true, .suffix = "-delta"},
};

/* ---- options -------------------------------------------------------------------------------- */

static bool plan_subformat(VmdkPlan *plan, GHashTable *options, GError **error)
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
                              "twoGbMaxExtentSparse, twoGbMaxExtentFlat, streamOptimized or "
                              "vmfsSparse",
                              name);
}

static bool plan_adapter(VmdkPlan *plan, GHashTable *options, GError **error)
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

static bool plan_versions(VmdkPlan *plan, GHashTable *options, GError **error)
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

static bool plan_sizes(VmdkPlan *plan, GHashTable *options, GError **error)
{
    const char *grain = option_lookup(options, "grain_size");
    const char *extent = option_lookup(options, "extent_size");
    uint32_t least = plan->subformat->cowd ? VMDK_SECTOR : GRAIN_MIN;
    plan->grain = plan->subformat->cowd ? VMDK_SECTOR : GRAIN_DEFAULT;
    plan->extent_size = EXTENT_SIZE_DEFAULT;
    if (grain && (!option_parse_size(grain, &plan->grain) || !is_power_of_two(plan->grain) ||
                  plan->grain < least || plan->grain > VMDK_GRAIN_MAX)) {
        return error_set(error, EINVAL, "grain_size is '%s': must be a power of two from %s to 16M",
                         grain, plan->subformat->cowd ? "512" : "4k");
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

static bool plan_read(VmdkPlan *plan, const FormatCreate *how, GError **error)
{
    GHashTable *options = how->options;
    plan->size = align_up(min_u64(how->size, VMDK_DISK_SIZE_MAX + 1), VMDK_SECTOR);
    plan->like = how->like ? vmdk_state(how->like) : NULL;
    return plan_subformat(plan, options, error) && plan_adapter(plan, options, error) &&
           plan_versions(plan, options, error) && plan_sizes(plan, options, error) &&
           plan_switch(options, "zeroed_grain", &plan->zeroed_grain, error);
}

uint64_t vmdk_plan_extents(const VmdkPlan *plan)
{
    if (plan->like) {
        return plan->like->count;
    }
    return plan->subformat->split ? div_round_up(plan->size, plan->extent_size) : 1;
}

uint64_t vmdk_plan_length(const VmdkPlan *plan, uint64_t number)
{
    if (plan->like) {
        return plan->like->extents[number].length;
    }
    return plan->subformat->split
               ? min_u64(plan->extent_size, plan->size - number * plan->extent_size)
               : plan->size;
}

VmdkLayout vmdk_plan_layout(const VmdkPlan *plan, uint64_t length)
{
    VmdkLayout layout = {.capacity = length / VMDK_SECTOR};
    uint32_t entries = plan->subformat->cowd ? VMDK_COWD_ENTRIES : VMDK_NEW_ENTRIES;
    layout.tables = div_round_up(length, plan->grain * entries);
    layout.directory_sectors = div_round_up(layout.tables * 4, VMDK_SECTOR);
    if (plan->subformat->cowd) { /* tables are made when they are needed */
        layout.directory = VMDK_COWD_HEAD / VMDK_SECTOR;
        uint64_t end = (layout.directory + layout.directory_sectors) * VMDK_SECTOR;
        layout.grains = align_up(end, plan->grain) / VMDK_SECTOR;
        return layout;
    }
    uint64_t whole = layout.directory_sectors + layout.tables * VMDK_NEW_TABLE_SECTORS;
    layout.redundant = VMDK_NEW_DESCRIPTOR + VMDK_NEW_DESCRIPTOR_SECTORS;
    layout.directory = layout.redundant + whole;
    layout.grains = align_up((layout.directory + whole) * VMDK_SECTOR, plan->grain) / VMDK_SECTOR;
    return layout;
}

static bool check_sizes(const VmdkPlan *plan, GError **error)
{
    uint64_t count = vmdk_plan_extents(plan);
    if (plan->size == 0 || plan->size > VMDK_DISK_SIZE_MAX) {
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
    if (plan->subformat->cowd && plan->size / VMDK_SECTOR > UINT32_MAX) {
        return error_set(error, EFBIG,
                         "image size %" PRIu64 ": must be below 2T for subformat=vmfsSparse",
                         plan->size);
    }
    if (vmdk_plan_layout(plan, vmdk_plan_length(plan, 0)).grains > UINT32_MAX) {
        return error_set(error, EFBIG,
                         "image size %" PRIu64 " is too large for grain_size %" PRIu64, plan->size,
                         plan->grain);
    }
    return true;
}

static bool check_backing(const VmdkPlan *plan, const FormatCreate *how, GError **error)
{
    const char *name = how->backing_name;
    if (!name || plan->like) {
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

static bool check_plan(const VmdkPlan *plan, const FormatCreate *how, GError **error)
{
    if (plan->zeroed_grain && (!plan->subformat->sparse || plan->subformat->cowd)) {
        return error_set(error, EINVAL, "zeroed_grain: %s has no %s", plan->subformat->name,
                         plan->subformat->cowd ? "grains that are zero without space" : "grains");
    }
    return check_sizes(plan, error) && check_backing(plan, how, error);
}

bool vmdk_plan_make(VmdkPlan *plan, const FormatCreate *how, GError **error)
{
    return plan_read(plan, how, error) && check_plan(plan, how, error);
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

VmdkGeometry vmdk_plan_geometry(const VmdkPlan *plan)
{
    bool ide = strcmp(plan->adapter, "ide") == 0;
    VmdkGeometry geometry = {.heads = ide ? 16 : 255, .sectors = GEOMETRY_SECTORS};
    geometry.cylinders = plan->size / VMDK_SECTOR / geometry.heads / GEOMETRY_SECTORS;
    if (ide) {
        geometry.cylinders = min_u64(geometry.cylinders, CYLINDERS_MAX);
    }
    return geometry;
}

static void add_data_base(GString *text, const VmdkPlan *plan)
{
    VmdkGeometry geometry = vmdk_plan_geometry(plan);
    g_string_append_printf(text,
                           "\n# The Disk Data Base\n"
                           "ddb.virtualHWVersion = \"%s\"\n"
                           "ddb.geometry.cylinders = \"%" PRIu64 "\"\n"
                           "ddb.geometry.heads = \"%u\"\n"
                           "ddb.geometry.sectors = \"%u\"\n"
                           "ddb.adapterType = \"%s\"\n"
                           "ddb.toolsVersion = \"%s\"\n",
                           plan->hw_version, geometry.cylinders, geometry.heads, geometry.sectors,
                           plan->adapter, plan->tools_version);
}

static VmdkType extent_type(const VmdkSubformat *subformat)
{
    return subformat->cowd     ? VMDK_TYPE_VMFSSPARSE
           : subformat->sparse ? VMDK_TYPE_SPARSE
                               : VMDK_TYPE_FLAT;
}

GString *vmdk_descriptor_text(const VmdkPlan *plan, const FormatCreate *how, const GPtrArray *names)
{
    GString *text = g_string_new(plan->like ? plan->like->descriptor->text : NULL);
    if (plan->like) {
        return text;
    }
    g_string_append_printf(text, "# Disk DescriptorFile\nversion=1\nCID=%08x\n", vmdk_cid_new(0));
    add_parent(text, how);
    g_string_append_printf(text, "createType=\"%s\"\n\n# Extent description\n",
                           plan->subformat->name);
    for (guint i = 0; i < names->len; i++) {
        VmdkLine line = {
            .type = extent_type(plan->subformat),
            .length = vmdk_plan_length(plan, i),
            .name = g_ptr_array_index(names, i),
        };
        vmdk_line_append(text, &line);
        g_string_append_c(text, '\n');
    }
    add_data_base(text, plan);
    return text;
}

/* The name that an image gives itself may be anything: nobody reads it. */
GString *vmdk_descriptor_embedded(const VmdkPlan *plan, const FormatCreate *how, const char *path)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    g_autofree char *base = g_path_get_basename(how->files ? how->files->base_name : path);
    g_ptr_array_add(names, g_strdelimit(g_steal_pointer(&base), "\"\r\n", '_'));
    return vmdk_descriptor_text(plan, how, names);
}
