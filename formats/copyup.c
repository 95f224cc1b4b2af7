/*
 * Copying up: read through the chain, allocate, write, commit.
 */
#include "formats/copyup.h"

#include <errno.h>

#include "formats/format.h"
#include "map/encryption.h"

int copy_up(Image *image, uint64_t offset, uint64_t length)
{
    const Format *format = image->format;
    g_autofree uint8_t *bytes = g_try_malloc(length);
    int r = bytes != NULL ? chain_read(image, bytes, length, offset) : -ENOMEM;
    if (r < 0) {
        return r;
    }
    Allocation allocation = {.offset = offset, .length = length}, *list = &allocation;
    extent_list_init(&allocation.extents);
    r = image_allocate(image, &list, 1);
    if (r == 0) {
        r = extent_write(&allocation.extents.items[0], &(struct iovec){bytes, length}, 1);
        if (r == 0) {
            r = format->commit(image, &list, 1);
        } else {
            format->abandon(image, &list, 1);
        }
    }
    extent_list_clear(&allocation.extents);
    return r;
}
