/* formats/vhdx*.c: what is refused by which name, what repair mends, what create refuses */
#include <errno.h>

#include "tests/unit/vhdx-image.h"

/* ---- fields ---- */

typedef enum { PLAIN, IN_HEADER, IN_REGIONS } Place;

typedef struct WrongField {
    Place place;
    uint64_t offset;
    unsigned size;
    uint64_t value;
    const char *words;
} WrongField;

/* Changes a field, and makes the checksum right again. */
static void change_field(Store *store, const WrongField *wrong)
{
    static const uint64_t starts[] = {0, HEADER, REGIONS};
    static const uint64_t lengths[] = {0, VHDX_HEADER_SIZE, VHDX_TABLE_SIZE};
    uint64_t start = starts[wrong->place], length = lengths[wrong->place];
    put_number(store, start + wrong->offset, wrong->value, wrong->size);
    if (length > 0) {
        g_autofree uint8_t *bytes = g_malloc(length);
        ck_assert_int_eq(store_read(store, bytes, length, start), 0);
        put_number(store, start + 4, vhdx_checksum(bytes, length), 4);
    }
}

static void refuse_fields(Store *good, const WrongField *wrong, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        g_autoptr(Store) store = copy_of(good);
        change_field(store, &wrong[i]);
        images_assert_store_refused(&format_vhdx, store, false, wrong[i].words);
    }
}

START_TEST(vhdx_refuses_fields_by_name)
{
    static const WrongField wrong[] = {
        {PLAIN, 0, 8, 0, "signature: must be 'vhdxfile'"},
        {IN_HEADER, VHDX_H_VERSION, 2, 2, "version is 2"},
        {IN_HEADER, VHDX_H_LOG_VERSION, 2, 1, "version of the log is 1"},
        {IN_HEADER, VHDX_H_LOG_LENGTH, 4, 0, "length of the log is 0"},
        {IN_HEADER, VHDX_H_LOG_LENGTH, 4, 4096, "length of the log is 4096"},
        {IN_HEADER, VHDX_H_LOG_LENGTH, 4, 65 << 20, "length of the log is 68157440"},
        {IN_HEADER, VHDX_H_LOG_OFFSET, 8, 4096, "offset of the log is 4096"},
        {IN_HEADER, VHDX_H_LOG_OFFSET, 8, UINT64_MAX - 4095, "offset of the log is"},
        {IN_HEADER, VHDX_H_LOG_OFFSET, 8, TABLE, "offset of the block allocation table is"},
        {IN_HEADER, VHDX_H_LOG_GUID, 8, 1, "the log is damaged"},
        {IN_REGIONS, 8, 4, 2048, "entry count of the region table is 2048"},
        {IN_REGIONS, 8, 4, 0, "has no block allocation table"},
        {IN_REGIONS, 8, 4, 1, "has no metadata region"},
        {IN_REGIONS, 16, 8, 7, "needs a region {00000007-"},
        {IN_REGIONS, 16 + 16, 8, 0, "offset of the block allocation table is 0"},
        {IN_REGIONS, 16 + 16, 8, TABLE + 4096, "offset of the block allocation table is 3149824"},
        {IN_REGIONS, 16 + 16, 8, DATA, "offset of the block allocation table is 4194304"},
        {IN_REGIONS, 16 + 24, 4, 0, "with 0 bytes"},
        {IN_REGIONS, 48 + 16, 8, LOG, "lies on what is at 1048576"},
        {IN_REGIONS, 48 + 24, 4, 4096, "offset of the metadata region is"},
        {PLAIN, METADATA, 8, 0, "signature of the metadata"},
        {PLAIN, METADATA + 10, 2, 2048, "entry count of the metadata is 2048"},
        {PLAIN, METADATA + 10, 2, 0, "the metadata have no file parameters"},
        {PLAIN, METADATA + 10, 2, 1, "the metadata have no virtual disk size"},
        {PLAIN, METADATA + 10, 2, 2, "the metadata have no logical sector size"},
        {PLAIN, ENTRY(0), 8, 7, "needs metadata {00000007-"},
        {PLAIN, ENTRY(0) + 16, 4, 65535, "file parameters is at 65535"},
        {PLAIN, ENTRY(1) + 16, 4, UINT32_MAX, "virtual disk size is at 4294967295"},
        {PLAIN, ENTRY(1) + 20, 4, 4, "virtual disk size is at 65544 of the metadata, with 4 bytes"},
        {PLAIN, PARAMETERS, 4, 0, "block size is 0"},
        {PLAIN, PARAMETERS, 4, 3 << 20, "block size is 3145728"},
        {PLAIN, PARAMETERS, 4, 1 << 19, "block size is 524288"},
        {PLAIN, PARAMETERS, 4, 1 << 29, "block size is 536870912"},
        {PLAIN, PARAMETERS + 4, 4, 2, "has a parent, but its parent locator has 0 bytes"},
        {PLAIN, DISK_SIZE, 8, 1000, "virtual disk size is 1000"},
        {PLAIN, DISK_SIZE, 8, VHDX_DISK_MAX + 512, "virtual disk size is 70368744178176"},
        {PLAIN, DISK_SIZE, 8, UINT64_C(1) << 40, "length of the block allocation table is 1048576"},
        {PLAIN, SECTOR, 4, 1024, "logical sector size is 1024"},
    };
    g_autoptr(Store) good = new_store(NULL);
    refuse_fields(good, wrong, G_N_ELEMENTS(wrong));
}
END_TEST

START_TEST(vhdx_refuses_fields_of_the_locator_by_name)
{
    static const WrongField wrong[] = {
        {PLAIN, ENTRY(5) + 20, 4, 19, "has a parent, but its parent locator has 19 bytes"},
        {PLAIN, LOCATOR, 4, 0, "type of the parent locator is {00000000-"},
        {PLAIN, LOCATOR + 18, 2, 0, "parent_linkage of the parent locator is ''"},
        {PLAIN, LOCATOR + 18, 2, 1, "has no path of the parent"},
        {PLAIN, LOCATOR + 20, 4, UINT32_MAX, "parent_linkage of the parent locator is ''"},
        {PLAIN, LOCATOR + 24, 4, 0, "parent_linkage of the parent locator is '"},
        {PLAIN, LOCATOR + 36, 4, UINT32_MAX, "has no path of the parent"},
    };
    g_autoptr(Store) base_store = new_store(NULL);
    g_autoptr(Image) base = images_open(&format_vhdx, base_store, NULL, false);
    g_autoptr(Store) good = new_store(base);
    refuse_fields(good, wrong, G_N_ELEMENTS(wrong));
}
END_TEST

/* Either of the two headers will do, and either region table. */
START_TEST(vhdx_one_of_two_is_enough)
{
    static const uint64_t places[] = {64 * VHDX_KIB, HEADER, REGIONS, REGIONS + VHDX_TABLE_SIZE};
    for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
        g_autoptr(Store) store = new_store(NULL);
        put_number(store, places[i] + 100, 77, 8);
        image_unref(images_open(&format_vhdx, store, NULL, true));
        put_number(store, places[i ^ 1] + 100, 77, 8);
        put_number(store, places[i] + 100, 78, 8); /* the header may have been written anew */
        images_assert_store_refused(&format_vhdx, store, false,
                                    i < 2 ? "checksum of the header is" : "region tables");
    }
}
END_TEST

/* ---- the table ---- */

START_TEST(vhdx_entries_that_cannot_be_are_errors)
{
    static const uint64_t wrong[] = {
        4, 5, DATA | VHDX_PARTIAL, (DATA + BLOCK) | VHDX_PRESENT, VHDX_PRESENT, UINT64_MAX};
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(Store) store = new_store(NULL);
        ck_assert_int_eq(store_truncate(store, DATA + BLOCK), 0);
        set_entry(store, 1, wrong[i]);
        set_entry(store, 2, DATA | VHDX_PRESENT);
        set_entry(store, 3, VHDX_ZERO);
        g_autoptr(Image) image = images_open(&format_vhdx, store, NULL, false);
        uint8_t byte;
        ck_assert_uint_eq(images_byte(image, 0), 0);
        ck_assert_int_eq(chain_read(image, &byte, 1, BLOCK), -EIO);
        ck_assert_uint_eq(images_byte(image, 2 * BLOCK), 0);
        ck_assert_uint_eq(images_byte(image, 3 * BLOCK), 0);
    }
}
END_TEST

START_TEST(vhdx_writing_is_refused_where_blocks_are_shared)
{
    g_autoptr(Store) store = new_store(NULL);
    ck_assert_int_eq(store_truncate(store, DATA + BLOCK), 0);
    set_entry(store, 0, DATA | VHDX_PRESENT);
    set_entry(store, 1, DATA | VHDX_PRESENT);
    images_assert_store_refused(&format_vhdx, store, true,
                                "the table has a block at 4194304, where something else lies");
    set_entry(store, 1, (DATA + BLOCK) | VHDX_PRESENT);
    images_assert_store_refused(&format_vhdx, store, true,
                                "the table has a block at 5242880, which is not in the file");
    set_entry(store, 1, METADATA | VHDX_PRESENT);
    images_assert_store_refused(&format_vhdx, store, true,
                                "the table has a block at 2097152, where something else lies");
}
END_TEST

/* ---- check ---- */

START_TEST(vhdx_check_mends_what_it_can)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) writer = images_open(&format_vhdx, store, NULL, true);
    write_block(writer, 0, 'a');
    ck_assert_int_eq(image_finish(writer), 0);
    ck_assert_int_eq(store_truncate(store, DATA + 3 * BLOCK), 0);
    set_entry(store, 1, DATA | VHDX_PRESENT);               /* block 1 is block 0 */
    set_entry(store, 2, (DATA + 9 * BLOCK) | VHDX_PRESENT); /* is not in the file */
    set_entry(store, 3, 5);                                 /* a state that there is not */
    set_entry(store, 4, LOG | VHDX_PRESENT);                /* lies on the log */
    put_number(store, REGIONS + 100, 1, 8);
    CheckResult result = images_check(&format_vhdx, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 5);
    ck_assert_uint_eq(result.leaks, 2);
    ck_assert_uint_eq(result.total_clusters, BLOCKS);
    result = images_check(&format_vhdx, store, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(result.corruptions_fixed, 5);
    result = images_check(&format_vhdx, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions + result.leaks, 0);
    ck_assert_uint_eq(result.allocated_clusters, 2);
    g_autoptr(Image) image = images_open(&format_vhdx, store, NULL, true);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
    ck_assert_uint_eq(images_byte(image, BLOCK), 'a');
    for (unsigned block = 2; block < BLOCKS; block++) {
        ck_assert_uint_eq(images_byte(image, block * BLOCK), 0);
    }
    ck_assert_uint_ne(images_le64(store, TABLE), images_le64(store, TABLE + 8));
}
END_TEST

/* Check called it clean; qemu-img check does not. */
START_TEST(vhdx_file_that_ends_inside_a_block)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) writer = images_open(&format_vhdx, store, NULL, true);
    write_block(writer, 0, 'a');
    ck_assert_int_eq(image_finish(writer), 0);
    uint64_t size = store_size(store);
    ck_assert_uint_eq(size, DATA + BLOCK);
    ck_assert_int_eq(store_truncate(store, size - BLOCK / 2), 0);
    ck_assert_uint_eq(images_check(&format_vhdx, store, CHECK_REPORT_ONLY).corruptions, 1);
    ck_assert_uint_eq(images_check(&format_vhdx, store, CHECK_REPAIR_ALL).corruptions_fixed, 1);
    ck_assert_uint_eq(images_check(&format_vhdx, store, CHECK_REPORT_ONLY).corruptions, 0);
    ck_assert_uint_eq(store_size(store), size);
    g_autoptr(Image) image = images_open(&format_vhdx, store, NULL, false);
    ck_assert_uint_eq(images_byte(image, BLOCK / 2 - 1), 'a');
    ck_assert_uint_eq(images_byte(image, BLOCK / 2), 0);
}
END_TEST

/* Nobody but us opens an image for reading while its log has entries: repair left them there. */
START_TEST(vhdx_repair_empties_the_log)
{
    g_autoptr(Store) store = new_store(NULL);
    set_entry(store, 2, (DATA + 9 * BLOCK) | VHDX_PRESENT);
    g_autoptr(GError) error = NULL;
    Image *image = images_try(&format_vhdx, store, NULL, true, true, &error);
    ck_assert(image != NULL);
    CheckResult result = {0};
    ck_assert(format_vhdx.check(image, CHECK_REPAIR_ALL, &result, &error));
    ck_assert_uint_eq(result.corruptions_fixed, 1);
    image_unref(image);
    g_autoptr(Image) again = images_open(&format_vhdx, store, NULL, false);
    ck_assert(vhdx_guid_is_null(vhdx_state(again)->header.log_guid));
}
END_TEST

START_TEST(vhdx_check_looks_at_sector_bits)
{
    g_autoptr(Store) base_store = new_store(NULL);
    g_autoptr(Image) base = images_open(&format_vhdx, base_store, NULL, false);
    g_autoptr(Store) store = new_store(base);
    g_autoptr(Image) writer = images_open(&format_vhdx, store, base, true);
    write_range(writer, 0, UNIT, 'a');
    write_range(writer, BLOCK, UNIT, 'b');
    ck_assert_int_eq(image_finish(writer), 0);
    ck_assert_uint_eq(images_check_over(&format_vhdx, store, base, CHECK_REPORT_ONLY).corruptions,
                      0);
    uint64_t bits = images_le64(store, TABLE + 4096 * 8);
    set_entry(store, 4096, vhdx_entry_offset(images_le64(store, TABLE)) | VHDX_PRESENT);
    CheckResult result = images_check_over(&format_vhdx, store, base, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 1); /* they lie on block 0 */
    set_entry(store, 4096, vhdx_entry_offset(bits) | VHDX_PARTIAL);
    result = images_check_over(&format_vhdx, store, base, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 3); /* a wrong state, and two blocks need them */
    set_entry(store, 4096, 0);
    result = images_check_over(&format_vhdx, store, base, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(result.corruptions_fixed, 2);
    ck_assert_uint_eq(images_check_over(&format_vhdx, store, base, CHECK_REPORT_ONLY).corruptions,
                      0);
    g_autoptr(Image) image = images_open(&format_vhdx, store, base, true);
    ck_assert_uint_eq(images_byte(image, 0), 0);
}
END_TEST

/* ---- create ---- */

START_TEST(vhdx_create_refuses_what_cannot_be)
{
    static const struct {
        const char *option, *words;
    } wrong[] = {
        {"subformat=differencing", "subformat is 'differencing'"},
        {"block_size=3M", "block_size is '3M'"},
        {"block_size=512k", "block_size is '512k'"},
        {"block_size=512M", "block_size is '512M'"},
        {"log_size=0", "log_size is '0'"},
        {"log_size=1500k", "log_size is '1500k'"},
        {"log_size=65M", "log_size is '65M'"},
        {"block_state_zero=perhaps", "block_state_zero is 'perhaps'"},
        {"logical_sector_size=1k", "logical_sector_size is '1k'"},
        {"log_size=2M", "must be at most 64T"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        FormatCreate how = {.size = VHDX_DISK_MAX + 1};
        images_assert_create_refused(&format_vhdx, &how, wrong[i].option, wrong[i].words);
    }
}
END_TEST

START_TEST(vhdx_fixed_image_has_all_its_blocks)
{
    FormatCreate how = {.size = SIZE};
    g_autoptr(Store) store = images_create(&format_vhdx, &how, "block_size=1M,subformat=fixed");
    ck_assert_uint_eq(store_size(store), DATA + BLOCKS * BLOCK);
    g_autoptr(Image) image = images_open(&format_vhdx, store, NULL, true);
    ExtentList map;
    extent_list_init(&map);
    ck_assert_int_eq(image_map(image, 0, SIZE, &map), 0);
    ck_assert_uint_eq(map.count, 1);
    ck_assert_int_eq(map.items[0].flags, EXTENT_WRITABLE | EXTENT_SPARSE);
    extent_list_clear(&map);
    ck_assert_int_eq(vhdx_unmap(image, 0, BLOCK, UNMAP_ZERO), 0);
    ck_assert_int_eq(image_finish(image), 0);
    CheckResult result = images_check(&format_vhdx, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions + result.leaks, 0);
    ck_assert_uint_eq(result.allocated_clusters, BLOCKS);
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("vhdx");
    tcase_set_timeout(tcase, 0);
    tcase_add_test(tcase, vhdx_refuses_fields_by_name);
    tcase_add_test(tcase, vhdx_refuses_fields_of_the_locator_by_name);
    tcase_add_test(tcase, vhdx_one_of_two_is_enough);
    tcase_add_test(tcase, vhdx_entries_that_cannot_be_are_errors);
    tcase_add_test(tcase, vhdx_writing_is_refused_where_blocks_are_shared);
    tcase_add_test(tcase, vhdx_check_mends_what_it_can);
    tcase_add_test(tcase, vhdx_file_that_ends_inside_a_block);
    tcase_add_test(tcase, vhdx_repair_empties_the_log);
    tcase_add_test(tcase, vhdx_check_looks_at_sector_bits);
    tcase_add_test(tcase, vhdx_create_refuses_what_cannot_be);
    tcase_add_test(tcase, vhdx_fixed_image_has_all_its_blocks);
    return suite_run("vhdx", tcase);
}
