/*
 * cownbd serve: images over NBD.
 *
 *      options -> images, disks, exports -> sockets -> workers -> control, attach
 *              -> "listening on" -> wait -> stop
 *
 * Everything that can be refused is refused before the first line on stdout. What must stay true at
 * the end: no disk is closed while a request is in flight, and the exit status is 0 only when every
 * disk's flush was.
 */
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "base/shield.h"
#include "cli/cli.h"
#include "cli/serve-impl.h"
#include "cli/serve-process.h"
#include "nbd/listen.h"
#include "store/aio.h"

#define POOL_THREADS_MIN 4

static bool start_workers(Serve *serve, GError **error)
{
    for (int i = 0; i < serve->options.threads; i++) {
        Worker *worker = worker_new(i, error);
        if (worker == NULL) {
            return false;
        }
        g_ptr_array_add(serve->workers, worker);
    }
    return true;
}

static void start_server(Serve *serve)
{
    const ServeOptions *o = &serve->options;
    NbdLimits limits = {
        .max_clients = o->max_clients,
        .client_memory = o->client_memory,
        .total_memory = o->total_memory,
        .stall_timeout = o->stall_timeout,
        .handshake_timeout = o->handshake_timeout,
        .allow_resize = o->allow_resize,
        .shutdown_timeout = o->shutdown_timeout,
    };
    serve->server = nbd_server_new(serve->exports, &limits, (Worker *const *)serve->workers->pdata,
                                   serve->workers->len);
}

/* All is open, and nobody was served yet: nothing more is needed than a server's daily work. */
static bool give_up_rights(Serve *serve, GError **error)
{
    const ServeOptions *o = &serve->options;
    return (o->pid_file == NULL || process_write_pid_file(o->pid_file, error)) &&
           serve_user_become(o, error) && serve_sandbox_calls(serve, error);
}

static void notify_ready(const Serve *serve)
{
    unsigned count = serve->images->len;
    g_autofree char *state =
        g_strdup_printf("READY=1\nSTATUS=%u image%s served", count, count == 1 ? " is" : "s are");
    process_notify(state);
}

static void tell_ready(Serve *serve)
{
    /* Who made a socket knows where it is, and may use our standard output for other things. */
    for (unsigned i = serve->inherited; i < serve->listeners->len && serve->options.take_over < 0;
         i++) {
        g_autofree char *uri = serve_listen_uri(serve, g_ptr_array_index(serve->listeners, i));
        printf("listening on %s\n", uri);
    }
    if (serve->metrics != NULL && serve->options.take_over < 0) {
        printf("status page on %s\n", metrics_uri(serve->metrics));
    }
    fflush(stdout);
    notify_ready(serve);
    serve_watchdog_start(serve);
    serve_attach_ready(serve);
}

/* What is attached; when this process takes over, clients are worth more than devices, which wait for
 * the next server. */
static bool start_attached(Serve *serve, GError **error)
{
    g_autoptr(GError) refusal = NULL;
    if (serve_attach_start(serve, &refusal)) {
        return true;
    }
    if (serve->takeover == NULL) {
        g_propagate_error(error, g_steal_pointer(&refusal));
        return false;
    }
    log_error("block devices are not served: %s: say serve --adopt", refusal->message);
    return true;
}

static bool start(Serve *serve, GError **error)
{
    bool takes_over = serve->options.take_over >= 0;
    if (!takes_over && !serve_listen_inherit(serve, error)) {
        return false;
    }
    if (!serve_sandbox_files(&serve->options, error)) {
        return false;
    }
    shield_threads(); /* any image may be attached later; where it is not allowed none can be */
    serve->pool = pool_new(MAX(POOL_THREADS_MIN, 2 * serve->options.threads));
    aio_init(serve->pool);
    if (!start_workers(serve, error) || (takes_over && !serve_takeover_receive(serve, error)) ||
        !serve_tls_open(serve, error) || !serve_attach_check(serve, error) ||
        !serve_images_open(serve, error) || (!takes_over && !serve_listen_open(serve, error)) ||
        !serve_metrics_open(serve, error)) {
        return false;
    }
    start_server(serve);
    serve_directory_start(serve);
    nbd_server_set_tls(serve->server, serve->tls, serve->options.tls == SERVE_TLS_REQUIRE);
    if (!serve_control_open(serve, error) || (takes_over && !serve_takeover_commit(serve, error))) {
        return false;
    }
    /* No client before what the kernel still holds is looked at. */
    if (!start_attached(serve, error) ||
        (serve->control != NULL && !control_start(serve->control, error)) ||
        !serve_metrics_start(serve, error) || !give_up_rights(serve, error)) {
        return false;
    }
    if (takes_over) {
        serve_takeover_go(serve);
        serve_images_reap(serve);
    }
    serve_start_listeners(serve);
    tell_ready(serve);
    return true;
}

/* Jobs for main */

struct ServeJob {
    void (*function)(Serve *serve, void *argument);
    void *argument;
    bool begun, done; /* job_lock */
};

bool serve_on_main(Serve *serve, void (*function)(Serve *serve, void *argument), void *argument)
{
    ServeJob job = {.function = function, .argument = argument};
    with_mutex(&serve->ask_lock);
    with_mutex(&serve->job_lock);
    if (serve->leaving) {
        return false;
    }
    serve->job = &job;
    eventfd_write(serve->job_fd, 1);
    /* What main has begun it ends, whoever asks it to leave meanwhile. */
    while (!job.done && (job.begun || !serve->leaving)) {
        pthread_cond_wait(&serve->job_changed, &serve->job_lock);
    }
    serve->job = NULL;
    return job.done;
}

bool serve_is_ending(GError **error)
{
    return error_set(error, ESHUTDOWN, "the server is ending");
}

void serve_leave(Serve *serve)
{
    with_mutex(&serve->job_lock);
    serve->leaving = true;
    eventfd_write(serve->job_fd, 1);
    pthread_cond_broadcast(&serve->job_changed);
}

static bool is_leaving(Serve *serve)
{
    with_mutex(&serve->job_lock);
    return serve->leaving;
}

static ServeJob *begin_job(Serve *serve)
{
    with_mutex(&serve->job_lock);
    if (serve->leaving || serve->job == NULL || serve->job->begun) {
        return NULL;
    }
    serve->job->begun = true;
    return serve->job;
}

static void run_job(Serve *serve)
{
    ServeJob *job = begin_job(serve);
    if (job == NULL) {
        return;
    }
    job->function(serve, job->argument);
    with_mutex(&serve->job_lock);
    job->done = true;
    pthread_cond_broadcast(&serve->job_changed);
}

static bool has_served_all(const Serve *serve)
{
    const ServeOptions *o = &serve->options;
    return (o->stdio || (o->once && nbd_server_has_served(serve->server))) &&
           nbd_server_connections(serve->server) == 0;
}

/* SIGHUP. What cannot be read stays as it was. */
static void reload(Serve *serve)
{
    g_autoptr(GError) error = NULL, no_log = NULL;
    g_autoptr(JsonObject) answer = json_object_new();
    g_autofree char *state =
        g_strdup_printf("RELOADING=1\nMONOTONIC_USEC=%" G_GINT64_FORMAT, g_get_monotonic_time());
    process_notify(state);
    if (!log_reopen(&no_log)) {
        log_error("%s", no_log->message);
    }
    if (serve_reload(serve, answer, &error)) {
        log_info("reloaded");
    } else {
        log_error("not reloaded, all stays as it was: %s", error->message);
    }
    notify_ready(serve);
}

static void wait_for_the_end(Serve *serve)
{
    int idle_fd = nbd_server_idle_fd(serve->server);
    while (!is_leaving(serve)) {
        switch (process_wait(serve->signal_fd, idle_fd, serve->job_fd, serve->tick)) {
        case PROCESS_SIGNAL:
            return;
        case PROCESS_RELOAD:
            reload(serve);
            break;
        case PROCESS_JOB:
            run_job(serve);
            serve_directory_run(serve, true);
            serve->failed |= !serve_images_reap(serve);
            break;
        case PROCESS_TICK:
            break;
        case PROCESS_IDLE:
            if (has_served_all(serve)) {
                return;
            }
        }
        serve_watchdog_tick(serve);
    }
}

static void stop_worker(void *worker, void *unused)
{
    worker_stop(worker);
}

static void free_worker(void *worker, void *unused)
{
    worker_free(worker);
}

static void stop_server(Serve *serve)
{
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        listener_stop(g_ptr_array_index(serve->listeners, i));
    }
    serve_attach_stop(serve);
    if (serve->server != NULL) {
        nbd_server_stop(serve->server);
        while (nbd_server_connections(serve->server) > 0) {
            serve_directory_run(serve, false);
            process_wait(serve->signal_fd, nbd_server_idle_fd(serve->server), serve->job_fd, -1);
        }
    }
}

/* Ends connections, then disks, then threads; each part may not have been started. 0 or the exit
 * status. */
static int stop(Serve *serve)
{
    process_signals_kill();
    if (!serve->handed_over) {
        process_notify("STOPPING=1");
    }
    serve_leave(serve);
    control_free(serve->control);
    metrics_free(serve->metrics);
    stop_server(serve);
    serve_takeover_free(serve); /* which may have exports pinned */
    int status = serve_images_close(serve) ? 0 : 1;
    /* Who may be in the middle of waking a worker goes before the worker: the pool, then the other
     * workers. */
    pool_free(serve->pool);
    g_ptr_array_foreach(serve->workers, stop_worker, NULL);
    g_ptr_array_foreach(serve->workers, free_worker, NULL);
    g_clear_pointer(&serve->server, nbd_server_free);
    serve_watchdog_free(serve);
    return serve->failed ? 1 : status;
}

static void serve_init(Serve *serve)
{
    *serve = (Serve){
        .signal_fd = process_prepare(),
        .images = g_ptr_array_new(),
        .exports = export_table_new(),
        .workers = g_ptr_array_new(),
        .listeners = g_ptr_array_new(),
        .stdio_fd = -1,
        .tick = -1,
        .started = g_get_monotonic_time(),
        .job_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
    };
    g_assert(serve->job_fd >= 0);
    pthread_mutex_init(&serve->ask_lock, NULL);
    pthread_mutex_init(&serve->job_lock, NULL);
    pthread_cond_init(&serve->job_changed, NULL);
    serve_options_init(&serve->options);
}

static void serve_clear(Serve *serve)
{
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        listener_free(g_ptr_array_index(serve->listeners, i));
    }
    g_ptr_array_unref(serve->listeners);
    if (serve->stdio_fd >= 0) {
        close(serve->stdio_fd);
    }
    g_ptr_array_unref(serve->workers);
    g_ptr_array_unref(serve->images);
    export_table_free(serve->exports);
    pthread_mutex_destroy(&serve->ask_lock);
    tls_credentials_free(serve->tls);
    pthread_mutex_destroy(&serve->job_lock);
    pthread_cond_destroy(&serve->job_changed);
    close(serve->signal_fd);
    close(serve->job_fd);
    serve_listing_forget(serve);
    g_clear_pointer(&serve->reloaded, config_free);
    serve_options_clear(&serve->options);
    g_strfreev(serve->argv);
}

/* Starts, waits, stops. */
static int serve_run(Serve *serve)
{
    g_autoptr(GError) error = NULL;
    bool started = start(serve, &error);
    if (started) {
        wait_for_the_end(serve);
    } else if (serve->takeover != NULL) {
        serve_takeover_refuse(serve, error);
    }
    int status = stop(serve);
    if (started && serve->options.pid_file != NULL && !serve->handed_over) {
        unlink(serve->options.pid_file);
    }
    return started ? status : cli_fail(error);
}

int cli_serve(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    Serve serve;
    serve_init(&serve);
    serve.argv = g_strdupv(argv);
    int status = serve_options_parse(&serve.options, &argc, &argv, &error) ? serve_run(&serve)
                                                                           : cli_fail(error);
    serve_clear(&serve);
    return status;
}
