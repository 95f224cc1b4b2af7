/* src/map/extent.c */

#include "map/extent.h"
#include "tests/unit/suite.h"

static Extent data(uint64_t offset, uint64_t length, uint64_t host)
{
    return (Extent){.offset = offset, .length = length, .host_offset = host, .type = EXTENT_DATA};
}

START_TEST(extent_list_merges_what_goes_on)
{
    ExtentList list;
    extent_list_init(&list);
    Extent a = data(0, 4096, 65536), b = data(4096, 4096, 65536 + 4096), c = data(8192, 4096, 0);
    extent_list_add(&list, &a);
    extent_list_add(&list, &b);
    extent_list_add(&list, &c);
    ck_assert_uint_eq(list.count, 2);
    ck_assert_uint_eq(list.items[0].length, 8192);
    ck_assert_uint_eq(extent_list_end(&list), 12288);
    extent_list_clear(&list);
}
END_TEST

START_TEST(extent_merge_keeps_flags)
{
    Extent a = data(0, 4096, 0), b = data(4096, 4096, 4096);
    ck_assert(extent_mergeable(&a, &b));
    b.flags = EXTENT_WRITABLE;
    ck_assert(!extent_mergeable(&a, &b));
    b = data(4096, 4096, 4096);
    b.depth = 1;
    ck_assert(!extent_mergeable(&a, &b));
}
END_TEST

START_TEST(extent_merge_never_joins_encoded_units)
{
    Extent a = {.offset = 0, .length = 4096, .host_offset = 0, .type = EXTENT_ENCODED};
    Extent b = {.offset = 4096, .length = 4096, .host_offset = 4096, .type = EXTENT_ENCODED};
    ck_assert(!extent_mergeable(&a, &b));
}
END_TEST

START_TEST(extent_list_grows_beyond_its_room)
{
    ExtentList list;
    extent_list_init(&list);
    for (uint64_t i = 0; i < 100; i++) {
        Extent e = data(i * 512, 512, (200 - i) * 512);
        extent_list_add(&list, &e);
    }
    ck_assert_uint_eq(list.count, 100);
    for (unsigned i = 0; i < 100; i++) {
        ck_assert_uint_eq(list.items[i].offset, i * 512ull);
        ck_assert_uint_eq(list.items[i].host_offset, (200 - i) * 512ull);
    }
    extent_list_clear(&list);
}
END_TEST

START_TEST(extent_clip_moves_the_host_offset_along)
{
    Extent e = data(4096, 8192, 65536);
    ck_assert(extent_clip(&e, 5000, 100));
    ck_assert_uint_eq(e.offset, 5000);
    ck_assert_uint_eq(e.length, 100);
    ck_assert_uint_eq(e.host_offset, 65536 + 904);
    ck_assert(!extent_clip(&e, 5100, 10));
    Extent unit = {.offset = 0, .length = 65536, .type = EXTENT_ENCODED, .host_offset = 77};
    ck_assert(extent_clip(&unit, 512, 512));
    ck_assert_uint_eq(unit.unit_offset, 512);
    ck_assert_uint_eq(unit.host_offset, 77);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("extent");
    tcase_add_test(tcase, extent_list_merges_what_goes_on);
    tcase_add_test(tcase, extent_merge_keeps_flags);
    tcase_add_test(tcase, extent_merge_never_joins_encoded_units);
    tcase_add_test(tcase, extent_list_grows_beyond_its_room);
    tcase_add_test(tcase, extent_clip_moves_the_host_offset_along);
    return suite_run("extent", tcase);
}
