/* formats/parallels*.c: what is refused by which name, the order of writes, what repair mends */
#include <errno.h>
#include <string.h>

#include "tests/unit/parallels-image.h"

START_TEST(parallels_refuses_fields_by_name)
{
    static const ImageField wrong[] = {
        {0, 4, 0, "magic is wrong", false},
        {PARALLELS_H_VERSION, 4, 1, "version is 1", false},
        {PARALLELS_H_TRACKS, 4, 0, "tracks is 0", false},
        {PARALLELS_H_TRACKS, 4, 524289, "tracks is 524289", false},
        {PARALLELS_H_TRACKS, 4, 16, "data_off is 8", false},
        {PARALLELS_H_ENTRIES, 4, 8, "nb_sectors is 65", false},
        {PARALLELS_H_ENTRIES, 4, 4000, "nb_bat_entries is 4000", false},
        {PARALLELS_H_ENTRIES, 4, UINT32_MAX, "nb_bat_entries is 4294967295", false},
        {PARALLELS_H_SECTORS, 8, UINT64_MAX, "nb_sectors is 18446744073709551615", false},
        {PARALLELS_H_SECTORS, 8, 73, "nb_sectors is 73", false},
        {PARALLELS_H_IN_USE, 4, 1, "in_use is 0x00000001", false},
        {PARALLELS_H_DATA, 4, 0, "data_off is 0", false},
        {PARALLELS_H_DATA, 4, 9, "data_off is 9", false},
        {PARALLELS_H_FLAGS, 4, 1, "flags are 0x1", true},
        {PARALLELS_H_EXTENSION, 8, 16, "ext_off is 16", true},
    };
    uint64_t size;
    g_autofree uint8_t *good = full_image(2, &size);
    images_assert_fields_refused(&format_parallels, good, size, images_put_le, wrong,
                                 G_N_ELEMENTS(wrong));
    images_assert_refused(&format_parallels, good, TABLE - 1, false, "ends inside the header");
}
END_TEST

START_TEST(parallels_old_magic_counts_sectors)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    memcpy(bytes, PARALLELS_MAGIC_OLD, PARALLELS_MAGIC_SIZE);
    store_le32(bytes + PARALLELS_H_SECTORS + 4, 0xffffffff); /* not looked at */
    store_le32(bytes + PARALLELS_H_DATA, 0);                 /* behind the table: at 512 */
    store_le32(bytes + TABLE, 8);
    store_le32(bytes + TABLE + 4, 16);
    g_autoptr(Store) store = store_memory_new("test.hds", bytes, size);
    g_autoptr(Image) image = images_open(&format_parallels, store, NULL, true);
    ck_assert_uint_eq(image->size, SIZE);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
    ck_assert_uint_eq(images_byte(image, CLUSTER), 'b');
    uint64_t place = images_write(image, 3 * CLUSTER, 'x');
    ck_assert_uint_eq(place % CLUSTER, 512);
    ck_assert_uint_ge(place, size);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(images_le32(store, TABLE + 12), place / 512);
    g_autoptr(Image) again = images_open(&format_parallels, store, NULL, false);
    ck_assert_uint_eq(images_byte(again, 4 * CLUSTER - 1), 'x');
}
END_TEST

START_TEST(parallels_odd_clusters_are_read_only)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(3, &size);
    memcpy(bytes, PARALLELS_MAGIC_OLD, PARALLELS_MAGIC_SIZE);
    store_le32(bytes + PARALLELS_H_TRACKS, 9); /* 4608 bytes, from 8, 17 on */
    store_le32(bytes + TABLE, 17);
    store_le32(bytes + TABLE + 4, 8);
    store_le32(bytes + TABLE + 8, 0);
    images_assert_refused(&format_parallels, bytes, size, true, "tracks is 9, no power of two");
    g_autoptr(Store) store = store_memory_new("test.hds", bytes, size);
    g_autoptr(Image) image = images_open(&format_parallels, store, NULL, false);
    ck_assert_uint_eq(images_byte(image, 0), 'b'); /* of the file, byte 8704 */
    ck_assert_uint_eq(images_byte(image, 4608), 'a');
    ck_assert_uint_eq(images_byte(image, 9215), 'b');
    ck_assert_uint_eq(images_byte(image, 9216), 0);
}
END_TEST

START_TEST(parallels_what_is_not_in_the_file_is_an_error)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    store_le32(bytes + TABLE + 8, 3);           /* behind the end */
    store_le32(bytes + TABLE + 12, UINT32_MAX); /* far behind it */
    g_autoptr(Store) store = store_memory_new("test.hds", bytes, size);
    g_autoptr(Image) image = images_open(&format_parallels, store, NULL, false);
    ck_assert_uint_eq(images_byte(image, CLUSTER), 'b');
    ck_assert_int_eq(images_read_error(image, 2 * CLUSTER), -EIO);
    ck_assert_int_eq(images_read_error(image, 3 * CLUSTER), -EIO);
    ck_assert_uint_eq(images_byte(image, 4 * CLUSTER), 0);
    images_assert_refused(&format_parallels, bytes, size, true, "cluster 2 is at 3");
    store_le32(bytes + TABLE + 12, 0);
    store_le32(bytes + TABLE + 8, 2);
    images_assert_refused(&format_parallels, bytes, size, true, "cluster 2 is at 2");
}
END_TEST

START_TEST(parallels_empty_flag_hides_all)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    store_le32(bytes + PARALLELS_H_FLAGS, PARALLELS_EMPTY);
    g_autoptr(Store) store = store_memory_new("test.hds", bytes, size);
    g_autoptr(Image) image = images_open(&format_parallels, store, NULL, false);
    ck_assert_uint_eq(images_byte(image, 0), 0);
}
END_TEST

START_TEST(parallels_table_is_written_behind_the_data)
{
    g_autoptr(Store) store = new_store();
    ck_assert_uint_eq(images_le32(store, PARALLELS_H_IN_USE), PARALLELS_CLOSED);
    g_autoptr(Image) image = images_open(&format_parallels, store, NULL, true);
    ck_assert_uint_eq(images_le32(store, PARALLELS_H_IN_USE), PARALLELS_IN_USE);
    ck_assert(format_parallels.dirty_flag(image));
    uint64_t place = images_write(image, 2 * CLUSTER, 'x');
    ck_assert_uint_eq(place, DATA);
    ck_assert_uint_eq(images_byte(image, 2 * CLUSTER), 'x');
    ck_assert_uint_eq(images_le32(store, TABLE + 8), 0);
    ck_assert_int_eq(parallels_flush(image), 0);
    ck_assert(!parallels_is_dirty(image));
    ck_assert_uint_eq(images_le32(store, TABLE + 8), 1);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(images_le32(store, PARALLELS_H_IN_USE), PARALLELS_CLOSED);
    ck_assert_uint_eq(store_size(store), DATA + CLUSTER);
}
END_TEST

START_TEST(parallels_abandoned_space_at_the_end_is_used_again)
{
    g_autoptr(Store) store = new_store();
    g_autoptr(Image) image = images_open(&format_parallels, store, NULL, true);
    Allocation a = {.offset = 0, .length = 2 * CLUSTER}, *list = &a;
    extent_list_init(&a.extents);
    ck_assert_int_eq(parallels_allocate(image, &list, 1), 0);
    ck_assert_uint_eq(a.extents.items[0].host_offset, DATA);
    ck_assert_int_eq(a.extents.items[0].flags, EXTENT_NEW | EXTENT_FRESH);
    parallels_abandon(image, &list, 1);
    ck_assert_int_eq(parallels_allocate(image, &list, 1), 0);
    ck_assert_uint_eq(a.extents.items[0].host_offset, DATA);
    ck_assert_int_eq(a.extents.items[0].flags, EXTENT_NEW); /* something may be there */
    parallels_abandon(image, &list, 1);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(store_size(store), DATA);
}
END_TEST

START_TEST(parallels_check_mends_what_it_can)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(4, &size);
    store_le32(bytes + PARALLELS_H_IN_USE, PARALLELS_IN_USE);
    store_le32(bytes + TABLE + 4, 1);          /* where the first cluster lies */
    store_le32(bytes + TABLE + 8, UINT32_MAX); /* not in the file */
    store_le32(bytes + TABLE + 7 * 4, 1);      /* a third one there */
    g_autoptr(Store) store = store_memory_new("test.hds", bytes, size);
    CheckResult result = images_check(&format_parallels, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 3);
    images_check(&format_parallels, store, CHECK_REPAIR_LEAKS);
    ck_assert_uint_eq(images_le32(store, PARALLELS_H_IN_USE), PARALLELS_IN_USE);
    result = images_check(&format_parallels, store, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(result.corruptions_fixed, 3);
    ck_assert_uint_eq(images_le32(store, PARALLELS_H_IN_USE), PARALLELS_CLOSED);
    ck_assert_uint_eq(images_check(&format_parallels, store, CHECK_REPORT_ONLY).corruptions, 0);
    g_autoptr(Image) image = images_open(&format_parallels, store, NULL, true);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
    ck_assert_uint_eq(images_byte(image, CLUSTER), 'a');
    ck_assert_uint_eq(images_byte(image, 2 * CLUSTER), 0);
    ck_assert_uint_eq(images_byte(image, 3 * CLUSTER), 'd');
    ck_assert_uint_eq(images_byte(image, 7 * CLUSTER), 'a');
    ck_assert_uint_ne(images_le32(store, TABLE + 4), images_le32(store, TABLE));
    ck_assert_uint_ne(images_le32(store, TABLE + 4), images_le32(store, TABLE + 7 * 4));
}
END_TEST

START_TEST(parallels_check_cuts_off_unused_clusters)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(4, &size);
    store_le32(bytes + TABLE + 4, 0);
    store_le32(bytes + TABLE + 12, 0);
    g_autoptr(Store) store = store_memory_new("test.hds", bytes, size);
    ck_assert_uint_eq(images_check(&format_parallels, store, CHECK_REPORT_ONLY).leaks, 2);
    CheckResult result = images_check(&format_parallels, store, CHECK_REPAIR_LEAKS);
    ck_assert_uint_eq(result.leaks_fixed, 1);
    ck_assert_uint_eq(result.leaks, 1); /* between others */
    ck_assert_uint_eq(store_size(store), size - CLUSTER);
}
END_TEST

START_TEST(parallels_create_refuses_what_cannot_be)
{
    FormatCreate small = {.size = 1}, large = {.size = UINT64_C(1) << 62};
    FormatCreate backed = {.size = 1, .backing_name = "base", .backing_format = "raw"};
    const Format *format = &format_parallels;
    images_assert_create_refused(format, &small, "cluster_size=5k", "cluster_size is '5k'");
    images_assert_create_refused(format, &small, "cluster_size=2k", "cluster_size is '2k'");
    images_assert_create_refused(format, &small, "cluster_size=512M", "cluster_size is '512M'");
    images_assert_create_refused(format, &large, NULL, "too large for cluster_size 1048576");
    images_assert_create_refused(format, &backed, NULL, "cannot have a backing file");
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("parallels");
    tcase_add_test(tcase, parallels_refuses_fields_by_name);
    tcase_add_test(tcase, parallels_old_magic_counts_sectors);
    tcase_add_test(tcase, parallels_odd_clusters_are_read_only);
    tcase_add_test(tcase, parallels_what_is_not_in_the_file_is_an_error);
    tcase_add_test(tcase, parallels_empty_flag_hides_all);
    tcase_add_test(tcase, parallels_table_is_written_behind_the_data);
    tcase_add_test(tcase, parallels_abandoned_space_at_the_end_is_used_again);
    tcase_add_test(tcase, parallels_check_mends_what_it_can);
    tcase_add_test(tcase, parallels_check_cuts_off_unused_clusters);
    tcase_add_test(tcase, parallels_create_refuses_what_cannot_be);
    return suite_run("parallels", tcase);
}
