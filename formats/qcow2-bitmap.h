/*
 * qcow2: the directory of persistent bitmaps. Private to formats/qcow2*.c. Blocks. [shared]
 */
#ifndef FORMATS_QCOW2_BITMAP_H
#define FORMATS_QCOW2_BITMAP_H

#include "formats/qcow2.h"

#define QCOW2_BITMAP_IN_USE (1u << 0) /* not saved by its last user: must not be relied upon */
#define QCOW2_BITMAP_AUTO   (1u << 1) /* goes on being kept while the image is written */

typedef struct Qcow2Bitmap {
    uint64_t table_offset;
    uint32_t table_entries;
    uint32_t flags;
    uint8_t granularity_bits;
    const char *name; /* in the directory, not ended by 0 */
    uint16_t name_length;
    uint64_t length; /* of the entry */
} Qcow2Bitmap;

/* The bytes of the directory, which the header extension says; g_free. 0 or -errno. */
int qcow2_bitmap_directory_read(const Image *image, uint8_t **directory);

/* One entry, of at most `room` bytes. False: it cannot be true. Pure. */
bool qcow2_bitmap_unpack(const Qcow2State *s, const uint8_t *entry, uint64_t room,
                         Qcow2Bitmap *bitmap);

/* Adds "bitmaps" to what info shows, when there are any. */
void qcow2_bitmap_info(const Image *image, GVariantBuilder *data);

#endif
