/* formats/qcow.c, qcow-*.c: what is refused by which name, the order of writes, what repair mends */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "formats/qcow.h"
#include "tests/unit/images.h"
#include "tests/unit/suite.h"

/* 512 byte clusters, 64 entries in an L2 table: an L1 entry spans 32 KiB. */
#define CLUSTER 512u
#define SPAN    (64 * CLUSTER)
#define SIZE    (5 * SPAN + 3 * CLUSTER)
#define L1      512u
#define END     1024u /* of an empty image */

static Store *new_store(const char *backing)
{
    FormatCreate how = {
        .size = SIZE, .backing_name = backing, .backing_format = backing ? "raw" : NULL};
    return images_create(&format_qcow, &how, "cluster_size=512");
}

/* The bytes of an image with one L2 table and `count` clusters, cluster i filled with 'a' + i. */
static uint8_t *full_image(unsigned count, uint64_t *size)
{
    g_autoptr(Store) store = new_store(NULL);
    ck_assert_uint_eq(store_size(store), END);
    return images_with_one_table(store, L1, images_put_be, CLUSTER, count, size);
}

START_TEST(qcow_refuses_fields_by_name)
{
    static const ImageField wrong[] = {
        {0, 4, 0, "magic is 00000000"},
        {QCOW_H_VERSION, 4, 2, "version 2"},
        {QCOW_H_CRYPT, 4, 1, "is encrypted: needs its secret"},
        {QCOW_H_CRYPT, 4, 2, "crypt_method is 2"},
        {QCOW_H_CLUSTER_BITS, 1, 8, "cluster_bits is 8"},
        {QCOW_H_CLUSTER_BITS, 1, 255, "cluster_bits is 255"},
        {QCOW_H_L2_BITS, 1, 5, "l2_bits is 5"},
        {QCOW_H_L2_BITS, 1, 14, "l2_bits is 14"},
        {QCOW_H_SIZE, 8, UINT64_MAX, "size is 18446744073709551615"},
        {QCOW_H_SIZE, 8, UINT64_C(1) << 50, "size is"},
        {QCOW_H_SIZE, 8, UINT64_C(1) << 30, "l1_table_offset is 512"},
        {QCOW_H_L1_OFFSET, 8, 0, "l1_table_offset is 0"},
        {QCOW_H_L1_OFFSET, 8, 513, "l1_table_offset is 513"},
        {QCOW_H_L1_OFFSET, 8, UINT64_MAX - 7, "l1_table_offset is"},
    };
    uint64_t size;
    g_autofree uint8_t *good = full_image(2, &size);
    images_assert_fields_refused(&format_qcow, good, size, images_put_be, wrong,
                                 G_N_ELEMENTS(wrong));
    images_assert_refused(&format_qcow, good, QCOW_HEADER_SIZE - 1, false,
                          "ends inside the header");
    store_be64(good + QCOW_H_NAME_OFFSET, 48);
    store_be32(good + QCOW_H_NAME_SIZE, 1024);
    images_assert_refused(&format_qcow, good, size, false, "backing_file_size is 1024");
    store_be32(good + QCOW_H_NAME_SIZE, 1023);
    store_be64(good + QCOW_H_NAME_OFFSET, size - 1000);
    images_assert_refused(&format_qcow, good, size, false, "backing_file_offset is");
}
END_TEST

START_TEST(qcow_what_is_not_in_the_file_is_an_error)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    store_be64(bytes + L1 + 8, size - 8);                /* a table cut short */
    store_be64(bytes + L1 + 16, 16);                     /* in the header */
    store_be64(bytes + END, size);                       /* a cluster behind the end */
    store_be64(bytes + END + 16, QCOW_COMPRESSED | END); /* of no length */
    g_autoptr(Store) store = store_memory_new("test.qcow", bytes, size);
    g_autoptr(Image) image = images_open(&format_qcow, store, NULL, false);
    uint8_t byte;
    ck_assert_int_eq(chain_read(image, &byte, 1, 0), -EIO);
    ck_assert_uint_eq(images_byte(image, CLUSTER), 'b');
    ck_assert_int_eq(chain_read(image, &byte, 1, 2 * CLUSTER), -EIO);
    ck_assert_int_eq(chain_read(image, &byte, 1, SPAN), -EIO);
    ck_assert_int_eq(chain_read(image, &byte, 1, 2 * SPAN), -EIO);
    ck_assert_uint_eq(images_byte(image, 3 * SPAN), 0);
}
END_TEST

START_TEST(qcow_writing_is_refused_where_clusters_overlap)
{
    uint64_t size, first = END + CLUSTER;
    g_autofree uint8_t *bytes = full_image(2, &size);
    store_be64(bytes + END + 8, first);
    images_assert_refused(&format_qcow, bytes, size, true, "the cluster at 1536 is");
    store_be64(bytes + END + 8, first + 8);
    images_assert_refused(&format_qcow, bytes, size, true, "the cluster at 1544 is");
    store_be64(bytes + END + 8, END);
    images_assert_refused(&format_qcow, bytes, size, true, "the cluster at 1024 is");
    store_be64(bytes + END + 8, 0);
    store_be64(bytes + L1 + 8, END);
    images_assert_refused(&format_qcow, bytes, size, true, "the L2 table at 1024 is");
}
END_TEST

START_TEST(qcow_tables_are_written_behind_the_data)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) image = images_open(&format_qcow, store, NULL, true);
    ck_assert(!table_tree_is_dirty(image));
    uint64_t first = images_write(image, SPAN, 'x');
    ck_assert_uint_eq(images_byte(image, SPAN), 'x');
    ck_assert_uint_eq(images_be64(store, L1 + 8), 0);
    ck_assert_int_eq(table_tree_flush(image), 0);
    uint64_t table = images_be64(store, L1 + 8);
    ck_assert_uint_ne(table, 0);
    ck_assert_uint_eq(images_be64(store, table), first);
    ck_assert(!table_tree_is_dirty(image));
    uint64_t second = images_write(image, SPAN + CLUSTER, 'y');
    ck_assert_uint_eq(images_be64(store, table + 8), 0);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(images_be64(store, table + 8), second);
    ck_assert_uint_eq(store_size(store), second + CLUSTER);
}
END_TEST

START_TEST(qcow_abandoned_space_at_the_end_is_used_again)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) image = images_open(&format_qcow, store, NULL, true);
    Allocation a = {.offset = 0, .length = 2 * CLUSTER}, *list = &a;
    extent_list_init(&a.extents);
    ck_assert_int_eq(table_tree_allocate(image, &list, 1), 0);
    uint64_t place = a.extents.items[0].host_offset;
    ck_assert_int_eq(a.extents.items[0].flags, EXTENT_NEW | EXTENT_FRESH);
    table_tree_abandon(image, &list, 1);
    ck_assert_int_eq(table_tree_allocate(image, &list, 1), 0);
    ck_assert_uint_eq(a.extents.items[0].host_offset, place);
    ck_assert_int_eq(a.extents.items[0].flags, EXTENT_NEW); /* something may be there */
    table_tree_abandon(image, &list, 1);
    ck_assert_uint_eq(images_byte(image, 0), 0);
    ck_assert_int_eq(image_finish(image), 0);
}
END_TEST

#define PACKED 4u

/* Reserves compressed clusters of 300 bytes each, from the first of the disk on. */
static void reserve_packed(Image *image, Allocation *items, Allocation **list)
{
    for (unsigned i = 0; i < PACKED; i++) {
        items[i] = (Allocation){.offset = i * CLUSTER, .length = CLUSTER, .stored_length = 300};
        extent_list_init(&items[i].extents);
        list[i] = &items[i];
    }
    ck_assert_int_eq(table_tree_allocate(image, list, PACKED), 0);
}

START_TEST(qcow_compressed_clusters_lie_one_behind_the_other)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) image = images_open(&format_qcow, store, NULL, true);
    Allocation items[PACKED], *list[PACKED];
    uint8_t unit[CLUSTER], stored[CLUSTER];
    images_write(image, SPAN, 'p');
    reserve_packed(image, items, list);
    uint64_t first = items[0].extents.items[0].host_offset;
    ck_assert_uint_eq(first % CLUSTER, 0);
    table_tree_abandon(image, list, PACKED);
    uint64_t plain =
        images_write(image, SPAN + CLUSTER, 'q'); /* what was given back is used again */
    ck_assert_uint_eq(plain, first);
    reserve_packed(image, items, list);
    for (unsigned i = 0; i < PACKED; i++) {
        uint64_t place = items[i].extents.items[0].host_offset;
        ck_assert_uint_eq(place, first + CLUSTER + 300 * i);
        memset(unit, 'a' + (int)i, sizeof unit);
        int n = format_qcow.encode(image, unit, CLUSTER, stored, CLUSTER - 1);
        ck_assert_int_gt(n, 0);
        ck_assert_int_eq(store_write(store, stored, n, place), 0);
    }
    ck_assert_int_eq(table_tree_commit(image, list, PACKED), 0);
    images_write(image, CLUSTER, 'n'); /* in place of one of them */
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
    ck_assert_uint_eq(images_byte(image, 2 * CLUSTER - 1), 'n');
    ck_assert_uint_eq(images_byte(image, 2 * CLUSTER), 'c');
    ck_assert_uint_eq(images_byte(image, SPAN), 'p');
    CheckResult result = images_check(&format_qcow, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions + result.leaks, 0);
    ck_assert_uint_eq(result.compressed_clusters, PACKED - 1);
    for (unsigned i = 0; i < PACKED; i++) {
        extent_list_clear(&items[i].extents);
    }
}
END_TEST

START_TEST(qcow_a_plain_cluster_is_never_packed_into)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) image = images_open(&format_qcow, store, NULL, true);
    Allocation items[PACKED], *list[PACKED];
    reserve_packed(image, items, list); /* the last one ends inside a cluster */
    uint64_t plain = images_write(image, SPAN, 'p');
    Allocation more = {.offset = 2 * SPAN, .length = CLUSTER, .stored_length = 400}, *next = &more;
    extent_list_init(&more.extents);
    ck_assert_int_eq(table_tree_allocate(image, &next, 1), 0);
    ck_assert_uint_ge(more.extents.items[0].host_offset, plain + CLUSTER);
    table_tree_abandon(image, list, PACKED); /* others lie behind them: nothing moves */
    ck_assert_uint_gt(images_write(image, SPAN + CLUSTER, 'q'), more.extents.items[0].host_offset);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(images_byte(image, SPAN), 'p');
    extent_list_clear(&more.extents);
}
END_TEST

START_TEST(qcow_zeroes_over_a_backing_must_be_written)
{
    uint8_t base_bytes[SPAN];
    memset(base_bytes, 'r', sizeof base_bytes);
    g_autoptr(Store) base_store = store_memory_new("base.raw", base_bytes, sizeof base_bytes);
    ImageOpen how = {.format = &format_raw};
    g_autoptr(Image) base = image_open_store(base_store, &how, NULL, NULL);
    g_autoptr(Store) store = new_store("base.raw");
    g_autoptr(Image) image = images_open(&format_qcow, store, base, true);
    ck_assert_str_eq(image->backing_name, "base.raw");
    ck_assert_uint_eq(images_byte(image, 0), 'r');
    ck_assert_int_eq(qcow_unmap(image, 0, CLUSTER, UNMAP_ZERO), -ENOTSUP);
    ck_assert_int_eq(qcow_unmap(image, 0, CLUSTER, 0), 0);
    ck_assert_uint_eq(images_byte(image, 0), 'r');
    ck_assert_int_eq(qcow_unmap(image, SPAN, CLUSTER, UNMAP_ZERO), 0);
    images_write(image, 0, 'n');
    ck_assert_int_eq(qcow_unmap(image, 0, CLUSTER, UNMAP_ZERO), 0);
    ck_assert_uint_eq(images_byte(image, 0), 0);
    ck_assert_int_eq(image_finish(image), 0);
}
END_TEST

START_TEST(qcow_keeps_the_order_of_bytes_of_xens_l1)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(1, &size);
    store_be32(bytes + QCOW_HEADER_SIZE, QCOW_XEN_MAGIC);
    store_le64(bytes + L1, END);
    g_autoptr(Store) store = store_memory_new("test.qcow", bytes, size);
    g_autoptr(Image) image = images_open(&format_qcow, store, NULL, true);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
    images_write(image, SPAN, 'x');
    ck_assert_int_eq(image_finish(image), 0);
    uint64_t table = images_le64(store, L1 + 8);
    ck_assert_uint_eq(table, size);
    ck_assert_uint_eq(images_le64(store, L1), END);
}
END_TEST

START_TEST(qcow_check_mends_what_it_can)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(5, &size);
    store_be64(bytes + END + 8, END + CLUSTER);           /* where the first cluster lies */
    store_be64(bytes + END + 16, END + 4 * CLUSTER + 64); /* not aligned, on the next two */
    store_be64(bytes + END + 24, size + CLUSTER);         /* not in the file */
    store_be64(bytes + L1 + 8, END);                      /* one table twice */
    store_be64(bytes + L1 + 16, size);                    /* not in the file */
    g_autoptr(Store) store = store_memory_new("test.qcow", bytes, size);
    CheckResult result = images_check(&format_qcow, store, CHECK_REPORT_ONLY);
    ck_assert_uint_ge(result.corruptions, 5);
    result = images_check(&format_qcow, store, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(result.corruptions, 0);
    result = images_check(&format_qcow, store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 0);
    g_autoptr(Image) image = images_open(&format_qcow, store, NULL, true);
    ck_assert_uint_eq(images_byte(image, 0), 'a');
    ck_assert_uint_eq(images_byte(image, CLUSTER), 'a');
    ck_assert_uint_eq(images_byte(image, 2 * CLUSTER), 'd');
    ck_assert_uint_eq(images_byte(image, 3 * CLUSTER - 1), 'e');
    ck_assert_uint_eq(images_byte(image, 3 * CLUSTER), 0);
    ck_assert_uint_eq(images_byte(image, 4 * CLUSTER), 'e');
    ck_assert_uint_eq(images_byte(image, SPAN), 'a');
    ck_assert_uint_eq(images_byte(image, 2 * SPAN), 0);
    /* They are apart now. */
    uint8_t byte = 'n';
    ExtentList map;
    extent_list_init(&map);
    ck_assert_int_eq(image_map(image, CLUSTER, CLUSTER, &map), 0);
    ck_assert_int_eq(store_write(store, &byte, 1, map.items[0].host_offset), 0);
    extent_list_clear(&map);
    ck_assert_uint_eq(images_byte(image, CLUSTER), 'n');
    ck_assert_uint_eq(images_byte(image, 0), 'a');
}
END_TEST

/* Check called it clean, and reading failed. */
START_TEST(qcow_file_that_ends_inside_a_cluster)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    images_assert_cut_short(&format_qcow, bytes, size, CLUSTER);
}
END_TEST

START_TEST(qcow_check_cuts_off_unused_clusters)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(3, &size);
    store_be64(bytes + END + 16, 0);
    g_autoptr(Store) store = store_memory_new("test.qcow", bytes, size);
    ck_assert_uint_eq(images_check(&format_qcow, store, CHECK_REPORT_ONLY).leaks, 1);
    ck_assert_uint_eq(images_check(&format_qcow, store, CHECK_REPAIR_LEAKS).leaks_fixed, 1);
    ck_assert_uint_eq(images_check(&format_qcow, store, CHECK_REPORT_ONLY).leaks, 0);
    ck_assert_uint_eq(store_size(store), size - CLUSTER);
}
END_TEST

START_TEST(qcow_create_refuses_what_cannot_be)
{
    static const struct {
        const char *option;
        uint64_t size;
        const char *words;
    } wrong[] = {
        {"cluster_size=3k", 1, "cluster_size is '3k'"},
        {"cluster_size=256", 1, "cluster_size is '256'"},
        {"cluster_size=128k", 1, "cluster_size is '128k'"},
        {"cluster_size=512", UINT64_C(1) << 40, "too large for cluster_size 512"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        FormatCreate how = {.size = wrong[i].size};
        images_assert_create_refused(&format_qcow, &how, wrong[i].option, wrong[i].words);
    }
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("qcow");
    tcase_add_test(tcase, qcow_refuses_fields_by_name);
    tcase_add_test(tcase, qcow_what_is_not_in_the_file_is_an_error);
    tcase_add_test(tcase, qcow_writing_is_refused_where_clusters_overlap);
    tcase_add_test(tcase, qcow_tables_are_written_behind_the_data);
    tcase_add_test(tcase, qcow_abandoned_space_at_the_end_is_used_again);
    tcase_add_test(tcase, qcow_compressed_clusters_lie_one_behind_the_other);
    tcase_add_test(tcase, qcow_a_plain_cluster_is_never_packed_into);
    tcase_add_test(tcase, qcow_zeroes_over_a_backing_must_be_written);
    tcase_add_test(tcase, qcow_keeps_the_order_of_bytes_of_xens_l1);
    tcase_add_test(tcase, qcow_check_mends_what_it_can);
    tcase_add_test(tcase, qcow_file_that_ends_inside_a_cluster);
    tcase_add_test(tcase, qcow_check_cuts_off_unused_clusters);
    tcase_add_test(tcase, qcow_create_refuses_what_cannot_be);
    return suite_run("qcow", tcase);
}
