/*
 * Listening sockets: TCP over IPv4 and IPv6, unix and vsock.
 *
 *      HOST:PORT  [ADDRESS]:PORT  :PORT (all interfaces)  HOST (port 10809)  unix:PATH
 *      vsock:PORT (from virtual machines of this host; in one: from its host)
 *
 * A port of 0 takes a free one; listener_uri tells which.
 */
#ifndef NBD_LISTEN_H
#define NBD_LISTEN_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/worker.h"

typedef struct Listener Listener;

/* Takes fd: a connected socket, non-blocking, ready to serve. [worker] */
typedef void (*ListenerAccept)(int fd, void *argument);

/* Who may connect to a unix socket that we make. */
typedef struct ListenerAccess {
    bool has_mode;
    mode_t mode; /* permissions; else what the umask leaves */
    uid_t user;  /* -1: unchanged */
    gid_t group; /* -1: unchanged */
} ListenerAccess;

#define LISTENER_ACCESS_INIT                  \
    {                                         \
        .user = (uid_t)-1, .group = (gid_t)-1 \
    }

/* What an address must be that is none; NULL: it may be one. Nothing is opened or looked up. [any] */
const char *listener_problem(const char *address);

/* Binds and listens; appends a Listener for each socket (a host may have several addresses). A unix
 * socket file on which nobody listens is replaced; nobody can connect before it is as access says.
 * [main] */
bool listener_open(const char *address, const ListenerAccess *access, GPtrArray *listeners,
                   GError **error);

/* The URI of a bound socket of any of these families. */
char *listener_uri_of(int fd);

/* Sets what a connected socket of that family should have. [any] */
void listener_set_options(int family, int fd);

/* "nbd://127.0.0.1:10809/" or "nbd+unix:///?socket=/path"; valid as long as the listener. */
const char *listener_uri(const Listener *listener);

/* Accepts on worker from now on. [main] */
void listener_start(Listener *listener, Worker *worker, ListenerAccept accept, void *argument);

/* Accepts no more; returns when that is so, and closes the socket. [main] */
void listener_stop(Listener *listener);

/* Accepts no more until listener_start is called again; who connects meanwhile waits. [main] */
void listener_pause(Listener *listener);

/* To hand a listener over to another process: its socket, the unix socket's file (NULL: none). The
 * file is left alone from now on by listener_free. [main] */
int listener_fd(const Listener *listener);
const char *listener_path(const Listener *listener);
void listener_leave_file(Listener *listener);

/* The same in the other process. Takes fd, bound and listening; path may be NULL. [main] */
Listener *listener_adopt(int fd, const char *uri, const char *path);

/* Stopped or never started. Removes the unix socket's file. [main] */
void listener_free(Listener *listener);

#endif
