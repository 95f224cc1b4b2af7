/*
 * The command line of `cownbd serve`.
 *
 * What must stay true: a value that cannot work is refused here, before anything is opened.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "base/errors.h"
#include "base/log.h"
#include "cli/serve-impl.h"
#include "formats/option.h"
#include "nbd/nbd-wire.h"

#define THREADS_MAX 1024

static const CliUsage usage = {
    .command = "serve",
    .arguments = "IMAGE...",
    .summary =
        "Serves disk images over NBD, each under its file's base name, the first also as the "
        "default\nexport \"\". Runs in the foreground; SIGTERM and SIGINT end it after all "
        "is flushed.",
    .example = "  cownbd serve -l unix:/run/cownbd/nbd.sock -l [::1]:10809 disk.qcow2\n"
               "  nbdinfo nbd://localhost/disk.qcow2",
    .flags = CLI_FLAG_FORMAT | CLI_FLAG_ALLOW | CLI_FLAG_SNAPSHOT,
};

static void add_entries(GArray *all, const GOptionEntry *entries)
{
    for (; entries->long_name != NULL; entries++) {
        g_array_append_vals(all, entries, 1);
    }
}

static bool parse(ServeOptions *o, int *argc, char ***argv, GError **error)
{
    const GOptionEntry entries[] = {
        {"listen", 'l', 0, G_OPTION_ARG_FILENAME_ARRAY, &o->listen,
         "HOST:PORT, [ADDRESS]:PORT, :PORT, unix:PATH, vsock:PORT or none (repeatable; default: "
         "127.0.0.1:" NBD_DEFAULT_PORT ", or the sockets of LISTEN_FDS)",
         "ADDR"},
        {"name", 'n', 0, G_OPTION_ARG_FILENAME_ARRAY, &o->names,
         "Export name (repeatable: one for each image, in order; default: base name of the file)",
         "NAME"},
        {"description", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o->descriptions,
         "What LIST and INFO say of an export (repeatable: one for each image, in order)", "TEXT"},
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
        {"shutdown-timeout", 0, 0, G_OPTION_ARG_INT, &o->shutdown_timeout,
         "Seconds that clients have to take their last replies when the server ends (default: 1)",
         "SECONDS"},
        {"socket-mode", 0, 0, G_OPTION_ARG_FILENAME, &o->socket_mode,
         "Permissions of the files of unix sockets, octal (default: what the umask leaves)",
         "MODE"},
        {"socket-owner", 0, 0, G_OPTION_ARG_FILENAME, &o->socket_owner,
         "Their owner (default: who runs the server)", "USER[:GROUP]"},
        {"tls", 0, 0, G_OPTION_ARG_STRING, &o->tls_text,
         "off, on (a client may begin TLS) or require (it must) (default: off)", "MODE"},
        {"tls-certificates", 0, 0, G_OPTION_ARG_FILENAME, &o->tls_certificates,
         "Directory of server-cert.pem, server-key.pem, ca-cert.pem, ca-crl.pem", "DIR"},
        {"tls-psk", 0, 0, G_OPTION_ARG_FILENAME, &o->tls_psk,
         "File of pre-shared keys: lines USER:HEX", "FILE"},
        {"tls-verify-peer", 0, 0, G_OPTION_ARG_NONE, &o->tls_verify_peer,
         "Clients must have a certificate that ca-cert.pem has signed", NULL},
        {"allow", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o->allow,
         "Who may do what, as in ip:192.0.2.0/24=list,read (repeatable; default: any=all; WHO: "
         "any, ip:, uid:, psk:, dn:, san:; RIGHTS: list, read, write, all, none)",
         "WHO=RIGHTS"},
        {"stdio", 0, 0, G_OPTION_ARG_NONE, &o->stdio,
         "Serve one client, whose socket is standard input (as inetd does), and leave with it",
         NULL},
        {"control", 0, 0, G_OPTION_ARG_FILENAME, &o->control,
         "Control socket, or none (default: /run/cownbd/control.sock, or below $XDG_RUNTIME_DIR)",
         "PATH"},
        {"once", 0, 0, G_OPTION_ARG_NONE, &o->once, "Leave when the last client has gone", NULL},
        {"take-over", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_INT, &o->take_over, NULL, NULL},
        {NULL},
    };
    g_autoptr(GArray) all = g_array_new(TRUE, TRUE, sizeof(GOptionEntry));
    add_entries(all, entries);
    serve_operations_add(all, o);
    add_entries(all, serve_attach_entries());
    return cli_parse(&usage, (const GOptionEntry *)(void *)all->data, &o->common, argc, argv,
                     error);
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

static bool check(ServeOptions *o, int argc, char **argv, GError **error)
{
    if (argc < 2) {
        return error_set(error, EINVAL, "serve: no image given: see cownbd serve --help");
    }
    o->images = argv + 1;
    if (o->names != NULL && g_strv_length(o->names) > (unsigned)argc - 1) {
        return error_set(error, EINVAL, "serve: %u names for %d image%s: give one --name an image",
                         g_strv_length(o->names), argc - 1, argc == 2 ? "" : "s");
    }
    if (o->descriptions != NULL && g_strv_length(o->descriptions) > (unsigned)argc - 1) {
        return error_set(error, EINVAL,
                         "serve: %u descriptions for %d image%s: give one --description an image",
                         g_strv_length(o->descriptions), argc - 1, argc == 2 ? "" : "s");
    }
    return check_number("--threads", o->threads, 1, THREADS_MAX, error) &&
           check_number("--max-clients", o->max_clients, 1, G_MAXINT, error) &&
           check_number("--handshake-timeout", o->handshake_timeout, 0, G_MAXINT, error) &&
           check_number("--shutdown-timeout", o->shutdown_timeout, 0, G_MAXINT, error) &&
           parse_size("--client-memory", o->client_memory_text, 1, &o->client_memory, error) &&
           parse_size("--metadata-cache", o->metadata_cache_text, 1, &o->metadata_cache, error) &&
           serve_listen_check(o, error) && serve_tls_check(o, error);
}

void serve_options_init(ServeOptions *o)
{
    *o = (ServeOptions){.threads = g_get_num_processors(),
                        .max_clients = 10000,
                        .handshake_timeout = 10,
                        .shutdown_timeout = 1,
                        .client_memory = 64 << 20,
                        .access = LISTENER_ACCESS_INIT,
                        .take_over = -1};
}

bool serve_options_parse(ServeOptions *o, int *argc, char ***argv, GError **error)
{
    if (!parse(o, argc, argv, error) || !check(o, *argc, *argv, error)) {
        return false;
    }
    if (o->take_over >= 0 && fcntl(o->take_over, F_SETFD, FD_CLOEXEC) != 0) {
        return error_set(error, EINVAL, "serve: --take-over is for cownbd itself: see cownbd ctl");
    }
    return serve_log_open(o, error);
}

void serve_options_clear(ServeOptions *o)
{
    cli_common_clear(&o->common);
    g_strfreev(o->listen);
    g_strfreev(o->names);
    g_strfreev(o->allow);
    g_free(o->tls_text);
    g_free(o->tls_certificates);
    g_free(o->tls_psk);
    g_clear_pointer(&o->rules, access_rules_unref);
    g_strfreev(o->descriptions);
    g_free(o->socket_mode);
    g_free(o->socket_owner);
    g_free(o->client_memory_text);
    g_free(o->metadata_cache_text);
    g_free(o->pid_file);
    g_free(o->control);
    g_free(o->status);
    g_free(o->log);
    g_free(o->log_level);
}
