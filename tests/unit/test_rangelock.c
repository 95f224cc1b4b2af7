/* src/engine/rangelock.c */
#include <glib.h>

#include "base/bytes.h"
#include "engine/rangelock.h"
#include "tests/unit/suite.h"

START_TEST(stable_holders_share_and_change_is_alone)
{
    RangeLock lock = {0};
    RangeHold a, b, c, d;
    ck_assert(rangelock_acquire(&lock, &a, RANGE_STABLE, 0, 100));
    ck_assert(rangelock_acquire(&lock, &b, RANGE_STABLE, 50, 100));
    ck_assert(!rangelock_acquire(&lock, &c, RANGE_CHANGE, 90, 20));
    ck_assert(rangelock_acquire(&lock, &d, RANGE_CHANGE, 150, 20));
    ck_assert_ptr_null(rangelock_release(&lock, &a));
    ck_assert_ptr_eq(rangelock_release(&lock, &b), &c);
    ck_assert_ptr_null(c.granted_next);
}
END_TEST

START_TEST(later_readers_wait_behind_a_waiting_change)
{
    RangeLock lock = {0};
    RangeHold reader, changer, late, elsewhere;
    ck_assert(rangelock_acquire(&lock, &reader, RANGE_STABLE, 0, 100));
    ck_assert(!rangelock_acquire(&lock, &changer, RANGE_CHANGE, 0, 100));
    ck_assert(!rangelock_acquire(&lock, &late, RANGE_STABLE, 10, 1));
    ck_assert(rangelock_acquire(&lock, &elsewhere, RANGE_STABLE, 100, 1));
    ck_assert_ptr_eq(rangelock_release(&lock, &reader), &changer);
    ck_assert_ptr_null(changer.granted_next);
    ck_assert_ptr_eq(rangelock_release(&lock, &changer), &late);
}
END_TEST

START_TEST(one_release_may_grant_many)
{
    RangeLock lock = {0};
    RangeHold change, readers[8];
    ck_assert(rangelock_acquire(&lock, &change, RANGE_CHANGE, 0, 4096));
    for (unsigned i = 0; i < 8; i++) {
        ck_assert(!rangelock_acquire(&lock, &readers[i], RANGE_STABLE, i * 512, 512));
    }
    unsigned granted = 0;
    for (RangeHold *hold = rangelock_release(&lock, &change); hold != NULL;
         hold = hold->granted_next) {
        ck_assert_ptr_eq(hold, &readers[granted++]);
    }
    ck_assert_uint_eq(granted, 8);
}
END_TEST

/* Random holders: at every moment no CHANGE overlaps another holder, and in the end nobody is left
 * waiting. */
#define HOLDS 32
START_TEST(no_two_conflicting_holders_and_nobody_starves)
{
    GRand *random = g_rand_new_with_seed(_i);
    RangeLock lock = {0};
    RangeHold holds[HOLDS];
    enum { IDLE, WAITS, HOLDS_IT } state[HOLDS] = {IDLE};
    for (unsigned step = 0; step < 20000 + HOLDS * 10; step++) {
        bool ending = step >= 20000;
        unsigned i = g_rand_int_range(random, 0, HOLDS);
        if (state[i] == IDLE && !ending) {
            RangeMode mode = g_rand_int_range(random, 0, 3) == 0 ? RANGE_CHANGE : RANGE_STABLE;
            bool granted =
                rangelock_acquire(&lock, &holds[i], mode, g_rand_int_range(random, 0, 50),
                                  g_rand_int_range(random, 1, 20));
            state[i] = granted ? HOLDS_IT : WAITS;
        } else if (state[i] == HOLDS_IT) {
            state[i] = IDLE;
            for (RangeHold *h = rangelock_release(&lock, &holds[i]); h != NULL;
                 h = h->granted_next) {
                ck_assert_int_eq(state[h - holds], WAITS);
                state[h - holds] = HOLDS_IT;
            }
        }
        for (unsigned a = 0; a < HOLDS; a++) {
            for (unsigned b = 0; b < a; b++) {
                if (state[a] == HOLDS_IT && state[b] == HOLDS_IT &&
                    (holds[a].mode == RANGE_CHANGE || holds[b].mode == RANGE_CHANGE)) {
                    ck_assert(!ranges_overlap(holds[a].offset, holds[a].length, holds[b].offset,
                                              holds[b].length));
                }
            }
        }
    }
    for (unsigned i = 0; i < HOLDS; i++) {
        if (state[i] == HOLDS_IT) {
            for (RangeHold *h = rangelock_release(&lock, &holds[i]); h != NULL;
                 h = h->granted_next) {
                state[h - holds] = HOLDS_IT;
            }
            state[i] = IDLE;
            i = -1;
        }
    }
    for (unsigned i = 0; i < HOLDS; i++) {
        ck_assert_int_eq(state[i], IDLE);
    }
    g_rand_free(random);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("rangelock");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, stable_holders_share_and_change_is_alone);
    tcase_add_test(tcase, later_readers_wait_behind_a_waiting_change);
    tcase_add_test(tcase, one_release_may_grant_many);
    tcase_add_loop_test(tcase, no_two_conflicting_holders_and_nobody_starves, 0, 3);
    return suite_run("rangelock", tcase);
}
