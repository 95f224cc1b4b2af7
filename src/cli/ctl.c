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
    .arguments = "VERB [ARGUMENT] [KEY=VALUE...]",
    .summary = "Asks a running server over its control socket. Verbs:\n\n"
               "  add IMAGE [--name --format --description --read-only --snapshot --secret-file]\n"
               "  remove EXPORT [--mode=safe|hide|hard]\n"
               "  kick CLIENT, kick --export NAME\n"
               "  hello, list, stats, reload, handover [--binary]\n"
               "  resize image=IMAGE size=[+-]SIZE [shrink=true]\n"
               "  snapshot image=IMAGE action=create|delete name=NAME\n"
               "  attach, detach      where devices are attached\n\n"
               "docs/control.md says more of each.",
    .example = "  cownbd ctl add /srv/images/vm2.qcow2 --name vm2\n"
               "  cownbd ctl remove vm2 --mode=hard\n"
               "  cownbd ctl handover --binary ./cownbd-new",
    .flags = CLI_FLAG_JSON,
};

/* What the argument of a verb without KEY= is. */
static const struct {
    const char *verb, *key;
} subjects[] = {
    {"add", "image"},
    {"remove", "name"},
    {"kick", "client"},
};

/* Options that are arguments of verbs. */
typedef struct CtlOptions {
    char *name, *format, *description, *snapshot, *mode, *export, *binary;
    char **secret_files;
    gboolean read_only;
} CtlOptions;

static void ctl_options_clear(CtlOptions *o)
{
    g_free(o->name);
    g_free(o->format);
    g_free(o->description);
    g_free(o->snapshot);
    g_free(o->mode);
    g_free(o->export);
    g_free(o->binary);
    g_strfreev(o->secret_files);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(CtlOptions, ctl_options_clear)

static bool add_argument(JsonObject *arguments, const char *key, const char *value, GError **error)
{
    if (value == NULL) {
        return true;
    }
    if (!g_utf8_validate(value, -1, NULL)) {
        return error_set(error, EINVAL, "ctl: %s is '%s': must be UTF-8", key, value);
    }
    if (strcmp(key, "verb") == 0 || json_object_has_member(arguments, key)) {
        return error_set(error, EINVAL, "ctl: '%s' is given twice", key);
    }
    json_object_set_string_member(arguments, key, value);
    return true;
}

static bool add_pairs(JsonObject *arguments, char **pairs, GError **error)
{
    for (; *pairs != NULL; pairs++) {
        const char *equals = strchr(*pairs, '=');
        if (equals == NULL || equals == *pairs) {
            return error_set(error, EINVAL, "ctl: '%s': must be KEY=VALUE", *pairs);
        }
        g_autofree char *key = g_strndup(*pairs, equals - *pairs);
        if (!g_utf8_validate(key, -1, NULL)) {
            return error_set(error, EINVAL, "ctl: '%s': must be UTF-8", *pairs);
        }
        if (!add_argument(arguments, key, equals + 1, error)) {
            return false;
        }
    }
    return true;
}

/* The server's directory may be another one than ours. */
static bool add_path(JsonObject *arguments, const char *key, const char *path, GError **error)
{
    g_autofree char *absolute = path != NULL ? g_canonicalize_filename(path, NULL) : NULL;
    return add_argument(arguments, key, absolute, error);
}

static bool add_secret_files(JsonObject *arguments, char **files, GError **error)
{
    JsonArray *array = files != NULL ? json_array_new() : NULL;
    for (char **text = files; text != NULL && *text != NULL; text++) {
        g_autofree char *absolute = secret_text_absolute(*text, NULL);
        if (!g_utf8_validate(absolute, -1, NULL)) {
            json_array_unref(array);
            return error_set(error, EINVAL, "ctl: --secret-file is '%s': must be UTF-8", *text);
        }
        json_array_add_string_element(array, absolute);
    }
    if (array != NULL) {
        json_object_set_array_member(arguments, "secret-file", array);
    }
    return true;
}

/* The first argument of some verbs needs no key; *rest: what follows it. */
static bool add_subject(JsonObject *arguments, const char *verb, char ***rest, GError **error)
{
    const char *first = **rest, *equals = first != NULL ? strchr(first, '=') : NULL;
    bool is_pair = equals != NULL && memchr(first, '/', equals - first) == NULL;
    for (unsigned i = 0; i < G_N_ELEMENTS(subjects); i++) {
        if (first != NULL && !is_pair && strcmp(subjects[i].verb, verb) == 0) {
            (*rest)++;
            return strcmp(subjects[i].key, "image") == 0
                       ? add_path(arguments, "image", first, error)
                       : add_argument(arguments, subjects[i].key, first, error);
        }
    }
    return true;
}

static bool add_all(JsonObject *arguments, char **argv, const CtlOptions *o, GError **error)
{
    char **rest = argv + 2;
    return add_subject(arguments, argv[1], &rest, error) && add_pairs(arguments, rest, error) &&
           add_argument(arguments, "name", o->name, error) &&
           add_argument(arguments, "format", o->format, error) &&
           add_argument(arguments, "description", o->description, error) &&
           add_argument(arguments, "snapshot", o->snapshot, error) &&
           add_secret_files(arguments, o->secret_files, error) &&
           add_argument(arguments, "read-only", o->read_only ? "true" : NULL, error) &&
           add_argument(arguments, "mode", o->mode, error) &&
           add_argument(arguments, "export", o->export, error) &&
           add_path(arguments, "binary", o->binary, error);
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
    g_autofree char *control = NULL;
    g_auto(CtlOptions) o = {0};
    const GOptionEntry own[] = {
        REMOTE_ENTRY(&control),
        {"name", 'n', 0, G_OPTION_ARG_FILENAME, &o.name,
         "For add: name of the export (default: base name of the file)", "NAME"},
        {"format", 'f', 0, G_OPTION_ARG_FILENAME, &o.format,
         "For add: format of the image (default: found from its first bytes)", "FMT"},
        {"description", 0, 0, G_OPTION_ARG_FILENAME, &o.description,
         "For add: what LIST and INFO say of the export", "TEXT"},
        {"read-only", 'r', 0, G_OPTION_ARG_NONE, &o.read_only, "For add: refuse writes", NULL},
        {"snapshot", 0, 0, G_OPTION_ARG_FILENAME, &o.snapshot,
         "For add: show this internal snapshot of the image (its name or ID), read-only", "NAME"},
        {"secret-file", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &o.secret_files,
         "For add: passphrase of the image, or of IMAGE in its chain (repeatable); the server "
         "reads "
         "the file",
         "[IMAGE=]FILE"},
        {"mode", 0, 0, G_OPTION_ARG_FILENAME, &o.mode,
         "For remove: safe, hide or hard: refuse while there are clients (default), let them "
         "finish, send them away",
         "MODE"},
        {"export", 0, 0, G_OPTION_ARG_FILENAME, &o.export, "For kick: all clients of this export",
         "NAME"},
        {"binary", 0, 0, G_OPTION_ARG_FILENAME, &o.binary,
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
    if (!add_all(arguments, argv, &o, &error)) {
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
