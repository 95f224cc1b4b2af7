/*
 * cownbd ctl: any verb of a running server, as it is.
 */
#include <stdio.h>
#include <string.h>

#include "base/errors.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/remote.h"

static const CliUsage usage = {
    .command = "ctl",
    .arguments = "VERB [KEY=VALUE...]",
    .summary =
        "Asks a running server over its control socket. Verbs: hello, list, stats, handover, and\n"
        "where devices are attached, attach and detach; docs/control.md says more of each.",
    .example = "  cownbd ctl hello\n"
               "  cownbd ctl handover --binary ./cownbd-new",
    .flags = CLI_FLAG_JSON,
};

static bool add_arguments(JsonObject *arguments, char **pairs, GError **error)
{
    for (; *pairs != NULL; pairs++) {
        const char *equals = strchr(*pairs, '=');
        if (equals == NULL || equals == *pairs) {
            return error_set(error, EINVAL, "ctl: '%s': must be KEY=VALUE", *pairs);
        }
        if (!g_utf8_validate(*pairs, -1, NULL)) {
            return error_set(error, EINVAL, "ctl: '%s': must be UTF-8", *pairs);
        }
        g_autofree char *key = g_strndup(*pairs, equals - *pairs);
        if (strcmp(key, "verb") == 0 || json_object_has_member(arguments, key)) {
            return error_set(error, EINVAL, "ctl: '%s' is given twice", key);
        }
        json_object_set_string_member(arguments, key, equals + 1);
    }
    return true;
}

/* The server's directory may be another one than ours. */
static bool add_binary(JsonObject *arguments, const char *binary, GError **error)
{
    if (binary == NULL) {
        return true;
    }
    g_autofree char *absolute = g_canonicalize_filename(binary, NULL);
    g_autofree char *pair = g_strconcat("binary=", absolute, NULL);
    return add_arguments(arguments, (char *[]){pair, NULL}, error);
}

static void print_human(JsonObject *answer)
{
    JsonObjectIter iter;
    const char *key;
    JsonNode *value;
    json_object_iter_init_ordered(&iter, answer);
    while (json_object_iter_next_ordered(&iter, &key, &value)) {
        if (strcmp(key, "ok") == 0) {
            continue;
        }
        bool is_string =
            JSON_NODE_HOLDS_VALUE(value) && json_node_get_value_type(value) == G_TYPE_STRING;
        g_autofree char *text =
            is_string ? g_strdup(json_node_get_string(value)) : json_to_string(value, FALSE);
        printf("%s: %s\n", key, text);
    }
}

int cli_ctl(int argc, char **argv)
{
    g_autofree char *control = NULL, *binary = NULL;
    const GOptionEntry own[] = {
        REMOTE_ENTRY(&control),
        {"binary", 0, 0, G_OPTION_ARG_FILENAME, &binary,
         "For handover: the program that goes on (default: the one that runs)", "PATH"},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc < 2) {
        return cli_fail_usage(&usage, "no verb given");
    }
    g_autoptr(JsonObject) arguments = json_object_new();
    if (!add_arguments(arguments, argv + 2, &error) || !add_binary(arguments, binary, &error)) {
        return cli_fail(error);
    }
    g_autoptr(JsonObject) answer = remote_call(control, argv[1], arguments, &error);
    if (answer == NULL) {
        return cli_fail(error);
    }
    if (common.json) {
        return remote_print_json(g_steal_pointer(&answer));
    }
    print_human(answer);
    return output_finish(0);
}
