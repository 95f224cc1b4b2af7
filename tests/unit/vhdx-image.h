/*
 * Small images of vhdx in memory, for their tests: blocks of a MiB, made by vhdx_create.
 */
#ifndef TESTS_UNIT_VHDX_IMAGE_H
#define TESTS_UNIT_VHDX_IMAGE_H

#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "formats/vhdx.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define BLOCK    VHDX_MIB
#define BLOCKS   6u
#define SIZE     (BLOCKS * BLOCK - 3 * 512)
#define LOG      (1 * VHDX_MIB)
#define METADATA (2 * VHDX_MIB)
#define TABLE    (3 * VHDX_MIB)
#define DATA     (4 * VHDX_MIB)
#define UNIT     VHDX_UNIT
/* Of the image that `create` makes: the header that counts, entries of the metadata, their values */
#define HEADER     (128 * VHDX_KIB)
#define REGIONS    VHDX_REGIONS_1
#define ENTRY(n)   (METADATA + 32 + 32 * (n))
#define PARAMETERS (METADATA + VHDX_TABLE_SIZE)
#define DISK_SIZE  (PARAMETERS + 8)
#define SECTOR     (DISK_SIZE + 8 + 16)
#define LOCATOR    (SECTOR + 8)

static inline Store *new_store_of(uint64_t size, const char *sector, const Image *backing)
{
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(options, "block_size", "1M");
    g_hash_table_insert(options, "logical_sector_size", (char *)sector);
    FormatCreate how = {.size = size, .options = options, .backing = backing};
    if (backing) {
        how.backing_name = "base.vhdx";
        how.backing_format = "vhdx";
    }
    g_autoptr(GError) error = NULL;
    Store *store = store_memory_new("test.vhdx", NULL, 0);
    bool made = vhdx_create(store, &how, &error);
    ck_assert_msg(made, "%s", made ? "" : error->message);
    return store;
}

static inline Store *new_store(const Image *backing)
{
    return new_store_of(SIZE, "512", backing);
}

static inline Image *open_store(Store *store, Image *backing, bool write, bool repair,
                                GError **error)
{
    ImageOpen how = {.format = &format_vhdx, .write = write, .repair = repair};
    return image_open_store(store, &how, backing, error);
}

static inline Image *must_open(Store *store, Image *backing, bool write, bool repair)
{
    g_autoptr(GError) error = NULL;
    Image *image = open_store(store, backing, write, repair, &error);
    ck_assert_msg(image != NULL, "%s", image ? "" : error->message);
    return image;
}

static inline void assert_refused(Store *store, bool write, const char *words)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = open_store(store, NULL, write, false, &error);
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

static inline uint64_t number_at(Store *store, uint64_t offset)
{
    uint8_t bytes[8];
    ck_assert_int_eq(store_read(store, bytes, sizeof bytes, offset), 0);
    return load_le64(bytes);
}

static inline void put_number(Store *store, uint64_t offset, uint64_t value, unsigned size)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    ck_assert_int_eq(store_write(store, bytes, size, offset), 0);
}

static inline void set_entry(Store *store, unsigned index, uint64_t value)
{
    put_number(store, TABLE + index * UINT64_C(8), value, 8);
}

static inline void allocate(Image *image, Allocation *a, uint64_t offset, uint64_t length)
{
    *a = (Allocation){.offset = offset, .length = length};
    extent_list_init(&a->extents);
    ck_assert_int_eq(vhdx_allocate(image, &a, 1), 0);
}

static inline void fill(Image *image, const Allocation *a, uint8_t value)
{
    g_autofree uint8_t *data = g_malloc(a->length);
    memset(data, value, a->length);
    const Extent *extent = &a->extents.items[0];
    ck_assert_int_eq(store_write(image->store, data, a->length, extent->host_offset), 0);
}

static inline void write_range(Image *image, uint64_t offset, uint64_t length, uint8_t value)
{
    Allocation a, *list = &a;
    allocate(image, &a, offset, length);
    fill(image, &a, value);
    ck_assert_int_eq(vhdx_commit(image, &list, 1), 0);
    extent_list_clear(&a.extents);
}

static inline void write_block(Image *image, unsigned block, uint8_t value)
{
    write_range(image, block * BLOCK, min_u64(BLOCK, image->size - block * BLOCK), value);
}

static inline Store *copy_of(Store *store)
{
    uint64_t size;
    const uint8_t *bytes = store_memory_content(store, &size);
    return store_memory_new("test.vhdx", bytes, size);
}

#endif
