/* The wire: what is packed, byte by byte, and which lengths an unpack refuses. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "nbd/nbd-wire.h"
#include "tests/unit/suite.h"

static void assert_bytes(const uint8_t *got, size_t length, const char *hex)
{
    ck_assert_uint_eq(length, strlen(hex) / 2);
    for (size_t i = 0; i < length; i++) {
        unsigned byte;
        sscanf(hex + 2 * i, "%2x", &byte);
        ck_assert_msg(got[i] == byte, "byte %zu is %02x, must be %02x", i, got[i], byte);
    }
}

START_TEST(wire_greeting)
{
    uint8_t out[64];
    assert_bytes(out, nbd_pack_greeting(out), "4e42444d4147494349484156454f50540003");
}
END_TEST

START_TEST(wire_replies)
{
    uint8_t out[64];
    assert_bytes(out, nbd_pack_option_reply(out, 7, 0x80000006u, 5),
                 "0003e889045565a9000000078000000600000005");
    assert_bytes(out, nbd_pack_export_reply(out, 0x123456789aull, 0x0103), "000000123456789a0103");
    assert_bytes(out, nbd_pack_simple_reply(out, 28, 0x0102030405060708ull),
                 "674466980000001c0102030405060708");
}
END_TEST

START_TEST(wire_structured_chunks)
{
    uint8_t out[NBD_CHUNK_MAX];
    NbdChunkHead head = {.cookie = 9, .offset = 0x100};
    assert_bytes(out, nbd_pack_chunk(out, &head, 1, 0, 0),
                 "668e33ef0001000000000000000000090000"
                 "0000");
    assert_bytes(out, nbd_pack_data_chunk(out, &head, 1, 0x200, 0x1000),
                 "668e33ef00010001000000000000000900001008"
                 "0000000000000200");
    assert_bytes(out, nbd_pack_hole_chunk(out, &head, 0, 0x200, 0x1000),
                 "668e33ef0000000200000000000000090000000c"
                 "0000000000000200"
                 "00001000");
    assert_bytes(out, nbd_pack_error_chunk(out, &head, 22, 3),
                 "668e33ef00018001000000000000000900000009"
                 "00000016"
                 "0003");
    assert_bytes(out, nbd_pack_status_chunk(out, &head, 1, 1, 2),
                 "668e33ef00010005000000000000000900000014"
                 "00000001");
    assert_bytes(out, nbd_pack_descriptor(out, &head, 0x10000, 3), "0001000000000003");
}
END_TEST

START_TEST(wire_extended_chunks)
{
    uint8_t out[NBD_CHUNK_MAX];
    NbdChunkHead head = {.extended = true, .cookie = 9, .offset = 0x100};
    assert_bytes(out, nbd_pack_chunk(out, &head, 1, 0, 0),
                 "6e8a278c00010000000000000000000900000000000001000000000000000000");
    assert_bytes(out, nbd_pack_data_chunk(out, &head, 1, 0x200, 0x1000),
                 "6e8a278c00010001000000000000000900000000000001000000000000001008"
                 "0000000000000200");
    assert_bytes(out, nbd_pack_hole_chunk(out, &head, 0, 0x200, 0x1000),
                 "6e8a278c0000000200000000000000090000000000000100000000000000000c"
                 "0000000000000200"
                 "00001000");
    assert_bytes(out, nbd_pack_error_chunk(out, &head, 22, 3),
                 "6e8a278c00018001000000000000000900000000000001000000000000000009"
                 "00000016"
                 "0003");
    assert_bytes(out, nbd_pack_status_chunk(out, &head, 0, 1, 2),
                 "6e8a278c00000006000000000000000900000000000001000000000000000028"
                 "00000001"
                 "00000002");
    assert_bytes(out, nbd_pack_descriptor(out, &head, 0x123456789aull, 3),
                 "000000123456789a0000000000000003");
}
END_TEST

START_TEST(wire_extended_request)
{
    uint8_t in[NBD_EXTENDED_REQUEST_SIZE];
    NbdRequestHeader header, sent = {.flags = NBD_CMD_FLAG_PAYLOAD_LEN,
                                     .command = NBD_CMD_WRITE,
                                     .cookie = 77,
                                     .offset = 1ull << 40,
                                     .length = 1ull << 33};
    ck_assert_uint_eq(nbd_pack_request(in, &sent, true), NBD_EXTENDED_REQUEST_SIZE);
    ck_assert(nbd_unpack_extended_request(in, &header));
    ck_assert_uint_eq(header.flags, NBD_CMD_FLAG_PAYLOAD_LEN);
    ck_assert_uint_eq(header.command, NBD_CMD_WRITE);
    ck_assert_uint_eq(header.cookie, 77);
    ck_assert_uint_eq(header.offset, 1ull << 40);
    ck_assert_uint_eq(header.length, 1ull << 33);
    ck_assert_uint_eq(header.payload, 1ull << 33);
    store_be16(in + 4, 0); /* as qemu writes */
    ck_assert(nbd_unpack_extended_request(in, &header));
    ck_assert_uint_eq(header.payload, 1ull << 33);
    store_be16(in + 6, NBD_CMD_WRITE_ZEROES);
    ck_assert(nbd_unpack_extended_request(in, &header));
    ck_assert_uint_eq(header.payload, 0);
    ck_assert(!nbd_unpack_request(in, &header));
    in[0] ^= 1;
    ck_assert(!nbd_unpack_extended_request(in, &header));
}
END_TEST

START_TEST(wire_request)
{
    uint8_t in[NBD_REQUEST_SIZE];
    NbdRequestHeader header;
    store_be32(in, NBD_REQUEST_MAGIC);
    store_be16(in + 4, NBD_CMD_FLAG_FUA);
    store_be16(in + 6, NBD_CMD_TRIM);
    store_be64(in + 8, 77);
    store_be64(in + 16, 1ull << 40);
    store_be32(in + 24, 0xffffffffu);
    ck_assert(nbd_unpack_request(in, &header));
    ck_assert_uint_eq(header.flags, NBD_CMD_FLAG_FUA);
    ck_assert_uint_eq(header.command, NBD_CMD_TRIM);
    ck_assert_uint_eq(header.cookie, 77);
    ck_assert_uint_eq(header.offset, 1ull << 40);
    ck_assert_uint_eq(header.length, 0xffffffffu);
    in[0] ^= 1;
    ck_assert(!nbd_unpack_request(in, &header));
}
END_TEST

START_TEST(wire_option)
{
    uint8_t in[NBD_OPTION_SIZE];
    NbdOptionHeader header;
    store_be64(in, NBD_OPTION_MAGIC);
    store_be32(in + 8, NBD_OPT_GO);
    store_be32(in + 12, 12);
    ck_assert(nbd_unpack_option(in, &header));
    ck_assert_uint_eq(header.option, NBD_OPT_GO);
    ck_assert_uint_eq(header.length, 12);
    in[7] ^= 1;
    ck_assert(!nbd_unpack_option(in, &header));
}
END_TEST

/* Every length of a well-formed option but the right one is refused. */
START_TEST(wire_info_request_lengths)
{
    uint8_t in[4 + 3 + 2 + 4] = {0, 0, 0, 3, 'a', 'b', 'c', 0, 2, 0, 3, 0, 1};
    NbdInfoRequest out;
    for (size_t length = 0; length < sizeof in; length++) {
        ck_assert(!nbd_unpack_info_request(in, length, &out));
    }
    ck_assert(nbd_unpack_info_request(in, sizeof in, &out));
    ck_assert_uint_eq(out.name_length, 3);
    ck_assert_mem_eq(out.name, "abc", 3);
    ck_assert_uint_eq(out.info_count, 2);
    in[8] = 1;
    ck_assert(!nbd_unpack_info_request(in, sizeof in, &out));
    memset(in, 0xff, 4);
    ck_assert(!nbd_unpack_info_request(in, sizeof in, &out));
}
END_TEST

START_TEST(wire_meta_request_lengths)
{
    uint8_t in[] = {0, 0, 0, 1, 'x', 0, 0, 0, 2, 0, 0, 0, 2, 'a', ':', 0, 0, 0, 0};
    NbdMetaRequest out;
    const char *query;
    uint32_t length;
    ck_assert(nbd_unpack_meta_request(in, sizeof in, &out));
    ck_assert_uint_eq(out.query_count, 2);
    ck_assert(nbd_next_meta_query(&out, &query, &length));
    ck_assert_uint_eq(length, 2);
    ck_assert_mem_eq(query, "a:", 2);
    ck_assert(nbd_next_meta_query(&out, &query, &length));
    ck_assert_uint_eq(length, 0);
    ck_assert(!nbd_next_meta_query(&out, &query, &length));
    ck_assert_uint_eq(out.queries_length, 0);
    /* more queries than could be there */
    store_be32(in + 5, 0x40000000u);
    ck_assert(!nbd_unpack_meta_request(in, sizeof in, &out));
    /* a query longer than what is left */
    store_be32(in + 5, 2);
    store_be32(in + 9, 7);
    ck_assert(nbd_unpack_meta_request(in, sizeof in, &out));
    ck_assert(!nbd_next_meta_query(&out, &query, &length));
    for (size_t n = 0; n < 9; n++) {
        ck_assert(!nbd_unpack_meta_request(in, n, &out));
    }
}
END_TEST

START_TEST(wire_names_over_the_maximum_are_refused)
{
    static uint8_t in[4 + NBD_STRING_MAX + 1 + 2];
    NbdInfoRequest out;
    store_be32(in, NBD_STRING_MAX);
    ck_assert(nbd_unpack_info_request(in, 4 + NBD_STRING_MAX + 2, &out));
    store_be32(in, NBD_STRING_MAX + 1);
    ck_assert(!nbd_unpack_info_request(in, sizeof in, &out));
}
END_TEST

START_TEST(wire_errors)
{
    static const struct {
        int from;
        uint32_t to;
    } pairs[] = {
        {0, NBD_SUCCESS},        {-EPERM, NBD_EPERM},
        {-EROFS, NBD_EPERM},     {-EIO, NBD_EIO},
        {-ENOMEM, NBD_ENOMEM},   {-EINVAL, NBD_EINVAL},
        {-ENOSPC, NBD_ENOSPC},   {-EDQUOT, NBD_ENOSPC},
        {-EFBIG, NBD_ENOSPC},    {-EOVERFLOW, NBD_EOVERFLOW},
        {-ENOTSUP, NBD_ENOTSUP}, {-ESHUTDOWN, NBD_ESHUTDOWN},
        {-EUCLEAN, NBD_EIO},     {ENOSPC, NBD_ENOSPC},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        ck_assert_uint_eq(nbd_error_from_errno(pairs[i].from), pairs[i].to);
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("nbd_wire");
    tcase_add_test(tcase, wire_greeting);
    tcase_add_test(tcase, wire_replies);
    tcase_add_test(tcase, wire_structured_chunks);
    tcase_add_test(tcase, wire_extended_chunks);
    tcase_add_test(tcase, wire_request);
    tcase_add_test(tcase, wire_extended_request);
    tcase_add_test(tcase, wire_option);
    tcase_add_test(tcase, wire_info_request_lengths);
    tcase_add_test(tcase, wire_meta_request_lengths);
    tcase_add_test(tcase, wire_names_over_the_maximum_are_refused);
    tcase_add_test(tcase, wire_errors);
    return suite_run("nbd_wire", tcase);
}
