/*
 * The image of the unit tests of parallels, in memory.
 */
#ifndef TESTS_UNIT_PARALLELS_IMAGE_H
#define TESTS_UNIT_PARALLELS_IMAGE_H

#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/parallels.h"
#include "tests/unit/images.h"
#include "tests/unit/suite.h"

/* 4 KiB clusters; the last one is cut by the end of the disk. */
#define CLUSTER 4096u
#define BLOCKS  9u
#define SIZE    (8 * CLUSTER + 512)
#define TABLE   PARALLELS_HEADER_SIZE
#define DATA    CLUSTER /* where the first cluster lies */

static inline Store *new_store(void)
{
    FormatCreate how = {.size = SIZE};
    return images_create(&format_parallels, &how, "cluster_size=4k");
}

/* The bytes of an image whose first `count` clusters are there, cluster i filled with 'a' + i. */
static inline uint8_t *full_image(unsigned count, uint64_t *size)
{
    g_autoptr(Store) store = new_store();
    const uint8_t *empty = store_memory_content(store, size);
    ck_assert_uint_eq(*size, DATA);
    *size = DATA + CLUSTER * count;
    uint8_t *bytes = g_malloc0(*size);
    memcpy(bytes, empty, DATA);
    for (unsigned i = 0; i < count; i++) {
        store_le32(bytes + TABLE + 4 * i, 1 + i);
        memset(bytes + DATA + CLUSTER * i, 'a' + (int)i, CLUSTER);
    }
    return bytes;
}

#endif
