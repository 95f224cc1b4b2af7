/* src/engine/unitcache.c */
#include <glib.h>
#include <string.h>

#include "engine/unitcache.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define UNIT 4096u

static void add(UnitCache *cache, const Extent *extent, uint8_t value)
{
    uint8_t *unit = g_malloc(extent->unit_length);
    memset(unit, value, extent->unit_length);
    unitcache_add(cache, extent, unit);
}

static Extent unit_at(Store *store, uint64_t host_offset)
{
    return (Extent){.type = EXTENT_ENCODED,
                    .store = store,
                    .host_offset = host_offset,
                    .length = 512,
                    .unit_offset = 1024,
                    .unit_length = UNIT};
}

/* A vmdk image has a store for each of its files: a unit of one file was given out as that of
 * another that lies at the same offset, and where that one was longer, what lies behind it in
 * memory, too. */
START_TEST(unitcache_tells_the_stores_and_units_of_an_image_apart)
{
    UnitCache *cache = unitcache_new(16 * UNIT);
    g_autoptr(Store) one = store_memory_new("one", NULL, UNIT);
    g_autoptr(Store) two = store_memory_new("two", NULL, UNIT);
    Extent first = unit_at(one, 512), second = unit_at(two, 512), longer = first;
    longer.unit_length = 16 * UNIT;
    longer.unit_offset = 15 * UNIT;
    uint8_t out[512];
    add(cache, &first, 0x11);
    ck_assert(unitcache_copy(cache, &first, out));
    ck_assert_uint_eq(out[0], 0x11);
    ck_assert(!unitcache_copy(cache, &second, out));
    ck_assert(!unitcache_copy(cache, &longer, out));
    add(cache, &second, 0x22);
    ck_assert(unitcache_copy(cache, &second, out));
    ck_assert_uint_eq(out[511], 0x22);
    ck_assert(unitcache_copy(cache, &first, out));
    ck_assert_uint_eq(out[511], 0x11);
    unitcache_free(cache);
}
END_TEST

START_TEST(unitcache_forgets_the_least_recently_used)
{
    UnitCache *cache = unitcache_new(2 * UNIT);
    g_autoptr(Store) store = store_memory_new("store", NULL, UNIT);
    Extent a = unit_at(store, 512), b = unit_at(store, 1024), c = unit_at(store, 1536);
    uint8_t out[512];
    add(cache, &a, 1);
    add(cache, &b, 2);
    ck_assert(unitcache_copy(cache, &a, out));
    add(cache, &c, 3);
    ck_assert(unitcache_copy(cache, &a, out));
    ck_assert(!unitcache_copy(cache, &b, out));
    ck_assert(unitcache_copy(cache, &c, out));
    unitcache_clear(cache);
    ck_assert(!unitcache_copy(cache, &a, out));
    unitcache_free(cache);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("unitcache");
    tcase_add_test(tcase, unitcache_tells_the_stores_and_units_of_an_image_apart);
    tcase_add_test(tcase, unitcache_forgets_the_least_recently_used);
    return suite_run("unitcache", tcase);
}
