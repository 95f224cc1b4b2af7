/*
 * The control socket of a server, and the verbs that tell about it.
 *
 * What must stay true: the verbs only look, and do that on main, whose the images are.
 */
#include <stdio.h>
#include <string.h>

#include "base/errors.h"
#include "base/log.h"
#include "cli/output.h"
#include "cli/serve-impl.h"
#include "formats/format.h"
#include "map/image.h"
#include "nbd/listen.h"
#include "nbd/server-clients.h"

const char *serve_mode_name(DiskMode mode)
{
    switch (mode) {
    case DISK_NORMAL:
        return "normal";
    case DISK_READ_ONLY:
        return "read-only";
    default:
        return "failed";
    }
}

static JsonObject *describe_image(const Serve *serve, const ServedImage *image)
{
    JsonObject *object = json_object_new();
    NbdCounts counts;
    nbd_server_get_counts(serve->server, image->export, &counts);
    output_add_string(object, "name", image->export->name);
    output_add_string(object, "image", image->real_path);
    json_object_set_string_member(object, "format", image->image->format->name);
    json_object_set_int_member(object, "size", image->export->node->size);
    json_object_set_boolean_member(object, "read-only", image->export->read_only);
    json_object_set_string_member(object, "mode", serve_mode_name(disk_mode(image->disk)));
    json_object_set_int_member(object, "connections", counts.connections);
    json_object_set_boolean_member(object, "leaving", image->leaving);
    if (image->how.description != NULL) {
        output_add_string(object, "description", image->how.description);
    }
    return object;
}

static JsonArray *all_images(const Serve *serve)
{
    JsonArray *array = json_array_new();
    for (unsigned i = 0; i < serve->images->len; i++) {
        const ServedImage *image = g_ptr_array_index(serve->images, i);
        JsonObject *object = describe_image(serve, image);
        if (serve->describe != NULL) {
            serve->describe(image, false, object, serve->describe_context);
        }
        json_array_add_object_element(array, object);
    }
    return array;
}

static JsonArray *all_clients(const Serve *serve)
{
    JsonArray *array = json_array_new();
    g_autoptr(GPtrArray) clients = nbd_server_clients(serve->server);
    for (unsigned i = 0; i < clients->len; i++) {
        const NbdClient *client = g_ptr_array_index(clients, i);
        JsonObject *object = json_object_new();
        json_object_set_int_member(object, "client", client->number);
        json_object_set_string_member(object, "peer", client->peer);
        if (client->export != NULL) {
            output_add_string(object, "export", client->export);
        }
        json_object_set_int_member(object, "in-flight", client->in_flight);
        if (client->tls != NULL) {
            json_object_set_string_member(object, "tls", client->tls);
        }
        json_array_add_object_element(array, object);
    }
    return array;
}

static void list_job(Serve *serve, void *argument)
{
    JsonObject *answer = argument;
    JsonArray *listeners = json_array_new();
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        g_autofree char *uri = serve_listen_uri(serve, g_ptr_array_index(serve->listeners, i));
        json_array_add_string_element(listeners, uri);
    }
    json_object_set_array_member(answer, "listen", listeners);
    json_object_set_array_member(answer, "exports", all_images(serve));
    json_object_set_array_member(answer, "clients", all_clients(serve));
}

static bool verb_list(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    return serve_on_main(context, list_job, answer) || serve_is_ending(error);
}

static bool verb_stats(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    return serve_on_main(context, serve_stats_job, answer) || serve_is_ending(error);
}

/* Where the user named no path, a server without a control socket is better than none. */
static bool open_socket(Serve *serve, GError **error)
{
    const char *named = serve->options.control;
    if (serve->control != NULL) {
        return true; /* taken over */
    }
    if (named != NULL) {
        serve->control = strcmp(named, "none") != 0 ? control_new(named, error) : NULL;
        return serve->control != NULL || strcmp(named, "none") == 0;
    }
    /* A server of one client, one of many perhaps, does not take the place of the server. */
    g_autofree char *path = serve->options.stdio ? NULL : control_default_path();
    if (path != NULL) {
        g_autoptr(GError) refusal = NULL;
        serve->control = control_new(path, &refusal);
        if (serve->control == NULL) {
            log_warning("no control socket: %s", refusal->message);
        }
    }
    return true;
}

bool serve_control_open(Serve *serve, GError **error)
{
    if (!open_socket(serve, error)) {
        return false;
    }
    static const char *const handover_keys[] = {"binary", NULL};
    if (serve->control != NULL) {
        control_add_verb(serve->control, "handover", handover_keys, serve_handover_verb, serve);
        control_add_verb(serve->control, "list", NULL, verb_list, serve);
        control_add_verb(serve->control, "stats", NULL, verb_stats, serve);
        serve_resize_start(serve);
        serve_snapshot_start(serve);
    }
    serve_exports_start(serve);
    return true;
}
