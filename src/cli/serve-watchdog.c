/*
 * The watchdog of a service manager: it restarts a server of which it hears nothing for some time.
 *
 *      main --message--> each worker --back in time--> all have answered: "WATCHDOG=1"
 *
 * So a ping means that main and every worker go round, not only that some thread is alive. The pool is
 * not asked: its threads wait for disks, and how long those may take is not ours to say.
 *
 * What must stay true: a worker's message is posted again only when it has come back.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli/serve-impl.h"
#include "cli/serve-process.h"

typedef struct Beat {
    WorkerMessage message;
    atomic_bool out; /* the worker has not run it yet */
} Beat;

struct ServeWatchdog {
    int64_t last; /* ping, g_get_monotonic_time */
    unsigned count;
    Beat *beats; /* one a worker */
};

static void come_back(WorkerMessage *message)
{
    Beat *beat = (Beat *)(void *)((char *)message - G_STRUCT_OFFSET(Beat, message));
    atomic_store(&beat->out, false);
}

/* Twice in the time that the manager waits, as it advises; -1: it does not wait for us. */
static int interval(const Serve *serve)
{
    const char *time = g_getenv("WATCHDOG_USEC"), *pid = g_getenv("WATCHDOG_PID");
    guint64 microseconds, process;
    if (time == NULL || !g_ascii_string_to_unsigned(time, 10, 1, G_MAXINT64, &microseconds, NULL)) {
        return -1;
    }
    /* Who takes over was told by MAINPID; the variable still has the number of the first process. */
    if (pid != NULL && serve->options.take_over < 0 &&
        (!g_ascii_string_to_unsigned(pid, 10, 1, G_MAXINT32, &process, NULL) ||
         process != (guint64)getpid())) {
        return -1;
    }
    return CLAMP(microseconds / 2000, 1, G_MAXINT);
}

static void ping(Serve *serve)
{
    process_notify("WATCHDOG=1");
    serve->watchdog->last = g_get_monotonic_time();
    for (unsigned i = 0; i < serve->watchdog->count; i++) {
        Beat *beat = &serve->watchdog->beats[i];
        atomic_store(&beat->out, true);
        worker_post(g_ptr_array_index(serve->workers, i), &beat->message);
    }
}

void serve_watchdog_start(Serve *serve)
{
    serve->tick = interval(serve);
    if (serve->tick < 0) {
        return;
    }
    ServeWatchdog *watchdog = g_new0(ServeWatchdog, 1);
    watchdog->count = serve->workers->len;
    watchdog->beats = g_new0(Beat, watchdog->count);
    for (unsigned i = 0; i < watchdog->count; i++) {
        watchdog->beats[i].message.run = come_back;
    }
    serve->watchdog = watchdog;
    ping(serve);
}

void serve_watchdog_tick(Serve *serve)
{
    const int64_t half = (int64_t)serve->tick * 1000 / 2;
    if (serve->watchdog == NULL || g_get_monotonic_time() - serve->watchdog->last < half) {
        return;
    }
    for (unsigned i = 0; i < serve->watchdog->count; i++) {
        if (atomic_load(&serve->watchdog->beats[i].out)) {
            return; /* one that does not come back soon is what the watchdog is for */
        }
    }
    ping(serve);
}

void serve_watchdog_free(Serve *serve)
{
    if (serve->watchdog != NULL) {
        g_free(serve->watchdog->beats);
        g_clear_pointer(&serve->watchdog, g_free);
    }
}
