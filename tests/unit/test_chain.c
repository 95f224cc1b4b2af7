/* src/map/chain.c */
#include <string.h>

#include "tests/lib/format-letters.h"
#include "tests/unit/suite.h"

#define UNIT ((uint64_t)LETTERS_UNIT)

/* The chain's answer as one letter a unit, and the depth as a digit: "D0" "Z1" "-1" (no image has
 * it) ... */
static char *chain_letters(Image *top)
{
    GString *text = g_string_new(NULL);
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(chain_map(top, 0, top->size, 0, &list), 0);
    uint64_t at = 0;
    for (unsigned i = 0; i < list.count; i++) {
        const Extent *extent = &list.items[i];
        ck_assert_uint_eq(extent->offset, at);
        ck_assert_int_ne(extent->type, EXTENT_UNALLOCATED);
        char letter = extent->type == EXTENT_DATA      ? 'D'
                      : extent->type == EXTENT_ENCODED ? 'E'
                      : extent->image                  ? 'Z'
                                                       : '-';
        for (uint64_t unit = 0; unit < extent->length / UNIT; unit++) {
            g_string_append_printf(text, "%c%u", letter, extent->depth);
        }
        at = extent_end(extent);
    }
    ck_assert_uint_eq(at, top->size);
    extent_list_clear(&list);
    return g_string_free(text, false);
}

static void assert_letters(Image *top, const char *expected)
{
    g_autofree char *got = chain_letters(top);
    ck_assert_str_eq(got, expected);
}

START_TEST(chain_asks_the_backing_for_what_is_not_here)
{
    g_autoptr(Image) base = letters_open("DD.ZEE", 'a', NULL);
    g_autoptr(Image) middle = letters_open("..D...", 'k', base);
    g_autoptr(Image) top = letters_open("DZ..E.", 'A', middle);
    assert_letters(top, "D0Z0D1Z2E0E2");
    assert_letters(base, "D0D0-0Z0E0E0");
}
END_TEST

START_TEST(chain_reads_zeroes_beyond_a_shorter_backing)
{
    g_autoptr(Image) base = letters_open("DD", 'a', NULL);
    g_autoptr(Image) top = letters_open("....D", 'A', base);
    assert_letters(top, "D1D1-0-0D0");
}
END_TEST

START_TEST(chain_never_looks_behind_its_own_end)
{
    g_autoptr(Image) base = letters_open("DDDDIIII", 'a', NULL);
    g_autoptr(Image) top = letters_open("....", 'A', base);
    assert_letters(top, "D1D1D1D1");
}
END_TEST

START_TEST(chain_stops_at_max_extents_and_can_go_on)
{
    g_autoptr(Image) top = letters_open("DZDZDZDZ", 'A', NULL);
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(chain_map(top, 0, top->size, 3, &list), 0);
    ck_assert_uint_eq(list.count, 3);
    ck_assert_int_eq(chain_map(top, 3 * UNIT, top->size - 3 * UNIT, 5, &list), 0);
    ck_assert_uint_eq(list.count, 5);
    ck_assert_uint_eq(extent_list_end(&list), 5 * UNIT);
    extent_list_clear(&list);
}
END_TEST

START_TEST(chain_gives_what_is_good_before_an_error)
{
    g_autoptr(Image) top = letters_open("DZI", 'A', NULL);
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(chain_map(top, 0, top->size, 64, &list), 0);
    ck_assert_uint_eq(extent_list_end(&list), 2 * UNIT);
    extent_list_reset(&list);
    ck_assert_int_eq(chain_map(top, 2 * UNIT, UNIT, 64, &list), -EIO);
    extent_list_reset(&list);
    ck_assert_int_eq(chain_map(top, 0, top->size, 0, &list), -EIO);
    extent_list_clear(&list);
}
END_TEST

START_TEST(chain_read_puts_the_pieces_together)
{
    g_autoptr(Image) base = letters_open("DD.ZEE", 'a', NULL);
    g_autoptr(Image) top = letters_open("D...E.", 'A', base);
    static const char expected[] = {'A', 'b', 0, 0, 'E', 'f'};
    uint8_t buffer[6 * LETTERS_UNIT];
    for (uint64_t skip = 0; skip < 3 * UNIT; skip += 1237) {
        uint64_t length = top->size - 2 * skip;
        memset(buffer, 0x55, sizeof buffer);
        ck_assert_int_eq(chain_read(top, buffer, length, skip), 0);
        for (uint64_t i = 0; i < length; i++) {
            ck_assert_uint_eq(buffer[i], (uint8_t)expected[(skip + i) / UNIT]);
        }
    }
}
END_TEST

START_TEST(chain_read_refuses_what_is_outside_the_disk)
{
    g_autoptr(Image) top = letters_open("D", 'A', NULL);
    uint8_t buffer[2];
    ck_assert_int_eq(chain_read(top, buffer, 2, UNIT - 1), -EINVAL);
    ck_assert_int_eq(chain_read(top, buffer, 2, UINT64_MAX), -EINVAL);
    ck_assert_int_eq(chain_read(top, buffer, 0, UNIT), 0);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("chain");
    tcase_add_test(tcase, chain_asks_the_backing_for_what_is_not_here);
    tcase_add_test(tcase, chain_reads_zeroes_beyond_a_shorter_backing);
    tcase_add_test(tcase, chain_never_looks_behind_its_own_end);
    tcase_add_test(tcase, chain_stops_at_max_extents_and_can_go_on);
    tcase_add_test(tcase, chain_gives_what_is_good_before_an_error);
    tcase_add_test(tcase, chain_read_puts_the_pieces_together);
    tcase_add_test(tcase, chain_read_refuses_what_is_outside_the_disk);
    return suite_run("chain", tcase);
}
