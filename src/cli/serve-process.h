/*
 * The process around the server: limits, signals, readiness, pid file. [main]
 */
#ifndef CLI_SERVE_PROCESS_H
#define CLI_SERVE_PROCESS_H

#include <glib.h>
#include <stdbool.h>

/* Before any thread starts: blocks SIGTERM, SIGINT and SIGHUP for process_wait, ignores SIGPIPE, raises the
 * limit of open files, keeps malloc from making an arena for each thread. Returns the descriptor
 * that process_wait looks at. */
int process_prepare(void);

typedef enum {
    PROCESS_SIGNAL,
    PROCESS_RELOAD,
    PROCESS_IDLE,
    PROCESS_JOB,
    PROCESS_TICK
} ProcessEvent;

/* Waits for SIGTERM or SIGINT, for SIGHUP (RELOAD), or for idle_fd or job_fd (eventfds, cleared then); or
 * for tick milliseconds (TICK; -1: for ever). */
ProcessEvent process_wait(int signal_fd, int idle_fd, int job_fd, int tick);

/* From a second on SIGTERM and SIGINT end the process at once with status 1. */
void process_signals_kill(void);

/* Tells a service manager (NOTIFY_SOCKET) that something is so: "READY=1". Nobody listening is no
 * error. */
void process_notify(const char *state);

bool process_write_pid_file(const char *path, GError **error);

#endif
