/*
 * Fuzz target: a client that sends any bytes, to the real connection code on a real worker and a
 * socket.
 *
 * The first byte of the input says in pieces of how many bytes the rest is sent (0: all at once).
 * The node behind the export is a small disk in memory that answers some requests at once and some
 * later, with zero extents in some answers and errors in some. Whatever comes in, the server must
 * answer or hang up when the input ends.
 */
#include <glib.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/worker.h"
#include "control/export.h"
#include "nbd/server.h"

#define DISK_SIZE  (96u << 10)
#define INPUT_MAX  (32u << 10) /* fits in the socket's buffer: no need to read meanwhile */
#define SILENCE_MS 20000       /* after which the server has failed to hang up */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static uint8_t disk_bytes[DISK_SIZE];
static NbdServer *server;

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

static void answer(Request *request)
{
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

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const NodeOps ops = {.submit = node_start};
    static Node nodes[2] = {
        {&ops, DISK_SIZE, false, 1, 4096, 64 << 20},
        {&ops, DISK_SIZE, true, 1, 4096, 64 << 20},
    };
    static const NbdLimits limits = {.max_clients = 10, .client_memory = 200 << 10};
    static Worker *worker;
    log_set_level(LOG_LEVEL_ERROR);
    worker = worker_new(0, NULL);
    ExportTable *exports = export_table_new();
    Export *disk = export_table_add(exports, "disk", "a disk", &nodes[0], false, NULL);
    export_add_context(disk, "x:own", own_status, NULL, NULL);
    export_table_add(exports, "read-only", NULL, &nodes[1], false, NULL);
    server = nbd_server_new(exports, &limits, &worker, 1);
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

static void read_until_end(int fd)
{
    static uint8_t buffer[64 << 10];
    for (;;) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        if (poll(&poll_fd, 1, SILENCE_MS) == 0) {
            g_error("the server neither answers nor hangs up");
        }
        if (recv(fd, buffer, sizeof buffer, MSG_DONTWAIT) <= 0) {
            return;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fds[2];
    if (size < 1 || size > INPUT_MAX) {
        return 0;
    }
    g_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    nbd_server_accept(server, fds[0]);
    send_all(fds[1], data + 1, size - 1, data[0]);
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
