/* formats/vdi*.c: what is refused by which name, what is written in which order, what repair mends */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "formats/vdi.h"
#include "tests/unit/images.h"
#include "tests/unit/suite.h"

#define BLOCK  4096u
#define BLOCKS 6u
#define SIZE   (BLOCKS * BLOCK - 3 * VDI_SECTOR)
#define TABLE  512u
#define DATA   4096u

static Store *new_store(const Image *backing)
{
    FormatCreate how = {.size = SIZE, .backing = backing};
    if (backing) {
        how.backing_name = "base.vdi";
        how.backing_format = "vdi";
    }
    return images_create(&format_vdi, &how, "block_size=4k");
}

/* The bytes of an image with `count` blocks, block i filled with 'a' + i. */
static uint8_t *full_image(unsigned count, uint64_t *size)
{
    g_autoptr(Store) store = new_store(NULL);
    const uint8_t *empty = store_memory_content(store, size);
    uint8_t *bytes = g_malloc0(DATA + count * BLOCK);
    memcpy(bytes, empty, DATA);
    for (unsigned i = 0; i < count; i++) {
        store_le32(bytes + TABLE + 4 * i, i);
        memset(bytes + DATA + i * BLOCK, 'a' + (int)i, BLOCK);
    }
    store_le32(bytes + VDI_H_ALLOCATED, count);
    *size = DATA + count * BLOCK;
    return bytes;
}

START_TEST(vdi_refuses_fields_by_name)
{
    static const ImageField wrong[] = {
        {VDI_H_SIGNATURE, 4, 0, "signature is 00000000"},
        {VDI_H_VERSION, 4, 0x10000, "version is 1.0"},
        {VDI_H_HEADER_SIZE, 4, 100, "header size is 100"},
        {VDI_H_TYPE, 4, 0, "type is 0"},
        {VDI_H_TYPE, 4, 5, "type is 5"},
        {VDI_H_SECTOR_SIZE, 4, 4096, "sector size is 4096"},
        {VDI_H_BLOCK_SIZE, 4, 0, "block size is 0"},
        {VDI_H_BLOCK_SIZE, 4, 1000, "block size is 1000"},
        {VDI_H_BLOCK_SIZE, 4, 1u << 31, "block size is 2147483648"},
        {VDI_H_EXTRA, 4, BLOCK + 1, "block extra is 4097"},
        {VDI_H_BLOCKS, 4, BLOCK_TABLE_MAX + 1, "blocks in image is 4194305"},
        {VDI_H_BLOCKS, 4, BLOCKS - 1, "disk size is"},
        {VDI_H_DISK_SIZE, 8, BLOCKS * BLOCK + 1, "disk size is 24577"},
        {VDI_H_DISK_SIZE, 8, UINT64_MAX, "disk size is"},
        {VDI_H_TABLE, 4, 0, "offset of the table is 0"},
        {VDI_H_TABLE, 4, 514, "offset of the table is 514"},
        {VDI_H_TABLE, 4, UINT32_MAX - 3, "offset of the table is"},
        {VDI_H_DATA, 4, TABLE, "offset of the data is 512"},
        {VDI_H_DATA, 4, TABLE + 4 * BLOCKS - 1, "offset of the data is 535"},
    };
    uint64_t size;
    g_autofree uint8_t *good = full_image(2, &size);
    images_assert_fields_refused(&format_vdi, good, size, images_put_le, wrong,
                                 G_N_ELEMENTS(wrong));
    store_le32(good + VDI_H_BLOCK_SIZE, 4096 + 512);
    images_assert_refused(&format_vdi, good, size, true, "no power of two");
    images_assert_refused(&format_vdi, good, VDI_HEADER_END - 1, false, "ends inside the header");
}
END_TEST

START_TEST(vdi_block_that_is_not_in_the_file_is_an_error)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    store_le32(bytes + TABLE, VDI_ZERO - 1);
    store_le32(bytes + TABLE + 8, 2);
    g_autoptr(Store) store = store_memory_new("test.vdi", bytes, size - 1);
    g_autoptr(Image) image = images_open(&format_vdi, store, NULL, false);
    uint8_t byte;
    for (unsigned block = 0; block < 3; block++) {
        ck_assert_int_eq(chain_read(image, &byte, 1, block * BLOCK), -EIO);
    }
    ck_assert_uint_eq(images_byte(image, 3 * BLOCK), 0);
}
END_TEST

START_TEST(vdi_writing_is_refused_where_blocks_are_shared)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    store_le32(bytes + TABLE, 1);
    images_assert_refused(&format_vdi, bytes, size, true, "block 1 of the file is used twice");
    store_le32(bytes + TABLE, 2);
    images_assert_refused(&format_vdi, bytes, size, true,
                          "block 2 of the file lies behind its end");
}
END_TEST

START_TEST(vdi_number_of_blocks_is_written_before_the_table)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) image = images_open(&format_vdi, store, NULL, true);
    ck_assert(!vdi_is_dirty(image));
    images_write(image, 3 * BLOCK, 'x');
    ck_assert_uint_eq(images_byte(image, 3 * BLOCK), 'x');
    ck_assert_uint_eq(images_le32(store, TABLE + 12), VDI_UNALLOCATED);
    ck_assert(vdi_is_dirty(image));
    ck_assert_int_eq(vdi_flush(image), 0);
    ck_assert_uint_eq(images_le32(store, TABLE + 12), 0);
    ck_assert_uint_eq(images_le32(store, VDI_H_ALLOCATED), 1);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(store_size(store), DATA + BLOCK);
}
END_TEST

START_TEST(vdi_abandoned_space_is_used_by_its_block_again)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) image = images_open(&format_vdi, store, NULL, true);
    Allocation a = {.offset = 0, .length = BLOCK}, *list = &a;
    extent_list_init(&a.extents);
    ck_assert_int_eq(vdi_allocate(image, &list, 1), 0);
    ck_assert_int_eq(a.extents.items[0].flags, EXTENT_NEW | EXTENT_FRESH);
    vdi_abandon(image, &list, 1);
    images_write(image, BLOCK, 'b');
    ck_assert_int_eq(vdi_allocate(image, &list, 1), 0);
    ck_assert_int_eq(a.extents.items[0].flags, EXTENT_NEW);
    ck_assert_uint_eq(a.extents.items[0].host_offset, DATA);
    vdi_abandon(image, &list, 1);
    ck_assert_uint_eq(images_byte(image, 0), 0);
    ck_assert_uint_eq(images_byte(image, BLOCK), 'b');
    ck_assert_int_eq(image_finish(image), 0);
}
END_TEST

START_TEST(vdi_discard_over_a_parent_hides_it)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    g_autoptr(Store) base_store = store_memory_new("base.vdi", bytes, size);
    g_autoptr(Image) base = images_open(&format_vdi, base_store, NULL, false);
    g_autoptr(Store) store = new_store(base);
    g_autoptr(Image) image = images_open(&format_vdi, store, base, true);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
    ck_assert_int_eq(vdi_unmap(image, 0, BLOCK, 0), 0);
    ck_assert_uint_eq(images_byte(image, 0), 0);
    images_write(image, BLOCK, 'n');
    ck_assert_int_eq(vdi_unmap(image, BLOCK, BLOCK, UNMAP_ZERO), 0);
    ck_assert_uint_eq(images_byte(image, BLOCK), 0);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(images_le32(store, TABLE), VDI_ZERO);
    ck_assert_uint_eq(images_le32(store, TABLE + 4), 0);
    images_write(image, 0, 'z');
    ck_assert_uint_eq(images_byte(image, 0), 'z');
}
END_TEST

START_TEST(vdi_child_refuses_a_parent_that_was_written)
{
    g_autoptr(Store) base_store = new_store(NULL);
    g_autoptr(Image) base = images_open(&format_vdi, base_store, NULL, false);
    g_autoptr(Store) store = new_store(base);
    g_autoptr(Store) other_store = new_store(NULL);
    g_autoptr(Image) other = images_open(&format_vdi, other_store, NULL, false);
    g_autoptr(GError) error = NULL;
    ck_assert_ptr_null(images_try(&format_vdi, store, other, false, false, &error));
    ck_assert(strstr(error->message, "parent UUID is") != NULL);
    g_clear_error(&error);
    image_unref(images_open(&format_vdi, base_store, NULL, true));
    g_autoptr(Image) written = images_open(&format_vdi, base_store, NULL, false);
    ck_assert_ptr_null(images_try(&format_vdi, store, written, false, false, &error));
    ck_assert(strstr(error->message, "the parent was changed") != NULL);
}
END_TEST

START_TEST(vdi_check_mends_what_it_can)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(4, &size);
    store_le32(bytes + TABLE + 4, 0);       /* block 1 is block 0 */
    store_le32(bytes + TABLE + 8, 1000);    /* block 2 is not in the file */
    store_le32(bytes + VDI_H_ALLOCATED, 1); /* where VirtualBox would put the next one */
    g_autoptr(Store) store = store_memory_new("test.vdi", bytes, size);
    CheckResult result = images_check(&format_vdi, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 3);
    ck_assert_uint_eq(result.leaks, 2);
    ck_assert_uint_eq(result.total_clusters, BLOCKS);
    ck_assert_uint_eq(result.allocated_clusters, 4);
    result = images_check(&format_vdi, store, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(result.corruptions_fixed, 3);
    result = images_check(&format_vdi, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(images_le32(store, VDI_H_ALLOCATED), 5);
    g_autoptr(Image) image = images_open(&format_vdi, store, NULL, true);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
    ck_assert_uint_eq(images_byte(image, BLOCK), 'a');
    ck_assert_uint_eq(images_byte(image, 2 * BLOCK), 0);
    ck_assert_uint_eq(images_byte(image, 3 * BLOCK), 'd');
    ck_assert_uint_ne(images_le32(store, TABLE), images_le32(store, TABLE + 4));
}
END_TEST

/* Rather the header is wrong than every block gone. */
START_TEST(vdi_repair_is_refused_where_it_would_give_up_every_block)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(3, &size);
    store_le32(bytes + VDI_H_DATA, 1u << 20);
    g_autoptr(Store) store = store_memory_new("test.vdi", bytes, size);
    ck_assert_uint_eq(images_check(&format_vdi, store, CHECK_REPORT_ONLY).corruptions, 3);
    for (CheckRepair repair = CHECK_REPAIR_LEAKS; repair <= CHECK_REPAIR_ALL; repair++) {
        g_autoptr(GError) error = NULL;
        CheckResult result = {0};
        g_autoptr(Image) image = images_open(&format_vdi, store, NULL, false);
        ck_assert(!vdi_check(image, repair, &result, &error));
        ck_assert_ptr_nonnull(strstr(error->message, "offset of the data is 1048576"));
    }
    uint64_t after;
    ck_assert_mem_eq(store_memory_content(store, &after), bytes, size);
}
END_TEST

START_TEST(vdi_check_cuts_off_unused_blocks)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(3, &size);
    store_le32(bytes + TABLE + 8, VDI_UNALLOCATED);
    g_autoptr(Store) store = store_memory_new("test.vdi", bytes, size);
    ck_assert_uint_eq(images_check(&format_vdi, store, CHECK_REPORT_ONLY).leaks, 1);
    ck_assert_uint_eq(images_check(&format_vdi, store, CHECK_REPAIR_LEAKS).leaks_fixed, 1);
    ck_assert_uint_eq(images_check(&format_vdi, store, CHECK_REPORT_ONLY).leaks, 0);
    ck_assert_uint_eq(store_size(store), DATA + 2 * BLOCK);
}
END_TEST

START_TEST(vdi_create_refuses_what_cannot_be)
{
    static const struct {
        const char *option, *words;
    } wrong[] = {
        {"static=perhaps", "static is 'perhaps'"},
        {"block_size=3k", "block_size is '3k'"},
        {"block_size=2k", "block_size is '2k'"},
        {"block_size=512M", "block_size is '512M'"},
        {"block_size=4k", "too large for block_size 4096"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        FormatCreate how = {.size = UINT64_C(1) << 40};
        images_assert_create_refused(&format_vdi, &how, wrong[i].option, wrong[i].words);
    }
}
END_TEST

START_TEST(vdi_static_image_has_all_its_blocks)
{
    FormatCreate how = {.size = SIZE};
    g_autoptr(Store) store = images_create(&format_vdi, &how, "block_size=4k,static=on");
    ck_assert_uint_eq(store_size(store), DATA + BLOCKS * BLOCK);
    g_autoptr(Image) image = images_open(&format_vdi, store, NULL, true);
    ExtentList map;
    extent_list_init(&map);
    ck_assert_int_eq(image_map(image, 0, SIZE, &map), 0);
    ck_assert_uint_eq(map.count, 1);
    ck_assert_int_eq(map.items[0].flags, EXTENT_WRITABLE | EXTENT_SPARSE);
    extent_list_clear(&map);
    ck_assert_int_eq(image_finish(image), 0);
    CheckResult result = images_check(&format_vdi, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions + result.leaks, 0);
    ck_assert_uint_eq(result.allocated_clusters, BLOCKS);
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("vdi");
    tcase_add_test(tcase, vdi_refuses_fields_by_name);
    tcase_add_test(tcase, vdi_block_that_is_not_in_the_file_is_an_error);
    tcase_add_test(tcase, vdi_writing_is_refused_where_blocks_are_shared);
    tcase_add_test(tcase, vdi_number_of_blocks_is_written_before_the_table);
    tcase_add_test(tcase, vdi_abandoned_space_is_used_by_its_block_again);
    tcase_add_test(tcase, vdi_discard_over_a_parent_hides_it);
    tcase_add_test(tcase, vdi_child_refuses_a_parent_that_was_written);
    tcase_add_test(tcase, vdi_check_mends_what_it_can);
    tcase_add_test(tcase, vdi_repair_is_refused_where_it_would_give_up_every_block);
    tcase_add_test(tcase, vdi_check_cuts_off_unused_blocks);
    tcase_add_test(tcase, vdi_create_refuses_what_cannot_be);
    tcase_add_test(tcase, vdi_static_image_has_all_its_blocks);
    return suite_run("vdi", tcase);
}
