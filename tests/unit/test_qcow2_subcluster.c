/*
 * formats/qcow2-subcluster.c, and what the rest of the format makes of parts of clusters.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "map/image.h"
#include "tests/lib/qcow2-walk.h"
#include "tests/lib/random.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define CLUSTER   UINT64_C(32768)
#define PART      (CLUSTER / 32)
#define CLUSTERS  6
#define DISK_SIZE (CLUSTERS * CLUSTER - 3 * PART - 512) /* the end cuts a part */

typedef struct Rig {
    Store *store;
    Image *image;
} Rig;

static void rig_open(Rig *rig, bool write)
{
    GError *error = NULL;
    ImageOpen how = {.format = &format_qcow2, .write = write, .repair = write};
    rig->image = image_open_store(rig->store, &how, NULL, &error);
    ck_assert_msg(rig->image != NULL, "%s", error ? error->message : "");
}

static void rig_start(Rig *rig)
{
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(options, (char *)"cluster_size", (char *)"32k");
    g_hash_table_insert(options, (char *)"extended_l2", (char *)"on");
    FormatCreate how = {.size = DISK_SIZE, .options = options};
    rig->store = store_memory_new("image", NULL, 0);
    ck_assert(format_qcow2.create(rig->store, &how, NULL));
    rig_open(rig, true);
    ck_assert_uint_eq(rig->image->allocation_unit, PART);
    ck_assert_uint_eq(rig->image->largest_unit, CLUSTER);
}

/* Nothing leaks, nothing is impossible. */
static void rig_end(Rig *rig)
{
    uint64_t size;
    ck_assert_int_eq(image_finish(rig->image), 0);
    const uint8_t *bytes = store_memory_content(rig->store, &size);
    g_autofree char *problem = qcow2_walk(bytes, size, false);
    ck_assert_msg(problem == NULL, "%s", problem);
    image_unref(rig->image);
    store_unref(rig->store);
}

static int reserve(Rig *rig, Allocation *a, uint64_t offset, uint64_t length)
{
    *a = (Allocation){.offset = offset, .length = length};
    Allocation *list[] = {a};
    extent_list_init(&a->extents);
    return format_qcow2.allocate(rig->image, list, 1);
}

static void settle(Rig *rig, Allocation *a, int value)
{
    Allocation *list[] = {a};
    for (unsigned i = 0; value >= 0 && i < a->extents.count; i++) {
        const Extent *e = &a->extents.items[i];
        g_autofree uint8_t *data = g_malloc(e->length);
        memset(data, value, e->length);
        ck_assert_int_eq(store_write(e->store, data, e->length, e->host_offset), 0);
    }
    if (value >= 0) {
        ck_assert_int_eq(format_qcow2.commit(rig->image, list, 1), 0);
    } else {
        format_qcow2.abandon(rig->image, list, 1);
    }
    extent_list_clear(&a->extents);
}

static void write_new(Rig *rig, uint64_t offset, uint64_t length, uint8_t value)
{
    Allocation a;
    ck_assert_int_eq(reserve(rig, &a, offset, length), 0);
    settle(rig, &a, value);
}

static Extent map_at(Rig *rig, uint64_t offset)
{
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(image_map(rig->image, offset, rig->image->size - offset, &list), 0);
    Extent first = list.items[0];
    extent_list_clear(&list);
    return first;
}

static void expect(Rig *rig, uint64_t offset, ExtentType type, uint64_t length)
{
    Extent e = map_at(rig, offset);
    ck_assert_int_eq(e.type, type);
    ck_assert_uint_eq(e.length, length);
}

START_TEST(subcluster_small_write_allocates_its_part_alone)
{
    Rig rig;
    rig_start(&rig);
    write_new(&rig, CLUSTER + 5 * PART, 2 * PART, 7);
    expect(&rig, 0, EXTENT_UNALLOCATED, CLUSTER + 5 * PART);
    expect(&rig, CLUSTER + 5 * PART, EXTENT_DATA, 2 * PART);
    ck_assert(map_at(&rig, CLUSTER + 5 * PART).flags & EXTENT_WRITABLE);
    expect(&rig, CLUSTER + 7 * PART, EXTENT_UNALLOCATED, DISK_SIZE - CLUSTER - 7 * PART);
    rig_end(&rig);
}
END_TEST

START_TEST(subcluster_two_writers_choose_one_place)
{
    Rig rig;
    Allocation a, b;
    rig_start(&rig);
    bool keep_first = _i & 1, keep_second = _i & 2;
    ck_assert_int_eq(reserve(&rig, &a, PART, PART), 0);
    ck_assert_int_eq(reserve(&rig, &b, 4 * PART, PART), 0);
    ck_assert_uint_eq(b.extents.items[0].host_offset, a.extents.items[0].host_offset + 3 * PART);
    settle(&rig, &a, keep_first ? 1 : -1);
    settle(&rig, &b, keep_second ? 2 : -1);
    ck_assert_int_eq(map_at(&rig, PART).type, keep_first ? EXTENT_DATA : EXTENT_UNALLOCATED);
    ck_assert_int_eq(map_at(&rig, 4 * PART).type, keep_second ? EXTENT_DATA : EXTENT_UNALLOCATED);
    rig_end(&rig);
}
END_TEST

START_TEST(subcluster_place_stays_while_it_is_written_to)
{
    Rig rig;
    Allocation a;
    rig_start(&rig);
    write_new(&rig, 0, PART, 1);
    ck_assert_int_eq(reserve(&rig, &a, 2 * PART, PART), 0);
    ck_assert_int_eq(format_qcow2.unmap(rig.image, 0, PART, 0), 0); /* the only one that is there */
    ck_assert_int_eq(format_qcow2.flush(rig.image), 0);
    ck_assert_int_eq(format_qcow2.flush(rig.image), 0);
    settle(&rig, &a, _i ? 2 : -1);
    ck_assert_int_eq(map_at(&rig, 2 * PART).type, _i ? EXTENT_DATA : EXTENT_UNALLOCATED);
    rig_end(&rig);
}
END_TEST

START_TEST(subcluster_cluster_goes_with_its_last_part)
{
    Rig rig;
    rig_start(&rig);
    write_new(&rig, 0, CLUSTER, 1);
    uint64_t host = map_at(&rig, 0).host_offset;
    for (unsigned i = 0; i < 32; i++) {
        ck_assert_int_eq(format_qcow2.unmap(rig.image, (i * 5 % 32) * PART, PART, 0), 0);
    }
    ck_assert_int_eq(format_qcow2.flush(rig.image), 0);
    ck_assert_int_eq(format_qcow2.flush(rig.image), 0);
    ck_assert_int_eq(format_qcow2.flush(rig.image), 0);
    write_new(&rig, CLUSTER, PART, 2);
    ck_assert_uint_eq(map_at(&rig, CLUSTER).host_offset, host);
    rig_end(&rig);
}
END_TEST

START_TEST(subcluster_shared_cluster_is_one_unit)
{
    Rig rig;
    Allocation a;
    uint64_t unit;
    rig_start(&rig);
    write_new(&rig, 0, 4 * PART, 1);
    ck_assert_int_eq(format_qcow2.unit_at(rig.image, PART, &unit), 0);
    ck_assert_uint_eq(unit, PART);
    ck_assert_int_eq(image_finish(rig.image), 0);
    ck_assert(format_qcow2.snapshot_create(rig.image, "s", NULL));
    ck_assert_int_eq(format_qcow2.unit_at(rig.image, PART, &unit), 0);
    ck_assert_uint_eq(unit, CLUSTER);
    ck_assert_int_eq(reserve(&rig, &a, PART, PART), -EINVAL);
    write_new(&rig, 0, CLUSTER, 2);
    /* Dropped, the shared parts leave the rest divisible. */
    ck_assert(format_qcow2.snapshot_apply(rig.image, "s", NULL));
    ck_assert_int_eq(format_qcow2.unmap(rig.image, 0, 4 * PART, UNMAP_ZERO), 0);
    ck_assert_int_eq(format_qcow2.unit_at(rig.image, PART, &unit), 0);
    ck_assert_uint_eq(unit, PART);
    write_new(&rig, 3 * PART, PART, 3);
    expect(&rig, 3 * PART, EXTENT_DATA, PART);
    rig_end(&rig);
}
END_TEST

/* Every state of a part against every change of it, in one cluster. */
START_TEST(subcluster_random_changes)
{
    Rig rig;
    Random random = random_new(_i);
    g_autofree uint8_t *model = g_malloc0(DISK_SIZE), *got = g_malloc(DISK_SIZE);
    rig_start(&rig);
    for (unsigned step = 0; step < 400; step++) {
        uint64_t first = random_below(&random, CLUSTERS * 32 - 4) * PART;
        uint64_t length = min_u64(1 + random_below(&random, 40), 40) * PART;
        length = min_u64(length, DISK_SIZE - first);
        uint64_t dice = random_below(&random, 10);
        uint8_t value = 1 + random_below(&random, 250);
        if (dice < 5) {
            Extent e = map_at(&rig, first);
            length = min_u64(length, e.length);
            if (e.flags & EXTENT_WRITABLE) {
                continue;
            }
            write_new(&rig, first, length, value);
            memset(model + first, value, length);
        } else if (dice < 9) {
            UnmapFlags flags = random_below(&random, 4);
            ck_assert_int_eq(format_qcow2.unmap(rig.image, first, length, flags), 0);
            memset(model + first, 0, length);
        } else {
            ck_assert_int_eq(image_finish(rig.image), 0);
            image_unref(rig.image);
            rig_open(&rig, true);
        }
        if (step % 8 == 0) {
            ck_assert_int_eq(chain_read(rig.image, got, DISK_SIZE, 0), 0);
            ck_assert_mem_eq(got, model, DISK_SIZE);
        }
    }
    rig_end(&rig);
}
END_TEST

/* ---- entries that cannot be ---- */

static const struct {
    uint64_t set, clear, bitmap;
    unsigned corruptions;
} damages[] = {
    {0, 0, UINT64_C(1) << 37 | 1 << 5, 1},                  /* allocated and zero */
    {0, UINT64_MAX, 1, 1},                                  /* allocated nowhere */
    {1, 0, 1, 1},                                           /* the zero flag of plain entries */
    {UINT64_C(1) << 57, 0, 1, 1},                           /* another reserved bit */
    {512, 0, 1, 1},                                         /* the middle of a cluster */
    {UINT64_C(1) << 62, UINT64_C(1) << 63, UINT64_C(1), 1}, /* compressed, with parts */
};

static uint64_t load(Store *store, uint64_t offset)
{
    uint8_t bytes[8];
    ck_assert_int_eq(store_read(store, bytes, 8, offset), 0);
    return load_be64(bytes);
}

START_TEST(subcluster_impossible_entries)
{
    Rig rig;
    rig_start(&rig);
    write_new(&rig, 0, PART, 1);
    ck_assert_int_eq(image_finish(rig.image), 0);
    image_unref(rig.image);
    uint64_t l2 = load(rig.store, load(rig.store, 40)) & UINT64_C(0xfffffffffffe00);
    uint8_t entry[16];
    store_be64(entry, (load(rig.store, l2) & ~damages[_i].clear) | damages[_i].set);
    store_be64(entry + 8, damages[_i].bitmap);
    ck_assert_int_eq(store_write(rig.store, entry, 16, l2), 0);
    ExtentList list;
    extent_list_init(&list);
    rig_open(&rig, true);
    ck_assert_int_eq(image_map(rig.image, 0, PART, &list), -EIO);
    extent_list_clear(&list);
    CheckResult result = {0};
    ck_assert(format_qcow2.check(rig.image, CHECK_REPORT_ONLY, &result, NULL));
    ck_assert_uint_ge(result.corruptions, damages[_i].corruptions);
    ck_assert(format_qcow2.check(rig.image, CHECK_REPAIR_ALL, &result, NULL));
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert(
        format_qcow2.check(rig.image, CHECK_REPAIR_ALL, &result, NULL)); /* leaks of lost ones */
    ck_assert_uint_eq(result.corruptions + result.leaks, 0);
    ck_assert_int_eq(format_qcow2.unmap(rig.image, 0, CLUSTER, 0), 0);
    rig_end(&rig);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("subclusters");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, subcluster_small_write_allocates_its_part_alone);
    tcase_add_loop_test(tcase, subcluster_two_writers_choose_one_place, 0, 4);
    tcase_add_loop_test(tcase, subcluster_place_stays_while_it_is_written_to, 0, 2);
    tcase_add_test(tcase, subcluster_cluster_goes_with_its_last_part);
    tcase_add_test(tcase, subcluster_shared_cluster_is_one_unit);
    tcase_add_loop_test(tcase, subcluster_random_changes, 0, 20);
    tcase_add_loop_test(tcase, subcluster_impossible_entries, 0, G_N_ELEMENTS(damages));
    return suite_run("qcow2_subcluster", tcase);
}
