/*
 * The server of an attached image.
 *
 * A server started here is `cownbd serve` of this same program, in a session of its own, without
 * listeners, with a control socket that the image's path alone tells: so attach and detach find it
 * later. Two of them for one image cannot be: the second one finds the socket taken.
 *
 * Readiness: the server's stdout is a pipe. "attached DEVICE" comes when the device can be used;
 * the end of the pipe comes after that, when the server has turned to its log, or when it has died:
 * then its stderr, another pipe, says why.
 */
#include "cli/attach-server.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "control/control.h"
#include "fastpath/attachment.h"

#define READY_PREFIX "attached "
#define WAIT_SECONDS 60
#define POLL_US      10000
#define SAID_MAX     (64u << 10) /* bytes kept of what a server says before it is ready */

char *attach_server_image(const char *image)
{
    char *real = realpath(image, NULL);
    char *path = real != NULL ? g_strdup(real) : g_canonicalize_filename(image, NULL);
    free(real);
    return path;
}

bool attach_server_not_attached(const char *image, GError **error)
{
    g_autofree char *path = attach_server_image(image);
    g_autofree char *device = attachment_find(path);
    return device == NULL || error_set(error, EBUSY,
                                       "%s: is attached as %s, so the kernel may be writing to it: "
                                       "detach it first (cownbd detach)",
                                       image, device);
}

char *attach_server_file(const char *image, const char *suffix, GError **error)
{
    g_autofree char *control = control_default_path();
    if (control == NULL) {
        error_set(error, ENOENT, "XDG_RUNTIME_DIR is not set: attaching needs root anyway");
        return NULL;
    }
    g_autofree char *directory = g_path_get_dirname(control);
    g_autofree char *hash = attachment_path_hash(image);
    control_make_default_directory();
    return g_strdup_printf("%s/attach-%.16s%s", directory, hash, suffix);
}

/* False: whoever had the lock has removed the file. */
static bool is_file(int fd, const char *path)
{
    struct stat open_one, named;
    return fstat(fd, &open_one) == 0 && stat(path, &named) == 0 &&
           open_one.st_ino == named.st_ino && open_one.st_dev == named.st_dev;
}

int attach_server_lock(const char *image)
{
    g_autofree char *path = attach_server_file(image, ".lock", NULL);
    autofd int fd = -1;
    do {
        close(fd_steal(&fd));
        fd = path != NULL ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
        while (fd >= 0 && flock(fd, LOCK_EX) != 0 && errno == EINTR) {
        }
    } while (fd >= 0 && !is_file(fd, path));
    return fd_steal(&fd);
}

void attach_server_unlock(const char *image, int lock)
{
    g_autofree char *socket = attach_server_file(image, ".sock", NULL);
    g_autofree char *log = attach_server_file(image, ".log", NULL);
    g_autofree char *path = attach_server_file(image, ".lock", NULL);
    struct stat st;
    if (lock >= 0 && stat(socket, &st) != 0) {
        if (stat(log, &st) == 0 && st.st_size == 0) {
            unlink(log);
        }
        unlink(path);
    }
    close(lock);
}

char *attach_server_argument(const char *device_or_image, GError **error)
{
    return g_str_has_prefix(device_or_image, "/dev/") ? attachment_image_of(device_or_image, error)
                                                      : attach_server_image(device_or_image);
}

/* Whether the server at this socket serves the image. *error: it does not answer. */
static bool serves(const char *control, const char *image, GError **error)
{
    g_autoptr(GError) failure = NULL;
    g_autoptr(JsonObject) answer = control_call(control, "list", NULL, &failure);
    if (answer == NULL && failure->code == ETIMEDOUT) {
        g_propagate_error(error, g_steal_pointer(&failure));
        return false;
    }
    JsonArray *exports = answer != NULL && json_object_has_member(answer, "exports")
                             ? json_object_get_array_member(answer, "exports")
                             : NULL;
    for (unsigned i = 0; exports != NULL && i < json_array_get_length(exports); i++) {
        JsonObject *export = json_array_get_object_element(exports, i);
        const char *path = json_object_get_string_member_with_default(export, "image", "");
        if (strcmp(path, image) == 0) {
            return true;
        }
    }
    return false;
}

char *attach_server_find(const char *control, const char *image, GError **error)
{
    g_autofree char *standard = control_default_path();
    g_autofree char *own = attach_server_file(image, ".sock", NULL);
    const char *places[] = {control != NULL ? control : standard, control != NULL ? NULL : own};
    g_autoptr(GError) silent = NULL;
    for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
        if (places[i] != NULL && serves(places[i], image, silent == NULL ? &silent : NULL)) {
            return g_strdup(places[i]);
        }
    }
    if (silent != NULL) {
        g_propagate_error(error, g_steal_pointer(&silent));
    }
    return NULL;
}

/* In the child: no terminal, and no signal of one, reaches the server. */
static void leave_session(void *unused)
{
    setsid();
}

/* Appends what can be read; false at the end of the pipe. */
static bool take_output(int fd, GString *said)
{
    char bytes[4096];
    ssize_t got = read(fd, bytes, sizeof bytes);
    if (got > 0 && said->len < SAID_MAX) {
        g_string_append_len(said, bytes, got);
    }
    return got > 0 || (got < 0 && errno == EINTR);
}

/* Reads both pipes until stdout ends; stderr as far as it has come by then, or to its end. */
static void listen_until_ready(int out, int err, GString *output, GString *errors)
{
    struct pollfd fds[] = {{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
    GString *said[] = {output, errors};
    while (fds[0].fd >= 0 || (fds[1].fd >= 0 && output->len == 0)) {
        if (poll(fds, G_N_ELEMENTS(fds), -1) < 0 && errno != EINTR) {
            return;
        }
        for (unsigned i = 0; i < G_N_ELEMENTS(fds); i++) {
            if (fds[i].fd >= 0 && fds[i].revents != 0 && !take_output(fds[i].fd, said[i])) {
                fds[i].fd = -1;
            }
        }
    }
}

/* The device of the line "attached DEVICE"; NULL when there is none. */
static char *device_of_output(const char *output)
{
    g_auto(GStrv) lines = g_strsplit(output, "\n", -1);
    for (char **line = lines; *line != NULL; line++) {
        if (g_str_has_prefix(*line, READY_PREFIX)) {
            return g_strdup(*line + strlen(READY_PREFIX));
        }
    }
    return NULL;
}

/* What the server said last, without its own name in front. */
static void set_error(const char *errors, GError **error)
{
    g_auto(GStrv) lines = g_strsplit(errors, "\n", -1);
    const char *last = "the server died and said nothing";
    for (char **line = lines; *line != NULL; line++) {
        if (**line != '\0') {
            last = g_str_has_prefix(*line, "cownbd: ") ? *line + strlen("cownbd: ") : *line;
        }
    }
    error_set(error, EIO, "%s", last);
}

static GPtrArray *server_arguments(const char *image, GPtrArray *options, GError **error)
{
    g_autofree char *control = attach_server_file(image, ".sock", error);
    g_autofree char *log = attach_server_file(image, ".log", NULL);
    if (control == NULL) {
        return NULL;
    }
    GPtrArray *all = g_ptr_array_new_with_free_func(g_free);
    const char *fixed[] = {
        "/proc/self/exe", "serve", "--listen=none",    "--attach", "--leave-after-detach",
        "--control",      control, "--background-log", log};
    for (unsigned i = 0; i < G_N_ELEMENTS(fixed); i++) {
        g_ptr_array_add(all, g_strdup(fixed[i]));
    }
    for (unsigned i = 0; i < options->len; i++) {
        g_ptr_array_add(all, g_strdup(g_ptr_array_index(options, i)));
    }
    g_ptr_array_add(all, g_strdup("--"));
    g_ptr_array_add(all, g_strdup(image));
    g_ptr_array_add(all, NULL);
    return all;
}

char *attach_server_start(const char *image, GPtrArray *options, GError **error)
{
    g_autoptr(GPtrArray) arguments = server_arguments(image, options, error);
    autofd int out = -1, err = -1;
    if (arguments == NULL ||
        !g_spawn_async_with_pipes("/", (char **)arguments->pdata, NULL, 0, leave_session, NULL,
                                  NULL, NULL, &out, &err, error)) {
        return NULL;
    }
    g_autoptr(GString) output = g_string_new(NULL), errors = g_string_new(NULL);
    listen_until_ready(out, err, output, errors);
    char *device = device_of_output(output->str);
    if (device == NULL) {
        set_error(errors->str, error);
    } else {
        fputs(errors->str, stderr); /* warnings */
    }
    return device;
}

bool attach_server_check_common(const CliCommon *common, GError **error)
{
    return common->secret_fds == NULL ||
           error_set(error, EINVAL,
                     "--secret-fd: the server reads the secret again after a death: must be "
                     "--secret-file");
}

static void add_option(GPtrArray *options, const char *name, const char *value)
{
    g_ptr_array_add(options, g_strconcat(name, "=", value, NULL));
}

void attach_server_add_common(GPtrArray *options, const CliCommon *common)
{
    if (common->format != NULL) {
        add_option(options, "--format", common->format);
    }
    for (char **path = common->allow_paths; path != NULL && *path != NULL; path++) {
        g_autofree char *absolute = g_canonicalize_filename(*path, NULL);
        add_option(options, "--allow-path", absolute);
    }
    for (char **text = common->secret_files; text != NULL && *text != NULL; text++) {
        g_autofree char *absolute = secret_text_absolute(*text, NULL);
        add_option(options, "--secret-file", absolute);
    }
}

void attach_server_add_adopt(GPtrArray *options, const char *image)
{
    g_autofree char *name = NULL;
    bool snapshot = attachment_find_mode(image, &name) == ATTACH_SNAPSHOT;
    g_ptr_array_add(options, g_strdup("--adopt"));
    if (snapshot) {
        g_ptr_array_add(options, g_strdup("--fast-path=snapshot"));
    } else if (attachment_is_read_only(image)) {
        g_ptr_array_add(options, g_strdup("--read-only"));
    }
}

bool attach_server_wait(int pid)
{
    gint64 deadline = g_get_monotonic_time() + WAIT_SECONDS * G_USEC_PER_SEC;
    while (kill(pid, 0) == 0 || errno == EPERM) {
        if (g_get_monotonic_time() > deadline) {
            return false;
        }
        g_usleep(POLL_US);
    }
    return true;
}
