/*
 * base/dirtymap.c: against a plain array of bits, in its serial form and back, from several threads.
 */
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"
#include "base/dirtymap.h"
#include "tests/lib/random.h"
#include "tests/unit/suite.h"

#define GRANULES 100000u /* more than three chunks */
#define BITS     9
#define SIZE     ((uint64_t)GRANULES * 512 - 100) /* the last granule is cut */

static void mark_model(uint8_t *model, uint64_t offset, uint64_t length)
{
    for (uint64_t i = offset >> BITS; i <= (offset + length - 1) >> BITS; i++) {
        model[i] = 1;
    }
}

static void assert_same(const DirtyMap *map, const uint8_t *model)
{
    for (uint64_t at = 0, run; at < SIZE; at += run) {
        bool marked = dirtymap_get(map, at, SIZE - at, &run);
        ck_assert_uint_gt(run, 0);
        for (uint64_t i = at >> BITS; i <= (at + run - 1) >> BITS; i++) {
            ck_assert_int_eq(model[i], marked);
        }
    }
}

static void random_range(Random *random, uint64_t *offset, uint64_t *length)
{
    *offset = random_below(random, SIZE);
    uint64_t most = random_percent(random, 10) ? 40000u * 512 : 3000;
    *length = 1 + random_below(random, min_u64(most, SIZE - *offset));
}

START_TEST(marks_are_what_was_marked)
{
    static uint8_t model[GRANULES];
    Random random = random_new(1);
    DirtyMap *map = dirtymap_new(SIZE, BITS);
    for (unsigned i = 0; i < 200; i++) {
        uint64_t offset, length;
        random_range(&random, &offset, &length);
        dirtymap_mark(map, offset, length);
        mark_model(model, offset, length);
        if (i % 20 == 0) {
            assert_same(map, model);
        }
    }
    assert_same(map, model);
    dirtymap_clear(map);
    memset(model, 0, sizeof model);
    assert_same(map, model);
    dirtymap_free(map);
}
END_TEST

/* In pieces of every size that a cluster may have, from the least. */
START_TEST(serial_form_comes_back)
{
    static uint8_t model[GRANULES];
    Random random = random_new(2);
    uint64_t serial = align_up(dirtymap_serial_size(SIZE, BITS), 65536);
    g_autofree uint8_t *bytes = g_malloc(serial);
    for (uint64_t piece = 512; piece <= 65536; piece *= 2) {
        DirtyMap *map = dirtymap_new(SIZE, BITS), *back = dirtymap_new(SIZE, BITS);
        memset(model, 0, sizeof model);
        for (unsigned i = 0; i < 30; i++) {
            uint64_t offset, length;
            random_range(&random, &offset, &length);
            dirtymap_mark(map, offset, length);
            mark_model(model, offset, length);
        }
        for (uint64_t at = 0; at < serial; at += piece) {
            DirtyMapFill fill = dirtymap_save(map, at, piece, bytes);
            if (fill != DIRTYMAP_NONE) {
                dirtymap_load(back, at, piece, fill == DIRTYMAP_ALL ? NULL : bytes);
            }
        }
        assert_same(back, model);
        dirtymap_free(map);
        dirtymap_free(back);
    }
}
END_TEST

START_TEST(bits_lie_as_the_format_says)
{
    uint8_t bytes[512];
    DirtyMap *map = dirtymap_new(SIZE, BITS);
    dirtymap_mark(map, 0, 1);
    dirtymap_mark(map, 9 * 512 + 511, 2); /* granules 9 and 10 */
    ck_assert_int_eq(dirtymap_save(map, 0, sizeof bytes, bytes), DIRTYMAP_SOME);
    ck_assert_int_eq(bytes[0], 1);
    ck_assert_int_eq(bytes[1], 6);
    ck_assert_int_eq(dirtymap_save(map, 512, sizeof bytes, bytes), DIRTYMAP_NONE);
    dirtymap_mark(map, 0, SIZE);
    ck_assert_int_eq(dirtymap_save(map, 0, sizeof bytes, bytes), DIRTYMAP_ALL);
    uint64_t last = align_down(dirtymap_serial_size(SIZE, BITS), 512);
    ck_assert_int_eq(dirtymap_save(map, last, sizeof bytes, bytes), DIRTYMAP_SOME);
    dirtymap_free(map);
}
END_TEST

START_TEST(all_ones_end_with_the_disk)
{
    uint64_t run;
    uint8_t bytes[512];
    DirtyMap *map = dirtymap_new(SIZE, BITS);
    dirtymap_load(map, 0, 65536, NULL);
    ck_assert(dirtymap_get(map, 0, SIZE, &run));
    ck_assert_uint_eq(run, SIZE);
    dirtymap_mark(map, 5, 70000); /* what is all ones stays so */
    uint64_t last = align_down(dirtymap_serial_size(SIZE, BITS), 512);
    dirtymap_save(map, last, sizeof bytes, bytes);
    ck_assert_int_eq(bytes[(GRANULES / 8 - last) - 1], 0xff);
    ck_assert_int_eq(bytes[GRANULES / 8 - last], 0);
    dirtymap_free(map);
}
END_TEST

static void *mark_every_third(void *argument)
{
    DirtyMap *map = *(DirtyMap **)argument;
    static atomic_uint next;
    for (uint64_t i = atomic_fetch_add(&next, 1) % 3; i < GRANULES; i += 3) {
        dirtymap_mark(map, i * 512, 100);
    }
    return NULL;
}

START_TEST(threads_lose_no_mark)
{
    DirtyMap *map = dirtymap_new(SIZE, BITS);
    pthread_t threads[3];
    uint64_t run;
    for (unsigned i = 0; i < 3; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, mark_every_third, &map), 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert(dirtymap_get(map, 0, SIZE, &run));
    ck_assert_uint_eq(run, SIZE);
    dirtymap_free(map);
}
END_TEST

START_TEST(too_large_is_refused)
{
    ck_assert_ptr_null(dirtymap_new(UINT64_C(1) << 62, 9));
    ck_assert_ptr_null(dirtymap_new((DIRTYMAP_BYTES_MAX * 8 + 1) << 9, 9));
    DirtyMap *most = dirtymap_new((DIRTYMAP_BYTES_MAX * 8) << 9, 9);
    ck_assert_ptr_nonnull(most);
    dirtymap_free(most);
    DirtyMap *none = dirtymap_new(0, 16);
    ck_assert_ptr_nonnull(none);
    dirtymap_free(none);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("dirtymap");
    tcase_add_test(tcase, marks_are_what_was_marked);
    tcase_add_test(tcase, serial_form_comes_back);
    tcase_add_test(tcase, bits_lie_as_the_format_says);
    tcase_add_test(tcase, all_ones_end_with_the_disk);
    tcase_add_test(tcase, threads_lose_no_mark);
    tcase_add_test(tcase, too_large_is_refused);
    return suite_run("dirtymap", tcase);
}
