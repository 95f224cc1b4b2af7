/*
 * vmdk: create.
 *
 *     monolithicSparse       header | descriptor | copy of the directory, its tables | directory, its tables | grains
 *     streamOptimized        the same, for compressed grains
 *     twoGbMaxExtentSparse   a descriptor file, and sparse extents without a descriptor: disk-s001.vmdk, ...
 *     monolithicFlat         a descriptor file, and the disk's bytes: disk-flat.vmdk
 *     twoGbMaxExtentFlat     the same in parts: disk-f001.vmdk, ...
 *     vmfsSparse             a descriptor file, and a COWD extent: disk-delta.vmdk: header | directory | grains
 *
 * All tables of hosted extents are there from the start, as holes of the file: other programs want them, and a new
 * grain then changes tables only. COWD gets a table with its first grain, as from ESX. Grains begin at a multiple of
 * their size. An image in place of an old one keeps that one's descriptor, and with it the names of its extents.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/format.h"
#include "formats/option.h"
#include "formats/space.h"
#include "formats/vmdk-impl.h"

#define DIRECTORY_PIECE (64u << 10) /* bytes of a directory in one write */

static int write_directory(Store *store, uint64_t sector, const VmdkLayout *layout)
{
    g_autofree uint8_t *piece = g_malloc(DIRECTORY_PIECE);
    uint64_t table = sector + layout->directory_sectors;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < layout->tables; at += DIRECTORY_PIECE / 4) {
        uint64_t count = min_u64(DIRECTORY_PIECE / 4, layout->tables - at);
        for (uint64_t i = 0; i < count; i++) {
            store_le32(piece + i * 4, table + (at + i) * VMDK_NEW_TABLE_SECTORS);
        }
        r = store_write(store, piece, count * 4, sector * VMDK_SECTOR + at * 4);
    }
    return r;
}

/* Space for what comes before the grains, as zeroes. */
static int make_room(Store *store, const VmdkLayout *layout)
{
    int r = store_truncate(store, layout->grains * VMDK_SECTOR);
    r = r == -ENOTSUP || r == -EINVAL ? 0 : r; /* a block device: what it holds is written over */
    if (r == 0 && store_size(store) < layout->grains * VMDK_SECTOR) {
        r = -ENOSPC;
    }
    return r < 0 ? r : space_make_fresh(store, 0, layout->grains * VMDK_SECTOR, UINT64_MAX);
}

/* descriptor: NULL for an extent without one. */
static int write_sparse(Store *store, const VmdkPlan *plan, uint64_t length,
                        const GString *descriptor)
{
    VmdkLayout layout = vmdk_plan_layout(plan, length);
    VmdkHeader header = {
        .compressed = plan->subformat->compressed,
        .zero_grains = plan->zeroed_grain,
        .capacity = layout.capacity,
        .grain = plan->grain / VMDK_SECTOR,
        .descriptor = descriptor ? VMDK_NEW_DESCRIPTOR : 0,
        .descriptor_sectors = descriptor ? VMDK_NEW_DESCRIPTOR_SECTORS : 0,
        .entries_per_table = VMDK_NEW_ENTRIES,
        .redundant = layout.redundant,
        .directory = layout.directory,
        .overhead = layout.grains,
    };
    uint8_t sector[VMDK_SECTOR];
    vmdk_header_pack(&header, sector);
    int r = make_room(store, &layout);
    r = r < 0 ? r : write_directory(store, layout.redundant, &layout);
    r = r < 0 ? r : write_directory(store, layout.directory, &layout);
    if (r == 0 && descriptor) {
        r = store_write(store, descriptor->str, descriptor->len, VMDK_NEW_DESCRIPTOR * VMDK_SECTOR);
    }
    r = r < 0 ? r : store_write(store, sector, sizeof sector, 0);
    return r < 0 ? r : store_sync(store);
}

static int write_cowd(Store *store, const VmdkPlan *plan, uint64_t number, const char *parent)
{
    VmdkLayout layout = vmdk_plan_layout(plan, vmdk_plan_length(plan, number));
    uint8_t head[VMDK_COWD_HEAD];
    int r = make_room(store, &layout);
    if (plan->like) {
        r = r < 0 ? r : vmdk_cowd_pack_like(plan->like->extents[number].sparse, &layout, head);
    } else {
        vmdk_cowd_pack(plan, &layout, parent, head);
    }
    r = r < 0 ? r : store_write(store, head, sizeof head, 0);
    return r < 0 ? r : store_sync(store);
}

static int write_extent(Store *store, const VmdkPlan *plan, uint64_t number, const char *parent)
{
    uint64_t length = vmdk_plan_length(plan, number);
    if (plan->subformat->cowd) {
        return write_cowd(store, plan, number, parent);
    }
    if (plan->subformat->sparse) {
        return write_sparse(store, plan, length, NULL);
    }
    int r = store_size(store) >= length ? 0 : store_truncate(store, length);
    return r < 0 ? r : store_sync(store);
}

int vmdk_extent_write(Store *store, const VmdkSparse *like, uint64_t length)
{
    const VmdkSubformat subformat = {.sparse = like != NULL};
    const VmdkPlan plan = {
        .subformat = &subformat,
        .size = length,
        .grain = like ? like->grain : VMDK_SECTOR,
        .zeroed_grain = like && like->has_zero_grains,
    };
    return write_extent(store, &plan, length, NULL);
}

static char *extent_name(const VmdkPlan *plan, const char *base_name, unsigned number)
{
    if (plan->like) {
        return g_strdup(g_array_index(plan->like->descriptor->lines, VmdkLine, number).name);
    }
    const char *dot = strrchr(base_name, '.');
    int stem = dot && dot != base_name ? (int)(dot - base_name) : (int)strlen(base_name);
    const char *suffix = dot && dot != base_name ? dot : "";
    return plan->subformat->split
               ? g_strdup_printf("%.*s%s%03u%s", stem, base_name, plan->subformat->suffix,
                                 number + 1, suffix)
               : g_strdup_printf("%.*s%s%s", stem, base_name, plan->subformat->suffix, suffix);
}

static bool make_extents(const VmdkPlan *plan, const FormatCreate *how, GPtrArray *names,
                         GError **error)
{
    FormatFiles *files = how->files;
    for (uint64_t i = 0; i < vmdk_plan_extents(plan); i++) {
        char *name = extent_name(plan, files->base_name, i);
        g_ptr_array_add(names, name);
        g_autoptr(Store) store = files->make(files, name, error);
        if (!store) {
            return false;
        }
        int r = write_extent(store, plan, i, how->backing_name);
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot write the extent", store->name);
        }
    }
    return true;
}

static bool check_files(const VmdkPlan *plan, const FormatCreate *how, const char *path,
                        GError **error)
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
static bool create_several(Store *store, const VmdkPlan *plan, const FormatCreate *how,
                           GError **error)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    if (!check_files(plan, how, store->name, error) || !make_extents(plan, how, names, error)) {
        return false;
    }
    g_autoptr(GString) descriptor = vmdk_descriptor_text(plan, how, names);
    int r = store_write(store, descriptor->str, descriptor->len, 0);
    r = r < 0 ? r : store_sync(store);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the descriptor", store->name);
}

static bool create_one(Store *store, const VmdkPlan *plan, const FormatCreate *how, GError **error)
{
    g_autoptr(GString) descriptor = vmdk_descriptor_embedded(plan, how, store->name);
    if (descriptor->len > VMDK_NEW_DESCRIPTOR_SECTORS * VMDK_SECTOR) {
        return error_set(error, ENAMETOOLONG,
                         "%s: the name of the backing file is too long: the descriptor has room "
                         "for %u bytes",
                         store->name, VMDK_NEW_DESCRIPTOR_SECTORS * VMDK_SECTOR);
    }
    int r = write_sparse(store, plan, plan->size, descriptor);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the image", store->name);
}

/* A COWD extent that has no descriptor, and is a disk by itself. */
static bool create_alone(Store *store, const VmdkPlan *plan, GError **error)
{
    int r = write_cowd(store, plan, 0, NULL);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the image", store->name);
}

bool vmdk_create(Store *store, const FormatCreate *how, GError **error)
{
    VmdkPlan plan = {0};
    if (!vmdk_plan_make(&plan, how, error)) {
        return false;
    }
    if (plan.like && !plan.like->descriptor->text) {
        return create_alone(store, &plan, error);
    }
    return plan.subformat->suffix ? create_several(store, &plan, how, error)
                                  : create_one(store, &plan, how, error);
}

/* All extents must be of one kind, as create makes them. */
static const char *refuse_like(const VmdkState *state)
{
    const VmdkSparse *first = state->extents[0].sparse;
    for (unsigned i = 0; i < state->count; i++) {
        const VmdkSparse *sparse = state->extents[i].sparse;
        if (!sparse) {
            return "is flat, which has no unused space but holes";
        }
        if (sparse->grain != first->grain || sparse->has_zero_grains != first->has_zero_grains ||
            (sparse->free_offset != 0) != (first->free_offset != 0)) {
            return "has grains of another kind than the first extent";
        }
    }
    return NULL;
}

bool vmdk_create_like(const Image *image, GHashTable *options, GError **error)
{
    const VmdkState *state = image->state;
    const VmdkSparse *first = state->extents[0].sparse;
    const char *refusal = refuse_like(state);
    if (!vmdk_writable(image, state, error)) {
        return false;
    }
    if (refusal) {
        return error_set(error, ENOTSUP, "%s: one of its extents %s", image->path, refusal);
    }
    const char *text = state->embedded ? state->descriptor->text : NULL;
    if (text && strlen(text) > VMDK_NEW_DESCRIPTOR_SECTORS * VMDK_SECTOR) {
        return error_set(error, ENOTSUP, "%s: its descriptor has %zu bytes: must have %u at most",
                         image->path, strlen(text), VMDK_NEW_DESCRIPTOR_SECTORS * VMDK_SECTOR);
    }
    const char *subformat = first->free_offset != 0 ? "vmfsSparse"
                            : state->embedded       ? "monolithicSparse"
                                                    : "twoGbMaxExtentSparse";
    g_hash_table_insert(options, g_strdup("subformat"), g_strdup(subformat));
    g_hash_table_insert(options, g_strdup("grain_size"), g_strdup_printf("%" PRIu64, first->grain));
    g_hash_table_insert(options, g_strdup("zeroed_grain"),
                        g_strdup(first->has_zero_grains ? "on" : "off"));
    return true;
}

/* A table comes with the first of its grains. */
static void measure_cowd(const VmdkPlan *plan, FormatMeasure *measure)
{
    const uint64_t table = align_up(VMDK_COWD_ENTRIES * UINT64_C(4), plan->grain);
    const uint64_t covers = plan->grain * VMDK_COWD_ENTRIES;
    VmdkLayout layout = vmdk_plan_layout(plan, plan->size);
    uint64_t head = layout.grains * VMDK_SECTOR;
    measure->required = head + measure->data(measure->opaque, plan->grain) +
                        div_round_up(measure->data(measure->opaque, covers), covers) * table;
    measure->fully_allocated = head + align_up(plan->size, plan->grain) + layout.tables * table;
}

bool vmdk_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    VmdkPlan plan = {0};
    if (!vmdk_plan_make(&plan, how, error)) {
        return false;
    }
    uint64_t tables = 0, grains = 0;
    if (plan.subformat->cowd) {
        measure_cowd(&plan, measure);
        return true;
    }
    for (uint64_t i = 0; plan.subformat->sparse && i < vmdk_plan_extents(&plan); i++) {
        uint64_t length = vmdk_plan_length(&plan, i);
        tables += vmdk_plan_layout(&plan, length).grains * VMDK_SECTOR;
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
