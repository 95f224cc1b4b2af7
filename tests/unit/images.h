/*
 * What unit tests of formats do with images that lie in memory: make one, open it, see it refused, look at a byte, write
 * a unit, check it. Whatever fails ends the test.
 */
#ifndef TESTS_UNIT_IMAGES_H
#define TESTS_UNIT_IMAGES_H

#include <check.h>
#include <string.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "map/image.h"
#include "tests/lib/store-memory.h"

static inline Image *images_try(const Format *format, Store *store, Image *backing, bool write,
                                bool repair, GError **error)
{
    ImageOpen how = {.format = format, .write = write, .repair = repair};
    return image_open_store(store, &how, backing, error);
}

static inline Image *images_open(const Format *format, Store *store, Image *backing, bool write)
{
    g_autoptr(GError) error = NULL;
    Image *image = images_try(format, store, backing, write, false, &error);
    ck_assert_msg(image != NULL, "%s", image ? "" : error->message);
    return image;
}

/* A raw backing of that many bytes of one value. */
static inline Image *images_backing(uint8_t fill, uint64_t size)
{
    g_autofree uint8_t *bytes = g_malloc(size);
    memset(bytes, fill, size);
    g_autoptr(Store) store = store_memory_new("base.raw", bytes, size);
    return images_open(&format_raw, store, NULL, false);
}

/* One line, with these words. */
static inline void images_assert_says(const GError *error, const char *words)
{
    ck_assert_msg(error != NULL, "'%s' was not refused", words);
    ck_assert_msg(strstr(error->message, words) != NULL, "'%s' is not in: %s", words,
                  error->message);
    ck_assert_msg(!strchr(error->message, '\n'), "more than one line: %s", error->message);
}

static inline void images_assert_store_refused(const Format *format, Store *store, bool write,
                                               const char *words)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = images_try(format, store, NULL, write, false, &error);
    ck_assert_msg(image == NULL, "'%s' was not refused", words);
    images_assert_says(error, words);
}

static inline void images_assert_refused(const Format *format, const uint8_t *bytes, uint64_t size,
                                         bool write, const char *words)
{
    g_autoptr(Store) store = store_memory_new("test", bytes, size);
    images_assert_store_refused(format, store, write, words);
}

/* A field of an image with a value, and the words in which that is refused. */
typedef struct ImageField {
    unsigned offset, size; /* of 1, 4 or 8 bytes */
    uint64_t value;
    const char *words;
    bool write; /* refused to who wants to write */
} ImageField;

typedef void (*PutField)(uint8_t *bytes, uint64_t size, const ImageField *field);

static inline void images_put_le(uint8_t *bytes, uint64_t size, const ImageField *field)
{
    uint8_t value[8];
    store_le64(value, field->value);
    memcpy(bytes + field->offset, value, field->size);
}

static inline void images_put_be(uint8_t *bytes, uint64_t size, const ImageField *field)
{
    uint8_t value[8];
    store_be64(value, field->value);
    memcpy(bytes + field->offset, value + 8 - field->size, field->size);
}

/* Of a format with two levels of tables, whose L1 table is at `l1`: the bytes of an empty image, behind which lie an L2 table
 * of a cluster and `count` clusters, cluster i filled with 'a' + i. */
static inline uint8_t *images_with_one_table(Store *empty, unsigned l1, PutField put,
                                             unsigned cluster, unsigned count, uint64_t *size)
{
    uint64_t end;
    const uint8_t *start = store_memory_content(empty, &end);
    *size = end + cluster * (1 + count);
    uint8_t *bytes = g_malloc0(*size);
    memcpy(bytes, start, end);
    put(bytes, *size, &(ImageField){.offset = l1, .size = 8, .value = end});
    for (unsigned i = 0; i < count; i++) {
        uint64_t place = end + cluster * (1 + i);
        put(bytes, *size, &(ImageField){.offset = end + 8 * i, .size = 8, .value = place});
        memset(bytes + place, 'a' + (int)i, cluster);
    }
    return bytes;
}

/* Each in a copy of an image that is good. */
static inline void images_assert_fields_refused(const Format *format, const uint8_t *good,
                                                uint64_t size, PutField put,
                                                const ImageField *wrong, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        g_autofree uint8_t *bytes = g_memdup2(good, size);
        put(bytes, size, &wrong[i]);
        images_assert_refused(format, bytes, size, wrong[i].write, wrong[i].words);
    }
}

/* Numbers in the file itself. */
static inline uint64_t images_le64(Store *store, uint64_t offset)
{
    uint8_t bytes[8];
    ck_assert_int_eq(store_read(store, bytes, sizeof bytes, offset), 0);
    return load_le64(bytes);
}

static inline uint64_t images_be64(Store *store, uint64_t offset)
{
    return GUINT64_SWAP_LE_BE(images_le64(store, offset));
}

static inline uint32_t images_le32(Store *store, uint64_t offset)
{
    uint8_t bytes[4];
    ck_assert_int_eq(store_read(store, bytes, sizeof bytes, offset), 0);
    return load_le32(bytes);
}

static inline uint8_t images_byte(Image *image, uint64_t offset)
{
    uint8_t byte = 0xff;
    int r = chain_read(image, &byte, 1, offset);
    ck_assert_msg(r == 0, "offset %" G_GUINT64_FORMAT ": %d", offset, r);
    return byte;
}

static inline int images_read_error(Image *image, uint64_t offset)
{
    uint8_t byte;
    return chain_read(image, &byte, 1, offset);
}

/* A whole unit, from allocate to commit. Where it lies. */
static inline uint64_t images_write(Image *image, uint64_t offset, uint8_t fill)
{
    const Format *format = image->format;
    Allocation a = {.offset = offset, .length = image->allocation_unit}, *list = &a;
    extent_list_init(&a.extents);
    ck_assert_int_eq(format->allocate(image, &list, 1), 0);
    g_autofree uint8_t *data = g_malloc(a.length);
    memset(data, fill, a.length);
    uint64_t place = a.extents.items[0].host_offset;
    ck_assert_int_eq(store_write(image->store, data, a.length, place), 0);
    ck_assert_int_eq(format->commit(image, &list, 1), 0);
    extent_list_clear(&a.extents);
    return place;
}

static inline CheckResult images_check_over(const Format *format, Store *store, Image *backing,
                                            CheckRepair repair)
{
    CheckResult result = {0};
    g_autoptr(GError) error = NULL;
    bool write = repair != CHECK_REPORT_ONLY;
    g_autoptr(Image) image = images_try(format, store, backing, write, write, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    ck_assert_msg(format->check(image, repair, &result, &error), "%s", error ? error->message : "");
    ck_assert_int_eq(image_finish(image), 0);
    return result;
}

static inline CheckResult images_check(const Format *format, Store *store, CheckRepair repair)
{
    return images_check_over(format, store, NULL, repair);
}

/* An image whose last cluster, that of the guest's second, loses its second half: what is left is read, and check says
 * what happened until the file is whole again. */
static inline void images_assert_cut_short(const Format *format, const uint8_t *bytes,
                                           uint64_t size, unsigned cluster)
{
    g_autoptr(Store) store = store_memory_new("test", bytes, size - cluster / 2);
    ck_assert_uint_eq(images_check(format, store, CHECK_REPORT_ONLY).corruptions, 1);
    for (int round = 0; round < 2; round++) {
        g_autoptr(Image) image = images_open(format, store, NULL, false);
        ck_assert_uint_eq(images_byte(image, cluster + cluster / 2 - 1), 'b');
        ck_assert_uint_eq(images_byte(image, cluster + cluster / 2), 0);
        ck_assert_uint_eq(images_check(format, store, CHECK_REPAIR_ALL).corruptions_fixed, !round);
    }
    ck_assert_uint_eq(store_size(store), size);
    CheckResult result = images_check(format, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions + result.leaks, 0);
}

/* "name=value,name=value" or NULL. g_hash_table_unref. */
static inline GHashTable *images_options(const char *text)
{
    GHashTable *options = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    g_auto(GStrv) pairs = g_strsplit(text ? text : "", ",", -1);
    for (char **pair = pairs; *pair; pair++) {
        const char *equals = strchr(*pair, '=');
        g_hash_table_insert(options, g_strndup(*pair, equals - *pair), g_strdup(equals + 1));
    }
    return options;
}

/* What create makes. */
static inline Store *images_create(const Format *format, const FormatCreate *how,
                                   const char *options)
{
    g_autoptr(GHashTable) table = images_options(options);
    FormatCreate with = *how;
    with.options = table;
    g_autoptr(GError) error = NULL;
    Store *store = store_memory_new("test", NULL, 0);
    ck_assert_msg(format->create(store, &with, &error), "%s", error ? error->message : "");
    return store;
}

/* Create fails with these words. */
static inline void images_assert_create_refused(const Format *format, const FormatCreate *how,
                                                const char *options, const char *words)
{
    g_autoptr(GHashTable) table = images_options(options);
    FormatCreate with = *how;
    with.options = table;
    g_autoptr(Store) store = store_memory_new("test", NULL, 0);
    g_autoptr(GError) error = NULL;
    ck_assert_msg(!format->create(store, &with, &error), "'%s' was not refused", words);
    images_assert_says(error, words);
}

#endif
