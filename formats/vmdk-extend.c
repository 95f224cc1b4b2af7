/*
 * vmdk: more extents behind those of a split disk, each in a file of its own.
 *
 * They are whole and durable before a descriptor names them. What a cut leaves is a file that nobody names; the next
 * one gets another name, for a file that is there may be somebody's.
 *
 * The array of extents has room for all that there can be, so that it stays where it is while a sync goes through it.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/vmdk-impl.h"

#define NAME_TRIES 100u

static void line_clear(void *line)
{
    g_free(((VmdkLine *)line)->name);
}

GArray *vmdk_lines(const VmdkState *state, uint64_t last_length)
{
    const GArray *old = state->descriptor->lines;
    GArray *lines = g_array_new(false, false, sizeof(VmdkLine));
    g_array_set_clear_func(lines, line_clear);
    for (guint i = 0; i < old->len; i++) {
        VmdkLine line = g_array_index(old, VmdkLine, i);
        line.name = g_strdup(line.name);
        line.length = i + 1 == old->len ? last_length : line.length;
        g_array_append_val(lines, line);
    }
    return lines;
}

static bool is_named(const GArray *lines, const char *name)
{
    bool named = false;
    for (guint i = 0; i < lines->len; i++) {
        named |= g_strcmp0(g_array_index(lines, VmdkLine, i).name, name) == 0;
    }
    return named;
}

/* "disk-s003.vmdk" after "disk-s002.vmdk"; a name without a number gets one. */
static char *name_after(const char *name, unsigned step)
{
    const char *dot = strrchr(name, '.'), *end = dot && dot != name ? dot : name + strlen(name);
    const char *digits = end;
    while (digits > name && end - digits < 6 && g_ascii_isdigit(digits[-1])) {
        digits--;
    }
    int width = end - digits;
    uint64_t number = width > 0 ? g_ascii_strtoull(digits, NULL, 10) : 1;
    return g_strdup_printf("%.*s%s%0*" PRIu64 "%s", (int)(digits - name), name,
                           width > 0 ? "" : "-", MAX(width, 1), number + step, end);
}

/* A file of that name may be left over by a cut: then the next one is taken. */
static Store *make_file(Image *image, const GArray *lines, VmdkExtent *extent, char **name,
                        GError **error)
{
    const char *last = g_array_index(lines, VmdkLine, lines->len - 1).name;
    Store *store = NULL;
    for (unsigned step = 1; !store && step <= NAME_TRIES; step++) {
        g_autoptr(GError) why = NULL;
        g_free(*name);
        *name = name_after(last, step);
        bool taken = is_named(lines, *name);
        store = taken ? NULL : image_make_named(image, *name, &extent->path, &why);
        if (why && (why->code != EEXIST || step == NAME_TRIES)) {
            g_propagate_error(error, g_steal_pointer(&why));
            break;
        }
    }
    return store;
}

static bool open_new(VmdkExtent *extent, uint64_t cache, GError **error)
{
    extent->sparse = vmdk_sparse_open(extent->store, cache, true, error);
    if (!extent->sparse || !vmdk_scan_for_writing(extent->sparse, error)) {
        return false;
    }
    extent->sparse->writable = true;
    return true;
}

static bool make_extent(Image *image, GArray *lines, uint64_t length, GError **error)
{
    VmdkState *state = image->state;
    const VmdkExtent *like = vmdk_last_extent(state);
    VmdkExtent *extent = &state->extents[state->count];
    g_autofree char *name = NULL;
    *extent = (VmdkExtent){
        .type = like->sparse ? VMDK_TYPE_SPARSE : VMDK_TYPE_FLAT,
        .offset = like->offset + like->length,
        .length = length,
    };
    extent->store = make_file(image, lines, extent, &name, error);
    if (!extent->store) {
        return false;
    }
    state->count++;
    int r = vmdk_extent_write(extent->store, like->sparse, length);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the extent", extent->path);
    }
    if (like->sparse && !open_new(extent, image->metadata_cache / state->count, error)) {
        return false;
    }
    VmdkLine line = {.type = extent->type, .length = length, .name = g_steal_pointer(&name)};
    g_array_append_val(lines, line);
    return true;
}

/* Those that no descriptor names. */
void vmdk_extents_remove(Image *image, unsigned kept)
{
    VmdkState *state = image->state;
    if (!state->removed) {
        state->removed = g_ptr_array_new_with_free_func((GDestroyNotify)store_unref);
    }
    while (state->count > kept) {
        VmdkExtent *extent = vmdk_last_extent(state);
        state->count--;
        image_remove_named(image, extent->store, extent->path);
        g_ptr_array_add(state->removed, store_ref(extent->store));
        vmdk_extent_clear(extent);
    }
}

static uint64_t rest_of(const VmdkState *state, uint64_t size)
{
    const VmdkExtent *last = vmdk_last_extent(state);
    return size - (last->offset + last->length);
}

static int mark_new(Image *image, unsigned first)
{
    VmdkState *state = image->state;
    int r = vmdk_mark_extents(state, 1);
    for (unsigned i = first; r == 0 && i < state->count; i++) {
        if (state->extents[i].sparse) {
            state->extents[i].sparse->is_unclean = true;
        }
    }
    return r < 0 ? r : vmdk_sync(image);
}

/* A longer backing does not show in what the disk gains. */
static int hide_backing(Image *image, unsigned first)
{
    VmdkState *state = image->state;
    g_autoptr(GArray) dropped = g_array_new(false, false, sizeof(uint32_t)); /* there is none */
    int r = 0;
    for (unsigned i = first; r == 0 && i < state->count; i++) {
        const VmdkExtent *extent = &state->extents[i];
        uint64_t hidden = vmdk_hidden_end(image, extent);
        r = hidden == 0 ? 0 : vmdk_grains_drop(extent->sparse, 0, extent->length, hidden, dropped);
    }
    vmdk_update_dirty(state);
    return r < 0 ? r : vmdk_flush(image);
}

bool vmdk_extents_add(Image *image, GArray *lines, uint64_t size, uint64_t limit, GError **error)
{
    VmdkState *state = image->state;
    unsigned first = state->count;
    while (rest_of(state, size) > 0) {
        if (!make_extent(image, lines, min_u64(rest_of(state, size), limit), error)) {
            return false;
        }
    }
    int r = state->count > first ? mark_new(image, first) : 0;
    r = r < 0 || state->count == first ? r : hide_backing(image, first);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the extents", image->path);
}
