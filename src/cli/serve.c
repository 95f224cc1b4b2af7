/*
 * cownbd serve: images over NBD.
 *
 *      options -> images, disks, exports -> sockets -> workers -> "listening on" -> wait -> stop
 *
 * Everything that can be refused is refused before the first line on stdout. What must stay true at
 * the end: no disk is closed while a request is in flight, and the exit status is 0 only when every
 * disk's flush was.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/errors.h"
#include "base/log.h"
#include "base/pool.h"
#include "base/worker.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/serve-process.h"
#include "control/export.h"
#include "engine/disk.h"
#include "formats/option.h"
#include "map/image.h"
#include "nbd/listen.h"
#include "nbd/nbd-wire.h"
#include "nbd/server.h"
#include "store/aio.h"

#define DEFAULT_LISTEN   "127.0.0.1:" NBD_DEFAULT_PORT
#define THREADS_MAX      1024
#define POOL_THREADS_MIN 4

typedef struct ServeOptions {
    CliCommon common;
    char **listen;
    char **names;
    char *client_memory_text, *metadata_cache_text, *pid_file;
    gboolean read_only, once;
    int threads, max_clients, handshake_timeout;
    uint64_t client_memory, metadata_cache;
    char **images;
} ServeOptions;

typedef struct Serve {
    ServeOptions options;
    int signal_fd;
    Pool *pool;
    GPtrArray *disks; /* Disk * */
    ExportTable *exports;
    GPtrArray *workers;   /* Worker * */
    GPtrArray *listeners; /* Listener * */
    NbdServer *server;
} Serve;

static int verbosity; /* GOption gives a callback nothing of ours */

static gboolean more_verbose(const char *name, const char *value, void *data, GError **error)
{
    verbosity++;
    return TRUE;
}

static const CliUsage usage = {
    .command = "serve",
    .arguments = "IMAGE...",
    .summary =
        "Serves disk images over NBD, each under its file's base name, the first also as the "
        "default\nexport \"\". Runs in the foreground; SIGTERM and SIGINT end it after all "
        "is flushed.",
    .example = "  cownbd serve -l unix:/run/cownbd/nbd.sock -l [::1]:10809 disk.qcow2\n"
               "  nbdinfo nbd://localhost/disk.qcow2",
    .flags = CLI_FLAG_FORMAT | CLI_FLAG_ALLOW,
};

static bool parse_options(ServeOptions *o, int *argc, char ***argv, GError **error)
{
    const GOptionEntry entries[] = {
        {"listen", 'l', 0, G_OPTION_ARG_FILENAME_ARRAY, &o->listen,
         "HOST:PORT, [ADDRESS]:PORT, :PORT or unix:PATH (repeatable; default: " DEFAULT_LISTEN ")",
         "ADDR"},
        {"name", 'n', 0, G_OPTION_ARG_FILENAME_ARRAY, &o->names,
         "Export name (repeatable: one for each image, in order; default: base name of the file)",
         "NAME"},
        {"read-only", 'r', 0, G_OPTION_ARG_NONE, &o->read_only, "Refuse writes", NULL},
        {"threads", 't', 0, G_OPTION_ARG_INT, &o->threads,
         "Threads that serve clients (default: number of processors)", "N"},
        {"max-clients", 0, 0, G_OPTION_ARG_INT, &o->max_clients,
         "Connections at once (default: 10000)", "N"},
        {"client-memory", 0, 0, G_OPTION_ARG_FILENAME, &o->client_memory_text,
         "Bytes that a connection may have in flight (default: 64M)", "SIZE"},
        {"metadata-cache", 0, 0, G_OPTION_ARG_FILENAME, &o->metadata_cache_text,
         "Bytes of metadata kept in memory an image (default: 32M)", "SIZE"},
        {"handshake-timeout", 0, 0, G_OPTION_ARG_INT, &o->handshake_timeout,
         "Seconds that a client may be silent before it chooses an export (default: 10; 0: for "
         "ever)",
         "SECONDS"},
        {"once", 0, 0, G_OPTION_ARG_NONE, &o->once, "Leave when the last client has gone", NULL},
        {"pid-file", 0, 0, G_OPTION_ARG_FILENAME, &o->pid_file,
         "Write the process id to PATH when ready", "PATH"},
        {"verbose", 'v', G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, more_verbose,
         "Log what happens; twice: log more", NULL},
        {NULL},
    };
    return cli_parse(&usage, entries, &o->common, argc, argv, error);
}

static bool parse_size(const char *option, const char *text, uint64_t minimum, uint64_t *value,
                       GError **error)
{
    if (text == NULL) {
        return true;
    }
    if (!option_parse_size(text, value) || *value < minimum) {
        return error_set(error, EINVAL,
                         "serve: %s is '%s': must be a size of at least %" PRIu64 " bytes", option,
                         text, minimum);
    }
    return true;
}

static bool check_number(const char *option, int value, int minimum, int maximum, GError **error)
{
    return (value >= minimum && value <= maximum) ||
           error_set(error, EINVAL, "serve: %s is %d: must be %d to %d", option, value, minimum,
                     maximum);
}

static bool check_options(ServeOptions *o, int argc, char **argv, GError **error)
{
    if (argc < 2) {
        return error_set(error, EINVAL, "serve: no image given: see cownbd serve --help");
    }
    o->images = argv + 1;
    if (o->names != NULL && g_strv_length(o->names) > (unsigned)argc - 1) {
        return error_set(error, EINVAL, "serve: %u names for %d image%s: give one --name an image",
                         g_strv_length(o->names), argc - 1, argc == 2 ? "" : "s");
    }
    return check_number("--threads", o->threads, 1, THREADS_MAX, error) &&
           check_number("--max-clients", o->max_clients, 1, G_MAXINT, error) &&
           check_number("--handshake-timeout", o->handshake_timeout, 0, G_MAXINT, error) &&
           parse_size("--client-memory", o->client_memory_text, 1, &o->client_memory, error) &&
           parse_size("--metadata-cache", o->metadata_cache_text, 1, &o->metadata_cache, error);
}

/* Opens the image for writing if that is wanted; one whose format cannot be written is served read-only. */
static Image *open_image(const char *path, ImageOpen *how, GError **error)
{
    g_autoptr(GError) refusal = NULL;
    Image *image = image_open(path, how, &refusal);
    if (image == NULL && how->write && refusal->code == ENOTSUP) {
        how->write = false;
        image = image_open(path, how, NULL);
        if (image != NULL) {
            log_warning("%s: %s images cannot be written: served read-only (say -r to confirm)",
                        path, image->format->name);
        }
    }
    if (image == NULL) {
        g_propagate_error(error, g_steal_pointer(&refusal));
    }
    return image;
}

/* Opens one image and makes it an export. */
static bool add_image(Serve *serve, const char *path, const char *name, GError **error)
{
    const ServeOptions *o = &serve->options;
    ImageOpen how = {.write = !o->read_only, .metadata_cache = o->metadata_cache};
    if (!cli_image_open(&o->common, &how, error)) {
        return false;
    }
    g_autoptr(Image) image = open_image(path, &how, error);
    if (image == NULL) {
        return false;
    }
    bool guard = image->format_guessed && strcmp(image->format->name, "raw") == 0;
    Disk *disk = disk_new(image, serve->pool, guard);
    g_ptr_array_add(serve->disks, disk);
    return export_table_add(serve->exports, name, NULL, disk_node(disk), !image->write, error);
}

static bool add_images(Serve *serve, GError **error)
{
    const ServeOptions *o = &serve->options;
    unsigned names = o->names != NULL ? g_strv_length(o->names) : 0;
    for (unsigned i = 0; o->images[i] != NULL; i++) {
        g_autofree char *base = g_path_get_basename(o->images[i]);
        if (!add_image(serve, o->images[i], i < names ? o->names[i] : base, error)) {
            return false;
        }
    }
    return true;
}

static bool open_listeners(Serve *serve, GError **error)
{
    char *fallback[] = {(char *)DEFAULT_LISTEN, NULL};
    char **addresses = serve->options.listen != NULL ? serve->options.listen : fallback;
    for (; *addresses != NULL; addresses++) {
        if (!listener_open(*addresses, serve->listeners, error)) {
            return false;
        }
    }
    return true;
}

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

static void accept_client(int fd, void *argument)
{
    nbd_server_accept(argument, fd);
}

static void start_server(Serve *serve)
{
    const ServeOptions *o = &serve->options;
    NbdLimits limits = {
        .max_clients = o->max_clients,
        .client_memory = o->client_memory,
        .handshake_timeout = o->handshake_timeout,
    };
    serve->server = nbd_server_new(serve->exports, &limits, (Worker *const *)serve->workers->pdata,
                                   serve->workers->len);
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        Listener *listener = g_ptr_array_index(serve->listeners, i);
        listener_start(listener, g_ptr_array_index(serve->workers, 0), accept_client,
                       serve->server);
    }
}

static bool tell_ready(Serve *serve, GError **error)
{
    const char *pid_file = serve->options.pid_file;
    if (pid_file != NULL && !process_write_pid_file(pid_file, error)) {
        return false;
    }
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        printf("listening on %s\n", listener_uri(g_ptr_array_index(serve->listeners, i)));
    }
    fflush(stdout);
    process_notify("READY=1");
    return true;
}

static bool start(Serve *serve, GError **error)
{
    serve->pool = pool_new(MAX(POOL_THREADS_MIN, 2 * serve->options.threads));
    aio_init(serve->pool);
    if (!add_images(serve, error) || !open_listeners(serve, error) ||
        !start_workers(serve, error)) {
        return false;
    }
    start_server(serve);
    return tell_ready(serve, error);
}

static void wait_for_the_end(Serve *serve)
{
    int idle_fd = nbd_server_idle_fd(serve->server);
    while (process_wait(serve->signal_fd, idle_fd) == PROCESS_IDLE) {
        if (serve->options.once && nbd_server_has_served(serve->server) &&
            nbd_server_connections(serve->server) == 0) {
            return;
        }
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

/* Ends connections, then disks, then threads; each part may not have been started. 0 or the exit
 * status. */
static int stop(Serve *serve)
{
    int status = 0;
    process_signals_kill();
    process_notify("STOPPING=1");
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        listener_stop(g_ptr_array_index(serve->listeners, i));
    }
    if (serve->server != NULL) {
        nbd_server_stop(serve->server);
        while (nbd_server_connections(serve->server) > 0) {
            process_wait(serve->signal_fd, nbd_server_idle_fd(serve->server));
        }
    }
    for (unsigned i = 0; i < serve->disks->len; i++) {
        int r = disk_close(g_ptr_array_index(serve->disks, i));
        if (r != 0) {
            log_error("%s: the last flush failed: %s", serve->options.images[i], g_strerror(-r));
            status = 1;
        }
    }
    /* Who may be in the middle of waking a worker goes before the worker: the pool, then the other
     * workers. */
    pool_free(serve->pool);
    g_ptr_array_foreach(serve->workers, stop_worker, NULL);
    g_ptr_array_foreach(serve->workers, free_worker, NULL);
    g_clear_pointer(&serve->server, nbd_server_free);
    return status;
}

static void serve_clear(Serve *serve)
{
    ServeOptions *o = &serve->options;
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        listener_free(g_ptr_array_index(serve->listeners, i));
    }
    g_ptr_array_unref(serve->listeners);
    g_ptr_array_unref(serve->workers);
    g_ptr_array_unref(serve->disks);
    export_table_free(serve->exports);
    close(serve->signal_fd);
    cli_common_clear(&o->common);
    g_strfreev(o->listen);
    g_strfreev(o->names);
    g_free(o->client_memory_text);
    g_free(o->metadata_cache_text);
    g_free(o->pid_file);
}

/* Starts, waits, stops. */
static int serve_run(Serve *serve)
{
    g_autoptr(GError) error = NULL;
    bool started = start(serve, &error);
    if (started) {
        wait_for_the_end(serve);
    }
    int status = stop(serve);
    if (started && serve->options.pid_file != NULL) {
        unlink(serve->options.pid_file);
    }
    return started ? status : cli_fail(error);
}

int cli_serve(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    Serve serve = {
        .options = {.threads = g_get_num_processors(),
                    .max_clients = 10000,
                    .handshake_timeout = 10,
                    .client_memory = 64 << 20},
        .disks = g_ptr_array_new(),
        .exports = export_table_new(),
        .workers = g_ptr_array_new(),
        .listeners = g_ptr_array_new(),
    };
    serve.signal_fd = process_prepare();
    int status;
    if (!parse_options(&serve.options, &argc, &argv, &error) ||
        !check_options(&serve.options, argc, argv, &error)) {
        status = cli_fail(error);
    } else {
        log_set_level(MIN(LOG_LEVEL_WARNING + verbosity, LOG_LEVEL_DEBUG));
        status = serve_run(&serve);
    }
    serve_clear(&serve);
    return status;
}
