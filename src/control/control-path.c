/*
 * Where a control socket lies, who may use it.
 *
 * What must stay true: the socket's file has mode 0600 before anybody can connect (bind makes the
 * file, listen opens the door); and a file is removed only when it is a
 * socket on which nobody listens.
 */
#include "control/control-path.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "control/control.h"

#define RUNTIME_DIRECTORY "/run/cownbd"
#define LOCK_TRIES        100
#define LOCK_WAIT_USEC    10000

char *control_default_path(void)
{
    if (geteuid() == 0) {
        return g_strdup(RUNTIME_DIRECTORY "/control.sock");
    }
    const char *directory = g_getenv("XDG_RUNTIME_DIR");
    if (directory == NULL || directory[0] != '/') {
        return NULL;
    }
    return g_build_filename(directory, "cownbd", "control.sock", NULL);
}

bool control_address(const char *path, struct sockaddr_un *address, GError **error)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (path[0] == '\0' || strlen(path) >= sizeof address->sun_path) {
        return error_set(error, EINVAL, "control socket '%s': the path must have 1 to %zu bytes",
                         path, sizeof address->sun_path - 1);
    }
    strcpy(address->sun_path, path);
    return true;
}

static bool is_socket(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}

static bool is_alive(const struct sockaddr_un *address)
{
    autofd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 ||
           errno != ECONNREFUSED;
}

/* Two servers that start at once must not take each other's socket, bound but not yet listening, for
 * a stale one: who looks and binds holds the directory. Not for long, for others may hold it too. */
static int lock_directory(const char *path)
{
    g_autofree char *directory = g_path_get_dirname(path);
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int tries = 0; fd >= 0 && tries < LOCK_TRIES && flock(fd, LOCK_EX | LOCK_NB) != 0;
         tries++) {
        g_usleep(LOCK_WAIT_USEC);
    }
    return fd;
}

static int bind_socket(int fd, const struct sockaddr_un *address)
{
    if (bind(fd, (const struct sockaddr *)address, sizeof *address) == 0) {
        return 0;
    }
    if (errno != EADDRINUSE) {
        return errno;
    }
    if (!is_socket(address->sun_path) || is_alive(address)) {
        return EADDRINUSE;
    }
    if (unlink(address->sun_path) != 0 && errno != ENOENT) {
        return errno;
    }
    return bind(fd, (const struct sockaddr *)address, sizeof *address) == 0 ? 0 : errno;
}

void control_make_default_directory(void)
{
    g_autofree char *path = control_default_path();
    g_autofree char *directory = path != NULL ? g_path_get_dirname(path) : NULL;
    if (directory != NULL) {
        mkdir(directory,
              0755); /* there already, or who makes a file in it will say what is wrong */
    }
}

static bool is_default(const char *path)
{
    g_autofree char *standard = control_default_path();
    return standard != NULL && strcmp(path, standard) == 0;
}

int control_listen(const char *path, GError **error)
{
    struct sockaddr_un address;
    if (!control_address(path, &address, error)) {
        return -1;
    }
    if (is_default(path)) {
        control_make_default_directory();
    }
    G_GNUC_UNUSED autofd int lock = lock_directory(path);
    autofd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int err = fd < 0 ? errno : bind_socket(fd, &address);
    if (err == 0 && (chmod(path, 0600) != 0 || listen(fd, SOMAXCONN) != 0)) {
        err = errno;
        unlink(path);
    }
    if (err == EADDRINUSE) {
        error_set(error, err,
                  is_socket(path) ? "control socket %s: in use by another server: choose another "
                                    "with --control"
                                  : "control socket %s: the file exists and is not a socket",
                  path);
        return -1;
    }
    if (err != 0) {
        error_set_errno(error, err, "control socket %s: cannot listen", path);
        return -1;
    }
    return fd_steal(&fd);
}

bool control_peer_is_allowed(int fd)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}
