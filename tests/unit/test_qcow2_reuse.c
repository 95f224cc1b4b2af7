/*
 * formats/qcow2-alloc.c, -write.c, space.c: space that is used again, on hosts that cannot grow or punch.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "formats/space.h"
#include "map/image.h"
#include "tests/lib/store-record.h"
#include "tests/unit/suite.h"

#define CLUSTER UINT64_C(65536)

static Store *create(uint64_t size, uint64_t capacity)
{
    RecordOptions options = {.capacity = capacity, .no_punch = true, .discard = true};
    Store *store = store_record_new("image", NULL, 0, &options);
    FormatCreate how = {.size = size};
    ck_assert(format_qcow2.create(store, &how, NULL));
    return store;
}

static Image *open_image(Store *store)
{
    GError *error = NULL;
    ImageOpen how = {.format = &format_qcow2, .write = true};
    Image *image = image_open_store(store, &how, NULL, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    return image;
}

/* Writes a range as the engine does; *host (may be NULL) says where its last cluster went. */
static int write_range(Image *image, uint64_t offset, uint64_t length, uint8_t value,
                       uint64_t *host)
{
    g_autofree uint8_t *data = g_malloc(length);
    memset(data, value, length);
    Allocation a = {.offset = offset, .length = length}, *list[] = {&a};
    extent_list_init(&a.extents);
    int r = format_qcow2.allocate(image, list, 1);
    for (unsigned i = 0; r == 0 && i < a.extents.count; i++) {
        const Extent *e = &a.extents.items[i];
        r = store_write(e->store, data, e->length, e->host_offset);
        if (host != NULL) {
            *host = e->host_offset + align_down(e->length - 1, CLUSTER);
        }
    }
    if (r == 0) {
        r = format_qcow2.commit(image, list, 1);
    } else {
        format_qcow2.abandon(image, list, 1);
    }
    extent_list_clear(&a.extents);
    return r;
}

static void flush_all(Image *image)
{
    for (unsigned i = 0; i < 4 && format_qcow2.is_dirty(image); i++) {
        ck_assert_int_eq(format_qcow2.flush(image), 0);
    }
    ck_assert(!format_qcow2.is_dirty(image));
}

/* The last cluster's space behind the end of the disk kept what was there before: it would show
 * when the disk grows. */
START_TEST(nothing_old_lies_behind_the_end_of_the_disk)
{
    uint64_t size = 4 * CLUSTER + 512, host = 0, end;
    g_autoptr(Store) store = create(size, 0);
    g_autoptr(Image) image = open_image(store);
    ck_assert_int_eq(write_range(image, 0, CLUSTER, 0x11, NULL), 0);
    ck_assert_int_eq(format_qcow2.unmap(image, 0, CLUSTER, 0), 0);
    flush_all(image);
    ck_assert_int_eq(write_range(image, 4 * CLUSTER, 512, 0x22, &host), 0);
    flush_all(image);
    const uint8_t *bytes = record_content(store, &end);
    ck_assert_uint_le(host + CLUSTER, end);
    ck_assert_uint_eq(bytes[host + 511], 0x22);
    for (uint64_t i = 512; i < CLUSTER; i++) {
        ck_assert_uint_eq(bytes[host + i], 0);
    }
}
END_TEST

/* On a full device a guest that trims and then writes was told that there is no space, until it had
 * flushed twice. */
START_TEST(space_that_waits_for_a_flush_is_no_reason_for_enospc)
{
    g_autoptr(Store) store = create(64 * CLUSTER, 32 * CLUSTER);
    g_autoptr(Image) image = open_image(store);
    uint64_t n = 0;
    while (write_range(image, n * CLUSTER, CLUSTER, 0x11, NULL) == 0) {
        n++;
    }
    ck_assert_uint_ge(n, 16);
    flush_all(image);
    ck_assert_int_eq(write_range(image, n * CLUSTER, CLUSTER, 0x22, NULL), -ENOSPC);
    ck_assert_int_eq(format_qcow2.unmap(image, 0, 8 * CLUSTER, 0), 0);
    ck_assert_int_eq(write_range(image, n * CLUSTER, 8 * CLUSTER, 0x22, NULL), 0);
    ck_assert_int_eq(write_range(image, 0, CLUSTER, 0x33, NULL), -ENOSPC);
    ck_assert_int_eq(image_finish(image), 0);
}
END_TEST

/* Whenever one write to a host without space fails, be it in a flush that a full cache asks for,
 * the client's writes go on as soon as there is space again; they used to be refused until the
 * client flushed. */
START_TEST(changes_go_on_when_there_is_space_again)
{
    uint64_t writes = 1;
    for (uint64_t at = 1; at <= writes; at++) {
        FaultPlan plan;
        fault_plan_init(&plan, FAULT_WRITE, 0, false, -ENOSPC);
        RecordOptions options = {.discard = true, .faults = &plan};
        g_autoptr(Store) store = store_record_new("image", NULL, 0, &options);
        g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
        g_hash_table_insert(names, (char *)"cluster_size", (char *)"512");
        FormatCreate how = {.size = 64 << 20, .options = names};
        ck_assert(format_qcow2.create(store, &how, NULL));
        ImageOpen open = {.format = &format_qcow2, .write = true, .metadata_cache = 4096};
        g_autoptr(Image) image = image_open_store(store, &open, NULL, NULL);
        uint64_t first = plan.counts[FAULT_WRITE];
        plan.at = first + at;
        unsigned failed = 0;
        for (unsigned i = 0; i < 24; i++) {
            failed += write_range(image, (uint64_t)i << 20, 512, i + 1, NULL) < 0;
        }
        writes = plan.counts[FAULT_WRITE] - first;
        ck_assert_msg(failed <= 1, "host write %u failed, and then %u writes", (unsigned)at,
                      failed);
        ck_assert_int_eq(image_finish(image), 0);
        fault_plan_clear(&plan);
    }
}
END_TEST

START_TEST(a_full_disk_has_room_for_zeroes)
{
    uint8_t content[4096];
    memset(content, 'x', sizeof(content));
    FaultPlan plan;
    fault_plan_init(&plan, FAULT_PUNCH, 1, false, -ENOSPC);
    RecordOptions options = {.faults = &plan, .discard = true};
    g_autoptr(Store) store = store_record_new("image", content, sizeof(content), &options);
    ck_assert_int_eq(space_make_fresh(store, 512, 1024, UINT64_MAX), 0);
    ck_assert_uint_eq(plan.counts[FAULT_PUNCH], 2);
    ck_assert_int_eq(store_read(store, content, sizeof(content), 0), 0);
    for (unsigned i = 0; i < sizeof(content); i++) {
        ck_assert_int_eq(content[i], i >= 512 && i < 1536 ? 0 : 'x');
    }
    fault_plan_clear(&plan);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("qcow2_reuse");
    tcase_add_test(tcase, nothing_old_lies_behind_the_end_of_the_disk);
    tcase_add_test(tcase, space_that_waits_for_a_flush_is_no_reason_for_enospc);
    tcase_add_test(tcase, changes_go_on_when_there_is_space_again);
    tcase_add_test(tcase, a_full_disk_has_room_for_zeroes);
    tcase_set_timeout(tcase, 60);
    return suite_run("qcow2_reuse", tcase);
}
