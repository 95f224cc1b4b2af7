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
#include "cli/serve-config.h"
#include "cli/serve-impl.h"
#include "formats/option.h"
#include "nbd/nbd-wire.h"

#define THREADS_MAX      1024
#define TOTAL_MEMORY_MIN (128u << 20)  /* two of the longest requests */
#define ALLOW_PATHS      "allow-paths" /* options that other commands have, too */
#define SECRET_FILE      "secret-file"

static const CliUsage usage = {
    .command = "serve",
    .arguments = "[IMAGE...]",
    .summary =
        "Serves disk images over NBD, each under its file's base name, the first also as the "
        "default\nexport \"\", and what the file of --config declares. Runs in the foreground; "
        "SIGTERM and SIGINT\nend it after all is flushed, SIGHUP reads the file of --config again.",
    .example = "  cownbd serve -l unix:/run/cownbd/nbd.sock -l [::1]:10809 disk.qcow2\n"
               "  nbdinfo nbd://localhost/disk.qcow2",
    .flags =
        CLI_FLAG_FORMAT | CLI_FLAG_VHD_SIZE | CLI_FLAG_ALLOW | CLI_FLAG_SNAPSHOT | CLI_FLAG_SECRET,
};

static void add_entries(GArray *all, const GOptionEntry *entries)
{
    for (; entries->long_name != NULL; entries++) {
        g_array_append_vals(all, entries, 1);
    }
}

/* serve's own, whose values go to o. */
static GArray *own_entries(ServeOptions *o)
{
    const GOptionEntry entries[] = {
        {"config", 0, 0, G_OPTION_ARG_FILENAME, &o->config_path,
         "Key file that says what to serve and how (docs/configuration.md); options win over it",
         "FILE"},
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
        {"total-memory", 0, 0, G_OPTION_ARG_FILENAME, &o->total_memory_text,
         "Bytes that all connections together may have in flight, at least 128M (default: 1G)",
         "SIZE"},
        {"stall-timeout", 0, 0, G_OPTION_ARG_INT, &o->stall_timeout,
         "Seconds that a client may hold memory which others wait for, and neither take replies "
         "nor "
         "send (default: 10; 0: for ever)",
         "SECONDS"},
        {"metadata-cache", 0, 0, G_OPTION_ARG_FILENAME, &o->metadata_cache_text,
         "Bytes of metadata kept in memory an image (default: 32M)", "SIZE"},
        {"handshake-timeout", 0, 0, G_OPTION_ARG_INT, &o->handshake_timeout,
         "Seconds that a client may be silent before it chooses an export (default: 10; 0: for "
         "ever)",
         "SECONDS"},
        {"allow-resize", 0, 0, G_OPTION_ARG_NONE, &o->allow_resize,
         "Clients that may write may change the size of a disk, and cut off what it has", NULL},
        {"shutdown-timeout", 0, 0, G_OPTION_ARG_INT, &o->shutdown_timeout,
         "Seconds that clients have to take their last replies when the server ends; half of that "
         "where nothing is taken at all (default: 1)",
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
        {"ktls", 0, 0, G_OPTION_ARG_STRING, &o->ktls_text,
         "Whether the kernel makes the records of TLS: off, auto (where a socket may have new "
         "keys: "
         "Linux 6.14) or on (default: auto)",
         "MODE"},
        {"allow", 0, 0, G_OPTION_ARG_STRING_ARRAY, &o->allow,
         "Who may do what, as in ip:192.0.2.0/24=list,read (repeatable; default: any=all; WHO: "
         "any, tls, ip:, uid:, psk:, dn:, san:; RIGHTS: list, read, write, all, none)",
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
    GArray *own = g_array_new(TRUE, TRUE, sizeof(GOptionEntry));
    add_entries(own, entries);
    serve_operations_add(own, o);
    return own;
}

static bool parse(ServeOptions *o, int *argc, char ***argv, GError **error)
{
    g_autoptr(GArray) all = own_entries(o);
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
    if (argc < 2 && o->config_path == NULL) {
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
           check_number("--stall-timeout", o->stall_timeout, 0, G_MAXINT, error) &&
           check_number("--shutdown-timeout", o->shutdown_timeout, 0, G_MAXINT, error) &&
           parse_size("--client-memory", o->client_memory_text, 1, &o->client_memory, error) &&
           parse_size("--total-memory", o->total_memory_text, TOTAL_MEMORY_MIN, &o->total_memory,
                      error) &&
           parse_size("--metadata-cache", o->metadata_cache_text, 1, &o->metadata_cache, error) &&
           serve_operations_check(o, error) && serve_listen_check(o, error) &&
           serve_tls_check(o, error);
}

void serve_options_init(ServeOptions *o)
{
    *o = (ServeOptions){.threads = g_get_num_processors(),
                        .max_clients = 10000,
                        .handshake_timeout = 10,
                        .stall_timeout = 10,
                        .shutdown_timeout = 1,
                        .client_memory = 64 << 20,
                        .total_memory = 1 << 30,
                        .access = LISTENER_ACCESS_INIT,
                        .take_over = -1};
}

/* Settings of a configuration */

/* What says something of one image or of this call only is no setting of the server. */
static const char *const no_settings[] = {"config",    "name",  "description",
                                          "read-only", "stdio", NULL};

static bool is_setting(const GOptionEntry *entry)
{
    return !(entry->flags & G_OPTION_FLAG_HIDDEN) && entry->arg != G_OPTION_ARG_CALLBACK &&
           !g_strv_contains(no_settings, entry->long_name);
}

static ConfigType setting_type(GOptionArg arg)
{
    switch (arg) {
    case G_OPTION_ARG_NONE:
        return CONFIG_FLAG;
    case G_OPTION_ARG_INT:
        return CONFIG_NUMBER;
    case G_OPTION_ARG_FILENAME_ARRAY:
    case G_OPTION_ARG_STRING_ARRAY:
        return CONFIG_LIST;
    default:
        return CONFIG_TEXT;
    }
}

const ConfigKey *serve_options_keys(void)
{
    static GArray *keys;
    if (keys == NULL) {
        ServeOptions o;
        g_autoptr(GArray) entries = own_entries(&o);
        const ConfigKey common[] = {{ALLOW_PATHS, CONFIG_LIST}, {SECRET_FILE, CONFIG_LIST}};
        keys = g_array_new(TRUE, TRUE, sizeof(ConfigKey));
        g_array_append_vals(keys, common, G_N_ELEMENTS(common));
        for (unsigned i = 0; i < entries->len; i++) {
            const GOptionEntry *entry = &g_array_index(entries, GOptionEntry, i);
            ConfigKey key = {entry->long_name, setting_type(entry->arg)};
            if (is_setting(entry)) {
                g_array_append_val(keys, key);
            }
        }
    }
    return (const ConfigKey *)(void *)keys->data;
}

/* The setting as it would stand on the command line. */
static void add_setting(GPtrArray *argv, const ConfigSetting *setting)
{
    const char *option = strcmp(setting->name, ALLOW_PATHS) == 0 ? "allow-path" : setting->name;
    for (char **value = setting->values; *value != NULL; value++) {
        if (setting->type != CONFIG_FLAG) {
            g_ptr_array_add(argv, g_strdup_printf("--%s=%s", option, *value));
        } else if (strcmp(*value, "true") == 0) {
            g_ptr_array_add(argv, g_strdup_printf("--%s", option));
        }
    }
}

bool serve_options_try(const ConfigSetting *const *settings, unsigned count, ServeOptions *o,
                       GError **error)
{
    g_autoptr(GPtrArray) words = g_ptr_array_new_with_free_func(g_free);
    g_ptr_array_add(words, g_strdup("serve"));
    for (unsigned i = 0; i < count; i++) {
        add_setting(words, settings[i]);
    }
    g_ptr_array_add(words, g_strdup("image"));
    g_ptr_array_add(words, NULL);
    g_autofree char **argv = g_memdup2(words->pdata, words->len * sizeof(char *));
    char **rest = argv;
    int argc = words->len - 1;
    g_autoptr(GArray) entries = own_entries(o);
    bool ok = cli_parse(&usage, (const GOptionEntry *)(void *)entries->data, &o->common, &argc,
                        &rest, error) &&
              check(o, argc, rest, error);
    o->images = NULL; /* words of here */
    return ok;
}

/* The file that --config names; NULL: none, or the command line is wrong anyhow. */
static char *find_config(char *const *argv)
{
    char *path = NULL;
    const GOptionEntry entries[] = {
        {"config", 0, 0, G_OPTION_ARG_FILENAME, &path, NULL, NULL},
        {NULL},
    };
    g_auto(GStrv) words = g_strdupv((char **)argv);
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_set_help_enabled(context, FALSE);
    g_option_context_set_ignore_unknown_options(context, TRUE);
    g_option_context_parse_strv(context, &words, NULL);
    return path;
}

/* The settings of the configuration, before what the command line says, take its place. */
static bool add_config(ServeOptions *o, const char *path, int *argc, char ***argv, GError **error)
{
    o->config = serve_config_read(path, error);
    if (o->config == NULL) {
        return false;
    }
    o->words = g_ptr_array_new_with_free_func(g_free);
    g_ptr_array_add(o->words, g_strdup(**argv));
    for (unsigned i = 0; i < o->config->settings->len; i++) {
        add_setting(o->words, g_ptr_array_index(o->config->settings, i));
    }
    for (char **word = *argv + 1; *word != NULL; word++) {
        g_ptr_array_add(o->words, g_strdup(*word));
    }
    *argc = o->words->len;
    g_ptr_array_add(o->words, NULL);
    *argv = o->argv = g_memdup2(o->words->pdata, o->words->len * sizeof(char *));
    return true;
}

bool serve_options_parse(ServeOptions *o, int *argc, char ***argv, GError **error)
{
    g_autofree char *config = find_config(*argv);
    if ((config != NULL && !add_config(o, config, argc, argv, error)) ||
        !parse(o, argc, argv, error) || !check(o, *argc, *argv, error) ||
        (o->config != NULL && !serve_config_check_rules(o->config, o, error))) {
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
    g_free(o->config_path);
    g_clear_pointer(&o->config, config_free);
    g_clear_pointer(&o->words, g_ptr_array_unref);
    g_free(o->argv);
    g_strfreev(o->listen);
    g_strfreev(o->names);
    g_strfreev(o->allow);
    g_free(o->tls_text);
    g_free(o->ktls_text);
    g_free(o->tls_certificates);
    g_free(o->tls_psk);
    g_clear_pointer(&o->rules, access_rules_unref);
    g_strfreev(o->descriptions);
    g_free(o->socket_mode);
    g_free(o->socket_owner);
    g_free(o->client_memory_text);
    g_free(o->total_memory_text);
    g_free(o->metadata_cache_text);
    g_free(o->pid_file);
    g_free(o->control);
    g_free(o->status);
    g_free(o->log);
    g_free(o->log_level);
    g_free(o->user);
    g_free(o->group);
    g_free(o->sandbox);
}
