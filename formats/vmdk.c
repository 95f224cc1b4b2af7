/*
 * vmdk: a disk laid end to end out of extents.
 *
 *     descriptor file            its extents                          embedded (KDMV with a descriptor inside)
 *     +---------------+          +-----------+ disk-s001.vmdk         +--------+------------+--------+
 *     | RW n SPARSE.. | -------> | sparse    | guest 0 .. n           | header | descriptor | grains |
 *     | RW m FLAT ... | -------> +-----------+ disk-f002.vmdk         +--------+------------+--------+
 *     | RW k ZERO     |          | flat      | guest n .. n + m       one sparse extent: the file itself,
 *     +---------------+          +-----------+                        whatever name its descriptor gives
 *
 * After VMware's "Virtual Disk Format 5.0". The text is read by vmdk-descriptor.c, a sparse extent by vmdk-sparse.c.
 *
 * A parent (here: backing) is known by its CID, which changes whenever it is written to: an overlay on a parent with
 * another CID would show a mixture of two disks, so it is refused. Its name may be a path of the machine where the
 * image was made; then its last part is tried beside the image, and the CID tells whether that is the right file.
 *
 * Only images of which every extent can be written are opened for writing; the files of that are in vmdk-impl.h.
 *
 * What must stay true: extents are in order and without gaps from 0 to image->size.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/log.h"
#include "formats/format.h"
#include "formats/inflate.h"
#include "formats/info.h"
#include "formats/vmdk-impl.h"

#define ZLIB_WINDOW_BITS 15

void vmdk_extent_clear(VmdkExtent *extent)
{
    g_clear_pointer(&extent->sparse, vmdk_sparse_close);
    g_clear_pointer(&extent->store, store_unref);
    g_clear_pointer(&extent->path, g_free);
}

static void state_free(VmdkState *state)
{
    if (!state) {
        return;
    }
    for (unsigned i = 0; i < state->count; i++) {
        vmdk_extent_clear(&state->extents[i]);
    }
    g_free(state->extents);
    g_clear_pointer(&state->removed, g_ptr_array_unref);
    vmdk_descriptor_free(state->descriptor);
    g_free(state);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmdkState, state_free)

static int vmdk_probe(const uint8_t *head, size_t n, const char *path)
{
    return vmdk_sparse_probe(head, n) ? 100 : vmdk_descriptor_probe(head, n) ? 90 : 0;
}

static VmdkDescriptor *read_descriptor(const Image *image, uint64_t offset, uint64_t length,
                                       GError **error)
{
    g_autofree char *text = g_try_malloc(length);
    if (!text) {
        error_set_errno(error, ENOMEM, "%s: cannot read the descriptor", image->path);
        return NULL;
    }
    int r = store_read(image->store, text, length, offset);
    if (r < 0) {
        error_set_errno(error, -r, "%s: cannot read the descriptor", image->path);
        return NULL;
    }
    return vmdk_descriptor_parse(text, length, image->path, error);
}

static bool open_embedded(Image *image, VmdkState *state, GError **error)
{
    state->embedded = true;
    state->extents = g_new0(VmdkExtent, 1);
    state->count = 1;
    VmdkExtent *extent = state->extents;
    extent->type = VMDK_TYPE_SPARSE;
    extent->store = store_ref(image->store);
    extent->path = g_strdup(image->path);
    extent->sparse = vmdk_sparse_open(image->store, image->metadata_cache, image->write, error);
    if (!extent->sparse) {
        return false;
    }
    extent->length = extent->sparse->size;
    if (extent->sparse->is_alone) {
        state->descriptor = vmdk_descriptor_new("vmfsSparse");
        return true;
    }
    if (extent->sparse->descriptor_length == 0) {
        return error_set(error, EINVAL,
                         "%s: is one extent of a disk (it holds no descriptor): open the disk's "
                         "descriptor file",
                         image->path);
    }
    state->descriptor = read_descriptor(image, extent->sparse->descriptor_offset,
                                        extent->sparse->descriptor_length, error);
    return state->descriptor != NULL;
}

static bool open_flat(const Image *image, const VmdkLine *line, VmdkExtent *extent, GError **error)
{
    extent->host_offset = line->offset;
    uint64_t size = store_size(extent->store);
    if (!range_within(line->offset, line->length, size)) {
        return error_set(error, EUCLEAN,
                         "%s: extent %s is truncated: it has %" G_GUINT64_FORMAT
                         " bytes, but the descriptor says %" G_GUINT64_FORMAT
                         " from %" G_GUINT64_FORMAT " on",
                         image->path, extent->path, size, line->length, line->offset);
    }
    return true;
}

static bool open_sparse(const Image *image, const VmdkLine *line, VmdkExtent *extent,
                        uint64_t cache_limit, GError **error)
{
    extent->sparse = vmdk_sparse_open(extent->store, cache_limit, image->write, error);
    if (!extent->sparse) {
        g_prefix_error(error, "%s: extent ", image->path);
        return false;
    }
    if (extent->sparse->size < line->length) {
        return error_set(error, EUCLEAN,
                         "%s: the capacity of extent %s is %" G_GUINT64_FORMAT
                         " bytes, but the descriptor says %" G_GUINT64_FORMAT,
                         image->path, extent->path, extent->sparse->size, line->length);
    }
    return true;
}

static bool open_extent(Image *image, const VmdkLine *line, VmdkExtent *extent,
                        uint64_t cache_limit, GError **error)
{
    extent->access = line->access;
    extent->type = line->type;
    extent->length = line->length;
    if (line->type == VMDK_TYPE_ZERO || line->access == VMDK_ACCESS_NOACCESS) {
        extent->path = g_strdup(line->name);
        return true;
    }
    extent->store = image_open_named(image, line->name, image->write, &extent->path, error);
    if (!extent->store) {
        return false;
    }
    bool flat = line->type == VMDK_TYPE_FLAT || line->type == VMDK_TYPE_VMFS;
    return flat ? open_flat(image, line, extent, error)
                : open_sparse(image, line, extent, cache_limit, error);
}

static bool open_descriptor_file(Image *image, VmdkState *state, GError **error)
{
    uint64_t length = store_size(image->store);
    if (length > VMDK_DESCRIPTOR_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: the descriptor has %" G_GUINT64_FORMAT " bytes: must be %u at most",
                         image->path, length, VMDK_DESCRIPTOR_MAX);
    }
    state->descriptor = read_descriptor(image, 0, length, error);
    if (!state->descriptor) {
        return false;
    }
    const GArray *lines = state->descriptor->lines;
    if (lines->len == 0) {
        return error_set(error, EUCLEAN, "%s: the descriptor names no extents", image->path);
    }
    state->extents = g_new0(VmdkExtent, image->write ? VMDK_EXTENTS_MAX : lines->len);
    uint64_t offset = 0;
    for (unsigned i = 0; i < lines->len; i++) {
        VmdkExtent *extent = &state->extents[state->count++];
        extent->offset = offset;
        if (!open_extent(image, &g_array_index(lines, VmdkLine, i), extent,
                         image->metadata_cache / lines->len, error)) {
            return false;
        }
        offset += extent->length;
    }
    return true;
}

/* The last part of a path that can only be of another place: absolute, here or on Windows. Else NULL. */
static const char *foreign_base_name(const char *name)
{
    bool drive = g_ascii_isalpha(name[0]) && name[1] == ':';
    if (name[0] != '/' && name[0] != '\\' && !drive) {
        return NULL;
    }
    const char *base = name;
    for (const char *at = name; *at; at++) {
        if (*at == '/' || *at == '\\' || (drive && at == name + 1)) {
            base = at + 1;
        }
    }
    return *base ? base : NULL;
}

/* The largest grain: the engine and the check of answers want one unit for the whole image. */
static uint64_t largest_grain(const VmdkState *state)
{
    uint64_t grain = 1;
    for (unsigned i = 0; i < state->count; i++) {
        if (state->extents[i].sparse) {
            grain = max_u64(grain, state->extents[i].sparse->grain);
        }
    }
    return grain;
}

static bool vmdk_open(Image *image, GError **error)
{
    g_autoptr(VmdkState) state = g_new0(VmdkState, 1);
    uint8_t magic[8];
    int r = store_read(image->store, magic, sizeof magic, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read its first bytes", image->path);
    }
    bool good = vmdk_sparse_probe(magic, sizeof magic) ? open_embedded(image, state, error)
                                                       : open_descriptor_file(image, state, error);
    if (!good) {
        return false;
    }
    const VmdkExtent *last = &state->extents[state->count - 1];
    image->size = last->offset + last->length;
    image->allocation_unit = largest_grain(state);
    if (state->descriptor->parent_name) {
        image->backing_name = g_strdup(state->descriptor->parent_name);
        image->backing_format = g_strdup("vmdk");
        image->backing_substitute = g_strdup(foreign_base_name(image->backing_name));
    }
    image->unwritable = !vmdk_writable(image, state, image->write ? error : NULL);
    if (image->write && image->unwritable) {
        return false;
    }
    image->state = g_steal_pointer(&state);
    return true;
}

static bool vmdk_check_backing(Image *image, GError **error)
{
    const Image *backing = image->backing;
    const VmdkState *state = image->state;
    if (state->descriptor->parent_cid == VMDK_NO_PARENT) {
        return true; /* a tool put something below */
    }
    if (backing->format != &format_vmdk) {
        return error_set(error, EINVAL, "%s: its parent %s is of format %s: must be vmdk",
                         image->path, backing->path, backing->format->name);
    }
    const VmdkState *parent = backing->state;
    if (parent->descriptor->cid != state->descriptor->parent_cid) {
        return error_set(error, EUCLEAN,
                         "%s: parentCID is %08x, but the CID of its parent %s is %08x: the parent "
                         "was changed, or is another file",
                         image->path, state->descriptor->parent_cid, backing->path,
                         parent->descriptor->cid);
    }
    return true;
}

static void vmdk_close(Image *image)
{
    state_free(image->state);
}

const VmdkExtent *vmdk_extent_at(const VmdkState *state, uint64_t offset)
{
    unsigned low = 0, high = state->count;
    while (high - low > 1) {
        unsigned middle = low + (high - low) / 2;
        if (state->extents[middle].offset <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return &state->extents[low];
}

/* Stops at the end of a vmdk extent at the latest. */
int vmdk_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    const VmdkState *state = image->state;
    const VmdkExtent *extent = vmdk_extent_at(state, offset);
    uint64_t inside = offset - extent->offset;
    length = min_u64(length, extent->length - inside);
    if (extent->access == VMDK_ACCESS_NOACCESS) {
        log_limited(LOG_LEVEL_WARNING,
                    "%s: offset %" G_GUINT64_FORMAT " lies in an extent with NOACCESS", image->path,
                    offset);
        return -EIO;
    }
    if (extent->sparse) {
        return vmdk_sparse_map(extent->sparse, extent->offset, inside, length, list);
    }
    if (extent->type == VMDK_TYPE_ZERO) {
        extent_list_add_zero(list, offset, length, image);
        return 0;
    }
    extent_list_add(list, &(Extent){
                              .offset = offset,
                              .length = length,
                              .host_offset = extent->host_offset + inside,
                              .store = extent->store,
                              .image = image,
                              .type = EXTENT_DATA,
                              .flags = EXTENT_SPARSE | (state->started ? EXTENT_WRITABLE : 0),
                          });
    return 0;
}

static int vmdk_decode(Image *image, const Extent *extent, const uint8_t *stored,
                       size_t stored_length, uint8_t *unit)
{
    int r = inflate_unit(stored, stored_length, unit, extent->unit_length, ZLIB_WINDOW_BITS);
    const VmdkExtent *in = vmdk_extent_at(image->state, extent->offset);
    uint64_t rest = in->offset + in->length - (extent->offset - extent->unit_offset);
    if (r == -EIO && rest < extent->unit_length) {
        /* The last grain: some writers compress only what lies within the extent. */
        memset(unit + rest, 0, extent->unit_length - rest);
        r = inflate_unit(stored, stored_length, unit, rest, ZLIB_WINDOW_BITS);
    }
    if (r == -EIO) {
        log_limited(LOG_LEVEL_ERROR,
                    "%s: the compressed grain at offset %" G_GUINT64_FORMAT
                    ", host offset %" G_GUINT64_FORMAT " is damaged",
                    image->path, extent->offset - extent->unit_offset, extent->host_offset);
    }
    return r;
}

static void add_extent_info(const VmdkExtent *extent, bool embedded, GVariantBuilder *list)
{
    const VmdkSparse *sparse = extent->sparse;
    g_variant_builder_open(list, G_VARIANT_TYPE("a{sv}"));
    if (sparse && sparse->compressed) {
        g_variant_builder_add(list, "{sv}", "compressed", g_variant_new_boolean(true));
    }
    g_variant_builder_add(list, "{sv}", "virtual-size", g_variant_new_uint64(extent->length));
    if (extent->path) {
        info_add_text(list, "filename", extent->path, -1);
    }
    if (sparse) {
        g_variant_builder_add(list, "{sv}", "cluster-size", g_variant_new_uint64(sparse->grain));
    }
    g_variant_builder_add(list, "{sv}", "format",
                          g_variant_new_string(embedded ? "" : vmdk_type_names[extent->type]));
    g_variant_builder_close(list);
}

static void vmdk_info(const Image *image, GVariantBuilder *data)
{
    const VmdkState *state = image->state;
    const VmdkDescriptor *descriptor = state->descriptor;
    g_variant_builder_add(data, "{sv}", "cid", g_variant_new_uint32(descriptor->cid));
    g_variant_builder_add(data, "{sv}", "parent-cid", g_variant_new_uint32(descriptor->parent_cid));
    g_variant_builder_add(data, "{sv}", "create-type",
                          g_variant_new_string(descriptor->create_type));
    GVariantBuilder list;
    g_variant_builder_init(&list, G_VARIANT_TYPE("aa{sv}"));
    for (unsigned i = 0; i < state->count; i++) {
        add_extent_info(&state->extents[i], state->embedded, &list);
    }
    g_variant_builder_add(data, "{sv}", "extents", g_variant_builder_end(&list));
}

/* As qemu-img: of the first extent. */
static uint64_t vmdk_cluster_size(const Image *image)
{
    const VmdkState *state = image->state;
    return state->extents[0].sparse ? state->extents[0].sparse->grain : 0;
}

static uint64_t vmdk_allocated_bytes(const Image *image)
{
    const VmdkState *state = image->state;
    uint64_t sum = store_allocated_bytes(image->store);
    for (unsigned i = 0; i < state->count && !state->embedded; i++) {
        sum += state->extents[i].store ? store_allocated_bytes(state->extents[i].store) : 0;
    }
    return sum;
}

const Format format_vmdk = {
    .name = "vmdk",
    .probe = vmdk_probe,
    .open = vmdk_open,
    .check_backing = vmdk_check_backing,
    .close = vmdk_close,
    .start_writing = vmdk_start_writing,
    .map = vmdk_map,
    .allocate = vmdk_allocate,
    .commit = vmdk_commit,
    .abandon = vmdk_abandon,
    .unmap = vmdk_unmap,
    .flush = vmdk_flush,
    .sync = vmdk_sync,
    .finish = vmdk_finish,
    .is_dirty = vmdk_is_dirty,
    .decode = vmdk_decode,
    .info = vmdk_info,
    .cluster_size = vmdk_cluster_size,
    .allocated_bytes = vmdk_allocated_bytes,
    .resize = vmdk_resize,
    .set_backing = vmdk_set_backing,
    .knows_backing = true,
    .measure = vmdk_measure,
    .create_like = vmdk_create_like,
    .create_options = vmdk_create_options,
    .create = vmdk_create,
    .streaming = &vmdk_streaming,
    .check = vmdk_check,
};
