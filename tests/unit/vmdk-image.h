/*
 * Small vmdk images in memory, for their tests: opened, read and written at a place, checked, refused in words.
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

static inline Image *open_store(Store *store, Image *backing, bool write, bool repair)
{
    ImageOpen how = {.format = &format_vmdk, .write = write, .repair = repair};
    g_autoptr(GError) error = NULL;
    Image *image = image_open_store(store, &how, backing, &error);
    ck_assert_msg(image != NULL, "%s", image ? "" : error->message);
    return image;
}

static inline uint32_t word_at(Store *store, uint64_t offset)
{
    uint8_t bytes[4];
    ck_assert_int_eq(store_read(store, bytes, sizeof bytes, offset), 0);
    return load_le32(bytes);
}

/* As the engine does it; the flush is the caller's. */
static inline void write_at(Image *image, uint64_t offset, uint64_t length, uint8_t value)
{
    g_autofree uint8_t *bytes = g_malloc(length);
    Allocation a = {.offset = offset, .length = length}, *list = &a;
    extent_list_init(&a.extents);
    memset(bytes, value, length);
    ck_assert_int_eq(image->format->allocate(image, &list, 1), 0);
    ck_assert_uint_eq(a.extents.count, 1);
    const Extent *extent = &a.extents.items[0];
    ck_assert_int_eq(store_write(extent->store, bytes, length, extent->host_offset), 0);
    ck_assert_int_eq(image->format->commit(image, &list, 1), 0);
    extent_list_clear(&a.extents);
}

static inline CheckResult check(Store *store, CheckRepair repair)
{
    bool mends = repair != CHECK_REPORT_ONLY;
    g_autoptr(Image) image = open_store(store, NULL, mends, mends);
    g_autoptr(GError) error = NULL;
    CheckResult result = {0};
    bool checked = image->format->check(image, repair, &result, &error);
    ck_assert_msg(checked, "%s", checked ? "" : error->message);
    return result;
}

static inline void assert_clean(Store *store)
{
    CheckResult result = check(store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(result.leaks, 0);
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
