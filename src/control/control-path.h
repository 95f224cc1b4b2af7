/*
 * Where a control socket lies, who may use it.
 */
#ifndef CONTROL_CONTROL_PATH_H
#define CONTROL_CONTROL_PATH_H

#include <glib.h>
#include <stdbool.h>
#include <sys/un.h>

/* The address of path; false where it is too long. */
bool control_address(const char *path, struct sockaddr_un *address, GError **error);

/* A listening socket (non-blocking) at path, mode 0600; -1 with *error set. A socket file on which
 * nobody listens gives way; another file does not. */
int control_listen(const char *path, GError **error);

/* True when the process at the other end is root's or of our user. */
bool control_peer_is_allowed(int fd);

#endif
