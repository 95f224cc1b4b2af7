/*
 * Subcommands that talk to a running server.
 */
#include "cli/remote.h"

#include "base/errors.h"
#include "cli/attach-server.h"
#include "cli/options.h"
#include "cli/output.h"
#include "control/control.h"

#define TRIES      5
#define TRIES_USEC 100000

/* A question that may be asked twice. */
static bool only_looks(const char *verb)
{
    static const char *const verbs[] = {"hello", "list", "stats", NULL};
    return g_strv_contains(verbs, verb);
}

/* A server that hands over to another process drops who has connected to it at that moment. */
static JsonObject *call_again(const char *path, const char *verb, JsonObject *arguments,
                              GError **error)
{
    for (unsigned tries = 1;; tries++) {
        g_autoptr(GError) refusal = NULL;
        JsonObject *answer = control_call(path, verb, arguments, &refusal);
        if (answer != NULL) {
            return answer;
        }
        if (refusal->code != EPIPE || tries == TRIES) {
            g_propagate_error(error, g_steal_pointer(&refusal));
            return NULL;
        }
        g_usleep(TRIES_USEC);
    }
}

JsonObject *remote_call(const char *path, const char *verb, JsonObject *arguments, GError **error)
{
    g_autofree char *standard = path == NULL ? control_default_path() : NULL;
    if (path == NULL && standard == NULL) {
        error_set(error, ENOENT,
                  "%s: XDG_RUNTIME_DIR is not set: name the server's socket with --control", verb);
        return NULL;
    }
    path = path != NULL ? path : standard;
    return only_looks(verb) ? call_again(path, verb, arguments, error)
                            : control_call(path, verb, arguments, error);
}

int remote_print_json(JsonObject *answer)
{
    json_object_remove_member(answer, "ok");
    JsonNode *node = json_node_alloc();
    json_node_init_object(node, answer);
    json_object_unref(answer);
    output_json(node);
    return output_finish(0);
}

/* The socket of the server that serves the image, or the image of the device. */
static char *find_server(const char *device_or_image, GError **error)
{
    g_autofree char *image = attach_server_argument(device_or_image, error);
    char *control = image != NULL ? attach_server_find(NULL, image, error) : NULL;
    if (image != NULL && control == NULL && *error == NULL) {
        error_set(error, ENOENT, "%s: no server of it is found: name its socket with --control",
                  image);
    }
    return control;
}

int remote_show(const CliUsage *usage, int argc, char **argv, const char *verb,
                int (*print_human)(JsonObject *answer))
{
    g_autofree char *control = NULL;
    const GOptionEntry own[] = {REMOTE_ENTRY(&control), {NULL}};
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(usage, own, &common, &argc, &argv, &error)) {
        return cli_fail_usage(usage, "%s", error->message);
    }
    if (argc > 2 || (argc == 2 && control != NULL)) {
        return cli_fail_usage(usage, "'%s': one server at a time", argv[argc - 1]);
    }
    if (argc == 2 && (control = find_server(argv[1], &error)) == NULL) {
        return cli_fail(error);
    }
    g_autoptr(JsonObject) answer = remote_call(control, verb, NULL, &error);
    if (answer == NULL) {
        return cli_fail(error);
    }
    return common.json ? remote_print_json(g_steal_pointer(&answer)) : print_human(answer);
}
