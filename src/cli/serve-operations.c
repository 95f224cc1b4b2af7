/*
 * What makes a server one that others run: its log, its user, its sandbox.
 *
 *      options -> log -> (images, sockets) -> user and group -> sandbox closed -> ready
 */
#include "base/errors.h"
#include "base/log.h"
#include "cli/serve-impl.h"

static int verbosity; /* GOption gives a callback nothing of ours */

static gboolean more_verbose(const char *name, const char *value, void *data, GError **error)
{
    verbosity++;
    return TRUE;
}

void serve_operations_add(GArray *all, ServeOptions *o)
{
    const GOptionEntry entries[] = {
        {"status", 0, 0, G_OPTION_ARG_FILENAME, &o->status,
         "Status page: HOST:PORT, or :PORT of 127.0.0.1; it has /metrics for Prometheus and "
         "/status "
         "in JSON (default: none)",
         "ADDR"},
        {"log", 0, 0, G_OPTION_ARG_FILENAME, &o->log,
         "stderr, journal, syslog, syslog:FACILITY, or the path of a file (default: the journal "
         "where stderr is its, otherwise stderr)",
         "WHERE"},
        {"log-level", 0, 0, G_OPTION_ARG_STRING, &o->log_level,
         "error, warning, info or debug (default: warning)", "LEVEL"},
        {"verbose", 'v', G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, more_verbose,
         "Log what happens, as --log-level=info; twice: debug", NULL},
        {"pid-file", 0, 0, G_OPTION_ARG_FILENAME, &o->pid_file,
         "Write the process id to PATH when ready", "PATH"},
    };
    g_array_append_vals(all, entries, G_N_ELEMENTS(entries));
}

bool serve_log_open(const ServeOptions *o, GError **error)
{
    LogLevel level = MIN(LOG_LEVEL_WARNING + verbosity, LOG_LEVEL_DEBUG);
    if (o->log_level != NULL && verbosity > 0) {
        return error_set(error, EINVAL, "serve: --log-level and -v: choose one");
    }
    if (o->log_level != NULL && !log_parse_level(o->log_level, &level, error)) {
        return false;
    }
    log_set_level(level);
    return log_open(o->log, error);
}
