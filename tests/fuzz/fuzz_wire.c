/*
 * Fuzz target: a client that sends any bytes, to the real connection code on a real worker and a
 * socket.
 *
 * The first byte of the input says how the rest is sent: its low bits in pieces of how many bytes (0:
 * all at once), WITH_TLS inside a TLS session that the target begins, WITH_FREEZE that the server is
 * held still and goes on when all is sent. A client that says STARTTLS itself gets as far as its bytes
 * take it.
 *
 * The node behind the export is a small disk in memory that answers some requests at once and some
 * later, with zero extents in some answers and errors in some. Whatever comes in, the server must
 * answer or hang up when the input ends.
 */
#include <errno.h>
#include <glib.h>
#include <gnutls/gnutls.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/worker.h"
#include "control/export.h"
#include "nbd/nbd-wire.h"
#include "nbd/server.h"
#include "nbd/tls-credentials.h"

#define DISK_SIZE   (96u << 10)
#define INPUT_MAX   (32u << 10) /* fits in the socket's buffer: no need to read meanwhile */
#define SILENCE_MS  20000       /* after which the server has failed to answer or to hang up */

#define WITH_TLS    0x80
#define WITH_FREEZE 0x40
#define TLS_USER    "fuzz"
#define TLS_KEY     "00112233445566778899aabbccddeeff"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static uint8_t disk_bytes[DISK_SIZE];
static Node nodes[2];
static NbdServer *server;
static gnutls_psk_client_credentials_t client_keys;

/* The map of a range: zero and data in turn, in pieces of 5000 bytes. */
static void fill_extents(Request *request)
{
    for (uint64_t at = request->offset, end = at + request->length; at < end;) {
        uint64_t length = min_u64(5000 - at % 5000, end - at);
        Extent extent = {.offset = at,
                         .length = length,
                         .host_offset = at,
                         .type = at / 5000 % 2 ? EXTENT_DATA : EXTENT_ZERO};
        extent_list_add(&request->extents, &extent);
        at += length;
    }
}

/* A context of an export's own: 1 and 0 in turn, in pieces of 3000 bytes. */
static uint32_t own_status(void *data, uint64_t offset, uint64_t length, uint64_t *run)
{
    *run = MIN(3000 - offset % 3000, length);
    return offset / 3000 % 2;
}

/* The disk is never larger than its bytes. */
static int resize(const Request *request)
{
    if (request->length > DISK_SIZE) {
        return -ENOSPC;
    }
    nodes[0].size = request->length;
    return 0;
}

static void answer(Request *request)
{
    if (request->type == REQUEST_RESIZE) {
        request->result = resize(request);
        request->done(request);
        return;
    }
    g_assert(range_within(request->offset, request->length, DISK_SIZE));
    request->result = request->offset % 7 == 6 ? -EIO : 0;
    if (request->type == REQUEST_STATUS || (request->flags & REQUEST_HOLES_OK)) {
        fill_extents(request);
    }
    if (request->type == REQUEST_READ) {
        memcpy(request->buffer, disk_bytes + request->offset, request->length);
    } else if (request->type == REQUEST_WRITE) {
        memcpy(disk_bytes + request->offset, request->buffer, request->length);
    }
    request->done(request);
}

static void answer_later(WorkerMessage *message)
{
    answer((Request *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(Request, message)));
}

static void node_start(Node *node, Request *request)
{
    if (request->offset % 3 == 0) {
        answer(request);
    } else {
        request->message.run = answer_later;
        worker_post(request->worker, &request->message);
    }
}

/* One key that both sides have. */
static TlsCredentials *make_keys(void)
{
    static const char line[] = TLS_USER ":" TLS_KEY "\n";
    int fd = memfd_create("keys", 0);
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    g_assert(write(fd, line, strlen(line)) == (ssize_t)strlen(line));
    g_autoptr(GError) error = NULL;
    TlsCredentials *keys = tls_credentials_new(&(TlsFiles){.psk = path}, &error);
    g_assert_no_error(error);
    close(fd);
    gnutls_datum_t key = {(uint8_t *)TLS_KEY, strlen(TLS_KEY)};
    gnutls_psk_allocate_client_credentials(&client_keys);
    gnutls_psk_set_client_credentials(client_keys, TLS_USER, &key, GNUTLS_PSK_KEY_HEX);
    return keys;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const NodeOps ops = {.submit = node_start};
    static const NbdLimits limits = {.max_clients = 10,
                                     .client_memory = 200 << 10,
                                     .total_memory = 128 << 20,
                                     .allow_resize = true};
    static Worker *worker;
    for (unsigned i = 0; i < G_N_ELEMENTS(nodes); i++) {
        nodes[i] = (Node){&ops, DISK_SIZE, i == 1, 1, 4096, 64 << 20};
    }
    log_set_level(LOG_LEVEL_ERROR);
    worker = worker_new(0, NULL);
    ExportTable *exports = export_table_new();
    Export *disk = export_table_add(exports, "disk", "a disk", &nodes[0], false, NULL);
    export_add_context(disk, "x:own", own_status, NULL, NULL);
    export_table_add(exports, "read-only", NULL, &nodes[1], false, NULL);
    server = nbd_server_new(exports, &limits, &worker, 1);
    nbd_server_set_tls(server, make_keys(), false);
    return 0;
}

static void send_all(int fd, const uint8_t *data, size_t size, size_t piece)
{
    while (size > 0) {
        ssize_t sent = send(fd, data, piece > 0 ? MIN(piece, size) : size, MSG_NOSIGNAL);
        if (sent < 0) {
            return; /* the server has hung up */
        }
        data += sent;
        size -= sent;
    }
}

/* The fuzzer has an alarm of its own, which ends a poll. */
static void wait_for(int fd, short events)
{
    struct pollfd poll_fd = {.fd = fd, .events = events};
    int ready;
    do {
        ready = poll(&poll_fd, 1, SILENCE_MS);
    } while (ready < 0 && errno == EINTR);
    if (ready == 0) {
        g_error("the server neither answers nor hangs up");
    }
}

static void read_until_end(int fd)
{
    static uint8_t buffer[64 << 10];
    do {
        wait_for(fd, POLLIN);
    } while (recv(fd, buffer, sizeof buffer, MSG_DONTWAIT) > 0);
}

static void read_exactly(int fd, uint8_t *buffer, size_t size)
{
    while (size > 0) {
        wait_for(fd, POLLIN);
        ssize_t got = recv(fd, buffer, size, MSG_DONTWAIT);
        g_assert(got > 0);
        buffer += got;
        size -= got;
    }
}

/* The client's side of STARTTLS, which must succeed. */
static gnutls_session_t begin_tls(int fd)
{
    uint8_t hello[NBD_CLIENT_FLAGS_SIZE + NBD_OPTION_SIZE];
    uint8_t answers[NBD_GREETING_SIZE + NBD_OPTION_REPLY_SIZE];
    gnutls_session_t session;
    int r;
    store_be32(hello, NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
    store_be64(hello + NBD_CLIENT_FLAGS_SIZE, NBD_OPTION_MAGIC);
    store_be32(hello + NBD_CLIENT_FLAGS_SIZE + 8, NBD_OPT_STARTTLS);
    store_be32(hello + NBD_CLIENT_FLAGS_SIZE + 12, 0);
    send_all(fd, hello, sizeof hello, 0);
    read_exactly(fd, answers, sizeof answers);
    g_assert(load_be32(answers + NBD_GREETING_SIZE + 12) == NBD_REP_ACK);
    gnutls_init(&session, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL);
    gnutls_priority_set_direct(session, "NORMAL:-KX-ALL:+PSK", NULL);
    gnutls_credentials_set(session, GNUTLS_CRD_PSK, client_keys);
    gnutls_transport_set_int(session, fd);
    while ((r = gnutls_handshake(session)) != GNUTLS_E_SUCCESS) {
        g_assert(r == GNUTLS_E_AGAIN);
        wait_for(fd, gnutls_record_get_direction(session) ? POLLOUT : POLLIN);
    }
    return session;
}

/* As send_all; what the client would have said before TLS has been said. */
static void send_by_tls(int fd, const uint8_t *data, size_t size, size_t piece)
{
    gnutls_session_t session = begin_tls(fd);
    size_t at = MIN(size, NBD_CLIENT_FLAGS_SIZE);
    while (at < size) {
        ssize_t sent =
            gnutls_record_send(session, data + at, piece > 0 ? MIN(piece, size - at) : size - at);
        if (sent < 0) {
            break; /* the server has hung up, or does not read */
        }
        at += sent;
    }
    gnutls_bye(session, GNUTLS_SHUT_WR);
    gnutls_deinit(session);
}

static void hold_still_and_go_on(void)
{
    g_assert(nbd_server_freeze(server, SILENCE_MS / 1000));
    nbd_server_thaw(server);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fds[2];
    if (size < 1 || size > INPUT_MAX) {
        return 0;
    }
    nodes[0].size = DISK_SIZE;
    g_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    nbd_server_accept(server, fds[0]);
    size_t piece = data[0] & ~(WITH_TLS | WITH_FREEZE);
    (data[0] & WITH_TLS ? send_by_tls : send_all)(fds[1], data + 1, size - 1, piece);
    if (data[0] & WITH_FREEZE) {
        hold_still_and_go_on();
    }
    shutdown(fds[1], SHUT_WR);
    read_until_end(fds[1]);
    close(fds[1]);
    while (nbd_server_connections(server) > 0) {
        struct pollfd idle = {.fd = nbd_server_idle_fd(server), .events = POLLIN};
        uint64_t count;
        poll(&idle, 1, 100);
        if (read(idle.fd, &count, sizeof count) < 0) {
            continue;
        }
    }
    return 0;
}
