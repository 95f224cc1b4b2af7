/* src/map/mapcache.c: random inserts and erases against an array with one entry a block. */
#include <glib.h>

#include "map/mapcache.h"
#include "tests/unit/suite.h"

#define BLOCK  512
#define BLOCKS 4096

/* model[i]: -1 unknown, 0 zero, else host block + 1 */
static int64_t model[BLOCKS];

static int64_t cached(const MapCache *cache, unsigned block)
{
    ExtentList list;
    extent_list_init(&list);
    int64_t value = -1;
    if (mapcache_lookup(cache, block * BLOCK, BLOCK, 0, &list)) {
        const Extent *e = &list.items[0];
        value = e->type == EXTENT_ZERO ? 0 : (int64_t)(e->host_offset / BLOCK) + 1;
    }
    extent_list_clear(&list);
    return value;
}

static void random_step(GRand *random, MapCache *cache)
{
    unsigned block = g_rand_int_range(random, 0, BLOCKS);
    unsigned count = g_rand_int_range(random, 1, MIN(BLOCKS - block, 40) + 1);
    int kind = g_rand_int_range(random, 0, 8);
    unsigned host = g_rand_boolean(random) ? block : (unsigned)g_rand_int_range(random, 0, 1 << 20);
    if (kind == 0) {
        mapcache_erase(cache, block * BLOCK, count * BLOCK);
    } else {
        Extent e = {.offset = block * BLOCK, .length = count * BLOCK};
        e.type = kind == 1 ? EXTENT_ZERO : EXTENT_DATA;
        e.host_offset = kind == 1 ? 0 : (uint64_t)host * BLOCK;
        mapcache_insert(cache, &e);
    }
    for (unsigned i = 0; i < count; i++) {
        model[block + i] = kind == 0 ? -1 : kind == 1 ? 0 : (int64_t)host + i + 1;
    }
}

START_TEST(mapcache_says_what_a_plain_array_says)
{
    GRand *random = g_rand_new_with_seed(7 + _i);
    MapCache *cache = mapcache_new(1 << 20);
    for (unsigned i = 0; i < BLOCKS; i++) {
        model[i] = -1;
    }
    for (unsigned step = 0; step < 3000; step++) {
        random_step(random, cache);
        if (step % 500 == 499) {
            for (unsigned i = 0; i < BLOCKS; i++) {
                ck_assert_int_eq(cached(cache, i), model[i]);
            }
        }
    }
    mapcache_erase(cache, 0, BLOCKS * BLOCK);
    ck_assert_uint_eq(mapcache_count(cache), 0);
    mapcache_free(cache);
    g_rand_free(random);
}
END_TEST

START_TEST(mapcache_merges_neighbours)
{
    MapCache *cache = mapcache_new(1000);
    for (unsigned i = 0; i < 1000; i += 2) {
        Extent e = {
            .offset = i * 512ull, .length = 512, .host_offset = i * 512ull, .type = EXTENT_DATA};
        mapcache_insert(cache, &e);
    }
    ck_assert_uint_eq(mapcache_count(cache), 500);
    for (unsigned i = 1; i < 1000; i += 2) {
        Extent e = {
            .offset = i * 512ull, .length = 512, .host_offset = i * 512ull, .type = EXTENT_DATA};
        mapcache_insert(cache, &e);
    }
    ck_assert_uint_eq(mapcache_count(cache), 1);
    mapcache_free(cache);
}
END_TEST

START_TEST(mapcache_stays_within_its_limit)
{
    MapCache *cache = mapcache_new(1000);
    for (unsigned i = 0; i < 100000; i++) {
        Extent e = {.offset = i * 1024ull, .length = 512, .type = EXTENT_DATA};
        mapcache_insert(cache, &e);
        ck_assert_uint_le(mapcache_count(cache), 2200);
        ck_assert_int_eq(cached(cache, i * 2), 1);
    }
    mapcache_free(cache);
}
END_TEST

START_TEST(mapcache_lookup_stops_at_a_gap_and_at_the_limit)
{
    MapCache *cache = mapcache_new(1000);
    for (unsigned i = 0; i < 10; i++) {
        Extent e = {.offset = i * 512, .length = 512, .type = EXTENT_DATA, .host_offset = i * 4096};
        if (i != 5) {
            mapcache_insert(cache, &e);
        }
    }
    ExtentList list;
    extent_list_init(&list);
    ck_assert(!mapcache_lookup(cache, 0, 5120, 0, &list));
    ck_assert_uint_eq(extent_list_end(&list), 5 * 512);
    extent_list_reset(&list);
    ck_assert(!mapcache_lookup(cache, 100, 2000, 2, &list));
    ck_assert_uint_eq(list.count, 2);
    ck_assert_uint_eq(list.items[0].offset, 100);
    ck_assert_uint_eq(list.items[0].host_offset, 100);
    extent_list_clear(&list);
    mapcache_free(cache);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("mapcache");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, mapcache_says_what_a_plain_array_says, 0, 10);
    tcase_add_test(tcase, mapcache_merges_neighbours);
    tcase_add_test(tcase, mapcache_stays_within_its_limit);
    tcase_add_test(tcase, mapcache_lookup_stops_at_a_gap_and_at_the_limit);
    return suite_run("mapcache", tcase);
}
