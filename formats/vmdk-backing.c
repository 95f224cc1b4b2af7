/*
 * vmdk: another parent, or none.
 *
 * The descriptor says who the parent is, by its name and its CID, and is changed in one piece (vmdk-text.c). What the
 * image is known by itself stays: its own CID.
 */
#include <errno.h>
#include <string.h>

#include "base/errors.h"
#include "formats/vmdk-impl.h"

static bool check_image(const Image *image, GError **error)
{
    const VmdkState *state = vmdk_state(image);
    bool sparse = true;
    for (unsigned i = 0; i < state->count; i++) {
        sparse &= state->extents[i].sparse != NULL;
    }
    if (!sparse) {
        return error_set(error, EINVAL,
                         "%s: has flat extents, which hide what lies below: make a "
                         "sparse one with cownbd convert",
                         image->path);
    }
    return state->descriptor->cid_digits > 0 ||
           error_set(error, EINVAL,
                     "%s: has no descriptor, which would say by a CID who its parent is",
                     image->path);
}

static bool check_backing(const char *name, const char *format, const Image *backing,
                          GError **error)
{
    if (format_find(format) != &format_vmdk || (backing && backing->format != &format_vmdk)) {
        return error_set(error, EINVAL, "the backing format is %s: must be vmdk",
                         backing ? backing->format->name : format);
    }
    if (!backing) {
        return error_set(error, EINVAL, "the CID of the backing file is needed: it must be there");
    }
    return !strpbrk(name, "\"\r\n") ||
           error_set(error, EINVAL, "the name of the backing file '%s' has a quote or a line break",
                     name);
}

bool vmdk_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                      GError **error)
{
    VmdkState *state = image->state;
    if (!name && !state->descriptor->parent_name) {
        return true;
    }
    if (name && (!check_image(image, error) || !check_backing(name, format, backing, error))) {
        return false;
    }
    VmdkEdit edit = {
        .parent = true,
        .parent_cid = name ? vmdk_cid(backing) : VMDK_NO_PARENT,
        .parent_name = name,
    };
    if (!vmdk_text_change(image, &edit, error)) {
        return false;
    }
    image_name_backing(image, name, format);
    int r = state->embedded ? vmdk_trim(state->extents[0].sparse) : 0;
    return r == 0 || error_set_errno(error, -r, "%s: cannot cut off the file", image->path);
}
