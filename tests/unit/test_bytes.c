/* src/base/bytes.h, src/base/crc32c.c */

#include "base/bytes.h"
#include "base/crc32c.h"
#include "tests/unit/suite.h"

START_TEST(bytes_load_what_was_stored_at_any_alignment)
{
    uint8_t raw[16];
    for (unsigned at = 0; at < 8; at++) {
        store_be16(raw + at, 0x1234);
        ck_assert_uint_eq(raw[at], 0x12);
        ck_assert_uint_eq(load_be16(raw + at), 0x1234);
        ck_assert_uint_eq(load_le16(raw + at), 0x3412);
        store_le32(raw + at, 0x12345678);
        ck_assert_uint_eq(raw[at], 0x78);
        ck_assert_uint_eq(load_le32(raw + at), 0x12345678);
        ck_assert_uint_eq(load_be32(raw + at), 0x78563412);
        store_be64(raw + at, 0x123456789abcdef0);
        ck_assert_uint_eq(raw[at + 7], 0xf0);
        ck_assert_uint_eq(load_be64(raw + at), 0x123456789abcdef0);
        ck_assert_uint_eq(load_le64(raw + at), 0xf0debc9a78563412);
    }
}
END_TEST

START_TEST(bytes_checked_arithmetic_refuses_to_wrap)
{
    uint64_t out = 7;
    ck_assert(!add_u64(UINT64_MAX, 1, &out));
    ck_assert(!mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &out));
    ck_assert_uint_eq(out, 7);
    ck_assert(add_u64(UINT64_MAX - 1, 1, &out));
    ck_assert_uint_eq(out, UINT64_MAX);
    ck_assert(mul_u64(UINT64_C(1) << 32, UINT32_MAX, &out));
    ck_assert_uint_eq(out, UINT64_C(0xffffffff00000000));
}
END_TEST

START_TEST(bytes_ranges)
{
    ck_assert(range_within(0, 0, 0));
    ck_assert(range_within(10, 0, 10));
    ck_assert(range_within(3, 7, 10));
    ck_assert(!range_within(3, 8, 10));
    ck_assert(!range_within(11, 0, 10));
    ck_assert(!range_within(5, UINT64_MAX, 10));
    ck_assert(!range_within(UINT64_MAX, 2, 10));
    ck_assert(ranges_overlap(0, 10, 9, 1));
    ck_assert(!ranges_overlap(0, 10, 10, 1));
    ck_assert(!ranges_overlap(10, 1, 0, 10));
}
END_TEST

START_TEST(bytes_alignment)
{
    ck_assert_uint_eq(align_down(4097, 4096), 4096);
    ck_assert_uint_eq(align_up(4097, 4096), 8192);
    ck_assert_uint_eq(align_up(4096, 4096), 4096);
    ck_assert_uint_eq(div_round_up(UINT64_MAX, 2), UINT64_C(1) << 63);
    ck_assert_uint_eq(div_round_up(0, 2), 0);
    ck_assert(is_power_of_two(1) && is_power_of_two(UINT64_C(1) << 63));
    ck_assert(!is_power_of_two(0) && !is_power_of_two(3));
    ck_assert_uint_eq(min_u64(1, UINT64_MAX), 1);
    ck_assert_uint_eq(max_u64(1, UINT64_MAX), UINT64_MAX);
}
END_TEST

/* The values of RFC 3720, appendix B.4; in one piece and in two, which begin anywhere. */
START_TEST(crc32c_knows_the_published_values)
{
    uint8_t bytes[32] = {0};
    ck_assert_uint_eq(crc32c(0, bytes, 32), 0x8a9136aa);
    memset(bytes, 0xff, 32);
    ck_assert_uint_eq(crc32c(0, bytes, 32), 0x62a8ab43);
    for (unsigned i = 0; i < 32; i++) {
        bytes[i] = i;
    }
    for (unsigned cut = 0; cut <= 32; cut++) {
        uint32_t crc = crc32c(0, bytes, cut);
        ck_assert_uint_eq(crc32c_by_tables(0, bytes, cut), crc);
        ck_assert_uint_eq(crc32c(crc, bytes + cut, 32 - cut), 0x46dd794e);
        ck_assert_uint_eq(crc32c_by_tables(crc, bytes + cut, 32 - cut), 0x46dd794e);
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("bytes");
    tcase_add_test(tcase, bytes_load_what_was_stored_at_any_alignment);
    tcase_add_test(tcase, bytes_checked_arithmetic_refuses_to_wrap);
    tcase_add_test(tcase, bytes_ranges);
    tcase_add_test(tcase, bytes_alignment);
    tcase_add_test(tcase, crc32c_knows_the_published_values);
    return suite_run("bytes", tcase);
}
