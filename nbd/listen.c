/*
 * Listening sockets.
 *
 * Binding happens in main, where an error can be told; accepting on a worker. When the process is
 * out of file descriptors the listener stops looking for a moment: the waiting client keeps a
 * level-triggered event ready for ever, and a loop that accepts in vain would take a whole CPU from
 * those that are served.
 *
 * What must stay true: the file of a unix socket is removed only when nobody listens on it (before
 * binding), or when it is still the one that we made (at the end).
 */
#include "nbd/listen.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "nbd/nbd-wire.h"

#define ACCEPTS_A_TURN 64
/* A unix socket does not grow its buffer by itself, as TCP does. With the usual 208 KiB a reply of
 * 1 MiB leaves in seven pieces, each with its own wake-up: a quarter of the CPU time of large
 * reads. The kernel may allow less. */
#define UNIX_SEND_BUFFER (1 << 20)
#define PAUSE_USEC       100000
#define LOG_EVERY_USEC   G_USEC_PER_SEC

struct Listener {
    int fd;
    int family;
    char *uri;
    char *path; /* of the unix socket that we made, else NULL */
    dev_t device;
    ino_t inode;

    Worker *worker; /* NULL: not started */
    WorkerMessage start_message, stop_message;
    ListenerAccept accept;
    void *argument;
    struct event *event, *pause;
    int64_t logged; /* when we last said that we are out of descriptors */

    pthread_mutex_t lock; /* over stopped */
    pthread_cond_t changed;
    bool stopped;
};

/* Opening */

static Listener *listener_new(int fd, char *uri)
{
    Listener *listener = g_new0(Listener, 1);
    listener->fd = fd;
    listener->uri = uri;
    socklen_t length = sizeof listener->family;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &listener->family, &length);
    pthread_mutex_init(&listener->lock, NULL);
    pthread_cond_init(&listener->changed, NULL);
    return listener;
}

/* The file of the unix socket, to be removed at the end. */
static void remember_file(Listener *listener, const char *path)
{
    struct stat st;
    if (stat(path, &st) == 0) {
        listener->path = g_strdup(path);
        listener->device = st.st_dev;
        listener->inode = st.st_ino;
    }
}

Listener *listener_adopt(int fd, const char *uri, const char *path)
{
    Listener *listener = listener_new(fd, g_strdup(uri));
    if (path != NULL) {
        remember_file(listener, path);
    }
    return listener;
}

static char *unix_uri(const char *path)
{
    g_autofree char *escaped = g_uri_escape_string(path, "/", TRUE);
    return g_strdup_printf("nbd+unix:///?socket=%s", escaped);
}

/* True when somebody accepts on the unix socket at address. */
static bool is_alive(const struct sockaddr_un *address)
{
    autofd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 ||
           errno != ECONNREFUSED;
}

static bool is_socket(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* Binds; a socket file that nobody listens on gives way. 0 or an errno. */
static int bind_unix(int fd, const struct sockaddr_un *address)
{
    if (bind(fd, (const struct sockaddr *)address, sizeof *address) == 0) {
        return 0;
    }
    if (errno != EADDRINUSE || !is_socket(address->sun_path) || is_alive(address)) {
        return errno == ECONNREFUSED ? EADDRINUSE : errno;
    }
    if (unlink(address->sun_path) != 0 && errno != ENOENT) {
        return errno;
    }
    return bind(fd, (const struct sockaddr *)address, sizeof *address) == 0 ? 0 : errno;
}

/* Before anybody can connect. 0 or an errno. */
static int set_access(const char *path, const ListenerAccess *access)
{
    if ((access->user != (uid_t)-1 || access->group != (gid_t)-1) &&
        lchown(path, access->user, access->group) != 0) {
        return errno;
    }
    return access->has_mode && fchmodat(AT_FDCWD, path, access->mode, AT_SYMLINK_NOFOLLOW) != 0
               ? errno
               : 0;
}

static bool open_unix(const char *path, const ListenerAccess *access, GPtrArray *listeners,
                      GError **error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    autofd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int err = fd < 0 ? errno : bind_unix(fd, &address);
    bool bound = err == 0;
    if (bound) {
        err = set_access(path, access);
    }
    if (err == 0 && listen(fd, SOMAXCONN) != 0) {
        err = errno;
    }
    if (err == EADDRINUSE) {
        return error_set(error, err,
                         is_socket(path) ? "unix:%s: in use: another server listens on it"
                                         : "unix:%s: the file exists and is not a socket",
                         path);
    }
    if (err != 0) {
        if (bound) {
            unlink(path);
        }
        return error_set_errno(error, err, "unix:%s: cannot listen", path);
    }
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    Listener *listener = listener_new(fd_steal(&fd), unix_uri(absolute));
    remember_file(listener, absolute);
    g_ptr_array_add(listeners, listener);
    return true;
}

/* Splits HOST:PORT, [ADDRESS]:PORT, :PORT, HOST. */
static bool split_address(const char *address, char **host, char **port)
{
    const char *colon = strrchr(address, ':');
    if (address[0] == '[') {
        const char *end = strchr(address, ']');
        if (end == NULL || (end[1] != '\0' && end[1] != ':')) {
            return false;
        }
        *host = g_strndup(address + 1, end - address - 1);
        colon = end[1] == ':' ? end + 1 : NULL;
    } else if (colon != NULL && strchr(address, ':') != colon) {
        return false; /* an IPv6 address without brackets */
    } else {
        *host = colon != NULL ? g_strndup(address, colon - address) : g_strdup(address);
    }
    *port = g_strdup(colon != NULL ? colon + 1 : NBD_DEFAULT_PORT);
    /* getaddrinfo takes numbers that are too large, and cuts them. */
    guint64 number;
    return !g_ascii_isdigit((*port)[0]) ||
           g_ascii_string_to_unsigned(*port, 10, 0, UINT16_MAX, &number, NULL);
}

static char *tcp_uri(const struct sockaddr *address, socklen_t length)
{
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (getnameinfo(address, length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return g_strdup("nbd://?/");
    }
    bool v6 = address->sa_family == AF_INET6;
    return g_strdup_printf(v6 ? "nbd://[%s]:%s/" : "nbd://%s:%s/", host, port);
}

/* By which number virtual machines and their host know this system. */
static unsigned local_cid(void)
{
    autofd int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
    unsigned cid;
    return fd >= 0 && ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) == 0 && cid != VMADDR_CID_ANY
               ? cid
               : VMADDR_CID_HOST;
}

char *listener_uri_of(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_un un;
        struct sockaddr_vm vm;
        struct sockaddr_storage storage;
    } address = {.storage = {0}};
    socklen_t length = sizeof address;
    if (getsockname(fd, &address.any, &length) != 0) {
        return g_strdup("nbd://?/");
    }
    switch (address.any.sa_family) {
    case AF_UNIX:
        return unix_uri(address.un.sun_path);
    case AF_VSOCK:
        return g_strdup_printf("nbd+vsock://%u:%u/", local_cid(), address.vm.svm_port);
    default:
        return tcp_uri(&address.any, length);
    }
}

static bool parse_vsock_port(const char *text, guint64 *port)
{
    return g_ascii_string_to_unsigned(text, 10, 0, VMADDR_PORT_ANY - 1, port, NULL);
}

static bool open_vsock(const char *port_text, GPtrArray *listeners, GError **error)
{
    guint64 port = 0;
    parse_vsock_port(port_text, &port); /* was checked */
    struct sockaddr_vm address = {.svm_family = AF_VSOCK,
                                  .svm_cid = VMADDR_CID_ANY,
                                  .svm_port = port != 0 ? port : VMADDR_PORT_ANY};
    autofd int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)(const void *)&address, sizeof address) != 0 ||
        listen(fd, SOMAXCONN) != 0) {
        return error_set_errno(error, errno, "vsock:%s: cannot listen", port_text);
    }
    char *uri = listener_uri_of(fd);
    g_ptr_array_add(listeners, listener_new(fd_steal(&fd), uri));
    return true;
}

/* A listening socket at one address, or -1 with *err set. */
static int open_tcp_socket(const struct addrinfo *info, int *err)
{
    int on = 1;
    autofd int fd = socket(info->ai_family, info->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                           info->ai_protocol);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        (info->ai_family == AF_INET6 &&
         setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) != 0) ||
        bind(fd, info->ai_addr, info->ai_addrlen) != 0 || listen(fd, SOMAXCONN) != 0) {
        *err = errno;
        return -1;
    }
    return fd_steal(&fd);
}

static in_port_t *port_of(struct sockaddr *address)
{
    return address->sa_family == AF_INET6 ? &((struct sockaddr_in6 *)(void *)address)->sin6_port
                                          : &((struct sockaddr_in *)(void *)address)->sin_port;
}

/* The port that a socket bound to port 0 was given. */
static in_port_t given_port(int fd)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &length) != 0) {
        return 0;
    }
    return *port_of((struct sockaddr *)&address);
}

/* Every address of the host; one that this machine does not have (IPv6 switched off) is passed
 * over. */
static bool open_infos(const char *address, struct addrinfo *infos, GPtrArray *listeners,
                       GError **error)
{
    unsigned opened = 0;
    in_port_t port = 0;
    int err = EADDRNOTAVAIL;
    for (struct addrinfo *info = infos; info != NULL; info = info->ai_next) {
        if (*port_of(info->ai_addr) == 0) {
            *port_of(info->ai_addr) = port;
        }
        int fd = open_tcp_socket(info, &err);
        if (fd >= 0) {
            port = given_port(fd);
            g_ptr_array_add(listeners, listener_new(fd, listener_uri_of(fd)));
            opened++;
        } else if (err == EADDRINUSE) {
            return error_set(error, err, "%s: the port is in use: choose another with --listen",
                             address);
        }
    }
    return opened > 0 || error_set_errno(error, err, "%s: cannot listen", address);
}

static bool open_tcp(const char *address, GPtrArray *listeners, GError **error)
{
    g_autofree char *host = NULL, *port = NULL;
    split_address(address, &host, &port); /* was checked */
    struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM};
    struct addrinfo *infos;
    int code = getaddrinfo(host[0] != '\0' ? host : NULL, port, &hints, &infos);
    if (code != 0) {
        return error_set(error, EINVAL, "%s: cannot listen: %s", address, gai_strerror(code));
    }
    bool ok = open_infos(address, infos, listeners, error);
    freeaddrinfo(infos);
    return ok;
}

const char *listener_problem(const char *address)
{
    g_autofree char *host = NULL, *port = NULL;
    guint64 number;
    if (g_str_has_prefix(address, "unix:")) {
        size_t length = strlen(address + strlen("unix:"));
        return length > 0 && length < sizeof((struct sockaddr_un *)0)->sun_path
                   ? NULL
                   : "must be unix:PATH, of 1 to 107 bytes";
    }
    if (g_str_has_prefix(address, "vsock:")) {
        bool is_port = parse_vsock_port(address + strlen("vsock:"), &number);
        return is_port ? NULL : "must be vsock:PORT, a number";
    }
    bool is_tcp = split_address(address, &host, &port);
    return is_tcp ? NULL
                  : "must be HOST:PORT, [ADDRESS]:PORT, :PORT, unix:PATH or vsock:PORT, the TCP "
                    "port at most 65535";
}

bool listener_open(const char *address, const ListenerAccess *access, GPtrArray *listeners,
                   GError **error)
{
    const char *problem = listener_problem(address);
    if (problem != NULL) {
        return error_set(error, EINVAL, "%s: %s", address, problem);
    }
    if (g_str_has_prefix(address, "unix:")) {
        return open_unix(address + strlen("unix:"), access, listeners, error);
    }
    if (g_str_has_prefix(address, "vsock:")) {
        return open_vsock(address + strlen("vsock:"), listeners, error);
    }
    return open_tcp(address, listeners, error);
}

const char *listener_uri(const Listener *listener)
{
    return listener->uri;
}

/* Accepting */

/* Errors that the next accept will have too, until somebody gives something back. */
static bool is_shortage(int err)
{
    return err == EMFILE || err == ENFILE || err == ENOBUFS || err == ENOMEM;
}

static void pause_for_shortage(Listener *listener, int err)
{
    int64_t now = g_get_monotonic_time();
    if (listener->logged == 0 || now - listener->logged >= LOG_EVERY_USEC) {
        listener->logged = now;
        log_error("%s: clients must wait: %s", listener->uri, g_strerror(err));
    }
    struct timeval time = {.tv_usec = PAUSE_USEC};
    event_del(listener->event);
    event_add(listener->pause, &time);
}

void listener_set_options(int family, int fd)
{
    int on = 1, send_buffer = UNIX_SEND_BUFFER;
    if (family == AF_UNIX) {
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer);
    } else if (family != AF_VSOCK) {
        /* Before the first byte is sent. A peer that has vanished is noticed by keep-alive. */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    }
}

static void accept_cb(evutil_socket_t listening, short what, void *argument)
{
    Listener *listener = argument;
    for (unsigned i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            listener_set_options(listener->family, fd);
            listener->accept(fd, listener->argument);
        } else if (is_shortage(errno)) {
            pause_for_shortage(listener, errno);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
}

static void pause_over_cb(evutil_socket_t fd, short what, void *argument)
{
    Listener *listener = argument;
    event_add(listener->event, NULL);
}

static void start_accepting(WorkerMessage *message)
{
    Listener *listener = (void *)((uint8_t *)message - G_STRUCT_OFFSET(Listener, start_message));
    struct event_base *base = worker_base(listener->worker);
    listener->event = event_new(base, listener->fd, EV_READ | EV_PERSIST, accept_cb, listener);
    listener->pause = evtimer_new(base, pause_over_cb, listener);
    if (listener->event == NULL || listener->pause == NULL ||
        event_add(listener->event, NULL) != 0) {
        log_error("%s: cannot watch the socket: %s", listener->uri, g_strerror(errno));
    }
}

void listener_start(Listener *listener, Worker *worker, ListenerAccept accept, void *argument)
{
    listener->worker = worker;
    listener->accept = accept;
    listener->argument = argument;
    listener->start_message.run = start_accepting;
    worker_post(worker, &listener->start_message);
}

static void stop_accepting(WorkerMessage *message)
{
    Listener *listener = (void *)((uint8_t *)message - G_STRUCT_OFFSET(Listener, stop_message));
    g_clear_pointer(&listener->event, event_free);
    g_clear_pointer(&listener->pause, event_free);
    with_mutex(&listener->lock);
    listener->stopped = true;
    pthread_cond_signal(&listener->changed);
}

void listener_pause(Listener *listener)
{
    if (listener->worker == NULL) {
        return;
    }
    listener->stopped = false;
    listener->stop_message.run = stop_accepting;
    worker_post(listener->worker, &listener->stop_message);
    with_mutex(&listener->lock);
    while (!listener->stopped) {
        pthread_cond_wait(&listener->changed, &listener->lock);
    }
    listener->worker = NULL;
}

void listener_stop(Listener *listener)
{
    listener_pause(listener);
    if (listener->fd >= 0) {
        close(fd_steal(&listener->fd));
    }
}

int listener_fd(const Listener *listener)
{
    return listener->fd;
}

const char *listener_path(const Listener *listener)
{
    return listener->path;
}

void listener_leave_file(Listener *listener)
{
    g_clear_pointer(&listener->path, g_free);
}

void listener_free(Listener *listener)
{
    listener_stop(listener);
    struct stat st;
    if (listener->path != NULL && stat(listener->path, &st) == 0 && st.st_dev == listener->device &&
        st.st_ino == listener->inode) {
        unlink(listener->path);
    }
    pthread_mutex_destroy(&listener->lock);
    pthread_cond_destroy(&listener->changed);
    g_free(listener->path);
    g_free(listener->uri);
    g_free(listener);
}
