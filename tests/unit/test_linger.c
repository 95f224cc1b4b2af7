#include <sys/socket.h>
#include <unistd.h>

#include "nbd/linger.h"
#include "tests/unit/suite.h"

/* Of count requests, how many are looked for when every look ends like that. */
static unsigned looks(Linger *linger, unsigned count, bool hit)
{
    unsigned looked = 0;
    for (unsigned i = 0; i < count; i++) {
        if (linger_is_due(linger)) {
            looked++;
            linger_note(linger, hit);
        }
    }
    return looked;
}

START_TEST(linger_that_pays_is_done_each_time)
{
    Linger linger = {0};
    ck_assert_uint_eq(looks(&linger, 1000, true), 1000);
}
END_TEST

START_TEST(linger_in_vain_becomes_rare)
{
    Linger linger = {0};
    looks(&linger, 2000, false);
    ck_assert_uint_eq(looks(&linger, 10240, false), 10);
}
END_TEST

START_TEST(linger_comes_back_when_it_pays_again)
{
    Linger linger = {0};
    looks(&linger, 5000, false);
    looks(&linger, 5000, true);
    ck_assert_uint_eq(looks(&linger, 1000, true), 1000);
}
END_TEST

START_TEST(linger_finds_what_is_there_and_the_end)
{
    Linger linger = {0};
    int ends[2];
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
    ck_assert(!linger_look(&linger, ends[0]));
    ck_assert_uint_gt(linger.misses, 0);
    ck_assert_int_eq(write(ends[1], "x", 1), 1);
    ck_assert(linger_look(&linger, ends[0]));
    char byte;
    ck_assert_int_eq(read(ends[0], &byte, 1), 1); /* the look has left it there */
    close(ends[1]);
    ck_assert(linger_look(&linger, ends[0]));
    close(ends[0]);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("linger");
    tcase_add_test(tcase, linger_that_pays_is_done_each_time);
    tcase_add_test(tcase, linger_in_vain_becomes_rare);
    tcase_add_test(tcase, linger_comes_back_when_it_pays_again);
    tcase_add_test(tcase, linger_finds_what_is_there_and_the_end);
    return suite_run("linger", tcase);
}
