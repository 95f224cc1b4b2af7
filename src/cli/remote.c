/*
 * Subcommands that talk to a running server.
 */
#include "cli/remote.h"

#include "base/errors.h"
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
