/*
 * The server under test, as a child process on a unix socket.
 */
#ifndef COMPARE_SERVER_H
#define COMPARE_SERVER_H

#include <sys/types.h>

typedef struct Server {
    pid_t pid;
    char *socket; /* path */
} Server;

/* Starts `program serve` for count images, each an export under its base name, with the control socket `control` in
 * directory, and waits until it can be reached. A program whose name ends in qemu-nbd is started as that (one image; a test of
 * the test). */
void server_start(Server *server, const char *program, const char *directory, const char *format,
                  char *const *images, unsigned count);

/* Asks it to end. */
void server_ask_to_end(Server *server);

/* Waits for that; it must end in good order. */
void server_wait(Server *server);

/* Both. */
void server_stop(Server *server);

#endif
