/* formats/vhd*.c: what is refused by which name, what is written in which order, what repair mends */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "formats/vhd.h"
#include "tests/lib/store-record.h"
#include "tests/unit/images.h"
#include "tests/unit/suite.h"

#define BLOCK  16384u
#define BLOCKS 5u
#define SIZE   (BLOCKS * BLOCK - 3 * VHD_SECTOR)
#define HEADER VHD_FOOTER_SIZE
#define TABLE  (VHD_FOOTER_SIZE + VHD_HEADER_SIZE)
#define FOOTER (TABLE + VHD_SECTOR) /* of an empty image */
#define STRIDE (VHD_SECTOR + BLOCK) /* blocks of the tests lie side by side */
#define FIRST  (TABLE + VHD_SECTOR) /* where the first of them begins */
#define END(n) (FIRST + (n)*STRIDE) /* and where n of them end */

static void sign(uint8_t *bytes, size_t n, size_t offset)
{
    store_be32(bytes + offset, vhd_checksum(bytes, n, offset));
}

/* An empty image with small blocks. */
static Store *new_store(const char *backing, const char *backing_format, const Image *opened)
{
    FormatCreate how = {
        .size = SIZE, .backing_name = backing, .backing_format = backing_format, .backing = opened};
    return images_create(&format_vhd, &how, "block_size=16k");
}

/* The bytes of an image with `count` full blocks, block i filled with 'a' + i. */
static uint8_t *full_image(unsigned count, uint64_t *size)
{
    g_autoptr(Store) store = new_store(NULL, NULL, NULL);
    const uint8_t *empty = store_memory_content(store, size);
    uint8_t *bytes = g_malloc0(END(count) + VHD_FOOTER_SIZE);
    memcpy(bytes, empty, FOOTER);
    for (unsigned i = 0; i < count; i++) {
        store_be32(bytes + TABLE + 4 * i, END(i) / VHD_SECTOR);
        memset(bytes + END(i), 0xff, BLOCK / VHD_SECTOR / 8);
        memset(bytes + END(i) + VHD_SECTOR, 'a' + (int)i, BLOCK);
    }
    memcpy(bytes + END(count), bytes, VHD_FOOTER_SIZE);
    *size = END(count) + VHD_FOOTER_SIZE;
    return bytes;
}

static void allocate(Image *image, Allocation *a, uint64_t offset, uint64_t length)
{
    *a = (Allocation){.offset = offset, .length = length};
    extent_list_init(&a->extents);
    ck_assert_int_eq(vhd_allocate(image, &a, 1), 0);
}

static void write_data(const Allocation *a, uint8_t fill)
{
    for (unsigned i = 0; i < a->extents.count; i++) {
        const Extent *extent = &a->extents.items[i];
        g_autofree uint8_t *data = g_malloc(extent->length);
        memset(data, fill, extent->length);
        ck_assert_int_eq(store_write(extent->store, data, extent->length, extent->host_offset), 0);
    }
}

static void write_unit(Image *image, uint64_t offset, uint64_t length, uint8_t fill)
{
    Allocation a, *list = &a;
    allocate(image, &a, offset, length);
    write_data(&a, fill);
    ck_assert_int_eq(vhd_commit(image, &list, 1), 0);
    extent_list_clear(&a.extents);
}

static uint32_t table_on_disk(Store *store, unsigned block)
{
    uint8_t entry[4];
    ck_assert_int_eq(store_read(store, entry, 4, TABLE + 4 * block), 0);
    return load_be32(entry);
}

static bool footer_at(Store *store, uint64_t offset)
{
    uint8_t cookie[8];
    ck_assert_int_eq(store_read(store, cookie, 8, offset), 0);
    return memcmp(cookie, "conectix", 8) == 0;
}

/* The checksums fit, and the footers are the same. */
static void put_signed(uint8_t *bytes, uint64_t size, const ImageField *field)
{
    images_put_be(bytes, size, field);
    sign(bytes, VHD_FOOTER_SIZE, VHD_F_CHECKSUM);
    sign(bytes + HEADER, VHD_HEADER_SIZE, VHD_H_CHECKSUM);
    memcpy(bytes + size - VHD_FOOTER_SIZE, bytes, VHD_FOOTER_SIZE);
}

START_TEST(vhd_refuses_fields_by_name)
{
    static const ImageField wrong[] = {
        {VHD_F_VERSION, 4, 0x20000, "version of the footer is 2.0"},
        {VHD_F_TYPE, 4, 0, "type is 0"},
        {VHD_F_TYPE, 4, 5, "type is 5"},
        {VHD_F_TYPE, 4, 4, "neither a parent locator"},
        {VHD_F_CURRENT, 8, 513, "current size is 513"},
        {VHD_F_CURRENT, 8, 1ull << 63, "current size is"},
        {VHD_F_CURRENT, 8, 6 * BLOCK, "max_table_entries is 5: must be 6"},
        {VHD_F_DATA_OFFSET, 8, UINT64_MAX, "data offset of the footer is"},
        {VHD_F_DATA_OFFSET, 8, 100, "data offset of the footer is 100"},
        {VHD_F_DATA_OFFSET, 8, 1024, "cookie of the dynamic header"},
        {HEADER, 1, 'x', "cookie of the dynamic header"},
        {HEADER + VHD_H_VERSION, 4, 0, "version of the dynamic header is 0.0"},
        {HEADER + VHD_H_BLOCK_SIZE, 4, 0, "block size is 0"},
        {HEADER + VHD_H_BLOCK_SIZE, 4, 3 << 14, "block size is 49152"},
        {HEADER + VHD_H_BLOCK_SIZE, 4, 1u << 31, "block size is 2147483648"},
        {HEADER + VHD_H_ENTRIES, 4, 4, "max_table_entries is 4"},
        {HEADER + VHD_H_ENTRIES, 4, UINT32_MAX, "max_table_entries is 4294967295"},
        {HEADER + VHD_H_ENTRIES, 4, 100000, "table offset is 1536"},
        {HEADER + VHD_H_TABLE_OFFSET, 8, 1537, "table offset is 1537"},
        {HEADER + VHD_H_TABLE_OFFSET, 8, 0, "table offset is 0"},
        {HEADER + VHD_H_TABLE_OFFSET, 8, 1024, "table offset is 1024"},
        {HEADER + VHD_H_TABLE_OFFSET, 8, UINT64_MAX - 511, "table offset is"},
    };
    uint64_t size;
    g_autofree uint8_t *good = full_image(2, &size);
    images_assert_fields_refused(&format_vhd, good, size, put_signed, wrong, G_N_ELEMENTS(wrong));
}
END_TEST

START_TEST(vhd_refuses_wrong_checksums)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(1, &size);
    bytes[HEADER + VHD_H_PARENT_TIME]++;
    images_assert_refused(&format_vhd, bytes, size, false, "checksum of the dynamic header is");
    bytes[VHD_F_TIMESTAMP]++;
    bytes[size - VHD_FOOTER_SIZE + VHD_F_TIMESTAMP]++;
    images_assert_refused(&format_vhd, bytes, size, false, "checksum of the footer is");
    bytes[0] = bytes[size - VHD_FOOTER_SIZE] = 0;
    images_assert_refused(&format_vhd, bytes, size, false, "no footer");
}
END_TEST

START_TEST(vhd_opens_or_refuses_any_length)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    for (uint64_t n = 0; n < size; n += n < 3000 ? 1 : 777) {
        g_autoptr(GError) error = NULL;
        g_autoptr(Store) store = store_memory_new("test.vhd", bytes, n);
        g_autoptr(Image) image = images_try(&format_vhd, store, NULL, false, false, &error);
        ck_assert((image != NULL) == (error == NULL));
        uint8_t byte;
        if (image) { /* the second block is cut: an error, never zeroes */
            ck_assert_int_eq(n < END(1) + VHD_SECTOR, chain_read(image, &byte, 1, BLOCK) == -EIO);
        }
    }
}
END_TEST

START_TEST(vhd_writing_is_refused_where_blocks_overlap)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(3, &size);
    store_be32(bytes + TABLE + 4, END(0) / VHD_SECTOR + 1);
    images_assert_refused(&format_vhd, bytes, size, true, "two blocks lie at");
    store_be32(bytes + TABLE, VHD_UNUSED);
    store_be32(bytes + TABLE + 4, 2);
    images_assert_refused(&format_vhd, bytes, size, true, "lies on what is at");
    store_be32(bytes + TABLE, END(0) / VHD_SECTOR);
    store_be32(bytes + TABLE + 4, END(2) / VHD_SECTOR + 1);
    store_be32(bytes + TABLE + 8, VHD_UNUSED);
    images_assert_refused(&format_vhd, bytes, size, true, "behind the end of what the file has");
    store_be32(bytes + TABLE + 4, VHD_UNUSED - 1);
    images_assert_refused(&format_vhd, bytes, size, true, "behind the end of what the file has");
    g_autoptr(Store) store = store_memory_new("test.vhd", bytes, size);
    g_autoptr(Image) image = images_open(&format_vhd, store, NULL, false);
    uint8_t byte;
    ck_assert_int_eq(chain_read(image, &byte, 1, BLOCK), -EIO);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
}
END_TEST

START_TEST(vhd_table_is_written_behind_the_data)
{
    g_autoptr(Store) store = new_store(NULL, NULL, NULL);
    g_autoptr(Image) image = images_open(&format_vhd, store, NULL, true);
    ck_assert_uint_eq(image->size, SIZE);
    ck_assert_uint_eq(image->allocation_unit, BLOCK);
    ck_assert(!vhd_is_dirty(image));
    write_unit(image, BLOCK, BLOCK, 'x');
    ck_assert_uint_eq(images_byte(image, BLOCK), 'x');
    ck_assert_uint_eq(table_on_disk(store, 1), VHD_UNUSED);
    ck_assert(footer_at(store, FOOTER)); /* until there is another, durably */
    ck_assert(vhd_is_dirty(image));
    ck_assert_int_eq(vhd_flush(image), 0);
    ck_assert(!vhd_is_dirty(image));
    ck_assert_uint_ne(table_on_disk(store, 1), VHD_UNUSED);
    ck_assert(!footer_at(store, FOOTER));
    ck_assert(footer_at(store, store_size(store) - VHD_FOOTER_SIZE));
    ck_assert_int_eq(image_finish(image), 0);
    uint64_t end = ((uint64_t)table_on_disk(store, 1) + 1) * VHD_SECTOR + BLOCK;
    ck_assert_uint_eq(store_size(store), end + VHD_FOOTER_SIZE);
    ck_assert_uint_eq(end % 4096, 0);
}
END_TEST

START_TEST(vhd_abandoned_space_is_used_by_its_block_again)
{
    g_autoptr(Store) store = new_store(NULL, NULL, NULL);
    g_autoptr(Image) image = images_open(&format_vhd, store, NULL, true);
    Allocation a, *list = &a;
    allocate(image, &a, 0, BLOCK);
    ck_assert_int_eq(a.extents.items[0].flags, EXTENT_NEW | EXTENT_FRESH);
    uint64_t place = a.extents.items[0].host_offset;
    vhd_abandon(image, &list, 1);
    allocate(image, &a, 0, BLOCK);
    ck_assert_uint_eq(a.extents.items[0].host_offset, place);
    ck_assert_int_eq(a.extents.items[0].flags, EXTENT_NEW);
    vhd_abandon(image, &list, 1);
    allocate(image, &a, BLOCK, BLOCK);
    ck_assert_uint_ge(a.extents.items[0].host_offset, place + BLOCK);
    vhd_abandon(image, &list, 1);
    ck_assert_uint_eq(images_byte(image, 0), 0);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(store_size(store), FOOTER + VHD_FOOTER_SIZE);
}
END_TEST

START_TEST(vhd_block_with_cleared_bits_is_allocated_where_it_lies)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(1, &size);
    bytes[FIRST] = 0x0f; /* sectors 0 to 3 are not there */
    g_autoptr(Store) store = store_memory_new("test.vhd", bytes, size);
    g_autoptr(Image) image = images_open(&format_vhd, store, NULL, true);
    ck_assert_uint_eq(images_byte(image, 4 * VHD_SECTOR - 1), 0);
    ck_assert_uint_eq(images_byte(image, 4 * VHD_SECTOR), 'a');
    ExtentList map;
    extent_list_init(&map);
    ck_assert_int_eq(image_map(image, 0, BLOCK, &map), 0);
    ck_assert_uint_eq(map.count, 2);
    ck_assert_int_eq(map.items[1].flags & EXTENT_WRITABLE, 0); /* the unit is not whole */
    extent_list_clear(&map);
    write_unit(image, 0, BLOCK, 'n');
    ck_assert_uint_eq(store_size(store), size);
    ck_assert_uint_eq(images_byte(image, 0), 'n');
    ck_assert_int_eq(image_finish(image), 0);
    uint8_t bits;
    ck_assert_int_eq(store_read(store, &bits, 1, FIRST), 0);
    ck_assert_uint_eq(bits, 0xff);
}
END_TEST

START_TEST(vhd_overlay_takes_units_not_blocks)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    g_autoptr(Store) base_store = store_memory_new("base.vhd", bytes, size);
    g_autoptr(Image) base = images_open(&format_vhd, base_store, NULL, false);
    g_autoptr(Store) store = new_store("base.vhd", "vhd", base);
    g_autoptr(Image) image = images_open(&format_vhd, store, base, true);
    ck_assert_str_eq(image->backing_name, "base.vhd");
    ck_assert_uint_eq(image->allocation_unit, 4096);
    write_unit(image, 4096, 4096, 'n');
    ck_assert_uint_eq(images_byte(image, 4095), 'a');
    ck_assert_uint_eq(images_byte(image, 4096), 'n');
    ck_assert_uint_eq(images_byte(image, 8192), 'a');
    /* What shows from below cannot be unmapped to zeroes, and nothing has changed. */
    ck_assert_int_eq(vhd_unmap(image, 0, 8192, UNMAP_ZERO), -ENOTSUP);
    ck_assert_uint_eq(images_byte(image, 4096), 'n');
    ck_assert_int_eq(vhd_unmap(image, 4096, 4096, UNMAP_ZERO), 0);
    ck_assert_uint_eq(images_byte(image, 4096), 0);
    ck_assert_int_eq(vhd_unmap(image, 0, BLOCK, 0), 0);
    ck_assert_uint_eq(images_byte(image, 4096), 0);
    ck_assert_uint_eq(images_byte(image, BLOCK + 5), 'b');
    ck_assert_int_eq(image_finish(image), 0);
}
END_TEST

START_TEST(vhd_refuses_another_parent)
{
    g_autoptr(Store) base_store = new_store(NULL, NULL, NULL);
    g_autoptr(Store) other_store = new_store(NULL, NULL, NULL);
    g_autoptr(Image) base = images_open(&format_vhd, base_store, NULL, false);
    g_autoptr(Image) other = images_open(&format_vhd, other_store, NULL, false);
    g_autoptr(Store) store = new_store("base.vhd", "vhd", base);
    g_autoptr(GError) error = NULL;
    ck_assert_ptr_null(images_try(&format_vhd, store, other, false, false, &error));
    ck_assert(strstr(error->message, "parent UUID is") != NULL);
}
END_TEST

START_TEST(vhd_writer_restores_the_footer_at_the_end)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(1, &size);
    g_autoptr(Store) store = store_memory_new("test.vhd", bytes, size);
    ck_assert_int_eq(store_truncate(store, size - VHD_FOOTER_SIZE), 0);
    {
        g_autoptr(Image) image = images_open(&format_vhd, store, NULL, true);
        ck_assert_uint_eq(images_byte(image, 0), 'a');
    }
    ck_assert_uint_eq(store_size(store), size);
    ck_assert(footer_at(store, size - VHD_FOOTER_SIZE));
    ck_assert_int_eq(store_write(store, "x", 1, 0), 0); /* the copy */
    image_unref(images_open(&format_vhd, store, NULL, true));
    ck_assert(footer_at(store, 0));
}
END_TEST

START_TEST(vhd_check_mends_what_it_can)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(4, &size);
    memcpy(bytes + TABLE + 4, bytes + TABLE, 4);           /* block 1 lies where block 0 does */
    store_be32(bytes + TABLE + 8, 3);                      /* block 2 on the table */
    store_be32(bytes + TABLE + 16, size / VHD_SECTOR + 7); /* block 4 behind the end */
    memset(bytes + size - VHD_FOOTER_SIZE, 0, VHD_FOOTER_SIZE);
    g_autoptr(Store) store = store_memory_new("test.vhd", bytes, size);
    CheckResult result = images_check(&format_vhd, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 4);
    ck_assert_uint_eq(result.leaks, 2);
    ck_assert_uint_eq(result.total_clusters, BLOCKS);
    result = images_check(&format_vhd, store, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(result.corruptions_fixed, 4);
    result = images_check(&format_vhd, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 0);
    g_autoptr(Image) image = images_open(&format_vhd, store, NULL, true);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
    ck_assert_uint_eq(images_byte(image, BLOCK), 'a');
    ck_assert_uint_eq(images_byte(image, 2 * BLOCK), 0);
    ck_assert_uint_eq(images_byte(image, 3 * BLOCK), 'd');
    ck_assert_uint_ne(table_on_disk(store, 0), table_on_disk(store, 1));
}
END_TEST

START_TEST(vhd_check_cuts_off_unused_space)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(3, &size);
    store_be32(bytes + TABLE + 8, VHD_UNUSED);
    g_autoptr(Store) store = store_memory_new("test.vhd", bytes, size);
    ck_assert_uint_eq(images_check(&format_vhd, store, CHECK_REPORT_ONLY).leaks, 1);
    ck_assert_uint_eq(images_check(&format_vhd, store, CHECK_REPAIR_LEAKS).leaks_fixed, 1);
    ck_assert_uint_eq(images_check(&format_vhd, store, CHECK_REPORT_ONLY).leaks, 0);
    ck_assert_uint_eq(store_size(store), END(2) + VHD_FOOTER_SIZE);
}
END_TEST

START_TEST(vhd_create_refuses_what_cannot_be)
{
    static const struct {
        const char *option, *words;
    } wrong[] = {
        {"subformat=thin", "subformat is 'thin'"},
        {"block_size=3k", "block_size is '3k'"},
        {"block_size=2k", "block_size is '2k'"},
        {"block_size=512M", "block_size is '512M'"},
        {"block_size=4k", "too large for block_size 4096"},
        {"force_size=maybe", "force_size is 'maybe'"},
        {NULL, "at most 2040G"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        FormatCreate how = {.size = UINT64_C(1) << (wrong[i].option ? 40 : 41)};
        images_assert_create_refused(&format_vhd, &how, wrong[i].option, wrong[i].words);
    }
}
END_TEST

START_TEST(vhd_fixed_disk_is_what_lies_before_the_footer)
{
    FormatCreate how = {.size = SIZE};
    g_autoptr(Store) store = images_create(&format_vhd, &how, "subformat=fixed");
    ck_assert_uint_eq(store_size(store), SIZE + VHD_FOOTER_SIZE);
    g_autoptr(Image) image = images_open(&format_vhd, store, NULL, true);
    ck_assert_int_eq(store_write(store, "x", 1, SIZE - 1), 0);
    ck_assert_uint_eq(images_byte(image, SIZE - 1), 'x');
    ck_assert_int_eq(vhd_unmap(image, 0, SIZE, UNMAP_ZERO), 0);
    ck_assert_uint_eq(images_byte(image, SIZE - 1), 0);
    ck_assert(footer_at(store, SIZE));
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_int_eq(store_truncate(store, SIZE), 0);
    uint64_t size;
    const uint8_t *bytes = store_memory_content(store, &size);
    images_assert_refused(&format_vhd, bytes, size, false, "no footer");
}
END_TEST

START_TEST(vhd_locators_count_sectors_or_bytes)
{
    ck_assert_uint_eq(vhd_locator_space(1, 40), 512);
    ck_assert_uint_eq(vhd_locator_space(8, 40), 4096);
    ck_assert_uint_eq(vhd_locator_space(512, 40), 512);
    ck_assert_uint_eq(vhd_locator_space(0, 600), 1024);
    ck_assert_uint_eq(vhd_locator_space(0, 0), 0);
}
END_TEST

START_TEST(vhd_geometry_is_as_specified)
{
    static const struct {
        uint64_t sectors;
        unsigned cylinders, heads, per_track;
    } known[] = {
        {20480, 301, 4, 17}, /* 10 MiB */
        {1024 * 16 * 17 - 1, 1023, 16, 17},
        {4194304, 4161, 16, 63}, /* 2 GiB */
        {UINT64_C(1) << 33, 65535, 16, 255},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(known); i++) {
        uint16_t cylinders;
        uint8_t heads, per_track;
        vhd_geometry(known[i].sectors * VHD_SECTOR, &cylinders, &heads, &per_track);
        ck_assert_uint_eq(cylinders, known[i].cylinders);
        ck_assert_uint_eq(heads, known[i].heads);
        ck_assert_uint_eq(per_track, known[i].per_track);
    }
}
END_TEST

/* Blocks are added while the write at a place fails, of which some sectors reach the disk; then the disk gets smaller. */
static void shrink_after_a_failed_write(const uint8_t *bytes, uint64_t size, uint64_t at,
                                        uint64_t seed)
{
    FaultPlan plan;
    fault_plan_init(&plan, FAULT_WRITE, at, false, -ENOSPC);
    RecordOptions options = {.seed = seed, .faults = &plan};
    g_autoptr(Store) store = store_record_new("test.vhd", bytes, size, &options);
    g_autoptr(Image) image = images_open(&format_vhd, store, NULL, true);
    for (unsigned block = 1; block < BLOCKS - 1; block++) {
        Allocation a = {.offset = block * BLOCK, .length = BLOCK}, *list = &a;
        extent_list_init(&a.extents);
        if (vhd_allocate(image, &list, 1) == 0) {
            ck_assert_int_eq(vhd_commit(image, &list, 1), 0);
        }
        extent_list_clear(&a.extents);
    }
    (void)vhd_flush(image);
    bool smaller = image_resize(image, 2 * BLOCK, NULL);
    uint64_t now;
    const uint8_t *content = record_content(store, &now);
    g_autoptr(Store) copy = store_memory_new("test.vhd", content, now);
    g_autoptr(Image) again = images_open(&format_vhd, copy, NULL, false);
    ck_assert(again->size == 2 * BLOCK || (!smaller && again->size == SIZE));
    fault_plan_clear(&plan);
}

/* It left a footer of the old size at the end of the file: the disk was as large as before, its table was not. */
START_TEST(vhd_a_footer_that_failed_does_not_count)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(1, &size);
    for (uint64_t seed = 1; seed <= 8; seed++) {
        for (uint64_t at = 1; at <= 12; at++) {
            shrink_after_a_failed_write(bytes, size, at, seed);
        }
    }
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("vhd");
    tcase_add_test(tcase, vhd_refuses_fields_by_name);
    tcase_add_test(tcase, vhd_refuses_wrong_checksums);
    tcase_add_test(tcase, vhd_opens_or_refuses_any_length);
    tcase_add_test(tcase, vhd_writing_is_refused_where_blocks_overlap);
    tcase_add_test(tcase, vhd_table_is_written_behind_the_data);
    tcase_add_test(tcase, vhd_abandoned_space_is_used_by_its_block_again);
    tcase_add_test(tcase, vhd_block_with_cleared_bits_is_allocated_where_it_lies);
    tcase_add_test(tcase, vhd_overlay_takes_units_not_blocks);
    tcase_add_test(tcase, vhd_refuses_another_parent);
    tcase_add_test(tcase, vhd_writer_restores_the_footer_at_the_end);
    tcase_add_test(tcase, vhd_check_mends_what_it_can);
    tcase_add_test(tcase, vhd_check_cuts_off_unused_space);
    tcase_add_test(tcase, vhd_create_refuses_what_cannot_be);
    tcase_add_test(tcase, vhd_fixed_disk_is_what_lies_before_the_footer);
    tcase_add_test(tcase, vhd_locators_count_sectors_or_bytes);
    tcase_add_test(tcase, vhd_geometry_is_as_specified);
    tcase_add_test(tcase, vhd_a_footer_that_failed_does_not_count);
    return suite_run("vhd", tcase);
}
