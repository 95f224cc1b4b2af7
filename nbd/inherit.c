/*
 * Inherited sockets.
 *
 * Socket activation: descriptors 3 to 3 + LISTEN_FDS - 1, of the process LISTEN_PID. Any parent can
 * speak it with two environment variables: systemd, libnbd, socat.
 *
 * inetd: the client's socket is descriptor 0, and 1 and 2 too.
 */
#include "nbd/inherit.h"

#include <errno.h>
#include <fcntl.h>
#include <glib-unix.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "nbd/listen.h"

#define FIRST_FD 3
#define FDS_MAX  1024

static bool get_number(const char *variable, guint64 maximum, guint64 *number)
{
    const char *text = g_getenv(variable);
    return text != NULL && g_ascii_string_to_unsigned(text, 10, 0, maximum, number, NULL);
}

static int option_of(int fd, int option)
{
    int value;
    socklen_t length = sizeof value;
    return getsockopt(fd, SOL_SOCKET, option, &value, &length) == 0 ? value : -1;
}

static bool prepare(int fd, GError **error)
{
    return g_unix_set_fd_nonblocking(fd, TRUE, error) &&
           (fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 ||
            error_set_errno(error, errno, "descriptor %d", fd));
}

static bool inherit_listener(int fd, GPtrArray *listeners, GError **error)
{
    if (option_of(fd, SO_ACCEPTCONN) != 1 || option_of(fd, SO_TYPE) != SOCK_STREAM) {
        return error_set(error, EINVAL,
                         "LISTEN_FDS: descriptor %d must be a stream socket that listens", fd);
    }
    if (!prepare(fd, error)) {
        return false;
    }
    g_autofree char *uri = listener_uri_of(fd);
    g_ptr_array_add(listeners, listener_adopt(fd, uri, NULL));
    return true;
}

bool inherit_listeners(GPtrArray *listeners, GError **error)
{
    guint64 pid, count;
    bool ours = get_number("LISTEN_PID", G_MAXINT, &pid) && pid == (guint64)getpid();
    bool counted = get_number("LISTEN_FDS", FDS_MAX, &count);
    const char *variables[] = {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"};
    for (unsigned i = 0; i < G_N_ELEMENTS(variables); i++) {
        g_unsetenv(variables[i]);
    }
    if (!ours) {
        return true;
    }
    if (!counted) {
        return error_set(error, EINVAL, "LISTEN_FDS: must be a number of at most %u", FDS_MAX);
    }
    for (guint64 i = 0; i < count; i++) {
        if (!inherit_listener(FIRST_FD + i, listeners, error)) {
            return false;
        }
    }
    return true;
}

int inherit_connection(GError **error)
{
    struct stat client, other;
    int family = option_of(0, SO_DOMAIN);
    if (fstat(0, &client) != 0 || option_of(0, SO_TYPE) != SOCK_STREAM ||
        option_of(0, SO_ACCEPTCONN) != 0 || family < 0) {
        error_set(error, EINVAL, "--stdio: standard input must be a connected stream socket");
        return -1;
    }
    autofd int fd = fcntl(0, F_DUPFD_CLOEXEC, FIRST_FD);
    autofd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd < 0 || null < 0 || !g_unix_set_fd_nonblocking(fd, TRUE, NULL)) {
        error_set_errno(error, errno, "--stdio");
        return -1;
    }
    for (int standard = 0; standard <= 2; standard++) {
        if (fstat(standard, &other) == 0 && other.st_dev == client.st_dev &&
            other.st_ino == client.st_ino) {
            dup2(null, standard);
        }
    }
    listener_set_options(family, fd);
    return fd_steal(&fd);
}
