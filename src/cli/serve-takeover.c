/*
 * Taking over: this process was started by another one, to go on with its sockets.
 * serve-handover.c has the picture.
 *
 * What must stay true: images are opened only after "begin", when the other process has closed them;
 * nothing moves before "go", or before the other process is seen to be dead; the files of sockets
 * stay when it is the other process that goes on.
 */
#include <string.h>
#include <unistd.h>

#include "base/errors.h"
#include "base/log.h"
#include "cli/handover-channel.h"
#include "cli/handover-conn.h"
#include "cli/handover-export.h"
#include "cli/serve-impl.h"
#include "nbd/listen.h"

#define BEGIN_SECONDS 120
#define GO_SECONDS    120

struct ServeTakeover {
    GPtrArray *exports;     /* ChannelMessage *, until their images can be opened */
    GHashTable *numbers;    /* uint64_t * -> Export *, by the numbers that they had */
    GPtrArray *connections; /* ChannelMessage *, until their exports are there */
    GPtrArray *states;      /* ConnState *, in the same order */
    GPtrArray *attachments; /* JsonObject *, as serve_attach_suspend tells them */
    bool served;
};

static void message_free(void *data)
{
    channel_message_clear(data);
    g_free(data);
}

static void object_unref(void *data)
{
    json_object_unref(data);
}

static void state_free(void *data)
{
    if (data != NULL) {
        conn_state_free(data);
    }
}

static int take_fd(ChannelMessage *message)
{
    int fd = message->fds[0];
    message->fds[0] = -1;
    return fd;
}

static bool take_listener(Serve *serve, ChannelMessage *message)
{
    const char *uri = json_object_get_string_member_with_default(message->object, "uri", NULL);
    g_autofree char *path = channel_take_path(message, "path");
    if (uri == NULL || message->fds[0] < 0) {
        return false;
    }
    g_ptr_array_add(serve->listeners, listener_adopt(take_fd(message), uri, path));
    return true;
}

static bool take_control(Serve *serve, ChannelMessage *message)
{
    g_autofree char *path = channel_take_path(message, "path");
    if (path == NULL || message->fds[0] < 0 || serve->control != NULL) {
        return false;
    }
    serve->control = control_adopt(path, take_fd(message));
    return true;
}

static bool take_metrics(Serve *serve, ChannelMessage *message)
{
    if (message->fds[0] < 0 || serve->metrics != NULL) {
        return false;
    }
    serve->metrics = metrics_adopt(take_fd(message));
    return true;
}

static bool keep(GPtrArray *messages, ChannelMessage *message)
{
    ChannelMessage *kept = g_new(ChannelMessage, 1);
    *kept = *message;
    *message = (ChannelMessage){.fds = {-1, -1}};
    g_ptr_array_add(messages, kept);
    return true;
}

/* One message; *begin when it was the last. */
static bool take(Serve *serve, ChannelMessage *message, bool *begin)
{
    const char *what = channel_what(message);
    if (strcmp(what, "listener") == 0) {
        return take_listener(serve, message);
    }
    if (strcmp(what, "control") == 0) {
        return take_control(serve, message);
    }
    if (strcmp(what, "status-page") == 0) {
        return take_metrics(serve, message);
    }
    if (strcmp(what, "connection") == 0) {
        return keep(serve->takeover->connections, message);
    }
    if (strcmp(what, "export") == 0) {
        return keep(serve->takeover->exports, message);
    }
    if (strcmp(what, "attachment") == 0) {
        g_ptr_array_add(serve->takeover->attachments, json_object_ref(message->object));
        return true;
    }
    *begin = strcmp(what, "begin") == 0;
    serve->takeover->served =
        json_object_get_boolean_member_with_default(message->object, "served", FALSE);
    return *begin;
}

bool serve_takeover_receive(Serve *serve, GError **error)
{
    int channel = serve->options.take_over;
    serve->takeover = g_new0(ServeTakeover, 1);
    serve->takeover->exports = g_ptr_array_new_with_free_func(message_free);
    serve->takeover->numbers = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    serve->takeover->connections = g_ptr_array_new_with_free_func(message_free);
    serve->takeover->states = g_ptr_array_new_with_free_func(state_free);
    serve->takeover->attachments = g_ptr_array_new_with_free_func(object_unref);
    if (!channel_send(channel, channel_object("ready"), -1, -1, error)) {
        return false;
    }
    for (bool begin = false; !begin;) {
        g_auto(ChannelMessage) message = {.fds = {-1, -1}};
        if (!channel_receive(channel, BEGIN_SECONDS, &message, error)) {
            return false;
        }
        if (!take(serve, &message, &begin)) {
            return error_set(error, EPROTO, "handover: '%s' does not make sense",
                             channel_what(&message));
        }
    }
    return true;
}

bool serve_takeover_open(Serve *serve, GError **error)
{
    return handover_open_exports(serve, serve->takeover->exports, serve->takeover->numbers, error);
}

bool serve_takeover_commit(Serve *serve, GError **error)
{
    ServeTakeover *takeover = serve->takeover;
    for (unsigned i = 0; i < takeover->connections->len; i++) {
        ConnState *state = handover_take_conn(g_ptr_array_index(takeover->connections, i),
                                              takeover->numbers, error);
        if (state == NULL) {
            return false;
        }
        g_ptr_array_add(takeover->states, state);
    }
    int channel = serve->options.take_over;
    if (!channel_send(channel, channel_object("done"), -1, -1, error)) {
        return false;
    }
    g_autoptr(GError) gone = NULL;
    g_auto(ChannelMessage) message = {.fds = {-1, -1}};
    if (channel_receive(channel, GO_SECONDS, &message, &gone)) {
        return strcmp(channel_what(&message), "go") == 0 ||
               error_set(error, EPROTO, "handover: '%s' does not make sense",
                         channel_what(&message));
    }
    if (gone->code == EPIPE) { /* its sockets and images are ours alone now */
        return true;
    }
    g_propagate_error(error, g_steal_pointer(&gone));
    return false;
}

void serve_takeover_go(Serve *serve)
{
    ServeTakeover *takeover = serve->takeover;
    for (unsigned i = 0; i < takeover->states->len; i++) {
        ChannelMessage *message = g_ptr_array_index(takeover->connections, i);
        nbd_server_adopt(serve->server, take_fd(message),
                         g_steal_pointer(&g_ptr_array_index(takeover->states, i)));
    }
    if (takeover->served) {
        nbd_server_set_served(serve->server);
    }
    serve_takeover_free(serve);
}

void serve_takeover_refuse(Serve *serve, const GError *why)
{
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        listener_leave_file(g_ptr_array_index(serve->listeners, i));
    }
    if (serve->control != NULL) {
        control_leave_file(serve->control);
    }
    JsonObject *object = channel_object("failed");
    json_object_set_string_member(object, "error", why->message);
    channel_send(serve->options.take_over, object, -1, -1, NULL);
}

void serve_takeover_free(Serve *serve)
{
    ServeTakeover *takeover = g_steal_pointer(&serve->takeover);
    if (takeover != NULL) {
        g_ptr_array_unref(takeover->exports);
        g_hash_table_unref(takeover->numbers);
        g_ptr_array_unref(takeover->connections);
        g_ptr_array_unref(takeover->states);
        g_ptr_array_unref(takeover->attachments);
        g_free(takeover);
    }
}

JsonObject *serve_takeover_attachment(const Serve *serve, const char *real_path)
{
    GPtrArray *all = serve->takeover != NULL ? serve->takeover->attachments : NULL;
    for (unsigned i = 0; all != NULL && i < all->len; i++) {
        JsonObject *one = g_ptr_array_index(all, i);
        const char *image = json_object_get_string_member_with_default(one, "image", "");
        if (strcmp(image, real_path) == 0) {
            return one;
        }
    }
    return NULL;
}
