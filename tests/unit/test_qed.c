/* formats/qed*.c: what is refused by which name, the order of writes, what repair mends, a larger disk */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/qed.h"
#include "tests/unit/images.h"
#include "tests/unit/suite.h"

/* 4 KiB clusters, tables of one: 512 entries, an L1 entry spans 2 MiB. */
#define CLUSTER 4096u
#define SPAN    (512 * CLUSTER)
#define SIZE    (3 * SPAN + 3 * CLUSTER + 512)
#define L1      CLUSTER
#define END     (2 * CLUSTER) /* of an empty image */

static Store *new_store(const char *backing, const char *format)
{
    FormatCreate how = {.size = SIZE, .backing_name = backing, .backing_format = format};
    return images_create(&format_qed, &how, "cluster_size=4k,table_size=1");
}

/* The bytes of an image with one L2 table and `count` clusters, cluster i filled with 'a' + i. */
static uint8_t *full_image(unsigned count, uint64_t *size)
{
    g_autoptr(Store) store = new_store(NULL, NULL);
    ck_assert_uint_eq(store_size(store), END);
    return images_with_one_table(store, L1, images_put_le, CLUSTER, count, size);
}

START_TEST(qed_refuses_fields_by_name)
{
    static const ImageField wrong[] = {
        {0, 4, 0, "magic is 00000000"},
        {QED_H_CLUSTER_SIZE, 4, 0, "cluster_size is 0"},
        {QED_H_CLUSTER_SIZE, 4, 2048, "cluster_size is 2048"},
        {QED_H_CLUSTER_SIZE, 4, 12288, "cluster_size is 12288"},
        {QED_H_CLUSTER_SIZE, 4, 128u << 20, "cluster_size is 134217728"},
        {QED_H_TABLE_SIZE, 4, 0, "table_size is 0"},
        {QED_H_TABLE_SIZE, 4, 3, "table_size is 3"},
        {QED_H_TABLE_SIZE, 4, 32, "table_size is 32"},
        {QED_H_TABLE_SIZE, 4, 16, "l1_table_offset is 4096"},
        {QED_H_HEADER_SIZE, 4, 0, "header_size is 0"},
        {QED_H_HEADER_SIZE, 4, 2, "l1_table_offset is 4096"},
        {QED_H_HEADER_SIZE, 4, UINT32_MAX, "header_size is 4294967295"},
        {QED_H_FEATURES, 8, 8, "features are 0x8"},
        {QED_H_FEATURES, 8, UINT64_C(1) << 63, "features are 0x8000000000000000"},
        {QED_H_L1_OFFSET, 8, 0, "l1_table_offset is 0"},
        {QED_H_L1_OFFSET, 8, 4608, "l1_table_offset is 4608"},
        {QED_H_L1_OFFSET, 8, UINT64_MAX - 4095, "l1_table_offset is"},
        {QED_H_SIZE, 8, 513, "image_size is 513"},
        {QED_H_SIZE, 8, UINT64_C(512) * SPAN + 512, "image_size is 1073742336"},
        {QED_H_SIZE, 8, UINT64_MAX - 511, "image_size is"},
    };
    uint64_t size;
    g_autofree uint8_t *good = full_image(2, &size);
    images_assert_fields_refused(&format_qed, good, size, images_put_le, wrong,
                                 G_N_ELEMENTS(wrong));
    images_assert_refused(&format_qed, good, QED_HEADER_SIZE - 1, false, "ends inside the header");
}
END_TEST

START_TEST(qed_refuses_names_outside_the_header)
{
    static const struct {
        uint32_t offset, size;
        const char *words;
    } wrong[] = {
        {64, 0, "backing_filename_size is 0"},
        {64, 1024, "backing_filename_size is 1024"},
        {63, 10, "backing_filename_offset is 63"},
        {4090, 10, "backing_filename_offset is 4090"},
        {UINT32_MAX, 10, "backing_filename_offset is 4294967295"},
    };
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    store_le64(bytes + QED_H_FEATURES, QED_BACKING_FILE);
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        store_le32(bytes + QED_H_NAME_OFFSET, wrong[i].offset);
        store_le32(bytes + QED_H_NAME_SIZE, wrong[i].size);
        images_assert_refused(&format_qed, bytes, size, false, wrong[i].words);
    }
}
END_TEST

START_TEST(qed_what_is_not_in_the_file_is_an_error)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    store_le64(bytes + L1 + 8, size - 8);     /* a table cut short */
    store_le64(bytes + L1 + 16, 8);           /* in the header */
    store_le64(bytes + END, size);            /* a cluster behind the end */
    store_le64(bytes + END + 16, 2);          /* neither zeroes nor a cluster */
    store_le64(bytes + END + 24, END + 4608); /* not aligned */
    store_le64(bytes + END + 32, QED_ZERO);
    g_autoptr(Store) store = store_memory_new("test.qed", bytes, size);
    g_autoptr(Image) image = images_open(&format_qed, store, NULL, false);
    ck_assert_int_eq(images_read_error(image, 0), -EIO);
    ck_assert_uint_eq(images_byte(image, CLUSTER), 'b');
    ck_assert_int_eq(images_read_error(image, 2 * CLUSTER), -EIO);
    ck_assert_int_eq(images_read_error(image, 3 * CLUSTER), -EIO);
    ck_assert_uint_eq(images_byte(image, 4 * CLUSTER), 0);
    ck_assert_int_eq(images_read_error(image, SPAN), -EIO);
    ck_assert_int_eq(images_read_error(image, 2 * SPAN), -EIO);
    ck_assert_uint_eq(images_byte(image, 3 * SPAN), 0);
}
END_TEST

START_TEST(qed_writing_is_refused_where_clusters_overlap)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    store_le64(bytes + END + 8, END + CLUSTER);
    images_assert_refused(&format_qed, bytes, size, true, "the cluster at 12288 is");
    store_le64(bytes + END + 8, L1);
    images_assert_refused(&format_qed, bytes, size, true, "the cluster at 4096 is");
    store_le64(bytes + END + 8, 0);
    store_le64(bytes + L1 + 8, END);
    images_assert_refused(&format_qed, bytes, size, true, "the L2 table at 8192 is");
}
END_TEST

START_TEST(qed_bit_is_set_before_the_first_allocation)
{
    g_autoptr(Store) store = new_store(NULL, NULL);
    uint8_t unknown = 0x80;
    ck_assert_int_eq(store_write(store, &unknown, 1, QED_H_AUTOCLEAR), 0);
    g_autoptr(Image) image = images_open(&format_qed, store, NULL, true);
    ck_assert_uint_eq(images_le64(store, QED_H_AUTOCLEAR), 0);
    ck_assert_uint_eq(images_le64(store, QED_H_FEATURES), 0);
    uint64_t first = images_write(image, SPAN, 'x');
    ck_assert_uint_eq(images_le64(store, QED_H_FEATURES), QED_NEED_CHECK);
    ck_assert(format_qed.dirty_flag(image));
    ck_assert_uint_eq(images_byte(image, SPAN), 'x');
    ck_assert_uint_eq(images_le64(store, L1 + 8), 0);
    ck_assert_int_eq(table_tree_flush(image), 0);
    uint64_t table = images_le64(store, L1 + 8);
    ck_assert_uint_ne(table, 0);
    ck_assert_uint_eq(images_le64(store, table), first);
    ck_assert_uint_eq(images_le64(store, QED_H_FEATURES), QED_NEED_CHECK);
    uint64_t second = images_write(image, SPAN + CLUSTER, 'y');
    ck_assert_uint_eq(images_le64(store, table + 8), 0);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(images_le64(store, table + 8), second);
    ck_assert_uint_eq(images_le64(store, QED_H_FEATURES), 0);
    ck_assert_uint_eq(store_size(store), second + CLUSTER);
}
END_TEST

START_TEST(qed_discard_hides_the_backing)
{
    g_autoptr(Image) base = images_backing('r', 2 * SPAN);
    g_autoptr(Store) store = new_store("base.raw", "raw");
    g_autoptr(Image) image = images_open(&format_qed, store, base, true);
    ck_assert_str_eq(image->backing_name, "base.raw");
    ck_assert_str_eq(image->backing_format, "raw");
    ck_assert_uint_eq(images_byte(image, 0), 'r');
    ck_assert_int_eq(qed_unmap(image, 0, CLUSTER, UNMAP_ZERO), 0);
    ck_assert_int_eq(qed_unmap(image, SPAN, CLUSTER, 0), 0);
    images_write(image, 2 * CLUSTER, 'n');
    ck_assert_int_eq(qed_unmap(image, 2 * CLUSTER, CLUSTER, UNMAP_ZERO), 0);
    uint64_t before = store_size(store);
    ck_assert_int_eq(qed_unmap(image, 3 * SPAN, SIZE - 3 * SPAN, UNMAP_ZERO), 0);
    ck_assert_uint_eq(store_size(store), before); /* nothing to hide there */
    ck_assert_int_eq(image_finish(image), 0);
    g_autoptr(Image) again = images_open(&format_qed, store, base, false);
    ck_assert_uint_eq(images_byte(again, 0), 0);
    ck_assert_uint_eq(images_byte(again, SPAN), 0);
    ck_assert_uint_eq(images_byte(again, CLUSTER), 'r');
    ck_assert_uint_eq(images_byte(again, 2 * CLUSTER), 0);
    uint64_t table = images_le64(store, L1);
    ck_assert_uint_eq(images_le64(store, table), QED_ZERO);
}
END_TEST

START_TEST(qed_check_mends_what_it_can)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(5, &size);
    store_le64(bytes + QED_H_FEATURES, QED_NEED_CHECK);
    store_le64(bytes + END + 8, END + CLUSTER);            /* where the first cluster lies */
    store_le64(bytes + END + 16, END + 4 * CLUSTER + 512); /* not aligned, on the next two */
    store_le64(bytes + END + 24, size + CLUSTER);          /* not in the file */
    store_le64(bytes + L1 + 8, END);                       /* one table twice */
    store_le64(bytes + L1 + 16, size);                     /* not in the file */
    g_autoptr(Store) store = store_memory_new("test.qed", bytes, size);
    ck_assert_uint_ge(images_check(&format_qed, store, CHECK_REPORT_ONLY).corruptions, 5);
    images_check(&format_qed, store, CHECK_REPAIR_LEAKS);
    ck_assert_uint_eq(images_le64(store, QED_H_FEATURES), QED_NEED_CHECK);
    ck_assert_uint_eq(images_check(&format_qed, store, CHECK_REPAIR_ALL).corruptions, 0);
    ck_assert_uint_eq(images_le64(store, QED_H_FEATURES), 0);
    ck_assert_uint_eq(images_check(&format_qed, store, CHECK_REPORT_ONLY).corruptions, 0);
    g_autoptr(Image) image = images_open(&format_qed, store, NULL, true);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
    ck_assert_uint_eq(images_byte(image, CLUSTER), 'a');
    ck_assert_uint_eq(images_byte(image, 2 * CLUSTER), 'd');
    ck_assert_uint_eq(images_byte(image, 3 * CLUSTER - 1), 'e');
    ck_assert_uint_eq(images_byte(image, 3 * CLUSTER), 0);
    ck_assert_uint_eq(images_byte(image, 4 * CLUSTER), 'e');
    ck_assert_uint_eq(images_byte(image, SPAN), 'a');
    ck_assert_uint_eq(images_byte(image, 2 * SPAN), 0);
}
END_TEST

/* Check called it clean, and reading failed. */
START_TEST(qed_file_that_ends_inside_a_cluster)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    images_assert_cut_short(&format_qed, bytes, size, CLUSTER);
}
END_TEST

START_TEST(qed_check_cuts_off_unused_clusters)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(3, &size);
    store_le64(bytes + QED_H_FEATURES, QED_NEED_CHECK);
    store_le64(bytes + END + 16, QED_ZERO);
    g_autoptr(Store) store = store_memory_new("test.qed", bytes, size);
    ck_assert_uint_eq(images_check(&format_qed, store, CHECK_REPORT_ONLY).leaks, 1);
    ck_assert_uint_eq(images_check(&format_qed, store, CHECK_REPAIR_LEAKS).leaks_fixed, 1);
    ck_assert_uint_eq(images_check(&format_qed, store, CHECK_REPORT_ONLY).leaks, 0);
    ck_assert_uint_eq(images_le64(store, QED_H_FEATURES), 0);
    ck_assert_uint_eq(store_size(store), size - CLUSTER);
}
END_TEST

/* What the tables say behind the end of the disk comes from nobody, and shows nothing when it grows. */
START_TEST(qed_growth_shows_nothing_old)
{
    g_autoptr(Image) base = images_backing('r', 5 * SPAN);
    g_autoptr(Store) store = new_store("base.raw", "raw");
    uint8_t garbage[8];
    g_autoptr(Image) image = images_open(&format_qed, store, base, true);
    images_write(image, 3 * SPAN, 'x'); /* so that the last table is there */
    ck_assert_int_eq(table_tree_flush(image), 0);
    store_le64(garbage, END);
    ck_assert_int_eq(store_write(store, garbage, 8, L1 + 4 * 8), 0);
    GError *error = NULL;
    ck_assert(!image_resize(image, SIZE - 512, &error));
    g_clear_error(&error);
    ck_assert(!image_resize(image, UINT64_C(512) * SPAN + 1, &error));
    ck_assert_msg(strstr(error->message, "must be at most 1073741824") != NULL, "%s",
                  error->message);
    g_clear_error(&error);
    ck_assert_msg(image_resize(image, 6 * SPAN, &error), "%s", error ? error->message : "");
    ck_assert_int_eq(image_finish(image), 0);
    g_autoptr(Image) again = images_open(&format_qed, store, base, false);
    ck_assert_uint_eq(again->size, 6 * SPAN);
    ck_assert_uint_eq(images_byte(again, 3 * SPAN), 'x');
    ck_assert_uint_eq(images_byte(again, SIZE - 1), 'r');
    for (uint64_t at = SIZE; at < 6 * SPAN; at += 512) {
        ck_assert_uint_eq(images_byte(again, at), 0);
    }
    ck_assert_uint_eq(images_check(&format_qed, store, CHECK_REPORT_ONLY).corruptions, 0);
}
END_TEST

START_TEST(qed_another_name_never_lies_on_the_old_one)
{
    g_autoptr(Store) store = new_store("base.raw", "raw");
    g_autofree char *longest = g_strnfill(QED_MAX_NAME, 'n');
    const char *names[] = {longest, "second", longest, NULL, "base"};
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(Image) image = images_open(&format_qed, store, NULL, true);
        bool raw = i % 2 == 0;
        bool done = qed_set_backing(image, names[i], raw ? "raw" : "qed", NULL, &error);
        ck_assert_msg(done, "%s", error ? error->message : "");
        ck_assert_int_eq(image_finish(image), 0);
        ImageOpen how = {.format = &format_qed, .no_backing = true};
        g_autoptr(Image) again = image_open_store(store, &how, NULL, &error);
        ck_assert_pstr_eq(again->backing_name, names[i]);
        ck_assert_pstr_eq(again->backing_format, raw && names[i] ? "raw" : NULL);
    }
}
END_TEST

START_TEST(qed_create_refuses_what_cannot_be)
{
    g_autofree char *long_name = g_strnfill(QED_MAX_NAME + 1, 'n');
    FormatCreate small = {.size = 1}, large = {.size = UINT64_C(1) << 62};
    FormatCreate named = {.size = 1, .backing_name = long_name, .backing_format = "raw"};
    images_assert_create_refused(&format_qed, &small, "cluster_size=5k", "cluster_size is '5k'");
    images_assert_create_refused(&format_qed, &small, "cluster_size=2k", "cluster_size is '2k'");
    images_assert_create_refused(&format_qed, &small, "cluster_size=128M",
                                 "cluster_size is '128M'");
    images_assert_create_refused(&format_qed, &small, "table_size=0", "table_size is '0'");
    images_assert_create_refused(&format_qed, &small, "table_size=3", "table_size is '3'");
    images_assert_create_refused(&format_qed, &small, "table_size=32", "table_size is '32'");
    images_assert_create_refused(&format_qed, &large, NULL, "too large for cluster_size 65536");
    images_assert_create_refused(&format_qed, &named, NULL, "must be at most 1023");
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("qed");
    tcase_add_test(tcase, qed_refuses_fields_by_name);
    tcase_add_test(tcase, qed_refuses_names_outside_the_header);
    tcase_add_test(tcase, qed_what_is_not_in_the_file_is_an_error);
    tcase_add_test(tcase, qed_writing_is_refused_where_clusters_overlap);
    tcase_add_test(tcase, qed_bit_is_set_before_the_first_allocation);
    tcase_add_test(tcase, qed_discard_hides_the_backing);
    tcase_add_test(tcase, qed_check_mends_what_it_can);
    tcase_add_test(tcase, qed_file_that_ends_inside_a_cluster);
    tcase_add_test(tcase, qed_check_cuts_off_unused_clusters);
    tcase_add_test(tcase, qed_growth_shows_nothing_old);
    tcase_add_test(tcase, qed_another_name_never_lies_on_the_old_one);
    tcase_add_test(tcase, qed_create_refuses_what_cannot_be);
    return suite_run("qed", tcase);
}
