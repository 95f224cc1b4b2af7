/*
 * vmdk: the descriptor's text, where it lies, and another one in its place.
 *
 *     a file by itself   replaced as a whole
 *     in an extent       one sector differs: that is written
 *                        more do: copy of the new text at the end of the file -> sync -> the header says that it is there
 *                        -> sync -> the new text where the old one was -> sync -> the header says so -> sync
 *
 * So a cut leaves the old text or the new one, and in the end it lies where it was: other programs do not look into the
 * header for it.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/vmdk-impl.h"

/* In image->store. */
static uint64_t text_offset(const VmdkState *state)
{
    return state->embedded ? state->extents[0].sparse->descriptor_offset : 0;
}

static uint64_t text_room(const Image *image)
{
    const VmdkState *state = vmdk_state(image);
    return state->embedded ? state->extents[0].sparse->descriptor_length : store_size(image->store);
}

static GString *read_text(const Image *image, GError **error)
{
    uint64_t length = text_room(image);
    g_autofree char *bytes = g_try_malloc(length);
    int r =
        bytes ? store_read(image->store, bytes, length, text_offset(vmdk_state(image))) : -ENOMEM;
    if (r < 0) {
        error_set_errno(error, -r, "%s: cannot read the descriptor", image->path);
        return NULL;
    }
    return g_string_new_len(bytes, strnlen(bytes, length));
}

/* ---- in an extent --------------------------------------------------------------------------- */

static int move_text(Image *image, uint64_t offset)
{
    VmdkSparse *sparse = vmdk_state(image)->extents[0].sparse;
    VmdkOutline outline = vmdk_outline(sparse);
    outline.descriptor_offset = offset;
    return vmdk_outline_write(image, sparse, &outline);
}

static int write_by_copy(Image *image, const uint8_t *bytes, uint64_t length)
{
    VmdkSparse *sparse = vmdk_state(image)->extents[0].sparse;
    uint64_t place = sparse->descriptor_offset, copy, space = align_up(length, sparse->grain);
    bool fresh;
    int r = vmdk_space_take(sparse, space, &copy, &fresh);
    if (r < 0) {
        return r;
    }
    r = store_write(image->store, bytes, length, copy);
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : move_text(image, copy);
    r = r < 0 ? r : store_write(image->store, bytes, length, place);
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : move_text(image, place);
    if (r == 0) {
        vmdk_space_give_back(sparse, copy, space);
    }
    return r;
}

static int write_embedded(Image *image, const GString *old, const GString *new)
{
    uint64_t length = text_room(image), first = UINT64_MAX, last = 0;
    g_autofree uint8_t *before = g_malloc0(length), *after = g_malloc0(length);
    memcpy(before, old->str, old->len);
    memcpy(after, new->str, new->len);
    for (uint64_t at = 0; at < length; at += VMDK_SECTOR) {
        if (memcmp(before + at, after + at, VMDK_SECTOR) != 0) {
            first = min_u64(first, at);
            last = at;
        }
    }
    if (first == UINT64_MAX) {
        return 0;
    }
    if (first != last) {
        return write_by_copy(image, after, length);
    }
    int r = store_write(image->store, after + first, VMDK_SECTOR,
                        text_offset(vmdk_state(image)) + first);
    return r < 0 ? r : store_sync(image->store);
}

/* ---- either --------------------------------------------------------------------------------- */

static bool fits(const Image *image, const GString *text, GError **error)
{
    uint64_t room = vmdk_state(image)->embedded ? text_room(image) : VMDK_DESCRIPTOR_MAX;
    return text->len <= room ||
           error_set(error, ENAMETOOLONG,
                     "%s: the descriptor would have %zu bytes: there is room for %" PRIu64,
                     image->path, text->len, room);
}

static int write_text(Image *image, const GString *old, const GString *new)
{
    return vmdk_state(image)->embedded ? write_embedded(image, old, new)
                                       : store_replace(image->store, new->str, new->len);
}

/* Where the old text is not there any more, nor known to be the new one, nothing may be changed. */
static bool put_text(Image *image, const GString *old, const GString *new, GError **error)
{
    VmdkState *state = image->state;
    int r = write_text(image, old, new);
    if (r == 0) {
        vmdk_descriptor_free(state->descriptor);
        state->descriptor = vmdk_descriptor_parse(new->str, new->len, image->path, NULL);
        return true;
    }
    g_autoptr(GString) now = read_text(image, NULL);
    state->broken |= !now || !g_string_equal(now, old);
    return error_set_errno(error, -r, "%s: cannot write the descriptor", image->path);
}

bool vmdk_text_change(Image *image, const VmdkEdit *edit, GError **error)
{
    const VmdkState *state = vmdk_state(image);
    g_autoptr(GString) old = read_text(image, error);
    g_autoptr(GString) new =
        old ? vmdk_descriptor_edit(old, state->descriptor, edit, image->path, error) : NULL;
    return new &&fits(image, new, error) && put_text(image, old, new, error);
}
