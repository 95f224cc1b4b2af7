/*
 * Handing over: this process starts another one, gives it all its sockets, and goes.
 *
 *      this one                                  the other one (serve-takeover.c)
 *      start it                              ->  options, threads
 *                                            <-  ready
 *      no new clients, devices left alone,
 *      all held still, images closed
 *      sockets and what is known of them     ->  listener, control, connection...
 *      begin                                 ->  images opened
 *                                            <-  done
 *      go                                    ->  everything moves again
 *      end
 *
 * What must stay true: until "done" has come, this process can go on as if nothing had been, and
 * does when anything goes wrong, once the other one is dead: an image is never open in both.
 */
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "cli/handover-channel.h"
#include "cli/handover-conn.h"
#include "cli/handover-export.h"
#include "cli/serve-impl.h"
#include "cli/serve-process.h"
#include "nbd/listen.h"

#define READY_SECONDS  30
#define FREEZE_SECONDS 30
#define DONE_SECONDS   60

typedef struct Handover {
    Serve *serve;
    pid_t pid;
    int channel;
    JsonArray *attachments; /* what the block devices are */
    int64_t pause_us;
    bool done;
    GError *error; /* when not done */
} Handover;

/* The other process */

static char *own_binary(GError **error)
{
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length < 0) {
        error_set_errno(error, errno,
                        "handover: cannot tell what program this is: name one with "
                        "--binary");
        return NULL;
    }
    path[length] = '\0';
    char *deleted = strstr(path, " (deleted)"); /* replaced by another version: that one */
    if (deleted != NULL) {
        *deleted = '\0';
    }
    return g_strdup(path);
}

/* The command line of this process for another binary, with the channel's number. */
static char **command_line(const Serve *serve, const char *binary, int channel)
{
    GPtrArray *argv = g_ptr_array_new();
    char *const *old = serve->argv;
    g_ptr_array_add(argv, g_strdup(binary));
    g_ptr_array_add(argv, g_strdup(*old++));
    g_ptr_array_add(argv, g_strdup_printf(SERVE_TAKE_OVER "%d", channel));
    if (serve->options.confine) { /* it will be in ours */
        g_ptr_array_add(argv, g_strdup(SERVE_SANDBOXED));
    }
    while (*old != NULL &&
           (g_str_has_prefix(*old, SERVE_TAKE_OVER) || strcmp(*old, SERVE_SANDBOXED) == 0)) {
        old++;
    }
    while (*old != NULL) {
        g_ptr_array_add(argv, g_strdup(*old++));
    }
    g_ptr_array_add(argv, NULL);
    return (char **)g_ptr_array_free(argv, FALSE);
}

static int spawn(const char *binary, char **argv, int channel, pid_t *pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_adddup2(&actions, channel, channel); /* survives exec */
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    int err = posix_spawn(pid, binary, &actions, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return err;
}

static bool start_other(Handover *handover, const char *binary, GError **error)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
        return error_set_errno(error, errno, "handover: cannot make a channel");
    }
    autofd int theirs = ends[1];
    handover->channel = ends[0];
    g_auto(GStrv) argv = command_line(handover->serve, binary, theirs);
    int err = spawn(binary, argv, theirs, &handover->pid);
    if (err != 0) {
        handover->pid = 0;
        return error_set_errno(error, err, "handover: cannot start %s", binary);
    }
    return true;
}

static void kill_other(Handover *handover)
{
    if (handover->pid > 0) {
        kill(handover->pid, SIGKILL);
        while (waitpid(handover->pid, NULL, 0) < 0 && errno == EINTR) {
        }
    }
}

/* Waits for the word; what the other process says instead is the error. */
static bool await(const Handover *handover, const char *word, unsigned seconds, GError **error)
{
    g_auto(ChannelMessage) message = {.fds = {-1, -1}};
    if (!channel_receive(handover->channel, seconds, &message, error)) {
        return false;
    }
    if (strcmp(channel_what(&message), word) == 0) {
        return true;
    }
    return error_set(
        error, EPROTO, "handover: the other process refused: %s",
        json_object_get_string_member_with_default(message.object, "error", "it gave no reason"));
}

/* What it is told */

static bool send_listeners(const Handover *handover, GError **error)
{
    const GPtrArray *listeners = handover->serve->listeners;
    for (unsigned i = 0; i < listeners->len; i++) {
        const Listener *listener = g_ptr_array_index(listeners, i);
        JsonObject *object = channel_object("listener");
        json_object_set_string_member(object, "uri", listener_uri(listener));
        channel_put_path(object, "path", listener_path(listener));
        if (!channel_send(handover->channel, object, listener_fd(listener), -1, error)) {
            return false;
        }
    }
    return true;
}

static bool send_control(const Handover *handover, GError **error)
{
    const Control *control = handover->serve->control;
    if (control == NULL) {
        return true;
    }
    JsonObject *object = channel_object("control");
    channel_put_path(object, "path", control_path(control));
    return channel_send(handover->channel, object, control_fd(control), -1, error);
}

static bool send_metrics(const Handover *handover, GError **error)
{
    const Metrics *metrics = handover->serve->metrics;
    return metrics == NULL || channel_send(handover->channel, channel_object("status-page"),
                                           metrics_fd(metrics), -1, error);
}

static bool send_attachments(const Handover *handover, GError **error)
{
    for (unsigned i = 0; i < json_array_get_length(handover->attachments); i++) {
        JsonObject *object = json_array_get_object_element(handover->attachments, i);
        json_object_set_string_member(object, "what", "attachment");
        if (!channel_send(handover->channel, json_object_ref(object), -1, -1, error)) {
            return false;
        }
    }
    return true;
}

static void send_conn(const NbdHeld *held, void *argument)
{
    Handover *handover = argument;
    if (handover->error == NULL) {
        handover_send_conn(handover->channel, held->fd, held->state, &handover->error);
    }
}

static bool send_all(Handover *handover)
{
    Serve *serve = handover->serve;
    if (!send_listeners(handover, &handover->error) || !send_control(handover, &handover->error) ||
        !send_metrics(handover, &handover->error) ||
        !send_attachments(handover, &handover->error) ||
        !handover_send_exports(handover->channel, serve, &handover->error)) {
        return false;
    }
    nbd_server_each_held(serve->server, send_conn, handover);
    if (handover->error != NULL) {
        return false;
    }
    JsonObject *begin = channel_object("begin");
    json_object_set_boolean_member(begin, "served", nbd_server_has_served(serve->server));
    return channel_send(handover->channel, begin, -1, -1, &handover->error);
}

/* The turn */

static void pause_listeners(Serve *serve)
{
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        listener_pause(g_ptr_array_index(serve->listeners, i));
    }
}

/* From here on the sockets are the other process's. */
static void let_go(Handover *handover)
{
    Serve *serve = handover->serve;
    g_autofree char *state = g_strdup_printf("MAINPID=%d", (int)handover->pid);
    nbd_server_drop_attached(serve->server); /* or the kernel takes no new ones */
    process_notify(state);
    channel_send(handover->channel, channel_object("go"), -1, -1, NULL);
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        listener_leave_file(g_ptr_array_index(serve->listeners, i));
    }
    if (serve->control != NULL) {
        control_leave_file(serve->control);
    }
    nbd_server_abandon(serve->server);
    serve->handed_over = true;
}

/* As if nothing had been; or, where the images cannot be opened again, the end. */
static void go_on(Serve *serve)
{
    g_autoptr(GError) error = NULL;
    nbd_server_drop_attached(serve->server);
    if (!serve_images_reopen(serve, &error)) {
        log_error("after a failed handover the images cannot be opened again: %s", error->message);
        nbd_server_abandon(serve->server);
        serve->failed = true;
        serve_leave(serve);
        return;
    }
    nbd_server_thaw(serve->server);
    serve_start_listeners(serve);
    serve_attach_resume(serve);
}

static bool hand_over_still(Handover *handover)
{
    Serve *serve = handover->serve;
    if (!serve_images_suspend(serve)) {
        return error_set(&handover->error, EIO, "handover: a last flush failed: see the log");
    }
    return send_all(handover) && await(handover, "done", DONE_SECONDS, &handover->error);
}

/* On main: nobody stops the server meanwhile. */
static void hand_over(Serve *serve, void *argument)
{
    Handover *handover = argument;
    int64_t begun = g_get_monotonic_time();
    pause_listeners(serve);
    handover->attachments = serve_attach_suspend(serve);
    if (!nbd_server_freeze(serve->server, FREEZE_SECONDS)) {
        error_set(&handover->error, ETIMEDOUT, "handover: requests still run after %d seconds",
                  FREEZE_SECONDS);
        kill_other(handover);
        nbd_server_drop_attached(serve->server);
        serve_start_listeners(serve);
        serve_attach_resume(serve);
        return;
    }
    handover->done = hand_over_still(handover);
    if (handover->done) {
        let_go(handover);
    } else {
        kill_other(handover);
        go_on(serve);
    }
    handover->pause_us = g_get_monotonic_time() - begun;
}

static bool check_binary(const char *binary, GError **error)
{
    if (!g_path_is_absolute(binary)) {
        return error_set(error, EINVAL, "handover: binary is '%s': must be an absolute path",
                         binary);
    }
    return access(binary, X_OK) == 0 ||
           error_set_errno(error, errno, "handover: cannot start %s", binary);
}

/* The other process reads all secrets again; what came through a descriptor is gone. */
static bool check_secrets(const Serve *serve, GError **error)
{
    return serve->options.common.secret_fds == NULL ||
           error_set(error, ENOTSUP,
                     "handover: this server has a secret from --secret-fd, which the next process "
                     "cannot read again: must be --secret-file");
}

static bool run(Handover *handover, const char *binary, GError **error)
{
    if (!start_other(handover, binary, error) || !await(handover, "ready", READY_SECONDS, error)) {
        kill_other(handover);
        return false;
    }
    if (!serve_on_main(handover->serve, hand_over, handover)) {
        kill_other(handover);
        return error_set(error, ESHUTDOWN, "handover: the server is ending");
    }
    if (!handover->done) {
        g_propagate_error(error, g_steal_pointer(&handover->error));
        return false;
    }
    return true;
}

bool serve_handover_verb(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    Handover handover = {.serve = context, .channel = -1};
    const char *named = NULL;
    if (!control_get_string(arguments, "binary", &named, error) ||
        !check_secrets(handover.serve, error)) {
        return false;
    }
    g_autofree char *binary = named != NULL ? g_strdup(named) : own_binary(error);
    if (binary == NULL || !check_binary(binary, error)) {
        return false;
    }
    bool done = run(&handover, binary, error);
    g_clear_pointer(&handover.attachments, json_array_unref);
    if (handover.channel >= 0) {
        close(handover.channel);
    }
    if (!done) {
        log_warning("handover failed, this process goes on");
        return false;
    }
    json_object_set_int_member(answer, "pid", handover.pid);
    json_object_set_int_member(answer, "pause-us", handover.pause_us);
    serve_leave(handover.serve);
    return true;
}
