/*
 * vhd: what a new image takes over from an old one that it is to replace.
 *
 *     footer         all of it: UUID and time, creator, size as it is said
 *     header         the parent's UUID, time and name; locators, with what they point to
 *     batmap         one that calls no block full, which is always true
 *
 * So children find the parent that they know, the image finds its own, and the disk keeps its size for who takes that
 * from the geometry. Programs of Xen's look for a batmap without asking whether there is one: where the old image has
 * one, so has the new.
 */
#include "formats/vhd.h"

#include <string.h>

#include "base/errors.h"

bool vhd_create_like(const Image *image, GHashTable *options, GError **error)
{
    const VhdState *s = image->state;
    bool fixed = s->footer.type == VHD_FIXED;
    g_hash_table_insert(options, g_strdup("subformat"), g_strdup(fixed ? "fixed" : "dynamic"));
    if (!fixed) {
        g_hash_table_insert(options, g_strdup("block_size"),
                            g_strdup_printf("%" PRIu64, s->block_size));
    }
    return true;
}

void vhd_footer_like(const Image *image, uint8_t *footer)
{
    const VhdState *s = image->state;
    memcpy(footer, s->footer.bytes, VHD_FOOTER_SIZE);
    store_be64(footer + VHD_F_DATA_OFFSET,
               s->footer.type == VHD_FIXED ? UINT64_MAX : VHD_FOOTER_SIZE);
}

/* Appends that much of the old file. */
static int append(const Image *image, uint64_t offset, uint64_t length, GByteArray *data)
{
    guint at = data->len;
    g_byte_array_set_size(data, at + length);
    return store_read(image->store, data->data + at, length, offset);
}

static int take_batmap(const Image *image, uint64_t start, uint8_t *header, GByteArray *data)
{
    const VhdState *s = image->state;
    guint at = data->len;
    uint32_t sectors = div_round_up(load_be32(header + VHD_H_ENTRIES), VHD_SECTOR * 8);
    int r = append(image, vhd_batmap_place(s), VHD_BATMAP_HEADER, data);
    uint8_t *batmap = data->data + at;
    store_be64(batmap + VHD_BATMAP_OFFSET, start + data->len);
    store_be32(batmap + VHD_BATMAP_SIZE, sectors);
    store_be32(batmap + VHD_BATMAP_CHECKSUM, UINT32_MAX); /* of zeroes */
    at = data->len;
    g_byte_array_set_size(data, at + sectors * VHD_SECTOR);
    memset(data->data + at, 0, sectors * VHD_SECTOR);
    return r;
}

/* One that points nowhere is nobody's. */
static int take_locator(const Image *image, uint64_t start, uint8_t *locator, GByteArray *data)
{
    uint64_t from = load_be64(locator + 16), size = store_size(image->store);
    uint32_t length = load_be32(locator + 8);
    uint64_t space = vhd_locator_space(load_be32(locator + 4), length);
    if (load_be32(locator) == 0 || length == 0 || length > VHD_LOCATOR_LIMIT ||
        !range_within(from, length, size)) {
        memset(locator, 0, VHD_LOCATOR_SIZE);
        return 0;
    }
    if (space > VHD_LOCATOR_LIMIT || !range_within(from, space, size)) {
        space = align_up(length, VHD_SECTOR); /* what is said of it is not true */
        store_be32(locator + 4, space);
    }
    store_be64(locator + 16, start + data->len);
    return append(image, from, space, data);
}

bool vhd_header_like(const Image *image, uint64_t start, uint8_t *header, GByteArray *data,
                     GError **error)
{
    const VhdState *s = image->state;
    int r = s->has_batmap ? take_batmap(image, start, header, data) : 0;
    memcpy(header + VHD_H_PARENT_UUID, s->header.bytes + VHD_H_PARENT_UUID,
           VHD_HEADER_SIZE - VHD_H_PARENT_UUID);
    for (unsigned i = 0; r == 0 && i < VHD_LOCATORS; i++) {
        r = take_locator(image, start, header + VHD_H_LOCATORS + i * VHD_LOCATOR_SIZE, data);
    }
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot read the names of its parent", image->path);
}
