/* formats/qcow2-check*.c, on images made by formats/qcow2-create.c and damaged by hand */
#include <string.h>

#include "base/errors.h"
#include "formats/qcow2-check.h"
#include "tests/lib/qcow2-walk.h"
#include "tests/lib/store-memory.h"
#include "tests/lib/store-record.h"
#include "tests/unit/suite.h"

#define CLUSTER_BITS 12
#define CLUSTER      (1u << CLUSTER_BITS)
#define ENTRIES      (CLUSTER / 8)
#define DISK_SIZE    (UINT64_C(64) << 20)

/* ---- an image to damage ---- */

static void option(GHashTable *options, const char *name, const char *value)
{
    g_hash_table_insert(options, (char *)name, (char *)value);
}

static Store *create(GHashTable *options, uint64_t size)
{
    Store *store = store_memory_new("test", NULL, 0);
    g_autoptr(GError) error = NULL;
    FormatCreate how = {.size = size, .options = options};
    bool created = qcow2_create(store, &how, &error);
    ck_assert_msg(created, "%s", created ? "" : error->message);
    return store;
}

static uint64_t get_u64(Store *store, uint64_t offset)
{
    uint8_t bytes[8];
    ck_assert_int_eq(store_read(store, bytes, 8, offset), 0);
    return load_be64(bytes);
}

static void set_u64(Store *store, uint64_t offset, uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    ck_assert_int_eq(store_write(store, bytes, 8, offset), 0);
}

static uint64_t l1_offset(Store *store)
{
    return get_u64(store, 40);
}

static uint64_t block_offset(Store *store)
{
    return get_u64(store, get_u64(store, 48));
}

/* 16 bits wide, as all images of this file that are damaged. */
static void set_refcount(Store *store, uint64_t cluster, uint16_t value)
{
    uint8_t bytes[2];
    store_be16(bytes, value);
    ck_assert_int_eq(store_write(store, bytes, 2, block_offset(store) + cluster * 2), 0);
}

/* A new cluster at the end of the file, filled with fill, with a refcount of one; its offset. */
static uint64_t append(Store *store, uint8_t fill)
{
    uint8_t data[CLUSTER];
    memset(data, fill, sizeof data);
    uint64_t offset = align_up(store_size(store), CLUSTER);
    ck_assert_int_eq(store_write(store, data, sizeof data, offset), 0);
    set_refcount(store, offset >> CLUSTER_BITS, 1);
    return offset;
}

/* An L2 table for the first part of the disk; its offset. Data of guest cluster i, for i below
 * count, is filled with i + 1. */
static uint64_t fill_image(Store *store, unsigned count)
{
    uint64_t l2 = append(store, 0);
    set_u64(store, l1_offset(store), l2 | QCOW2_COPIED);
    for (unsigned i = 0; i < count; i++) {
        set_u64(store, l2 + i * 8, append(store, i + 1) | QCOW2_COPIED);
    }
    return l2;
}

static Store *image_to_damage(uint64_t *l2)
{
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    option(options, "cluster_size", "4k");
    Store *store = create(options, DISK_SIZE);
    *l2 = fill_image(store, 16);
    return store;
}

static Image *try_open(Store *store, bool write, GError **error)
{
    ImageOpen how = {.format = &format_qcow2, .write = write, .repair = true, .no_backing = true};
    return image_open_store(store, &how, NULL, error);
}

static Image *open_image(Store *store, bool write)
{
    g_autoptr(GError) error = NULL;
    Image *image = try_open(store, write, &error);
    ck_assert_msg(image != NULL, "%s", image ? "" : error->message);
    return image;
}

static CheckResult check_store(Store *store, CheckRepair repair)
{
    g_autoptr(Image) image = open_image(store, repair != CHECK_REPORT_ONLY);
    g_autoptr(GError) error = NULL;
    CheckResult result = {0};
    bool checked = qcow2_check(image, repair, &result, &error);
    ck_assert_msg(checked, "%s", checked ? "" : error->message);
    return result;
}

static void assert_clean(Store *store)
{
    CheckResult result = check_store(store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(result.leaks, 0);
    ck_assert_uint_eq(result.check_errors, 0);
    uint64_t size;
    const uint8_t *bytes = store_memory_content(store, &size);
    g_autofree char *wrong = qcow2_walk(bytes, size, false);
    ck_assert_msg(wrong == NULL, "%s", wrong);
}

/* What the guest reads at cluster i. */
static uint8_t guest_byte(Store *store, unsigned i)
{
    g_autoptr(Image) image = open_image(store, false);
    uint8_t byte = 0xee;
    ck_assert_int_eq(chain_read(image, &byte, 1, (uint64_t)i * CLUSTER), 0);
    return byte;
}

/* ---- tests ---- */

START_TEST(new_images_of_every_shape_are_clean)
{
    static const char *const clusters[] = {"512", "4k", "64k", "2M"};
    static const char *const bits[] = {"1", "2", "4", "8", "16", "32", "64"};
    static const uint64_t sizes[] = {0, 1, 1 << 20, UINT64_C(20) << 30};
    for (unsigned c = 0; c < G_N_ELEMENTS(clusters); c++) {
        for (unsigned b = 0; b < G_N_ELEMENTS(bits); b++) {
            g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
            option(options, "cluster_size", clusters[c]);
            option(options, "refcount_bits", bits[b]);
            g_autoptr(Store) store = create(options, sizes[(c + b) % G_N_ELEMENTS(sizes)]);
            assert_clean(store);
        }
    }
}
END_TEST

START_TEST(check_counts_what_is_allocated)
{
    uint64_t l2;
    g_autoptr(Store) store = image_to_damage(&l2);
    set_u64(store, l2 + 20 * 8, append(store, 9) | QCOW2_COPIED | QCOW2_ZERO);
    set_u64(store, l2 + 21 * 8, QCOW2_ZERO);
    uint64_t first = get_u64(store, l2), second = get_u64(store, l2 + 8);
    set_u64(store, l2, second);
    set_u64(store, l2 + 8, first);
    CheckResult result = check_store(store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.corruptions + result.leaks + result.check_errors, 0);
    ck_assert_uint_eq(result.total_clusters, DISK_SIZE / CLUSTER);
    ck_assert_uint_eq(result.allocated_clusters, 17);
    ck_assert_uint_eq(result.fragmented_clusters, 2); /* 1 0 | 2: two jumps */
    ck_assert_uint_eq(result.image_end_offset, store_size(store));
}
END_TEST

START_TEST(repair_of_leaks_changes_nothing_else)
{
    uint64_t l2;
    g_autoptr(Store) store = image_to_damage(&l2);
    uint64_t leaked = append(store, 0x77);
    set_u64(store, l2, get_u64(store, l2) & ~QCOW2_COPIED);
    CheckResult result = check_store(store, CHECK_REPAIR_LEAKS);
    ck_assert_uint_eq(result.leaks_fixed, 1);
    ck_assert_uint_eq(result.leaks, 0);
    ck_assert_uint_eq(result.corruptions, 1); /* COPIED is still missing */
    ck_assert_uint_eq(get_u64(store, l2) & QCOW2_COPIED, 0);
    ck_assert_uint_eq(get_u64(store, block_offset(store) + (leaked >> CLUSTER_BITS) * 2) >> 48, 0);
}
END_TEST

START_TEST(shared_cluster_is_copied_and_reads_the_same)
{
    uint64_t l2;
    g_autoptr(Store) store = image_to_damage(&l2);
    set_u64(store, l2 + 3 * 8, get_u64(store, l2 + 5 * 8));
    ck_assert_uint_gt(check_store(store, CHECK_REPORT_ONLY).corruptions, 0);
    CheckResult result = check_store(store, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_gt(result.corruptions_fixed, 0);
    assert_clean(store);
    ck_assert_uint_ne(get_u64(store, l2 + 3 * 8), get_u64(store, l2 + 5 * 8));
    ck_assert_uint_eq(guest_byte(store, 3), 6);
    ck_assert_uint_eq(guest_byte(store, 5), 6);
    ck_assert_uint_eq(guest_byte(store, 4), 5);
}
END_TEST

/* Entries in what an L1 entry wrongly calls a table are nobody's: guest data must not be "mended". */
START_TEST(guest_data_taken_for_a_table_is_left_alone)
{
    uint64_t l2;
    g_autoptr(Store) store = image_to_damage(&l2);
    uint64_t data = get_u64(store, l2 + 7 * 8) & QCOW2_OFFSET_MASK;
    uint8_t before[CLUSTER], after[CLUSTER];
    memset(before, 0xa5, sizeof before);
    ck_assert_int_eq(store_write(store, before, sizeof before, data), 0);
    set_u64(store, l1_offset(store) + 8, data | QCOW2_COPIED);
    check_store(store, CHECK_REPAIR_ALL);
    uint64_t now = get_u64(store, l2 + 7 * 8) & QCOW2_OFFSET_MASK;
    ck_assert_int_eq(store_read(store, after, sizeof after, now), 0);
    ck_assert_mem_eq(before, after, sizeof before);
}
END_TEST

START_TEST(entries_behind_the_end_read_as_zeroes_afterwards)
{
    uint64_t l2;
    g_autoptr(Store) store = image_to_damage(&l2);
    set_u64(store, l2 + 2 * 8, (store_size(store) + 100 * CLUSTER) | QCOW2_COPIED);
    set_u64(store, l2 + 4 * 8, UINT64_C(0x00fffffffffff000) | QCOW2_COPIED);
    set_u64(store, l2 + 6 * 8, QCOW2_COMPRESSED | UINT64_C(0x3fffffffffffffff));
    CheckResult result = check_store(store, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(result.corruptions, 0);
    assert_clean(store);
    for (unsigned i = 0; i < 8; i++) {
        ck_assert_uint_eq(guest_byte(store, i), i == 2 || i == 4 || i == 6 ? 0 : i + 1);
    }
}
END_TEST

START_TEST(refcounts_are_built_anew_when_their_table_is_gone)
{
    uint64_t l2;
    g_autoptr(Store) store = image_to_damage(&l2);
    set_u64(store, get_u64(store, 48), 0);
    CheckResult result = check_store(store, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(result.leaks, 0);
    assert_clean(store);
    for (unsigned i = 0; i < 16; i++) {
        ck_assert_uint_eq(guest_byte(store, i), i + 1);
    }
}
END_TEST

/* Everything at once. */
static void damage_much(Store *store, uint64_t l2)
{
    append(store, 0x77); /* leaked */
    append(store, 0x78);
    set_refcount(store, (get_u64(store, l2 + 1 * 8) & QCOW2_OFFSET_MASK) >> CLUSTER_BITS, 0);
    set_refcount(store, (get_u64(store, l2 + 2 * 8) & QCOW2_OFFSET_MASK) >> CLUSTER_BITS, 3);
    set_u64(store, l2 + 3 * 8, get_u64(store, l2 + 5 * 8));                       /* twice */
    set_u64(store, l2 + 4 * 8, get_u64(store, l2 + 4 * 8) & ~QCOW2_COPIED);       /* COPIED */
    set_u64(store, l2 + 6 * 8, (store_size(store) + CLUSTER * 9) | QCOW2_COPIED); /* behind */
    set_u64(store, l2 + 7 * 8, l1_offset(store) | QCOW2_COPIED);                  /* on metadata */
}

static bool guest_intact(Store *store)
{
    for (unsigned i = 0; i < 16; i++) {
        uint8_t want = i == 3 ? 6 : i == 6 ? 0 : i + 1;
        if (i != 7 && guest_byte(store, i) != want) {
            return false;
        }
    }
    return true;
}

static void repair_with_fault(const uint8_t *bytes, uint64_t size, FaultKind kind, uint64_t at,
                              bool forever, bool *failed)
{
    FaultPlan plan;
    fault_plan_init(&plan, kind, at, forever, -EIO);
    RecordOptions options = {.seed = at, .discard = true, .faults = &plan};
    g_autoptr(Store) store = store_record_new("test", bytes, size, &options);
    {
        g_autoptr(GError) error = NULL;
        g_autoptr(Image) image = try_open(store, true, &error);
        CheckResult result = {0};
        if (image) {
            qcow2_check(image, CHECK_REPAIR_ALL, &result, &error);
        }
        *failed = plan.fired > 0;
    }
    uint64_t now;
    const uint8_t *left = record_content(store, &now);
    g_autoptr(Store) before = store_memory_new("before", bytes, size);
    g_autoptr(Store) again = store_memory_new("again", left, now);
    ck_assert_uint_le(check_store(again, CHECK_REPORT_ONLY).corruptions,
                      check_store(before, CHECK_REPORT_ONLY).corruptions);
    check_store(again, CHECK_REPAIR_ALL);
    assert_clean(again);
    ck_assert_msg(guest_intact(again), "%s %u", fault_kind_name(kind), (unsigned)at);
    fault_plan_clear(&plan);
}

START_TEST(repair_that_was_cut_short_can_be_finished)
{
    static const FaultKind kinds[] = {FAULT_WRITE, FAULT_SYNC, FAULT_READ};
    uint64_t l2, size;
    g_autoptr(Store) store = image_to_damage(&l2);
    damage_much(store, l2);
    const uint8_t *content = store_memory_content(store, &size);
    g_autofree uint8_t *bytes = g_memdup2(content, size);
    for (unsigned k = 0; k < 2 * G_N_ELEMENTS(kinds); k++) {
        bool failed = true;
        unsigned at = 1;
        for (; failed && at < 1000; at++) {
            repair_with_fault(bytes, size, kinds[k / 2], at, k % 2, &failed);
        }
        ck_assert_uint_gt(at, 8);
        ck_assert_uint_lt(at, 1000);
    }
}
END_TEST

START_TEST(check_alone_writes_nothing)
{
    uint64_t l2, size, size_after;
    g_autoptr(Store) store = image_to_damage(&l2);
    damage_much(store, l2);
    const uint8_t *content = store_memory_content(store, &size);
    g_autofree uint8_t *bytes = g_memdup2(content, size);
    check_store(store, CHECK_REPORT_ONLY);
    content = store_memory_content(store, &size_after);
    ck_assert_uint_eq(size, size_after);
    ck_assert_mem_eq(bytes, content, size);
}
END_TEST

/* Of a compressed cluster that begins where the file ends nothing is left. Check called it sound, as the sectors of one
 * may end behind the file. */
START_TEST(compressed_cluster_behind_the_end_is_given_up)
{
    uint64_t l2;
    g_autoptr(Store) store = image_to_damage(&l2);
    set_u64(store, l2 + 20 * 8, QCOW2_COMPRESSED | store_size(store));
    ck_assert_uint_gt(check_store(store, CHECK_REPORT_ONLY).corruptions, 0);
    check_store(store, CHECK_REPAIR_ALL);
    assert_clean(store);
    ck_assert_uint_eq(guest_byte(store, 20), 0);
}
END_TEST

START_TEST(repair_of_an_image_open_for_reading_is_refused)
{
    uint64_t l2;
    g_autoptr(Store) store = image_to_damage(&l2);
    g_autoptr(Image) image = open_image(store, false);
    g_autoptr(GError) error = NULL;
    CheckResult result = {0};
    ck_assert(!qcow2_check(image, CHECK_REPAIR_ALL, &result, &error));
    ck_assert_int_eq(error->code, EACCES);
}
END_TEST

/* Four million L1 entries that name one table: the work is one table's. */
START_TEST(one_table_named_a_million_times_is_read_once)
{
    enum { COUNT = 1 << 20 };
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    option(options, "cluster_size", "4k");
    g_autoptr(Store) store = create(options, (uint64_t)COUNT * ENTRIES * CLUSTER);
    uint64_t l2 = align_up(store_size(store), CLUSTER), data = l2 + CLUSTER;
    ck_assert_int_eq(store_truncate(store, data + CLUSTER), 0);
    for (unsigned i = 0; i < ENTRIES; i++) {
        set_u64(store, l2 + i * 8, data | QCOW2_COPIED);
    }
    g_autofree uint8_t *l1 = g_malloc(COUNT * 8);
    for (unsigned i = 0; i < COUNT; i++) {
        store_be64(l1 + (uint64_t)i * 8, l2);
    }
    ck_assert_int_eq(store_write(store, l1, COUNT * 8, l1_offset(store)), 0);
    CheckResult result = check_store(store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(result.allocated_clusters, (uint64_t)COUNT * ENTRIES);
    ck_assert_uint_gt(result.corruptions, 0);
}
END_TEST

START_TEST(counts_hold_any_number)
{
    Counts counts;
    counts_init(&counts, 1 << 20);
    static const uint64_t numbers[] = {1, 65534, 65535, 65536, UINT64_MAX};
    for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++) {
        counts_set_wanted(&counts, i * 1000, numbers[i]);
        counts_set_found(&counts, i * 1000, numbers[i] - 1);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++) {
        ck_assert_uint_eq(counts_wanted(&counts, i * 1000), numbers[i]);
        ck_assert_uint_eq(counts_found(&counts, i * 1000), numbers[i] - 1);
        ck_assert_uint_eq(counts_wanted(&counts, i * 1000 + 1), 0);
    }
    counts_set_wanted(&counts, 3000, 5);
    ck_assert_uint_eq(counts_wanted(&counts, 3000), 5);
    counts_clear(&counts);
}
END_TEST

START_TEST(counts_stop_at_their_limit)
{
    Counts counts;
    counts_init(&counts, 64 << 10);
    for (uint64_t i = 0; i < 1000; i++) {
        counts_set_wanted(&counts, i << 40, 1);
    }
    ck_assert(counts.full);
    ck_assert_uint_le(counts.bytes, counts.limit);
    g_autoptr(GPtrArray) sorted = counts_sorted(&counts);
    ck_assert_uint_gt(sorted->len, 0);
    for (unsigned i = 1; i < sorted->len; i++) {
        const CountChunk *before = sorted->pdata[i - 1], *after = sorted->pdata[i];
        ck_assert_uint_lt(before->first, after->first);
    }
    counts_clear(&counts);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("tcase");
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, new_images_of_every_shape_are_clean);
    tcase_add_test(tcase, check_counts_what_is_allocated);
    tcase_add_test(tcase, repair_of_leaks_changes_nothing_else);
    tcase_add_test(tcase, shared_cluster_is_copied_and_reads_the_same);
    tcase_add_test(tcase, guest_data_taken_for_a_table_is_left_alone);
    tcase_add_test(tcase, entries_behind_the_end_read_as_zeroes_afterwards);
    tcase_add_test(tcase, refcounts_are_built_anew_when_their_table_is_gone);
    tcase_add_test(tcase, repair_that_was_cut_short_can_be_finished);
    tcase_add_test(tcase, check_alone_writes_nothing);
    tcase_add_test(tcase, compressed_cluster_behind_the_end_is_given_up);
    tcase_add_test(tcase, repair_of_an_image_open_for_reading_is_refused);
    tcase_add_test(tcase, one_table_named_a_million_times_is_read_once);
    tcase_add_test(tcase, counts_hold_any_number);
    tcase_add_test(tcase, counts_stop_at_their_limit);
    return suite_run("qcow2-check", tcase);
}
