/*
 * Subcommands that talk to a running server.
 */
#include "cli/remote.h"

#include "base/errors.h"
#include "cli/output.h"
#include "control/control.h"

JsonObject *remote_call(const char *path, const char *verb, JsonObject *arguments, GError **error)
{
    g_autofree char *standard = path == NULL ? control_default_path() : NULL;
    if (path == NULL && standard == NULL) {
        error_set(error, ENOENT,
                  "%s: XDG_RUNTIME_DIR is not set: name the server's socket with --control", verb);
        return NULL;
    }
    return control_call(path != NULL ? path : standard, verb, arguments, error);
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
