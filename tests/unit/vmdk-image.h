/*
 * Small vmdk images in memory, for their tests: opened, read at a place, refused in words.
 */
#ifndef TESTS_UNIT_VMDK_IMAGE_H
#define TESTS_UNIT_VMDK_IMAGE_H

#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "formats/vmdk.h"
#include "store/store-file.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define SECTOR 512u

static inline Image *open_bytes(const void *bytes, uint64_t size, Image *backing, GError **error)
{
    ImageOpen how = {0};
    g_autoptr(Store) store = store_memory_new("test.vmdk", bytes, size);
    return image_open_store(store, &how, backing, error);
}

static inline Image *must_open(const void *bytes, uint64_t size, Image *backing)
{
    g_autoptr(GError) error = NULL;
    Image *image = open_bytes(bytes, size, backing, &error);
    ck_assert_msg(image != NULL, "%s", image ? "" : error->message);
    return image;
}

static inline void assert_refused(const void *bytes, uint64_t size, const char *words)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = open_bytes(bytes, size, NULL, &error);
    ck_assert_msg(image == NULL, "'%s' was not refused", words);
    ck_assert_msg(strstr(error->message, words) != NULL, "'%s' is not in: %s", words,
                  error->message);
    ck_assert_msg(!strchr(error->message, '\n'), "more than one line: %s", error->message);
}

static inline uint8_t byte_at(Image *image, uint64_t offset)
{
    uint8_t byte = 0xff;
    int r = chain_read(image, &byte, 1, offset);
    ck_assert_msg(r == 0, "offset %u: %d", (unsigned)offset, r);
    return byte;
}

/* A field of a header with a value that must be refused in these words. */
typedef struct WrongField {
    unsigned offset, size;
    uint64_t value;
    const char *words;
} WrongField;

static inline void assert_fields_refused(const uint8_t *file, uint64_t size,
                                         const WrongField *wrong, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        g_autofree uint8_t *copy = g_memdup2(file, size);
        uint8_t value[8];
        store_le64(value, wrong[i].value);
        memcpy(copy + wrong[i].offset, value, wrong[i].size);
        assert_refused(copy, size, wrong[i].words);
    }
}

#endif
