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
#include "tests/unit/images.h"
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
    FormatCreate how = {.size = size, .backing = backing};
    if (backing) {
        how.backing_name = "base.vhdx";
        how.backing_format = "vhdx";
    }
    g_autofree char *options = g_strdup_printf("block_size=1M,logical_sector_size=%s", sector);
    return images_create(&format_vhdx, &how, options);
}

static inline Store *new_store(const Image *backing)
{
    return new_store_of(SIZE, "512", backing);
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
