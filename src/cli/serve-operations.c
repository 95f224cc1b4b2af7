/*
 * What makes a server one that others run: its log, its user, its sandbox.
 *
 *      options -> log -> files closed -> threads, images, sockets -> user and group -> calls closed
 *
 * Landlock holds for threads that are started after it, so it comes before the first one; what opening
 * images and sockets needs beside those files is no more than what serving needs. seccomp comes last.
 */
#include <cap-ng.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/errors.h"
#include "base/log.h"
#include "base/sandbox.h"
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
        {"user", 0, 0, G_OPTION_ARG_FILENAME, &o->user,
         "When all is open, go on as USER without any privilege", "USER"},
        {"group", 0, 0, G_OPTION_ARG_FILENAME, &o->group,
         "And as GROUP (default: the groups of USER)", "GROUP"},
        {"sandbox", 0, 0, G_OPTION_ARG_STRING, &o->sandbox,
         "on or off: open no files but those of images and of options, make no system calls but "
         "a server's (default: on, but off with block devices)",
         "HOW"},
        {"sandboxed", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_NONE, &o->sandboxed, NULL, NULL},
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
    if (o->log_level != NULL) {
        log_parse_level(o->log_level, &level); /* was checked */
    }
    log_set_level(level);
    return log_open(o->log, error);
}

static bool check_level(const ServeOptions *o, GError **error)
{
    LogLevel level;
    return o->log_level == NULL || log_parse_level(o->log_level, &level) ||
           error_set(error, EINVAL,
                     "serve: --log-level is '%s': must be error, warning, info or debug",
                     o->log_level);
}

/* Sandbox */

static bool check_sandbox(ServeOptions *o, GError **error)
{
    bool devices = serve_attach_is_wanted();
    if (o->sandbox != NULL && strcmp(o->sandbox, "on") != 0 && strcmp(o->sandbox, "off") != 0) {
        return error_set(error, EINVAL, "serve: --sandbox is '%s': must be on or off", o->sandbox);
    }
    if (o->sandbox != NULL && strcmp(o->sandbox, "on") == 0 && devices) {
        return error_set(error, EINVAL,
                         "serve: --sandbox=on: a server of block devices rules the machine's "
                         "devices: leave it out");
    }
    o->sandboxed = o->sandboxed && o->take_over >= 0;
    o->confine = o->sandbox != NULL ? strcmp(o->sandbox, "on") == 0 : !devices;
    return true;
}

/* The directory of a path, and the one that a symbolic link leads to; of a device, it alone. */
static void allow_image(SandboxFiles *files, const char *path, SandboxAccess access)
{
    g_autofree char *beside = g_path_get_dirname(path);
    char *real = realpath(path, NULL);
    struct stat st;
    if (real != NULL && stat(real, &st) == 0 && S_ISBLK(st.st_mode)) {
        sandbox_files_allow(files, real, access);
    } else {
        g_autofree char *there = real != NULL ? g_path_get_dirname(real) : NULL;
        sandbox_files_allow(files, beside, access);
        sandbox_files_allow(files, there, access);
    }
    free(real);
}

static void allow_directory_of(SandboxFiles *files, const char *path)
{
    g_autofree char *directory = path != NULL ? g_path_get_dirname(path) : NULL;
    sandbox_files_allow(files, directory, SANDBOX_WRITE);
}

/* Each file alone: beside it lie others' secrets. */
static void allow_secrets(SandboxFiles *files, char *const *list)
{
    for (; list != NULL && *list != NULL; list++) {
        sandbox_files_allow(files, secret_text_source(*list), SANDBOX_READ);
    }
}

static void allow_images(SandboxFiles *files, const ServeOptions *o)
{
    SandboxAccess access = o->read_only ? SANDBOX_READ : SANDBOX_WRITE;
    for (char **image = o->images; *image != NULL; image++) {
        allow_image(files, *image, access);
    }
    for (unsigned i = 0; o->config != NULL && i < o->config->exports->len; i++) {
        const ConfigExport *export = g_ptr_array_index(o->config->exports, i);
        allow_image(files, export->image, export->read_only ? SANDBOX_READ : access);
        allow_secrets(files, export->secret_files);
    }
    for (unsigned i = 0; o->config != NULL && i < o->config->directories->len; i++) {
        const ConfigDirectory *directory = g_ptr_array_index(o->config->directories, i);
        sandbox_files_allow(files, directory->path, directory->read_only ? SANDBOX_READ : access);
        allow_secrets(files, directory->secret_files);
    }
    for (char **path = o->common.allow_paths; path != NULL && *path != NULL; path++) {
        sandbox_files_allow(files, *path, access);
    }
}

/* Where files of the server itself are made and removed. */
static void allow_own_files(SandboxFiles *files, const ServeOptions *o)
{
    g_autofree char *control = control_default_path();
    for (char **address = o->listen; address != NULL && *address != NULL; address++) {
        if (g_str_has_prefix(*address, "unix:")) {
            allow_directory_of(files, *address + strlen("unix:"));
        }
    }
    if (o->control == NULL && !o->stdio) {
        control_make_default_directory(); /* a directory that is made later would not be allowed */
    }
    allow_directory_of(files, control); /* journals of block devices lie there too */
    allow_directory_of(files, o->control);
    allow_directory_of(files, o->pid_file);
    allow_directory_of(files, log_file());
    g_autofree char *config = o->config_path != NULL ? g_path_get_dirname(o->config_path) : NULL;
    sandbox_files_allow(files, config, SANDBOX_READ); /* with conf.d, for a reload */
    sandbox_files_allow(files, o->tls_certificates, SANDBOX_READ);
    sandbox_files_allow(files, o->tls_psk, SANDBOX_READ);
    allow_secrets(files, o->common.secret_files); /* for the next version, after a handover */
    sandbox_files_allow(files, g_getenv("CREDENTIALS_DIRECTORY"), SANDBOX_READ);
}

/* What libraries look at: shared objects, names of users and hosts, the time zone, the process. */
static void allow_system(SandboxFiles *files)
{
    static const char *const read[] = {"/usr",  "/lib", "/lib64",       "/etc",
                                       "/proc", "/sys", "/dev/urandom", "/dev/random"};
    for (unsigned i = 0; i < G_N_ELEMENTS(read); i++) {
        sandbox_files_allow(files, read[i], SANDBOX_READ);
    }
    sandbox_files_allow(files, "/dev/null", SANDBOX_WRITE);
    g_autofree char *self = g_file_read_link("/proc/self/exe", NULL);
    g_autofree char *beside = self != NULL ? g_path_get_dirname(self) : NULL;
    sandbox_files_allow(files, beside, SANDBOX_READ); /* its next version, for a handover */
}

/* Root keeps what opening others' images and binding sockets needs. In the first thread, from which all
 * others have it. */
static bool drop_capabilities(const ServeOptions *o, GError **error)
{
    static const unsigned kept[] = {
        CAP_CHOWN,    CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_NET_BIND_SERVICE,
        CAP_IPC_LOCK, CAP_SETGID,       CAP_SETUID};
    unsigned count = G_N_ELEMENTS(kept) - (o->user != NULL || o->group != NULL ? 0 : 2);
    bool has[G_N_ELEMENTS(kept)];
    if (geteuid() != 0 || capng_get_caps_process() != 0) {
        return true;
    }
    for (unsigned i = 0; i < count; i++) {
        has[i] = capng_have_capability(CAPNG_PERMITTED, kept[i]);
    }
    capng_clear(CAPNG_SELECT_CAPS);
    for (unsigned i = 0; i < count; i++) {
        if (has[i]) {
            capng_update(CAPNG_ADD, CAPNG_EFFECTIVE | CAPNG_PERMITTED, kept[i]);
        }
    }
    return capng_apply(CAPNG_SELECT_CAPS) == 0 ||
           error_set_errno(error, errno, "serve: cannot drop capabilities");
}

/* What a kernel cannot do is no reason not to serve. Takes refusal. */
static bool go_on_without(GError *refusal, const char *what, GError **error)
{
    if (refusal->code == ENOSYS || refusal->code == EOPNOTSUPP) {
        log_info("%s: %s are not restricted", refusal->message, what);
        g_error_free(refusal);
        return true;
    }
    g_propagate_error(error, refusal);
    return false;
}

bool serve_sandbox_files(const ServeOptions *o, GError **error)
{
    if (!o->confine || o->sandboxed) {
        if (o->sandboxed) {
            sandbox_calls_watch();
        }
        return true;
    }
    g_autoptr(GError) refusal = NULL;
    g_autoptr(SandboxFiles) files = sandbox_files_new();
    allow_images(files, o);
    allow_own_files(files, o);
    allow_system(files);
    return drop_capabilities(o, error) &&
           (sandbox_files_close(files, &refusal) ||
            go_on_without(g_steal_pointer(&refusal), "files", error));
}

void serve_sandbox_explain(const Serve *serve, GError **error)
{
    bool first = serve->server == NULL; /* these the sandbox has */
    if (!first && serve->options.confine && error && *error && (*error)->code == EACCES &&
        strstr((*error)->message, "--allow-path") == NULL) {
        g_autofree char *text = g_strdup((*error)->message);
        g_clear_error(error);
        error_set(error, EACCES,
                  "%s: the sandbox has files beside the first images only, or below --allow-path",
                  text);
    }
}

bool serve_sandbox_calls(const Serve *serve, GError **error)
{
    if (!serve->options.confine || serve->options.sandboxed) {
        return true;
    }
    /* To start a program is what a handover does, and it is asked for over the control socket. */
    g_autoptr(GError) refusal = NULL;
    return sandbox_calls_close(serve->control != NULL, &refusal) ||
           go_on_without(g_steal_pointer(&refusal), "system calls", error);
}

/* User and group */

static bool find_ids(const ServeOptions *o, uid_t *user, gid_t *group, GError **error)
{
    *user = geteuid();
    *group = getegid();
    const struct passwd *entry = o->user != NULL ? getpwnam(o->user) : NULL;
    if (o->user != NULL && entry == NULL) {
        return error_set(error, EINVAL, "serve: --user is '%s': there is no such user", o->user);
    }
    *user = entry != NULL ? entry->pw_uid : *user;
    *group = entry != NULL ? entry->pw_gid : *group;
    const struct group *named = o->group != NULL ? getgrnam(o->group) : NULL;
    if (o->group != NULL && named == NULL) {
        return error_set(error, EINVAL, "serve: --group is '%s': there is no such group", o->group);
    }
    *group = named != NULL ? named->gr_gid : *group;
    return true;
}

static bool check_user(const ServeOptions *o, GError **error)
{
    uid_t user;
    gid_t group;
    if (o->user == NULL && o->group == NULL) {
        return true;
    }
    if (serve_attach_is_wanted()) {
        return error_set(error, EINVAL,
                         "serve: --user, --group: block devices need a server that is root");
    }
    if (!find_ids(o, &user, &group, error)) {
        return false;
    }
    return geteuid() == 0 || (user == geteuid() && group == getegid()) ||
           error_set(error, EPERM, "serve: --user, --group: only root may become somebody else");
}

bool serve_operations_check(ServeOptions *o, GError **error)
{
    return check_level(o, error) && check_user(o, error) && check_sandbox(o, error);
}

bool serve_user_become(const ServeOptions *o, GError **error)
{
    uid_t user;
    gid_t group;
    if (o->user == NULL && o->group == NULL) {
        return true;
    }
    if (!find_ids(o, &user, &group, error)) {
        return false;
    }
    if (geteuid() != 0) { /* it is already */
        return true;
    }
    /* libc tells every thread; who is no longer root has no capability, in any thread. */
    capng_clear(CAPNG_SELECT_BOTH);
    bool groups = o->user != NULL && o->group == NULL ? initgroups(o->user, group) == 0
                                                      : setgroups(0, NULL) == 0;
    if (!groups || setresgid(group, group, group) != 0 || setresuid(user, user, user) != 0 ||
        (user == 0 && capng_apply(CAPNG_SELECT_BOTH) != 0)) {
        return error_set_errno(error, errno, "serve: cannot become user %u, group %u",
                               (unsigned)user, (unsigned)group);
    }
    return true;
}
