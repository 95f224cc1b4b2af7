/*
 * vhd: another parent, or none.
 *
 *     ... blocks | header, names of the new parent | footer
 *
 * The dynamic header has two sectors, and the footer says by its type whether there is a parent. So a new header is
 * written behind the blocks, with the names, and synced; then the footer, which is one sector, says where it is and what
 * the image has become, and after it the copy. A cut leaves the old header or the new one. What the old one took stays a
 * gap.
 *
 * Without a parent a cleared bit means zeroes, but other programs show what lies in the block. So before a parent goes,
 * sectors that are not in their block are written with zeroes.
 */
#include "formats/vhd.h"

#include <errno.h>
#include <string.h>

#include "base/errors.h"
#include "formats/copyup.h"

/* All sectors of blocks that are there. */
static int fill_blocks(Image *image)
{
    const VhdState *s = image->state;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < image->size; at += s->block_size) {
        if (block_table_get(s->table, vhd_block_of(s, at)) != VHD_UNUSED) {
            r = copy_up_all(image, at, min_u64(s->block_size, image->size - at));
        }
    }
    return r < 0 ? r : vhd_flush(image);
}

/* The header with what `name` needs in place of the old parent's. */
static bool make_header(const Image *image, const char *name, const Image *backing, uint64_t place,
                        GByteArray *data, GError **error)
{
    uint8_t header[VHD_HEADER_SIZE];
    memcpy(header, vhd_state(image)->header.bytes, sizeof header);
    memset(header + VHD_H_PARENT_UUID, 0, VHD_UUID_SIZE);
    memset(header + VHD_H_PARENT_TIME, 0, 4);
    memset(header + VHD_H_PARENT_NAME, 0, VHD_NAME_MAX);
    memset(header + VHD_H_LOCATORS, 0, VHD_LOCATORS * VHD_LOCATOR_SIZE);
    g_byte_array_set_size(data, VHD_HEADER_SIZE);
    if (name && !vhd_parent_make(name, backing, place + VHD_HEADER_SIZE, header, data, error)) {
        return false;
    }
    vhd_checksum_set(header, VHD_HEADER_SIZE, VHD_H_CHECKSUM);
    memcpy(data->data, header, sizeof header);
    return true;
}

static int switch_to(Image *image, const GByteArray *data, uint64_t place, bool parent)
{
    VhdState *s = image->state;
    uint8_t footer[VHD_FOOTER_SIZE];
    int r = store_write(image->store, data->data, data->len, place);
    r = r < 0 ? r : store_sync(image->store);
    memcpy(footer, s->footer.bytes, sizeof footer);
    store_be64(footer + VHD_F_DATA_OFFSET, place);
    store_be32(footer + VHD_F_TYPE, parent ? VHD_DIFFERENCING : VHD_DYNAMIC);
    vhd_checksum_set(footer, VHD_FOOTER_SIZE, VHD_F_CHECKSUM);
    r = r < 0 ? r : vhd_footers_replace(image, footer);
    vhd_update_dirty(s); /* the place of an older footer may have to be cleared */
    return r < 0 ? r : vhd_finish(image);
}

static bool check_request(const Image *image, const char *name, const char *format,
                          const Image *backing, GError **error)
{
    const VhdState *s = image->state;
    if (name && s->footer.type == VHD_FIXED) {
        return error_set(error, EINVAL, "%s: is a fixed vhd, which has no backing file",
                         image->path);
    }
    return !name || vhd_parent_check(format, backing, error);
}

bool vhd_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                     GError **error)
{
    VhdState *s = image->state;
    if (!check_request(image, name, format, backing, error)) {
        return false;
    }
    if (!name && s->footer.type != VHD_DIFFERENCING) {
        return true;
    }
    g_autoptr(GByteArray) data = g_byte_array_new();
    uint64_t place = 0;
    int r = name ? 0 : fill_blocks(image);
    r = r < 0 ? r
              : vhd_space_take(image, VHD_HEADER_SIZE + (name ? VHD_LOCATORS_SPACE : 0), &place);
    if (r == 0 && !make_header(image, name, backing, place, data, error)) {
        return false;
    }
    r = r < 0 ? r : switch_to(image, data, place, name);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the header", image->path);
    }
    image_name_backing(image, name, format);
    return true;
}
