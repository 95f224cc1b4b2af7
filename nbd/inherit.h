/*
 * Sockets that whoever started us has made: listening ones (socket activation) or one that is
 * connected already (inetd). [main]
 */
#ifndef NBD_INHERIT_H
#define NBD_INHERIT_H

#include <glib.h>
#include <stdbool.h>

/* Appends a Listener for each socket of LISTEN_FDS, if LISTEN_PID says that they are for this
 * process; the environment is cleared, so that no child takes them for its own. None there is no
 * error; one that does not listen on a stream is. Before any thread starts. */
bool inherit_listeners(GPtrArray *listeners, GError **error);

/* The connected socket on descriptor 0, non-blocking, as a descriptor of its own; -1: there is none.
 * Descriptors 0, 1 and 2 that were that socket are /dev/null from now on: what is printed must not
 * get to the client. */
int inherit_connection(GError **error);

#endif
