/*
 * TLS sessions, driven by hand: GnuTLS as the client at the other end of a socket pair, one thread,
 * turn by turn. With pre-shared keys, which need no files but one. Over TCP, the kernel makes the records
 * where it has TLS; what comes of it is the same.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "nbd/tls.h"
#include "nbd/tls-kernel.h"
#include "tests/lib/random.h"
#include "tests/unit/suite.h"

#define KEY   "00112233445566778899aabbccddeeff"
#define TURNS 100000
#define LARGE (3u << 20)

static char *directory, *keys_path;
static TlsCredentials *credentials;
static TlsKernelSupport support;

typedef struct Pair {
    int fds[2]; /* the server's, the client's */
    bool tcp;   /* what is sent takes a while to arrive */
    Buffers buffers;
    TlsSession *server;
    gnutls_session_t client;
    gnutls_psk_client_credentials_t key;
} Pair;

static void connect_tcp(int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, length), 0);
    ck_assert_int_eq(listen(listener, 1), 0);
    ck_assert_int_eq(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    fds[1] = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_eq(connect(fds[1], (struct sockaddr *)&address, length), 0);
    ck_assert_int_eq(fcntl(fds[1], F_SETFL, O_NONBLOCK), 0);
    fds[0] = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    for (unsigned i = 0; i < 2; i++) {
        ck_assert_int_eq(setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)), 0);
    }
    close(listener);
}

static void pair_open_over(Pair *pair, bool tcp, const char *user, const char *key,
                           const char *priority)
{
    *pair = (Pair){.tcp = tcp};
    if (tcp) {
        connect_tcp(pair->fds);
    } else {
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair->fds), 0);
    }
    pair->server = tls_session_new(pair->fds[0], &pair->buffers, tls_credentials_get(credentials));
    ck_assert_ptr_nonnull(pair->server);
    gnutls_datum_t hex = {(unsigned char *)key, strlen(key)};
    gnutls_psk_allocate_client_credentials(&pair->key);
    gnutls_psk_set_client_credentials(pair->key, user, &hex, GNUTLS_PSK_KEY_HEX);
    gnutls_init(&pair->client, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
    ck_assert_int_eq(gnutls_priority_set_direct(pair->client, priority, NULL), 0);
    gnutls_credentials_set(pair->client, GNUTLS_CRD_PSK, pair->key);
    gnutls_transport_set_int(pair->client, pair->fds[1]);
}

static void pair_open(Pair *pair, const char *user, const char *key, const char *priority)
{
    pair_open_over(pair, false, user, key, priority);
}

static void pair_close(Pair *pair)
{
    gnutls_deinit(pair->client);
    gnutls_psk_free_client_credentials(pair->key);
    tls_session_free(pair->server);
    buffers_clear(&pair->buffers);
    close(pair->fds[0]);
    if (pair->fds[1] >= 0) {
        close(pair->fds[1]);
    }
}

static ssize_t receive(Pair *pair, void *bytes, size_t length)
{
    struct iovec iov = {bytes, length};
    ssize_t got = tls_receive(pair->server, &iov, 1);
    tls_rest(pair->server);
    return got;
}

/* Neither side has anything to do. */
static void wait_a_little(const Pair *pair)
{
    struct pollfd look[] = {{.fd = pair->fds[0], .events = POLLIN},
                            {.fd = pair->fds[1], .events = POLLIN}};
    if (pair->tcp) {
        poll(look, 2, 10);
    }
}

/* Waits for what is sure to come. */
static ssize_t receive_some(Pair *pair, void *bytes, size_t length)
{
    ssize_t got = -EAGAIN;
    for (unsigned i = 0; i < TURNS && got == -EAGAIN; i++) {
        got = receive(pair, bytes, length);
        if (got == -EAGAIN) {
            wait_a_little(pair);
        }
    }
    return got;
}

/* Likewise, at the client. */
static ssize_t client_receive(Pair *pair, void *bytes, size_t length)
{
    ssize_t got = GNUTLS_E_AGAIN;
    for (unsigned i = 0; i < TURNS && got == GNUTLS_E_AGAIN; i++) {
        got = gnutls_record_recv(pair->client, bytes, length);
        if (got == GNUTLS_E_AGAIN) {
            wait_a_little(pair);
        }
    }
    return got;
}

/* Both sides in turn, until the client's is over: 0, or its error. *over: the server's last word. */
static int shake_hands(Pair *pair, ssize_t *over)
{
    char byte;
    int code = GNUTLS_E_AGAIN;
    *over = -EAGAIN;
    for (unsigned i = 0; i < TURNS && (code == GNUTLS_E_AGAIN || *over == -EAGAIN); i++) {
        if (code == GNUTLS_E_AGAIN) {
            code = gnutls_handshake(pair->client);
        }
        *over = receive(pair, &byte, 1);
        if (code == GNUTLS_E_SUCCESS) {
            break;
        }
        wait_a_little(pair);
    }
    return code;
}

static const char *const PRIORITIES[] = {
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK:+DHE-PSK:+PSK",
    "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+ECDHE-PSK",
};

#define WAYS 4 /* each version over a socket pair, then over TCP */

static void pair_open_ready(Pair *pair, unsigned way)
{
    ssize_t over;
    char byte;
    pair_open_over(pair, way >= 2, "alice", KEY, PRIORITIES[way % 2]);
    ck_assert_int_eq(shake_hands(pair, &over), 0);
    ck_assert_int_eq(over, -EAGAIN);
    if (pair->tcp) { /* then the server has its last part of the handshake for certain */
        ck_assert_int_eq(gnutls_record_send(pair->client, "!", 1), 1);
        ck_assert_int_eq(receive_some(pair, &byte, 1), 1);
    }
    bool wanted = pair->tcp && support != TLS_KERNEL_NONE;
    for (unsigned i = 0; i < TURNS && wanted && !tls_is_in_kernel(pair->server); i++) {
        ck_assert_int_eq(receive(pair, &byte, 1), -EAGAIN);
    }
    ck_assert_int_eq(tls_is_in_kernel(pair->server), wanted);
}

static uint8_t *random_bytes(size_t length)
{
    uint8_t *bytes = g_malloc(length);
    Random random = random_new(5);
    for (size_t i = 0; i < length; i++) {
        bytes[i] = random_next(&random);
    }
    return bytes;
}

/* What the server sends in pieces of these sizes arrives. */
static void send_pieces(Pair *pair, const size_t *sizes, unsigned count)
{
    struct iovec iov[64];
    size_t total = 0, got = 0, sent = 0;
    for (unsigned i = 0; i < count; i++) {
        total += sizes[i];
    }
    g_autofree uint8_t *bytes = random_bytes(total);
    g_autofree uint8_t *copy = g_malloc(total);
    for (unsigned i = 0, at = 0; i < count; at += sizes[i++]) {
        iov[i] = (struct iovec){bytes + at, sizes[i]};
    }
    struct iovec *next = iov;
    for (unsigned i = 0; i < TURNS && got < total; i++) {
        ssize_t r = tls_send(pair->server, next, count);
        ck_assert_int_ge(r, 0);
        sent += r;
        for (; r > 0 || (count > 0 && next->iov_len == 0);) {
            size_t part = MIN((size_t)r, next->iov_len);
            next->iov_base = (uint8_t *)next->iov_base + part;
            next->iov_len -= part;
            r -= part;
            if (next->iov_len == 0) {
                next++;
                count--;
            }
        }
        r = gnutls_record_recv(pair->client, copy + got, total - got);
        got += r > 0 ? r : 0;
        if (r <= 0) {
            wait_a_little(pair);
        }
    }
    ck_assert_uint_eq(sent, total);
    ck_assert_uint_eq(got, total);
    ck_assert_mem_eq(copy, bytes, total);
    ck_assert(!tls_has_output(pair->server));
}

START_TEST(tls_sends_pieces_of_any_size)
{
    static const size_t SIZES[][6] = {
        {1},
        {20, 4096},
        {20, 4095, 20, 4095},
        {0, 5, 0, 0, 7, 0},
        {16384},
        {16385, 1},
        {20, 262144, 20, 262144},
        {4095, 4095, 4095, 4095, 4095, 4095},
        {LARGE, 1, LARGE},
    };
    for (unsigned way = 0; way < WAYS; way++) {
        Pair pair;
        pair_open_ready(&pair, way);
        for (unsigned i = 0; i < G_N_ELEMENTS(SIZES); i++) {
            send_pieces(&pair, SIZES[i], 6);
        }
        pair_close(&pair);
    }
}
END_TEST

/* Whatever the sizes that are asked for, the same bytes come. */
START_TEST(tls_receives_into_pieces_of_any_size)
{
    static const size_t ASKED[] = {1, 28, 5000, 16384, 65536, 131072 + 28};
    g_autofree uint8_t *bytes = random_bytes(300000);
    g_autofree uint8_t *copy = g_malloc(300000);
    for (unsigned n = 0; n < WAYS * G_N_ELEMENTS(ASKED); n++) {
        unsigned i = n / WAYS, way = n % WAYS;
        size_t wanted = ASKED[i] == 1 ? 3000 : 300000, sent = 0, got = 0;
        Pair pair;
        pair_open_ready(&pair, way);
        for (unsigned turn = 0; turn < TURNS && got < wanted; turn++) {
            ssize_t r =
                sent < wanted ? gnutls_record_send(pair.client, bytes + sent, wanted - sent) : 0;
            sent += r > 0 ? r : 0;
            size_t ask = MIN(ASKED[i], wanted - got);
            struct iovec iov[2] = {{copy + got, ask / 3}, {copy + got + ask / 3, ask - ask / 3}};
            r = tls_receive(pair.server, iov, 2);
            ck_assert(r > 0 || r == -EAGAIN);
            got += r > 0 ? r : 0;
            if (turn % 3 == 0) {
                tls_rest(pair.server);
            }
            if (r < 0) {
                wait_a_little(&pair);
            }
        }
        ck_assert_uint_eq(got, wanted);
        ck_assert_mem_eq(copy, bytes, wanted);
        pair_close(&pair);
    }
}
END_TEST

/* What is here already is told of, though the socket has nothing more. */
START_TEST(tls_has_input_that_the_socket_has_not)
{
    Pair pair;
    char bytes[100] = {0};
    pair_open_ready(&pair, 0);
    ck_assert(!tls_has_input(pair.server));
    ck_assert_int_eq(gnutls_record_send(pair.client, bytes, 100), 100);
    ck_assert_int_eq(gnutls_record_send(pair.client, bytes, 100), 100);
    ck_assert_int_eq(receive(&pair, bytes, 40), 40);
    ck_assert(tls_has_input(pair.server)); /* the rest of a record */
    ck_assert_int_eq(receive(&pair, bytes, 60), 60);
    ck_assert(tls_has_input(pair.server)); /* a record that is not decrypted yet */
    ck_assert_int_eq(receive(&pair, bytes, 100), 100);
    ck_assert(!tls_has_input(pair.server));
    ck_assert_int_eq(receive(&pair, bytes, 1), -EAGAIN);
    pair_close(&pair);
}
END_TEST

START_TEST(tls_a_client_that_reads_nothing_holds_one_buffer)
{
    Pair pair;
    g_autofree uint8_t *bytes = random_bytes(LARGE);
    struct iovec iov = {bytes, LARGE};
    pair_open_ready(&pair, 0);
    ssize_t first = tls_send(pair.server, &iov, 1);
    ck_assert_int_gt(first, 0);
    ck_assert_int_lt(first, LARGE);
    ck_assert(tls_has_output(pair.server));
    for (unsigned i = 0; i < 100; i++) {
        iov = (struct iovec){bytes + first, LARGE - first};
        ck_assert_int_eq(tls_send(pair.server, &iov, 1), 0);
    }
    pair_close(&pair);
}
END_TEST

/* The kernel takes them where it can; elsewhere the session ends, rather than go on with old ones. */
START_TEST(tls_takes_new_keys)
{
    static const size_t PIECES[] = {10, 20000};
    for (unsigned way = 0; way < WAYS; way += 2) {
        Pair pair;
        char bytes[4] = {0};
        pair_open_ready(&pair, way);
        bool can = !tls_is_in_kernel(pair.server) || support == TLS_KERNEL_NEW_KEYS;
        for (unsigned i = 0; i < (can ? 6 : 1); i++) {
            ck_assert_int_eq(gnutls_session_key_update(pair.client, i % 2 ? 0 : GNUTLS_KU_PEER), 0);
            ck_assert_int_eq(gnutls_record_send(pair.client, "next", 4), 4);
            ck_assert_int_eq(receive_some(&pair, bytes, 4), can ? 4 : -EPROTO);
            if (can) {
                ck_assert_mem_eq(bytes, "next", 4);
                send_pieces(&pair, PIECES, 2);
            }
        }
        if (!can) {
            ck_assert_int_eq(client_receive(&pair, bytes, 4), GNUTLS_E_FATAL_ALERT_RECEIVED);
            ck_assert_int_eq(gnutls_alert_get(pair.client), GNUTLS_A_INTERNAL_ERROR);
        }
        pair_close(&pair);
    }
}
END_TEST

/* Who asks for new keys without end is sent away, and takes no memory. */
START_TEST(tls_new_keys_without_end_are_refused)
{
    for (unsigned way = 0; way < WAYS; way += 2) {
        Pair pair;
        char byte;
        ssize_t got = -EAGAIN;
        pair_open_ready(&pair, way);
        for (unsigned i = 0; i < TURNS && got == -EAGAIN; i++) {
            gnutls_session_key_update(pair.client, GNUTLS_KU_PEER);
            got = receive(&pair, &byte, 1);
        }
        ck_assert_int_eq(got, -EPROTO);
        ck_assert_int_eq(receive(&pair, &byte, 1), -EPROTO); /* and stays so */
        pair_close(&pair);
    }
}
END_TEST

START_TEST(tls_renegotiation_is_refused)
{
    for (unsigned way = 1; way < WAYS; way += 2) {
        Pair pair;
        char byte;
        int code = GNUTLS_E_AGAIN;
        pair_open_ready(&pair, way);
        ck_assert_int_eq(gnutls_handshake(pair.client), GNUTLS_E_AGAIN);
        ck_assert_int_eq(receive_some(&pair, &byte, 1), -EPROTO);
        for (unsigned i = 0; i < TURNS && code == GNUTLS_E_AGAIN; i++) {
            wait_a_little(&pair);
            code = gnutls_handshake(pair.client);
        }
        ck_assert_int_eq(code, GNUTLS_E_FATAL_ALERT_RECEIVED);
        ck_assert_int_eq(gnutls_alert_get(pair.client), GNUTLS_A_NO_RENEGOTIATION);
        pair_close(&pair);
    }
}
END_TEST

START_TEST(tls_wrong_keys_and_unknown_users_fail_alike)
{
    static const struct {
        const char *user, *key;
    } BAD[] = {{"alice", "00112233445566778899aabbccddeefe"}, {"nobody", KEY}, {"alic", KEY}};
    for (unsigned version = 0; version < 2; version++) {
        gnutls_alert_description_t alert = 0;
        for (unsigned i = 0; i < G_N_ELEMENTS(BAD); i++) {
            Pair pair;
            ssize_t over;
            pair_open(&pair, BAD[i].user, BAD[i].key, PRIORITIES[version]);
            ck_assert_int_eq(shake_hands(&pair, &over), GNUTLS_E_FATAL_ALERT_RECEIVED);
            ck_assert_int_eq(over, -EPROTO);
            ck_assert(i == 0 || gnutls_alert_get(pair.client) == alert);
            alert = gnutls_alert_get(pair.client);
            pair_close(&pair);
        }
    }
}
END_TEST

START_TEST(tls_knows_the_user)
{
    Pair pair;
    AccessPeer peer = {0};
    pair_open_ready(&pair, 0);
    tls_get_peer(pair.server, &peer);
    ck_assert(peer.tls && peer.dn == NULL && peer.names == NULL);
    ck_assert_str_eq(peer.psk, "alice");
    pair_close(&pair);
}
END_TEST

START_TEST(tls_both_ways_to_end)
{
    char bytes[10];
    for (unsigned way = 0; way < WAYS; way++) {
        Pair pair;
        pair_open_ready(&pair, way); /* what was sent before the goodbye is received */
        ck_assert_int_eq(gnutls_record_send(pair.client, "last", 4), 4);
        ck_assert_int_eq(gnutls_bye(pair.client, GNUTLS_SHUT_WR), 0);
        ck_assert_int_eq(receive_some(&pair, bytes, 10), 4);
        ck_assert(pair.tcp || tls_has_input(pair.server));
        ck_assert_int_eq(receive_some(&pair, bytes, 10), 0);
        ck_assert(tls_may_close(pair.server));
        tls_goodbye(pair.server);
        ck_assert_int_eq(client_receive(&pair, bytes, 10), 0);
        pair_close(&pair);
        pair_open_ready(&pair, way); /* without one */
        ck_assert_int_eq(gnutls_record_send(pair.client, "last", 4), 4);
        close(pair.fds[1]);
        pair.fds[1] = -1;
        ck_assert_int_eq(receive_some(&pair, bytes, 10), 4);
        ck_assert_int_eq(receive_some(&pair, bytes, 10), 0);
        pair_close(&pair);
    }
}
END_TEST

static bool is_all_sent(const Pair *pair)
{
    return tls_may_close(pair->server) && !tls_has_output(pair->server);
}

/* A client that takes nothing: some of what was taken from the caller is not sent, and is kept for it. */
START_TEST(tls_may_not_close_before_all_is_sent)
{
    g_autofree uint8_t *bytes = random_bytes(LARGE);
    for (unsigned way = 2; way < WAYS; way++) {
        Pair pair;
        size_t total = 0, got = 0;
        unsigned turn = 0;
        pair_open_ready(&pair, way);
        for (; turn < TURNS && is_all_sent(&pair); turn++) {
            struct iovec iov = {bytes, LARGE};
            ssize_t sent = tls_send(pair.server, &iov, 1);
            ck_assert_int_ge(sent, 0);
            total += sent;
        }
        ck_assert_uint_lt(turn, TURNS);
        while (got < total) {
            uint8_t some[16384];
            ck_assert_int_ge(tls_send(pair.server, NULL, 0), 0);
            ssize_t r = client_receive(&pair, some, sizeof some);
            ck_assert_int_gt(r, 0);
            got += r;
        }
        for (turn = 0; turn < TURNS && !is_all_sent(&pair); turn++) {
            wait_a_little(&pair);
        }
        ck_assert_uint_lt(turn, TURNS);
        ck_assert_uint_eq(got, total);
        pair_close(&pair);
    }
}
END_TEST

/* The client's side of a handshake, recorded: every cut and every changed byte ends in order. */
START_TEST(tls_any_bytes_in_the_handshake)
{
    uint8_t hello[4096];
    Pair pair;
    char byte;
    pair_open(&pair, "alice", KEY, PRIORITIES[0]);
    ck_assert_int_eq(gnutls_handshake(pair.client), GNUTLS_E_AGAIN);
    ssize_t length = recv(pair.fds[0], hello, sizeof hello, MSG_PEEK | MSG_DONTWAIT);
    ck_assert_int_gt(length, 100);
    pair_close(&pair);
    for (ssize_t i = 0; i < length; i++) {
        pair_open(&pair, "alice", KEY, PRIORITIES[0]);
        hello[i] ^= 0x55;
        ck_assert_int_eq(send(pair.fds[1], hello, length, 0), length);
        hello[i] ^= 0x55;
        ssize_t got = receive(&pair, &byte, 1);
        ck_assert(got == -EAGAIN || got == -EPROTO);
        shutdown(pair.fds[1], SHUT_WR);
        ck_assert_int_eq(receive(&pair, &byte, 1), -EPROTO);
        pair_close(&pair);
        pair_open(&pair, "alice", KEY, PRIORITIES[0]); /* cut here */
        ck_assert_int_eq(send(pair.fds[1], hello, i, 0), i);
        ck_assert_int_eq(receive(&pair, &byte, 1), -EAGAIN);
        shutdown(pair.fds[1], SHUT_WR);
        ck_assert_int_eq(receive(&pair, &byte, 1), -EPROTO);
        pair_close(&pair);
    }
}
END_TEST

static void make_keys(void)
{
    g_autoptr(GError) error = NULL;
    directory = g_dir_make_tmp("cownbd-tls-XXXXXX", NULL);
    ck_assert_ptr_nonnull(directory);
    keys_path = g_build_filename(directory, "keys.psk", NULL);
    ck_assert(g_file_set_contents(keys_path, "bob:00\nalice:" KEY "\n", -1, NULL));
    support = tls_kernel_probe();
    TlsFiles files = {.psk = keys_path, .use_kernel = support != TLS_KERNEL_NONE};
    credentials = tls_credentials_new(&files, &error);
    ck_assert_msg(credentials != NULL, "%s", error != NULL ? error->message : "");
    log_set_level(LOG_LEVEL_ERROR); /* the refusals are what is wanted */
}

static void remove_keys(void)
{
    tls_credentials_free(credentials);
    unlink(keys_path);
    rmdir(directory);
    g_free(keys_path);
    g_free(directory);
}

int main(void)
{
    TCase *tcase = tcase_create("tls");
    tcase_set_timeout(tcase, 120);
    tcase_add_unchecked_fixture(tcase, make_keys, remove_keys);
    tcase_add_test(tcase, tls_sends_pieces_of_any_size);
    tcase_add_test(tcase, tls_receives_into_pieces_of_any_size);
    tcase_add_test(tcase, tls_has_input_that_the_socket_has_not);
    tcase_add_test(tcase, tls_a_client_that_reads_nothing_holds_one_buffer);
    tcase_add_test(tcase, tls_takes_new_keys);
    tcase_add_test(tcase, tls_new_keys_without_end_are_refused);
    tcase_add_test(tcase, tls_renegotiation_is_refused);
    tcase_add_test(tcase, tls_wrong_keys_and_unknown_users_fail_alike);
    tcase_add_test(tcase, tls_knows_the_user);
    tcase_add_test(tcase, tls_both_ways_to_end);
    tcase_add_test(tcase, tls_may_not_close_before_all_is_sent);
    tcase_add_test(tcase, tls_any_bytes_in_the_handshake);
    return suite_run("tls", tcase);
}
