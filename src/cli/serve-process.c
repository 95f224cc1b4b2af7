/*
 * The process around the server.
 *
 * Signals are taken by main alone, from a signalfd: no handler runs beside other code, until a
 * second signal finds one that does nothing but leave.
 */
#include "cli/serve-process.h"

#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "base/errors.h"
#include "base/log.h"

#define MALLOC_ARENAS         2
#define SECOND_SIGNAL_US      1000000
#define MALLOC_MMAP_THRESHOLD (256 << 10) /* above, memory goes back to the kernel when freed */

static sigset_t stop_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    return set;
}

int process_prepare(void)
{
    sigset_t set = stop_signals();
    sigaddset(&set, SIGHUP);
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    mallopt(M_ARENA_MAX, MALLOC_ARENAS);
    mallopt(M_MMAP_THRESHOLD, MALLOC_MMAP_THRESHOLD);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    g_assert(fd >= 0);
    return fd;
}

ProcessEvent process_wait(int signal_fd, int idle_fd, int job_fd, int tick)
{
    for (;;) {
        struct pollfd fds[] = {{.fd = signal_fd, .events = POLLIN},
                               {.fd = idle_fd, .events = POLLIN},
                               {.fd = job_fd, .events = POLLIN}};
        int ready = poll(fds, G_N_ELEMENTS(fds), tick);
        if (ready < 0) {
            g_assert(errno == EINTR);
            continue;
        }
        if (ready == 0) {
            return PROCESS_TICK;
        }
        struct signalfd_siginfo info;
        if (read(signal_fd, &info, sizeof info) == sizeof info) {
            return info.ssi_signo == SIGHUP ? PROCESS_RELOAD : PROCESS_SIGNAL;
        }
        eventfd_t count;
        if (eventfd_read(idle_fd, &count) == 0) {
            return PROCESS_IDLE;
        }
        if (eventfd_read(job_fd, &count) == 0) {
            return PROCESS_JOB;
        }
    }
}

static gint64 stop_began; /* microseconds */

/* Who sends one twice at once (timeout(1) sends it to the process and to its group) means one. */
static void leave_now(int number)
{
    if (g_get_monotonic_time() - stop_began >= SECOND_SIGNAL_US) {
        _exit(1);
    }
}

void process_signals_kill(void)
{
    sigset_t set = stop_signals();
    stop_began = g_get_monotonic_time();
    signal(SIGTERM, leave_now);
    signal(SIGINT, leave_now);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
}

void process_notify(const char *state)
{
    int r = sd_notify(0, state);
    if (r < 0) {
        log_warning("cannot notify %s: %s", g_getenv("NOTIFY_SOCKET"), g_strerror(-r));
    }
}

bool process_write_pid_file(const char *path, GError **error)
{
    g_autofree char *text = g_strdup_printf("%d\n", (int)getpid());
    return g_file_set_contents(path, text, -1, error);
}
