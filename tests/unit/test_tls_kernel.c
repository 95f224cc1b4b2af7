/*
 * What the kernel needs for TLS, without one: the keys that follow each other, where records end, and
 * the records that are not data. Sessions in the kernel are in test_tls.c.
 */
#include <glib.h>
#include <string.h>

#include "nbd/tls-kernel.h"
#include "tests/unit/suite.h"

/* The trace of RFC 8448, section 3: secrets of application data, keys and nonces of them. */
static const char *const TRACE[][3] = {
    {"9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
     "17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9"},
    {"a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
     "9f02283b6c9c07efc26bb9f2ac92e356", "cf782b88dd83549aadf1e984"},
};

static void of_hex(const char *hex, uint8_t *bytes, size_t size)
{
    gnutls_datum_t text = {(unsigned char *)hex, strlen(hex)};
    ck_assert_int_eq(gnutls_hex_decode(&text, bytes, &size), 0);
    ck_assert_uint_eq(size, strlen(hex) / 2);
}

START_TEST(traffic_keys_as_in_the_trace)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(TRACE); i++) {
        uint8_t secret[32], wanted[32], got[32];
        TlsTraffic traffic = {0};
        ck_assert(!tls_traffic_key(&traffic, got, 16) && !tls_traffic_next(&traffic));
        of_hex(TRACE[i][0], secret, sizeof secret);
        tls_traffic_set(&traffic, secret, sizeof secret);
        of_hex(TRACE[i][1], wanted, 16);
        ck_assert(tls_traffic_key(&traffic, got, 16));
        ck_assert_mem_eq(got, wanted, 16);
        of_hex(TRACE[i][2], wanted, 12);
        ck_assert(tls_traffic_nonce(&traffic, got, 12));
        ck_assert_mem_eq(got, wanted, 12);
        tls_traffic_set(&traffic, secret, 20); /* no such hash */
        ck_assert(!tls_traffic_key(&traffic, got, 16));
    }
}
END_TEST

/* Where GnuTLS is in a stream of records, cut into pieces of every size. */
START_TEST(records_end_where_they_end)
{
    static const uint16_t BODIES[] = {0, 1, 5, 255, 256, 16640, 3};
    static uint8_t stream[40000];
    size_t ends[G_N_ELEMENTS(BODIES)], length = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(BODIES); i++) {
        const uint8_t head[] = {23, 3, 3, BODIES[i] >> 8, BODIES[i] & 255};
        memcpy(stream + length, head, sizeof head);
        ends[i] = length += sizeof head + BODIES[i];
    }
    for (size_t piece = 1; piece < 300; piece += piece < 12 ? 1 : 41) {
        TlsKernel kernel = {0};
        for (size_t at = 0, end = 0; at < length;) {
            size_t part = MIN(piece, ends[end] - at);
            tls_kernel_saw(&kernel, stream + at, part);
            at += part;
            bool whole = at == ends[end];
            ck_assert_int_eq(kernel.head_length == 0 && kernel.body_left == 0, whole);
            end += whole;
        }
        TlsKernel all = {0};
        tls_kernel_saw(&all, stream, length);
        ck_assert(all.head_length == 0 && all.body_left == 0);
        ck_assert_int_eq(tls_kernel_take(&all, NULL), 0); /* not wanted */
    }
}
END_TEST

/* No session, as far as these records reach: fd takes no keys. */
static TlsKernel kernel_of(bool is_13)
{
    static const uint8_t SECRET[32] = {1, 2, 3};
    TlsKernel kernel = {.fd = -1, .taken = true};
    if (is_13) {
        tls_kernel_keep(&kernel, SECRET, SECRET, sizeof SECRET);
    }
    return kernel;
}

/* The record in pieces of at most step bytes, each in two places. */
static int bring(TlsKernel *kernel, uint8_t type, const uint8_t *bytes, size_t length, size_t step)
{
    size_t at = 0;
    int code = GNUTLS_E_AGAIN;
    do {
        size_t part = MIN(step, length - at);
        uint8_t first[1], rest[64];
        const struct iovec iov[] = {{first, 1}, {rest, sizeof rest}};
        memcpy(first, bytes + at, MIN(part, 1));
        memcpy(rest, bytes + at + 1, part - MIN(part, 1));
        at += part;
        code = tls_kernel_control(kernel, type, iov, part, at == length);
    } while (at < length && code == GNUTLS_E_AGAIN);
    return code;
}

static int wanted_of_alert(bool is_13, uint8_t level, uint8_t alert)
{
    if (alert == GNUTLS_A_CLOSE_NOTIFY) {
        return 0;
    }
    bool harmless = is_13 ? alert == GNUTLS_A_USER_CANCELED : level == GNUTLS_AL_WARNING;
    return harmless ? GNUTLS_E_AGAIN : GNUTLS_E_FATAL_ALERT_RECEIVED;
}

START_TEST(every_alert)
{
    for (unsigned i = 0; i < 2 * 4 * 256; i++) {
        bool is_13 = i & 1;
        const uint8_t bytes[] = {(i >> 1) & 3, i >> 3};
        for (size_t step = 1; step <= 2; step++) {
            TlsKernel kernel = kernel_of(is_13);
            ck_assert_int_eq(bring(&kernel, 21, bytes, 2, step),
                             wanted_of_alert(is_13, bytes[0], bytes[1]));
            ck_assert_int_eq(kernel.alert, bytes[1]);
        }
    }
}
END_TEST

/* One message is taken, byte for byte; as there is no socket here that takes a key, it says so. */
START_TEST(every_handshake_message)
{
    static const uint8_t UPDATE[] = {24, 0, 0, 1, 0};
    for (unsigned i = 0; i < 5 * 256; i++) {
        uint8_t bytes[sizeof UPDATE];
        memcpy(bytes, UPDATE, sizeof bytes);
        bytes[i / 256] = i;
        TlsKernel kernel = kernel_of(true);
        int code = bring(&kernel, 22, bytes, sizeof bytes, 1 + i % 5);
        bool same = memcmp(bytes, UPDATE, 4) == 0;
        ck_assert_int_eq(code, !same           ? GNUTLS_E_UNEXPECTED_HANDSHAKE_PACKET
                               : bytes[4] <= 1 ? GNUTLS_E_UNIMPLEMENTED_FEATURE
                                               : GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER);
        ck_assert_int_eq(kernel.renew, same && bytes[4] == 1);
        kernel = kernel_of(false);
        ck_assert_int_eq(bring(&kernel, 22, bytes, sizeof bytes, 5), GNUTLS_E_REHANDSHAKE);
    }
}
END_TEST

/* Records of any type and length are refused, and none goes past the room for them. */
START_TEST(every_other_record)
{
    static const uint8_t BYTES[40] = {24, 0, 0, 1, 0};
    for (unsigned type = 0; type < 256; type++) {
        for (size_t length = 0; length <= sizeof BYTES; length++) {
            bool taken = (type == 21 && length == 2) || (type == 22 && length == 5);
            for (size_t step = 1; step < sizeof BYTES && !taken; step += 3) {
                TlsKernel kernel = kernel_of(true);
                int code = bring(&kernel, type, BYTES, length, step);
                ck_assert(code == GNUTLS_E_UNEXPECTED_PACKET ||
                          code == GNUTLS_E_UNEXPECTED_PACKET_LENGTH ||
                          code == GNUTLS_E_UNEXPECTED_HANDSHAKE_PACKET);
                ck_assert_uint_le(kernel.control_length, sizeof kernel.control);
            }
        }
    }
}
END_TEST

START_TEST(records_without_data_are_bounded)
{
    static const uint8_t WARNING[] = {GNUTLS_AL_WARNING, GNUTLS_A_USER_CANCELED};
    TlsKernel kernel = kernel_of(true);
    for (unsigned i = 0; i < 8; i++) {
        ck_assert_int_eq(bring(&kernel, 21, WARNING, 2, 2), GNUTLS_E_AGAIN);
    }
    ck_assert_int_eq(bring(&kernel, 21, WARNING, 2, 2), GNUTLS_E_TOO_MANY_HANDSHAKE_PACKETS);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("tls_kernel");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, traffic_keys_as_in_the_trace);
    tcase_add_test(tcase, records_end_where_they_end);
    tcase_add_test(tcase, every_alert);
    tcase_add_test(tcase, every_handshake_message);
    tcase_add_test(tcase, every_other_record);
    tcase_add_test(tcase, records_without_data_are_bounded);
    return suite_run("tls_kernel", tcase);
}
