/*
 * The client side of the control socket.
 *
 * A verb may take as long as it wants, but a server that is stopped or stuck must not hold up who asks:
 * after some time without an answer another connection says hello, which every server that lives
 * answers at once, whatever its verbs do.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "control/control-path.h"
#include "control/control.h"
#include "control/json-line.h"

#define PATIENCE \
    10 /* seconds: until a server without an answer is asked whether it lives, and for its hello */

static int connect_to(const char *path, GError **error)
{
    struct sockaddr_un address;
    if (!control_address(path, &address, error)) {
        return -1;
    }
    autofd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct timeval limit = {.tv_sec =
                                      PATIENCE}; /* where the queue of a stopped one is full */
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        int err = errno;
        if (err == ENOENT || err == ECONNREFUSED) {
            error_set(error, err, "%s: no server listens there: name its socket with --control",
                      path);
        } else {
            error_set_errno(error, err, "%s: cannot connect", path);
        }
        return -1;
    }
    return fd_steal(&fd);
}

static bool send_line(int fd, const char *path, const char *line, GError **error)
{
    size_t length = strlen(line);
    if (length > CONTROL_LINE_MAX) {
        return error_set(error, E2BIG, "request of %zu bytes: must be at most %u", length,
                         CONTROL_LINE_MAX);
    }
    while (length > 0) {
        ssize_t sent = send(fd, line, length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR) {
            return error_set_errno(error, errno, "%s: cannot send", path);
        }
        if (sent > 0) {
            line += sent;
            length -= sent;
        }
    }
    return true;
}

static bool comes_in_time(int fd)
{
    struct pollfd item = {.fd = fd, .events = POLLIN};
    int r;
    do {
        r = poll(&item, 1, PATIENCE * 1000);
    } while (r < 0 && errno == EINTR);
    return r != 0;
}

static bool says_hello(const char *path)
{
    autofd int fd = connect_to(path, NULL);
    return fd >= 0 && send_line(fd, path, "{\"verb\":\"hello\"}\n", NULL) && comes_in_time(fd);
}

/* False: the server does not live. */
static bool wait_for_answer(int fd, const char *path, GError **error)
{
    while (!comes_in_time(fd)) {
        struct ucred server = {0};
        socklen_t length = sizeof server;
        if (says_hello(path) || comes_in_time(fd)) {
            continue;
        }
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server, &length);
        return error_set(error, ETIMEDOUT,
                         "%s: its server, process %d, does not answer: it is stopped or stuck: let "
                         "it go on (kill -CONT %d), or end it",
                         path, server.pid, server.pid);
    }
    return true;
}

/* Receives up to the newline. NULL: *error. */
static GString *receive_line(int fd, const char *path, GError **error)
{
    g_autoptr(GString) line = g_string_new(NULL);
    for (;;) {
        char piece[4096];
        if (!wait_for_answer(fd, path, error)) {
            return NULL;
        }
        ssize_t got = recv(fd, piece, sizeof piece, 0);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            error_set_errno(error, errno, "%s: cannot receive", path);
            return NULL;
        }
        if (got == 0 || line->len + got > CONTROL_ANSWER_MAX) {
            error_set(error, got == 0 ? EPIPE : EPROTO,
                      got == 0 ? "%s: the server has gone before it answered"
                               : "%s: the answer is too long",
                      path);
            return NULL;
        }
        g_string_append_len(line, piece, got);
        char *newline = memchr(line->str + line->len - got, '\n', got);
        if (newline != NULL) {
            g_string_truncate(line, newline - line->str);
            return g_steal_pointer(&line);
        }
    }
}

static JsonObject *make_request(const char *verb, JsonObject *arguments)
{
    JsonObject *request = json_object_new();
    json_object_set_string_member(request, "verb", verb);
    if (arguments != NULL) {
        JsonObjectIter iter;
        const char *key;
        JsonNode *value;
        json_object_iter_init_ordered(&iter, arguments);
        while (json_object_iter_next_ordered(&iter, &key, &value)) {
            json_object_set_member(request, key, json_node_copy(value));
        }
    }
    return request;
}

/* The answer of a line, when the server said yes. */
static JsonObject *take_answer(const char *path, const GString *line, GError **error)
{
    g_autoptr(GError) nonsense = NULL;
    g_autoptr(JsonObject) answer =
        json_line_parse(line->str, line->len, CONTROL_DEPTH_MAX, &nonsense);
    if (answer == NULL) {
        error_set(error, EPROTO, "%s: the answer is not of this protocol", path);
        return NULL;
    }
    if (json_object_get_boolean_member_with_default(answer, "ok", FALSE)) {
        return g_steal_pointer(&answer);
    }
    int code = json_object_get_int_member_with_default(answer, "code", EPROTO);
    error_set(error, code, "%s",
              json_object_get_string_member_with_default(answer, "error", "no reason given"));
    return NULL;
}

JsonObject *control_call(const char *path, const char *verb, JsonObject *arguments, GError **error)
{
    autofd int fd = connect_to(path, error);
    if (fd < 0) {
        return NULL;
    }
    g_autoptr(JsonObject) request = make_request(verb, arguments);
    g_autofree char *text = json_line_print(request);
    if (!send_line(fd, path, text, error)) {
        return NULL;
    }
    g_autoptr(GString) line = receive_line(fd, path, error);
    return line != NULL ? take_answer(path, line, error) : NULL;
}
